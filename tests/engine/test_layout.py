"""Layouts: every value lies where its access says, whatever the memory order of inputs and constants."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import minidl as m
from engine.interpreter import Interpreter
from engine.programs import LAYOUTS, assert_same, recorded
from minidl.backends import cpu
from minidl.core.dlarray import adopted, dlarray
from minidl.core.op import KERNEL, OPS, VIEW, Op
from minidl.engine.fuse import schedule
from minidl.engine.graph import Id
from minidl.engine.layout import choose_layout, dense, memory_order, order_of
from minidl.engine.plan import plan_memory
from minidl.engine.program import Program


def layout_of(function, *inputs, needs_dense=cpu.needs_dense):
    graph, values, outputs = recorded(function, *inputs)
    orders = [order_of(value.data) for value in values]
    return choose_layout(graph, orders, needs_dense, cpu.view), [value.data for value in values], outputs


def run(layout, arrays):
    return Program(layout.graph, plan_memory(schedule(layout)), Interpreter).run(arrays)


def names(layout):
    return [node.op.name for node in layout.graph.nodes]


# orders -----------------------------------------------------------------------------------------------------------
def test_dense_strides():
    assert dense((2, 3, 4), (0, 1, 2)) == (12, 4, 1) and dense((2, 3, 4), (2, 0, 1)) == (3, 1, 6)
    assert dense((), ()) == () and dense((2, 0, 4), (0, 1, 2)) == (4, 4, 1)


def test_memory_order():
    x = np.zeros((2, 3, 4))
    assert order_of(x) == (0, 1, 2) and order_of(x.transpose(2, 0, 1)) == (1, 2, 0)
    assert order_of(x[::-1, :, ::-2]) == (0, 1, 2) and order_of(np.asfortranarray(x)) == (2, 1, 0)
    assert memory_order((1, 5, 1), (9, 1, 9)) == (1, 0, 2)  # dimensions of size 1 lie nowhere


@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_an_array_is_dense_in_its_own_order(order, shape):
    x = np.zeros([shape[i] for i in order]).transpose(np.argsort(order))
    strides = dense(x.shape, order_of(x))
    assert all(s * 8 == t for s, t, n in zip(strides, x.strides, x.shape) if n > 1)


# views ------------------------------------------------------------------------------------------------------------
@st.composite
def views(draw):
    """A shape and some views that fit one after the other."""
    shape = start = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 4, 0]), max_size=4)))
    calls = []
    for _ in range(draw(st.integers(1, 5))):
        which = draw(st.integers(0, 4))
        if which == 0:
            order = tuple(draw(st.permutations(range(len(shape)))))
            calls.append(("reorder", {"order": order}))
            shape = tuple(shape[i] for i in order)
        elif which == 1:
            slices = []
            for n in shape:
                step = draw(st.sampled_from([1, -1, 2, -3]))
                first = draw(st.integers(0, max(n - 1, 0)))
                most = 0 if n == 0 else (n - 1 - first) // step + 1 if step > 0 else first // -step + 1
                slices.append((first, draw(st.integers(0 if n == 0 else min(1, most), most)), step))
            calls.append(("crop", {"slices": tuple(slices)}))
            shape = tuple(count for _, count, _ in slices)
        elif which == 2:
            size = int(np.prod(shape))
            whole = draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0])) if size else 0
            shape = draw(st.sampled_from([(size,), (1, size), (whole, size // whole) if whole else (size, 3)]))
            calls.append(("view_as", {"shape": shape}))
        elif which == 3:
            at = draw(st.integers(0, len(shape)))
            dims = tuple(i if i < at else i + 1 for i in range(len(shape)))
            wide = tuple(3 if n == 1 and draw(st.booleans()) else n for n in shape)
            shape = (*wide[:at], 2, *wide[at:])
            calls.append(("broadcast", {"shape": shape, "dims": dims}))
        else:
            calls.append(("alias", {}))
    return start, calls


@settings(max_examples=150, derandomize=True)
@given(views(), st.integers(0, len(LAYOUTS) - 1), st.booleans())
def test_views_are_where_their_access_says(drawn, layout, is_constant):
    shape, calls = drawn
    x = LAYOUTS[layout](np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) + 1)

    def function(y):
        y = dlarray(x) if is_constant else y
        for name, params in calls:
            y = OPS[name](y, **params)
        return [y, y * 2.0]

    found, arrays, outputs = layout_of(function, dlarray(x))
    found.graph.check()
    assert_same(run(found, arrays), outputs)
    copies = names(found).count("copy")
    assert copies <= sum(name == "view_as" for name, _ in calls)  # only a reshape can fail to be a view


def test_only_a_view_that_strides_cannot_say_is_copied():
    x = dlarray(np.arange(24.0).reshape(2, 3, 4))
    found, arrays, outputs = layout_of(lambda x: m.reshape(x, 6, 4) + 0.5, x)  # MATLAB's order on NumPy's memory
    assert_same(run(found, arrays), outputs)
    assert names(layout_of(lambda x: m.reshape(x, 4, 6, Order="C") * 2, x)[0]) == ["view_as", "times"]
    assert "copy" in names(layout_of(lambda x: m.reshape(m.permute(x, 2, 1, 0), 4, 6, Order="C") * 2, x)[0])


def test_results_lie_as_their_largest_operand():
    x = dlarray(np.asfortranarray(np.ones((3, 4, 5))))
    found, _, _ = layout_of(lambda x: [m.exp(x) + dlarray(np.ones((1, 1, 5))), m.sum(x, 1)], x)
    exp, plus, total = (node.outputs[0] for node in found.graph.nodes if node.op.kind is not VIEW)
    assert found.access[exp].strides == found.access[plus].strides == (1, 3, 12)
    assert found.access[total].strides == (1, 3, 3)


# constants --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", range(len(LAYOUTS)))
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1), (0, 2), ()], ids=str)
def test_constants_in_any_memory_layout(which, shape):
    data = LAYOUTS[which](np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape))
    constant = dlarray(data)
    found, arrays, outputs = layout_of(lambda x: [x + constant, constant], dlarray(np.ones(shape)))
    assert_same(run(found, arrays), outputs)
    (memory,) = found.memory.values()
    assert memory.ndim == 1 and memory.flags.c_contiguous and memory.flags.aligned and memory.flags.writeable


def test_constants_without_gaps_are_not_copied():
    data = np.asfortranarray(np.ones((3, 4)))
    found, _, _ = layout_of(lambda x: x + adopted(data), dlarray(np.ones((3, 4))))
    assert np.shares_memory(next(iter(found.memory.values())), data)


def test_what_a_constant_repeats_is_kept_once():
    data = np.broadcast_to(np.arange(3.0), (1000, 1000, 3))
    found, _, _ = layout_of(lambda x: x + adopted(data), dlarray(np.ones(3)))
    (memory,) = found.memory.values()
    assert memory.tolist() == [0, 1, 2]


# kernels ----------------------------------------------------------------------------------------------------------
def test_kernels_that_want_dense_inputs_get_copies():
    op = Op("twice", KERNEL, lambda a, b: a + b, doc="", types="f->f")
    x = dlarray(np.arange(9.0).reshape(3, 3))

    def function(x):
        y = x.T
        return op(op(y, y), y)

    found, _, _ = layout_of(function, x, needs_dense=lambda op: True)
    assert names(found) == ["reorder", "copy", "twice", "twice"]  # the same array is copied once
    *_, node, _ = found.graph.nodes
    assert node.inputs[0] == node.inputs[1] and found.access[node.inputs[0]].strides == (3, 1)
    found, _, _ = layout_of(lambda x: op(x, x.T), x, needs_dense=lambda op: True)
    assert names(found) == ["reorder", "copy", "twice"]
    assert names(layout_of(lambda x: op(x, x), x, needs_dense=lambda op: True)[0]) == ["twice"]
    assert names(layout_of(lambda x: op(x.T, x), x, needs_dense=lambda op: False)[0]) == ["reorder", "twice"]


def test_the_graph_given_stays_as_it_is():
    graph, values, _ = recorded(lambda x: m.reshape(x, 6, 4) + dlarray(np.ones((6, 4)).T.copy().T),
                                dlarray(np.arange(24.0).reshape(2, 3, 4)))  # fmt: skip
    before = str(graph)
    choose_layout(graph, [order_of(value.data) for value in values], cpu.needs_dense, cpu.view)
    assert str(graph) == before and all(isinstance(x, Id) for x in graph.constants)


def test_each_line_is_a_value():
    found, _, _ = layout_of(lambda x: m.exp(x.T), dlarray(np.ones((2, 3), np.float32)))
    lines = str(found).splitlines()
    assert "v0: single[2, 3] in v0 from 0 strides [3, 1]" in lines
    assert "v2: single[3, 2] in v0 from 0 strides [1, 3]" in lines
