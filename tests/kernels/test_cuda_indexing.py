"""CUDA kernels that take, put and add up elements by subscript, against the reference."""

import math

import numpy as np
import pytest

from minidl.backends.reference import KERNELS
from minidl.kernels.cuda import elements
from minidl.kernels.cuda import indexing as module
from minidl.kernels.cuda.elements import full, spacing
from minidl.kernels.cuda.indexing import gather, scatter, scatter_add

TYPES = [np.float32, np.float64, np.bool_, np.int64, np.uint64]
# shape of x, shape of index, axis
CASES = [
    ((), (3,), None), ((7,), (), None), ((5,), (0,), None), ((3, 0), (0,), 1), ((0, 4), (3,), 1),
    ((3, 5), (300,), None), ((2, 3, 4), (5, 2), 1), ((3, 8), (2,), 0), ((4, 3), (7,), 1), ((5, 7, 3), (4,), 2),
    ((600,), (17, 3), 0), ((2, 9, 65), (11,), 1), ((700, 2), (3,), 0),
]  # fmt: skip


def numbers(random, shape, dtype):
    x = random.normal(scale=50, size=shape)
    return np.array(x > 0 if dtype == np.bool_ else abs(x) if dtype == np.uint64 else x).astype(dtype)


def subscripts(random, case):
    shape, taken, axis = case
    size = math.prod(shape) if axis is None else shape[axis]
    return random.integers(-size, size, taken) if size else np.zeros(taken, np.int64)


def taken_shape(case):
    shape, taken, axis = case
    return taken if axis is None else (*shape[:axis], *taken, *shape[axis + 1 :])


def run(device, kernel, y, *inputs, **params):
    """What the kernel makes of poisoned memory like y, in every order of threads and blocks."""
    arrays = [device.array(x) if isinstance(x, np.ndarray) else x for x in inputs]
    shapes = [y.shape, *(np.shape(x) for x in inputs)]
    rule = getattr(module, f"{kernel.__name__}_scratch", None)
    results = []
    for order in device.orders():
        device.set_order(order)
        made = device.empty(y.shape, y.dtype)
        if rule:
            needed = rule(*shapes, dtype=y.dtype, **params)
            params["scratch"] = tuple(device.empty(shape, dtype) for shape, dtype in needed)
        kernel(made, *arrays, **params)
        params.pop("scratch", None)
        results.append(made.get())
    for x, array in zip(inputs, arrays):
        assert not isinstance(x, np.ndarray) or x.tobytes() == array.get().tobytes()
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    return results[0]


def reference(name, y, *inputs, **params):
    KERNELS[name](y, *inputs, **params)
    return y


@pytest.fixture(params=["32 bits", "64 bits"])
def width(request, monkeypatch):
    """Subscripts of either width."""
    if request.param == "64 bits":
        monkeypatch.setattr(elements, "_LARGE", 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_gather(device, random, case, dtype):
    x, index = numbers(random, case[0], dtype), subscripts(random, case)
    if not x.size and index.size:
        return
    y = np.empty(taken_shape(case), dtype)
    made = run(device, gather, y, x, index, axis=case[2])
    assert made.tobytes() == reference("gather", y, x, index, axis=case[2]).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_scatter(device, random, case, dtype):
    x, index, v = (
        numbers(random, case[0], dtype), subscripts(random, case), numbers(random, taken_shape(case), dtype)
    )  # fmt: skip
    if not x.size and index.size:
        return
    made = run(device, scatter, x, x, v, index, axis=case[2])
    assert made.tobytes() == reference("scatter", np.empty_like(x), x, v, index, axis=case[2]).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0, -2.5, True])
def test_scatter_of_a_number(device, random, value, dtype):
    x, index = numbers(random, (5, 6), dtype), np.array([3, -1, 3])
    if dtype == np.uint64:
        value = abs(value)
    made = run(device, scatter, x, x, value, index, axis=1)
    assert made.tobytes() == reference("scatter", np.empty_like(x), x, value, index, axis=1).tobytes()


def test_scatter_converts(device, random):
    x, v, index = numbers(random, (5, 6), np.float32), numbers(random, (5, 2), np.float64), np.array([3, -1])
    made = run(device, scatter, x, x, v, index, axis=1)
    assert made.tobytes() == reference("scatter", np.empty_like(x), x, v, index, axis=1).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_scatter_add(device, random, case, dtype):
    index, g = subscripts(random, case), numbers(random, taken_shape(case), dtype)
    y = np.empty(case[0], dtype)
    if not y.size and index.size:
        return
    made = run(device, scatter_add, y, g, index, shape=case[0], axis=case[2])
    if np.dtype(dtype).kind != "f":
        right = reference("scatter_add", y, g, index, shape=case[0], axis=case[2])
        assert made.tobytes() == right.tobytes()
        return
    right, size = (
        reference("scatter_add", np.empty(case[0]), v.astype(np.float64), index, shape=case[0], axis=case[2])
        for v in (g, abs(g))
    )
    assert np.all(abs(made - right) <= (1e-6 if dtype == np.float32 else 1e-14) * size)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("places", [1, 2, 50, 100_000])
