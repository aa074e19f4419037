"""Contractions: y[i] = sum over r of a[i, r] * b[i, r] with affine subscripts: convolutions and matrix products.

A nest has `sizes` of its indices and, per dimension of y, a and b, a subscript: `start` and `factors`, pairs of an
index and its factor (minidl's Contraction). What a or b is read beyond its bounds counts as 0. Several nests make one y
together, each of them other elements.

`plan` turns nests into a kernel for exactly these sizes and strides, contract.cu with structs written here in front:

    indices of y and a: rows (M) · of y and b: columns (N) · of all three: batch · not of y: terms (K)

`contract_all` plans and runs. Kernels fuse with their neighbours through `Slots`: what becomes of a number of a or b
when it is read, of one of y before it is stored, what else is stored then, and sums of that over all rows, with what
becomes of them.

Which tiles and how many slices are taken depends on sizes alone, so the same call gives the same bits everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import launch

Array = Any
Scratch = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each array

PROCESSORS = 132  # multiprocessors the tiles are chosen for: those of an H100
MOST_SUMS = 1 << 22  # elements of partial sums in scratch memory
THREADS_EACH = 128  # of a block where each thread makes an element
LATENCY = 450  # cycles until the next tile has come from the second cache
BASE_ALIGNMENT = 16  # bytes of the longest load
MOST_COLUMN_SUMS = 8  # sums of one contraction: what a thread holds of them has to find room
MOST_JOINED = 2048  # columns whose sums the last block finishes; more of them are a kernel's work
ONE_GROUP = 8, 32  # slices, and rows of partial sums, that one block adds up; of more, groups are added up before


# what is said about a call ------------------------------------------------------------------------------------------
class Read(NamedTuple):
    """A number from another array: a C name, the array's number, its stride along each dimension of the operand."""

    name: str
    array: int
    strides: tuple[int, ...]
    start: int = 0


class Change(NamedTuple):
    """What becomes of a number `x`: a C expression of x and of what is read at the same element of the operand.

    lines : C statements before the expression, which may name what they compute: "float t1 = x * scale;"
    """

    text: str
    reads: tuple[Read, ...] = ()
    lines: tuple[str, ...] = ()


class Stored(NamedTuple):
    """Another result, into the array of a number: a C expression of all that `Slots.y` names, and of its result `y`.

    strides : of that array, along each dimension of y
    """

    text: str
    array: int
    strides: tuple[int, ...]
    start: int = 0


class Summed(NamedTuple):
    """A sum over the elements of y that share their subscripts along the dimensions kept, in double.

    text    : C expression of all that `Slots.y` names, and of its result `y`; made double when it is computed
    array   : number of the array that gets the sums; None: they are for the tail alone
    strides : of that array, along each dimension of y; those of other dimensions than the ones kept do not count
    """

    text: str
    array: int | None = None
    strides: tuple[int, ...] = ()
    start: int = 0


class Behind(NamedTuple):
    """What the last block does when all others are done: C statements over the arrays e0, e1, ...

    threads share the work as they do within a block, of which there are THREADS; arrays: the numbers of those used.
    """

    lines: tuple[str, ...]
    arrays: tuple[int, ...]


class Tail(NamedTuple):
    """What becomes of the sums s0, s1, ... that are finished: C statements, over what is read, and results.

    Strides are those along each dimension of y, as in `Summed`. All numbers are read before one is stored.
    """

    lines: tuple[str, ...]
    reads: tuple[Read, ...] = ()
    stores: tuple[Stored, ...] = ()


class Slots(NamedTuple):
    """What a contraction does besides: to a and b on load (never to what lies out of bounds), to y before it is stored.

    types      : dtypes of the other arrays, in the order of their numbers; those that are only read share no memory
                 with y and with what is written
    preamble   : C text before everything, for functions that the expressions call
    stores     : more results, element by element
    sums, kept : sums over all dimensions of y but those kept; tail: what becomes of them
    behind     : what is done when everything else is
    keeps_y    : whether y itself is stored
    is_aligned : whether all other arrays start at multiples of 16 bytes, so that neighbours can be moved at once

    C text has the words of words.cuh. Names that are read or declared are like t0, t1, ...: others may be taken.
    """

    a: Change | None = None
    b: Change | None = None
    y: Change | None = None
    types: tuple[str, ...] = ()
    preamble: str = ""
    stores: tuple[Stored, ...] = ()
    sums: tuple[Summed, ...] = ()
    kept: tuple[int, ...] = ()
    tail: Tail | None = None
    behind: Behind | None = None
    keeps_y: bool = True
    is_aligned: bool = False

    @property
    def is_about_y(self) -> bool:
        """Whether something is to be done with the elements of y."""
        return self.y is not None or bool(self.stores) or bool(self.sums)


class Layout(NamedTuple):
    """Where an array's elements lie: shape, strides in elements, and whether the first stands at a round address."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_aligned: bool = True


NONE = Slots()


def layout_of(x: Array) -> Layout:
    """The layout of an array."""
    size = x.dtype.itemsize
    return Layout(x.shape, tuple([s // size for s in x.strides]), x.data.ptr % BASE_ALIGNMENT == 0)


# tiles --------------------------------------------------------------------------------------------------------------
class Tile(NamedTuple):
    """How a block of threads makes m x n elements, k terms at a time; each thread makes rows x columns of them."""

    m: int
    n: int
    k: int
    rows: int  # of a thread; for tensor cores, warps along m
    columns: int  # of a thread; for tensor cores, warps along n
    is_tensor: bool = False

    @property
    def threads(self) -> int:
        return 32 * self.rows * self.columns if self.is_tensor else self.m // self.rows * (self.n // self.columns)


# m, n, rows, columns
_PLAIN = [
    (128, 128, 8, 8), (128, 64, 8, 8), (64, 128, 8, 8), (128, 64, 8, 4), (64, 64, 4, 4), (128, 32, 8, 4),
    (128, 32, 4, 4), (64, 32, 4, 4), (32, 64, 4, 4), (32, 32, 4, 4), (32, 32, 2, 4), (128, 16, 4, 4),
    (64, 16, 4, 4), (64, 16, 2, 4), (32, 16, 2, 4), (16, 64, 2, 4), (16, 32, 2, 4), (16, 16, 2, 2), (128, 8, 4, 2),
    (64, 8, 2, 2), (32, 8, 1, 2), (128, 4, 4, 1), (64, 4, 2, 1), (32, 4, 1, 1),
]  # fmt: skip
# m, n, warps along m, along n
_TENSOR = [
    (128, 128, 4, 2), (128, 64, 4, 2), (64, 64, 2, 2), (128, 32, 4, 1), (64, 32, 4, 1), (64, 32, 2, 2),
    (32, 64, 2, 2), (32, 32, 2, 2), (128, 16, 4, 1), (64, 16, 4, 1), (32, 16, 2, 1), (16, 64, 1, 4), (16, 32, 1, 2),
    (128, 8, 4, 1), (64, 8, 4, 1), (32, 8, 2, 1),
]  # fmt: skip
_SLICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)

Sizes = tuple[int, int, int, int]  # of a part: batch, M, N, K


def _padding(tile: Tile, itemsize: int) -> int:
    """Elements between a tile's rows in shared memory: then neither long stores nor tensor cores meet in one bank."""
    return 8 if tile.is_tensor else BASE_ALIGNMENT // itemsize


