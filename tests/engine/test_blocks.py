"""Small loops in one block: the same results, no cycles, nothing that has to wait longer."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.programs import assert_close, assert_same, recorded
from minidl import dlarray, dlgradient, gpuArray
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.device import host
from minidl.core.random import GENERATOR
from minidl.engine.blocks import SMALL, Block, depth, in_one_block
from minidl.engine.branches import needs
from minidl.engine.compile import compile_graph
from minidl.engine.devices import DeviceProgram
from minidl.engine.fuse import Schedule, Task
from minidl.engine.layout import order_of


def compiled(function, *inputs):
    graph, fresh, _ = recorded(function, *[gpuArray(x) for x in inputs])
    program = compile_graph(graph, [order_of(value.data) for value in fresh], None)
    assert isinstance(program, DeviceProgram)
    return program


def run(program, *inputs):
    return [host(y) for y in program.run([gpuArray(x)._value.data for x in inputs] + [GENERATOR.value.data])]


def blocks(program):
    return [task.work for task in program.plan.schedule.tasks if isinstance(task.work, Block)]


def scores(x, t):
    y = m.softmax(x, DataFormat="CB")
    loss = m.crossentropy(y, t, DataFormat="CB") + m.mse(y, t, DataFormat="CB")
    return [y, loss, dlgradient(loss, x), m.max(y, [], 0), m.any(m.stripdims(x) > 2.5, 1)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(10, 8), (3, 33), (1, 5), (40, 1)], ids=str)
def test_a_softmax_its_loss_and_their_gradients_are_one_block(device, shape, dtype):
    r = np.random.default_rng(0)
    x = dlarray(r.normal(size=shape).astype(dtype))
    t = dlarray(r.dirichlet(np.ones(shape[0]), shape[1]).T.astype(dtype))
    expected = m.dlfeval(scores, x, t)
    program = compiled(lambda x, t: m.dlfeval(scores, x, t), x, t)
    assert blocks(program) and len(program.plan.schedule.tasks) <= 2
    found = []
    for order in device.orders():
        device.set_order(order)
        found += [run(program, x, t) for _ in range(2)]
        assert_close(found[-1], expected, 1e-5 if dtype == "float32" else 1e-12)
    for other in found[1:]:
        assert_same(other, found[0])


def test_what_is_large_stays_as_it_is(device):
    x = dlarray(np.random.default_rng(0).normal(size=(10, SMALL)).astype("float32"))
    program = compiled(lambda x: m.softmax(x, DataFormat="CB"), x)
    assert not blocks(program)
    assert_close(run(program, x), [m.softmax(x, DataFormat="CB")], 1e-6)


# any schedule -----------------------------------------------------------------------------------------------------
def loop(reads, write, size):
    steps = [Step("", (), "float32", access=Access(x, 0, (1,))) for x in reads]
    steps.append(Step("1.0", (), "float32", "float32"))
    return Loop((size,), steps, [Store(Temp(len(reads)), Access(write, 0, (1,)), "float32")])


@st.composite
def schedules(draw):
    tasks = []
    for j in range(draw(st.integers(1, 14))):
        reads = draw(st.sets(st.integers(0, j - 1), max_size=3)) if j else set()
        if draw(st.booleans()):
            work = loop(sorted(reads), j, draw(st.sampled_from([1, 50, SMALL, SMALL + 1])))
        else:
            work = None
        tasks.append(Task(work, set(reads), [j]))
    return Schedule(None, tasks)


@settings(max_examples=200, derandomize=True)
@given(schedules())
def test_joining_keeps_the_order_and_makes_no_chain_longer(schedule):
    joined = in_one_block(schedule)
    made = set()
    for task in joined.tasks:
        assert task.reads <= made | set(task.writes)
        assert made.isdisjoint(task.writes)
        if isinstance(task.work, Block):
            inside = set()
            for one in task.work.loops:
                assert one.reads <= made | inside, "loops of a block stand in an order in which they can run"
                inside.update(one.writes)
        made.update(task.writes)
    assert made == {y for task in schedule.tasks for y in task.writes}
    assert depth(joined)[0] <= depth(schedule)[0] and len(needs(joined.tasks)) == len(joined.tasks)
