"""CUDA kernels that sort and find the largest element, against the reference: places are equal."""

import numpy as np
import pytest

from minidl.backends.reference import KERNELS
from minidl.kernels.cuda import elements
from minidl.kernels.cuda import sorting as module
from minidl.kernels.cuda.sorting import argmax, argsort

SORTED = [  # shape, axis
    ((1,), 0), ((0,), 0), ((3, 0, 2), 0), ((3, 0, 2), 1), ((7,), 0), ((2048,), 0), ((2049,), 0), ((4096,), 0),
    ((9001,), 0),
    ((300, 5), 1), ((300, 5), 0), ((5, 3, 7), 1), ((2, 1025, 3), 1), ((2, 3000, 3), 1), ((3, 6000), 1), ((4099, 1), 0),
    ((1, 3001), 0), ((3, 2047), 1), ((50, 64), 1),
]  # fmt: skip
LARGEST = [  # shape, axes
    ((1,), (0,)), ((3, 0, 2), (0,)), ((0,), ()), ((4, 3), ()), ((7,), (0,)), ((1500,), (0,)), ((20000,), (0,)),
    ((3, 20000), (1,)), ((3, 20000), (0,)), ((5000, 9), (0,)), ((5000, 3), (0,)), ((17, 31), (1,)), ((300, 4), (1,)),
    ((5, 4, 3), (0, 1)), ((5, 4, 3), (1, 0)), ((5, 4, 3), (0, 2)), ((5, 4, 3), (2, 1, 0)), ((5, 1, 4, 3, 2), (0, 2, 4)),
    ((40, 30, 20), (0, 1, 2)), ((40, 3, 200), (0, 2)), ((2, 60, 50, 8), (1, 2)), ((3, 2, 2, 2, 3), (4, 0, 2)),
]  # fmt: skip


@pytest.fixture(params=["32 bits", "64 bits"])
def width(request, monkeypatch):
    """Subscripts of either width."""
    if request.param == "64 bits":
        monkeypatch.setattr(elements, "_LARGE", 0)


def run(device, kernel, y, x, **params):
    """What the kernel makes of poisoned memory, in every order of threads and blocks."""
    rule, array, results = getattr(module, f"{kernel.__name__}_scratch"), device.array(x), []
    for order in device.orders():
        device.set_order(order)
        made = device.empty(y.shape, y.dtype)
        needed = rule(y.shape, x.shape, dtype=y.dtype, **params)
        kernel(made, array, **params, scratch=tuple(device.empty(shape, dtype) for shape, dtype in needed))
        results.append(made.get())
    assert x.tobytes() == array.get().tobytes()
    assert all(np.array_equal(result, results[0]) for result in results)
    return results[0]


def numbers(random, shape, dtype, kind):
    x = random.normal(size=shape)
    if kind == "equal ones":
        x = np.round(x)
    if kind == "special ones":
        x = random.choice([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45], shape)
    return x.astype(dtype)


def check_argsort(device, x, axis):
    for descending in False, True:
        right = np.empty(x.shape, np.int64)
        KERNELS["argsort"](right, x, axis=axis, descending=descending)
        made = run(device, argsort, right, x, axis=axis, descending=descending)
        assert np.array_equal(made, right)


@pytest.mark.parametrize("kind", ["different ones", "equal ones", "special ones"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SORTED)
def test_argsort(device, random, shape, axis, dtype, kind):
    check_argsort(device, numbers(random, shape, dtype, kind), axis)


@pytest.mark.parametrize("n", [2048, 4500, 20000])
def test_argsort_of_what_is_in_order(device, n):
    for x in np.arange(n), np.arange(n)[::-1], np.zeros(n), np.arange(n) % 3:
        check_argsort(device, np.ascontiguousarray(x, np.float32), 0)


@pytest.mark.usefixtures("width")
def test_subscripts_of_either_width(device, random):
    check_argsort(device, numbers(random, (3, 5000), np.float32, "equal ones"), 1)
    x = numbers(random, (40, 30, 20), np.float32, "equal ones")
    right = np.empty((1, 30, 1), np.int64)
    KERNELS["argmax"](right, x, axes=(0, 2))
    assert np.array_equal(run(device, argmax, right, x, axes=(0, 2)), right)


def test_nans_of_any_bits_keep_their_order(device):
    bits = np.array([0x7FC00000, 0xFFC00001, 0x3F800000, 0x7F800001, 0xFFFFFFFF, 0xBF800000, 0x7FFFFFFF], np.uint32)
    check_argsort(device, bits.view(np.float32), 0)


@pytest.mark.parametrize("kind", ["different ones", "equal ones", "special ones", "NaNs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axes"), LARGEST)
def test_argmax(device, random, shape, axes, dtype, kind):
    x = np.full(shape, np.nan, dtype) if kind == "NaNs" else numbers(random, shape, dtype, kind)
    right = np.empty([1 if i in axes else n for i, n in enumerate(shape)], np.int64)
    if x.size:
        KERNELS["argmax"](right, x, axes=axes)
    else:
        right[...] = -1
    assert np.array_equal(run(device, argmax, right, x, axes=axes), right)
