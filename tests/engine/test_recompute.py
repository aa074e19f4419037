"""recomputed: what is made again instead of kept."""

from __future__ import annotations

import numpy as np

import minidl as m
from engine.programs import assert_close, recorded
from minidl.backends import cpu
from minidl.core.dlarray import dlarray
from minidl.engine.compile import compile_graph
from minidl.engine.fuse import schedule
from minidl.engine.layout import choose_layout, order_of
from minidl.engine.loops import Loop
from minidl.engine.passes import expand, simplify
from minidl.engine.recompute import SMALL, recomputed

X = np.random.default_rng(3).normal(size=(200, 40))
assert X.size > SMALL


def tasks(function, *inputs):
    """Loops before and after the pass."""
    graph, values, _ = recorded(function, *inputs)
    graph = simplify(expand(cpu.has_native_kernel)(simplify(graph)))
    layout = choose_layout(graph, [order_of(v.data) for v in values], cpu.needs_dense, cpu.view, cpu.packing)
    before = schedule(layout, is_contracting=True)
    return before.tasks, recomputed(before).tasks


def stored(found):
    """Elements that loops store in plain results."""
    return [s for task in found if isinstance(task.work, Loop) for s in task.work.stores if not s.combine]


def centred(x):
    d = (x - 0.5) * 2
    s = m.sum(d, "all")  # needs all of d before what follows
    return d * s


def costly(x):
    e = m.exp(x)
    return e * m.sum(e, "all")


def test_a_cheap_value_is_made_again():
    before, after = tasks(centred, dlarray(X))
    assert len(stored(before)) > len(stored(after))
    graph, values, _ = recorded(centred, dlarray(X))
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    assert_close(program.run([value.data for value in values]), [centred(dlarray(X))], 1e-12)


def test_a_costly_value_is_kept():
    before, after = tasks(costly, dlarray(X))
    assert len(stored(before)) == len(stored(after))


def test_a_small_value_is_kept():
    before, after = tasks(centred, dlarray(X[:5, :5]))
    assert len(stored(before)) == len(stored(after))


def test_a_value_of_two_arrays_is_kept():
    def function(x, y):
        d = x - y
        return d * m.sum(d, "all")

    before, after = tasks(function, dlarray(X), dlarray(X + 1))
    assert len(stored(before)) == len(stored(after))


def test_a_result_is_still_made():
    def function(x):
        d = (x - 0.5) * 2
        return d, d * m.sum(d, "all")

    graph, values, _ = recorded(function, dlarray(X))
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    assert_close(program.run([value.data for value in values]), list(function(dlarray(X))), 1e-12)
