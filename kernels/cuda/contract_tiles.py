"""Which tiles a contraction is cut into, and into how many slices its terms are: by a model of a GPU, from sizes alone.

The numbers of the model are rough ones of an H100; what is chosen changes how long a kernel takes, never what it means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from . import launch
from .contract_slots import BASE_ALIGNMENT, Slots

PROCESSORS = 132  # multiprocessors the tiles are chosen for: those of an H100
MOST_SUMS = 1 << 22  # elements of partial sums in scratch memory
LATENCY = 450  # cycles until the next tile has come from the second cache
ONE_GROUP = 8, 32  # slices, and rows of partial sums, that one block adds up; of more, groups are added up before


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


def padding(tile: Tile, itemsize: int) -> int:
    """Elements between a tile's rows in shared memory: then neither long stores nor tensor cores meet in one bank."""
    return 8 if tile.is_tensor else BASE_ALIGNMENT // itemsize


def shared_elements(tile: Tile, itemsize: int) -> int:
    """Elements of two tiles of both operands."""
    return 2 * tile.k * (tile.m + tile.n + 2 * padding(tile, itemsize))


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


def burden_of(slots: Slots, is_turned: bool) -> Burden:
    reads = [change.reads if change else () for change in (slots.a, slots.b)]
    own = [sum(1 for read in x if sum(map(bool, read.strides)) > 1) for x in (reads[::-1] if is_turned else reads)]
    stored = sum(1 for read in (slots.y.reads if slots.y else ()) if sum(map(bool, read.strides)) > 1)
    return Burden(bool(slots.sums), (own[0], own[1]), len(reads[0]) + len(reads[1]) - sum(own), stored)


@functools.cache
def tiles_for(itemsize: int, is_tensor: bool, burden: Burden = NO_BURDEN) -> list[Tile]:
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
    group, groups = groups_of(slices, ONE_GROUP[0])
    ends = 0.0
    if slices > 1:  # to put down sums, to count, and to read again those of a group, and of all groups
        ends = 2500 * (1 + (groups > 1)) + (group + groups) * tile.m * tile.n * itemsize / 64
        ends += slices * elements * itemsize / (PROCESSORS * 20)
    return max(products, loads, waiting) + 0.2 * (products + loads) + ends


def groups_of(count: int, most: int) -> tuple[int, int]:
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
    options = [(t, s) for t in tiles_for(itemsize, is_tensor, burden) for s in (many if slices is None else [slices])]
    cycles, number = min((_cycles(t, s, parts, itemsize), i) for i, (t, s) in enumerate(options))
    return *options[number], cycles
