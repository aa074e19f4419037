"""The stages of the engine run in plain NumPy: what graphs and loops mean, to compare their results with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.backends import cpu, reference
from minidl.backends.loop import Access, Loop, Temp
from minidl.core.apply import compute
from minidl.core.spec import Spec, Value
from minidl.core.tape import alone
from minidl.engine.graph import Graph, Id

UFUNCS = {
    "({0} + {1})": np.add, "({0} * {1})": np.multiply, "fmax({0}, {1})": np.fmax, "fmin({0}, {1})": np.fmin,
    "logical_or({0}, {1})": np.logical_or, "logical_and({0}, {1})": np.logical_and,
}  # fmt: skip


def run_graph(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a graph, node by node; what they make must be what the graph says."""
    known = {**dict(zip(graph.inputs, arrays)), **graph.constants}
    values: dict[Id, Any] = {x: Value(graph.specs[x], data) for x, data in known.items()}
    with alone():
        for node in graph.nodes:
            made = compute(node.op, tuple([values[x] if isinstance(x, Id) else x for x in node.inputs]), node.params)
            for y, value in zip(node.outputs, made):
                assert isinstance(value.data, np.ndarray), f"{node.op.name} makes a {type(value.data).__name__}"
                assert graph.specs[y] == value.spec == Spec(value.data.shape, value.data.dtype), node.op.name
                values[y] = value
    return [values[y].data for y in graph.outputs]


def run_loop(loop: Loop, flat: Callable[[Any], np.ndarray]) -> None:
    """What a loop means, all its iterations at once; flat(buffer) is a buffer as a flat array."""

    def array(a: Access, sizes: tuple[int, ...]) -> np.ndarray:
        memory = flat(a.buffer)
        size = memory.itemsize
        return np.ndarray(sizes, memory.dtype, memory, a.offset * size, tuple(stride * size for stride in a.strides))

    with np.errstate(all="ignore"):
        temps: list[Any] = []
        for step in loop.steps:
            if step.access is not None:
                temps.append(array(step.access, loop.sizes))
                continue
            args = [temps[x] if isinstance(x, Temp) else x for x in step.args]
            options = {"dtype": step.dtype} if "cast(" in step.text else {}
            temps.append(np.asarray(reference.scalar_function(step.text)(*args, **options), dtype=step.dtype))
        for store in loop.stores:
            value = np.broadcast_to(temps[store.source], loop.sizes)
            sizes = list(loop.sizes)
            if store.combine:
                axes = tuple(i for i, stride in enumerate(store.access.strides) if stride == 0)
                wide = np.float64 if value.dtype.kind == "f" else value.dtype
                reduce = UFUNCS[store.combine].reduce
                value = reduce(value, axis=axes, initial=store.identity, dtype=wide, keepdims=True)
                sizes = [1 if i in axes else n for i, n in enumerate(sizes)]
            target = array(store.access, tuple(sizes))
            target[...] = value


class Interpreter:
    """A backend that interprets loops instead of compiling them."""

    run, view, bind_kernel = cpu.run, cpu.view, cpu.bind_kernel
    has_kernel, needs_dense = cpu.has_kernel, cpu.needs_dense

    @staticmethod
    def bind_loop(loop: Loop, flat: Callable[[Any], np.ndarray]) -> Callable[[], None]:
        return functools.partial(run_loop, loop, flat)
