"""New arrays: sizes, types, prototypes, random numbers and the generator's state, wrong input."""

import numpy as np
import pytest

import minidl.ops as m
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import DTypeError, OptionError
from minidl.core.random import GENERATOR, rng
from minidl.core.tape import Tape, opened

SINGLE = dlarray(np.ones((2, 3), np.float32), "CB")
SIZES = [((), ()), ((3,), (3, 3)), ((2, 3), (2, 3)), (((2, 3),), (2, 3)), (([4],), (4,)), ((2, 0, 1), (2, 0, 1)),
         (((),), ()), ((np.int64(2), 3), (2, 3)), ((np.array([2, 3]),), (2, 3))]  # fmt: skip


@pytest.mark.parametrize("size, shape", SIZES)
@pytest.mark.parametrize("make", [m.zeros, m.ones, m.rand, m.randn, lambda *size, **like: m.randi(5, *size, **like)])
def test_sizes_types_and_prototypes(make, size, shape):
    plain = make(*size)
    assert not isinstance(plain, DLArray) and plain.shape == shape and plain.dtype == np.float64
    assert make(*size, "single").dtype == np.float32
    assert make(*size, like=np.zeros(1, np.float32)).dtype == np.float32
    assert not isinstance(make(*size, like=np.zeros(1)), DLArray)
    for y in (make(*size, like=SINGLE), make(*size, "like", SINGLE)):
        assert isinstance(y, DLArray) and y.shape == shape and y.dtype == np.float32
        assert y.dims() == ("CB" if len(shape) == 2 else "")


def test_values():
    assert m.zeros(1, 2).tolist() == [[0, 0]] and m.ones(1, 2, like=SINGLE).tolist() == [[1, 1]]
    assert m.zeros(2, "logical").dtype == bool and m.ones(1, like=dlarray(True)).tolist() == [[True]]
    np.testing.assert_array_equal(m.eye(2, 3), np.eye(2, 3))
    assert m.eye(2, like=SINGLE).dims() == "CB" and m.eye() == 1 and m.eye(3, "single").dtype == np.float32
    assert m.zeros(2, 3, 1, like=dlarray(np.zeros((2, 3, 4)), "CBU")).shape == (2, 3)  # last U of size 1 dropped


def test_laws():
    for like in ({}, {"like": dlarray(1.0)}, {"like": dlarray(np.float32([1]))}):
        u, n, k = (np.asarray(f) for f in (m.rand(100, **like), m.randn(100, **like), m.randi([-1, 2], 100, **like)))
        assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.01
        assert abs(n.mean()) < 0.05 and abs(n.var() - 1) < 0.05
        assert sorted(set(k.ravel())) == [-1, 0, 1, 2] and np.min(m.randi(3, 50, **like)) == 1
    assert sorted(m.randperm(9)) == list(range(9)) and m.randperm(9, 2).shape == (2,) and m.randperm(0).size == 0


def test_the_seed_decides_and_every_draw_counts():
    def draws():
        rng(5)
        return [m.rand(3), m.randn(3), m.rand(3, like=dlarray(1.0)), m.randperm(10), m.randi(9, 3)]

    first, second = draws(), draws()
    for a, b in zip(first, second):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert rng()["Draws"] == 5
    rng(5)
    np.testing.assert_array_equal(m.rand(3, like=dlarray(1.0)).numpy(), first[0])  # uniform ones: the same bits
    state = rng()
    a = m.rand(4)
    rng(state)
    np.testing.assert_array_equal(m.rand(4), a)
    assert not np.array_equal(m.rand(4), a)


def test_draws_like_a_dlarray_are_recorded_with_the_state():
    x, before = dlarray([1.0, 2.0]), GENERATOR.value
    with opened(Tape(everything=True)) as tape:
        m.rand(2, 3, like=x)
        m.zeros(2, like=x)
        m.rand(2, 3)  # plain: a constant
    assert [call.op.name for call in tape.calls] == ["random", "full"]
    assert tape.calls[0].inputs[0] is before
    g = dlfeval(lambda x: dlgradient(m.sum(x * m.ones((2,), like=x) * m.randn((2,), like=x), "all"), x), x)
    assert g.shape == (2,)


BAD = [
    (lambda: m.zeros(-1), OptionError, "from 0 on"), (lambda: m.zeros(2.5), OptionError, "whole"),
    (lambda: m.zeros("int8"), OptionError, "single"), (lambda: m.zeros(2, "single", like=SINGLE), OptionError, "twice"),
    (lambda: m.zeros(2, "like", SINGLE, like=SINGLE), OptionError, "given twice"),
    (lambda: m.zeros(2, like=np.array([1])), DTypeError, "int64"),
    (lambda: m.ones(2, Like=SINGLE), OptionError, "Did you mean like"),
    (lambda: m.rand(2, "logical"), DTypeError, "rand(n) < 0.5"), (lambda: m.eye(2, 3, 4), OptionError, "pages"),
    (lambda: m.randi([3, 1], 2), OptionError, "above"), (lambda: m.randi(2.5, 2), OptionError, "limits"),
    (lambda: m.randi([1, 2, 3], 2), OptionError, "limits"), (lambda: m.randperm(3, 4), OptionError, "k <= n"),
    (lambda: m.randperm(2.5), OptionError, "whole"), (lambda: rng(-1), OptionError, "seed"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)
