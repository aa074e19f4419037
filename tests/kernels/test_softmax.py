"""Softmax kernels against NumPy in float64."""

import numpy as np
import pytest

from minidl.kernels.cpu import softmax as module
from minidl.kernels.cpu.softmax import softmax_last, softmax_last_grad

SHAPES = [(1, 1), (32, 10), (5, 1), (3, 1000), (700, 3), (0, 4)]


def run(x):
    y = np.full_like(x, np.nan)
    with np.errstate(invalid="ignore"):
        softmax_last(y, x)
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True, initial=-np.inf))
        return y, e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("grain", [0, 1024])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape, dtype, tolerance, grain, monkeypatch):
    monkeypatch.setattr(module, "_GRAIN", grain)
    random = np.random.default_rng(0)
    x, g = (random.standard_normal((2, *shape)) * 5).astype(dtype)
    before = x.copy(), g.copy()
    y, expected = run(x)
    dx = np.full_like(x, np.nan)
    softmax_last_grad(dx, g, y)
    assert np.allclose(y, expected, rtol=tolerance, atol=0)
    assert np.allclose(dx, expected * (g - (g * expected).sum(1, keepdims=True)), rtol=tolerance, atol=10 * tolerance)
    assert np.array_equal(x, before[0]) and np.array_equal(g, before[1])


@pytest.mark.parametrize(
    ("row", "probabilities"),
    [
        ([1000.0, 1000.0, -1000.0], [0.5, 0.5, 0]),
        ([-np.inf, 0.0, 0.0], [0, 0.5, 0.5]),
        ([np.nan, 1.0, 2.0], [np.nan] * 3),
        ([1.0, np.nan, 2.0], [np.nan] * 3),
        ([1.0, 2.0, np.nan], [np.nan] * 3),
        ([np.inf, 1.0, 2.0], [np.nan] * 3),
        ([-np.inf] * 3, [np.nan] * 3),
    ],
)
def test_extremes_are_as_in_numpy(row, probabilities):
    y, expected = run(np.array([row, [0, 0, 0]], np.float32))
    assert np.array_equal(y, expected.astype(np.float32), equal_nan=True)
    assert np.array_equal(y[0], np.float32(probabilities), equal_nan=True)
