"""Sums that need not be added up, since the op that makes what is added knows them."""

from __future__ import annotations

import numpy as np
import pytest

import minidl as m
from engine.interpreter import run_graph
from engine.programs import recorded
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient, dlupdate
from minidl.backends import cpu
from minidl.core.random import GENERATOR
from minidl.engine.passes import simplify
from minidl.engine.sums import known_sums

r = np.random.default_rng(0)
X = dlarray(r.normal(size=(6, 5, 2, 3)), "SSCB")
W, B = dlarray(r.normal(size=(3, 3, 2, 4))), dlarray(r.normal(size=4))
OFFSET, SCALE = dlarray(r.normal(size=4)), dlarray(r.uniform(1, 2, size=4))


def normalized(x, w, b, offset, scale):
    y = m.batchnorm(m.dlconv(x, w, b, Padding="same"), offset, scale)
    return dlgradient(m.sum(m.sin(y), "all"), [w, b, offset, scale])


def sums(graph):
    return sum(node.op.name == "reduce_sum" for node in graph.nodes)


def before_and_after(function, *inputs):
    """The graph, and the graph with sums that are known."""
    graph = simplify(recorded(lambda *x: dlfeval(function, *x), *inputs)[0])
    return graph, simplify(known_sums(cpu.view)(graph)).check()


def results(graph, *inputs):
    return run_graph(graph, [x._value.data for x in inputs] + [GENERATOR.value.data])


def test_a_bias_before_batch_normalisation_has_no_gradient():
    inputs = X, W, B, OFFSET, SCALE
    before, after = before_and_after(normalized, *inputs)
    assert sums(after) == sums(before) - 1
    found, plain = results(after, *inputs), results(before, *inputs)
    assert not found[1].any() and np.abs(plain[1]).max() < 1e-12
    for k in (0, 2, 3):
        np.testing.assert_array_equal(found[k], plain[k])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(5))
def test_what_is_no_number_stays_none(number, where):
    """In images, weights, bias, offset or scale: NaN where adding up gives NaN, and nowhere else."""
    inputs = [dlarray(np.array(x.extractdata()), x.dims()) for x in (X, W, B, OFFSET, SCALE)]
    inputs[where] = dlarray(inputs[where].extractdata().copy(), inputs[where].dims())
    inputs[where]._value.data.flat[1] = number
    before, after = before_and_after(normalized, *inputs)
    for found, plain in zip(results(after, *inputs), results(before, *inputs), strict=True):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))


def test_other_sums_are_added_up():
    """Over fewer dimensions, of a part, of something else besides."""

    def rows(x, w, b, offset, scale):
        g = dlgradient(m.sum(m.sin(m.batchnorm(x, offset[:2], scale[:2])), "all"), x)
        return m.sum(g, 0), m.sum(g[1:], "all"), m.sum(g * 2, [0, 1, 3])

    def twice(x, w, b, offset, scale):
        y = m.dlconv(x, w, b, Padding="same")
        return dlgradient(m.sum(m.sin(m.batchnorm(y, offset, scale)) + y * y, "all"), b)

    for function in (rows, twice):
        inputs = X, W, B, OFFSET, SCALE
        before, after = before_and_after(function, *inputs)
        assert sums(after) == sums(before)
        for found, plain in zip(results(after, *inputs), results(before, *inputs), strict=True):
            np.testing.assert_array_equal(found, plain)


def test_a_sum_over_all_but_the_channels_is_known_whatever_the_order_of_dimensions():
    def function(x, w, b, offset, scale):
        g = dlgradient(m.sum(m.sin(m.batchnorm(x, offset[:2], scale[:2])), "all"), x)
        g = m.stripdims(g)
        joined = m.reshape(m.permute(g, [2, 3, 0, 1]), 2, 3, 30, Order="C")
        return m.sum(m.permute(g, [2, 0, 3, 1]), [1, 2, 3]), m.sum(joined, [1, 2])

    before, after = before_and_after(function, X, W, B, OFFSET, SCALE)
    assert sums(after) == sums(before) - 2
    assert all(not y.any() and y.shape[0] == 2 for y in results(after, X, W, B, OFFSET, SCALE))


@pytest.mark.parametrize("where", [dlarray, m.gpuArray])
def test_replays_know_it(device, where):
    """On every backend; exact replays add up as plain calls do."""
    inputs = dlupdate(where, [X, W, B, OFFSET, SCALE])
    expected = dlfeval(normalized, *inputs)
    for numerics in ("fast", "exact"):
        replayed = dlaccelerate(normalized, Numerics=numerics)
        for _ in range(3):
            found = dlfeval(replayed, *inputs)
        for k, (x, y) in enumerate(zip(found, expected)):
            x, y = x.numpy(), y.numpy()
            if numerics == "exact":
                np.testing.assert_array_equal(x, y)
            else:
                np.testing.assert_allclose(x, 0 if k == 1 else y, rtol=1e-10, atol=0 if k == 1 else 1e-12)
