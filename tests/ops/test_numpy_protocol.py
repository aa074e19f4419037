"""NumPy's functions on dlarrays give NumPy's results, keep labels where they can, and are traced; others say so."""

import math

import numpy as np
import pytest

import minidl.ops as m
from minidl.accelerate import dlaccelerate
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import DTypeError, OptionError, ShapeError, SingularError
from minidl.ops.numpy_protocol import FUNCTIONS, UFUNCS

R = np.random.default_rng(13)
A = R.normal(size=(2, 3, 4))
B = R.normal(size=(3, 4))
L = A > 0
C = np.array([[-2.5, -1.5, -0.5, 0.0], [0.5, 1.5, 2.5, np.nan]])

POSITIVE = ("sqrt", "log", "log2", "log10", "log1p", "reciprocal", "power", "float_power")
UNIT = ("arcsin", "arccos", "arctanh")
LOGICAL = ("logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor",
           "invert")


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda f: f.__name__)
def test_universal_functions(ufunc):
    name = ufunc.__name__
    x, y = R.normal(size=(3, 3)), R.normal(size=(3, 3))
    if name in POSITIVE or name == "arccosh":
        x, y = np.abs(x) + 1.1, np.abs(y) + 0.1
    if name in UNIT:
        x = np.tanh(x)
    if name in LOGICAL:
        x, y = x > 0, y > 0
    inputs = (x, y)[: ufunc.nin]
    expected = ufunc(*inputs)
    found = ufunc(dlarray(x), *inputs[1:])
    if name == "divmod":
        expected, found = np.stack(expected), np.stack(found)
    assert isinstance(found, DLArray) and found.dtype == expected.dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)
    if ufunc.nin == 2:  # the array first
        found = ufunc(x, dlarray(y))
        found = np.stack(found) if name == "divmod" else found
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


