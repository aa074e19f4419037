"""Batch normalization kernels against NumPy in float64."""

import numpy as np
import pytest

from minidl.kernels.cpu import batchnorm as module
from minidl.kernels.cpu.batchnorm import batchnorm_grad, batchnorm_train
from minidl.kernels.cpu.threads import set_thread_count

EPSILON = 1e-5
SHAPES = [(1, 1), (5, 3), (7, 16), (300, 17), (1000, 33), (5000, 2), (25088, 16), (40, 500)]


def make(shape, dtype, mean=1.0, seed=0):
    random = np.random.default_rng(seed)
    x = mean + 2 * random.standard_normal(shape)
    return [array.astype(dtype) for array in (x, *random.standard_normal((2, shape[1])), random.standard_normal(shape))]


def forward(x, offset, scale):
    y, mu, var = np.full_like(x, np.nan), np.full_like(offset, np.nan), np.full_like(offset, np.nan)
    arrays = y, mu, var, x, offset, scale
    memory = module.batchnorm_train_scratch(*(array.shape for array in arrays), dtype=x.dtype, epsilon=EPSILON)
    batchnorm_train(*arrays, epsilon=EPSILON, scratch=tuple(np.full(shape, np.nan, dtype) for shape, dtype in memory))
    return y, mu, var


def backward(g, x, mu, var, scale):
    dx, doffset, dscale = np.full_like(x, np.nan), np.full_like(mu, np.nan), np.full_like(mu, np.nan)
    arrays = dx, doffset, dscale, g, x, mu, var, scale
    memory = module.batchnorm_grad_scratch(*(array.shape for array in arrays), dtype=x.dtype, epsilon=EPSILON)
    batchnorm_grad(*arrays, epsilon=EPSILON, scratch=tuple(np.full(shape, np.nan, dtype) for shape, dtype in memory))
    return dx, doffset, dscale


def in_float64(x, offset, scale, g):
    """(y, mu, var), (dx, doffset, dscale) by the textbook."""
    x, offset, scale, g = (array.astype(np.float64) for array in (x, offset, scale, g))
    mu, var = x.mean(0), x.var(0)
    deviation = np.sqrt(var + EPSILON)
    xhat = (x - mu) / deviation
    doffset, dscale = g.sum(0), (g * xhat).sum(0)
    dx = scale / deviation * (g - doffset / len(x) - xhat * dscale / len(x))
    return (scale * xhat + offset, mu, var), (dx, doffset, dscale)


@pytest.fixture(autouse=True)
def small_grain(monkeypatch):
    """Cut even small work into many blocks."""
    monkeypatch.setattr(module, "_GRAIN", 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape, dtype, tolerance):
    x, offset, scale, g = make(shape, dtype, mean=0.1)
    before = [array.copy() for array in (x, offset, scale, g)]
    y, mu, var = forward(x, offset, scale)
    results = y, mu, var, *backward(g, x, mu, var, scale)
    expected = [array for triple in in_float64(*before) for array in triple]
    for result, right in zip(results, expected, strict=True):
        assert np.allclose(result, right, rtol=tolerance, atol=tolerance * max(1, np.abs(right).max()))
    for array, old in zip((x, offset, scale, g), before, strict=True):
        assert np.array_equal(array, old)


@pytest.mark.parametrize("mean", [50.0, -500.0, 1e4])
def test_variance_holds_far_from_zero(mean):
    x, offset, scale, _ = make((3000, 5), np.float32, mean)
    _, mu, var = forward(x, offset, scale)
    assert mu == pytest.approx(x.mean(0, dtype=np.float64), rel=1e-7)
    assert var == pytest.approx(x.var(0, dtype=np.float64), rel=1e-5)


def test_constant_column_has_no_variance():
    x = np.full((1000, 3), 0.1, np.float32)
    y, mu, var = forward(x, np.float32([1, 2, 3]), np.float32([1, 1, 1]))
    assert np.array_equal(mu, x[0]) and np.all(np.abs(var) < 1e-16)
    assert y == pytest.approx(np.broadcast_to([1, 2, 3], y.shape), abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_value_spoils_its_column_alone(value):
    x, offset, scale, g = make((300, 20), np.float32)
    x[211, 7] = value
    y, mu, var = forward(x, offset, scale)
    dx, _, dscale = backward(g, x, mu, var, scale)
    bad = np.arange(20) == 7
    for array in (*y, *dx, mu, var, dscale):
        assert np.array_equal(~np.isfinite(array), bad)


def test_any_number_of_threads_gives_the_same_bits():
    x, offset, scale, g = make((5000, 19), np.float32)
    try:
        results = []
        for threads in 1, 2, 5:
            set_thread_count(threads)
            y, mu, var = forward(x, offset, scale)
            results.append([array.tobytes() for array in (y, mu, var, *backward(g, x, mu, var, scale))])
    finally:
        set_thread_count()
    assert results[0] == results[1] == results[2]
