"""Subscripts: every kind of key against NumPy, taking and putting, with labels, derivatives and wrong keys."""

import numpy as np
import pytest
from finite_differences import check_derivatives

import minidl.ops as m
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import DTypeError, LabelError, ShapeError, SubscriptError
from minidl.core.tape import Tape, opened

R = np.random.default_rng(7)
A = R.normal(size=(3, 4, 5))
MASK3 = A > 0
ROWS = np.array([True, False, True])
I = np.array([2, 0, 2, -1])  # noqa: E741
J = np.array([[0, 1], [2, -2]])


class Keys:
    """Keys[...] is the key itself."""

    def __getitem__(self, key):
        return key


K = Keys()
KEYS = [
    K[1], K[-1], K[1, 2], K[1, 2, 3], K[...], K[:], K[()], K[1:], K[:2, 1], K[..., 0], K[0, ...], K[:, ::2], K[::-1],
    K[2:0:-1],
    K[5:], K[:, 3:1], K[-2:, -3:-1, ::-2], K[None], K[:, None, 1], K[..., None], K[1, None, ..., None, 2],
    K[np.int64(1)], K[[0, 2]], K[[]], K[I], K[:, I], K[..., I], K[1, I], K[I, 1], K[:, 1, I], K[I, :, 1], K[1, :, I],
    K[0, :, [1, 1]], K[J], K[:, J], K[I, I], K[I, :, I], K[:, I, I], K[J, J, J], K[J, :, I[:2]], K[I[:, None], I],
    K[I, 1:3],
    K[1:, I, ::2], K[I, ..., None], K[None, I], K[None, :, I, I], K[MASK3], K[ROWS], K[ROWS, 1], K[:, MASK3[0]],
    K[MASK3[:, :, 0]],
    K[MASK3[:, :, 0], 1], K[ROWS, :, I[:2]], K[..., MASK3[0, 0]], K[1, ..., MASK3[0, 0]], K[[True, False, True]],
    K[range(2)],
    K[np.array(2)], K[np.uint8([1, 2])], K[np.zeros(3, bool)], K[np.zeros((0, 2), int)], K[I, np.zeros(4, int), 3],
]  # fmt: skip


def shown(key):
    return str(key).replace("\n", "").replace("slice", "")[:60]


each_key = pytest.mark.parametrize("key", KEYS, ids=shown)


def wrapped(key):
    """The key with its arrays as dlarrays: masks logical, subscripts double."""
    def wrap(k):
        if not isinstance(k, np.ndarray):
            return k
        return dlarray(k if k.dtype == bool else k.astype(float))

    return tuple(map(wrap, key)) if isinstance(key, tuple) else wrap(key)


@each_key
def test_taking(key):
    x = dlarray(A)
    for k in (key, wrapped(key)):
        y = x[k]
        np.testing.assert_array_equal(y.numpy(), A[key])
        assert (y.shape, y.dims(), y.dtype) == (A[key].shape, "", A.dtype)
    assert dlarray(MASK3)[key].dtype == bool


@each_key
def test_putting(key):
    shape = A[key].shape
    values = [2.5, R.normal(size=shape), R.normal(size=shape[-1:]), np.float32(7)]
    for k in (key, wrapped(key)):
        for v in values:
            x, before, expected = dlarray(A), A.copy(), A.copy()
            x[k] = v
            expected[key] = v
            np.testing.assert_array_equal(x.numpy(), expected)
            np.testing.assert_array_equal(A, before)
    logical, expected = dlarray(MASK3), MASK3.copy()
    logical[key] = True
    expected[key] = True
    np.testing.assert_array_equal(logical.numpy(), expected)
    assert logical.dtype == bool


@each_key
def test_derivatives(key):
    def put(x, v):
        y = m.square(x)
        y[key] = m.square(v)
        return m.square(y)

    if A[key].size:
        check_derivatives(lambda x: m.square(x[key]), A)
        check_derivatives(put, A, R.normal(size=A[key].shape))


def test_derivatives_of_expanded_values_and_masks():
    def masked(x, v):
        y = m.square(x)  # assigning makes a name hold a new value: the gradient is wanted by the old one
        y[A > 0] = v
        return m.square(y)

    check_derivatives(masked, A, np.array(0.7))

    def column(x, v):
        y = m.square(x)
        y[:, 1:3] = v
        return m.square(y)

    check_derivatives(column, A, R.normal(size=5))
    check_derivatives(column, A, R.normal(size=(1, 1, 2, 1)))