def shared_elements(tile: Tile, itemsize: int) -> int:
    """Elements of two tiles of both operands."""
    return 2 * tile.k * (tile.m + tile.n + 2 * _padding(tile, itemsize))


class Burden(NamedTuple):
    """What slots want of a tile: room for sums, and registers for what is read with numbers of a and of b.

    own, common : how many arrays are read for each number, and for numbers that share a row or a term
    stored      : how many are read for each number of y before it is stored
    """

    has_sums: bool = False
    own: tuple[int, int] = (0, 0)
    common: int = 0
    stored: int = 0


NO_BURDEN = Burden()


def _burden(slots: Slots, is_turned: bool) -> Burden:
    reads = [change.reads if change else () for change in (slots.a, slots.b)]
    own = [sum(1 for read in x if sum(map(bool, read.strides)) > 1) for x in (reads[::-1] if is_turned else reads)]
    stored = sum(1 for read in (slots.y.reads if slots.y else ()) if sum(map(bool, read.strides)) > 1)
    return Burden(bool(slots.sums), (own[0], own[1]), len(reads[0]) + len(reads[1]) - sum(own), stored)


@functools.cache
def _tiles(itemsize: int, is_tensor: bool, burden: Burden = NO_BURDEN) -> list[Tile]:
    """All tiles that fit into static shared memory and into registers."""
    found = []
    for m, n, rows, columns in _TENSOR if is_tensor else _PLAIN:
        for k in (32, 16, 8):
            tile = Tile(m, n, k, rows, columns, is_tensor)
            values = m * n // tile.threads
            held = ((1 + burden.own[0]) * m + (1 + burden.own[1]) * n) * k // tile.threads
            held += burden.common * BASE_ALIGNMENT // itemsize
            lines = 8 * rows if is_tensor else m // rows
            summed = lines * n * 8 if burden.has_sums else 0
            shared = shared_elements(tile, itemsize) * itemsize
            fits = summed <= shared <= launch.STATIC_SHARED_BYTES - 16 and tile.threads % k == 0
            most = 76 if tile.threads >= 256 and not is_tensor else 96  # so that two large blocks have room
            most -= 48 if burden.has_sums and tile.threads < 128 else 0  # much for few threads, and sums in double
            fits = fits and (burden.stored < 3 or values * burden.stored * itemsize <= 4 * 64)
            if fits and max(m, n) * k <= 32 * tile.threads and (values + held) * itemsize <= 4 * most:
                found.append(tile)
    return found


