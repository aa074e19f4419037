"""Matrices: products with NumPy's and MATLAB's pages, linear systems, triangles; derivatives, labels, wrong input."""

import numpy as np
import pytest
from finite_differences import check_derivatives

import minidl.ops as m
from minidl.core.dlarray import dlarray
from minidl.core.errors import LabelError, OptionError, ShapeError

R = np.random.default_rng(11)


def normal(*shape):
    return R.normal(size=shape)


NUMPY = [  # sizes of two operands of @
    ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)), ((6, 1, 2, 3), (5, 3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 2)), ((2, 0), (0, 3)),
    ((0, 3), (3, 2)),
    ((5, 0, 3), (3, 2)), ((1, 2, 3), (5, 3, 4)), ((2, 3), (1, 1, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize("sa, sb", NUMPY)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_at_is_numpys_product(sa, sb, dtype):
    a, b = normal(*sa).astype(dtype), normal(*sb).astype(dtype)
    for y in (dlarray(a) @ dlarray(b), dlarray(a) @ b, a @ dlarray(b), np.matmul(a, dlarray(b))):
        np.testing.assert_allclose(y.numpy(), a @ b, rtol=1e-12 if dtype == "float64" else 1e-4, atol=1e-6)
        assert (y.shape, y.dtype) == ((a @ b).shape, dtype)


@pytest.mark.parametrize("sa, sb", [(a, b) for a, b in NUMPY if 0 not in a])
def test_derivatives_of_at(sa, sb):
    check_derivatives(lambda a, b: m.square(a @ b), normal(*sa), normal(*sb))


def test_memory_layouts():
    a, b = normal(3, 2), normal(4, 3)
    wide = np.broadcast_to(normal(1, 3), (2, 3))
    for x, y in ((a.T, b.T), (a[::-1].T, b.T[:, ::2]), (wide, b.T), (wide, np.broadcast_to(2.0, (3, 4)))):
        np.testing.assert_allclose((dlarray(x) @ dlarray(y)).numpy(), x @ y, rtol=1e-13)


PAGES = [((2, 3, 5), (3, 4, 5)), ((2, 3, 5), (3, 4)), ((2, 3), (3, 4, 5)), ((2, 3, 1, 6), (3, 4, 5)), ((2, 3), (3, 4)),
         ((2, 3, 5), (3, 4, 1, 2))]  # fmt: skip


@pytest.mark.parametrize("sa, sb", PAGES)
def test_pagemtimes_has_its_pages_last(sa, sb):
    a, b = normal(*sa), normal(*sb)
    rank = max(a.ndim, b.ndim)
    pages_first = [np.moveaxis(x.reshape(x.shape + (1,) * (rank - x.ndim)), (0, 1), (-2, -1)) for x in (a, b)]
    expected = np.moveaxis(pages_first[0] @ pages_first[1], (-2, -1), (0, 1))
    np.testing.assert_allclose(m.pagemtimes(dlarray(a), b).numpy(), expected, rtol=1e-12)
    check_derivatives(lambda a, b: m.square(m.pagemtimes(a, b)), a, b)


def test_scalars_may_multiply_formatted_arrays():
    x = dlarray(normal(2, 3), "CB")
    for y in (m.mtimes(2.0, x), m.mtimes(x, dlarray([[2.0]])), m.pagemtimes(dlarray(normal(2, 3, 4), "SCB"), 2.0)):
        assert y.dims() in ("CB", "SCB")
    np.testing.assert_array_equal(m.mtimes(2.0, x).numpy(), 2 * x.numpy())
    assert m.mtimes(dlarray([[2.0]]), dlarray([[3.0]])).tolist() == [[6.0]]
    assert m.mtimes(dlarray(normal(2, 3)), dlarray(normal(3))).shape == (2, 1)


SYSTEMS = [((3, 3), (3, 2)), ((3, 3), (3,)), ((5, 3), (5, 2)), ((2, 4), (2, 3)), ((5, 3), (5,))]


@pytest.mark.parametrize("sa, sb", SYSTEMS)
def test_linear_systems(sa, sb):
    a, b = normal(*sa), normal(*sb)
    np.testing.assert_allclose(m.mldivide(dlarray(a), b).numpy(), np.linalg.pinv(a) @ b, rtol=1e-10)
    check_derivatives(lambda a, b: m.square(m.mldivide(a, b)), a, b, rtol=1e-5)
    if b.ndim == 2:
        np.testing.assert_allclose(m.mrdivide(b.T, dlarray(a.T)).numpy(), b.T @ np.linalg.pinv(a.T), rtol=1e-10)


def test_scalar_systems_divide():
    assert m.mldivide(2.0, dlarray([4.0])).tolist() == m.mrdivide(dlarray([4.0]), 2.0).tolist() == [2.0]
    assert m.mrdivide(dlarray(normal(2, 3), "CB"), 2.0).dims() == "CB"


def test_a_singular_matrix_warns():
    with pytest.warns(UserWarning, match="singular"):
        y = m.mldivide(dlarray(np.ones((2, 2))), [1.0, 2.0])
    assert np.isinf(y.numpy()).all()


def test_dot():
    a, b = normal(3, 4), normal(3, 4)
    np.testing.assert_allclose(m.dot(dlarray(a), b).numpy(), (a * b).sum(0, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(m.dot(dlarray(a, "CB"), b, "B").numpy(), (a * b).sum(1, keepdims=True), rtol=1e-12)


X, V = normal(3, 5), normal(4)


@pytest.mark.parametrize("k", [-3, -2, -1, 0, 1, 2, 4, 6])
def test_triangles_and_diagonals(k):
    np.testing.assert_array_equal(m.tril(dlarray(X), k).numpy(), np.tril(X, k))
    np.testing.assert_array_equal(m.triu(dlarray(X), k).numpy(), np.triu(X, k))
    np.testing.assert_array_equal(m.diag(dlarray(X), k).numpy(), np.diag(X, k)[:, None])
    np.testing.assert_array_equal(m.diag(dlarray(V), k).numpy(), np.diag(V, k))
    np.testing.assert_array_equal(m.diag(dlarray(V[None]), k).numpy(), np.diag(V, k))
    assert m.trace(dlarray(X[:, :3])).item() == pytest.approx(np.trace(X[:, :3]))


CB = dlarray(normal(2, 3), "CB")
BAD = [
    (lambda: CB @ normal(3, 2), LabelError, "fullyconnect"),
    (lambda: m.mtimes(CB, CB), LabelError, "stripdims"),
    (lambda: m.mtimes(CB, dlarray(2.0, "C")), LabelError, "stripdims"),
    (lambda: m.pagemtimes(dlarray(normal(2, 3, 4), "SCB"), normal(3, 2)), LabelError, "stripdims"),
    (lambda: dlarray(X) @ normal(4, 2), ShapeError, "5 and 4"),
    (lambda: dlarray(X) @ 2.0, ShapeError, "Use *"),
    (lambda: dlarray(normal(2, 3, 4)) @ normal(3, 4, 2), ShapeError, "pages"),
    (lambda: m.mtimes(dlarray(normal(2, 3, 4)), normal(4, 2)), ShapeError, "pagemtimes"),
    (lambda: m.mtimes(dlarray(X), normal(4, 2)), ShapeError, "5 and 4"),
    (lambda: m.pagemtimes(dlarray(normal(2, 3, 4)), normal(3, 2, 5)), ShapeError, "pages"),
    (lambda: m.mldivide(dlarray(X), normal(4)), ShapeError, "rows"),
    (lambda: m.mldivide(dlarray(normal(2, 2, 2)), normal(2)), ShapeError, "page by page"),
    (lambda: m.mldivide(CB, normal(2)), LabelError, "stripdims"),
    (lambda: m.mrdivide(dlarray(X), normal(2, 4)), ShapeError, "columns"),
    (lambda: m.dot(dlarray(X), normal(3)), ShapeError, "equal sizes"),
    (lambda: m.dot(dlarray(X), X, Dim=1), OptionError, "Did you mean dim"),
]


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)
