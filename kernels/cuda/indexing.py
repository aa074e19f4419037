"""Elements by subscript: taken (`gather`), put (`scatter`), added up (`scatter_add`).

Subscripts count along `axis`, or without it through all elements, last dimension fastest; negative ones count from the
end. The dimensions of `index` stand at `axis` in what is taken. The host may not know the subscripts, so one that is
out of range is no error here: nothing is read or written out of bounds, a gather gives NaN (0 of a type without NaN), a
scatter leaves the element out.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import DTypeLike

from .elements import THREADS, bits_of, blocks, fill, index_dtype, index_type, words_of
from .launch import CTYPES, kernel
from .sorting import sort, sort_scratch

Array = Any
Arrays = tuple[Any, ...]
Numbers = tuple[int, ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_CHUNK = 32  # CHUNK of segments.cu


def _sizes(shape: Numbers, axis: int | None) -> Numbers:
    """(outer, size, inner): elements before the dimension that subscripts count along, along it and after it."""
    if axis is None:
        return 1, math.prod(shape), 1
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def gather(y: Array, x: Array, index: Array, *, axis: int | None = None) -> None:
    """y = x[index] along `axis`, or among all elements of x. Out of range: NaN, or 0 of a type that has none."""
    outer, size, inner = _sizes(x.shape, axis)
    width = words_of(inner * x.itemsize, x, y)
    words = inner * x.itemsize // width
    constants = {"BYTES": width, "INDEX": index_type(x.size, y.size), "IS_NUMBER": 1}
    missing = bits_of(math.nan if x.dtype.kind == "f" else 0, x.dtype)
    kernel("indexing.cu", "gather", **constants)(
        blocks(outer * index.size * words), THREADS, (y, x, index, outer, index.size, size, words, missing)
    )


def scatter_scratch(
    y: Numbers, x: Numbers, v: Numbers, index: Numbers, *, dtype: DTypeLike, axis: int | None = None
) -> Scratch:
    """Scratch of `scatter` for arrays of these shapes (v: () for a number): ((shape, dtype), ...)."""
    return (((_sizes(x, axis)[1],), _last_dtype(x, index, axis)),)


def _last_dtype(x: Numbers, index: Numbers, axis: int | None) -> str:
    outer, size, inner = _sizes(x, axis)
    return index_dtype(outer * size * inner, outer * math.prod(index) * inner)


def scatter(y: Array, x: Array, v: Any, index: Array, *, axis: int | None = None, scratch: Arrays = ()) -> None:
    """y = x, but y[index] = v along `axis`, or among all elements; v may be a number.

    Of equal subscripts the last one wins; those out of range write nothing.
    """
    (last,) = scratch
    outer, size, inner = _sizes(x.shape, axis)
    is_number = not hasattr(v, "__cuda_array_interface__")
    is_moved = is_number or v.dtype == x.dtype
    arrays = (y, x) if is_number else (y, x, v)
    width = words_of(inner * x.itemsize, *arrays) if is_moved else x.itemsize
    words = inner * x.itemsize // width
    constants = {"BYTES": width, "INDEX": CTYPES[last.dtype.name], "IS_NUMBER": is_number}
    if not is_number:
        constants["ELEMENT"] = "Word" if is_moved else x.dtype
        constants["SOURCE"] = "Word" if is_moved else v.dtype
    bits = bits_of(v, x.dtype) if is_number else 0
    fill(last, -1)
    kernel("indexing.cu", "mark", **constants)(blocks(index.size), THREADS, (last, index, index.size, size))
    kernel("indexing.cu", "choose", **constants)(
        blocks(outer * size * words),
        THREADS,
        (y, x, x if is_number else v, last, outer, index.size, size, words, bits),
    )


def _lists(taken: int) -> list[int]:
    """How many entries the first list of segments.cu has, and each one after it."""
    counts = [taken]
    while counts[-1] > _CHUNK:
        counts.append(2 * blocks(counts[-1], _CHUNK))
    return counts


def _sum_dtype(dtype: Any) -> Any:
    return "float64" if dtype.kind == "f" else dtype


def scatter_add_scratch(
    y: Numbers, g: Numbers, index: Numbers, *, dtype: Any, shape: Numbers, axis: int | None = None
) -> Scratch:
    """Scratch of `scatter_add` for arrays of these shapes: ((shape, dtype), ...)."""
    outer, size, inner = _sizes(y, axis)
    taken = math.prod(index)
    entries = sum(_lists(taken)[1:])
    return (
        ((taken,), "int64"),
        ((entries,), "int64"),
        ((entries * outer * inner,), _sum_dtype(dtype)),
        *sort_scratch(taken, taken),
    )


def scatter_add(
    y: Array, g: Array, index: Array, *, shape: Numbers, axis: int | None = None, scratch: Arrays = ()
) -> None:
    """y = 0, then y[index] += g along `axis`, or among all elements; `shape` is that of y.

    The elements that go to one place are added in the order of their subscripts, in double if they are real: by sorting
    the subscripts (a stable sort), and a sum for each run of equal ones. Those out of range are left out.
    """
    order, keys, sums, *memory = scratch
    outer, size, inner = _sizes(y.shape, axis)
    taken, columns = index.size, outer * inner
    fill(y, 0)
    if not taken * columns:
        return
    sort(order, index, (1, taken, 1), descending=False, size=size, scratch=tuple(memory))
    counts = _lists(taken)
    constants = {"T": y.dtype, "SUM": CTYPES[sums.dtype.name], "INDEX": index_type(y.size, g.size, sums.size)}
    kernel("segments.cu", "add_elements", **constants)(
        blocks(blocks(taken, _CHUNK) * columns),
        THREADS,
        (y, keys, sums, g, index, order, outer, taken, size, inner),
    )
    start = 0
    for count in counts[1:]:
        kernel("segments.cu", "add_partials", **constants)(
            blocks(blocks(count, _CHUNK) * columns),
            THREADS,
            (y, keys, sums, start, start + count, count, outer, size, inner),
        )
        start += count