CALLS = """
np.sum(A) | np.sum(A, axis=1) | np.sum(A, 1, keepdims=True) | np.sum(A, axis=(0, -1)) | np.sum(L) | np.sum(A, axis=())
np.sum(A, dtype=np.float32) | np.mean(A, 0) | np.prod(A, 2) | np.max(A) | np.max(C, axis=0) | np.amax(A, axis=(0, 1))
np.min(C) | np.amin(A, 1, keepdims=True) | np.nanmax(C) | np.nanmin(C, axis=1) | np.var(A) | np.var(A, 0, ddof=1)
np.std(A, axis=1, keepdims=True) | np.median(A, axis=(0, 2)) | np.any(L, axis=0) | np.all(L) | np.any(C, 1)
np.cumsum(A) | np.cumsum(A, axis=1) | np.cumprod(A, -1) | np.argmax(A) | np.argmax(A, axis=1)
np.argmin(A, 0, keepdims=True)
np.sort(A) | np.sort(A, axis=0) | np.sort(A, axis=None) | np.argsort(A, 1) | np.reshape(A, (4, 6)) | np.reshape(A, -1)
np.reshape(A, (4, -1), order="F") | np.ravel(A) | np.transpose(A) | np.transpose(A, (1, 0, 2)) | np.swapaxes(A, 0, -1)
np.moveaxis(A, 0, -1) | np.moveaxis(A, (0, 1), (1, 2)) | np.squeeze(A[:1]) | np.squeeze(A[:1], axis=0)
np.squeeze(A[:1, :1, :1])
np.expand_dims(A, 1) | np.expand_dims(A, (0, -1)) | np.broadcast_to(B, (2, 3, 4)) | np.flip(A) | np.flip(A, 1)
np.roll(A, 5)
np.roll(A, 1, axis=1) | np.roll(A, (1, -1), (0, 2)) | np.roll(A, 1, (0, 1)) | np.tile(B, 2) | np.tile(B, (2, 1, 2))
np.tile(A, (1, 2))
np.repeat(B, 2) | np.repeat(B, 3, axis=1) | np.concatenate([A, A]) | np.concatenate([A, B[None]], axis=0)
np.concatenate([A, B], axis=None) | np.stack([A, A]) | np.stack([A, A], axis=-1) | np.stack([A, A], 1)
np.vstack([B, B[0]])
np.hstack([B, B]) | np.hstack([B[0], B[1]]) | np.where(L, A, 0) | np.where(A > 0, A, B) | np.clip(A, -0.5, 0.5)
np.clip(A, None, 0.5)
np.clip(A, min=0) | np.round(C) | np.around(A, 2) | np.rint(C) | np.real(A) | np.imag(A) | np.tril(B)
np.triu(B, 1) | np.trace(B[:, :3])
np.linalg.solve(A[0, :, :3], B) | np.linalg.norm(B) | np.linalg.norm(B, axis=0) | np.linalg.norm(B, 1, 1, True)
np.linalg.norm(A[0, 0], np.inf) | np.dot(B, A[0].T) | np.dot(B[0], B[1]) | np.dot(2.0, B) | np.outer(B[0], B[1])
np.zeros_like(A) | np.ones_like(A, dtype=np.float32) | np.full_like(A, 3.5) | np.zeros_like(L)
np.isclose(A, A + 1e-9) | np.copy(A)
np.add.reduce(A) | np.add.reduce(A, axis=(0, 1)) | np.maximum.reduce(A, axis=None)
np.logical_or.reduce(L, axis=1, keepdims=True)
np.maximum(C, 0) | np.fmax(C, 0) | np.minimum(C, 1) | np.fmin(0, C) | np.remainder(C, 0) | np.floor_divide(C, 2)
np.sign(C)
np.matmul(B, B[0]) | B[0] @ B.T | 2 * A | A / 2 | 1 - A | A ** 2 | B - A | -A | abs(A) | A > 0 | A == A | L & L
~L | A // 2 | A % 2
np.nansum(C) | np.nanprod(C, axis=1) | np.nanmean(C, 1) | np.diagonal(B, 1) | np.diag(B) | np.diag(B[0], -1)
np.diff(A) | np.diff(A, 2, axis=0) | np.ptp(A, axis=1) | np.atleast_1d(B) | np.atleast_2d(B[0]) | np.atleast_3d(B)
np.dstack([B, B]) | np.inner(A, B) | np.vdot(B, B) | np.tensordot(A, A, axes=([0, 1], [0, 1])) | np.dot(A, A[0].T)
np.dot(A, np.ones((5, 4, 2))) | np.linalg.norm(B, 1) | np.linalg.norm(B, -np.inf) | np.linalg.norm(A, "fro", (0, 2))
np.linalg.norm(A, 1, axis=(0, 1)) | np.linalg.norm(A, np.inf, axis=(2, 0)) | np.linalg.norm(B[0], -1)
np.linalg.norm(B[0], 0) | np.argmax(C, axis=1) | np.argmin(C) | np.reshape(A[0, 0, 0], ()) | np.reshape(A[:1, 0, 0], ())
np.add.outer(B[0], B[1]) | np.add.accumulate(A) | np.tri(3, 4) + B | np.tril(A) | np.cumsum(L, dtype=np.float32)
np.divmod(A, 0.3)[0] | divmod(A, 0.3)[1] | divmod(2.0, A)[0]
np.power(A, 2) | np.exp2(B) | np.linspace(0, 1, 4) + B | np.float32(2) * A | A - np.float64(1) | np.ones(4) * A
"""
CALLS = [text.strip() for line in CALLS.strip().splitlines() for text in line.split(" | ")]


@pytest.mark.parametrize("text", CALLS)
def test_functions(text):
    with np.errstate(all="ignore"):
        expected = eval(text)
    found = eval(text, {"np": np, "A": dlarray(A), "B": dlarray(B), "C": dlarray(C), "L": dlarray(L)})
    assert isinstance(found, DLArray)
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-15)
    places = text.startswith(("np.arg",))  # minidl's places are double
    assert found.dtype == (np.float64 if places or expected.dtype.kind == "i" else expected.dtype)


def test_tables_have_no_untested_function():
    tested = " ".join(CALLS) + ""
    tested += " array_equal allclose split shape ndim size result_type array2string array_repr array_str"
    tested += " broadcast_arrays array_split histogram histogram2d histogram_bin_edges"
    missing = [f.__name__ for f in FUNCTIONS if f.__name__ not in tested]
    assert not missing


