"""Graphs: what a tape becomes, what `check` finds, how a graph reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import minidl as m
from engine.interpreter import run_graph
from engine.programs import recorded
from minidl.core.dlarray import dlarray
from minidl.core.spec import SINGLE, Spec
from minidl.engine.graph import Id, Node

X = np.float32([[1.0, -2.0], [3.0, 4.0]])


def test_a_tape_becomes_a_graph():
    graph, _, outputs = recorded(lambda x, y: [m.tanh(x * y) + 1.0, x], dlarray(X), dlarray(X))
    graph.check()
    assert graph.inputs == [0, 1, 2] and not graph.constants  # the last input is the state of the random generator
    assert [node.op.name for node in graph.nodes] == ["times", "tanh", "plus"]
    assert graph.nodes[2].inputs[1] == 1.0 and not isinstance(graph.nodes[2].inputs[1], Id)
    assert graph.outputs[1] == graph.inputs[0]
    assert np.array_equal(run_graph(graph, [X, X, None])[0], outputs[0])


def test_what_was_there_before_is_constant():
    weight = dlarray(X)
    graph, _, _ = recorded(lambda x: [x * weight, weight, weight], dlarray(X))
    (constant,) = graph.constants
    assert graph.constants[constant] is weight._value.data and graph.outputs[1:] == [constant, constant]


def test_each_line_names_the_users_source():
    graph, _, _ = recorded(lambda x: m.sum(m.exp(x), "all") + 2, dlarray(X))
    lines = str(graph).splitlines()
    assert len(lines) == len(graph.inputs) + len(graph.nodes) + 1
    assert lines[0] == "v0 = input single[2, 2]" and lines[-1] == f"return {graph.outputs[0]}"
    for line in lines[2:-1]:
        assert "test_graph.py:" in line and ("map" in line or "reduce" in line or "view" in line)
    assert "exp(v0)" in lines[2] and "axes=(0, 1)" in lines[3]


def broken(graph, **changes):
    return dataclasses.replace(graph, **changes)


def test_check_finds_what_is_wrong():
    graph, _, _ = recorded(lambda x: m.exp(x) * x, dlarray(X))
    exp, times = graph.nodes
    with pytest.raises(AssertionError, match="times reads v2 before it is made"):
        broken(graph, nodes=[times, exp]).check()
    with pytest.raises(AssertionError, match="v2 is made twice"):
        broken(graph, nodes=[exp, exp, times]).check()
    with pytest.raises(AssertionError, match="output v3 is never made"):
        broken(graph, nodes=[exp]).check()
    with pytest.raises(AssertionError, match="exp makes"):
        broken(graph, specs=[*graph.specs[:2], Spec((2,), SINGLE), *graph.specs[3:]]).check()


def test_a_renamed_node_reads_other_values_or_literals():
    graph, _, _ = recorded(lambda x: m.exp(x) * x, dlarray(X))
    times = graph.nodes[1]
    assert times.renamed({Id(7): Id(8)}) is times
    assert times.renamed({Id(0): 2.5}).inputs == (Id(2), 2.5)
    assert Node(times.op, (2, 0), {}, ()).renamed({Id(2): 3.0, Id(0): 4.0}).inputs == (2, 0)  # literals stay


def test_with_nodes_leaves_the_original_alone():
    graph, _, _ = recorded(lambda x: m.exp(x) * x, dlarray(X))
    other = graph.with_nodes(graph.nodes[:1], outputs=[Id(2)])
    other.new(Spec((1,)))
    assert len(graph.nodes) == 2 and len(graph.specs) == 4 and graph.outputs == [Id(3)]
