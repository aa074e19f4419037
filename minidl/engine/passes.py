"""Passes: Graph -> Graph, same meaning, less work. They look at kinds, bodies and specs, never at names."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from minidl.core.apply import abstract, compute
from minidl.core.dlarray import DLArray
from minidl.core.op import MAP, VIEW, Op
from minidl.core.spec import Value
from minidl.core.tape import Tape, alone
from minidl.engine.graph import Graph, Id, Node

FOLD_LIMIT_BYTES = 1 << 20  # a larger constant costs more to keep than to make
UNIFORM_LIMIT = 4096  # elements that are compared to find out whether a constant is one number everywhere


def drop_unused(graph: Graph) -> Graph:
    """Without the nodes and constants that no output needs."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(y in needed for y in node.outputs):
            needed.update(node.reads)
            kept.append(node)
    constants = {x: data for x, data in graph.constants.items() if x in needed}
    return graph.with_nodes(reversed(kept), constants=constants)


def share_equal(graph: Graph) -> Graph:
    """Equal calls with equal inputs once. (Random draws differ in the state they read.)"""
    names: dict[Id, Any] = {}
    seen: dict[Any, Node] = {}
    kept = []
    for node in graph.nodes:
        node = node.renamed(names)
        first = seen.setdefault(_meaning(node), node)
        if first is node:
            kept.append(node)
        else:
            names.update(zip(node.outputs, first.outputs))
    return graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs])


def _meaning(node: Node) -> Hashable:
    """What two nodes must have in common to compute the same. The texts tell 0.0 from -0.0 and 1 from True."""
    params = tuple(sorted(node.params.items()))
    key = (node.op, node.inputs, params, repr((node.inputs, params)))
    try:
        hash(key)
    except TypeError:  # a parameter that is not hashable is equal to nothing
        return id(node)
    return key


def fold_constants(graph: Graph) -> Graph:
    """What depends on constants alone is computed now; uniform ones become literals of the MAP ops that read them."""
    constants = dict(graph.constants)
    kept = []
    for node in graph.nodes:
        small = sum(graph.specs[y].nbytes for y in node.outputs) <= FOLD_LIMIT_BYTES
        is_here = all(graph.specs[x].device == "cpu" for x in (*node.reads, *node.outputs))
        if is_here and (small or node.op.kind is VIEW) and all(x in constants for x in node.reads):
            specs = [graph.specs[x] for x in node.reads]
            ready = iter([Value(spec, constants[x]) for spec, x in zip(specs, node.reads)])
            values = tuple([next(ready) if isinstance(x, Id) else x for x in node.inputs])
            with alone():
                made = compute(node.op, values, node.params)
            constants.update({y: value.data for y, value in zip(node.outputs, made)})
        else:
            kept.append(node)
    uniform = {x: number for x, data in constants.items() if (number := _uniform(data)) is not None}
    names: dict[Id, Any] = {}
    simpler = []
    for node in kept:
        node = node.renamed(names)
        node = _with_literals(graph, node, uniform)
        same = _unchanged(graph, node)
        if same is None:
            simpler.append(node)
        else:
            names[node.outputs[0]] = same
    return graph.with_nodes(simpler, constants=constants, outputs=[names.get(y, y) for y in graph.outputs])


def _with_literals(graph: Graph, node: Node, uniform: dict[Id, Any]) -> Node:
    """The node with its uniform operands as literals, if it then still makes the same: literals have no type."""
    if node.op.text is None or node.op.kind is not MAP or all(x in uniform for x in node.reads):
        return node  # a body may ask its operands for their sizes; what reads no array has none of its own
    simpler = node.renamed(uniform)
    specs = tuple(graph.specs[y] for y in node.outputs)
    known = [graph.specs[x] if isinstance(x, Id) else x for x in simpler.inputs]
    return simpler if simpler is node or node.op.output_specs(known, node.params) == specs else node


