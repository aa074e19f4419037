"""Contractions: y[i] = sum over r of a[i, r] * b[i, r], all three with affine subscripts.

Matrix products and convolutions in all three directions are of this kind; what they differ in is strides. Each
dimension of the loop nest is a `Dim`: its size and how far each operand moves along it, in elements. A dimension along
which y does not move is summed over.

form        vector dimension                               per step of the sum
broadcast   one of y where y and b have stride 1           P numbers of a, Q vectors of b: P * Q accumulators
each        one where y, a and b all have stride 1         P vectors of a and of b
dot         a summed one where a and b have stride 1       P vectors of a, Q vectors of b: P * Q accumulators

The P rows of a register block are places where b stands still (output pixels; in a weight gradient the taps and
channels of the input); P * Q accumulators, Q vectors of b and one number of a fill the registers, so that each step
does as many multiply-adds as the processor can start.
Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .tail import Tail

ELEMENTS = {"float": 4, "double": 8}
UNROLLED = 24  # multiply-adds in the innermost loop's body for 32 registers; in longer ones LLVM keeps too much in them
SPARE = 2  # registers that a block leaves where multiply-adds cannot read memory: otherwise LLVM moves and spills
DOT_COST, PACK_COST = 6.0, 1.75  # cycles per sum of lanes, per element copied to another order


class Dim(NamedTuple):
    """A dimension of the nest: its size, and the strides of y, a and b along it. y = 0: summed over."""

    size: int
    y: int
    a: int
    b: int

    @property
    def swapped(self) -> Dim:
        return Dim(self.size, self.y, self.b, self.a)


class Form(NamedTuple):
    """How to vectorise: the form's name, the number of the vector dimension, whether a and b change places."""

    name: str
    vector: int
    is_swapped: bool


