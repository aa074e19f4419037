"""Softmax along the rows of a matrix [N, C], dense, and its derivative.

A row that fits a warp's registers is read once; a longer one is read again from the cache.
"""

from __future__ import annotations

from typing import Any

from . import launch

Array = Any  # of CuPy

_THREADS = 256  # of a block; softmax.cu knows it
_LONGEST = 1024  # columns that a warp holds: 32 numbers a thread


def _run(name: str, *arrays: Array) -> None:
    row_count, columns = arrays[0].shape
    if not columns:
        return
    lanes = min(32, 1 << (columns - 1).bit_length())
    each = -(-columns // lanes) if columns <= _LONGEST else 1
    constants = {"T": arrays[0].dtype, "C": columns, "LANES": lanes, "EACH": each}
    if columns <= _LONGEST:
        kernel = launch.kernel("softmax.cu", name.format("rows"), **constants)
        kernel(-(-row_count * lanes // _THREADS), _THREADS, (*arrays, row_count))
    else:
        kernel = launch.kernel("softmax.cu", name.format("long"), **constants)
        kernel(row_count, _THREADS, arrays)


def softmax_last(y: Array, x: Array) -> None:
    """y = exp(x) / sum(exp(x)) along the rows."""
    _run("softmax_{}", y, x)


def softmax_last_grad(dx: Array, g: Array, y: Array) -> None:
    """dx = y * (g - sum(g * y)) along the rows: the derivative by softmax's input, from its output y."""
    _run("softmax_{}_grad", dx, g, y)
