"""CUDA kernels of running sums and products, against the reference in float64."""

import numpy as np
import pytest

from minidl.backends.reference import KERNELS
from minidl.kernels.cuda import elements
from minidl.kernels.cuda import scan as module
from minidl.kernels.cuda.scan import cumprod_along, cumsum_along

CASES = [  # shape, axis
    ((1,), 0), ((0,), 0), ((3, 0, 2), 0), ((3, 0, 2), 1), ((7,), 0), ((2048,), 0), ((2049,), 0), ((9001,), 0),
    ((300, 5), 1), ((300, 5), 0), ((7, 300), 1), ((5, 3, 7), 1), ((2, 1025, 3), 1), ((3, 6000), 1), ((4, 1), 1),
    ((2500, 2), 0), ((1, 33, 40), 1), ((3, 2047), 1), ((90, 1025), 1), ((700, 1), 1), ((9, 511), 1),
]  # fmt: skip
TYPES = [(np.float32, 1e-6), (np.float64, 1e-13)]


@pytest.fixture(params=["32 bits", "64 bits"])
def width(request, monkeypatch):
    """Subscripts of either width."""
    if request.param == "64 bits":
        monkeypatch.setattr(elements, "_LARGE", 0)


def run(device, kernel, x, axis):
    """What the kernel makes of poisoned memory, in every order of threads and blocks."""
    rule, array, results = getattr(module, f"{kernel.__name__}_scratch"), device.array(x), []
    for order in device.orders():
        device.set_order(order)
        made = device.empty(x.shape, x.dtype)
        needed = rule(x.shape, x.shape, dtype=x.dtype, axis=axis)
        kernel(made, array, axis=axis, scratch=tuple(device.empty(shape, dtype) for shape, dtype in needed))
        results.append(made.get())
    assert x.tobytes() == array.get().tobytes()
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    return results[0]


def right(name, x, axis):
    y = np.empty(x.shape)
    KERNELS[name](y, x.astype(np.float64), axis=axis)
    return y


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_cumsum(device, random, shape, axis, dtype, tolerance):
    x = random.normal(size=shape).astype(dtype)
    made, size = run(device, cumsum_along, x, axis), right("cumsum_along", abs(x), axis)
    assert np.all(abs(made - right("cumsum_along", x, axis)) <= tolerance * size)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_cumprod(device, random, shape, axis, dtype, tolerance):
    x = (random.choice([-1, 1], shape) * np.exp(random.normal(scale=0.02, size=shape))).astype(dtype)
    expected = right("cumprod_along", x, axis)
    assert np.all(abs(run(device, cumprod_along, x, axis) - expected) <= tolerance * abs(expected))


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("kernel", [cumsum_along, cumprod_along])
def test_totals_of_totals(device, random, kernel):
    """Rows that are cut so often that the rows of totals are cut, too."""
    shape = (2, 3000, 2)
    assert len(module._levels(*shape)) == 3
    x = random.choice([-1, 1], shape) * np.exp(random.normal(scale=0.02, size=shape))
    expected = right(kernel.__name__, x, 1)
    assert np.allclose(run(device, kernel, x, 1), expected, rtol=1e-12, atol=1e-11)


def test_totals_of_totals_of_one_row(device, random):
    x = random.normal(size=2048 * 2048 + 5)
    assert len(module._levels(1, x.size, 1)) == 3
    device.orders = lambda: [0]  # four million elements once are enough
    made, size = run(device, cumsum_along, x, 0), right("cumsum_along", abs(x), 0)
    assert np.all(abs(made - right("cumsum_along", x, 0)) <= 1e-13 * size)


@pytest.mark.parametrize("kernel", [cumsum_along, cumprod_along])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "place"), [((5000,), 3000), ((3, 50), 30), ((2, 700), 690)])
def test_bad_value_spoils_nothing_before_it(device, kernel, value, shape, place):
    x = np.ones(shape, np.float32)
    x[..., place] = value
    made, expected = run(device, kernel, x, len(shape) - 1), right(kernel.__name__, x, len(shape) - 1)
    assert np.array_equal(made, expected, equal_nan=True)
    across = np.ascontiguousarray(np.moveaxis(x.reshape(-1, shape[-1])[:1].repeat(2, 0), 1, 0))
    made, expected = run(device, kernel, across, 0), right(kernel.__name__, across, 0)
    assert np.array_equal(made, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 3])
def test_products_of_parts_do_not_overflow(device, dtype, columns):
    half, n = np.full(1000, 0.5), 3000
    rows = [
        np.concatenate([half[:100], np.full(200, 2.0), np.full(n - 300, 0.5)]),  # falls to 0
        np.concatenate([[0.0], np.full(n - 1, 1e10)]),  # 0 for ever, although the rest is huge
        np.concatenate([[1e-30], np.full(n - 1, 1.5)]),  # rises to infinity
        np.full(n, -1e-5),
    ]
    for row in rows:
        x = np.ascontiguousarray(np.broadcast_to(row[:, None], (n, columns)), dtype)
        with np.errstate(over="ignore"):
            expected = right("cumprod_along", x, 0).astype(dtype)
        made = run(device, cumprod_along, x, 0)
        assert np.allclose(made, expected, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=0)


def test_subnormal_numbers(device):
    x = np.array([5e-324, 2.0, 2.0**60, 2.0**1000, -1e-310, 2.0])
    assert np.array_equal(run(device, cumprod_along, x, 0), right("cumprod_along", x, 0))
