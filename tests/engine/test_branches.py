"""What waits for what: dependencies from buffers and places in memory, levels, streams, loops side by side."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from engine.programs import assert_close, programs, recorded, rounding, values
from minidl import dlarray, gpuArray
from minidl.core.device import host
from minidl.core.random import GENERATOR
from minidl.engine import compile
from minidl.engine.branches import MOST_STREAMS, Side, direct, levels, needs, side_by_side, streams_of
from minidl.engine.compile import compile_graph
from minidl.engine.fuse import Task
from minidl.engine.layout import order_of


def task(writes, reads=()):
    return Task(None, set(reads), list(writes))


def test_what_reads_waits_for_what_writes():
    tasks = [task("a"), task("b"), task("c", "ab"), task("d", "a"), task("e", "cd")]
    assert needs(tasks) == [set(), set(), {0, 1}, {0}, {2, 3}]
    assert levels(needs(tasks)) == [0, 0, 1, 1, 2]


def test_memory_used_twice_is_waited_for():
    tasks = [task("a"), task("b", "a"), task("c")]
    places = {"a": ("arena", 0, 64), "b": ("arena", 64, 128), "c": ("arena", 32, 96)}
    assert needs(tasks) == [set(), {0}, set()]
    assert needs(tasks, places.__getitem__) == [set(), {0}, {0, 1}]
    places["c"] = ("own", 0, 96)
    assert needs(tasks, places.__getitem__) == [set(), {0}, set()]


@st.composite
def placed_tasks(draw):
    """Tasks over ten buffers, and where these lie: in two memories, beside or over each other."""
    some = st.sets(st.integers(0, 9), max_size=3)
    tasks = draw(st.lists(st.builds(task, some, some), max_size=12))
    place = st.builds(lambda memory, begin, size: (memory, begin, begin + size), st.sampled_from("ab"),
                      st.integers(0, 40), st.integers(1, 20))  # fmt: skip
    return tasks, dict(enumerate(draw(st.lists(place, min_size=10, max_size=10))))


@given(placed_tasks())
def test_needs_are_what_they_are_said_to_be(drawn):
    tasks, places = drawn

    def meet(some, others):
        pairs = [(places[a], places[b]) for a in some for b in others]
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a, b in pairs)

    for here in (places, {b: (b, 0, 1) for b in places}):
        places = here
        expected = [
            {i for i, t in enumerate(tasks[:j])
             if meet(t.writes, mine.reads) or meet(t.reads, mine.writes) or meet(t.writes, mine.writes)}
            for j, mine in enumerate(tasks)
        ]  # fmt: skip
        assert needs(tasks, here.__getitem__) == expected
    assert needs(tasks) == expected


def test_direct_needs_say_the_same_with_less():
    assert direct([set(), {0}, {0, 1}, {0, 2}]) == [set(), {0}, {1}, {2}]


graphs = st.lists(st.sets(st.integers(0, 20)), max_size=20).map(
    lambda rows: [{i for i in row if i < j} for j, row in enumerate(rows)]
)


def reached(needed):
    found = []
    for mine in needed:
        found.append(mine | set().union(*(found[i] for i in mine)))
    return found


@given(graphs)
def test_direct_needs_reach_the_same(needed):
    assert reached(direct(needed)) == reached(needed)


@given(graphs)
def test_streams_are_few_and_chains_stay_on_one(needed):
    streams = streams_of(direct(needed))
    assert all(0 <= s < MOST_STREAMS for s in streams)
    chain = streams_of([set(), *({j} for j in range(len(needed)))])
    assert set(chain) == {0}


@settings(max_examples=20, derandomize=True)
@given(drawn=programs(most_steps=6), is_small=st.booleans())
def test_branches_give_what_one_after_the_other_gives(device, monkeypatch, drawn, is_small):
    """The shim launches a graph's branches in another order each time; with little memory places are used twice."""
    monkeypatch.setattr(compile, "CACHED_BYTES", 1 << 24 if is_small else 0)
    function, specs = drawn
    graph, fresh, _ = recorded(function, *[gpuArray(values(spec, 0)) for spec in specs])
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None)
    inputs = [gpuArray(values(spec, 1)) for spec in specs]
    expected = [y.numpy() for y in function(*[values(spec, 1) for spec in specs])]
    for _ in range(5):
        found = program.run([x._value.data for x in inputs] + [GENERATOR.value.data])
        assert_close([host(y) for y in found], expected, rounding(graph))


def test_loops_of_a_level_are_one_task_and_results_meet_at_the_end(device, monkeypatch):
    monkeypatch.setattr("minidl.engine.blocks.SMALL", 0)
    x, y = dlarray(np.ones((3, 4))), dlarray(np.full((5,), 2.0))

    def function(x, y):
        total = x.sum("all")
        return [x * 2, y + 1, total, (x - total) * 3, y * total]

    expected = [z.numpy() for z in function(x, y)]
    graph, fresh, _ = recorded(function, gpuArray(x), gpuArray(y))
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None)
    tasks = program.plan.schedule.tasks
    sides = [t.work for t in tasks if isinstance(t.work, Side)]
    assert len(sides) == 1 and len(sides[0].loops) >= 3 and len(tasks) == 2
    for _ in range(3):
        found = [host(z) for z in program.run([gpuArray(x)._value.data, gpuArray(y)._value.data, GENERATOR.value.data])]
        assert_close(found, expected, 1e-12)


def test_levels_keep_the_order_of_what_depends():
    assert list(itertools.chain(*[[t.writes] for t in side_by_side(_schedule([task("a"), task("b", "a")])).tasks])) == [
        ["a"], ["b"]
    ]  # fmt: skip


def _schedule(tasks):
    from minidl.engine.fuse import Schedule

    return Schedule(None, tasks)
