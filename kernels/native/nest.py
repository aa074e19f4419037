"""Loops: one iteration space, scalars computed from loads, results stored or combined along dimensions.

A loop (see minidl's backends.loop) has sizes, steps and stores. One dimension is a range [lo, hi) known when the code
runs, all others are known now. Vectors run along the last dimension. What does not move along a loop is computed
outside of it; what does not move along the vectors is computed once, as a scalar.

Reductions accumulate in registers, over the loops inside the last dimension that is kept: sums of single precision
over the innermost loop, of at most BLOCK turns, in single, all others and all products in double. Where a dimension
outside is reduced too, the cell in memory is combined with; `first` is the index of the range with which a new cell
begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from . import words

LLVM = {"float32": "float", "float64": "double", "bool": "i8", "int64": "i64", "uint64": "i64"}
SIZES = {"float32": 4, "float64": 8, "bool": 1, "int64": 8, "uint64": 8}
UNROLLED = 4  # vectors per turn
BLOCK = 64  # terms of a sum in single precision
SUM = "({0} + {1})"
WIDENED = ("({0} + {1})", "({0} * {1})")  # combined in double

Vectors = list[tuple[int, Any]]  # (number of the vector within a turn, its mask or None)


def is_supported(loop: Any) -> bool:
    """Whether this template can write the loop."""
    for step in loop.steps:
        if step.dtype not in SIZES or (step.access is None and not words.is_supported(step.text)):
            return False
    return all(s.dtype in SIZES and (not s.combine or words.is_supported(s.combine)) for s in loop.stores)


def lanes_of(f: Any, loop: Any) -> int:
    """Elements per vector: a register of the narrowest numbers in the loop."""
    found = [SIZES[s.dtype] for s in loop.steps if s.dtype != "bool"]
    return int(f.lanes(min(found, default=8)))


class Lanes:
    """Vectors of so many lanes, between registers and memory."""

    def __init__(self, f: Any, lanes: int) -> None:
        self.f, self.lanes = f, lanes

    def type(self, dtype: str, lanes: int) -> str:
        """The LLVM type of values in flight; truths are i1."""
        element = "i1" if dtype == "bool" else LLVM[dtype]
        return element if lanes == 1 else f"<{lanes} x {element}>"

    def load(self, dtype: str, at: str, step: int, mask: Any) -> str:
        """A vector of elements `step` bytes apart."""
        f, kind = self.f, f"<{self.lanes} x {LLVM[dtype]}>"
        if step != SIZES[dtype]:
            value = f.gather(kind, at, step, mask)
        else:
            value = f.load(kind, at) if mask is None else f.masked_load(kind, at, mask)
        return str(f.convert(value, kind, self.type("bool", self.lanes)) if dtype == "bool" else value)

    def load_one(self, dtype: str, at: str) -> str:
        """A scalar."""
        value = self.f.load(LLVM[dtype], at)
        return str(self.f.convert(value, "i8", "i1") if dtype == "bool" else value)

    def save(self, value: str, old: str, new: str, at: str, step: int, mask: Any) -> None:
        """A vector of type `old` to elements of type `new`, `step` bytes apart."""
        f, kind = self.f, f"<{self.lanes} x {LLVM[new]}>"
        value = self.in_memory(value, old, new, self.lanes)
        if step != SIZES[new]:
            f.scatter(kind, value, at, step, mask)
        elif mask is None:
            f.store(kind, value, at)
        else:
            f.masked_store(kind, value, at, mask)

    def in_memory(self, value: str, old: str, new: str, lanes: int) -> str:
        """A value as it lies in memory: truths as bytes."""
        value = self.f.convert(value, self.type(old, lanes), self.type(new, lanes))
        if new == "bool":
            return str(self.f.convert(value, self.type("bool", lanes), "i8" if lanes == 1 else f"<{lanes} x i8>"))
        return str(value)

    def identity(self, store: Any, dtype: str) -> str:
        """What combining with leaves a store's numbers alone, in every lane."""
        if dtype == "bool":
            return "<" + ", ".join([f"i1 {'true' if store.identity else 'false'}"] * self.lanes) + ">"
        return str(self.f.constant(self.type(dtype, self.lanes), store.identity))

    def combined(self, store: Any, dtype: str, a: str, b: str, lanes: int) -> str:
        """Two values of a combining store, combined."""
        return str(words.evaluate(self.f, store.combine, [(a, dtype), (b, dtype)], lanes, dtype, dtype))