def form_of(dims: Sequence[Dim], lanes: int) -> Form | None:
    """The best form for these strides; None if an operand should be copied to another order first."""
    has_neighbours = any(d.y == 1 and d.size > 1 for d in dims)
    found: list[tuple[float, Form]] = []
    for is_swapped in (False, True):
        seen = [d.swapped for d in dims] if is_swapped else list(dims)
        for i, d in enumerate(seen):
            if d.size > 1 and d.y == 1 and d.b == 1 and d.a in (0, 1):
                waste = -(-d.size // lanes) * lanes / d.size
                found.append((waste, Form("each" if d.a else "broadcast", i, is_swapped)))
    if found:
        return min(found)[1]
    packed = packed_dim(dims)
    sums = math.prod([d.size for d in dims if d.y])
    for i, d in enumerate(dims):
        if d.y == 0 and d.a == 1 and d.b == 1 and (d.size >= lanes or not has_neighbours):
            cells = math.prod([e.size for e in dims if packed and (e.a if packed[1] else e.b)])
            if packed is None or DOT_COST * sums < PACK_COST * cells:
                return Form("dot", i, False)
    return None


def packed_dim(dims: Sequence[Dim]) -> tuple[int, bool] | None:
    """(the dimension that must become the fastest of an operand, whether of a instead of b); None: no way to vectorise.

    It is one along which y has stride 1.
    """
    for i, d in enumerate(dims):
        if d.size > 1 and d.y == 1 and (d.b == 0) != (d.a == 0):
            return i, d.b == 0
    return None


def merged(dims: Sequence[Dim]) -> list[Dim]:
    """Without dimensions of size 1, and with neighbours joined where all strides allow it."""
    found: list[Dim] = []
    for d in dims:
        if d.size == 1:
            continue
        if found:
            last = found[-1]
            if (last.y, last.a, last.b) == (d.y * d.size, d.a * d.size, d.b * d.size) and (last.y == 0) == (d.y == 0):
                found[-1] = Dim(last.size * d.size, d.y, d.a, d.b)
                continue
        found.append(d)
    return found


class Block(NamedTuple):
    """A register block: rows along the last and the last but one row dimension, and vectors."""

    inner: int
    outer: int
    vectors: int


@functools.lru_cache(maxsize=4096)
def best_block(inner: int, outer: int, vectors: int, steps: int, registers: int, each: bool, dot: bool) -> Block:
    """The block with the fewest cycles for inner x outer rows of so many vectors, by a model of the inner loop.

    Per step a block costs P * Q / 2 cycles for multiply-adds and (P + Q) / 2 for loads, whichever is more; per block
    some more for its start and its end. Blocks left over at the ends count as what they are.
    """
    best, best_cost = Block(1, 1, 1), math.inf
    for q in range(1, min(vectors, 8) + 1):
        most = (registers - 1 - q) // q if not each else (registers - 1) // (2 * q)
        if q == 1 and not each:
            most = registers - 3
        if dot:
            most = (registers - 1 - q) // (q + 1) if q > 1 else (registers - 2) // 2
        for p in range(1, min(inner, max(most, 1)) + 1):
            for o in range(1, min(outer, max(most, 1) // p) + 1):
                cost = 0.0
                for np_, p_ in _parts(inner, p):
                    for no_, o_ in _parts(outer, o):
                        for nq_, q_ in _parts(vectors, q):
                            rows = p_ * o_
                            loads = rows + q_ if not each else 2 * rows * q_
                            work = max(rows * q_ / 2, loads / 2, 2.0)
                            ends = rows * q_ * (6 if dot else 1) + 12
                            cost += np_ * no_ * nq_ * (work * steps + ends)
                if cost < best_cost - 1e-9:
                    best, best_cost = Block(p, o, q), cost
    return best


def _parts(total: int, size: int) -> list[tuple[int, int]]:
    """[(how many, of what size)]: whole blocks, and the rest."""
    parts = [(total // size, size)] if total // size else []
    return parts + ([(1, total % size)] if total % size else [])


class Operand(NamedTuple):
    """Where an operand begins: a pointer (an SSA value) and a constant offset in elements."""

    pointer: str
    offset: int = 0


def contract(
    f: Any, element: str, dims: Sequence[Dim], y: Operand, a: Operand, b: Operand, *,
    keeps: str | None = None, tail: Tail | None = None, names: Sequence[int | None] = (),
) -> None:  # fmt: skip
    """Write the nest.

    element : "float" or "double".
    keeps   : an i1: where it holds, the result is added to what y holds; None: it replaces it.
    tail    : gets the values instead of y (not in the dot form); `names` are the dimensions of its loop that these are.
    Where `form_of` finds no form, vectors have one lane.
    """
    if any(d.y and not d.size for d in dims):
        return  # y has no elements
    size = ELEMENTS[element]
    numbered = [(i, d) for i, d in enumerate(dims)]
    form = form_of(dims, f.lanes(size))
    if form is None:  # nothing lies side by side in y and in an operand
        numbered.append((len(dims), Dim(1, 1, 0, 1)))
        form, names = Form("broadcast", len(dims), False), [*names, None]
    if form.is_swapped:
        numbered, a, b = [(i, d.swapped) for i, d in numbered], b, a
    writer = _Writer(f, element, size, numbered, form, y, a, b, keeps, tail, names)
    writer.write()


class _Writer:
    def __init__(
        self, f: Any, element: str, size: int, dims: list[tuple[int, Dim]], form: Form, y: Operand, a: Operand,
        b: Operand, keeps: str | None, tail: Tail | None, names: Sequence[int | None],
    ) -> None:  # fmt: skip
        self.f, self.element, self.size, self.form, self.keeps = f, element, size, form, keeps
        self.tail, self.names = tail, names
        self.kind = f.vector(element)
        self.lanes = f.lanes(size)
        v = form.vector
        self.vector = dict(dims)[v]
        others = [(i, d) for i, d in dims if i != v and d.size > 1]
        self.is_dot = form.name == "dot"
        kept = [(i, d) for i, d in others if d.y]
        self.rows = sorted([(i, d) for i, d in kept if not d.b], key=lambda x: (-abs(x[1].a), x[0]))
        beside = [(i, d) for i, d in kept if d.b]
        self.columns: list[tuple[int, Dim]] = []
        if self.is_dot:  # along b's own rows runs the second direction of the block
            self.columns = [(i, d) for i, d in beside if not d.a]
            beside = [(i, d) for i, d in beside if d.a]
        self.outer = beside
        self.sums = merged_sums([d for _, d in others if not d.y])
        self.is_empty = any(d.size == 0 for _, d in dims)  # a sum of nothing
        self.y, self.a, self.b = y, a, b

    # the loops around the blocks ------------------------------------------------------------------------------------
    def write(self) -> None:
        f, pointers = self.f, (self.y, self.a, self.b)
        with contextlib_stack(f, self.outer) as moved:
            here = [self._moved(p, [(i, getattr(d, n)) for i, d in self.outer], moved) for p, n in zip(pointers, "yab")]
            self._base = dict(moved)
            self._rows_and_vectors(here)

    def _moved(self, p: Operand, strides: list[tuple[int, int]], index: dict[int, Any]) -> Operand:
        """An operand further on by index * stride for some dimensions."""
        f, pointer, offset = self.f, p.pointer, p.offset
        for i, stride in strides:
            at = f.mul(index[i], stride)
            if isinstance(at, int):
                offset += at
            else:
                pointer = f.at(pointer, f.mul(at, self.size))
        return Operand(pointer, offset)

    def _rows_and_vectors(self, here: list[Operand]) -> None:
        if self.is_dot:
            vectors = self.columns[-1][1].size if self.columns else 1
            turns = self.columns[:-1]
        else:
            vectors = -(-self.vector.size // self.lanes)
            turns = []
        inner = self.rows[-1][1].size if self.rows else 1
        second = self.rows[-2][1].size if len(self.rows) > 1 else 1
        steps = math.prod([d.size for d in self.sums])
        if self.is_dot:
            steps *= -(-self.vector.size // self.lanes)
        target = self.f.target
        registers = target.registers - (0 if target.is_x86 else SPARE)
        block = best_block(inner, second, vectors, steps, registers, self.form.name == "each", self.is_dot)
        with contextlib_stack(self.f, turns) as moved:
            self._base.update(moved)
            here = [self._moved(p, [(i, getattr(d, n)) for i, d in turns], moved) for p, n in zip(here, "yab")]
            for qs in self._blocked(vectors, block.vectors, split_last=not self.is_dot):
                self._rows_of(here, qs, block, vectors)

    def _rows_of(self, here: list[Operand], qs: tuple[int, int, int], block: Block, vectors: int) -> None:
        """All rows for some vectors: what is read of b stays in the cache."""
        f, (q0, q_count, q) = self.f, qs
        around = self.rows[:-2]
        inner = self.rows[-1][1].size if self.rows else 1
        second = self.rows[-2][1].size if len(self.rows) > 1 else 1
        with f.loop(0, q_count) as iq, contextlib_stack(f, around) as moved:
            self._base.update(moved)
            here = [self._moved(p, [(i, getattr(d, n)) for i, d in around], moved) for p, n in zip(here, "yab")]
            first_q = f.add(f.mul(iq, q), q0)
            is_last = q0 + q_count * q == vectors
            for os in self._blocked(second, block.outer):
                for ps in self._blocked(inner, block.inner):
                    self._block_loops(here, (first_q, q, is_last), os, ps)

    def _blocked(self, total: int, size: int, *, split_last: bool = False) -> Iterator[tuple[int, int, int]]:
        """(first, how many blocks, of what size). A block with the masked last vector stands alone if need be."""
        whole, rest = total // size, total % size
        is_ragged = split_last and self.vector.size % self.lanes != 0
        if is_ragged and not rest and whole > 1:
            yield 0, whole - 1, size
            yield (whole - 1) * size, 1, size
            return
        if whole:
            yield 0, whole, size
        if rest:
            yield whole * size, 1, rest

    def _block_loops(self, here: list[Operand], qs: tuple[Any, int, bool], os: Any, ps: Any) -> None:
        f = self.f
        (first_q, q, is_last), (o0, o_count, o), (p0, p_count, p) = qs, os, ps
        with f.loop(0, o_count) as io, f.loop(0, p_count) as ip:
            first_o, first_p = f.add(f.mul(io, o), o0), f.add(f.mul(ip, p), p0)
            moves: list[tuple[Any, Dim]] = []
            if self.rows:
                moves.append((first_p, self.rows[-1][1]))
            if len(self.rows) > 1:
                moves.append((first_o, self.rows[-2][1]))
            if self.is_dot:
                if self.columns:
                    moves.append((first_q, self.columns[-1][1]))
            else:
                moves.append((f.mul(first_q, self.lanes), self.vector))
            places = []
            for operand, name in zip(here, "yab"):
                strides = [(k, getattr(d, name)) for k, (_, d) in enumerate(moves)]
                places.append(self._moved(operand, strides, {k: at for k, (at, _) in enumerate(moves)}))
            tail = self.vector.size % self.lanes if is_last and not self.is_dot else 0
            self._block(places, p, o, q, tail, first_p, first_o, first_q)

    # one block ------------------------------------------------------------------------------------------------------
    def _block(
        self, places: list[Operand], p: int, o: int, q: int, tail: int, first_p: Any, first_o: Any, first_q: Any
    ) -> None:
        f, kind, size = self.f, self.kind, self.size
        y, a, b = places
        inner = self.rows[-1][1] if self.rows else Dim(1, 0, 0, 0)
        second = self.rows[-2][1] if len(self.rows) > 1 else Dim(1, 0, 0, 0)
        column = (self.columns[-1][1] if self.columns else Dim(1, 0, 0, 0)) if self.is_dot else None
        rows = list(itertools.product(range(o), range(p)))
        a_at = [(i * second.a + j * inner.a) * size for i, j in rows]
        y_at = [(i * second.y + j * inner.y) * size for i, j in rows]
        step = self.lanes * size
        b_at = [k * (column.b * size if column else step) for k in range(q)]
        y_up = [k * (column.y * size if column else step) for k in range(q)]
        masks = [f.mask(self.lanes, tail) if tail and k == q - 1 else None for k in range(q)]
        zero = "zeroinitializer"
        totals = [[f.var(kind, zero) for _ in range(q)] for _ in rows]
        y_base, a_base, b_base = (f.at(x.pointer, x.offset * size) for x in (y, a, b))
        if self.keeps is not None and not self.is_dot:
            with f.when(self.keeps):
                for r, at in enumerate(y_at):
                    for k in range(q):
                        f.put(kind, totals[r][k], self._load(f.at(y_base, at + y_up[k]), masks[k]))
        self._sum(a_base, b_base, a_at, b_at, totals, masks)
        if self.is_dot:
            self._store_dots(y_base, y_at, y_up, totals)
            return
        if self.tail is not None:
            self._hand_over(rows, totals, masks, first_p, first_o, first_q)
            return
        for r in range(len(rows)):
            for k in range(q):
                self._store(f.get(kind, totals[r][k]), f.at(y_base, y_at[r] + y_up[k]), masks[k])

    def _hand_over(
        self, rows: list[tuple[int, int]], totals: list[list[str]], masks: list[str | None], first_p: Any, first_o: Any,
        first_q: Any,
    ) -> None:  # fmt: skip
        """The values of a block to the tail."""
        tail, names = self.tail, self.names
        assert tail is not None
        inner = names[self.rows[-1][0]] if self.rows else None
        second = names[self.rows[-2][0]] if len(self.rows) > 1 else None
        index = {names[n]: at for n, at in self._base.items()}
        index.update({inner: first_p, second: first_o, names[self.form.vector]: self.f.mul(first_q, self.lanes)})
        known = {d: at for d, at in index.items() if d is not None}
        tail.begin(known, {d for d in (inner, second) if d is not None}, masks)
        for r, (i, j) in enumerate(rows):
            offsets = {d: n for d, n in ((inner, j), (second, i)) if d is not None}
            for k in range(len(masks)):
                tail.take(self.f.get(self.kind, totals[r][k]), offsets, k)
        tail.end()

    def _load(self, address: str, mask: str | None) -> str:
        f = self.f
        return f.load(self.kind, address) if mask is None else f.masked_load(self.kind, address, mask)

    def _store(self, value: str, address: str, mask: str | None) -> None:
        if mask is None:
            self.f.store(self.kind, value, address)
        else:
            self.f.masked_store(self.kind, value, address, mask)

    def _sum(
        self, a: str, b: str, a_at: list[int], b_at: list[int], totals: list[list[str]], masks: list[str | None]
    ) -> None:
        """The loops over what is summed, around the multiply-adds."""
        f, size = self.f, self.size
        if self.is_empty:
            return
        sums = list(self.sums)
        if self.is_dot:
            sums.append(Dim(self.vector.size, 0, 1, 1))
        if not sums:
            self._step(a, b, a_at, b_at, totals, masks)
            return
        inner = sums[-1]
        with contextlib_stack(f, [(k, d) for k, d in enumerate(sums[:-1])]) as moved:
            for k, d in enumerate(sums[:-1]):
                a = f.at(a, f.mul(moved[k], d.a * size))
                b = f.at(b, f.mul(moved[k], d.b * size))
            if self.is_dot:
                whole, rest = inner.size // self.lanes, inner.size % self.lanes
                if whole:
                    self._unrolled(a, b, whole, self.lanes, self.lanes, a_at, b_at, totals, masks)
                if rest:
                    at = whole * self.lanes * size
                    mask = f.mask(self.lanes, rest)
                    self._step(f.at(a, at), f.at(b, at), a_at, b_at, totals, [mask] * len(b_at))
            else:
                self._unrolled(a, b, inner.size, inner.a, inner.b, a_at, b_at, totals, masks)

    def _unrolled(
        self, a: str, b: str, count: int, a_step: int, b_step: int, a_at: list[int], b_at: list[int],
        totals: list[list[str]], masks: list[str | None],
    ) -> None:  # fmt: skip
        f, size = self.f, self.size
        most = max(1, UNROLLED * f.target.registers // 32 // (len(a_at) * len(b_at)))
        turns = next(n for n in range(min(most, count), 0, -1) if count % n == 0)
        if turns < min(most, count) / 2 and count > most:  # no good divisor: a rest of its own
            turns = most
        whole = count // turns
        with f.loop(0, whole) as i:
            here_a = f.at(a, f.mul(i, turns * a_step * size))
            here_b = f.at(b, f.mul(i, turns * b_step * size))
            for u in range(turns):
                self._step(here_a, here_b, [x + u * a_step * size for x in a_at],
                           [x + u * b_step * size for x in b_at], totals, masks)  # fmt: skip
        for u in range(whole * turns, count):
            self._step(a, b, [x + u * a_step * size for x in a_at], [x + u * b_step * size for x in b_at],
                       totals, masks)  # fmt: skip

    def _step(
        self, a: str, b: str, a_at: list[int], b_at: list[int], totals: list[list[str]], masks: list[str | None]
    ) -> None:
        """One step of the sum for all accumulators of the block."""
        f, kind = self.f, self.kind
        vectors = [self._load(f.at(b, at), mask) for at, mask in zip(b_at, masks)]
        for r, at in enumerate(a_at):
            if self.form.name == "broadcast":
                number = f.splat(kind, f.load(self.element, f.at(a, at)))
                values = [number] * len(vectors)
            elif self.is_dot:
                values = [self._load(f.at(a, at), masks[0])] * len(vectors)
            else:
                step = self.lanes * self.size
                values = [self._load(f.at(a, at + k * step), masks[k]) for k in range(len(vectors))]
            for k, vector in enumerate(vectors):
                total = totals[r][k]
                f.put(kind, total, f.fma(kind, values[k], vector, f.get(kind, total)))

    def _store_dots(self, y: str, y_at: list[int], y_up: list[int], totals: list[list[str]]) -> None:
        """Sums of the lanes of each accumulator."""
        f, element = self.f, self.element
        for r, at in enumerate(y_at):
            for k, up in enumerate(y_up):
                total, address = f.total(self.kind, f.get(self.kind, totals[r][k])), f.at(y, at + up)
                if self.keeps is not None:
                    old = f.select(element, self.keeps, f.load(element, address), "0.0")
                    total = f.fadd(element, total, old)
                f.store(element, total, address)


def merged_sums(dims: list[Dim]) -> list[Dim]:
    """Summed dimensions, the fastest of a last, joined where both operands allow it."""
    return merged(sorted(dims, key=lambda d: (-abs(d.b), -abs(d.a))))


class contextlib_stack:
    """Loops over dimensions, one inside the other: {number of the dimension: its index}."""

    def __init__(self, f: Any, dims: Sequence[tuple[int, Dim]]) -> None:
        self._f, self._dims, self._open = f, dims, []

    def __enter__(self) -> dict[int, Any]:
        index: dict[int, Any] = {}
        for i, d in self._dims:
            loop: Any = self._f.loop(0, d.size)
            index[i] = loop.__enter__()
            self._open.append(loop)
        return index

    def __exit__(self, *error: Any) -> None:
        for loop in reversed(self._open):
            loop.__exit__(*error)
