"""Winograd's transforms: which contractions they replace, and that they compute the same."""

from __future__ import annotations

import numpy as np
import pytest

import minidl as m
from engine.programs import assert_close, recorded
from minidl.backends import cpu
from minidl.core.dlarray import dlarray
from minidl.engine.compile import compile_graph
from minidl.engine.contract import Contract
from minidl.engine.layout import choose_layout, order_of
from minidl.engine.winograd import winograd

RANDOM = np.random.default_rng(11)


def step(stride=1, dilation=1):
    def function(x, w):
        y = m.dlconv(x, w, 0, Padding="same", Stride=stride, DilationFactor=dilation)
        return (y, *m.dlgradient(m.sum(y * y, "all"), [x, w]))

    return lambda x, w: m.dlfeval(function, x, w)


def arrays(size, channels, filters, kernel=(3, 3), dtype="float64", batch=3):
    x = dlarray(RANDOM.normal(size=(*size, channels, batch)).astype(dtype), "SSCB")
    return x, dlarray(RANDOM.normal(size=(*kernel, channels, filters)).astype(dtype))


def scheduled(function, *inputs):
    """The tasks before and after the pass."""
    from minidl.engine.fuse import schedule
    from minidl.engine.passes import expand, simplify

    graph, values, _ = recorded(function, *inputs)
    graph = simplify(expand(cpu.has_native_kernel)(simplify(graph)))
    orders = [order_of(value.data) for value in values]
    layout = choose_layout(graph, orders, cpu.needs_dense, cpu.view, cpu.packing)
    tasks = schedule(layout, is_contracting=True)
    return tasks.tasks, winograd(tasks).tasks


def contractions(tasks):
    return [task.work for task in tasks if isinstance(task.work, Contract)]


@pytest.mark.parametrize("dtype, rounding", [("float32", 2e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("size", [(4, 4), (6, 10), (14, 14), (5, 6), (7, 7)])
def test_all_three_directions(size, dtype, rounding):
    x, w = arrays(size, 16, 32, dtype=dtype)
    graph, values, _ = recorded(step(), x, w)
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    found = program.run([value.data for value in values])
    assert_close(found, list(step()(x, w)), rounding)


def test_multiplications_fall_to_four_ninths():
    before, after = scheduled(step(), *arrays((8, 6), 16, 16))
    assert len(contractions(before)) == len(contractions(after)) == 3
    assert [work.flop * 16 for work in contractions(before)] == [work.flop * 36 for work in contractions(after)]
    assert len(after) == len(before) + 9  # three transforms each


@pytest.mark.parametrize("what, function, inputs", [
    ("odd sizes", step(), arrays((7, 7), 16, 16)),
    ("few channels", step(), arrays((8, 8), 3, 16)),
    ("few filters", step(), arrays((8, 8), 16, 3)),
    ("N4: few channels, many observations", step(), arrays((8, 8), 3, 16, batch=33)),
    ("N4: one channel, many observations", step(), arrays((8, 8), 1, 32, batch=32)),
    ("N4: one filter, many observations", step(), arrays((8, 8), 32, 1, batch=32)),
    ("another filter", step(), arrays((8, 8), 16, 16, (5, 5))),
    ("a flat filter", step(), arrays((8, 8), 16, 16, (3, 1))),
    ("strides", step(stride=2), arrays((8, 8), 16, 16)),
])  # fmt: skip
def test_others_stay_as_they_are(what, function, inputs):
    before, after = scheduled(function, *inputs)
    assert contractions(before) == contractions(after), what


def test_groups_stay_as_they_are():
    x, w = dlarray(RANDOM.normal(size=(8, 8, 32, 2)), "SSCB"), dlarray(RANDOM.normal(size=(3, 3, 16, 16, 2)))
    before, after = scheduled(lambda x, w: m.dlconv(x, w, 0, Padding="same"), x, w)
    assert contractions(before) == contractions(after)
