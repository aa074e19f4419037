"""choose_layout: where each element of each value lies: in which buffer, from which offset, with which strides.

A buffer is made by an input, a constant or a node that computes; a view has no buffer, only other subscripts into one.
Strides and offsets count elements, not bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.backends.loop import Access
from minidl.core.contraction import Contraction
from minidl.core.op import KERNEL, MAP, VIEW, Op, op
from minidl.core.spec import DOUBLE, SINGLE, Spec
from minidl.engine.graph import Graph, Id, Node


@op(MAP, text="{0}", types="a->a")
def copy(x):
    """The same numbers in memory of their own."""


@copy.infer
def _(x):
    return x


copy.vjps(lambda g, y, x: g, is_singular=False)


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
    padded: dict[Id, int] = dataclasses.field(default_factory=dict)  # elements of buffers with zeros around the values

    def elements(self, buffer: Id) -> int:
        """Size of a buffer."""
        return self.padded.get(buffer, self.graph.specs[buffer].size)

    def nbytes(self, buffer: Id) -> int:
        """Size of a buffer in bytes."""
        return self.elements(buffer) * self.graph.specs[buffer].dtype.itemsize

    def __str__(self) -> str:
        lines = []
        for x, a in self.access.items():
            lines.append(f"{x}: {self.graph.specs[x]} in {a.buffer} from {a.offset} strides {list(a.strides)}")
        return "\n".join(lines)


DEPTH = 8  # nodes that are followed to find out which order a result is wanted in

Pads = tuple[tuple[int, int], ...]
Packing = Callable[[Sequence[tuple[int, int, int, int]], Any], "tuple[int, int] | None"]


class _Chooser:
    """The walk of choose_layout over the nodes of a graph."""

    def __init__(self, graph: Graph, view: Callable[..., Any]) -> None:
        self.graph, self._view = graph, view
        self.names: dict[Id, Any] = {}
        self.access: dict[Id, Access] = {}
        self.memory: dict[Id, np.ndarray] = {}
        self.padded: dict[Id, int] = {}
        self.nodes: list[Node] = []
        self._readers: dict[Id, list[Node]] = {}
        for node in graph.nodes:
            for x in node.reads:
                self._readers.setdefault(x, []).append(node)
        self._copies: dict[Any, Id] = {}
        self._within: dict[Id, Id] = {}  # a value -> its copy with zeros around it
        self._pads: dict[Id, Pads] = {}
        self._seen: dict[Any, Node] = {}

    def place(self, x: Id, order: Sequence[int], still: Sequence[int] = (), pads: Pads = ()) -> None:
        """Give a value memory of its own: no gaps, or `pads` zeros before and after it along each dimension."""
        shape = [1 if i in still else n for i, n in enumerate(self.graph.specs[x].shape)]
        if pads:
            self._pads[x] = pads
            shape = [n + before + after for n, (before, after) in zip(shape, pads)]
            self.padded[x] = int(np.prod(shape))
        strides = dense(shape, order)
        offset = sum(before * stride for (before, _), stride in zip(pads, strides))
        self.access[x] = Access(x, offset, tuple([0 if i in still else stride for i, stride in enumerate(strides)]))

    def copied(self, x: Id, order: Sequence[int] = (), pads: Pads = (), where: str = "") -> Id:
        """A copy of x in another order (by default that of its dimensions), or with zeros around it."""
        spec = self.graph.specs[x]
        key = x, tuple(order), pads
        if key not in self._copies:
            y = self._copies[key] = self.graph.new(spec)
            self.place(y, order or range(spec.ndim), pads=pads)
            self.nodes.append(Node(copy, (x,), {}, (y,), where))
        return self._copies[key]

    def view(self, node: Node) -> None:
        """A view's access; of a copy where the strides at hand cannot say it."""
        x = node.inputs[0]
        for source in (self._within.get(x), x):
            if source is not None:
                found = viewed(self.graph, self.access[source], node, self._view)
                if found is not None:
                    break
        if found is None:
            source = self.copied(x, where=node.where)
            found = viewed(self.graph, self.access[source], node, self._view)
        assert found is not None, f"{node.op.name} of a dense array is a view"
        self.access[node.outputs[0]] = found
        self.nodes.append(dataclasses.replace(node, inputs=(source,)))

    def kernel(self, node: Node, is_dense: bool) -> None:
        """A kernel's results in the order of their dimensions, its operands too if it wants them so."""
        if is_dense:
            for x in node.reads:
                if not _is_c_order(self.graph.specs[x], self.access[x]):
                    node = node.renamed({x: self.copied(x, where=node.where)})
        for y in node.outputs:
            self.place(y, range(self.graph.specs[y].ndim))
        self.nodes.append(node)

    def assembly(self, node: Node, places: list[tuple[tuple[int, int, int], ...]]) -> None:
        """Operands put in place: a copy of each, to where it stands in the result; the rest stays 0.

        The result is laid out like its largest operand; dimensions in which that has one element run fastest, so that
        what belongs to one observation stays together.
        """
        (y,) = node.outputs
        largest = max(node.reads, key=lambda x: self.graph.specs[x].size)
        shape = self.graph.specs[largest].shape
        order = [d for d in memory_order(shape, self.access[largest].strides) if shape[d] != 1]
        self.place(y, order + [d for d in range(len(shape)) if shape[d] == 1])
        whole = self.access[y]
        if sum(self.graph.specs[x].size for x in node.reads) < self.graph.specs[y].size:
            self.padded[y] = self.graph.specs[y].size
        for x, slices in zip(node.inputs, places):
            part = self.graph.new(self.graph.specs[x])
            offset = sum(start * stride for (start, _, _), stride in zip(slices, whole.strides))
            strides = tuple([step * stride for (_, _, step), stride in zip(slices, whole.strides)])
            self.access[part] = Access(y, offset, strides)
            self.nodes.append(Node(copy, (x,), {}, (part,), node.where, node.is_gradient))

    def contraction(self, node: Node, nests: list[Contraction], packing: Packing) -> None:
        """A sum of products: its result in the order of its dimensions, its operands as the backend can take them."""
        needed = needed_pads(self.graph, node, nests)
        for x, pads in zip(node.inputs, needed):
            if any(map(any, pads)) and not self._is_within(x, pads):
                self.surround(x, pads, node.where)
        plain = node.inputs
        node = node.renamed(self._within)
        (y,) = node.outputs
        self._place_product(node, nests, packing)
        for _ in range(2):  # each operand may have to be brought in another order
            strides = [flat_strides(nest, node, self.access) for nest in nests]
            wanted = next((w for s in strides if (w := packing(s, self.graph.specs[y].dtype)) is not None), None)
            if wanted is None:
                break
            i, k = wanted
            if k < 0:  # no operand moves along the index: the one that could is the same along it
                k = 0 if any(n == i for subscript in nests[0].a for n, _ in subscript.factors) else 1
            at = (nests[0].a, nests[0].b)[k]
            fastest = next(d for d, subscript in enumerate(at) if any(n == i for n, _ in subscript.factors))
            order = [d for d in range(len(at)) if d != fastest] + [fastest]
            pads = needed[k] if any(map(any, needed[k])) else ()
            packed = self.copied(plain[k], order, pads, node.where)
            inputs = tuple([packed if n == k else x for n, x in enumerate(node.inputs)])
            node = dataclasses.replace(node, inputs=inputs)
        self.nodes.append(node)

    def _place_product(self, node: Node, nests: list[Contraction], packing: Packing) -> None:
        """A place for a sum of products: in the order of its dimensions, or with the last two changed where that suits
        what reads it."""
        (y,) = node.outputs
        shape = self.graph.specs[y].shape
        orders = [tuple(range(len(shape)))]
        if len(shape) > 1:
            orders.append((*orders[0][:-2], len(shape) - 1, len(shape) - 2))

        def merit(order: Sequence[int]) -> tuple[float, ...]:
            self.place(y, order)
            strides = [flat_strides(nest, node, self.access) for nest in nests]
            wanted = [w for s in strides if (w := packing(s, self.graph.specs[y].dtype)) is not None]
            copied = max([self.graph.specs[node.inputs[max(k, 0)]].size for _, k in wanted], default=0)
            return *self._agreement(y, DEPTH), -(copied * 4 // max(self.graph.specs[y].size, 1))

        self.place(y, max(orders, key=merit))

    def _agreement(self, x: Id, depth: int) -> tuple[int, int]:
        """How many elements of placed values, with which x and its views are combined, lie in the order of x, less
        those that do not and those that views must copy; and how many of these copies begin with the dimension that
        is slowest in x."""
        found, begun = 0, 0
        shape = self.graph.specs[x].shape
        for node in self._readers.get(x, []) if depth else []:
            y, seen = node.outputs[0], None
            if node.op.kind is VIEW:
                seen = viewed(self.graph, self.access[x], node, self._view)
                if seen is None:
                    order = [d for d in memory_order(shape, self.access[x].strides) if shape[d] > 1]
                    found -= self.graph.specs[x].size
                    begun += self.graph.specs[x].size * (order[:1] == sorted(order)[:1])
            elif node.op.kind is MAP:
                placed = [z for z in node.reads if z != x and z in self.access and all(self.access[z].strides)]
                mine = memory_order(shape, self.access[x].strides)
                for z in placed:
                    is_same = memory_order(shape, self.access[z].strides) == mine
                    found += self.graph.specs[z].size * (1 if is_same else -1)
                seen = None if placed else self.access[x]
            if seen is not None and y not in self.access:
                self.access[y] = seen
                more = self._agreement(y, depth - 1)
                found, begun = found + more[0], begun + more[1]
                del self.access[y]
        return found, begun

    def _is_within(self, x: Id, pads: Pads) -> bool:
        """Whether x has a copy with at least these zeros around it."""
        around = self._pads.get(self._within.get(x, x), ())
        return bool(around) and all(a >= c and b >= d for (a, b), (c, d) in zip(around, pads))

    def element_wise(self, node: Node) -> None:
        """A MAP or REDUCE result is laid out like its largest operand."""
        node = node.renamed(self._within)
        first = self._seen.setdefault(_work(self.graph, self.access, node), node)
        if first is not node:
            self.names.update(zip(node.outputs, first.outputs))
            return
        (y,) = node.outputs
        still = _still(self.graph, self.access, node) if node.op.kind is MAP else ()
        self.place(y, _largest_order(self.graph, self.access, node), still)
        self.nodes.append(node)

    def surround(self, x: Id, pads: Pads, where: str = "") -> None:
        """Put zeros around a value, for all that read it from here on."""
        self._within[x] = self.copied(x, pads=pads, where=where)


def choose_layout(
    graph: Graph, input_orders: Sequence[Sequence[int]], needs_dense: Callable[[Op], bool], view: Callable[..., Any],
    packing: Packing | None = None,
) -> Layout:  # fmt: skip
    """Give every value its place; insert a `copy` where a kernel or a view cannot work on the strides at hand.

    MAP and REDUCE results are laid out like their largest operand, KERNEL results in the order of their dimensions.
    What is the same along a dimension is computed once (stride 0), and so is what is computed twice from one memory.

    packing : for backends that write contractions themselves. Given the strides of a nest, (size, y, a, b) per index,
              and the type: None if it can work on them, or (index, operand: 0 for a, 1 for b) that must be fastest,
              with -1 for the operand if neither moves along the index.
              What contractions read beyond its bounds gets zeros around it, once.
    """
    graph = graph.with_nodes(graph.nodes)
    nests = {i: found for i, node in enumerate(graph.nodes) if packing and (found := contractions_of(graph, node))}
    pads = _all_pads(graph, nests)
    chooser = _Chooser(graph, view)
    for x, input_order in zip(graph.inputs, input_orders):
        chooser.place(x, input_order)
    for x, data in graph.constants.items():
        chooser.memory[x], chooser.access[x] = _constant(x, data)
    for x in [*graph.inputs, *graph.constants]:
        if x in pads:
            chooser.surround(x, pads[x])
    for i, node in enumerate(graph.nodes):
        node = node.renamed(chooser.names)
        if node.op.kind is VIEW:
            chooser.view(node)
        elif i in nests:
            assert packing is not None
            chooser.contraction(node, nests[i], packing)
        elif packing and node.op.assembly_rule is not None and all(isinstance(x, Id) for x in node.inputs):
            known = [graph.specs[x] for x in node.inputs]
            chooser.assembly(node, node.op.assembly_rule(*known, **node.params))
        elif node.op.kind is KERNEL or len(node.outputs) > 1:
            chooser.kernel(node, needs_dense(node.op))
        else:
            chooser.element_wise(node)
        for y in node.outputs:
            if y in pads and y not in chooser.names:
                chooser.surround(y, pads[y], node.where)
    names = chooser.names
    done = graph.with_nodes(chooser.nodes, outputs=[names.get(y, y) for y in graph.outputs])
    return Layout(done, chooser.access, chooser.memory, chooser.padded)


# contractions ---------------------------------------------------------------------------------------------------
def contractions_of(graph: Graph, node: Node) -> list[Contraction] | None:
    """What a node sums, if it is a sum of products of two arrays and none of its sizes is 0."""
    if node.op.contraction_rule is None or not all(isinstance(x, Id) for x in node.inputs):
        return None
    specs = [graph.specs[x] for x in node.inputs]
    if any(not spec.size or spec.dtype not in (SINGLE, DOUBLE) for spec in specs):
        return None
    return list(node.op.contraction_rule(*specs, **node.params))


def needed_pads(graph: Graph, node: Node, nests: list[Contraction]) -> tuple[Pads, Pads]:
    """How far the nests reach beyond the two operands, along each dimension."""
    found = []
    for k in (0, 1):
        shape = graph.specs[node.inputs[k]].shape
        pads = [(0, 0)] * len(shape)
        for nest in nests:
            if 0 in nest.sizes:
                continue
            for d, subscript in enumerate((nest.a, nest.b)[k]):
                low, high = subscript.bounds(nest.sizes)
                pads[d] = max(pads[d][0], -low), max(pads[d][1], high - shape[d] + 1)
        found.append(tuple(pads))
    return found[0], found[1]


def _all_pads(graph: Graph, nests: dict[int, list[Contraction]]) -> dict[Id, Pads]:
    """For each value that contractions read beyond its bounds, the zeros that it needs for all of them."""
    pads: dict[Id, Pads] = {}
    for i, found in nests.items():
        for x, needed in zip(graph.nodes[i].inputs, needed_pads(graph, graph.nodes[i], found)):
            if x in pads:
                pads[x] = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(pads[x], needed))
            else:
                pads[x] = needed
    return {x: needed for x, needed in pads.items() if any(map(any, needed))}


def flat_strides(nest: Contraction, node: Node, access: dict[Id, Access]) -> list[tuple[int, int, int, int]]:
    """(size, stride of y, of a, of b) per index of a nest, in elements of memory."""
    columns = []
    for at, x in ((nest.y, node.outputs[0]), (nest.a, node.inputs[0]), (nest.b, node.inputs[1])):
        strides = [0] * len(nest.sizes)
        for subscript, stride in zip(at, access[x].strides):
            for i, factor in subscript.factors:
                strides[i] += factor * stride
        columns.append(strides)
    return list(zip(nest.sizes, *columns))


def flat_offset(at: Sequence[Any], a: Access) -> int:
    """Where a nest begins in an operand's buffer."""
    return a.offset + sum(subscript.start * stride for subscript, stride in zip(at, a.strides))


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


def viewed(graph: Graph, a: Access, node: Node, view: Callable[..., Any]) -> Access | None:
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


