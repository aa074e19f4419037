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
from minidl.engine.fused import Fused
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


# behind contractions ----------------------------------------------------------------------------------------------
def head(x, w, t):
    y = m.softmax(w @ x, DataFormat="CB")
    loss = m.crossentropy(y, t, DataFormat="CB")
    return [y, loss, *dlgradient(loss, [x, w])]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes, features, batch", [(10, 40, 8), (10, 5000, 16), (2, 7, 3)])
def test_what_is_small_is_done_by_the_last_block(device, classes, features, batch, dtype):
    """A layer, its softmax, loss and their gradient: one launch, and one or two that wait for it."""
    r = np.random.default_rng(0)
    x, w = (dlarray(r.normal(size=n).astype(dtype)) for n in ((features, batch), (classes, features)))
    t = dlarray(r.dirichlet(np.ones(classes), batch).T.astype(dtype))
    expected = m.dlfeval(head, x, w, t)
    program = compiled(lambda *inputs: m.dlfeval(head, *inputs), x, w, t)
    tasks = program.plan.schedule.tasks
    first = next(task.work for task in tasks if isinstance(task.work, Fused))
    assert len(first.behind) >= 4 and depth(program.plan.schedule)[0] <= 2 and not blocks(program)
    assert "at last " in str(program)
    found = []
    for order in device.orders():
        device.set_order(order)
        found += [run(program, x, w, t) for _ in range(2)]
        assert_close(found[-1], expected, 1e-4 if dtype == "float32" else 1e-11)
    for other in found[1:]:
        assert_same(other, found[0])


def test_what_nobody_waits_for_makes_no_kernel_longer(device):
    def function(x, w):
        y = x @ w
        return y, m.sum(y[0] * 2)

    r = np.random.default_rng(0)
    program = compiled(function, *(dlarray(r.normal(size=(20, 20)).astype("f")) for _ in range(2)))
    assert not any(task.work.behind for task in program.plan.schedule.tasks if isinstance(task.work, Fused))


def test_what_waits_for_two_is_behind_none(device):
    """It would have to wait for the other one as well."""

    def function(x, w, v):
        y = m.softmax((x @ w) + (w @ v), DataFormat="BC")
        z = m.softmax((x @ v) * m.sum(m.softmax(w @ x, DataFormat="BC"), "all"), DataFormat="BC")
        return y @ w, z @ v

    r = np.random.default_rng(0)
    inputs = [dlarray(r.normal(size=(20, 20)).astype("f")) for _ in range(3)]
    program = compiled(function, *inputs)
    assert_close(run(program, *inputs), function(*inputs), 1e-5)
    for task in program.plan.schedule.tasks:
        if isinstance(task.work, Fused):
            made = {y for loop in task.work.behind for y in loop.writes} | set(task.work.writes)
            assert all(loop.reads <= task.reads | made for loop in task.work.behind)
