"""Normalisation: batchnorm, for training with the statistics of the batch and for prediction with trained ones.

Its ops see a matrix x [N, C]: a row per observation, position and time step.
"""

from __future__ import annotations

import functools
from typing import Any

from minidl.core.dlarray import DLArray, Operand, public
from minidl.core.errors import OptionError, ShapeError, number
from minidl.core.op import KERNEL, MAP, case, op
from minidl.core.options import options
from minidl.core.spec import DOUBLE, Spec
from minidl.ops.elementwise import maximum, plus, sqrt, square
from minidl.ops.formats import arranged, give, read, repeated, returned, rows, vector
from minidl.ops.reduction import reduce_sum
from minidl.ops.views import broadcast, cast, view_as


def _train_samples(r):
    return [
        case(r.normal(size=(n, c)), r.normal(size=(c,)), r.normal(size=(c,)), epsilon=1e-5)
        for n, c in ((6, 3), (4, 1), (12, 5))
    ]


@op(KERNEL, types="f->fff", samples=_train_samples)
def batchnorm_train(x, offset, scale, *, epsilon):
    """y = (x - mu) / sqrt(var + epsilon) * scale + offset per column, and the columns' mean and population variance."""
    mu, var = _moments(x)
    y = (x - mu) * (scale / sqrt(var + epsilon)) + offset
    return y, view_as(mu, shape=(x.shape[1],)), view_as(var, shape=(x.shape[1],))


def _moments(x):
    """Mean and population variance of each column, [1, C]."""
    count = x.shape[0]
    if x.dtype == DOUBLE:  # a second pass: one loses its digits where the mean is large
        mu = reduce_sum(x, axes=(0,)) / count
        return mu, reduce_sum(square(x - mu), axes=(0,)) / count
    wide = cast(x, dtype="float64")  # has digits enough for one pass
    mu = reduce_sum(wide, axes=(0,)) / count
    var = maximum(reduce_sum(square(wide), axes=(0,)) / count - square(mu), 0)
    return cast(mu, dtype=x.dtype.name), cast(var, dtype=x.dtype.name)


@batchnorm_train.infer
def _(x, offset, scale, *, epsilon):
    if not x.shape[0]:
        raise ShapeError("batchnorm: X has no observations, so there is no mean. Give at least one.")
    vector = Spec((x.shape[1],), x.dtype, x.device)
    return x, vector, vector


@batchnorm_train.vjp
def _(g, y, x, offset, scale, *, epsilon):
    (g, g_mu, g_var), (_, mu, var), count = g, y, x.shape[0]
    terms, doffset, dscale = [], None, None
    if g is not None:
        dx, doffset, dscale = batchnorm_grad(g, x, mu, var, scale, epsilon=epsilon)
        terms.append(dx)
    if g_mu is not None:
        terms.append(broadcast(g_mu / count, shape=x.shape, dims=(1,)))
    if g_var is not None:
        terms.append((x - mu) * (g_var * (2 / count)))
    return functools.reduce(plus, terms), doffset, dscale


def _grad_samples(r):
    return [
        case(*r.normal(size=(2, n, c)), r.normal(size=c), r.uniform(0.5, 2, size=c), r.normal(size=c), epsilon=1e-5)
        for n, c in ((6, 3), (4, 1))
    ]


@op(KERNEL, types="f->fff", samples=_grad_samples)
def batchnorm_grad(g, x, mu, var, scale, *, epsilon):
    """Gradients of batchnorm_train's y by x, offset and scale; mu and var are the statistics of x."""
    count, channels = x.shape
    factor = 1 / sqrt(var + epsilon)
    doffset = reduce_sum(g, axes=(0,))
    dscale = reduce_sum(g * (x - mu), axes=(0,)) * factor
    dx = (g - doffset / count - (x - mu) * (dscale * factor / count)) * (scale * factor)
    return dx, view_as(doffset, shape=(channels,)), view_as(dscale, shape=(channels,))


@batchnorm_grad.sums
def _(y, g, x, mu, var, scale, *, epsilon):
    """Nothing remains of dx, since moving all of x alike changes no y; NaN and infinity remain what they are."""
    _, doffset, dscale = y
    return 0 * ((doffset + dscale) * scale), None, None


@batchnorm_grad.infer
def _(g, x, mu, var, scale, *, epsilon):
    vector = Spec((x.shape[1],), x.dtype, x.device)
    return x, vector, vector


@op(MAP, samples=lambda r: [case(*r.uniform(0.2, 2, size=(2, 4, 3)), epsilon=1e-5)])
def batchnorm_factor(scale, var, *, epsilon):
    """What batch normalisation multiplies by: one number per channel, so worth computing apart."""
    return scale / sqrt(var + epsilon)


