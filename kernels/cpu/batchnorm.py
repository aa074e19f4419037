"""Batch normalization with the statistics of the batch, and its derivative.

    y = scale * xhat + offset,   xhat = (x - mu) / sqrt(var + epsilon),   mu, var: mean and variance of each column of x

x, y: [N, C], channels last and everything else in N    mu, var (population variance), offset, scale: [C]

Rows are taken in chunks that fit the first cache; how many depends on the shape alone. Each chunk gives its mean and
its sum of squared deviations from it, and these are merged exactly, in order: sound for any mean, and the same for any
number of threads.
Sources: Ioffe & Szegedy, Batch Normalization (2015); Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm
for Computing Sample Variances (1979).
"""

from math import sqrt

import numpy as np
from numpy.typing import DTypeLike

from .threads import parallel_for, ranged
from .vector import fill, lanes, load, save, zeros

Array = np.ndarray
Arrays = tuple[np.ndarray, ...]
Numbers = tuple[int, ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_CHUNK = 4096  # elements of a chunk of rows
_GRAIN = 8192  # elements worth a hand-over to another thread


def _chunks(shape):
    """Rows of a chunk, and number of chunks."""
    rows = max(16, _CHUNK // max(shape[1], 1))
    return rows, -(-shape[0] // rows)


@ranged
def _moments(start, stop, sums, x, channels, rows, row_count):
    """sums [chunks, 2, C]: the mean of each chunk of rows and its sum of squared deviations."""
    for chunk in range(start, stop):
        first, last = chunk * rows, min((chunk + 1) * rows, row_count)
        share = fill(x, 1 / (last - first))
        for channel in range(0, channels, lanes(x)):
            count = channels - channel
            total = zeros(x, 1, 1)
            for place in range(first * channels + channel, last * channels, channels):
                total = total + load(x, place, count)
            mean = total * share
            rest, squares = zeros(x, 1, 1), zeros(x, 1, 1)
            for place in range(first * channels + channel, last * channels, channels):
                deviation = load(x, place, count) - mean
                rest = rest + deviation  # what rounding left out of the mean
                squares = squares + deviation * deviation
            to = chunk * 2 * channels + channel
            save(mean + rest * share, sums, to, count)
            save(squares - rest * rest * share, sums, to + channels, count)


@ranged
def _merge_moments(start, stop, mu, var, sums, rows, row_count):
    """Mean and variance of all rows from those of the chunks (Chan's formula, in double precision)."""
    for channel in range(start, stop):
        mean, squares, seen = 0.0, 0.0, 0
        for chunk in range(len(sums)):
            size = min(rows, row_count - seen)
            step = sums[chunk, 0, channel] - mean
            mean += step * size / (seen + size)
            squares += sums[chunk, 1, channel] + step * step * seen * size / (seen + size)
            seen += size
        mu[channel] = mean
        var[channel] = 0 if squares < 0 else squares / seen


@ranged
def _normalize(start, stop, y, x, mu, var, offset, scale, epsilon):
    channels = len(mu)
    for channel in range(0, channels, lanes(x)):
        count = channels - channel
        mean, shift = load(mu, channel, count), load(offset, channel, count)
        factor = load(scale, channel, count) / sqrt(load(var, channel, count) + fill(x, epsilon))
        for place in range(start * channels + channel, stop * channels, channels):
            save((load(x, place, count) - mean) * factor + shift, y, place, count)


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
    return (((_chunks(x)[1], 2, x[1]), dtype),)


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
    row_count, channels = x.shape
    rows, chunks = _chunks(x.shape)
    grain = 1 + _GRAIN // max(channels, 1)
    parallel_for(_moments, chunks, 1 + grain // rows, sums.reshape(-1), x.reshape(-1), channels, rows, row_count)
    parallel_for(_merge_moments, channels, channels, mu, var, sums, rows, row_count)
    parallel_for(_normalize, row_count, grain, y.reshape(-1), x.reshape(-1), mu, var, offset, scale, float(epsilon))


@ranged
def _moments_grad(start, stop, sums, g, x, mu, var, epsilon, rows, row_count):
    """sums [chunks, 2, C]: for each chunk of rows, the sums of g and of g * xhat."""
    channels = len(mu)
    for chunk in range(start, stop):
        first, last = chunk * rows, min((chunk + 1) * rows, row_count)
        for channel in range(0, channels, lanes(x)):
            count = channels - channel
            mean = load(mu, channel, count)
            total, product = zeros(x, 1, 1), zeros(x, 1, 1)
            for place in range(first * channels + channel, last * channels, channels):
                gradient = load(g, place, count)
                total = total + gradient
                product = product + gradient * (load(x, place, count) - mean)
            to = chunk * 2 * channels + channel
            save(total, sums, to, count)
            save(product / sqrt(load(var, channel, count) + fill(x, epsilon)), sums, to + channels, count)


@ranged
def _merge_grad(start, stop, doffset, dscale, sums):
    """Sums over the chunks, in order and in double precision."""
    for channel in range(start, stop):
        total, product = 0.0, 0.0
        for chunk in range(len(sums)):
            total += sums[chunk, 0, channel]
            product += sums[chunk, 1, channel]
        doffset[channel] = total
        dscale[channel] = product


@ranged
def _normalize_grad(start, stop, dx, doffset, dscale, g, x, mu, var, scale, epsilon, row_count):
    channels = len(mu)
    share = fill(x, 1 / row_count)
    for channel in range(0, channels, lanes(x)):
        count = channels - channel
        mean = load(mu, channel, count)
        deviation = sqrt(load(var, channel, count) + fill(x, epsilon))
        factor = load(scale, channel, count) / deviation
        level, slope = load(doffset, channel, count) * share, load(dscale, channel, count) * share / deviation
        for place in range(start * channels + channel, stop * channels, channels):
            gradient = load(g, place, count) - level - (load(x, place, count) - mean) * slope
            save(gradient * factor, dx, place, count)


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
    return (((_chunks(x)[1], 2, x[1]), dtype),)


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
    row_count, channels = x.shape
    rows, chunks = _chunks(x.shape)
    grain, epsilon = 1 + _GRAIN // max(channels, 1), float(epsilon)
    dx, g, x = dx.reshape(-1), g.reshape(-1), x.reshape(-1)
    parallel_for(_moments_grad, chunks, 1 + grain // rows, sums.reshape(-1), g, x, mu, var, epsilon, rows, row_count)
    parallel_for(_merge_grad, channels, channels, doffset, dscale, sums)
    parallel_for(_normalize_grad, row_count, grain, dx, doffset, dscale, g, x, mu, var, scale, epsilon, row_count)