def test_the_last_of_equal_subscripts_wins():
    def fun(x, v):
        x[[1, 0, 1]] = v
        return x, dlgradient(m.sum(x * 2, "all"), x, v)

    x, (gx, gv) = dlfeval(fun, dlarray([1.0, 2.0, 3.0]), dlarray([4.0, 5.0, 6.0]))
    assert x.tolist() == [5, 6, 3]
    assert gv.tolist() == [0, 2, 2]
    assert gx.tolist() == [2, 2, 2]  # by the x of now, not the one before


FORMATTED = [  # labels, sizes, key, labels of the result, NumPy's key that gives the same numbers
    ("SSCB", (3, 4, 2, 5), K[0], "SSCB", K[0:1]), ("SSCB", (3, 4, 2, 5), K[:, :, 1, -1], "SSCB", K[:, :, 1:2, 4:]),
    ("SSCB", (3, 4, 2, 5), K[..., 2:4], "SSCB", K[..., 2:4]),
    ("SSCB", (3, 4, 2, 5), K[..., [3, 0]], "SSCB", K[..., [3, 0]]),
    ("SSCB", (3, 4, 2, 5), K[1, :, [1]], "SSCB", K[1:2, :, 1:]),
    ("SSCB", (3, 4, 2, 5), K[:, :, :, np.array([1, 0, 0, 1, 0], bool)], "SSCB", K[..., [0, 3]]),
    ("CB", (2, 5), K[:, np.array([3])], "CB", K[:, 3:4]), ("CBU", (2, 5, 3), K[:, :, 1], "CB", K[:, :, 1]),
    ("CBU", (2, 5, 3), K[:, 1, 1], "CB", K[:, 1:2, 1]), ("CB", (2, 5), K[J % 2], "", K[J % 2]),
    ("CB", (2, 5), K[np.ones((2, 5), bool)], "", K[np.ones((2, 5), bool)]), ("CB", (2, 5), K[[]], "CB", K[:0]),
]  # fmt: skip


@pytest.mark.parametrize("labels, shape, key, result, plain", FORMATTED)
def test_formatted(labels, shape, key, result, plain):
    x = R.normal(size=shape)
    y = dlarray(x, labels)[key]
    np.testing.assert_array_equal(y.numpy(), x[plain])
    assert y.dims() == result
    changed, expected = dlarray(x, labels), x.copy()
    changed[key] = 3
    expected[plain] = 3
    np.testing.assert_array_equal(changed.numpy(), expected)
    assert changed.dims() == labels
    check_derivatives(lambda x: m.square(dlarray(x, labels)[key]), x)


def test_values_put_into_formatted_arrays_are_matched():
    x = dlarray(np.zeros((3, 4, 2, 5)), "SSCB")
    x[:, :, 0, 2] = np.ones((3, 4))  # MATLAB: dimensions of size 1 do not count
    x[:, :, 1, :] = dlarray(np.arange(5.0), "B")
    x[0] = dlarray(np.full((2, 1), 7.0), "CU")[0]
    numbers = x.numpy()
    assert numbers[2, 3, 0].tolist() == [0, 0, 1, 0, 0] and numbers[2, 3, 1].tolist() == [0, 1, 2, 3, 4]
    assert (numbers[0] == 7).all()
    y = dlarray(np.zeros((2, 3)))
    y[0] = dlarray(np.ones((1, 3)), "CB")
    assert y.tolist() == [[1, 1, 1], [0, 0, 0]] and y.dims() == ""


def test_scalar_dlarrays_as_subscripts():
    i = dlarray(1.0)
    assert dlarray(A)[i].tolist() == A[1].tolist() and dlarray(A)[i, i, i].item() == A[1, 1, 1]
    assert dlarray(A, "SCB")[i].shape == (1, 4, 5)
    assert dlarray(A)[dlarray(-1.0), :, i].tolist() == A[-1, :, 1].tolist()
    assert np.arange(5)[i] == 1  # and of plain arrays


def reads(key, v=None, x=None):
    """How often Python looked at numbers during a recording of the key used in both ways."""
    x = dlarray(A) if x is None else x
    mask = x > 0
    subscript = m.max(x, dim=0, nargout=2)[1][0, 0]
    with opened(Tape(everything=True)) as tape:
        for value in (x._value, mask._value, subscript._value):
            tape.add_root(value)
        if v is None:
            x[key(mask, subscript)]
        else:
            x[key(mask, subscript)] = v
    return len(tape.reads)