@op(MAP, samples=lambda r: [case(*r.uniform(0.2, 2, size=(4, 4, 3)))])
def batchnorm_fixed(x, mu, factor, offset):
    """Batch normalisation with given statistics."""
    return (x - mu) * factor + offset


@op(MAP)
def moving_average(new, old, decay):
    """decay * new + (1 - decay) * old."""
    return decay * new + (1 - decay) * old


@public
@options
def batchnorm(
    X: Operand, offset: Operand, scale: Operand, mu: Operand | None = None, sigmaSq: Operand | None = None, *,
    MeanDecay: float = 0.1, VarianceDecay: float = 0.1, Epsilon: float = 1e-5, DataFormat: str | None = None,
    nargout: int = 1,
) -> Any:  # fmt: skip
    """Batch normalisation: each channel to mean 0 and variance 1, then scaled and shifted.

        y = (x - mean) / sqrt(variance + Epsilon) * scale + offset

    Y                = batchnorm(X, offset, scale)                             statistics of X itself
    Y, mu, sigmaSq   = batchnorm(X, offset, scale, nargout=3)                  and returns them
    Y, muNew, varNew = batchnorm(X, offset, scale, mu, sigmaSq, nargout=3)     and returns the given ones, moved:
                       muNew = MeanDecay * mean + (1 - MeanDecay) * mu; varNew likewise with VarianceDecay
    Y                = batchnorm(X, offset, scale, mu, sigmaSq)                the given statistics (prediction)

    X : dlarray with a C in its labels, or unformatted with DataFormat. Statistics are taken over all other dimensions.
    offset, scale, mu, sigmaSq : a number per channel, in any orientation (or one number for all channels).
    MeanDecay, VarianceDecay : weight of the new statistics, 0 to 1.  Epsilon : at least 1e-5.
    nargout : how many results are wanted, as MATLAB counts them: 1, 2 or 3. It chooses between the call forms.
    Variances are population variances (divided by N), also in the moving update. mu and sigmaSq come back as
    unformatted dlarrays of shape (C, 1); gradients flow through them.
    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1; MathWorks, reference page "batchnorm".

    >>> X = [[1.0, 3.0], [10.0, 30.0]]
    >>> Y, mu, sigmaSq = batchnorm(X, [0.0, 0.0], [1.0, 1.0], DataFormat="CB", nargout=3)
    >>> mu.tolist(), sigmaSq.tolist()
    ([[2.0], [20.0]], [[1.0], [100.0]])
    """
    if nargout not in (1, 2, 3):
        raise OptionError(f"batchnorm: nargout is 1 (Y), 2 (Y, mu) or 3 (Y, mu, sigmaSq); got {nargout!r}.")
    if (mu is None) != (sigmaSq is None):
        raise OptionError("batchnorm: mu and sigmaSq come together. Give both, or none for the statistics of X.")
    epsilon = number("batchnorm", "Epsilon", Epsilon, "a number of at least 1e-5", lambda e: e >= 1e-5)
    x, labels, is_formatted = read("batchnorm", X, DataFormat)
    plan = rows("batchnorm", x._value.spec.shape, labels)
    channels = plan.matrix[1]
    offset, scale = vector("batchnorm", "offset", offset, channels), vector("batchnorm", "scale", scale, channels)
    if nargout == 1 and mu is not None:
        mu, sigmaSq = vector("batchnorm", "mu", mu, channels), vector("batchnorm", "sigmaSq", sigmaSq, channels)
        factor = batchnorm_factor(scale, sigmaSq, epsilon=epsilon)
        y = batchnorm_fixed(arranged(x, plan.order, plan.full), mu, factor, offset)
    else:
        matrix = arranged(x, plan.order, plan.matrix)
        y, mean, variance = batchnorm_train(
            matrix, repeated(offset, channels), repeated(scale, channels), epsilon=epsilon
        )
    y = give(returned(y, plan.full, plan.back), labels, is_formatted, X)
    if nargout == 1:
        return y
    if mu is None:
        return (y, _column(mean), _column(variance))[:nargout]
    mean = _moved("mu", mean, mu, "MeanDecay", MeanDecay)
    if nargout == 2:
        return y, mean
    return y, mean, _moved("sigmaSq", variance, sigmaSq, "VarianceDecay", VarianceDecay)


def _column(v: DLArray) -> DLArray:
    return view_as(v, shape=(v.size, 1))


def _moved(name: str, new: DLArray, old: Any, option: str, decay: float) -> DLArray:
    """The moving average of a statistic; old in any orientation."""
    decay = number("batchnorm", option, decay, "a number from 0 to 1", lambda d: 0 <= d <= 1)
    count = new.size
    if isinstance(old, DLArray) and old.shape == (count, 1) and not old._labels:
        return moving_average(_column(new), old, decay)
    return moving_average(_column(new), _column(repeated(vector("batchnorm", name, old, count), count)), decay)