def _unchanged(graph: Graph, node: Node) -> Id | None:
    """The operand that the node merely repeats, as in x * 1."""
    for literal, other, neutral in zip(node.inputs, reversed(node.inputs), node.op.neutral):
        if neutral is None or isinstance(literal, Id) or not isinstance(other, Id):
            continue
        if callable(neutral):
            is_exact = neutral(literal)
        else:  # -0.0 - -0.0 is 0.0
            is_exact = literal == neutral and math.copysign(1, literal) == math.copysign(1, neutral)
        if is_exact and graph.specs[other] == graph.specs[node.outputs[0]]:
            return other
    return None


def _distinct(data: np.ndarray) -> np.ndarray:
    return data[tuple([slice(None) if stride else slice(1) for stride in data.strides]) + (...,)]


def _uniform(data: np.ndarray) -> float | None:
    """The number that stands everywhere in an array, if one does; large arrays are not searched for it."""
    if not isinstance(data, np.ndarray):
        return None
    data = _distinct(data)
    if data.size == 0 or data.dtype.kind != "f" or data.size > UNIFORM_LIMIT:
        return None
    first = data.flat[0]
    same = first == first and np.all(data == first) and np.all(np.signbit(data) == np.signbit(first))
    return float(first) if same else None


def expand(has_kernel: Callable[[Op], bool]) -> Callable[[Graph], Graph]:
    """The pass that puts an op's body in the place of the op.

    Done where the backend has no kernel, and to MAP ops always: their bodies become one loop, with their neighbours.
    """

    def is_kept(op: Op) -> bool:
        return op.body is None or (op.kind is not MAP and has_kernel(op))

    def run(graph: Graph) -> Graph:
        graph = graph.with_nodes(graph.nodes)
        kept: list[Node] = []
        names: dict[Id, Any] = {}
        for node in graph.nodes:
            splice(graph, node.renamed(names), is_kept, kept, names)
        return graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs])

    return run


def splice(
    graph: Graph, node: Node, is_kept: Callable[[Op], bool], kept: list[Node], names: dict[Id, Any]
) -> None:
    """Append a node to those kept, or what its body is made of."""
    op = node.op
    if is_kept(op):
        kept.append(node)
        return
    roots = [abstract(graph.specs[x]) if isinstance(x, Id) else x for x in node.inputs]
    numbers = {id(root._value): x for root, x in zip(roots, node.inputs) if isinstance(root, DLArray)}
    tape, results = calls_of(op.body, roots, node.params)
    for inner in nodes_of(graph, tape, numbers, node):
        splice(graph, inner.renamed(names), is_kept, kept, names)
    for y, value in zip(node.outputs, results):
        name = numbers[id(value)]
        names[y] = names.get(name, name)


def nodes_of(graph: Graph, tape: Tape, numbers: dict[int, Any], node: Node) -> Iterator[Node]:
    """The calls of a tape as nodes in the place of one; numbers: those of the values that there are, by their id."""
    for call in tape.calls:
        for value in call.inputs:
            if isinstance(value, Value) and id(value) not in numbers:  # an array that the body made by itself
                numbers[id(value)] = graph.new(value.spec)
                graph.constants[numbers[id(value)]] = value.data
        if call.op.is_choice:
            numbers[id(call.outputs[0])] = numbers[id(call.inputs[0])]
            continue
        read = tuple([numbers[id(x)] if isinstance(x, Value) else x for x in call.inputs])
        made = []
        for value in call.outputs:
            numbers[id(value)] = graph.new(value.spec)
            made.append(numbers[id(value)])
        yield Node(call.op, read, call.params, tuple(made), node.where, node.is_gradient)


def calls_of(function: Any, inputs: list[Any], params: dict[str, Any]) -> tuple[Tape, list[Value]]:
    """The calls that an op's body, or another rule, makes, and its results, without computing anything."""
    tape = Tape(everything=True)
    with alone(tape):
        result = function(*inputs, **params)
    return tape, [y._value for y in (result if isinstance(result, tuple) else (result,))]


def simplify(graph: Graph) -> Graph:
    """The cheap passes, until nothing changes."""
    while True:
        count = len(graph.nodes)
        graph = drop_unused(fold_constants(share_equal(graph)))
        if len(graph.nodes) == count:
            return graph