def test_mixed_first_arguments():
    x = dlarray(B)
    assert isinstance(np.concatenate([B, x]), DLArray) and isinstance(np.where(B > 0, x, 0), DLArray)
    assert isinstance(np.stack([B, x]), DLArray) and isinstance(np.dot(B, x.T), DLArray)
    assert [part.tolist() for part in np.split(x, 2, axis=1)] == [part.tolist() for part in np.split(B, 2, axis=1)]
    assert [part.shape for part in np.split(x, [1, 9])] == [(1, 4), (2, 4), (0, 4)]
    assert (np.shape(x), np.ndim(x), np.size(x), np.size(x, 1)) == ((3, 4), 2, 12, 4)
    assert np.array_equal(x, B) and np.allclose(B, x) and not np.array_equal(x, A)
    assert np.result_type(x, np.float32) == np.float64
    assert np.array2string(x[0, :1]) == np.array2string(B[0, :1])


LABELS = [
    ("np.sin(X)", "CB"), ("X + np.ones((2, 3))", "CB"), ("np.ones((2, 1)) * X", "CB"), ("np.maximum(X, 0)", "CB"),
    ("np.sum(X, axis=0, keepdims=True)", "CB"), ("np.sum(X, axis='C', keepdims=True)", "CB"), ("np.sum(X, axis=0)", ""),
    ("np.mean(X)", ""), ("np.flip(X, 1)", "CB"), ("np.concatenate([X, X], axis=1)", "CB"), ("np.clip(X, 0, 1)", "CB"),
    ("np.where(X > 0, X, 0)", "CB"), ("np.zeros_like(X)", "CB"), ("np.round(X)", "CB"), ("np.cumsum(X, axis=1)", "CB"),
    ("np.reshape(X, (3, 2))", ""), ("np.stack([X, X])", ""), ("np.squeeze(Y)", "CB"), ("np.tile(X, (1, 2))", "CB"),
    ("np.roll(X, 1, axis=1)", "CB"), ("np.sort(X, 0)", "CB"), ("np.split(X, 3, 1)[0]", "CB"),
    ("np.isclose(X, 0)", "CB"),
]  # fmt: skip


@pytest.mark.parametrize("text, labels", LABELS)
def test_labels(text, labels):
    X, Y = dlarray(R.normal(size=(2, 3)), "CB"), dlarray(R.normal(size=(1, 2, 3)), "SCB")
    assert eval(text, {"np": np, "X": X, "Y": Y}).dims() == labels


def test_everything_is_traced():
    def fun(x):
        y = np.mean(np.square(np.concatenate([np.sin(x), np.ones(2) * x])) @ np.ones(4))
        return y, dlgradient(y, x)

    y, g = dlfeval(fun, dlarray([0.5, 1.0]))
    x = np.array([0.5, 1.0])
    np.testing.assert_allclose(y.item(), np.sum(np.sin(x) ** 2 + x**2))
    np.testing.assert_allclose(g.numpy(), 2 * np.sin(x) * np.cos(x) + 2 * x)


def add_in_place(x):
    plain = np.zeros(3)
    plain += x


