"""Fusing: fewer tasks, the same results."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import minidl as m
from engine.interpreter import Interpreter
from engine.programs import LAYOUTS, assert_close, programs, recorded, rounding, values
from minidl.backends import cpu
from minidl.core.dlarray import dlarray
from minidl.core.op import VIEW
from minidl.core.random import GENERATOR
from minidl.engine.fuse import MOST_ARRAYS, SMALL, describe, schedule
from minidl.engine.layout import choose_layout, order_of
from minidl.engine.loops import Loop
from minidl.engine.passes import expand, simplify
from minidl.engine.plan import plan_memory
from minidl.engine.program import Program

X = np.arange(6, dtype=np.float32).reshape(2, 3) + 1


def layout_of(function, *inputs):
    graph, fresh, _ = recorded(function, *inputs)
    graph = simplify(expand(cpu.has_kernel)(simplify(graph)))
    return choose_layout(graph, [order_of(value.data) for value in fresh], cpu.needs_dense, cpu.view)


def tasks(function, *inputs):
    return schedule(layout_of(function, *(inputs or [dlarray(X)]))).tasks


@settings(max_examples=150, derandomize=True)
@given(programs(most_steps=12), st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=3, max_size=3))
def test_fused_or_not_the_results_are_the_same(drawn, layouts):
    program, specs = drawn
    layout = layout_of(program, *[values(spec, 0, k) for spec, k in zip(specs, layouts)])
    inputs = [values(spec, 1, k + 1) for spec, k in zip(specs, layouts)]  # other numbers, other memory layouts
    arrays = [x._value.data for x in inputs] + [GENERATOR.value.data]
    expected = program(*inputs)
    for is_fusing in (False, True):
        found = schedule(layout, is_fusing=is_fusing)
        check(found)
        replay = Program(layout.graph, plan_memory(found), Interpreter)
        assert_close(replay.run(arrays), expected, rounding(layout.graph))


def check(found):
    """Each buffer is written once, before it is read; no loop is empty or does what nobody needs."""
    graph, access = found.layout.graph, found.layout.access
    ready = {*graph.inputs, *graph.constants}
    needed = {access[y].buffer for y in graph.outputs}.union(*(task.reads for task in found.tasks))
    for task in found.tasks:
        assert task.reads <= ready and not ready.intersection(task.writes) and not task.reads.intersection(task.writes)
        ready.update(task.writes)
        if isinstance(task.work, Loop):
            assert task.work.stores and needed.issuperset(task.writes)
            assert (task.reads, task.writes) == (task.work.reads, task.work.writes)
    assert {access[y].buffer for y in graph.outputs} <= ready
    kinds = [node.op.kind for node in graph.nodes]
    assert len(found.tasks) <= sum(kind is not VIEW for kind in kinds)


# what becomes one loop --------------------------------------------------------------------------------------------
def test_a_chain_is_one_loop_that_stores_its_end_alone():
    (task,) = tasks(lambda x: m.tanh(m.exp(x) * 2 + 1) / x)
    assert len(task.writes) == 1 and sum(step.access is not None for step in task.work.steps) == 1


def test_a_reduction_joins_what_it_reduces():
    (task,) = tasks(lambda x: m.sum(m.square(x - 1), "all"))
    assert [store.combine for store in task.work.stores] == ["({0} + {1})"] and task.work.sizes == (6,)


def test_what_reads_a_sum_is_a_loop_of_its_own():
    first, second = tasks(lambda x: x / m.sum(x, 1))
    assert second.reads >= set(first.writes)


def test_values_that_are_results_too_are_stored():
    (task,) = tasks(lambda x: [m.exp(x), m.exp(x) * 2, m.sum(m.exp(x), 0)])
    assert len(task.writes) == 3


def test_views_in_between_are_no_obstacle_where_the_order_is_the_same():
    assert len(tasks(lambda x: m.exp(m.reshape(m.exp(x), 6, 1, Order="C")) * 2)) == 1
    assert len(tasks(lambda x: m.exp(m.flip(m.exp(x), 1)) * 2)) == 2
    assert len(tasks(lambda x: m.exp(x).T + 1)) == 1  # both run in the order of memory


def test_siblings_that_share_a_large_input_are_one_loop():
    large = dlarray(np.ones((SMALL, 2), np.float32))

    def function(x):
        return m.exp(x), m.sum(m.sin(x), 0)

    assert len(tasks(function, large)) == 1 and len(tasks(function)) == 2


def test_loops_that_have_nothing_in_common_stay_apart():
    assert len(tasks(lambda x, y: [m.exp(x), m.exp(y)], dlarray(X), dlarray(X))) == 2


def test_a_loop_does_not_run_before_what_it_needs():
    def function(x):
        a = m.exp(x)
        b = m.cumsum(a, 0)  # a kernel in between
        return a * 2, a + b

    found = tasks(function)
    assert [isinstance(task.work, Loop) for task in found] == [True, False, True]
    assert len(found[0].writes) == 2  # a * 2 joined the first loop


def test_loops_stay_of_a_size_that_registers_can_hold():
    inputs = [dlarray(X + k) for k in range(2 * MOST_ARRAYS)]
    found = tasks(lambda *xs: sum(xs[1:], xs[0]), *inputs)
    assert 2 <= len(found) <= 4
    for task in found:
        assert sum(step.access is not None for step in task.work.steps) + len(task.work.stores) <= MOST_ARRAYS


def test_empty_arrays_of_other_shapes():
    found = tasks(lambda x: [m.exp(x), m.sum(m.exp(x), 0), m.reshape(m.exp(x), 0, 5) + 1], dlarray(np.ones((0, 3))))
    assert found


# how it reads -----------------------------------------------------------------------------------------------------
def test_a_schedule_reads_task_by_task():
    found = schedule(layout_of(lambda x: m.cumsum(m.exp(x) * 2, 0), dlarray(X)))
    lines = str(found).splitlines()
    assert lines[0] == "0: loop over [6]" and any("exp(t0)" in line for line in lines)
    assert lines[-1].startswith("1: v") and "cumsum_along" in lines[-1]
    loop, kernel = (describe(task.work) for task in found.tasks)
    assert loop.startswith("loop [6]: ") and "exp(t0)" in loop and "\n" not in loop and kernel == "cumsum_along"
