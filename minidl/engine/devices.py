"""Graphs on a GPU: compiled as if everything lay in the host's memory, run where it lies, with copies at the door."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.core.device import host
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import Access
from minidl.engine.passes import drop_unused
from minidl.engine.plan import Plan
from minidl.engine.program import Program

HERE = "cpu"  # what passes take every device for


def is_elsewhere(graph: Graph) -> bool:
    """Whether a graph has to do with another device than the host."""
    used = {y for node in graph.nodes for y in (*node.reads, *node.outputs)} | set(graph.outputs)
    return any(graph.specs[x].device != HERE for x in used)


def on_one_device(graph: Graph) -> Graph | None:
    """The graph without its moves between devices, as if there were one; None if data go to and fro inside of it.

    A move may stand at the door: what comes in from the host, or goes out to it, is copied by the program.
    """
    graph = drop_unused(graph)
    given, read = {*graph.inputs, *graph.constants}, {x for node in graph.nodes for x in node.reads}
    names: dict[Id, Id] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node = node.renamed(names)
        is_at_door = node.reads and (node.reads[0] in given or node.outputs[0] not in read)
        if is_at_door and is_move(graph, node):
            names[node.outputs[0]] = node.reads[0]
        else:
            kept.append(node)
    moved = {x for x in names.values() if x in given}
    for node in kept:
        if any(graph.specs[y].device == HERE for y in node.outputs):
            return None
        if any(graph.specs[x].device == HERE and x not in moved for x in node.reads):
            return None
    outputs = [names.get(y, y) for y in graph.outputs]
    one = graph.with_nodes([_here(node) for node in kept], outputs=outputs)
    one.specs = [spec._replace(device=HERE) for spec in one.specs]
    one.constants = {x: host(data) for x, data in one.constants.items()}
    return one


def is_move(graph: Graph, node: Node) -> bool:
    """Whether a node makes its one operand anew on another device."""
    if len(node.inputs) != 1 or len(node.reads) != 1 or len(node.outputs) != 1:
        return False
    before, after = graph.specs[node.reads[0]], graph.specs[node.outputs[0]]
    return before.device != after.device and before._replace(device=after.device) == after


def _here(node: Node) -> Node:
    """The node, if it says where its result is to be, with the host for it."""
    if "device" not in node.params:
        return node
    return dataclasses.replace(node, params={**node.params, "device": HERE})


class DeviceProgram(Program):
    """A program whose arena lies on a device. Inputs are copied in and results out, by one launch for all of them."""

    def __init__(self, graph: Graph, plan: Plan, backend: Any, is_at_host: Sequence[bool]) -> None:
        self._is_at_host = list(is_at_host)  # of each result, whether it goes to the host
        super().__init__(graph, plan, backend)
        self._targets = [*self._small, *self._large]
        self._results = [self._array(y, self._flat) for y in plan.schedule.layout.graph.outputs]

    def _new_arena(self, nbytes: int) -> tuple[Any, int]:
        return self._backend.new_memory(nbytes), 0

    def _constant(self, data: np.ndarray) -> Any:
        return self._backend.as_array(data)

    def _placed(self, spec: Any, access: Access, memory: Any) -> Any:
        return self._backend.placed(memory, spec.shape, access.offset, access.strides)

    def _owned(self) -> list[bool]:
        return [False] * len(self._is_at_host)

    def _copy_in(self, arrays: Sequence[Any]) -> None:
        self._backend.copy_each([target for _, target in self._targets], [arrays[k] for k, _ in self._targets])

    def _run(self, arrays: Sequence[Any]) -> list[Any]:
        self._copy_in(arrays)
        for step in self.frames[0].steps:
            step()
        found = self._backend.copies(self._results)
        return [host(y) if at_host else y for y, at_host in zip(found, self._is_at_host)]