def test_scatter_add_of_many(device, random, places):
    """To one place, to few, and nearly each to another one: chunks of the sorted subscripts, in several levels."""
    index = random.integers(-places, places, 5000)
    g, y = random.normal(size=5000).astype(np.float32), np.empty((places,), np.float32)
    made = run(device, scatter_add, y, g, index, shape=(places,))
    right = reference("scatter_add", np.empty(places), g.astype(np.float64), index, shape=(places,))
    assert np.allclose(made, right, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 511, 512, 513])
def test_scatter_add_cuts_runs_anywhere(device, random, count):
    for lengths in [(count,), (1, count - 1), (count - 1, 1), (30, 2, count - 32), (32, count - 32)]:
        lengths = [n for n in lengths if n > 0]
        index = random.permutation(np.repeat(np.arange(len(lengths)), lengths))
        g = random.integers(-9, 9, (2, index.size, 3)).astype(np.float64)
        y = np.empty((2, 5, 3))
        made = run(device, scatter_add, y, g, index, shape=y.shape, axis=1)
        assert np.array_equal(made, reference("scatter_add", y, g, index, shape=y.shape, axis=1))


@pytest.mark.parametrize("counts", [(1000, 1500), (1500, 1000, 700)])
def test_scatter_add_of_single_ones_and_long_runs(device, counts):
    index = np.concatenate([np.arange(n) if i % 2 == 0 else np.full(n, 1600) for i, n in enumerate(counts)])
    made = run(device, scatter_add, np.empty(2000), np.ones(index.size), index, shape=(2000,))
    assert np.array_equal(made, np.bincount(index, minlength=2000))


def test_one_bad_value_spoils_its_place_alone(device):
    index, g = np.repeat(np.arange(4), 40), np.ones(160)
    g[50] = np.nan
    made = run(device, scatter_add, np.empty(4), g, index, shape=(4,))
    assert np.array_equal(made, [40, np.nan, 40, 40], equal_nan=True)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", TYPES)
def test_out_of_range(device, random, dtype):
    x = numbers(random, (3, 4), dtype)
    index = np.array([0, 4, -5, -1, 1 << 40, -(1 << 40), (1 << 62), -(1 << 62), (1 << 32) + 1])
    is_inside = (index >= -4) & (index < 4)
    taken = run(device, gather, np.empty((3, 9), dtype), x, index, axis=1)
    nothing = np.full((3, 7), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
    assert taken[:, is_inside].tobytes() == x[:, index[is_inside]].tobytes()
    assert np.array_equal(taken[:, ~is_inside], nothing, equal_nan=np.dtype(dtype).kind == "f")
    v = numbers(random, (3, 9), dtype)
    inside = np.ascontiguousarray(v[:, is_inside]), index[is_inside]
    assert np.array_equal(
        run(device, scatter, x, x, v, index, axis=1), reference("scatter", np.empty_like(x), x, *inside, axis=1)
    )
    assert np.array_equal(
        run(device, scatter_add, x, v, index, shape=(3, 4), axis=1),
        reference("scatter_add", np.empty_like(x), *inside, shape=(3, 4), axis=1),
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_memory_that_starts_anywhere(device, random, dtype, offset):
    x, index = numbers(random, (10, 16), dtype), np.array([2, 0, 2])
    whole = device.empty((200,), dtype)
    part = whole[offset : offset + 160].reshape(10, 16)
    part.set(x)
    y = device.empty((3, 16), dtype)
    gather(y, part, device.array(index), axis=0)
    assert y.get().tobytes() == x[index].tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 37), (1024,)])
def test_full(device, shape, dtype):
    for value in 0, 1.5, True, 2**40 if np.dtype(dtype).itemsize == 8 else 7:
        made = run(device, full, np.empty(shape, dtype), shape=shape, value=value, dtype=np.dtype(dtype).name)
        assert made.tobytes() == np.full(shape, value, dtype).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spacing(device, random, dtype):
    about = np.finfo(dtype)
    special = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, about.max, about.tiny, about.smallest_subnormal]
    x = np.concatenate([special, np.exp(random.normal(scale=20, size=301))]).astype(dtype)
    with np.errstate(over="ignore"):
        right = reference("spacing", np.empty_like(x), x)
    assert np.array_equal(run(device, spacing, x, x), right, equal_nan=True)
