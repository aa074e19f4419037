"""Tails and panels: what is joined to contractions, where large operands lie, and that results stay the same."""

from __future__ import annotations

import numpy as np
import pytest

import minidl as m
from engine.programs import assert_close, recorded
from minidl.backends import cpu
from minidl.backends.cpu.native import program as native
from minidl.core.dlarray import dlarray
from minidl.engine.compile import compile_graph
from minidl.engine.contract import Contract
from minidl.engine.layout import order_of
from minidl.engine.program import NativeProgram
from minidl.engine.tails import MOST_STEPS

RANDOM = np.random.default_rng(5)


def compiled(function, *inputs):
    graph, values, _ = recorded(function, *inputs)
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    assert isinstance(program, NativeProgram)
    return program, [value.data for value in values]


def contractions(program):
    phases = [phase for segment in program.plan.segments if isinstance(segment, list) for phase in segment]
    items = [item for phase in phases for group in phase.groups for item in group.items]
    return [item for item in items if isinstance(item.work, Contract)]


def normal(*shape, dtype="float32"):
    return RANDOM.normal(size=shape).astype(dtype)


def convolved(x, w, b):
    y = m.relu(m.dlconv(x, w, b, Padding="same"))
    return y, m.sum(y * 2, ["S", "B"])


@pytest.mark.parametrize("dtype, rounding", [("float32", 3e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("channels, filters", [(3, 16), (5, 19), (16, 48), (4, 1)])
def test_bias_relu_and_sums_follow_a_convolution_in_registers(dtype, rounding, channels, filters):
    x = dlarray(normal(6, 5, channels, 40, dtype=dtype), "SSCB")
    w, b = dlarray(normal(3, 2, channels, filters, dtype=dtype)), dlarray(normal(filters, dtype=dtype))
    program, arrays = compiled(convolved, x, w, b)
    if filters > 1:
        (item,) = contractions(program)
        assert item.tail is not None and len(item.tail.stores) >= 2 and item.work.y not in item.writes
        assert ", then loop" in str(program.plan)
    for _ in range(2):
        assert_close(program.run(arrays), list(convolved(x, w, b)), rounding)


def test_a_tail_that_others_read_beside_is_stored_too():
    def function(x, w):
        y = x @ w
        return y, m.tanh(y) + 1

    x, w = dlarray(normal(70, 33)), dlarray(normal(33, 40))
    program, arrays = compiled(function, x, w)
    (item,) = contractions(program)
    assert item.tail is not None and item.work.y in item.writes
    assert_close(program.run(arrays), list(function(x, w)))


def test_a_loop_across_the_rows_is_no_tail():
    def function(x, w):
        y = x @ w
        return y - m.mean(y, 1)

    x, w = dlarray(normal(64, 33)), dlarray(normal(33, 40))
    program, arrays = compiled(function, x, w)
    (item,) = contractions(program)
    assert item.tail is None or all(not s.combine for s in item.tail.stores)
    assert_close(program.run(arrays), [function(x, w)])


def test_a_long_loop_is_no_tail():
    def function(x, w):
        y = x @ w
        for k in range(MOST_STEPS):
            y = y * (k + 2.5) + 1
        return y * 1e-20

    x, w = dlarray(normal(64, 33)), dlarray(normal(33, 40))
    program, arrays = compiled(function, x, w)
    assert all(item.tail is None for item in contractions(program))
    assert_close(program.run(arrays), [function(x, w)])


def test_without_tails_the_numbers_are_the_same(monkeypatch):
    x, w, b = dlarray(normal(8, 8, 4, 9), "SSCB"), dlarray(normal(3, 3, 4, 32)), dlarray(normal(32))
    program, arrays = compiled(convolved, x, w, b)
    found = program.run(arrays)
    monkeypatch.setattr(native, "takes_tail", lambda *facts: False)
    plain, arrays = compiled(convolved, x, w, b)
    assert all(item.tail is None for item in contractions(plain))
    assert_close(found, plain.run(arrays), 2e-6)


# panels -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("filters", [128, 160])
def test_large_weights_lie_in_panels(stride, filters):
    def function(x, w):
        y = m.dlconv(x, w, 0, Padding="same", Stride=stride)
        return y, m.dlgradient(m.sum(y * y, "all"), x)

    x, w = dlarray(normal(8, 8, 64, 4), "SSCB"), dlarray(normal(3, 3, 64, filters) * 0.1)
    program, arrays = compiled(lambda x, w: m.dlfeval(function, x, w), x, w)
    widths = [d[0] for item in contractions(program) for part in item.work.parts for d in part.dims if d[3] == 1]
    assert cpu.panel_columns(np.dtype("float32")) in widths
    assert_close(program.run(arrays), list(m.dlfeval(function, x, w)), 3e-5)


def test_small_weights_stay_as_they_are():
    x, w = dlarray(normal(8, 8, 16, 4), "SSCB"), dlarray(normal(5, 5, 16, 64) * 0.1)
    program, _ = compiled(lambda x, w: m.dlconv(x, w, 0), x, w)
    (item,) = contractions(program)
    assert [d[0] for d in item.work.parts[0].dims if d[3] == 1] == [64]
