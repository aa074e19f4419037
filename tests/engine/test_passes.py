"""Passes: same meaning, less work."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import minidl as m
from engine.interpreter import run_graph
from engine.programs import LAYOUTS, assert_close, assert_same, numbers, programs, recorded, rounding, values
from minidl.backends import cpu
from minidl.core.dlarray import dlarray
from minidl.core.op import KERNEL, MAP, OPS, VIEW, Op
from minidl.core.random import GENERATOR
from minidl.engine.passes import FOLD_LIMIT_BYTES, drop_unused, expand, fold_constants, share_equal, simplify

X = np.float32([[1.0, -2.0, 0.0], [3.0, 4.0, -0.0]])
PASSES = (drop_unused, share_equal, fold_constants, drop_unused, simplify, expand(cpu.has_kernel), simplify)


@settings(max_examples=250, derandomize=True)
@given(programs(), st.lists(st.integers(0, len(LAYOUTS) - 1), min_size=3, max_size=3))
def test_every_pass_keeps_the_meaning(drawn, layouts):
    program, specs = drawn
    graph, _, _ = recorded(program, *[values(spec, 0) for spec in specs])
    inputs = [values(spec, 1, layout) for spec, layout in zip(specs, layouts)]
    expected = numbers(program(*inputs))
    arrays = [x._value.data for x in inputs] + [GENERATOR.value.data]
    assert_same(run_graph(graph.check(), arrays), expected)
    for each in PASSES:
        graph = each(graph).check()
        assert_close(run_graph(graph, arrays), expected, rounding(graph))


def names(graph):
    return [node.op.name for node in graph.nodes]


def graph_of(function, *inputs):
    return recorded(function, *(inputs or [dlarray(X)]))[0]


def same_after(graph, each, *arrays):
    """The graph after the pass; both give the same bits."""
    after = each(graph).check()
    arrays = [*(arrays or [X]), GENERATOR.value.data]
    assert_same(run_graph(after, arrays), run_graph(graph, arrays))
    return after


# drop_unused ------------------------------------------------------------------------------------------------------
def test_unused_calls_and_constants_go():
    weight = dlarray(X)

    def function(x):
        _ = m.exp(x * weight)
        return m.sin(x), m.sort(x, 1, nargout=2)[1]

    graph = same_after(graph_of(function), drop_unused)
    assert "exp" not in names(graph) and not graph.constants and "argsort" in names(graph)


# share_equal ------------------------------------------------------------------------------------------------------
def test_equal_calls_are_made_once():
    graph = same_after(graph_of(lambda x: [m.exp(x) * 2, m.exp(x) * 2, m.exp(x) * 3]), share_equal)
    assert names(graph) == ["exp", "times", "times"] and graph.outputs[0] == graph.outputs[1]


def test_literals_are_equal_only_with_their_sign_and_type():
    graph = graph_of(lambda x: [1 / (x * 0.0), 1 / (x * -0.0), x * 1, x * True, x + 1.0])
    assert names(same_after(graph, share_equal)) == names(graph)


def test_parameters_count():
    graph = graph_of(lambda x: [m.sum(x, 0), m.sum(x, 1), m.sum(x, 0), m.zeros(2, like=x), m.zeros(2, like=x) - 1])
    assert names(same_after(graph, share_equal)).count("reduce_sum") == 2


def test_random_draws_are_not_equal():
    graph = graph_of(lambda x: [m.rand(2, 3, like=x), m.rand(2, 3, like=x)])
    assert names(same_after(graph, share_equal)) == ["random", "random"]


def test_ops_of_one_name_are_not_equal():
    def other(name):
        op = Op("double", MAP, None, doc="", text={"plus": "({0} + {0})", "times": "({0} * {0})"}[name])
        return lambda x: op(x)

    graph = graph_of(lambda x: [other("plus")(x), other("times")(x)])
    assert len(same_after(graph, share_equal).nodes) == 2


def test_a_parameter_that_is_not_hashable_is_no_harm():
    op = Op("picky", KERNEL, lambda x, *, weights: x * weights[0], doc="", types="f->f")
    graph = graph_of(lambda x: [op(x, weights=[2.0]), op(x, weights=[2.0])])
    assert len(simplify(graph).check().nodes) == 2


# fold_constants ---------------------------------------------------------------------------------------------------
def test_constants_are_computed_once():
    a, b = dlarray(X), dlarray(X + 1)
    graph = simplify(same_after(graph_of(lambda x: x + m.exp(a) * b), fold_constants))
    assert names(graph) == ["plus"] and len(graph.constants) == 1


def test_large_constants_are_not_made_in_advance():
    graph = simplify(graph_of(lambda x: m.sum(m.ones(1, FOLD_LIMIT_BYTES, like=x), "all") * m.sum(x, "all")))
    assert "full" in names(graph) and not graph.constants


def test_uniform_constants_become_literals_of_the_ops_that_read_them():
    half = dlarray(np.full((2, 3), 0.5, np.float32))
    graph = graph_of(lambda x: [x * half, m.where(x > half, x, half), m.sum(half, "all") + x])
    graph = simplify(same_after(graph, simplify))
    assert not graph.constants
    assert [node.inputs[1:] for node in graph.nodes[:3]] == [(0.5,), (0.5,), (0, 0.5)]


def test_literals_do_not_change_the_type():
    ones, zeros = dlarray(np.ones((2, 3), np.float32)), dlarray(np.zeros((2, 3), np.float32))
    graph = same_after(graph_of(lambda x: [m.where(x > 0, ones, zeros), m.where(x > 0, 1.0, 0.0)]), simplify)
    assert [graph.specs[y].dtype.name for y in graph.outputs] == ["float32", "float64"]


def test_constants_that_are_no_floats_stay():
    mask = dlarray(np.ones((2, 3), bool))
    graph = same_after(graph_of(lambda x: [m.and_(x > 0, mask), m.where(mask, x, 1.0)]), simplify)
    assert len(graph.constants) == 1


def test_not_a_number_and_signed_zeros_stay_what_they_are():
    nothing = dlarray(np.full((2, 3), np.nan, np.float32))
    mixed = dlarray(np.float32([[0.0, -0.0, 0.0]] * 2))
    minus = dlarray(np.full((2, 3), -0.0, np.float32))
    same_after(graph_of(lambda x: [x + nothing, 1 / (x * mixed), 1 / (x * minus), x - minus, x + minus]), simplify)


def test_operands_that_change_nothing_go():
    graph = same_after(graph_of(lambda x: [x * 1.0, 1 * x, x / 1, x - 0.0, x * 1 * 1]), simplify)
    assert not graph.nodes and set(graph.outputs) == {graph.inputs[0]}
    graph = same_after(graph_of(lambda x: [x - -0.0, x + 0.0, 0.0 - x, 1 / x, x * True, (x > 0) * 1.0]), simplify)
    assert names(graph)[:4] == ["minus", "plus", "minus", "rdivide"]


def test_a_gradient_of_a_sum_costs_nothing_but_itself():
    graph = graph_of(lambda x: m.dlfeval(lambda x: m.dlgradient(m.sum(x * x, "all"), x), x))
    assert names(same_after(graph, simplify)) == ["alias", "plus"]


# expand -----------------------------------------------------------------------------------------------------------
def test_bodies_of_loops_take_the_place_of_their_ops():
    graph = same_after(graph_of(lambda x: m.hypot(x, 3.0)), expand(cpu.has_kernel))
    assert "hypot" not in names(graph) and all(node.op.kind in (MAP, VIEW) for node in graph.nodes)
    assert all("test_passes.py:" in node.where for node in graph.nodes)


def test_bodies_within_bodies():
    def twice(x):
        return OPS["hypot"](x, 2.0) + OPS["hypot"](x, 2.0)

    def same(x):
        return x

    def kept(x):
        return x * dlarray(np.float32([[1.0, 2.0, 3.0]] * 2)), x  # an array of its own, and an input as output

    outer = Op("outer", MAP, lambda x: inner(inner(x)), doc="", types="f->f")
    inner = Op("inner", MAP, twice, doc="", types="f->f")
    graph = graph_of(lambda x: [outer(x), Op("same", KERNEL, same, doc="", types="f->f")(x),
                                *Op("kept", KERNEL, kept, doc="", types="f->ff")(x)])  # fmt: skip
    after = expand(cpu.has_kernel)(graph).check()
    arrays = [X, GENERATOR.value.data]
    assert_close(run_graph(after, arrays), run_graph(graph, arrays), 1e-6)
    assert not {"outer", "inner", "same", "kept", "hypot"} & set(names(after)) and after.outputs[1] == after.inputs[0]


def test_a_body_with_a_kernel_stays_where_the_backend_has_one():
    weights = dlarray(np.ones((3, 3, 1, 2), np.float32))
    graph = graph_of(lambda x: m.dlconv(x, weights, 0), dlarray(np.ones((5, 5, 1, 2), np.float32), "SSCB"))
    assert "conv" in names(expand(cpu.has_kernel)(graph))
    if OPS["conv"].body is not None:
        assert "conv" not in names(expand(lambda op: op.name != "conv")(graph))


def test_simplify_ends_and_is_stable():
    graph = graph_of(lambda x: m.std(m.softmax(x, DataFormat="CB"), 0, 1) * 1.0)
    once = simplify(expand(cpu.has_kernel)(simplify(graph)))
    assert str(simplify(once)) == str(once)
