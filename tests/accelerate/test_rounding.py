"""Sums and products of replays are rounded one by one, as in plain calls: what has to be 0 is 0."""

from __future__ import annotations

import numpy as np
import pytest

import minidl as m
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient

COUNT = 1001


def numbers(dtype, count=3):
    r = np.random.default_rng(7)
    return [dlarray((r.normal(size=COUNT) * 10.0 ** r.integers(-5, 5, COUNT)).astype(dtype)) for _ in range(count)]


def replayed(function, *args):
    accfun = dlaccelerate(function, Strict=True)
    for _ in range(2):
        found = accfun(*args)
    assert accfun.HitRate == 50
    return found if isinstance(found, tuple) else (found,)


ZERO = {
    "difference of squares": lambda a, b, x: m.sqrt(a * a - (a + 0) * (a + 0)),
    "distributed": lambda a, b, x: a * x + (-a) * x,
    "opposite order": lambda a, b, x: a * x - x * a,
    "cross product": lambda a, b, x: a * (2 * b) - b * (2 * a),
    "a third term": lambda a, b, x: a * x + b - (a * x + b),
    "sum": lambda a, b, x: m.sum(a * x + (-a) * x, "all"),
    "square": lambda a, b, x: m.square(a) - a * a,
    "behind a product": lambda a, b, x: m.reshape(a[:600], [60, 10]) @ m.reshape(b[:10], [10, 1]) * 0.1
    - 0.1 * (m.reshape(a[:600], [60, 10]) @ m.reshape(b[:10], [10, 1])),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", ZERO)
def test_N2_zero_stays_zero(what, dtype):
    (found,) = replayed(ZERO[what], *numbers(dtype))
    assert not np.any(found.numpy()), f"{np.count_nonzero(found.numpy())} are not 0"


def by_hand(a, b, x):
    """Each operation rounded by itself, in NumPy."""
    root = np.sqrt(a * a + b * b)
    return a * x + b, a * b - x * b, (a + b) * x / (root + 1) - a * a, root * x - a * 0.3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_N2_arithmetic_is_that_of_plain_calls_bit_for_bit(dtype):
    def function(a, b, x):
        root = m.sqrt(a * a + b * b)
        return a * x + b, a * b - x * b, (a + b) * x / (root + 1) - a * a, root * x - a * 0.3

    args = numbers(dtype)
    wanted = by_hand(*[x.numpy() for x in args])
    for found, y in zip(replayed(function, *args), wanted):
        assert found.numpy().dtype == y.dtype and found.numpy().tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_N2_gradients_that_cancel_are_zero(dtype):
    a, b, x = numbers(dtype)

    def gradient(a, x):  # of (a x)^2 - a (a x x), which is 0 everywhere
        return dlgradient(m.sum(a * x * (a * x) - (a * x) * (x * a), "all"), [a, x])

    accfun = dlaccelerate(gradient, Strict=True)
    for _ in range(2):
        found = dlfeval(accfun, a, x)
    assert accfun.HitRate == 50 and not any(np.any(g.numpy()) for g in found)


def test_N2_a_sum_behind_a_contraction_is_rounded_by_itself():
    """A bias is added to a sum of products that has been rounded: with a sum of one product, that shows."""
    r = np.random.default_rng(3)
    w, x, b = (r.normal(size=s).astype("float32") for s in ((64, 1), (1, 48), (64, 1)))
    (found,) = replayed(lambda w, x, b: m.relu(w @ x + b), *map(dlarray, (w, x, b)))
    assert np.array_equal(found.numpy(), np.maximum(w * x + b, 0))


def test_N2_division_by_a_tiny_power_of_two_is_no_product_with_its_inverse():
    x = np.array([5e-324, 1e-310, 1.0])
    with np.errstate(over="ignore"):
        (found,) = replayed(lambda x: x / 5e-324, dlarray(x))
        assert np.array_equal(found.numpy(), x / 5e-324)
