"""Derivatives checked against differences of values, in float64."""

import numpy as np

from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.ops.elementwise import times
from minidl.ops.reduction import reduce_sum
from minidl.ops.views import view_as

STEP = 1e-5


def total(x):
    """The sum of all elements, as a scalar."""
    return view_as(reduce_sum(x, axes=tuple(range(x.ndim))), shape=())


def weighted(fun, seed):
    """A scalar function: the outputs of fun, each element times its own fixed number, summed."""

    def scalar(*xs):
        ys = fun(*xs)
        r = np.random.default_rng(seed)
        scalars = [
            total(times(DLArray(y._value), r.uniform(0.5, 1.5, size=y.shape)))
            for y in (ys if isinstance(ys, tuple) else (ys,))
        ]
        result = scalars[0]
        for s in scalars[1:]:
            result = result + s
        return result

    return scalar


def gradients(scalar, arrays, directions=None):
    """Gradients of the scalar function by each array; with directions, those of its slope along them."""

    def fun(*xs):
        y = scalar(*xs)
        if directions is None:
            return dlgradient(y, *xs)
        g = dlgradient(y, *xs, EnableHigherDerivatives=True)
        slope = sum((total(times(a, d)) for a, d in zip(g if len(xs) > 1 else (g,), directions)), start=0)
        return dlgradient(slope, *xs)

    found = dlfeval(fun, *map(dlarray, arrays))
    return [np.asarray(g) for g in (found if len(arrays) > 1 else (found,))]


def check_derivatives(fun, *arrays, order=2, rtol=2e-6, seed=0):
    """First and second derivatives of fun by all arrays, along a random direction, agree with central differences."""
    r = np.random.default_rng(seed)
    arrays = [np.asarray(a, dtype=np.float64) for a in arrays]
    directions = [r.normal(size=a.shape) for a in arrays]
    scalar = weighted(fun, seed)

    def at(step):
        return [a + step * d for a, d in zip(arrays, directions)]

    def value(xs):
        return float(scalar(*map(dlarray, xs)))

    g = gradients(scalar, arrays)
    assert [a.shape for a in g] == [a.shape for a in arrays]
    slope = sum(float(np.sum(a * d)) for a, d in zip(g, directions))
    np.testing.assert_allclose(slope, (value(at(STEP)) - value(at(-STEP))) / (2 * STEP), rtol=rtol, atol=1e-7)
    if order < 2:
        return
    second = gradients(scalar, arrays, directions)
    up, down = gradients(scalar, at(STEP)), gradients(scalar, at(-STEP))
    for h, a, b in zip(second, up, down):
        np.testing.assert_allclose(h, (a - b) / (2 * STEP), rtol=100 * rtol, atol=2e-6)
