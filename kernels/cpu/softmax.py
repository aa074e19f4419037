"""Softmax along the last axis, and its derivative.

    y[n, c] = e[n, c] / sum over c of e[n, c],   e[n, c] = exp(x[n, c] - max of x[n])

x, y, g, dx: [N, C]. Shifted by the row's maximum, so that exp cannot overflow. As in NumPy, a row with NaN or +inf, or
with -inf alone, gives NaN; -inf beside finite values gives 0.
Source: Bishop, Pattern Recognition and Machine Learning (2006), eq. 4.62.
"""

from math import exp

import numpy as np

from .threads import parallel_for, ranged

_GRAIN = 1024  # elements worth a hand-over to another thread


@ranged
def _softmax(start, stop, y, x):
    channels = x.shape[1]
    for row in range(start, stop):
        highest = x[row, 0]
        for c in range(1, channels):
            highest = max(highest, x[row, c])  # a NaN that this misses comes back in the sum
        total = 0.0
        for c in range(channels):
            y[row, c] = exp(x[row, c] - highest)
            total += y[row, c]
        for c in range(channels):
            y[row, c] /= total


def softmax_last(y: np.ndarray, x: np.ndarray) -> None:
    """y[n, c] = exp(x[n, c]) / sum over c of exp(x[n, c])."""
    if x.size:
        parallel_for(_softmax, len(x), 1 + _GRAIN // x.shape[1], y, x)


@ranged
def _softmax_grad(start, stop, dx, g, y):
    channels = y.shape[1]
    for row in range(start, stop):
        total = 0.0
        for c in range(channels):
            total += g[row, c] * y[row, c]
        for c in range(channels):
            dx[row, c] = y[row, c] * (g[row, c] - total)


def softmax_last_grad(dx: np.ndarray, g: np.ndarray, y: np.ndarray) -> None:
    """dx[n, c] = y[n, c] * (g[n, c] - sum over c of g[n, c] * y[n, c]), with y = softmax(x)."""
    if y.size:
        parallel_for(_softmax_grad, len(y), 1 + _GRAIN // y.shape[1], dx, g, y)