@pytest.mark.parametrize("key, v, expected", [
    (lambda mask, i: mask, None, 1),  # how many elements a mask takes
    (lambda mask, i: mask, 0, 0), (lambda mask, i: mask, -A, 0), (lambda mask, i: mask, np.ones(1), 0),
    (lambda mask, i: mask, np.ones(int((A > 0).sum())), 1), (lambda mask, i: mask[0, 0].numpy() > 9, None, 1),
    (lambda mask, i: i, None, 0), (lambda mask, i: i, 1.0, 0), (lambda mask, i: (0, i), np.ones(5), 0),
    (lambda mask, i: (slice(None), mask[0, :, 0]), 0.0, 0),
])  # fmt: skip
def test_what_a_recording_is_told(key, v, expected):
    if expected == 1 and v is None and "numpy" in str(key.__code__.co_names):
        key = lambda mask, i: np.zeros(3, bool) & bool(mask.numpy().any())  # noqa: E731
    assert reads(key, v) == expected


def test_values_are_copies():
    x = dlarray(A)
    y = x
    z = x[0]
    x[0, 0, 0] = 9
    assert y is x and x[0, 0, 0].item() == 9 and z[0, 0].item() == A[0, 0, 0]
    same = dlarray(x)
    same[:] = 0
    assert x[0, 0, 0].item() == 9


def test_iteration_and_length():
    x = dlarray(A, "SCB")
    assert len(x) == 3 and [part.shape for part in x] == [(1, 4, 5)] * 3
    assert [row.tolist() for row in dlarray(A)] == A.tolist()
    a, b = dlarray([1.0, 2.0])
    assert (a.item(), b.item()) == (1, 2)


CB = dlarray(np.zeros((2, 3)), "CB")
P = dlarray(A)


def put(x, key, v):
    x = DLArray(x._value, x._labels)
    x[key] = v


BAD = [
    (lambda: P[3], SubscriptError, "0 to 2"), (lambda: P[-4], SubscriptError, "out of range"),
    (lambda: P[0, 0, 0, 0], SubscriptError, "3 dimensions"), (lambda: P[[0, 3]], SubscriptError, "subscript 3"),
    (lambda: P[:, [-5]], SubscriptError, "subscript -5"), (lambda: P[0.5], SubscriptError, "whole number"),
    (lambda: P["C"], SubscriptError, "whole number"), (lambda: P[np.array([0.0])], SubscriptError, "astype"),
    (lambda: P[True], SubscriptError, "mask"), (lambda: P[dlarray(0.5)], SubscriptError, "no whole number"),
    (lambda: P[dlarray(np.nan)], SubscriptError, "no whole number"),
    (lambda: P[dlarray([0.0, 7.0])], SubscriptError, "subscript 7"),
    (lambda: P[ROWS[:2]], SubscriptError, "the mask is 2"), (lambda: P[:, MASK3], SubscriptError, "4 subscripts"),
    (lambda: P[..., ...], SubscriptError, "more than one"), (lambda: P[::0], SubscriptError, "step"),
    (lambda: P[0.5:2], SubscriptError, "0.5:2"), (lambda: P[[0, 1], [0, 1, 2]], ShapeError, "one size"),
    (lambda: CB[None], LabelError, "stripdims"), (lambda: CB[[0, 1], [0, 1]], LabelError, "one subscript at a time"),
    (lambda: dlarray(1.0)[0], SubscriptError, "0 dimensions"),
    (lambda: dlarray(np.zeros((0, 2)))[0], SubscriptError, "no elements"),
    (lambda: put(P, 0, np.zeros(3)), ShapeError, "equal or 1"), (lambda: put(P, 7, 0), SubscriptError, "out of range"),
    (lambda: put(P, I, np.zeros((5, 4, 5))), ShapeError, "equal or 1"),
    (lambda: put(P, MASK3, np.zeros(2)), ShapeError, "equal or 1"),
    (lambda: put(CB, 0, dlarray(np.zeros((3, 1)), "TU")), LabelError, "no other labels"),
    (lambda: put(CB, 0, np.zeros((5,))), ShapeError, "equal or 1"),
    (lambda: put(P, 0, "text"), DTypeError, "onehotencode"),
    (lambda: put(P, 0, []), DTypeError, "deleted"), (lambda: put(P, 0, 1j), DTypeError, "real"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    found = explained(call, error, word)
    assert not issubclass(error, SubscriptError) or isinstance(found, IndexError)
