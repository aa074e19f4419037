"""Order: the places that sort an array along an axis, and the place of the largest element.

Sorting is a merge sort, stable in both directions. Runs of up to 2048 elements are sorted in shared memory, several
short rows by one block. Of longer rows, runs are then merged in pairs: each block finds by bisection which piece of
either run belongs into its piece of the result, and every element of these its place. Numbers are compared as whole
numbers of the same order.
Source: Green, McColl & Bader, GPU Merge Path (2012).
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import DTypeLike

from .elements import blocks, fill, index_dtype, index_type
from .launch import kernel

Array = Any
Arrays = tuple[Any, ...]
Numbers = tuple[int, ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_RUN = 2048  # RUN of sorting.cu
_THREADS = 256  # THREADS of sorting.cu and argmax.cu
_MAX_PARTS = 256  # of a row, for argmax


# argsort --------------------------------------------------------------------------------------------------------
def argsort_scratch(y: Numbers, x: Numbers, *, dtype: DTypeLike, axis: int, descending: bool) -> Scratch:
    """Scratch of `argsort` for arrays of these shapes: ((shape, dtype), ...)."""
    return sort_scratch(math.prod(x), x[axis])


def argsort(y: Array, x: Array, *, axis: int, descending: bool, scratch: Arrays = ()) -> None:
    """y = places among all elements of x that put x in order along `axis`; equal elements keep their order.

    NaNs come last in rising and first in falling order; -0 equals 0.
    """
    shape = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    sort(y, x, shape, descending=descending, scratch=scratch)


def sort_scratch(count: int, n: int) -> Scratch:
    """Scratch of `sort` for `count` elements in rows of n: their keys and places, twice if runs are merged twice."""
    halves = 0 if n <= _RUN else 1 if n <= 2 * _RUN else 2
    return ((halves, count), "int64"), ((halves, count), index_dtype(2 * count))


def sort(y: Array, x: Array, shape: Numbers, *, descending: bool, size: int = 0, scratch: Arrays = ()) -> None:
    """y = places that put x, [outer, n, inner] = shape, in order along n; int64 are subscripts into `size` elements.

    Subscripts may count from the end, and come in the order of the places they mean; those out of range come last.
    """
    keys, places = scratch
    outer, n, inner = shape
    if not x.size:
        return
    is_wide = x.dtype.itemsize == 8 and (x.dtype.kind == "f" or size >= 1 << 32)
    constants = {
        "X": x.dtype, "KEY": "u64" if is_wide else "unsigned", "INDEX": index_type(2 * x.size),
        "DESCENDING": descending,
    }  # fmt: skip
    pieces, rows = blocks(n, _RUN), outer * inner
    grid = rows * pieces if n > _RUN else blocks(rows, _RUN // n)
    kernel("sorting.cu", "sort_runs", **constants)(grid, _THREADS, (y, keys, places, x, outer, n, inner, size))
    width, half = _RUN, 0
    while width < n:
        arguments = (y, keys, places, outer, n, inner, width, half, int(2 * width >= n))
        kernel("sorting.cu", "merge", **constants)(rows * pieces, _THREADS, arguments)
        width, half = 2 * width, 1 - half


# argmax ---------------------------------------------------------------------------------------------------------
def _dimensions(shape: Numbers, axes: Numbers) -> tuple[list[list[int]], list[list[int]]]:
    """Dimensions that stay (size, stride) and reduced ones (size, stride, rank), in the order of memory.

    The first of `axes` has the rank 1. Neighbours that act as one dimension are one; those of size 1 are left out.
    """
    ranks, rank = {}, 1
    for axis in axes:
        ranks[axis] = rank
        rank *= shape[axis]
    kept: list[list[int]] = []
    reduced: list[list[int]] = []
    last: list[list[int]] | None = None
    stride = math.prod(shape)
    for axis, size in enumerate(shape):
        stride //= size
        if size == 1:
            continue
        group, entry = (reduced, [size, stride, ranks[axis]]) if axis in ranks else (kept, [size, stride])
        if last is group and (group is kept or group[-1][2] == size * ranks[axis]):
            group[-1] = [group[-1][0] * size, *entry[1:]]
        else:
            group.append(entry)
        last = group
    return kept, reduced or [[1, 1, 1]]


def _lanes_and_parts(kept: list[list[int]], rows: int, count: int) -> tuple[int, int]:
    """How many threads read a row together, and into how many parts it is cut; both depend on shapes alone."""
    are_side_by_side = bool(kept) and kept[-1][1] == 1 and kept[-1][0] >= 8
    lanes = 1 if are_side_by_side or count < 16 else 32 if count < 1024 else _THREADS
    if lanes == 1:
        wanted, least = (1 << 16) // rows, 64
    elif lanes == 32:
        return lanes, 1
    else:
        wanted, least = 1024 // rows, 4096
    return lanes, max(1, min(wanted, count // least, _MAX_PARTS))


def argmax_scratch(y: Numbers, x: Numbers, *, dtype: DTypeLike, axes: Numbers) -> Scratch:
    """Scratch of `argmax` for arrays of these shapes: ((shape, dtype), ...)."""
    rows, count = math.prod(y), math.prod(x[axis] for axis in axes)
    if not rows * count:
        return ((0,), "int64"), ((0,), "int64")
    parts = _lanes_and_parts(_dimensions(x, axes)[0], rows, count)[1]
    entries = rows * parts if parts > 1 else 0
    return ((entries,), "int64"), ((entries,), "int64")  # a value of either type fits into 8 bytes


def argmax(y: Array, x: Array, *, axes: Numbers, scratch: Arrays = ()) -> None:
    """y = place among all elements of x of the largest one along `axes`; -1 where there are none.

    Of equal ones the first, counted with the first of `axes` running fastest; NaNs count only where there is nothing
    else.
    """
    values, ranks = scratch
    rows, count = y.size, math.prod(x.shape[axis] for axis in axes)
    if not rows * count:
        return fill(y, -1)
    kept, reduced = _dimensions(x.shape, axes)
    lanes, parts = _lanes_and_parts(kept, rows, count)
    numbers = [number for entry in (*kept, *reduced) for number in entry]
    constants = {
        "T": x.dtype, "INDEX": index_type(x.size, 2 * rows * parts), "LANES": lanes, "KEPT": len(kept),
        "REDUCED": len(reduced),
        "PARAMETERS": ", ".join(f"i64 d{i}" for i in range(len(numbers))),
        "TABLE": ", ".join(f"(INDEX)d{i}" for i in range(len(numbers))),
    }  # fmt: skip
    grid = blocks(rows * parts, _THREADS // lanes)
    kernel("argmax.cu", "argmax", **constants)(grid, _THREADS, (y, values, ranks, x, rows, count, parts, *numbers))
    if parts > 1:
        grid = blocks(rows, _THREADS // 32)
        kernel("argmax.cu", "argmax_parts", **constants)(grid, _THREADS, (y, values, ranks, rows, parts, *numbers))
