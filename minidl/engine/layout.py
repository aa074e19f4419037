"""choose_layout: where each element of each value lies: in which buffer, from which offset, with which strides.

A buffer is made by an input, a constant or a node that computes; a view has no buffer, only other subscripts into one.
Strides and offsets count elements, not bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.core.loop import Access
from minidl.core.op import KERNEL, MAP, VIEW, Op, op
from minidl.core.spec import Spec
from minidl.engine.graph import Graph, Id, Node


@op(MAP, text="{0}", types="a->a")
def copy(x):
    """The same numbers in memory of their own."""


@copy.infer
def _(x):
    return x


copy.vjps(lambda g, y, x: g)


def dense(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array without gaps whose dimensions vary ever faster along `order`."""
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest; dimensions of size 1 keep their place among equals."""
    return tuple(sorted(range(len(shape)), key=lambda i: (-abs(strides[i]) if shape[i] > 1 else 0, i)))


def order_of(array: np.ndarray) -> tuple[int, ...]:
    """Memory order of a NumPy array."""
    return memory_order(array.shape, array.strides)


@dataclasses.dataclass
class Layout:
    """A graph whose values have places: the access of each value, and the flat memory of each constant."""

    graph: Graph
    access: dict[Id, Access]
    memory: dict[Id, np.ndarray] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for x, a in self.access.items():
            lines.append(f"{x}: {self.graph.specs[x]} in {a.buffer} from {a.offset} strides {list(a.strides)}")
        return "\n".join(lines)


def choose_layout(
    graph: Graph, input_orders: Sequence[Sequence[int]], needs_dense: Callable[[Op], bool], view: Callable[..., Any]
) -> Layout:
    """Give every value its place; insert a `copy` where a kernel or a view cannot work on the strides at hand.

    MAP and REDUCE results are laid out like their largest operand, KERNEL results in the order of their dimensions.
    What is the same along a dimension is computed once (stride 0), and so is what is computed twice from one memory.
    """
    graph = graph.with_nodes(graph.nodes)
    names: dict[Id, Any] = {}
    seen: dict[Any, Node] = {}
    access: dict[Id, Access] = {}
    memory: dict[Id, np.ndarray] = {}
    copies: dict[Id, Id] = {}
    nodes: list[Node] = []

    def place(x: Id, order: Sequence[int], still: Sequence[int] = ()) -> None:
        shape = [1 if i in still else n for i, n in enumerate(graph.specs[x].shape)]
        strides = dense(shape, order)
        access[x] = Access(x, 0, tuple([0 if i in still else stride for i, stride in enumerate(strides)]))

    def copied(x: Id) -> Id:
        if x not in copies:
            y = copies[x] = graph.new(graph.specs[x])
            place(y, range(graph.specs[x].ndim))
            nodes.append(Node(copy, (x,), {}, (y,)))
        return copies[x]

    for x, input_order in zip(graph.inputs, input_orders):
        place(x, input_order)
    for x, data in graph.constants.items():
        memory[x], access[x] = _constant(x, data)
    for node in graph.nodes:
        node = node.renamed(names)
        if node.op.kind is VIEW:
            x = node.inputs[0]
            found = _viewed(graph, access[x], node, view)
            if found is None:
                x = copied(x)
                found = _viewed(graph, access[x], node, view)
            assert found is not None, f"{node.op.name} of a dense array is a view"
            access[node.outputs[0]] = found
            nodes.append(dataclasses.replace(node, inputs=(x,)))
            continue
        if node.op.kind is KERNEL:
            if needs_dense(node.op):
                for x in node.reads:
                    if not _is_c_order(graph.specs[x], access[x]):
                        node = node.renamed({x: copied(x)})
            for y in node.outputs:
                place(y, range(graph.specs[y].ndim))
        else:
            first = seen.setdefault(_work(graph, access, node), node)
            if first is not node:
                names.update(zip(node.outputs, first.outputs))
                continue
            (y,) = node.outputs
            place(y, _largest_order(graph, access, node), _still(graph, access, node) if node.op.kind is MAP else ())
        nodes.append(node)
    return Layout(graph.with_nodes(nodes, outputs=[names.get(y, y) for y in graph.outputs]), access, memory)


def _work(graph: Graph, access: dict[Id, Access], node: Node) -> Any:
    """What a MAP or REDUCE node does, in terms of memory: two nodes of equal work have equal results."""
    read = tuple([(graph.specs[x].shape, access[x]) if isinstance(x, Id) else repr(x) for x in node.inputs])
    return node.op.name, read, tuple(sorted(node.params.items())), graph.specs[node.outputs[0]]


def _still(graph: Graph, access: dict[Id, Access], node: Node) -> list[int]:
    """Dimensions along which no operand of a MAP node moves."""
    shape = graph.specs[node.outputs[0]].shape
    return [i for i, n in enumerate(shape) if n > 1 and not any(access[x].strides[i] for x in node.reads)]


def _constant(x: Id, data: np.ndarray) -> tuple[np.ndarray, Access]:
    """Flat memory of a constant (its own, if without gaps) and its access; what a stride of 0 repeats is there once."""
    is_repeated = [stride == 0 for stride in data.strides]
    once = data[tuple([slice(1) if repeated else slice(None) for repeated in is_repeated]) + (...,)]
    order = order_of(once)
    flat = np.require(once.transpose(order).reshape(-1), requirements=["C", "A", "W"])  # kernels know no other arrays
    strides = dense(once.shape, order)
    return flat, Access(x, 0, tuple([0 if repeated else s for repeated, s in zip(is_repeated, strides)]))


def _largest_order(graph: Graph, access: dict[Id, Access], node: Node) -> tuple[int, ...]:
    best, best_count = tuple(range(graph.specs[node.outputs[0]].ndim)), -1
    for x in node.reads:
        shape, strides = graph.specs[x].shape, access[x].strides
        count = 1
        for size, stride in zip(shape, strides):
            count *= size if stride else 1
        if count > best_count:
            best, best_count = memory_order(shape, strides), count
    return best


def _is_c_order(spec: Spec, a: Access) -> bool:
    step = 1
    for size, stride in zip(reversed(spec.shape), reversed(a.strides)):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _viewed(graph: Graph, a: Access, node: Node, view: Callable[..., Any]) -> Access | None:
    """Access of a view, found by letting the backend make it on a stand-in of the right strides."""
    x = graph.specs[node.inputs[0]]
    stand_in, base = _stand_in(x, a)
    y = view(node.op, stand_in, node.params)
    if y.size and not np.may_share_memory(y, base):
        return None  # the backend had to copy
    offset = y.__array_interface__["data"][0] - base.__array_interface__["data"][0] if y.size else 0
    return Access(a.buffer, offset + (0 if y.size else a.offset), y.strides)


_zeros = np.zeros(0, np.int8)


def _stand_in(x: Spec, a: Access) -> tuple[np.ndarray, np.ndarray]:
    """An array of one-byte elements with this access, and its buffer (memory that is never touched)."""
    global _zeros
    reach = a.offset + 1 + sum(max(stride, 0) * max(size - 1, 0) for size, stride in zip(x.shape, a.strides))
    memory = _zeros  # another thread may put larger ones in their place
    if memory.size < reach:
        memory = _zeros = np.zeros(2 * reach, np.int8)
    return np.ndarray(x.shape, np.int8, memory, a.offset, a.strides), memory


