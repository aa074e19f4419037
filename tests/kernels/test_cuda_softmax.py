"""Softmax on the device against NumPy in float64, and what it makes of values that are no numbers."""

import numpy as np
import pytest

from minidl.kernels.cuda.softmax import softmax_last, softmax_last_grad

SHAPES = [
    (1, 1), (300, 1), (5, 2), (70, 3), (33, 10), (9, 32), (4, 33), (3, 100), (5, 1000), (2, 1024), (3, 1025), (2, 5000),
]  # fmt: skip
TOLERANCES = [(np.float32, 1e-5), (np.float64, 1e-12)]


def run(device, kernel, *inputs):
    y = device.empty(inputs[0].shape, inputs[0].dtype)
    arrays = [device.array(x) for x in inputs]
    kernel(y, *arrays)
    for array, old in zip(arrays, inputs, strict=True):
        assert np.array_equal(array.get(), old, equal_nan=True)
    return y.get()


def in_float64(x):
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        e = np.exp(x - np.fmax.reduce(x, axis=1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(device, random, shape, dtype, tolerance):
    x, g = (3 * random.normal(size=(2, *shape))).astype(dtype)
    bits = set()
    for order in device.orders():
        device.set_order(order)
        y = run(device, softmax_last, x)
        assert np.allclose(y, in_float64(x), rtol=tolerance, atol=0)
        dx = run(device, softmax_last_grad, g, y)
        wide, slope = y.astype(np.float64), g.astype(np.float64)
        right = wide * (slope - (slope * wide).sum(1, keepdims=True))
        assert np.allclose(dx, right, rtol=tolerance, atol=tolerance * np.abs(wide).max())
        bits.add(y.tobytes() + dx.tobytes())
    assert len(bits) == 1, "the order of blocks and threads must not be seen"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [5, 40, 1500])
def test_large_numbers_do_not_overflow(device, random, columns, dtype):
    x = (random.normal(size=(4, columns)) * 300 + [[1e4], [-1e4], [0], [1e30]]).astype(dtype)
    y = run(device, softmax_last, x)
    assert np.allclose(y, in_float64(x), rtol=1e-4, atol=1e-30)
    assert np.allclose(y.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [5, 40, 1500])
def test_what_is_no_number_spoils_its_row_alone(device, random, columns, dtype):
    x = random.normal(size=(8, columns)).astype(dtype)
    x[1, 3], x[2, 0], x[3, 4], x[4], x[5], x[6, 1:] = np.nan, np.inf, -np.inf, -np.inf, np.nan, -np.inf
    y = run(device, softmax_last, x)
    assert np.isnan(y).all(1).tolist() == [i in (1, 2, 4, 5) for i in range(8)]
    with np.errstate(invalid="ignore"):
        assert np.allclose(y, in_float64(x), rtol=1e-5, atol=0, equal_nan=True)
    assert y[3, 4] == 0 and y[6, 0] == 1
    g = random.normal(size=x.shape).astype(dtype)
    g[7, 2] = np.inf
    assert np.isfinite(run(device, softmax_last_grad, g, y)).all(1).tolist() == [i in (0, 3, 6) for i in range(8)]


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 2000), (0, 0)])
def test_nothing_to_do(device, shape):
    x = np.zeros(shape, np.float32)
    assert run(device, softmax_last, x).shape == run(device, softmax_last_grad, x, x).shape == shape


def test_agrees_with_the_body(device, random):
    from minidl.core.dlarray import dlarray
    from minidl.ops.activation import softmax

    x = random.normal(size=(6, 7))
    x[2, 1], x[3, 2], x[4] = np.nan, np.inf, -np.inf
    right = softmax(dlarray(x), DataFormat="BC").numpy()
    assert np.allclose(run(device, softmax_last, x), right, rtol=1e-12, atol=0, equal_nan=True)