def wide(store: Any, source: str) -> str:
    """The type in which a combining store adds up a source of some type."""
    return "float64" if store.combine in WIDENED and source != "bool" else source


class Cell(NamedTuple):
    """A reduction: its store, inside how many loops it accumulates, and in what type."""

    store: Any
    level: int
    dtype: str
    is_along: bool  # whether the vectors' dimension is kept
    is_narrow: bool  # whether the innermost loop adds up in single precision
    totals: dict[int, str]
    block: dict[int, str]  # the innermost loop's totals


def write(
    f: Any, loop: Any, lo: Any, hi: Any, address: Callable[[Any, bool], str], first: Any = 0, dim: int = 0
) -> None:  # fmt: skip
    """Write the loop for the range [lo, hi) of dimension `dim`.

    address : (buffer, whether it is stored to) -> the pointer to its element 0, as an SSA value.
    first   : the index at which cells along which the range is reduced begin anew.
    """
    for part in _passes(loop):
        _Nest(f, part, lo, hi, address, first, dim).write()


class _Nest(Lanes):
    def __init__(
        self, f: Any, loop: Any, lo: Any, hi: Any, address: Callable[[Any, bool], str], first: Any, dim: int
    ) -> None:  # fmt: skip
        super().__init__(f, lanes_of(f, loop))
        loop = _blocked(loop, dim)
        self.loop, self.lo, self.hi, self.first, self.range = loop, lo, hi, first, dim
        self.rank = len(loop.sizes)
        self.v = self.rank - 1
        loads = [(s.access, SIZES[s.dtype]) for s in loop.steps if s.access is not None]
        stores = [(s.access, SIZES[s.dtype]) for s in loop.stores]
        self.accesses = loads + stores
        self.pointers = {id(a): f.at(address(a.buffer, False), a.offset * size) for a, size in loads}
        self.pointers.update({id(a): f.at(address(a.buffer, True), a.offset * size) for a, size in stores})
        combining = [s for s in loop.stores if s.combine and not all(s.access.strides)]
        self.order = self._order(combining)
        self.place = {d: k for k, d in enumerate(self.order)}
        self.depth, self.is_vector = self._depths()
        self.cells = [self._cell(s) for s in combining]
        self.plain = [s for s in loop.stores if not any(s is t for t in combining)]
        self.values: dict[tuple[int, int], str] = {}  # (step, vector; -1: scalar)
        self.index: dict[int, Any] = {}

    def write(self) -> None:
        self._level(0, self.pointers, [])

    # order of loops, depth of steps ---------------------------------------------------------------------------------
    def _order(self, combining: list[Any]) -> list[int]:
        """The dimensions from the outermost loop to the innermost; farther inside those along which more is reduced.

        Otherwise the vectors go outside if something moves along them alone: it is then loaded once.
        """
        dims = list(range(self.rank))
        if combining:
            return sorted(dims, key=lambda d: sum(s.access.strides[d] == 0 for s in combining))
        is_hoisting = any(
            s.access is not None and [d for d in dims if s.access.strides[d]] == [self.v] for s in self.loop.steps
        )
        return [0, self.v, *dims[1:-1]] if is_hoisting and self.rank > 2 else dims

    def _depths(self) -> tuple[list[int], list[bool]]:
        """For each step, inside how many loops it stands, and whether it moves along the vectors."""
        depths: list[int] = []
        moves: list[bool] = []
        for step in self.loop.steps:
            if step.access is not None:
                strides = step.access.strides
                depths.append(max([self.place[d] + 1 for d, x in enumerate(strides) if x], default=0))
                moves.append(self.rank > 0 and strides[self.v] != 0)
            else:
                args = [x for x in step.args if _is_temp(x)]
                depths.append(max([depths[x] for x in args], default=0))
                moves.append(any(moves[x] for x in args))
        return depths, moves

    def _cell(self, s: Any) -> Cell:
        level = max([self.place[d] + 1 for d, x in enumerate(s.access.strides) if x], default=0)
        dtype = wide(s, self.loop.steps[s.source].dtype)
        inner = self.order[-1]
        turns = self.loop.sizes[inner] if inner != self.v else self.loop.sizes[inner] // (UNROLLED * self.lanes)
        is_short = inner != self.range and turns <= BLOCK and level < len(self.order)
        is_narrow = is_short and s.combine == SUM and self.loop.steps[s.source].dtype == "float32"
        return Cell(s, level, dtype, s.access.strides[self.v] != 0, is_narrow, {}, {})

    # the loops ------------------------------------------------------------------------------------------------------
    def _level(self, k: int, pointers: dict[int, str], vectors: Vectors) -> None:
        """What stands inside k loops: steps, accumulators, the next loop, results."""
        for i, step in enumerate(self.loop.steps):
            if self.depth[i] == k:
                self._compute(i, step, pointers, vectors)
        mine = [c for c in self.cells if c.level == k]
        for c in mine:
            self._open(c, vectors)
        if k == len(self.order):
            for c in self.cells:
                self._accumulate(c, vectors)
            for s in self.plain:
                self._put(s, pointers, vectors)
        else:
            narrow = [c for c in self.cells if c.is_narrow] if k + 1 == len(self.order) else []
            for c in narrow:
                self._open_block(c)
            d = self.order[k]
            if d == self.v:
                self._vector_loops(k, pointers)
            else:
                lo, hi = (self.lo, self.hi) if d == self.range else (0, self.loop.sizes[d])
                with self.f.loop(lo, hi, is_certain=d != self.range) as i:
                    self.index[d] = i
                    self._level(k + 1, self._moved(pointers, d, i), vectors)
            for c in narrow:
                self._close_block(c)
        for c in mine:
            self._close(c, pointers, vectors)

    def _vector_loops(self, k: int, pointers: dict[int, str]) -> None:
        """The loop along the vectors: whole turns of several vectors, then what is left over."""
        f, lanes, d = self.f, self.lanes, self.v

        def turn(i: Any, masks: list[Any]) -> None:
            self.index[d] = i
            self._level(k + 1, self._moved(pointers, d, i), list(enumerate(masks)))

        lo, hi = (self.lo, self.hi) if d == self.range else (0, self.loop.sizes[d])
        if not (isinstance(lo, int) and isinstance(hi, int)):
            step = UNROLLED * lanes
            whole = f.add(lo, f.mul(f.div(f.sub(hi, lo), step), step))
            with f.loop(lo, whole, step, is_certain=False) as i:
                turn(i, [None] * UNROLLED)
            with f.loop(whole, hi, lanes, is_certain=False) as i:
                turn(i, [f.mask(lanes, f.sub(hi, i))])
            return
        vectors = (hi - lo) // lanes
        count = next((n for n in (4, 3, 2) if vectors % n == 0), UNROLLED if vectors > UNROLLED else 1)
        step = count * lanes
        whole = lo + vectors // count * step
        if whole > lo:
            with f.loop(lo, whole, step) as i:
                turn(i, [None] * count)
        rest = hi - whole
        if rest:
            masks: list[Any] = [None] * -(-rest // lanes)
            if rest % lanes:
                masks[-1] = f.mask(lanes, rest % lanes)
            turn(whole, masks)

    def _moved(self, pointers: dict[int, str], d: int, index: Any) -> dict[int, str]:
        """The addresses after a move along one dimension."""
        f, found = self.f, dict(pointers)
        done: dict[tuple[str, int], str] = {}
        for a, size in self.accesses:
            stride = a.strides[d] * size
            if stride:
                key = pointers[id(a)], stride
                if key not in done:
                    done[key] = f.at(pointers[id(a)], f.mul(index, stride))
                found[id(a)] = done[key]
        return found

    # steps and stores -----------------------------------------------------------------------------------------------
    def _compute(self, i: int, step: Any, pointers: dict[int, str], vectors: Vectors) -> None:
        f, lanes = self.f, self.lanes
        if not self.is_vector[i]:
            if step.access is None:
                args = [(self.values[x, -1], self.loop.steps[x].dtype) if _is_temp(x) else x for x in step.args]
                self.values[i, -1] = words.evaluate(f, step.text, args, 1, step.dtype, step.literal_dtype)
            else:
                self.values[i, -1] = self.load_one(step.dtype, pointers[id(step.access)])
            return
        for q, mask in vectors:
            if step.access is None:
                args = [(self._value(x, q), self.loop.steps[x].dtype) if _is_temp(x) else x for x in step.args]
                self.values[i, q] = words.evaluate(f, step.text, args, lanes, step.dtype, step.literal_dtype)
            else:
                self.values[i, q] = self._load(step.dtype, step.access, pointers, q, mask)

    def _value(self, i: int, q: int) -> str:
        """A step's value as a vector."""
        if self.is_vector[i]:
            return self.values[i, q]
        return str(self.f.splat(self.type(self.loop.steps[i].dtype, self.lanes), self.values[i, -1]))

    def _load(self, dtype: str, access: Any, pointers: dict[int, str], q: int, mask: Any) -> str:
        step = access.strides[self.v] * SIZES[dtype]
        return self.load(dtype, self.f.at(pointers[id(access)], q * self.lanes * step), step, mask)

    def _save(self, value: str, dtype: str, s: Any, pointers: dict[int, str], q: int, mask: Any) -> None:
        step = s.access.strides[self.v] * SIZES[s.dtype]
        self.save(value, dtype, s.dtype, self.f.at(pointers[id(s.access)], q * self.lanes * step), step, mask)

    def _put(self, s: Any, pointers: dict[int, str], vectors: Vectors) -> None:
        source, dtype = int(s.source), self.loop.steps[s.source].dtype
        if self.rank and s.access.strides[self.v]:
            for q, mask in vectors:
                self._save(self._value(source, q), dtype, s, pointers, q, mask)
            return
        if self.is_vector[source]:  # a dimension of one element
            value = self.f.lane(self.type(dtype, self.lanes), self.values[source, 0], 0)
        else:
            value = self.values[source, -1]
        self.f.store(LLVM[s.dtype], self.in_memory(value, dtype, s.dtype, 1), pointers[id(s.access)])

    # reductions -----------------------------------------------------------------------------------------------------
    def _open(self, c: Cell, vectors: Vectors) -> None:
        kind = self.type(c.dtype, self.lanes)
        for q in [q for q, _ in vectors] if c.is_along else range(UNROLLED):
            c.totals[q] = self.f.var(kind, self.identity(c.store, c.dtype))

    def _open_block(self, c: Cell) -> None:
        kind = self.type("float32", self.lanes)
        for q in c.totals:
            c.block[q] = self.f.var(kind, self.f.constant(kind, 0.0))

    def _close_block(self, c: Cell) -> None:
        f = self.f
        narrow, kind = self.type("float32", self.lanes), self.type(c.dtype, self.lanes)
        for q, total in c.totals.items():
            value = f.convert(f.get(narrow, c.block[q]), narrow, kind)
            f.put(kind, total, f.fadd(kind, f.get(kind, total), value))

    def _accumulate(self, c: Cell, vectors: Vectors) -> None:
        f, source = self.f, int(c.store.source)
        if c.is_narrow:
            kind = self.type("float32", self.lanes)
            for q, mask in vectors:
                value = self._value(source, q)
                if mask is not None and not c.is_along:
                    value = f.select(kind, mask, value, f.constant(kind, 0.0))
                f.put(kind, c.block[q], f.fadd(kind, f.get(kind, c.block[q]), value))
            return
        kind = self.type(c.dtype, self.lanes)
        for q, mask in vectors:
            value = f.convert(self._value(source, q), self.type(self.loop.steps[source].dtype, self.lanes), kind)
            if mask is not None and not c.is_along:
                value = f.select(kind, mask, value, self.identity(c.store, c.dtype))
            f.put(kind, c.totals[q], self.combined(c.store, c.dtype, f.get(kind, c.totals[q]), value, self.lanes))

    def _close(self, c: Cell, pointers: dict[int, str], vectors: Vectors) -> None:
        """Accumulators to the cell in memory."""
        f, s, lanes = self.f, c.store, self.lanes
        keeps = self._is_begun(c)
        kind = self.type(c.dtype, lanes)
        if c.is_along:
            for q, mask in vectors:
                value = f.get(kind, c.totals[q])
                if keeps is not None:
                    old = f.convert(self._load(s.dtype, s.access, pointers, q, mask), self.type(s.dtype, lanes), kind)
                    both = self.combined(s, c.dtype, old, value, lanes)
                    value = f.select(kind, f.splat(f"<{lanes} x i1>", keeps), both, value)
                self._save(value, c.dtype, s, pointers, q, mask)
            return
        value = f.get(kind, c.totals[0])
        for q in range(1, UNROLLED):
            value = self.combined(c.store, c.dtype, value, f.get(kind, c.totals[q]), lanes)
        value, at = self._across(c, value), pointers[id(s.access)]
        if keeps is not None:
            old = f.convert(self.load_one(s.dtype, at), self.type(s.dtype, 1), self.type(c.dtype, 1))
            both = self.combined(s, c.dtype, old, value, 1)
            value = f.select(self.type(c.dtype, 1), keeps, both, value)
        f.store(LLVM[s.dtype], self.in_memory(value, c.dtype, s.dtype, 1), at)

    def _across(self, c: Cell, value: str) -> str:
        """All lanes combined: halves, halves of these, ..."""
        f, lanes = self.f, self.lanes
        while lanes > 1:
            kind, lanes = self.type(c.dtype, lanes), lanes // 2
            low, high = (f.part(kind, value, start, lanes) for start in (0, lanes))
            value = self.combined(c.store, c.dtype, low, high, lanes)
        return value

    def _is_begun(self, c: Cell) -> str | None:
        """An i1: whether the cell holds something already; None: it never does."""
        f, found = self.f, []
        for d in self.order:
            if c.store.access.strides[d] == 0:
                if self.place[d] < c.level:
                    found.append(f.op(f"icmp ne i64 {self.index[d]}, {self.first if d == self.range else 0}"))
                elif d == self.range and not isinstance(self.lo, int):
                    found.append(f.op(f"icmp ne i64 {self.lo}, {self.first}"))
        if not found:
            return None
        begun = found[0]
        for other in found[1:]:
            begun = f.op(f"or i1 {begun}, {other}")
        return str(begun)


def _passes(loop: Any) -> list[Any]:
    """The loop once, or once for each of its reductions that do not fit into each other: along dimensions of which
    neither has all of the other's. One of them would have to add up in memory."""
    chains: list[list[tuple[set[int], Any]]] = [[]]
    for s in loop.stores:
        reduced = {d for d, stride in enumerate(s.access.strides) if s.combine and not stride}
        fits = [chain for chain in chains if all(r <= reduced or r >= reduced for r, _ in chain)]
        if not fits:
            fits = [[]]
            chains += fits
        fits[0].append((reduced, s))
    return [dataclasses.replace(loop, stores=[s for _, s in chain]) for chain in chains]


def _blocked(loop: Any, dim: int) -> Any:
    """The loop with its innermost reduced dimension, if that is long, cut into blocks for sums in single precision."""
    sums = [s for s in loop.stores if s.combine == SUM and loop.steps[s.source].dtype == "float32"]
    v = len(loop.sizes) - 1
    reduced = [d for d in range(v) if d != dim and any(not s.access.strides[d] for s in sums if s.access.strides[v])]
    if not reduced or loop.sizes[reduced[-1]] <= BLOCK or reduced[-1] < dim:
        return loop
    d = reduced[-1]
    size = next((n for n in range(BLOCK, 7, -1) if loop.sizes[d] % n == 0), 0)
    if not size:
        return loop

    def cut(a: Any) -> Any:
        strides = (*a.strides[:d], a.strides[d] * size, *a.strides[d:])
        return dataclasses.replace(a, strides=strides)

    steps = [s if s.access is None else dataclasses.replace(s, access=cut(s.access)) for s in loop.steps]
    stores = [dataclasses.replace(s, access=cut(s.access)) for s in loop.stores]
    sizes = (*loop.sizes[:d], loop.sizes[d] // size, size, *loop.sizes[d + 1 :])
    return dataclasses.replace(loop, sizes=sizes, steps=steps, stores=stores)


def _is_temp(x: Any) -> bool:
    return type(x).__name__ == "Temp"
