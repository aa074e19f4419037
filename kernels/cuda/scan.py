"""Running sums and products along one axis, added up and multiplied in double.

Products are kept with an exponent of their own, since the product of a part of a row may be out of the range of doubles
where the running product is not: a result is 0 or infinite only if the product itself is so small or large.
In which order elements are combined depends on the shape alone.
Source: Blelloch, Prefix Sums and Their Applications (1990).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numpy.typing import DTypeLike

from .elements import THREADS, blocks, index_type
from .launch import kernel

Array = Any
Arrays = tuple[Any, ...]
Numbers = tuple[int, ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_TILE = 2048  # TILE of scan.cu
_WANTED_THREADS = 1 << 16  # rows across memory are cut into parts until there are so many
_LEAST = 32  # elements of such a part
_TOTALS, _REST, _ALL = 1, 2, 0  # what a launch does (scan.cu)


class _Level(NamedTuple):
    """Rows of n elements, each cut into `parts` parts of `length` elements; `start`: its entry in the totals."""

    n: int
    parts: int
    length: int
    start: int


def _sizes(shape: Numbers, axis: int) -> Numbers:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _levels(outer: int, n: int, inner: int) -> list[_Level]:
    """The rows of x, the rows of their parts' totals, and so on, up to rows that are not cut."""
    levels, start, stop = [], 0, 0
    while True:
        parts, length = 1, n
        if inner == 1 and n > _TILE:
            parts, length = blocks(n, _TILE), _TILE
        elif inner > 1:
            length = blocks(n, max(1, min(blocks(_WANTED_THREADS, outer * inner), blocks(n, _LEAST))))
            parts = blocks(n, length)
        levels.append(_Level(n, parts, length, start))
        if parts == 1:
            return levels
        start, stop, n = stop, stop + outer * parts * inner, parts


def _scratch(shape: Numbers, axis: int, width: int) -> Scratch:
    outer, n, inner = _sizes(shape, axis)
    entries = 0
    if outer * n * inner:
        entries = sum(outer * level.parts * inner for level in _levels(outer, n, inner)[:-1])
    return (((width * entries,), "float64"),)


def _scan(y: Array, x: Array, axis: int, totals: Array, *, is_product: bool) -> None:
    outer, n, inner = _sizes(x.shape, axis)
    if not x.size:
        return
    levels = _levels(outer, n, inner)

    def launch(i: int, task: int) -> None:
        level = levels[i]
        to = levels[i + 1].start if i + 1 < len(levels) else 0
        constants = {"T": x.dtype, "PRODUCT": is_product, "INDEX": index_type(2 * x.size), "LEVEL": i > 0}
        if inner == 1:
            tiles = outer * level.parts if level.parts > 1 else blocks(outer, _TILE // level.n)
            kernel("scan.cu", "scan_rows", **constants)(
                tiles, THREADS, (y, totals, x, level.start, to, outer, level.n, level.parts, task)
            )
        else:
            kernel("scan.cu", "scan_columns", **constants)(
                blocks(outer * level.parts * inner),
                THREADS,
                (y, totals, x, level.start, to, outer, level.n, inner, level.parts, level.length, task),
            )

    top = len(levels) - 1
    for i in range(top):
        launch(i, _TOTALS)
    launch(top, _ALL)
    for i in reversed(range(top)):
        launch(i, _REST)


def cumsum_along_scratch(y: Numbers, x: Numbers, *, dtype: DTypeLike, axis: int) -> Scratch:
    """Scratch of `cumsum_along` for arrays of these shapes: ((shape, dtype), ...)."""
    return _scratch(x, axis, 1)


def cumsum_along(y: Array, x: Array, *, axis: int, scratch: Arrays = ()) -> None:
    """y = running sum of x along `axis`."""
    _scan(y, x, axis, scratch[0], is_product=False)


def cumprod_along_scratch(y: Numbers, x: Numbers, *, dtype: DTypeLike, axis: int) -> Scratch:
    """Scratch of `cumprod_along` for arrays of these shapes: ((shape, dtype), ...)."""
    return _scratch(x, axis, 2)


def cumprod_along(y: Array, x: Array, *, axis: int, scratch: Arrays = ()) -> None:
    """y = running product of x along `axis`."""
    _scan(y, x, axis, scratch[0], is_product=True)
