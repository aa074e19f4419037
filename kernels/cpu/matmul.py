"""Matrix product: the convolution kernels with filters of one tap; NumPy's BLAS for what they do not cover.

y = a @ b is a convolution of a, a line of rows with K channels. If a lies transposed in memory it is the weight
gradient of such a convolution, if b does it is the input gradient: no operand is copied to be turned.
BLAS takes small products, which it does in one thread, and large ones, for which our workers go to sleep first: its
threads and ours would fight for the processors.
"""

import math

import numpy as np

from minidl.kernels.cpu import conv
from minidl.kernels.cpu.threads import rest

_LINE = dict(stride=(1,), dilation=(1,), padding=((0, 0),))
SMALL = 1 << 17  # multiplications up to which BLAS uses one thread
LARGE = 1 << 27  # multiplications from which blocking for the caches, as BLAS does it, wins


def matmul_scratch(y, a, b, *, dtype) -> tuple:
    """Scratch of `matmul` for arrays of these shapes: memory for the longest of its ways."""
    if not _is_ours(y, a, b):
        return ()
    (m, k), n = a, b[1]
    ways = (
        conv.conv_scratch((1, m, n), (1, m, k), (1, 1, k, n), dtype=dtype, **_LINE),
        conv.conv_input_grad_scratch((1, m, n), (1, m, k), (1, 1, n, k), dtype=dtype, **_LINE),
        conv.conv_weight_grad_scratch((1, 1, m, n), (1, k, n), (1, k, m), dtype=dtype, **_LINE),
    )
    return tuple([((max(math.prod(way[i][0]) for way in ways),), dtype) for i in (0, 1)])


def matmul(y, a, b, *, scratch=()) -> None:
    """y[.., i, j] = sum over k of a[.., i, k] * b[.., k, j]."""
    if not scratch:
        _by_blas(y, a, b)
        return
    (m, k), n = a.shape, b.shape[1]
    if a.flags.c_contiguous and b.flags.c_contiguous:
        shapes = (1, m, n), (1, m, k), (1, 1, k, n)
        kernel, needed = conv.conv, conv.conv_scratch(*shapes, dtype=y.dtype, **_LINE)
    elif a.flags.c_contiguous and b.flags.f_contiguous:
        shapes, b = ((1, m, n), (1, m, k), (1, 1, n, k)), b.T
        kernel, needed = conv.conv_input_grad, conv.conv_input_grad_scratch(*shapes, dtype=y.dtype, **_LINE)
    elif a.flags.f_contiguous and b.flags.c_contiguous:
        shapes, a, b = ((1, 1, m, n), (1, k, n), (1, k, m)), b, a.T
        kernel, needed = conv.conv_weight_grad, conv.conv_weight_grad_scratch(*shapes, dtype=y.dtype, **_LINE)
    else:
        _by_blas(y, a, b)
        return
    space = [memory[: math.prod(shape)].reshape(shape) for memory, (shape, _) in zip(scratch, needed)]
    kernel(*[x.reshape(shape) for x, shape in zip((y, a, b), shapes)], **_LINE, scratch=space)


def _is_ours(y, a, b) -> bool:
    return len(a) == len(b) == 2 and 1 not in y and SMALL < math.prod(y) * a[1] < LARGE


def _by_blas(y, a, b) -> None:
    if y.size * a.shape[-1] > SMALL:
        rest()
    np.matmul(_for_blas(a), _for_blas(b), out=y)


def _for_blas(x):
    """x, copied if neither its rows nor its columns are contiguous: NumPy would multiply it without BLAS."""
    rows, columns = x.strides[-2:]
    return x if x.itemsize in (abs(rows), abs(columns)) else np.ascontiguousarray(x)
