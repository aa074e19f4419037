"""Contract: a sum of products as a task: nests of flat strides, for backends that write them as code."""

from __future__ import annotations

import dataclasses
import math

from minidl.core.contraction import Contraction
from minidl.engine.graph import Id, Node
from minidl.engine.layout import Layout, flat_offset, flat_strides


@dataclasses.dataclass
class Part:
    """One nest: (size, stride of y, of a, of b) per index, and where each operand begins, in elements."""

    dims: list[tuple[int, int, int, int]]
    offsets: tuple[int, int, int]


@dataclasses.dataclass
class Contract:
    """y = a * b, summed over what y does not have; each part makes a part of y."""

    name: str
    dtype: str
    y: Id
    a: Id
    b: Id
    parts: list[Part]
    where: list[str]

    @property
    def reads(self) -> set[Id]:
        return {self.a, self.b}

    @property
    def writes(self) -> list[Id]:
        return [self.y]

    @property
    def sizes(self) -> list[int]:
        """Sizes of the first part's indices."""
        return [d[0] for d in self.parts[0].dims]

    @property
    def flop(self) -> int:
        """Operations: a multiplication and an addition per step."""
        return sum(2 * math.prod(d[0] for d in part.dims) for part in self.parts)

    def has_index(self, i: int) -> bool:
        """Whether index i has one size in all parts."""
        return len({part.dims[i][0] for part in self.parts}) == 1

    def _columns(self, buffer: Id) -> list[int]:
        return [k for k, x in enumerate((self.y, self.a, self.b)) if x == buffer]

    def moves(self, buffer: Id, i: int) -> bool:
        """Whether an operand moves along index i."""
        return any(part.dims[i][1 + k] != 0 for part in self.parts for k in self._columns(buffer))

    def reach_of(self, buffer: Id, i: int) -> int:
        """The stride of a buffer along index i, if what belongs to one index keeps within it; otherwise 0."""
        found = set()
        for part in self.parts:
            for k in self._columns(buffer):
                sides = [(d[0], d[1 + k]) for n, d in enumerate(part.dims) if n != i]
                if k == 0 or all(n > 0 for n, _ in sides):
                    found.add(contained(part.offsets[k], part.dims[i][1 + k], sides))
        return found.pop() if len(found) == 1 else 0

    def is_row(self, i: int) -> bool:
        """Whether index i moves along y and one operand only."""
        return all(d[i][1] and bool(d[i][2]) != bool(d[i][3]) for d in [part.dims for part in self.parts])

    def rows(self, i: int) -> int:
        """For an index that is a row: how many rows there are for each of its values."""
        found = []
        for part in self.parts:
            k = 2 if part.dims[i][2] else 3
            others = [d for n, d in enumerate(part.dims) if n != i]
            found.append(math.prod([d[0] for d in others if d[1] and d[k] and not d[5 - k]]))
        return min(found)

    def needs_rows(self, i: int) -> bool:
        """Whether register blocks need several indices of the range: one has too few rows, or terms, of its own."""
        if self.is_row(i) and self.rows(i) < 4:
            return True
        for part in self.parts:
            if not part.dims[i][1] and math.prod([d[0] for n, d in enumerate(part.dims) if n != i and not d[1]]) < 8:
                return True
        return False


def contained(offset: int, stride: int, sides: list[tuple[int, int]]) -> int:
    """`stride` if all elements offset + i * s for i below n, (n, s) in sides, lie in [0, stride); otherwise 0."""
    low = offset + sum(min(0, (n - 1) * s) for n, s in sides)
    high = offset + sum(max(0, (n - 1) * s) for n, s in sides)
    return stride if low >= 0 and high < stride else 0


def contract_of(layout: Layout, node: Node, nests: list[Contraction]) -> Contract:
    """A node that sums products, in terms of memory."""
    access = layout.access
    y, (a, b) = node.outputs[0], node.inputs
    parts = []
    for nest in nests:
        offsets = tuple(flat_offset(at, access[x]) for at, x in ((nest.y, y), (nest.a, a), (nest.b, b)))
        parts.append(Part(flat_strides(nest, node, access), offsets))  # type: ignore[arg-type]
    dtype, where = layout.graph.specs[y].dtype.name, [node.where] if node.where else []
    return Contract(node.op.name, dtype, access[y].buffer, access[a].buffer, access[b].buffer, parts, where)
