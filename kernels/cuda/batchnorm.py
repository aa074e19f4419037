"""Batch normalization with the statistics of the batch, and its derivative; twin of kernels/cpu/batchnorm.py.

    y = scale * xhat + offset,   xhat = (x - mu) / sqrt(var + epsilon),   mu, var: mean and variance of each column of x

x, y: [N, C], channels last and everything else in N, dense    mu, var (population variance), offset, scale: [C]

Two launches each: sums of chunks of rows, then the merge of all chunks, by every block for its own columns, and the
result. The chunks depend on the shape alone, sums have a fixed order: equal arrays give equal bits.
Sources: Ioffe & Szegedy, Batch Normalization (2015); Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm
for Computing Sample Variances (1979).
"""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

from numpy.typing import DTypeLike

from . import launch

Array = Any  # of CuPy
Arrays = tuple[Any, ...]
Numbers = tuple[int, ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_THREADS = 512  # of a block, about
_COLUMNS = 64  # of a block, about: more of them share a row of 256 bytes and more
_SECTOR = 8  # columns of a block are a multiple of this where there are several blocks
_CHUNKS, _BLOCKS = 256, 1024  # at most
_STEPS = 4  # rows that a thread should have at least


class _Cut(NamedTuple):
    """How blocks share a matrix."""

    columns: int  # of a block
    rows: int  # of threads in a block
    blocks: int  # side by side
    chunks: int
    chunk_rows: int


def _cut(shape: Numbers) -> _Cut:
    row_count, channels = shape
    blocks = -(-channels // _COLUMNS)
    columns = channels if blocks == 1 else -(-channels // (blocks * _SECTOR)) * _SECTOR
    rows = max(1, _THREADS // columns)
    blocks = -(-channels // columns)
    # What a block merges, 16 bytes a chunk, is to be less than a quarter of what it reads and writes, 8 bytes a row or
    # more: chunks <= rows of a chunk / 8.
    chunks = min(isqrt(row_count // 8), row_count // (rows * _STEPS), _CHUNKS, _BLOCKS // blocks)
    chunk_rows = max(1, -(-row_count // max(1, chunks)))
    return _Cut(columns, rows, blocks, max(1, -(-row_count // chunk_rows)), chunk_rows)


def _scratch(shape: Numbers) -> Scratch:
    return (((_cut(shape).chunks if shape[1] else 0, 2, shape[1]), "float64"),)


def _kernel(name: str, x: Array, cut: _Cut) -> Any:
    half = (1 << (cut.rows - 1).bit_length()) >> 1
    constants = {"T": x.dtype, "C": x.shape[1], "COLUMNS": cut.columns, "ROWS": cut.rows, "HALF": half}
    return launch.kernel("batchnorm.cu", name, **constants)


def _run(first: str, second: str, x: Array, outputs: Arrays, statistics: Arrays, inputs: Arrays, sums: Array,
         epsilon: float) -> None:  # fmt: skip
    """Both stages: first(sums, *statistics), then second(*outputs, *inputs, sums)."""
    row_count = x.shape[0]
    cut = _cut(x.shape)
    grid, block = (cut.chunks, cut.blocks), cut.columns * cut.rows
    _kernel(first, x, cut)(grid, block, (sums, *statistics, cut.chunk_rows, row_count))
    share = 1 / row_count if row_count else float("nan")
    arguments = (*outputs, *inputs, sums, cut.chunk_rows, row_count, share, float(epsilon))
    _kernel(second, x, cut)(grid, block, arguments)


def batchnorm_train_scratch(
    y: Numbers,
    mu: Numbers,
    var: Numbers,
    x: Numbers,
    offset: Numbers,
    scale: Numbers,
    *,
    dtype: DTypeLike,
    epsilon: float,
) -> Scratch:
    """Scratch of `batchnorm_train` for arrays of these shapes: ((shape, dtype), ...)."""
    return _scratch(x)


def batchnorm_train(
    y: Array,
    mu: Array,
    var: Array,
    x: Array,
    offset: Array,
    scale: Array,
    *,
    epsilon: float,
    scratch: Arrays = (),
) -> None:
    """y = scale * (x - mu) / sqrt(var + epsilon) + offset; mu and var: mean and population variance of x's columns."""
    (sums,) = scratch
    if x.shape[1]:
        _run("batchnorm_moments", "batchnorm_normalize", x, (y, mu, var), (x,), (x, offset, scale), sums, epsilon)


def batchnorm_grad_scratch(
    dx: Numbers,
    doffset: Numbers,
    dscale: Numbers,
    g: Numbers,
    x: Numbers,
    mu: Numbers,
    var: Numbers,
    scale: Numbers,
    *,
    dtype: DTypeLike,
    epsilon: float,
) -> Scratch:
    """Scratch of `batchnorm_grad` for arrays of these shapes: ((shape, dtype), ...)."""
    return _scratch(x)


def batchnorm_grad(
    dx: Array,
    doffset: Array,
    dscale: Array,
    g: Array,
    x: Array,
    mu: Array,
    var: Array,
    scale: Array,
    *,
    epsilon: float,
    scratch: Arrays = (),
) -> None:
    """Derivatives of sum(g * y) with respect to x (through mu and var, too), offset and scale.

    doffset = sum g    dscale = sum g * xhat    dx = scale / sqrt(var + epsilon) * (g - doffset / N - xhat * dscale / N)
    """
    (sums,) = scratch
    if x.shape[1]:
        outputs, inputs = (dx, doffset, dscale), (g, x, mu, var, scale)
        _run("batchnorm_grad_sums", "batchnorm_normalize_grad", x, outputs, (g, x, mu), inputs, sums, epsilon)
