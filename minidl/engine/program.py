"""Program: a plan bound to memory. Running it runs no Python of the user's, allocates nothing but its results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.core.apply import compute
from minidl.core.spec import Value
from minidl.core.tape import alone
from minidl.engine.fuse import schedule
from minidl.engine.graph import Graph, Id
from minidl.engine.layout import choose_layout
from minidl.engine.loops import Loop
from minidl.engine.passes import drop_unused, expand, simplify
from minidl.engine.plan import Plan, plan_memory

Run = Callable[[], Any]


class Program:
    """Ready to replay: `run(arrays)` copies the inputs in, runs the bound steps and copies the results out.

    The steps share one arena, so one run at a time: a second thread waits.
    """

    def __init__(self, graph: Graph, plan: Plan, backend: Any) -> None:
        self.graph, self.plan = graph, plan
        layout = plan.schedule.layout
        specs = layout.graph.specs
        self._arena = np.empty(plan.arena_bytes + 64, np.uint8)
        base = -self._arena.ctypes.data % 64
        flat: dict[Id, np.ndarray] = {}
        for buffer, offset in plan.offsets.items():
            spec = specs[buffer]
            flat[buffer] = self._arena[base + offset : base + offset + spec.nbytes].view(spec.dtype)
        flat.update(layout.memory)

        def array(x: Id) -> np.ndarray:
            a, spec = layout.access[x], specs[x]
            size = spec.dtype.itemsize
            strides = tuple(stride * size for stride in a.strides)
            return np.ndarray(spec.shape, spec.dtype, flat[a.buffer], a.offset * size, strides)

        self._inputs = [array(x) for x in layout.graph.inputs]
        self._outputs = [array(y) for y in layout.graph.outputs]
        self._lock = threading.Lock()
        self.steps: list[Run] = []
        for task in plan.schedule.tasks:
            if isinstance(task.work, Loop):
                self.steps.append(backend.bind_loop(task.work, flat.__getitem__))
            else:
                node = task.work
                made = [array(y) for y in node.outputs]
                read = [array(x) if isinstance(x, Id) else x for x in node.inputs]
                self.steps.append(backend.bind_kernel(node.op, made, read, node.params))

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results for these inputs, as arrays of their own."""
        with self._lock, np.errstate(all="ignore"):  # inf and nan are results like others
            for target, source in zip(self._inputs, arrays):
                np.copyto(target, source)
            for step in self.steps:
                step()
            return [y.copy("K") for y in self._outputs]

    def __str__(self) -> str:
        return f"{self.graph}\n\n{self.plan}"


class ExactProgram:
    """The recorded calls once more: same kernels, same order, same bits. Only Python's part is left out."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        kept = set(graph.outputs)
        last_reader = {x: i for i, node in enumerate(graph.nodes) for x in node.reads if x not in kept}
        self._done: list[list[Id]] = [[] for _ in graph.nodes]  # what no later node reads
        for x, i in last_reader.items():
            self._done[i].append(x)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results for these inputs, as arrays of their own."""
        graph = self.graph
        known = {**dict(zip(graph.inputs, arrays)), **graph.constants}
        values = {x: Value(graph.specs[x], data) for x, data in known.items()}
        with alone():
            for node, done in zip(graph.nodes, self._done):
                read = tuple([values[x] if isinstance(x, Id) else x for x in node.inputs])
                values.update(zip(node.outputs, compute(node.op, read, node.params)))
                for x in done:
                    del values[x]
        return [values[y].data.copy("K") for y in graph.outputs]

    def __str__(self) -> str:
        return str(self.graph)


def compile_graph(
    graph: Graph, input_orders: Sequence[Sequence[int]], backend: Any, *, is_exact: bool = False
) -> Program | ExactProgram:
    """From a graph to a program: passes -> Layout -> Schedule -> Plan -> Program.

    A backend that binds no loops (the reference) computes call by call.
    """
    if is_exact or not hasattr(backend, "bind_loop"):
        return ExactProgram(drop_unused(graph))
    graph = simplify(expand(backend.has_kernel)(simplify(graph)))
    layout = choose_layout(graph, input_orders, backend.needs_dense, backend.view)
    return Program(graph, plan_memory(schedule(layout)), backend)