X = dlarray([1.0, 2.0, 3.0])
M = dlarray([[1.0, 2.0], [2.0, 4.0]])
BAD = [
    (lambda: add_in_place(X), DTypeError, "array = array + X"),
    (lambda: np.add(X, 1, where=[True]), OptionError, "where"),
    (lambda: np.heaviside(X, 1), DTypeError, "np.asarray(X)"), (lambda: np.add.at(X, 0, 1), DTypeError, "np.add.at"),
    (lambda: np.fft.fft(X), DTypeError, "np.fft"), (lambda: np.einsum("i->", X), DTypeError, "np.einsum"),
    (lambda: np.where(X), DTypeError, "np.where"), (lambda: np.sum(X, where=[True]), OptionError, "where"),
    (lambda: np.var(X, mean=1.0), OptionError, "mean"), (lambda: np.max(X[:0]), ShapeError, "nothing"),
    (lambda: np.bitwise_and(X, X), DTypeError, "logical"), (lambda: np.sum(X, axis=1), ShapeError, "axis 1 is out of"),
    (lambda: np.squeeze(X, axis=0), ShapeError, "size 1"), (lambda: np.split(X, 2), ShapeError, "equal parts"),
    (lambda: np.concatenate([X, X], axis=1), ShapeError, "np.stack"),
    (lambda: np.linalg.norm(M, 2), DTypeError, "np.linalg.norm of order 2"),
    (lambda: np.linalg.norm(M, "nuc"), DTypeError, "'nuc'"), (lambda: np.linalg.norm(X, "fro"), ShapeError, "'fro'"),
    (lambda: np.linalg.norm(M, 3), ShapeError, "order 3"), (lambda: np.linalg.inv(M), DTypeError, "np.linalg.inv:"),
    (lambda: np.sort(X, kind="bad"), OptionError, "kind"), (lambda: np.sort(X, order="a"), OptionError, "order"),
    (lambda: np.mean(X, out=np.zeros(1)), OptionError, "out"),
    (lambda: np.median(X, overwrite_input=True), OptionError, "overwrite_input"),
    (lambda: np.zeros_like(X, dtype=np.int8), DTypeError, "int8"),
    (lambda: np.linalg.solve(M, X[:2]), SingularError, "singular"),
    (lambda: np.linalg.solve(M[:1], X[:1]), ShapeError, "square"),
    (lambda: np.transpose(M, (0, 5)), ShapeError, "np.transpose: axis 5"),
    (lambda: np.repeat(M, 2, axis=2), ShapeError, "np.repeat: axis 2"),
    (lambda: np.stack([X, X], axis=7), ShapeError, "np.stack: axis 7"),
    (lambda: np.concatenate([M, X]), ShapeError, "unlike"), (lambda: np.concatenate([X, X[0]]), ShapeError, "unlike"),
    (lambda: np.swapaxes(M, 0, 5), ShapeError, "np.swapaxes"), (lambda: np.split(X, "a"), DTypeError, "np.split"),
    (lambda: np.tile(X, 1.5), DTypeError, "np.tile"), (lambda: np.argmax(X, axis=2), ShapeError, "np.argmax"),
    (lambda: np.argmax(X, axis=(0,)), DTypeError, "np.argmax"), (lambda: np.round(X, "a"), DTypeError, "np.round"),
    (lambda: np.reshape(X, (2, 2)), ShapeError, "np.reshape"), (lambda: np.split(X, 0), ShapeError, "1 at least"),
    (lambda: np.add(X, np.ones(2)), ShapeError, "np.add: sizes"), (lambda: np.moveaxis(X, 3, 0), ShapeError, "np.move"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)


def test_protocols_of_other_libraries():
    x = dlarray(np.float32([[1, 2]]))
    np.testing.assert_array_equal(np.from_dlpack(x), x.numpy())
    assert np.shares_memory(np.asarray(x), np.asarray(x)) and np.asarray(x, dtype=np.float64).dtype == np.float64
    assert math.floor(dlarray(2.5).item()) == 2 and m.numel(x) == 2


DIVIDED = np.array([0.0, -0.0, 1, -1, 0.1, -0.1, math.inf, -math.inf, math.nan, 3, -3, 1e308, 5e-324, 7.3, 2])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("numerics", ["plain", "exact", "fast"])
def test_N7_floor_division_and_remainder_are_numpys(numerics, dtype):
    """Bit for bit, with the sign of zero: 1 // 0.1 is 9, -1 // inf is -1, x % 0 is NaN."""
    with np.errstate(all="ignore"):
        a, b = (np.ascontiguousarray(x.astype(dtype)) for x in np.meshgrid(DIVIDED, DIVIDED))
        expected = [a // b, a % b, a // a.dtype.type(0.1), a % -a.dtype.type(2)]

    def fun(x, y):
        return [x // y, x % y, x // 0.1, x % -2]

    run = fun if numerics == "plain" else dlaccelerate(fun, Numerics=numerics)
    for _ in range(3):
        found = [y.numpy() for y in run(dlarray(a), dlarray(b))]
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(other, one)
        known = ~np.isnan(one)
        np.testing.assert_array_equal(np.signbit(other[known]), np.signbit(one[known]))


def test_N7_remainders_derivative():
    x, y = dlarray([7.3, -7.3, 2.0, 0.7]), dlarray([2.0, 2.0, -3.0, 0.1])
    def fun(x, y):
        return *dlgradient(m.sum(x % y, "all"), x, y), dlgradient(m.sum(x // y, "all"), x)

    gx, gy, q = dlfeval(fun, x, y)
    assert gx.tolist() == [1.0] * 4 and q.tolist() == [0.0] * 4
    assert gy.tolist() == (-(x.numpy() // y.numpy())).tolist()
