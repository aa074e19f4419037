"""Plans of native programs: what they promise holds for any network and any program, and so do the results."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import minidl as m
from engine.programs import NAMES, assert_close, assert_same, numbers, programs, recorded, rounding, values
from engine.test_native_networks import EPS, compiled, errors, networks, run
from minidl.backends import cpu, use_backend
from minidl.backends.cpu.native.compiler import unavailable
from minidl.core.dlarray import dlarray
from minidl.core.errors import MinidlError
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.engine.phases import reach_of
from minidl.engine.program import NativeProgram
from minidl.kernels.cpu.threads import set_thread_count

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


class Planner:
    """The CPU backend, but it writes no code."""

    def __getattr__(self, name):
        return getattr(cpu, name)

    @staticmethod
    def native_segment(phases, plan):
        return type("Segment", (), {"bind": lambda self, flat, arena: lambda: None})()


def plan_of(graph, orders):
    """The plan of a native program."""
    program = compile_graph(graph, orders, Planner())
    assert isinstance(program, NativeProgram)
    return program.plan


def moments(plan):
    """What runs, in order: (items that may run at the same time, whether they share scratch tile by tile)."""
    for segment in plan.segments:
        if not isinstance(segment, list):
            yield [[segment]]
            continue
        for phase in segment:
            yield [group.items for group in phase.groups]
            yield from ([[item]] for item in phase.tail)


def made_by(item):
    """Buffers that an item writes; partial results in place of what they are combined to."""
    partial = getattr(item, "partial", {})
    return {partial.get(y, y) for y in item.writes} | set(partial.values())


def check_plan(plan):
    """All is made before it is read, and what is alive at once lies apart."""
    layout = plan.schedule.layout
    outputs = {layout.access[y].buffer for y in layout.graph.outputs}
    there = {*layout.graph.inputs, *layout.memory}
    lives: dict[Any, list[float]] = {x: [-1] for x in layout.graph.inputs}
    end = sum(1 for _ in moments(plan))
    for time, groups in enumerate(moments(plan)):
        made = set()
        for items in groups:
            mine: dict[Any, Any] = {}
            for item in items:
                assert item.reads <= there | set(mine), "a group reads nothing that another one makes meanwhile"
                for x in item.reads & set(mine):
                    assert reach_of(item, x) == reach_of(mine[x], x) > 0, "of a tile nothing but that tile is read"
                mine.update(dict.fromkeys(made_by(item), item))
                for x in (item.reads | made_by(item)) - set(layout.memory):
                    lives.setdefault(x, []).append(time)
            made |= set(mine)
        there |= made
    for y in outputs & set(lives):
        lives[y].append(end)
    for x in set(lives) & set(layout.padded):
        lives[x] += [-1, end]
    spans = {x: (min(times), max(times)) for x, times in lives.items() if x in plan.offsets}
    places = sorted((plan.offsets[x], plan.offsets[x] + layout.nbytes(x), x) for x in spans)
    for i, (_, stop, x) in enumerate(places):
        for low, _, y in places[i + 1 :]:
            if low >= stop:
                break
            assert spans[x][1] < spans[y][0] or spans[y][1] < spans[x][0], f"{x} and {y} overlap"
    phases = [phase for segment in plan.segments if isinstance(segment, list) for phase in segment]
    groups = [group for phase in phases for group in phase.groups]
    used = [[(item.reads | made_by(item)) & set(plan.scratch) for item in group.items] for group in groups]
    spans = {}  # bytes of each buffer, of all indices of a tile
    for group, buffers in zip(groups, used):
        for x in set().union(*buffers):
            start, per_index = plan.scratch[x]
            spans[x] = start, start + per_index * group.tile
            assert spans[x][1] <= plan.scratch_bytes
    kept = set(spans) & set(layout.padded)  # zeros around values stay zeros
    for buffers in used:
        times = {
            x: [k for k, xs in enumerate(buffers) if x in xs or x in kept] for x in {*kept, *set().union(*buffers)}
        }
        for x, y in itertools.combinations(times, 2):
            is_apart = spans[x][1] <= spans[y][0] or spans[y][1] <= spans[x][0]
            assert is_apart or times[x][-1] < times[y][0] or times[y][-1] < times[x][0], (
                f"{x} and {y} overlap in scratch"
            )


@settings(max_examples=60, derandomize=True)
@given(networks(is_large=True))
def test_plans(network):
    graph, fresh, _ = recorded(network, *network.inputs("float32"))
    check_plan(plan_of(graph, [order_of(value.data) for value in fresh]))


@settings(max_examples=60, derandomize=True)
@given(programs(most_steps=12))
def test_plans_of_any_program(drawn):
    function, specs = drawn
    graph, fresh, _ = recorded(function, *[values(spec, 0) for spec in specs])
    check_plan(plan_of(graph, [order_of(value.data) for value in fresh]))


# threads and sizes -----------------------------------------------------------------------------------------------
@settings(max_examples=8, derandomize=True)
@given(networks(is_large=True))
def test_results_do_not_depend_on_threads(network):
    inputs = network.inputs("float32")
    try:
        found = []
        for threads in (1, 2, 3, 8):
            set_thread_count(threads)
            program = compiled(network, inputs)
            found += [run(program, inputs) for _ in range(2)]
    finally:
        set_thread_count()
    for others in found[1:]:
        assert_same(others, found[0])


def convolved(x, w):
    y = m.relu(m.dlconv(x, w, 0, Padding="same"))
    return y, m.sum(m.stripdims(y), "all"), m.softmax(m.mean(y, "S"))


@pytest.mark.parametrize("batch", [0, 1])
def test_none_or_one_observation(batch):
    inputs = [dlarray(np.ones((5, 4, 2, batch), "f"), "SSCB"), dlarray(np.full((3, 3, 2, 3), 0.25, "f"))]
    assert_close(run(compiled(convolved, inputs), inputs), convolved(*inputs), 1e-6)


# any program -----------------------------------------------------------------------------------------------------
JUMPS = {"compare", "compare number", "where", "where numbers", "logic", "cast", "any", "sort", "max of two", "max",
         "min", "constant"}  # fmt: skip


def in_double(specs):
    return [(shape, labels, "float64" if dtype == "float32" else dtype) for shape, labels, dtype in specs]


@settings(max_examples=80, derandomize=True)
@given(programs(), st.lists(st.integers(0, 7), min_size=3, max_size=3))
def test_any_program_against_the_reference_in_double(drawn, layouts):
    """In double the same numbers; in single those near it, unless the program jumps where rounding differs."""
    function, specs = drawn
    inputs = [values(spec, 1, k) for spec, k in zip(specs, layouts)]
    with use_backend("reference"):
        expected = function(*[values(spec, 1, k) for spec, k in zip(in_double(specs), layouts)])
    double = [values(spec, 1, k) for spec, k in zip(in_double(specs), layouts)]
    program = compiled(function, double)
    assert_close(run(program, double), expected, rounding(program.graph))
    if not JUMPS & {NAMES[step.name] for step in function.steps}:
        found = numbers(run(compiled(function, inputs), inputs))
        wide = [y.astype(np.float64) if y.dtype == np.float32 else y for y in found]
        assert_close(wide, expected, 3e-5)


def enlarged(specs):
    """All sizes times one number, so that the largest array is worth phases and chunks."""
    for factor in (300, 40, 11, 8, 5, 1):
        large = [(tuple([n * factor if n > 1 else n for n in shape]), *rest) for shape, *rest in specs]
        if max(np.prod(np.maximum(shape, 1)) for shape, *_ in large) < 200_000:
            break
    return large


@settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(most_steps=6), st.lists(st.integers(0, 7), min_size=3, max_size=3))
def test_any_program_on_large_arrays(drawn, layouts):
    """Programs found on small arrays, on large ones."""
    function, specs = drawn
    large = enlarged(specs)
    double = [values(spec, 1, k) for spec, k in zip(in_double(large), layouts)]
    try:
        with np.errstate(all="ignore"):
            expected = function(*double)
    except MinidlError:
        assume(False)
    assume(all(np.all(np.abs(y) < 1e6) for y in numbers(expected)) and max(y.size for y in expected) < 1_000_000)
    program = compiled(function, double)
    assert_close(run(program, double), expected, rounding(program.graph) * 100)
    check_plan(program.plan)
    if not JUMPS & {NAMES[step.name] for step in function.steps}:
        inputs = [values(spec, 1, k) for spec, k in zip(large, layouts)]
        exact, plain = [y.astype(np.float64) for y in numbers(expected)], function(*inputs)
        mine = errors(run(compiled(function, inputs), inputs), exact)
        assert np.all(np.array(mine) <= 8 * np.array(errors(plain, exact)) + 100 * EPS)
