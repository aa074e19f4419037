"""One number everywhere, and the spacing of floating-point numbers.

Also what the kernels that only move elements share: the word in which they do, and numbers as the bits of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel

Array = Any
Numbers = tuple[int, ...]

THREADS = 256  # of the blocks of all kernels of one thread per element
_LARGE = 1 << 30  # from so many elements on subscripts need 64 bits


def blocks(count: int, size: int = THREADS) -> int:
    """How many blocks of this size have `count` threads or more."""
    return -(-count // size)


def index_type(*counts: int) -> str:
    """The type of subscripts into arrays of so many elements, in C."""
    return "int" if max(counts, default=0) < _LARGE else "i64"


def index_dtype(*counts: int) -> str:
    """The same as the dtype of arrays of subscripts."""
    return "int32" if index_type(*counts) == "int" else "int64"


def words_of(row_bytes: int, *arrays: Array) -> int:
    """Bytes of the widest word (16 at most) that rows and addresses are whole multiples of."""
    places = row_bytes
    for array in arrays:
        places |= array.data.ptr
    return min(places & -places, 16) or 16


def bits_of(value: Any, dtype: Any) -> int:
    """8 bytes that repeat a number of this dtype, as a signed whole number."""
    number = np.asarray(value).astype(dtype)
    return int.from_bytes(number.tobytes() * (8 // number.itemsize), "little", signed=True)


def fill(y: Array, value: Any) -> None:
    """One number everywhere in y."""
    if y.size:
        size = words_of(y.nbytes, y)
        count = y.nbytes // size
        kernel("elements.cu", "fill", BYTES=size)(blocks(count), THREADS, (y, count, bits_of(value, y.dtype)))


def full(y: Array, *, shape: Numbers, value: float, dtype: str, device: str = "gpu") -> None:
    """`value` everywhere in y, which has this shape and dtype."""
    fill(y, value)


def spacing(y: Array, x: Array) -> None:
    """y = distance from |x| to the next larger number of its type; NaN where x is infinite or NaN."""
    kernel("spacing.cu", "spacing", T=x.dtype)(blocks(x.size), THREADS, (y, x, x.size))