def _cycles(tile: Tile, slices: int, parts: Sequence[Sizes], itemsize: int) -> float:
    """About how long a contraction takes, by a model of one multiprocessor: products, loads, and waiting for loads."""
    values = tile.m * tile.n / tile.threads
    if tile.is_tensor:
        fm, fn = tile.m // tile.rows // 16, tile.n // tile.columns // 8
        rate = 512 * fm * fn / (fm * fn + 0.5 * (2 * fm + fn))
    else:
        rate = 512 / itemsize * values / (values + 2 * (tile.rows + tile.columns))
    registers = 40 + (values + (tile.m + tile.n) * tile.k / tile.threads + tile.rows + tile.columns) * itemsize / 4
    shared = shared_elements(tile, itemsize) * itemsize
    limits = 32, 2048 // tile.threads, 65536 / (tile.threads * registers), (220 << 10) // (shared + 1024)
    most = max(1, int(min(limits)))  # blocks that a multiprocessor can hold
    blocks, work, longest, elements = 0, 0.0, 0, 0
    for batch, m, n, k in parts:
        mine = batch * -(-m // tile.m) * -(-n // tile.n)
        terms = -(-k // tile.k)
        blocks += mine * slices
        work += mine * terms
        longest = max(longest, -(-terms // slices))
        elements += batch * m * n
    if not blocks:
        return 0.0
    each = -(-blocks // PROCESSORS)  # blocks of the busiest multiprocessor
    together = min(each, most)
    steps = each * max(work / blocks, longest * min(1.0, PROCESSORS / blocks))
    products = steps * tile.m * tile.n * tile.k / rate / min(1.0, together * tile.threads / 32 / 6)
    loads = steps * (tile.m + tile.n) * tile.k * itemsize / 40
    waiting = -(-each // together) * (longest * LATENCY + 1500)
    group, groups = _groups(slices, ONE_GROUP[0])
    ends = 0.0
    if slices > 1:  # to put down sums, to count, and to read again those of a group, and of all groups
        ends = 2500 * (1 + (groups > 1)) + (group + groups) * tile.m * tile.n * itemsize / 64
        ends += slices * elements * itemsize / (PROCESSORS * 20)
    return max(products, loads, waiting) + 0.2 * (products + loads) + ends


def _groups(count: int, most: int) -> tuple[int, int]:
    """(how many make a group, groups): one group of up to `most`, otherwise about as many groups as members."""
    size = max(count, 1) if count <= most else math.isqrt(count - 1) + 1
    return size, -(-count // size)


@functools.lru_cache(maxsize=4096)
def best_tile(
    parts: tuple[Sizes, ...], itemsize: int, is_tensor: bool, slices: int | None = None, burden: Burden = NO_BURDEN
) -> tuple[Tile, int, float]:
    """(tile, slices of the terms, cycles): the quickest by the model, for so many slices or for any number."""
    terms, elements = max((p[3] for p in parts), default=0), sum(math.prod(p[:3]) for p in parts)
    many = [s for s in _SLICES if s == 1 or (s * 32 <= terms and s * elements <= MOST_SUMS)]
    options = [(t, s) for t in _tiles(itemsize, is_tensor, burden) for s in (many if slices is None else [slices])]
    cycles, number = min((_cycles(t, s, parts, itemsize), i) for i, (t, s) in enumerate(options))
    return *options[number], cycles


# sizes of a nest, as far as its subscripts tell ---------------------------------------------------------------------
def _indices(subscripts: Any) -> set[int]:
    return {i for s in subscripts for i, factor in s.factors if factor}


def _named(nest: Any) -> Sizes:
    """Batch, M, N, K by which operands name an index; strides of 0 are not known here."""
    y, a, b = (_indices(x) for x in (nest.y, nest.a, nest.b))
    groups = [y & a & b, y - b, y & b - a, set(range(len(nest.sizes))) - y]
    batch, m, n, k = (math.prod(nest.sizes[i] for i in group) for group in groups)
    return batch, m, n, k


def _is_empty(nest: Any) -> bool:
    return any(nest.sizes[i] == 0 for i in _indices(nest.y))


@functools.lru_cache(maxsize=1024)
def _slices(nests: tuple[Any, ...], itemsize: int, is_tensor: bool) -> int:
    """Into how many slices the terms are cut."""
    parts = tuple([_named(nest) for nest in nests if not _is_empty(nest)])
    if not parts:
        return 1
    turned = tuple([(batch, n, m, k) for batch, m, n, k in parts])
    found = [best_tile(p, itemsize, is_tensor) for p in (parts, turned)]
    return min(found, key=lambda x: x[2])[1]


def is_tensor_core(dtype: Any, precision: str) -> bool:
    """Whether tensor cores multiply: tf32 is asked for, arrays are float32, and the device has them (sm_80)."""
    if precision not in ("float32", "tf32"):
        raise ValueError(f'contract: precision is "float32" or "tf32"; got {precision!r}.')
    return precision == "tf32" and np.dtype(dtype) == np.float32 and _capability(launch.cupy()) >= 80


@functools.lru_cache(maxsize=4)
def _capability(library: Any) -> int:
    return int(library.cuda.Device().compute_capability)


# from a nest to C text ------------------------------------------------------------------------------------------------
class _Form(NamedTuple):
    """A whole number that is affine in the indices."""

    start: int
    factors: dict[int, int]

    def along(self, i: int) -> int:
        return self.factors.get(i, 0)


def _form(subscripts: Any, strides: Sequence[int], start: int = 0) -> _Form:
    """Where an element lies: start + sum of stride * position."""
    factors: dict[int, int] = {}
    for subscript, stride in zip(subscripts, strides, strict=True):
        start += subscript.start * stride
        for i, factor in subscript.factors:
            factors[i] = factors.get(i, 0) + factor * stride
    return _Form(start, factors)


def _reach(form: _Form, sizes: Sequence[int]) -> tuple[int, int]:
    """The least and the largest value."""
    ends = [factor * (sizes[i] - 1) for i, factor in form.factors.items()]
    return form.start + sum(min(x, 0) for x in ends), form.start + sum(max(x, 0) for x in ends)


class _Side:
    """An operand of one nest: where it lies, what has to be within bounds, places in other arrays that go with it.

    These are places where `change` reads, and then those of `more`, pairs of strides and a start.
    """

    def __init__(
        self, subscripts: Any, layout: Layout, sizes: Sequence[int], change: Change | None, is_checked: bool,
        more: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:  # fmt: skip
        self.change, self.layout = change, layout
        self.at = _form(subscripts, layout.strides)
        self.checks: list[tuple[_Form, int]] = []
        checked = set()
        if is_checked and all(sizes):
            for d, size in enumerate(layout.shape):
                form = _form(subscripts[d : d + 1], (1,))
                low, high = _reach(form, sizes)
                if low < 0 or high >= size:
                    self.checks.append((form, size))
                    checked.add(d)
        # reads that are within bounds even where the operand is not
        self.is_free = [not any(read.strides[d] for d in checked) for read in (change.reads if change else ())]
        places = [(read.strides, read.start) for read in change.reads] if change else []
        self.reads = [_form(subscripts, *place) for place in (*places, *more)]

    @property
    def forms(self) -> list[_Form]:
        return [self.at, *(form for form, _ in self.checks), *self.reads]

    def moves(self, i: int) -> bool:
        """Whether anything here depends on index i."""
        return any(form.along(i) for form in self.forms)


Axis = tuple[int, dict[int, int]]  # size, and the factor of each form (by its id)


def _dense(sizes: Sequence[int | None]) -> list[int]:
    """Strides of an array that has dimensions of these sizes, and 0 for those that it does not have (None)."""
    strides, stride = [0] * len(sizes), 1
    for d, size in reversed(list(enumerate(sizes))):
        if size is not None:
            strides[d] = stride
            stride *= size
    return strides


def _is_dense(subscript: Any, sizes: Sequence[int], extent: int) -> bool:
    """Whether a subscript takes each value below `extent` just once."""
    reach = 1
    for factor, i in sorted((factor, i) for i, factor in subscript.factors if sizes[i] != 1):
        if factor != reach:
            return False
        reach *= sizes[i]
    return subscript.start == 0 and reach == extent


class _Nest:
    """A nest in terms of memory: a, b and y as sides, and the indices as rows, columns, batch and terms."""

    def __init__(self, nest: Any, y: Layout, a: Layout, b: Layout, slots: Slots):
        self.sizes = sizes = nest.sizes
        column = _dense([n if d in slots.kept else None for d, n in enumerate(y.shape)])
        more = [*((stored.strides, stored.start) for stored in slots.stores), *([(column, 0)] if slots.sums else [])]
        self.y = _Side(nest.y, y, sizes, slots.y, False, more)
        self.a = _Side(nest.a, a, sizes, slots.a, True)
        self.b = _Side(nest.b, b, sizes, slots.b, True)
        kept, terms = sorted(_indices(nest.y)), range(len(sizes))
        is_named = not all(sizes)  # where an empty array's elements would lie, nobody knows
        in_a = _indices(nest.a) if is_named else {i for i in kept if self.a.moves(i)}
        in_b = _indices(nest.b) if is_named else {i for i in kept if self.b.moves(i)}
        self.batch = [i for i in kept if i in in_a and i in in_b]
        self.rows = [i for i in kept if i not in in_b]
        self.columns = [i for i in kept if i in in_b and i not in in_a]
        self.terms = [i for i in terms if i not in kept]
        self.kept: set[int] | None = None  # indices of the dimensions that sums keep
        if slots.sums:
            self.kept = {i for i in _indices([nest.y[d] for d in slots.kept]) if sizes[i] != 1}
            self.is_dense = all(_is_dense(nest.y[d], sizes, y.shape[d]) for d in slots.kept)
            if not self.has_columns(False) and not self.has_columns(True):
                self._set_apart(self.kept)

    def _set_apart(self, kept: set[int]) -> None:
        """Of the columns leave those that sums keep, if rows have no part in that; the others become batch."""
        for columns, rows in ((self.columns, self.rows), (self.rows, self.columns)):
            others = [i for i in columns if i not in kept and self.sizes[i] != 1]
            if not kept.isdisjoint(columns) and kept.isdisjoint(rows):
                columns[:] = [i for i in columns if i not in others]
                self.batch = sorted([*self.batch, *others])
                return

    def has_columns(self, is_turned: bool) -> bool:
        """Whether what sums keep is just what moves along the columns, and maybe something of the batch."""
        assert self.kept is not None
        columns, rows = (self.rows, self.columns) if is_turned else (self.columns, self.rows)
        has_all = all(i in self.kept for i in columns if self.sizes[i] != 1)
        return self.is_dense and has_all and not self.kept.intersection(rows)

    def size(self, indices: Sequence[int]) -> int:
        return math.prod(self.sizes[i] for i in indices)

    @property
    def is_turned(self) -> bool:
        """Whether rows and columns should change places: columns are few, or lie side by side in y."""
        if self.kept is not None and self.has_columns(False) != self.has_columns(True):
            return self.has_columns(True)
        m, n = self.size(self.rows), self.size(self.columns)
        if min(m, n) < 16:
            return m < n
        beside = [any(abs(self.y.at.along(i)) == 1 and self.sizes[i] > 1 for i in x) for x in (self.rows, self.columns)]
        return beside[0] and not beside[1]

    def turn(self) -> None:
        self.a, self.b, self.rows, self.columns = self.b, self.a, self.columns, self.rows

    @property
    def is_each(self) -> bool:
        """Whether the numbers read serve one or two elements each, and neighbours of the batch lie side by side."""
        m, n, batch = self.size(self.rows), self.size(self.columns), self.size(self.batch)
        if batch == 1 or min(m, n) > 2 or self.size(self.terms) == 0:
            return False
        beside = any(abs(s.at.along(i)) == 1 and self.sizes[i] > 1 for i in self.batch for s in (self.a, self.b))
        return beside or self.size(self.terms) <= 32

    def axes(self, indices: Sequence[int], weights: Sequence[_Form]) -> list[Axis]:
        """The indices from the slowest to the fastest, joined where everything goes on from one to the next."""
        forms = [form for side in (self.y, self.a, self.b) for form in side.forms]
        ordered = sorted([i for i in indices if self.sizes[i] != 1], key=lambda i: (-self._weight(i, weights), i))
        found: list[Axis] = []
        for i in ordered:
            size, factors = self.sizes[i], {id(form): form.along(i) for form in forms}
            if found and all(found[-1][1][f] == factors[f] * size for f in factors):
                size *= found.pop()[0]
            found.append((size, factors))
        return found

    def _weight(self, i: int, weights: Sequence[_Form]) -> int:
        return sum(abs(form.along(i)) for form in weights)


def _decoded(axes: Sequence[Axis], name: str) -> tuple[str, list[str]]:
    """(statements that take a number apart, the names of its digits)."""
    lines, inner = "", 1
    for n, (size, _) in reversed(list(enumerate(axes))):
        digit = f"(U){name}" + (f" / {inner}u" if inner > 1 else "") + (f" % {size}u" if n else "")
        lines = f" const I {name}{n} = (I)({digit});" + lines
        inner *= size
    return lines, [f"{name}{n}" for n in range(len(axes))]


def _affine(form: _Form, start: int, groups: Sequence[tuple[Sequence[Axis], list[str]]]) -> str:
    terms = [str(start)] if start else []
    for axes, names in groups:
        for (_, factors), name in zip(axes, names, strict=True):
            if factor := factors[id(form)]:
                terms.append(name if factor == 1 else f"{factor} * {name}")
    return " + ".join(terms) or "0"


class _Writer:
    """The struct of an operand: where its rows and its terms (for y: its columns) lie."""

    def __init__(self, side: _Side, batch: list[Axis], outer: list[Axis], inner: list[Axis], slots: Slots):
        self.side, self.batch, self.outer, self.inner, self.slots = side, batch, outer, inner, slots
        self.place = f"Where<{len(side.checks)}, {len(side.reads)}>"

    def vector(self, itemsize: int, axes: list[Axis]) -> int:
        """How many neighbours along these axes one load or store can take."""
        if not axes or not self.side.layout.is_aligned:
            return 1
        size, last = axes[-1]
        if last[id(self.side.at)] != 1 or any(last[id(form)] for form, _ in self.side.checks):
            return 1
        others = [x[1][id(self.side.at)] for x in (*self.batch, *self.outer, *self.inner) if x is not axes[-1]]
        numbers = [size, self.side.at.start, *others]
        return next((v for v in (4, 2) if v * itemsize <= BASE_ALIGNMENT and not any(n % v for n in numbers)), 1)

    def along(self, axes: list[Axis], itemsize: int) -> tuple[int, bool, int]:
        """How good it is to load neighbours along these axes."""
        if not axes:
            return (0, False, 0)
        size, last = axes[-1]
        return self.vector(itemsize, axes), abs(last[id(self.side.at)]) == 1, size

    def functions(self, first: str, second: str) -> str:
        named = (self.batch, "z"), (self.outer, first), (self.inner, second)
        batch, outer, inner = (_decoded(axes, name) for axes, name in named)
        row = self._place([(self.batch, batch[1]), (self.outer, outer[1])], True)
        step = self._place([(self.inner, inner[1])], False)
        return (
            f"    typedef {self.place} Place;\n"
            f"    DEVICE Place row(I z, I {first}) {{{batch[0]}{outer[0]} return {row}; }}\n"
            f"    DEVICE Place step(I {second}) {{{inner[0]} return {step}; }}\n"
        )

    def _place(self, groups: Sequence[tuple[Sequence[Axis], list[str]]], has_start: bool) -> str:
        at, *others = [_affine(form, form.start if has_start else 0, groups) for form in self.side.forms]
        checks, reads = others[: len(self.side.checks)], others[len(self.side.checks) :]
        return f"Place{{{at}, {{{', '.join(checks) or '0'}}}, {{{', '.join(reads) or '0'}}}}}"

    def inside(self) -> str:
        tests = [f"(U)(row.check[{n}] + step.check[{n}]) < {size}u" for n, (_, size) in enumerate(self.side.checks)]
        return (
            "    DEVICE bool inside(const Place &row, const Place &step) "
            f"{{ return {' && '.join(tests) or 'true'}; }}\n"
        )

    def made(self, is_along: bool, vector: int) -> str:
        """What is read with a number that is loaded, and what becomes of it.

        is_along : whether packs of `vector` neighbours, along which v counts, lie along the inner indices
        """
        change = self.side.change or Change("x")
        axes, others = (self.inner, [*self.batch, *self.outer]) if is_along else (self.outer, self.inner)
        common: list[tuple[int, Read]] = []
        own: list[tuple[int, Read]] = []
        for n, read in enumerate(change.reads):
            is_same = self.side.is_free[n] and not any(x[id(self.side.reads[n])] for _, x in others)
            (common if is_same else own).append((n, read))
        text = f"    static constexpr bool HAS_COMMON = {_c(bool(common))}, HAS_OWN = {_c(bool(own))};\n"
        for name, found in (("common", common), ("own", own)):
            kind = name.capitalize()
            members = "".join(f" Pack<{self._type(read)}, W> {read.name};" for _, read in found)
            values = ", ".join(self._taken(read, n, axes, vector) for n, read in found)
            text += (
                f"    template <int W> struct {kind} {{{members} }};\n"
                f"    template <int W> DEVICE {kind}<W> {name}(const Place &row, const Place &step EXTRAS) "
                f"{{ return {kind}<W>{{{values}}}; }}\n"
            )
        lines = [f"const {self._type(read)} {read.name} = common.{read.name}.v[v];" for _, read in common]
        lines += [f"const {self._type(read)} {read.name} = own.{read.name}.v[v];" for _, read in own]
        lines += [*change.lines, f"return (T)({change.text});"]
        text += "    template <class C, class O> DEVICE T made(T x, const C &common, const O &own, int v) {\n"
        return text + "".join(f"      {line.strip()}\n" for line in lines) + "    }\n"

    def finished(self, axes: list[Axis], vector: int) -> str:
        """What becomes of sums of products, further results, and what is added to the sums of their columns."""
        change, slots = self.side.change or Change("x"), self.slots
        reads, results = list(enumerate(change.reads)), list(enumerate(slots.stores, len(change.reads)))
        before = [f"const auto read{n} = {self._taken(read, n, axes, vector)};" for n, read in reads]
        before += [f"Pack<{self._type(stored)}, W> made{n};" for n, stored in results]
        lines = ["T x = xs.v[v];"] + [f"const {self._type(r)} {r.name} = read{n}.v[v];" for n, r in reads]
        lines += [*change.lines, f"const T y = (T)({change.text});", "xs.v[v] = y;"]
        lines += [f"made{n}.v[v] = ({self._type(stored)})({stored.text});" for n, stored in results]
        lines += [f"added[v][{n}] += (double)({summed.text});" for n, summed in enumerate(slots.sums)]
        after = []
        for n, stored in results:
            at = f"e{stored.array} + (row.read[{n}] + step.read[{n}]), {self._beside(n, axes)}, made{n}"
            after.append(f"give<{self._type(stored)}, W, {self._is_pack(stored, n, axes, vector)}>({at});")
        return (
            f"    static constexpr int COLUMN = {max(len(self.side.reads) - 1, 0)};\n"
            "    template <int W> DEVICE void finished(Pack<T, W> &xs, const Place &row, const Place &step, "
            "Added *added EXTRAS) {\n"
            + "".join(f"      {line}\n" for line in before)
            + "#pragma unroll\n      for (int v = 0; v < W; v++) {\n"
            + "".join(f"        {line.strip()}\n" for line in lines)
            + "      }\n" + "".join(f"      {line}\n" for line in after) + "    }\n"
        )  # fmt: skip

    def _type(self, place: Read | Stored) -> str:
        return launch.CTYPES[self.slots.types[place.array]]

    def _beside(self, n: int, axes: list[Axis]) -> int:
        return axes[-1][1][id(self.side.reads[n])] if axes else 0

    def _taken(self, read: Read, n: int, axes: list[Axis], vector: int) -> str:
        """The n-th of the other places, for W neighbours along the last of the axes."""
        kind = f"taken<{self._type(read)}, W, {self._is_pack(read, n, axes, vector)}>"
        return f"{kind}(e{read.array} + (row.read[{n}] + step.read[{n}]), {self._beside(n, axes)})"

    def _is_pack(self, place: Read | Stored, n: int, axes: list[Axis], vector: int) -> str:
        """Whether neighbours lie at one address, of so many bytes that they are loaded or stored at once."""
        if vector == 1 or self._beside(n, axes) != 1 or not self.slots.is_aligned:
            return "false"
        form, itemsize = self.side.reads[n], np.dtype(self.slots.types[place.array]).itemsize
        unit = min(BASE_ALIGNMENT // itemsize, vector)
        others = [x[1][id(form)] for x in (*self.batch, *self.outer, *self.inner) if x is not axes[-1]]
        return "false" if any(x % unit for x in (form.start, *others)) else "(W > 1)"


def _c(truth: bool) -> str:
    return "true" if truth else "false"


def _struct(letter: str, writer: _Writer, tile_size: str, names: tuple[str, str], itemsize: int, totals: Any) -> str:
    """The struct of a or b."""
    is_along = writer.along(writer.inner, itemsize) >= writer.along(writer.outer, itemsize)
    vector = writer.vector(itemsize, writer.inner if is_along else writer.outer)
    return (
        f"  struct {letter} {{\n"
        f"    static constexpr I ROWS_IN_ALL = {totals[0]}, TERMS_IN_ALL = {totals[1]};\n"
        f"    static constexpr int SIZE = {tile_size}, V = {vector};\n"
        f"    static constexpr bool ALONG_K = {_c(is_along)}, IS_CHANGED = {_c(writer.side.change is not None)};\n"
        + writer.functions(*names) + writer.inside() + writer.made(is_along, vector) + "  };\n"
    )  # fmt: skip


class _Part(NamedTuple):
    """A part's text, and its sizes."""

    text: str
    sizes: Sizes


class _First(NamedTuple):
    """Where a part begins: in the sums of a slice, in tiles, rows of partial sums, groups of these."""

    sum: int = 0
    tile: int = 0
    block: int = 0
    group: int = 0


def _written(
    name: str, nest: _Nest, first: _First, sums: int, itemsize: int, slots: Slots, width: int
) -> _Part:  # fmt: skip
    y, a, b = nest.y, nest.a, nest.b
    batch, rows, columns = nest.batch, nest.rows, nest.columns
    kept = [i for i in batch if nest.kept is not None and i in nest.kept]
    if nest.is_each:  # every element is a matter of its own
        batch, rows, columns = [*batch, *rows, *columns], [], []
        z = nest.axes(batch, [y.at, a.at, b.at])
    else:
        z = nest.axes([i for i in batch if i not in kept], [y.at]) + nest.axes(kept, [y.at])
    m = nest.axes(rows, [y.at])
    n = nest.axes(columns, [y.at])
    k = nest.axes(nest.terms, [a.at, b.at])
    sizes: Sizes = nest.size(batch), nest.size(rows), nest.size(columns), nest.size(nest.terms)
    ys, as_, bs = _Writer(y, z, m, n, slots), _Writer(a, z, m, k, slots), _Writer(b, z, n, k, slots)
    vector = min(width, ys.vector(itemsize, n))
    widest = min(width, BASE_ALIGNMENT // itemsize)
    sums_v = next(v for v in (4, 2, 1) if v <= widest and not any(x % v for x in (sizes[2], first.sum, sums)))
    text = (
        f"struct {name} {{\n"
        f"  static constexpr I BATCH = {sizes[0]}, M = {sizes[1]}, N = {sizes[2]}, K = {sizes[3]};\n"
        f"  static constexpr I FIRST = {first.sum}, FIRST_TILE = {first.tile}, FIRST_BLOCK = {first.block};\n"
        f"  static constexpr I KEPT = {nest.size(kept)}, FIRST_GROUP = {first.group};\n"
        f"  static constexpr int SUMS_V = {sums_v};\n"
        + _struct("A", as_, "BM", ("m", "k"), itemsize, (sizes[1], sizes[3]))
        + _struct("B", bs, "BN", ("n", "k"), itemsize, (sizes[2], sizes[3]))
        + f"  struct Y {{\n    static constexpr int V = {vector};\n"
        + ys.functions("m", "n") + ys.finished(n, vector) + "  };\n};\n"
    )  # fmt: skip
    return _Part(text, sizes)


# plans --------------------------------------------------------------------------------------------------------------
def _objection(found: Sequence[_Nest], y: Layout, slots: Slots) -> str:
    """Why these nests cannot do what slots say; "" if they can."""
    covered = sum(nest.size([*nest.batch, *nest.rows, *nest.columns]) for nest in found)
    if slots.is_about_y and covered != math.prod(y.shape):
        return "the nests leave out elements of y; a change of y has no value for these."
    if len(slots.sums) > MOST_COLUMN_SUMS:
        return f"there are {len(slots.sums)} sums; {MOST_COLUMN_SUMS} at most find room."
    if (slots.sums or slots.behind) and any(nest.is_each for nest in found):
        return "each thread makes one element; there are no columns to add up, and no block is the last."
    if slots.behind and not found:
        return "y is empty, so no block is the last."
    if slots.behind and slots.sums and math.prod(y.shape[d] for d in slots.kept) > MOST_JOINED:
        return "a kernel of its own finishes the sums of so many columns; the last block comes too early."
    if slots.sums and found and not all(nest.has_columns(found[0].is_turned) for nest in found):
        return "sums keep other dimensions than those along which only a, or only b, moves."
    return ""


class Plan:
    """Kernels for nests over arrays of known layouts.

    slices, tile, tiled_blocks, each_blocks : how the work is cut
    tiled_text, each_text : the sources of kernels that make tiles and single elements; "" where there are none
    sums_text : that of the kernel that finishes sums of columns, where the last block does not
    scratch  : arrays that a run wants, ((shape, dtype), ...), at addresses that are multiples of 16 bytes
    counters : how many numbers (int32) a run wants besides: zeros, and zeros again when it is done
    """

    def __init__(
        self, nests: tuple[Any, ...], y: Layout, a: Layout, b: Layout, dtype: str, is_tensor: bool, slots: Slots
    ) -> None:
        itemsize = np.dtype(dtype).itemsize
        self.dtype, self.slots = np.dtype(dtype), slots
        found = [_Nest(nest, y, a, b, slots) for nest in nests if not _is_empty(nest)]
        if reason := _objection(found, y, slots):
            raise ValueError(f"contract: {reason}")
        self.is_turned = bool(found) and found[0].is_turned
        for nest in found if self.is_turned else []:
            nest.turn()
        self.slices = slices = _slices(nests, itemsize, is_tensor)
        self.sums = sums = sum(nest.size([*nest.batch, *nest.rows, *nest.columns]) for nest in found)
        self.covers = sums == math.prod(y.shape)
        shapes = [(n.size(n.batch), n.size(n.rows), n.size(n.columns), n.size(n.terms)) for n in found if not n.is_each]
        self.tile = tile = best_tile(tuple(shapes), itemsize, is_tensor, slices, _burden(slots, self.is_turned))[0]
        width = 2 if tile.is_tensor else min(4, tile.columns)
        largest = max([abs(x) for nest in found for x in _reaches(nest)] + [slices * sums], default=0)
        self.sum_columns = math.prod(y.shape[d] for d in slots.kept)
        rows = _Rows([_row_count(nest, tile) for nest in found] if slots.sums else [])
        is_joined = bool(slots.behind) or (0 < self.sum_columns <= MOST_JOINED and rows.count > 0)
        parts: list[str] = []
        lines: dict[bool, list[str]] = {False: [], True: []}
        first, blocks = _First(), {False: 0, True: 0}
        for number, nest in enumerate(found):
            part = _written(f"Part{number}", nest, first, sums, itemsize, slots, width)
            batch, m, n, _ = part.sizes
            tiles = -(-batch // THREADS_EACH) if nest.is_each else batch * -(-m // tile.m) * -(-n // tile.n)
            begin = blocks[nest.is_each]
            blocks[nest.is_each] += tiles * slices
            lines[nest.is_each].append(f"DO(Part{number}, {begin}, {blocks[nest.is_each]})")
            parts.append(part.text)
            first = _First(first.sum + batch * m * n, first.tile + tiles, *rows.first(number + 1))
        self.tiled_blocks, self.each_blocks = blocks[False], blocks[True]
        group_slices, slice_groups = _groups(slices, ONE_GROUP[0])
        of_slices = first.tile * (slice_groups + 1) if slices > 1 else 0
        self.counters = of_slices + (rows.groups + 1 if is_joined else 0)
        partials = rows.count + rows.groups, len(slots.sums), self.sum_columns
        self.scratch: Scratch = (((slices, sums), self.dtype.name),) if slices > 1 else ()
        self.scratch += ((partials, "float64"),) if slots.sums else ()
        is_large = max(largest, *blocks.values(), math.prod(partials)) + max(tile.m, tile.n) * tile.k >= 1 << 31
        shape = ("WARPS_M", "WARPS_N") if tile.is_tensor else ("TM", "TN")
        constants = {
            "T": self.dtype, "WHOLE": "i64" if is_large else "int", "NATURAL": "u64" if is_large else "unsigned",
            "BM": tile.m, "BN": tile.n, "BK": tile.k, "TENSOR": tile.is_tensor, "PAD": _padding(tile, itemsize),
            shape[0]: tile.rows, shape[1]: tile.columns,
            "TOGETHER": 2 if tile.threads >= 256 else 1, "SLICES": slices, "SUMS": sums,
            "GROUP_SLICES": group_slices, "COUNTERS_OF_SLICES": of_slices, "TILES_IN_ALL": first.tile,
            "EACH_TILED(DO)": " ".join(lines[False]), "EACH_ELEMENT(DO)": " ".join(lines[True]),
            "KEEPS_Y": slots.keeps_y, "COLUMN_SUMS": len(slots.sums), "SUM_COLUMNS": self.sum_columns,
            "IS_JOINED": is_joined, "GROUP_ROWS": rows.of_group, "ROW_GROUPS": rows.groups, "SUMMED_ROWS": rows.count,
            "FIRST_SUMMED": rows.summed.start, "LAST_SUMMED": rows.summed.stop,
            "EXTRAS": (", double *partials" if slots.sums else "") + _parameters(slots.types, _written_arrays(slots)),
            "PASSED": (", partials" if slots.sums else "") + "".join(f", e{i}" for i in range(len(slots.types))),
        }  # fmt: skip
        text = launch.text_of("contract.cu").replace("//@ parts\n", slots.preamble + "\n" + "".join(parts))
        reads, finish = _finish_of_sums(slots, y)
        text = text.replace("//@ reads\n", _indented(reads, 4)).replace("//@ finish\n", _indented(finish, 4))
        text = text.replace("//@ behind\n", _indented(_behind(slots), 2))
        given = tuple(constants.items())
        only_tiled = (("THREADS", tile.threads), ("IS_TILED", 1), ("IS_EACH", 0))
        only_each = (("THREADS", THREADS_EACH), ("IS_TILED", 0), ("IS_EACH", 1))
        self.tiled_text = launch.source(text, (*given, *only_tiled)) if self.tiled_blocks else ""
        self.each_text = launch.source(text, (*given, *only_each)) if self.each_blocks else ""
        self.warps = 32 if rows.count >= 512 and len(slots.sums) <= 4 else 8
        needs_kernel = slots.sums and self.sum_columns and not is_joined
        self.sums_text = _sums_text(self, y, rows.count) if needs_kernel else ""
        self.zeros: Plan | None = None
        if not self.covers:
            self.zeros = Plan((_nothing(y.shape),), y, _NO_LAYOUT, _NO_LAYOUT, dtype, False, NONE)

    def run(
        self, y: Array, a: Array, b: Array, extras: tuple[Array, ...] = (), scratch: tuple[Array, ...] = (),
        counters: Array = None,
    ) -> None:  # fmt: skip
        """Fill y (None if the slots do not keep it), and what else the slots make."""
        y = y if self.slots.keeps_y else a
        if self.zeros is not None:
            self.zeros.run(y, a, b)
        if self.is_turned:
            a, b = b, a
        sums = scratch[0] if self.slices > 1 else y
        others = (*scratch[-1:], *extras) if self.slots.sums else extras
        counters = counters if self.counters else 0  # no address
        if self.tiled_text:
            kernel = launch.compiled(self.tiled_text, "contract")
            kernel(self.tiled_blocks, self.tile.threads, (y, a, b, sums, counters, *others))
        if self.each_text:
            kernel = launch.compiled(self.each_text, "contract_each")
            kernel(self.each_blocks, THREADS_EACH, (y, a, b, sums, counters, *others))
        if self.sums_text:
            kernel = launch.compiled(self.sums_text, "add_rows")
            kernel(-(-self.sum_columns // 8), 32 * self.warps, others)


def _row_count(nest: _Nest, tile: Tile) -> int:
    """Rows of partial sums that a nest makes."""
    assert nest.kept is not None
    apart = nest.size([i for i in nest.batch if i not in nest.kept])
    return apart * -(-nest.size(nest.rows) // tile.m)


class _Rows:
    """Rows of partial sums, those of each part, and groups of them.

    of_group : rows of a group; summed: what is added up in the end, all rows, or what groups have made of them, which
    stands behind the rows
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts, self.count = counts, sum(counts)
        if self.count <= ONE_GROUP[1]:
            self.of_group, self.groups, self.summed = max(self.count, 1), 1, range(self.count)
        else:
            self.of_group = _groups(self.count, ONE_GROUP[1])[0]
            self.groups = sum(-(-n // self.of_group) for n in counts)
            self.summed = range(self.count, self.count + self.groups)

    def first(self, number: int) -> tuple[int, int]:
        """The first row and the first group of a part."""
        before = self._counts[:number]
        return sum(before), sum(-(-n // self.of_group) for n in before) if self.groups > 1 else 0


def _parameters(types: Sequence[str], written: set[int]) -> str:
    """The other arrays, as parameters of a kernel."""
    kinds = [launch.CTYPES[t] for t in types]
    return "".join(f", {c} *e{i}" if i in written else f", const {c} *__restrict__ e{i}" for i, c in enumerate(kinds))


def _written_arrays(slots: Slots) -> set[int]:
    """The numbers of the other arrays that the kernel writes, or that its last block reads when others have."""
    stores = (*slots.stores, *(slots.tail.stores if slots.tail else ()))
    found = {x.array for x in stores} | {x.array for x in slots.sums if x.array is not None}
    return found | set(slots.behind.arrays if slots.behind else ())


def _indented(lines: Sequence[str], depth: int) -> str:
    return "".join(" " * depth + line + "\n" for line in lines)


def _behind(slots: Slots) -> list[str]:
    """What the last block does at last; before it, it may have finished sums."""
    if slots.behind is None:
        return []
    return ["{", *(["__syncthreads();"] if slots.sums else []), *slots.behind.lines, "}"]


def _finish_of_sums(slots: Slots, y: Layout) -> tuple[list[str], list[str]]:
    """C lines for column c: what is read, and what becomes of the sums s[0], s[1], ..."""
    tail = slots.tail or Tail(())
    columns, sizes = math.prod(y.shape[d] for d in slots.kept), [(d, y.shape[d]) for d in sorted(slots.kept)]

    def place(strides: Sequence[int], start: int) -> str:
        terms, inner = [str(start)], columns
        for d, size in sizes:
            inner //= max(size, 1)
            if strides[d] and size > 1:
                terms.append(f"c / {inner} % {size} * {strides[d]}")
        return " + ".join(terms)

    kinds = [launch.CTYPES[t] for t in slots.types]
    reads = [f"const {kinds[r.array]} {r.name} = e{r.array}[{place(r.strides, r.start)}];" for r in tail.reads]
    lines = [f"const double s{n} = s[{n}];" for n in range(len(slots.sums))] + [x.strip() for x in tail.lines]
    results = [Stored(f"s{n}", x.array, x.strides, x.start) for n, x in enumerate(slots.sums) if x.array is not None]
    for x in (*results, *tail.stores):
        lines.append(f"e{x.array}[{place(x.strides, x.start)}] = ({kinds[x.array]})({x.text});")
    return reads, lines


def _sums_text(plan: Plan, y: Layout, blocks: int) -> str:
    """The kernel that adds up partial sums and does what is to be done with them."""
    reads, finish = _finish_of_sums(plan.slots, y)
    text = launch.text_of("contract_sums.cu").replace("//@ preamble\n", plan.slots.preamble + "\n")
    text = text.replace("//@ reads\n", _indented(reads, 4)).replace("//@ finish\n", _indented(finish, 4))
    return launch.source(text, (
        ("T", plan.dtype), ("COLUMN_SUMS", len(plan.slots.sums)), ("COLUMNS", plan.sum_columns), ("BLOCKS", blocks),
        ("WARPS", plan.warps), ("EXTRAS", _parameters(plan.slots.types, _written_arrays(plan.slots))),
    ))  # fmt: skip


def _reaches(nest: _Nest) -> list[int]:
    """The ends of everything that is computed about places."""
    forms = [form for side in (nest.y, nest.a, nest.b) for form in side.forms]
    ends = [x for form in forms for x in _reach(form, nest.sizes)]
    return [*ends, *(nest.size(x) for x in (nest.batch, nest.rows, nest.columns, nest.terms))]


class _Place(NamedTuple):
    start: int
    factors: tuple[tuple[int, int], ...]


class _Nothing(NamedTuple):
    """A nest without terms: it makes y zero."""

    sizes: tuple[int, ...]
    y: tuple[_Place, ...]
    a: tuple[_Place, ...] = ()
    b: tuple[_Place, ...] = ()


_NO_LAYOUT = Layout((), ())


def _nothing(shape: tuple[int, ...]) -> _Nothing:
    return _Nothing((*shape, 0), tuple([_Place(0, ((i, 1),)) for i in range(len(shape))]))


@functools.lru_cache(maxsize=1024)
def _plan(nests: tuple[Any, ...], y: Layout, a: Layout, b: Layout, dtype: str, is_tensor: bool, slots: Slots) -> Plan:
    return Plan(nests, y, a, b, dtype, is_tensor, slots)


def plan(
    nests: Sequence[Any], y: Layout, a: Layout, b: Layout, *, dtype: Any, precision: str = "float32",
    slots: Slots = NONE,
) -> Plan:  # fmt: skip
    """The plan of nests over arrays of these layouts, made once."""
    return _plan(tuple(nests), y, a, b, np.dtype(dtype).name, is_tensor_core(dtype, precision), slots)


def objection(
    nests: Sequence[Any], y: Layout, a: Layout, b: Layout, *, dtype: Any, precision: str = "float32",
    slots: Slots = NONE,
) -> str:  # fmt: skip
    """Why `plan` would refuse these slots; "" if it takes them."""
    return _objection([_Nest(nest, y, a, b, slots) for nest in nests if not _is_empty(nest)], y, slots)


def contract_all(
    y: Array, a: Array, b: Array, nests: Sequence[Any], *, precision: str = "float32", slots: Slots = NONE,
    extras: tuple[Array, ...] = (), scratch: tuple[Array, ...] = (), counters: Array = None,
) -> None:  # fmt: skip
    """y = sums of products of a and b, by all nests together; zero where none of them gives a value.

    precision : "float32", or "tf32": on tensor cores, products of numbers rounded to 10 bits (float32 arrays alone)
    extras    : the other arrays that `slots` read and write
    scratch, counters : arrays as `Plan.scratch` and `Plan.counters` say
    """
    found = plan(nests, layout_of(y), layout_of(a), layout_of(b), dtype=y.dtype, precision=precision, slots=slots)
    found.run(y, a, b, extras, scratch, counters)


def contract(y: Array, a: Array, b: Array, nest: Any, **options: Any) -> None:
    """`contract_all` for one nest."""
    contract_all(y, a, b, (nest,), **options)
