"""known_sums: what an op says of the sums of its results takes the place of adding them up.

A bias in front of batch normalisation is the case that pays: its gradient is a sum over everything that the
normalisation's gradient makes, and that is 0, whatever rounding leaves of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minidl.backends.loop import Access
from minidl.core.apply import abstract
from minidl.core.dlarray import DLArray
from minidl.core.op import REDUCE, VIEW
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import dense, viewed
from minidl.engine.passes import calls_of, nodes_of

SUM = "({0} + {1})"


def known_sums(view: Callable[..., Any]) -> Callable[[Graph], Graph]:
    """The pass; view: how the backend makes a view of an array."""

    def run(graph: Graph) -> Graph:
        graph = graph.with_nodes(graph.nodes)
        makers: dict[Id, Node] = {}
        kept: list[Node] = []
        names: dict[Id, Any] = {}
        for node in graph.nodes:
            node = node.renamed(names)
            found = _known(graph, node, makers, view)
            if found is None:
                kept.append(node)
            else:
                new, names[node.outputs[0]] = found
                kept += new
            makers.update({y: node for y in node.outputs})
        return graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs])

    return run


def _known(
    graph: Graph, node: Node, makers: dict[Id, Node], view: Callable[..., Any]
) -> tuple[list[Node], Id] | None:
    """(nodes that make the result of a sum from what its op says, the result); None if it has to be added up."""
    if node.op.kind is not REDUCE or node.op.text != SUM:
        return None
    x, views = node.reads[0], []
    while x in makers and makers[x].op.kind is VIEW:
        views.append(makers[x])
        x = makers[x].reads[0]
    maker = makers.get(x)
    sums = maker.op.sums_rule if maker else None
    if maker is None or sums is None or not _adds_rows(graph, node, x, views[::-1], view):
        return None
    roots = [abstract(graph.specs[z]) if isinstance(z, Id) else z for z in (*maker.outputs, *maker.inputs)]
    numbers = {
        id(root._value): z for root, z in zip(roots, (*maker.outputs, *maker.inputs)) if isinstance(root, DLArray)
    }
    shape, count, at = graph.specs[node.outputs[0]].shape, len(maker.outputs), maker.outputs.index(x)

    def rule(*roots: Any, **params: Any) -> Any:
        """The sum, shaped as it is wanted; what the others are nobody asks."""
        found = sums(tuple(roots[:count]), *roots[count:], **params)[at]
        return () if found is None else found.reshape(shape, Order="C")

    tape, results = calls_of(rule, roots, maker.params)
    if not results:
        return None
    (result,) = results
    if result.spec != graph.specs[node.outputs[0]]:
        return None
    new = list(nodes_of(graph, tape, numbers, node))
    return new, numbers[id(result)]


def _adds_rows(graph: Graph, node: Node, x: Id, views: list[Node], view: Callable[..., Any]) -> bool:
    """Whether a sum over a view of x adds up all that x has at each position of its last dimension."""
    spec = graph.specs[x]
    columns = spec.shape[-1] if spec.ndim else 1
    access: dict[Id, Access | None] = {x: Access(x, 0, dense(spec.shape, range(spec.ndim)))}
    for each in views:
        before = access[each.reads[0]]
        access[each.outputs[0]] = viewed(graph, before, each, view) if before is not None else None
    last, summed = access[node.reads[0]], graph.specs[node.reads[0]]
    if last is None or last.offset or summed.size != spec.size or not summed.size:
        return False
    sides = [(n, s, d in node.params["axes"]) for d, (n, s) in enumerate(zip(summed.shape, last.strides)) if n != 1]
    kept = [(n, s) for n, s, is_over in sides if not is_over]
    order = dense([n for n, _ in kept], range(len(kept)))
    return (
        math.prod([n for n, _ in kept]) == columns and tuple([s for _, s in kept]) == order
        and all(s > 0 and s % columns == 0 for _, s, is_over in sides if is_over)
    )  # fmt: skip
