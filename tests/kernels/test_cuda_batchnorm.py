"""Batch normalization on the device against NumPy in float64."""

import numpy as np
import pytest

from minidl.kernels.cpu import batchnorm as cpu
from minidl.kernels.cuda import batchnorm as module
from minidl.kernels.cuda.batchnorm import batchnorm_grad, batchnorm_train

EPSILON = 1e-5
SHAPES = [(1, 1), (1, 5), (5, 3), (7, 16), (300, 17), (700, 33), (5000, 1), (3001, 3), (2000, 16), (40, 130), (9, 1000),
          (33, 65)]  # fmt: skip
TOLERANCES = [(np.float32, 1e-5), (np.float64, 1e-12)]


def make(shape, dtype, mean=1.0, spread=2.0, seed=0):
    """x, offset, scale, g."""
    random = np.random.default_rng(seed)
    x = mean + spread * random.standard_normal(shape)
    return [array.astype(dtype) for array in (x, *random.standard_normal((2, shape[1])), random.standard_normal(shape))]


def run(device, kernel, scratch, shapes, inputs, dtype):
    """Results of a kernel in poisoned memory; the inputs stay as they are."""
    outputs = [device.empty(shape, dtype) for shape in shapes]
    arrays = [device.array(x) for x in inputs]
    memory = scratch(*shapes, *(x.shape for x in inputs), dtype=dtype, epsilon=EPSILON)
    kernel(*outputs, *arrays, epsilon=EPSILON, scratch=tuple(device.empty(*about) for about in memory))
    for array, old in zip(arrays, inputs, strict=True):
        assert np.array_equal(array.get(), old, equal_nan=True)
    return [y.get() for y in outputs]


def forward(device, x, offset, scale):
    shapes = [x.shape, offset.shape, offset.shape]
    return run(device, batchnorm_train, module.batchnorm_train_scratch, shapes, (x, offset, scale), x.dtype)


def backward(device, g, x, mu, var, scale):
    shapes = [x.shape, mu.shape, mu.shape]
    return run(device, batchnorm_grad, module.batchnorm_grad_scratch, shapes, (g, x, mu, var, scale), x.dtype)


def forward_in_float64(x, offset, scale):
    x, offset, scale = (array.astype(np.float64) for array in (x, offset, scale))
    mu, var = x.mean(0), x.var(0)
    return scale * (x - mu) / np.sqrt(var + EPSILON) + offset, mu, var


def backward_in_float64(g, x, mu, var, scale):
    g, x, mu, var, scale = (array.astype(np.float64) for array in (g, x, mu, var, scale))
    deviation = np.sqrt(var + EPSILON)
    xhat = (x - mu) / deviation
    doffset, dscale = g.sum(0), (g * xhat).sum(0)
    return scale / deviation * (g - doffset / len(x) - xhat * dscale / len(x)), doffset, dscale


def assert_near(results, expected, tolerance):
    for result, right in zip(results, expected, strict=True):
        assert np.allclose(result, right, rtol=tolerance, atol=tolerance * max(1, np.abs(right).max(initial=0)))


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(device, shape, dtype, tolerance):
    x, offset, scale, g = make(shape, dtype, mean=0.1)
    first = None
    for order in device.orders():
        device.set_order(order)
        results = forward(device, x, offset, scale)
        assert_near(results, forward_in_float64(x, offset, scale), tolerance)
        _, mu, var = results
        results += backward(device, g, x, mu, var, scale)
        assert_near(results[3:], backward_in_float64(g, x, mu, var, scale), tolerance)
        bits = [array.tobytes() for array in results]
        first = first or bits
        assert bits == first, "the order of blocks and threads must not be seen"


@pytest.mark.parametrize(("mean", "spread"), [(50.0, 2.0), (-500.0, 1.0), (1e4, 2.0), (1e4, 0.02), (-1e6, 0.5)])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_statistics_hold_far_from_zero(device, mean, spread, dtype, tolerance):
    x, offset, scale, _ = make((3000, 5), dtype, mean, spread)
    y, mu, var = forward(device, x, offset, scale)
    wide = x.astype(np.float64)
    wide -= mean  # exactly
    assert mu == pytest.approx(mean + wide.mean(0), rel=tolerance / 100)
    assert var == pytest.approx(wide.var(0), rel=tolerance)
    right = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + EPSILON) * scale + offset
    assert np.allclose(y, right, rtol=tolerance, atol=3 * tolerance)


def test_rows_that_drift(device):
    """Chunks of very different means: most of the variance lies between them."""
    x = (np.arange(4000)[:, None] * [1.0, -3.0, 1e3] + 1e5).astype(np.float32)
    _, mu, var = forward(device, x, np.zeros(3, np.float32), np.ones(3, np.float32))
    assert mu == pytest.approx(x.mean(0, dtype=np.float64), rel=1e-7)
    assert var == pytest.approx(x.var(0, dtype=np.float64), rel=1e-6)


def test_constant_column_has_no_variance(device):
    x = np.full((1000, 3), 0.1, np.float32)
    y, mu, var = forward(device, x, np.float32([1, 2, 3]), np.float32([1, 1, 1]))
    assert np.array_equal(mu, x[0]) and np.all(var == 0)
    assert y == pytest.approx(np.broadcast_to([1, 2, 3], y.shape), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_value_spoils_its_column_alone(device, value):
    x, offset, scale, g = make((300, 20), np.float32)
    x[211, 7] = value
    y, mu, var = forward(device, x, offset, scale)
    dx, _, dscale = backward(device, g, x, mu, var, scale)
    bad = np.arange(20) == 7
    for array in (*y, *dx, mu, var, dscale):
        assert np.array_equal(~np.isfinite(array), bad)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(device, shape):
    x, offset, scale, g = make(shape, np.float32)
    y, mu, var = forward(device, x, offset, scale)
    dx, doffset, dscale = backward(device, g, x, scale, np.abs(scale), scale)
    assert y.shape == dx.shape == shape and np.isnan(mu).all() and np.isnan(var).all()
    assert not doffset.any() and not dscale.any()


def test_agrees_with_the_cpu(device):
    x, offset, scale, g = make((900, 12), np.float64)
    y, mu, var = (np.full(a.shape, np.nan) for a in (x, offset, offset))
    arrays = y, mu, var, x, offset, scale
    memory = cpu.batchnorm_train_scratch(*(a.shape for a in arrays), dtype=x.dtype, epsilon=EPSILON)
    cpu.batchnorm_train(*arrays, epsilon=EPSILON, scratch=tuple(np.empty(*about) for about in memory))
    assert_near(forward(device, x, offset, scale), (y, mu, var), 1e-13)


def test_cuts_cover_the_rows():
    """Every row is in one chunk, no chunk is empty, and a block's merge reads less than its rows."""
    for row_count in (1, 7, 31, 32, 1000, 3136, 25088, 10**5, 10**6 + 1, 10**7):
        for channels in (1, 2, 3, 16, 63, 64, 65, 100, 130, 512, 1000, 5000, 100000):
            cut = module._cut((row_count, channels))
            assert (cut.chunks - 1) * cut.chunk_rows < row_count <= cut.chunks * cut.chunk_rows
            assert (cut.blocks - 1) * cut.columns < channels <= cut.blocks * cut.columns
            assert 0 < cut.columns * cut.rows <= 512 and (cut.chunks == 1 or cut.chunks <= cut.chunk_rows / 8)
