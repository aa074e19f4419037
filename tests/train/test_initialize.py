"""initialize*: sizes, types, distributions, seeds, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minidl import (
    DLArray,
    OptionError,
    ShapeError,
    initializeGaussian,
    initializeGlorot,
    initializeHe,
    initializeOnes,
    initializeOrthogonal,
    initializeUnitForgetGate,
    initializeZeros,
    rng,
)

BY_SIZE = {
    "Glorot": lambda sz, *c: initializeGlorot(sz, 288, 9, *c),
    "He": lambda sz, *c: initializeHe(sz, 9, *c),
    "Gaussian": lambda sz, *c: initializeGaussian(sz, 0, 0.1, *c),
    "Orthogonal": initializeOrthogonal,
    "Zeros": initializeZeros,
    "Ones": initializeOnes,
}
RANDOM = ["Glorot", "He", "Gaussian", "Orthogonal"]


@pytest.mark.parametrize("name", BY_SIZE)
def test_size_and_type(name):
    make = BY_SIZE[name]
    for size in ([3, 3, 1, 32], (3, 4), np.array([4, 3]), [2, 0], (np.int64(2), 3)):
        w = make(size)
        assert isinstance(w, DLArray) and w.dims() == "" and w.dtype == "float32" and w.shape == tuple(size)
        assert make(size, "double").dtype == "float64"
    if name != "Orthogonal":
        assert make(5).shape == (5,) and make([]).shape == ()


@pytest.mark.parametrize("name", RANDOM)
def test_seed(name):
    make = BY_SIZE[name]
    first, second = make([4, 5]).extractdata(), make([4, 5]).extractdata()
    assert not np.array_equal(first, second)
    rng("default")
    assert np.array_equal(make([4, 5]), first)
    rng(1)
    assert not np.array_equal(make([4, 5]), first)


def test_distributions():
    size = [200, 500]
    bound = np.sqrt(6 / (288 + 9))
    w = initializeGlorot(size, 288, 9).extractdata()
    assert abs(w).max() <= np.float32(bound) and w.min() < -0.99 * bound and w.max() > 0.99 * bound
    assert abs(w.mean()) < 0.01 * bound and w.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    w = initializeHe(size, 50).extractdata()
    assert abs(w.mean()) < 0.005 and w.std() == pytest.approx(0.2, rel=0.01)
    w = initializeGaussian(size, 3, 0.5).extractdata()
    assert w.mean() == pytest.approx(3, abs=0.01) and w.std() == pytest.approx(0.5, rel=0.01)
    assert initializeGaussian(size).extractdata().std() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("size", [(4, 4), (6, 3), (3, 6), (2, 3, 4), (3, 1), (2, 2, 9)])
def test_orthogonal(size):
    w = initializeOrthogonal(size, "double").extractdata().reshape(-1, size[-1])
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


def test_unit_forget_gate():
    b = initializeUnitForgetGate(3)
    assert b.shape == (12, 1) and b.dtype == "float32"
    assert b.extractdata().ravel().tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert initializeUnitForgetGate(np.int64(1), "double").dtype == "float64"


@pytest.mark.parametrize("error, word, call", [
    (ShapeError, "size", lambda: initializeZeros([2, -1])),
    (ShapeError, "size", lambda: initializeOnes([2.5])),
    (ShapeError, "size", lambda: initializeZeros("12")),
    (ShapeError, "size", lambda: initializeZeros(None)),
    (ShapeError, "size", lambda: initializeZeros([True, 2])),
    (ShapeError, "size", lambda: initializeHe([[1, 2]], 3)),
    (ShapeError, "two dimensions", lambda: initializeOrthogonal([3])),
    (ShapeError, "size", lambda: initializeGlorot([float("nan")], 1, 1)),
    (OptionError, '"single"', lambda: initializeZeros([1], "int8")),
    (OptionError, '"double"', lambda: initializeGlorot([1], 1, 1, className=None)),
    (OptionError, "className", lambda: initializeOnes([1], classname="single")),
    (OptionError, "numOut", lambda: initializeGlorot([1], 0, 1)),
    (OptionError, "numIn", lambda: initializeGlorot([1], 1, float("inf"))),
    (OptionError, "numIn", lambda: initializeHe([1], "9")),
    (OptionError, "sigma", lambda: initializeGaussian([1], 0, -1)),
    (OptionError, "mu", lambda: initializeGaussian([1], float("nan"))),
    (OptionError, "numHiddenUnits", lambda: initializeUnitForgetGate(1.5)),
    (OptionError, "numHiddenUnits", lambda: initializeUnitForgetGate(0)),
])  # fmt: skip
def test_wrong(error, word, call):
    before = rng()
    with pytest.raises(error, match=word):
        call()
    assert rng() == before
