"""The memory plan: nothing that is needed at once overlaps, and little memory is wanted."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

import minidl as m
from engine.interpreter import Interpreter
from engine.programs import assert_close, programs, recorded, rounding, values
from minidl.backends import cpu
from minidl.core.dlarray import dlarray
from minidl.core.random import GENERATOR
from minidl.engine.fuse import schedule
from minidl.engine.layout import choose_layout, order_of
from minidl.engine.passes import expand, simplify
from minidl.engine.plan import ALIGNMENT_BYTES, plan_memory
from minidl.engine.program import Program


def plan_of(function, *inputs, is_fusing=True):
    graph, fresh, _ = recorded(function, *inputs)
    graph = simplify(expand(cpu.has_kernel)(simplify(graph)))
    layout = choose_layout(graph, [order_of(value.data) for value in fresh], cpu.needs_dense, cpu.view)
    return plan_memory(schedule(layout, is_fusing=is_fusing))


def lives(plan):
    """From the task that makes it to the last that reads it, for each buffer in the arena; counted one by one."""
    layout, tasks = plan.schedule.layout, plan.schedule.tasks
    outputs = {layout.access[y].buffer for y in layout.graph.outputs}
    found = {}
    for buffer in plan.offsets:
        times = [i for i, task in enumerate(tasks) if buffer in task.reads or buffer in task.writes]
        if buffer in layout.graph.inputs:
            times = [-1, len(tasks)]  # may be written again only by the next call
        if buffer in outputs:
            times.append(len(tasks))
        found[buffer] = set(range(min(times), max(times) + 1))
    return found


def check(plan):
    alive = lives(plan)
    for task in plan.schedule.tasks:
        assert all(buffer in plan.offsets for buffer in task.writes)
    for a, start in plan.offsets.items():
        end = start + max(plan.spec(a).nbytes, 1)
        assert start % ALIGNMENT_BYTES == 0 and end <= plan.arena_bytes
        for b, other in plan.offsets.items():
            if a < b and alive[a] & alive[b]:
                assert end <= other or other + max(plan.spec(b).nbytes, 1) <= start, f"{a} and {b} overlap"


@settings(max_examples=150, derandomize=True)
@given(programs(most_steps=12))
def test_no_two_buffers_alive_at_once_overlap(drawn):
    program, specs = drawn
    for is_fusing in (True, False):
        check(plan_of(program, *[values(spec, 0) for spec in specs], is_fusing=is_fusing))


@settings(max_examples=60, derandomize=True)
@given(programs(most_steps=12))
def test_what_lies_in_the_arena_before_does_not_matter(drawn):
    program, specs = drawn
    plan = plan_of(program, *[values(spec, 0) for spec in specs])
    replay = Program(plan.schedule.layout.graph, plan, Interpreter)
    inputs = [values(spec, 1) for spec in specs]
    for garbage in (0xFF, 0x00, 0x7F):  # NaN, 0, huge numbers
        replay._arena.fill(garbage)
        found = replay.run([x._value.data for x in inputs] + [GENERATOR.value.data])
        assert_close(found, program(*inputs), rounding(plan.schedule.layout.graph))


def test_memory_is_used_again():
    def function(x):
        for _ in range(20):
            x = m.cumsum(x, 0)
        return x

    x = dlarray(np.ones((100, 10), np.float32))
    plan = plan_of(function, x)
    check(plan)
    total = sum(plan.spec(buffer).nbytes for buffer in plan.offsets)
    assert len(plan.offsets) == 22 and total > 80_000
    assert plan.arena_bytes <= 4 * 4032 + 64  # the input, and two or three in turn


def test_inputs_and_outputs_are_never_overwritten():
    plan = plan_of(lambda x: [m.exp(x), m.cumsum(m.cumsum(m.exp(x), 0), 1), x], dlarray(np.ones((50, 2))))
    check(plan)
    layout = plan.schedule.layout
    kept = [*layout.graph.inputs, *{layout.access[y].buffer for y in layout.graph.outputs}]
    places = sorted((plan.offsets[b], plan.offsets[b] + plan.spec(b).nbytes) for b in dict.fromkeys(kept))
    assert all(end <= start for (_, end), (start, _) in zip(places, places[1:]))


def test_nothing_to_do():
    plan = plan_of(lambda x: x, dlarray(np.ones(3)))
    assert not plan.schedule.tasks and plan.arena_bytes == 128  # the input, and the state of the random generator
    constant = dlarray(np.ones(3))
    assert plan_of(lambda x: constant, dlarray(np.ones(3))).schedule.tasks == []


def test_a_plan_reads_task_by_task():
    plan = plan_of(lambda x: m.cumsum(m.exp(x), 0), dlarray(np.ones((100, 2), np.float32)))
    head, first, second = str(plan).splitlines()
    assert head.startswith(f"arena {plan.arena_bytes:,} bytes for 4 buffers of 2,416 bytes")
    assert "exp(t0)" in first and "800 bytes" in first and "test_plan.py:" in first
    assert "cumsum_along" in second and "test_plan.py:" in second
