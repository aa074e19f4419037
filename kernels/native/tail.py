"""What is done with the finished values of a contraction while they are in registers: a loop, one value per iteration.

The loop's dimensions are the kept dimensions of the contraction, the vectors' last; its steps take the value where they
would load it. What does not move within a register block is computed once per block. Sums along everything but the
vectors' dimension are added up per block and then to their cells in memory, which are in double.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import words
from .nest import SIZES, SUM, Lanes, wide


class Tail(Lanes):
    """A loop over the values of a contraction, for one variant of its code.

    start  : indices (SSA values or numbers) at which the contraction's own indices begin, by dimension of the loop.
    begins : an i1: whether the cells of sums are to be cleared first.
    """

    def __init__(
        self, f: Any, loop: Any, source: int, address: Callable[[Any, bool], str], lanes: int, start: dict[int, Any],
        begins: str | None,
    ) -> None:  # fmt: skip
        super().__init__(f, lanes)
        self.loop, self.source, self._address, self.start = loop, source, address, start
        self.v = len(loop.sizes) - 1
        self.sums = [s for s in loop.stores if s.combine and not all(s.access.strides)]
        self.plain = [s for s in loop.stores if s not in self.sums]
        for s in self.sums if begins is not None else []:
            with f.when(begins):
                self._clear(s)

    def _clear(self, s: Any) -> None:
        f, size = self.f, SIZES[s.dtype]
        pointer = f.at(self._address(s.access.buffer, True), s.access.offset * size)
        kind, step = self.type(s.dtype, self.lanes), s.access.strides[self.v] * size
        for start in range(0, self.loop.sizes[self.v], self.lanes):
            rest = min(self.lanes, self.loop.sizes[self.v] - start)
            mask = None if rest == self.lanes else f.mask(self.lanes, rest)
            self.save(f.constant(kind, s.identity), s.dtype, s.dtype, f.at(pointer, start * step), step, mask)

    def begin(self, index: dict[int, Any], within: set[int], vectors: list[Any]) -> None:
        """A register block begins: its first indices, the dimensions that vary within it, a mask or None per vector."""
        f, loop = self.f, self.loop
        self.vectors = vectors
        self.pointers: dict[int, str] = {}
        steps = [s for i, s in enumerate(loop.steps) if s.access is not None and i != self.source]
        loads = [(s.access, s.dtype, False) for s in steps]
        stores = [(s.access, s.dtype, True) for s in loop.stores]
        for a, dtype, is_stored in loads + stores:
            pointer = f.at(self._address(a.buffer, is_stored), a.offset * SIZES[dtype])
            for d, stride in enumerate(a.strides):
                at = f.add(index.get(d, 0), self.start.get(d, 0))
                pointer = f.at(pointer, f.mul(at, stride * SIZES[dtype]))
            self.pointers[id(a)] = pointer
        self.varies: list[bool] = []
        self.is_vector: list[bool] = []
        for i, step in enumerate(loop.steps):
            if i == self.source:
                self.varies.append(True)
                self.is_vector.append(True)
            elif step.access is not None:
                self.varies.append(any(step.access.strides[d] for d in within))
                self.is_vector.append(step.access.strides[self.v] != 0)
            else:
                args = [x for x in step.args if type(x).__name__ == "Temp"]
                self.varies.append(any(self.varies[x] for x in args))
                self.is_vector.append(any(self.is_vector[x] for x in args))
        self.values: dict[tuple[int, int], str] = {}
        for i, step in enumerate(loop.steps):
            if not self.varies[i]:
                for k in range(len(vectors)) if self.is_vector[i] else [-1]:
                    self._compute(i, step, k, {})
        self.totals = {}
        for s in self.sums:
            dtype = self._block_type(s)
            kind = self.type(dtype, self.lanes)
            for k in range(len(vectors)):
                self.totals[id(s), k] = f.var(kind, self.identity(s, dtype))

    def _block_type(self, s: Any) -> str:
        """The type in which a block adds up: a sum has so few terms there that its own type will do."""
        source = self.loop.steps[s.source].dtype
        return str(source) if s.combine == SUM else wide(s, source)

    def take(self, value: str, offsets: dict[int, int], k: int) -> None:
        """The k-th vector of a row that stands so far from the block's first, along each dimension."""
        f, loop = self.f, self.loop
        self.values[self.source, k] = value
        for i, step in enumerate(loop.steps):
            if self.varies[i] and i != self.source:
                self._compute(i, step, k if self.is_vector[i] else -1, offsets)
        for s in self.plain:
            a, dtype = s.access, loop.steps[s.source].dtype
            size = SIZES[s.dtype]
            at = f.at(self.pointers[id(a)], self._distance(a, offsets, k) * size)
            self.save(self._vector(int(s.source), k), dtype, s.dtype, at, a.strides[self.v] * size, self.vectors[k])
        for s in self.sums:
            old = loop.steps[s.source].dtype
            dtype = self._block_type(s)
            kind = self.type(dtype, self.lanes)
            value = f.convert(self._vector(int(s.source), k), self.type(old, self.lanes), kind)
            total = self.totals[id(s), k]
            f.put(kind, total, self.combined(s, dtype, f.get(kind, total), value, self.lanes))

    def end(self) -> None:
        """A register block ends: its sums go to their cells."""
        f = self.f
        for s in self.sums:
            dtype = wide(s, self.loop.steps[s.source].dtype)
            kind, step = self.type(dtype, self.lanes), s.access.strides[self.v] * SIZES[s.dtype]
            for k, mask in enumerate(self.vectors):
                at = f.at(self.pointers[id(s.access)], k * self.lanes * step)
                old = f.convert(self.load(s.dtype, at, step, mask), self.type(s.dtype, self.lanes), kind)
                block = self.type(self._block_type(s), self.lanes)
                total = f.convert(f.get(block, self.totals[id(s), k]), block, kind)
                value = self.combined(s, dtype, old, total, self.lanes)
                self.save(value, dtype, s.dtype, at, step, mask)

    def _distance(self, access: Any, offsets: dict[int, int], k: int) -> int:
        """Elements from the block's first."""
        return sum(access.strides[d] * n for d, n in offsets.items()) + k * self.lanes * access.strides[self.v]

    def _vector(self, i: int, k: int) -> str:
        if self.is_vector[i]:
            return self.values[i, k]
        return str(self.f.splat(self.type(self.loop.steps[i].dtype, self.lanes), self.values[i, -1]))

    def _compute(self, i: int, step: Any, k: int, offsets: dict[int, int]) -> None:
        f, size = self.f, SIZES[step.dtype]
        if step.access is not None:
            at = f.at(self.pointers[id(step.access)], self._distance(step.access, offsets, max(k, 0)) * size)
            if k < 0:
                self.values[i, k] = self.load_one(step.dtype, at)
            else:
                self.values[i, k] = self.load(step.dtype, at, step.access.strides[self.v] * size, self.vectors[k])
            return
        lanes = 1 if k < 0 else self.lanes
        steps = self.loop.steps
        args = [
            x if type(x).__name__ != "Temp" else (self.values[x, -1] if k < 0 else self._vector(x, k), steps[x].dtype)
            for x in step.args
        ]
        self.values[i, k] = words.evaluate(f, step.text, args, lanes, step.dtype, step.literal_dtype)
