"""Contractions: y[i] = sum over r of a[i, r] * b[i, r] with affine subscripts: convolutions and matrix products.

A nest has `sizes` of its indices and, per dimension of y, a and b, a subscript: `start` and `factors`, pairs of an
index and its factor (minidl's Contraction). What a or b is read beyond its bounds counts as 0. Several nests make one y
together, each of them other elements.

`plan` turns nests into a kernel for exactly these sizes and strides, contract.cu with structs written here in front:

    indices of y and a: rows (M) · of y and b: columns (N) · of all three: batch · not of y: terms (K)

contract_text.py writes them, contract_tiles.py chooses tiles, contract_slots.py is what is said about a call.
`Plan.run` launches. Kernels fuse with their neighbours through `Slots`: what becomes of a number of a or b
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
from .contract_slots import BASE_ALIGNMENT as BASE_ALIGNMENT
from .contract_slots import NONE, Array, Layout, Slots, Stored, Tail
from .contract_slots import Behind as Behind
from .contract_slots import Change as Change
from .contract_slots import Read as Read
from .contract_slots import Summed as Summed
from .contract_slots import layout_of as layout_of
from .contract_text import First, Nest, indices_of, reaches, written
from .contract_tiles import ONE_GROUP, Sizes, Tile, best_tile, burden_of, groups_of, padding

Scratch = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each array

THREADS_EACH = 128  # of a block where each thread makes an element
MOST_COLUMN_SUMS = 8  # sums of one contraction: what a thread holds of them has to find room
MOST_JOINED = 2048  # columns whose sums the last block finishes; more of them are a kernel's work


# sizes of a nest, as far as its subscripts tell ---------------------------------------------------------------------
def _named(nest: Any) -> Sizes:
    """Batch, M, N, K by which operands name an index; strides of 0 are not known here."""
    y, a, b = (indices_of(x) for x in (nest.y, nest.a, nest.b))
    groups = [y & a & b, y - b, y & b - a, set(range(len(nest.sizes))) - y]
    batch, m, n, k = (math.prod(nest.sizes[i] for i in group) for group in groups)
    return batch, m, n, k


def _is_empty(nest: Any) -> bool:
    return any(nest.sizes[i] == 0 for i in indices_of(nest.y))


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


# plans --------------------------------------------------------------------------------------------------------------
def _objection(found: Sequence[Nest], y: Layout, slots: Slots) -> str:
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
        found = [Nest(nest, y, a, b, slots) for nest in nests if not _is_empty(nest)]
        if reason := _objection(found, y, slots):
            raise ValueError(f"contract: {reason}")
        self.is_turned = bool(found) and found[0].is_turned
        for nest in found if self.is_turned else []:
            nest.turn()
        self.slices = slices = _slices(nests, itemsize, is_tensor)
        self.sums = sums = sum(nest.size([*nest.batch, *nest.rows, *nest.columns]) for nest in found)
        self.covers = sums == math.prod(y.shape)
        shapes = [(n.size(n.batch), n.size(n.rows), n.size(n.columns), n.size(n.terms)) for n in found if not n.is_each]
        self.tile = tile = best_tile(tuple(shapes), itemsize, is_tensor, slices, burden_of(slots, self.is_turned))[0]
        width = 2 if tile.is_tensor else min(4, tile.columns)
        largest = max([abs(x) for nest in found for x in reaches(nest)] + [slices * sums], default=0)
        self.sum_columns = math.prod(y.shape[d] for d in slots.kept)
        rows = _Rows([_row_count(nest, tile) for nest in found] if slots.sums else [])
        is_joined = bool(slots.behind) or (0 < self.sum_columns <= MOST_JOINED and rows.count > 0)
        parts: list[str] = []
        lines: dict[bool, list[str]] = {False: [], True: []}
        first, blocks = First(), {False: 0, True: 0}
        for number, nest in enumerate(found):
            part = written(f"Part{number}", nest, first, sums, itemsize, slots, width)
            batch, m, n, _ = part.sizes
            tiles = -(-batch // THREADS_EACH) if nest.is_each else batch * -(-m // tile.m) * -(-n // tile.n)
            begin = blocks[nest.is_each]
            blocks[nest.is_each] += tiles * slices
            lines[nest.is_each].append(f"DO(Part{number}, {begin}, {blocks[nest.is_each]})")
            parts.append(part.text)
            first = First(first.sum + batch * m * n, first.tile + tiles, *rows.first(number + 1))
        self.tiled_blocks, self.each_blocks = blocks[False], blocks[True]
        group_slices, slice_groups = groups_of(slices, ONE_GROUP[0])
        of_slices = first.tile * (slice_groups + 1) if slices > 1 else 0
        self.counters = of_slices + (rows.groups + 1 if is_joined else 0)
        partials = rows.count + rows.groups, len(slots.sums), self.sum_columns
        self.scratch: Scratch = (((slices, sums), self.dtype.name),) if slices > 1 else ()
        self.scratch += ((partials, "float64"),) if slots.sums else ()
        is_large = max(largest, *blocks.values(), math.prod(partials)) + max(tile.m, tile.n) * tile.k >= 1 << 31
        shape = ("WARPS_M", "WARPS_N") if tile.is_tensor else ("TM", "TN")
        constants = {
            "T": self.dtype, "WHOLE": "i64" if is_large else "int", "NATURAL": "u64" if is_large else "unsigned",
            "BM": tile.m, "BN": tile.n, "BK": tile.k, "TENSOR": tile.is_tensor, "PAD": padding(tile, itemsize),
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
        text = launch.text_of("contract.cu").replace("//@ parts\n", "".join(parts))
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

    def prepare(self) -> None:
        """Begin to compile what a run will launch."""
        for text, name in (
            (self.tiled_text, "contract"), (self.each_text, "contract_each"), (self.sums_text, "add_rows"),
        ):  # fmt: skip
            if text:
                launch.compiled(text, name)
        if self.zeros is not None:
            self.zeros.prepare()

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


def _row_count(nest: Nest, tile: Tile) -> int:
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
            self.of_group = groups_of(self.count, ONE_GROUP[1])[0]
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
    text = launch.text_of("contract_sums.cu")
    text = text.replace("//@ reads\n", _indented(reads, 4)).replace("//@ finish\n", _indented(finish, 4))
    return launch.source(text, (
        ("T", plan.dtype), ("COLUMN_SUMS", len(plan.slots.sums)), ("COLUMNS", plan.sum_columns), ("BLOCKS", blocks),
        ("WARPS", plan.warps), ("EXTRAS", _parameters(plan.slots.types, _written_arrays(plan.slots))),
    ))  # fmt: skip


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
    return _objection([Nest(nest, y, a, b, slots) for nest in nests if not _is_empty(nest)], y, slots)
