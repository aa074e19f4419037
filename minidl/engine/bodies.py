"""Ops with kernels that had better be what their bodies are made of: where these find a place on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidl.core.op import KERNEL, REDUCE, Op
from minidl.engine.fuse import Schedule
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.loops import Loop
from minidl.engine.passes import splice
from minidl.engine.sums import SUM


def body_of(graph: Graph, node: Node, is_kept: Callable[[Op], bool]) -> tuple[Graph, list[Node]] | None:
    """(a graph with the specs of an op's body, its nodes); None for what has no body, sums products or is a user's."""
    op = node.op
    if op.kind is not KERNEL or op.body is None or op.contraction_rule is not None or op.kernels:
        return None  # a user's kernel is there to be used
    inner = Graph([*graph.specs], [], {}, [], [])
    kept: list[Node] = []
    splice(inner, node, is_kept, kept, {})
    return inner, kept


def openable(graph: Graph) -> set[Id]:
    """First results of the nodes whose bodies are made of loops and sums over all but the last dimension."""
    return {node.outputs[0] for node in graph.nodes if _is_openable(graph, node)}


def _is_openable(graph: Graph, node: Node) -> bool:
    specs = [graph.specs[x] for x in node.reads]
    found = body_of(graph, node, lambda op: op.body is None) if all(spec.size for spec in specs) else None
    if found is None:
        return False
    inner, kept = found
    sums = [n for n in kept if n.op.kind is REDUCE]
    return (
        bool(sums) and not any(n.op.kind is KERNEL for n in kept)
        and all(n.op.text == SUM and n.params["axes"] == tuple(range(inner.specs[n.inputs[0]].ndim - 1)) for n in sums)
    )  # fmt: skip


def opened(graph: Graph, chosen: set[Id]) -> tuple[Graph, dict[Id, range]]:
    """The graph with bodies in the place of the chosen nodes, and for each of them the numbers of its body's values."""
    graph = graph.with_nodes(graph.nodes)
    kept: list[Node] = []
    names: dict[Id, Any] = {}
    found = {}
    for node in graph.nodes:
        first, before = node.outputs[0], len(graph.specs)
        node = node.renamed(names)
        if first in chosen:
            splice(graph, node, lambda op: op.body is None, kept, names)
            found[first] = range(before, len(graph.specs))
        else:
            kept.append(node)
    return graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs]), found


def riding(schedule: Schedule, bodies: dict[Id, range]) -> set[Id]:
    """The opened nodes whose sums are all taken on the way, by a contraction or by a loop that has more to do.

    The others had better stay kernels.
    """
    alone: set[int] = set()
    for task in schedule.tasks:
        if isinstance(task.work, Loop) and all(s.combine for s in task.work.stores):
            alone |= {int(y) for y in task.writes}
    return {y for y, numbers in bodies.items() if not any(n in alone for n in numbers)}
