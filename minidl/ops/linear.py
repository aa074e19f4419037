"""Matrices: products, linear systems, triangles and diagonals.

mtimes and pagemtimes are MATLAB's: pages are the dimensions AFTER the first two. The operator @, `matmul` and np.matmul
are NumPy's: pages are the dimensions BEFORE the last two.
"""

from __future__ import annotations

import numpy as np

from minidl.core.contraction import Contraction, index
from minidl.core.dlarray import DLArray, Operand, public
from minidl.core.errors import LabelError, ShapeError, whole
from minidl.core.labels import describe
from minidl.core.op import KERNEL, case, op
from minidl.core.options import options
from minidl.core.spec import Spec
from minidl.ops.axes import Dim, array
from minidl.ops.elementwise import times, where
from minidl.ops.reduction import sum
from minidl.ops.shape import transpose
from minidl.ops.views import broadcast, crop, place, reorder, view_as

# the ops: matrices in the last two dimensions -------------------------------------------------------------------


def _swapped(x):
    rank = x.ndim
    return reorder(x, order=(*range(rank - 2), rank - 1, rank - 2))


@op(KERNEL, samples=lambda r: [case(r.normal(size=(2, 3)), r.normal(size=(3, 4))),
                               case(r.normal(size=(2, 2, 3)), r.normal(size=(2, 3, 1)))])  # fmt: skip
def matmul(a, b):
    """Matrix products of the last two dimensions; all others are equal."""


@matmul.infer
def _(a, b):
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ShapeError(
            f"matmul: {describe(a.shape)} times {describe(b.shape)} does not go. Columns of the first and rows of the "
            f"second must be equal; they are {a.shape[-1]} and {b.shape[-2]}."
        )
    return Spec((*a.shape[:-1], b.shape[-1]), a.dtype, a.device)


@matmul.contraction
def _(a, b):
    rank = a.ndim
    pages, (i, j, k) = tuple(map(index, range(rank - 2))), (rank - 2, rank - 1, rank)
    return [Contraction(
        (*a.shape[:-1], b.shape[-1], a.shape[-1]),
        (*pages, index(i), index(j)), (*pages, index(i), index(k)), (*pages, index(k), index(j)),
    )]  # fmt: skip


matmul.vjps(lambda g, y, a, b: matmul(g, _swapped(b)), lambda g, y, a, b: matmul(_swapped(a), g))


def _system(r):
    return r.normal(size=(3, 3)) + 3 * np.eye(3)


@op(KERNEL, samples=lambda r: [case(_system(r), r.normal(size=(3, 2)))])
def solve(a, b, *, is_strict=False):
    """The y with a y = b for a square matrix a; Inf with a warning if a is singular, or an error."""


solve.infer(lambda a, b, is_strict=False: Spec((a.shape[1], b.shape[1]), b.dtype, b.device))
solve.vjps(
    lambda g, y, a, b, is_strict=False: -matmul(solve(_swapped(a), g), _swapped(y)),
    lambda g, y, a, b, is_strict=False: solve(_swapped(a), g),
)


@op(KERNEL, samples=lambda r: [case(r.normal(size=(5, 3)), r.normal(size=(5, 2))),
                               case(r.normal(size=(2, 4)), r.normal(size=(2, 1)))])  # fmt: skip
def lstsq(a, b):
    """The shortest y that makes |a y - b| least: y = pinv(a) b."""


lstsq.infer(lambda a, b: Spec((a.shape[1], b.shape[1]), b.dtype, b.device))


@lstsq.vjp
def _(g, y, a, b):
    # Source: Golub and Pereyra, The differentiation of pseudo-inverses, SIAM J. Numer. Anal. 10 (1973), full rank
    at = _swapped(a)
    gb = lstsq(at, g)
    ga = matmul(b - matmul(a, y), _swapped(lstsq(a, gb))) - matmul(gb, _swapped(y))
    return ga + matmul(lstsq(at, y), _swapped(g - matmul(at, gb))), gb


# products -------------------------------------------------------------------------------------------------------


def _unlabelled(who: str, a: DLArray, b: DLArray) -> None:
    labels = a._labels or b._labels
    if labels:
        raise LabelError(
            f'{who}: rows and columns of a formatted array ("{labels}") are no matrix; only a scalar can multiply it. '
            "Use stripdims(X) first, or fullyconnect for the products of a layer."
        )


def _is_scalar(x: DLArray) -> bool:
    return x._value.spec.size == 1 and not x._labels


@public
def mtimes(A: Operand, B: Operand) -> DLArray:
    """Matrix product A * B.

        Y[i, j] = sum_k A[i, k] B[k, j]

    A, B : matrices without labels (a 1-D B counts as a column), or one of them a scalar, which multiplies each element
           of the other; only that other may be formatted.
    Raises LabelError for a formatted matrix, ShapeError if sizes do not fit.
    Source: MathWorks, reference page "mtimes".

    >>> mtimes(array([[1.0, 2.0]]), array([[3.0], [4.0]])).tolist(), mtimes(2.0, array([[1.0, 2.0]])).tolist()
    ([[11.0]], [[2.0, 4.0]])
    """
    a, b = array(A), array(B)
    if _is_scalar(a) and _is_scalar(b):
        return times(a, b)
    if _is_scalar(a) or _is_scalar(b):
        return times(*[view_as(x, shape=()) if x.ndim and _is_scalar(x) else x for x in (a, b)])
    _unlabelled("mtimes", a, b)
    if a.ndim > 2 or b.ndim > 2 or a.ndim == 0 or b.ndim == 0:
        raise ShapeError(
            f"mtimes: matrices are wanted; got {describe(a.shape)} and {describe(b.shape)}. For pages of matrices use "
            "pagemtimes (pages last) or @ (pages first)."
        )
    a = a if a.ndim == 2 else view_as(a, shape=(a.size, 1))
    b = b if b.ndim == 2 else view_as(b, shape=(b.size, 1))
    return matmul(a, b)


@public
def pagemtimes(A: Operand, B: Operand) -> DLArray:
    """Matrix products page by page. Pages are the dimensions after the first two, as in MATLAB.

        Y[i, j, p...] = sum_k A[i, k, p...] B[k, j, p...]

    Pages expand from size 1.
    A, B : arrays without labels, or one of them a scalar (then the other may be formatted).
    The operator @ is NumPy's product instead, whose pages come first.
    Source: MathWorks, reference page "pagemtimes".

    >>> pagemtimes(array(np.ones((2, 3, 5))), array(np.ones((3, 4)))).shape
    (2, 4, 5)
    """
    a, b = array(A), array(B)
    if a.ndim <= 2 and b.ndim <= 2:
        return mtimes(a, b)
    if (_is_scalar(a) and b._labels) or (_is_scalar(b) and a._labels):
        return mtimes(a, b)
    _unlabelled("pagemtimes", a, b)
    rank = max(a.ndim, b.ndim)
    order = (*range(2, rank), 0, 1)
    a, b = (x if x.ndim == rank else view_as(x, shape=x.shape + (1,) * (rank - x.ndim)) for x in (a, b))
    y = _product("pagemtimes", reorder(a, order=order), reorder(b, order=order))
    return reorder(y, order=(rank - 2, rank - 1, *range(rank - 2)))


@public
def matmul_(A: Operand, B: Operand) -> DLArray:
    """A @ B as NumPy has it: matrices in the last two dimensions, all others expand; 1-D arrays are a row or a column.

    Raises LabelError for formatted arrays, ShapeError for scalars and sizes that do not fit.

    >>> (array([[1.0, 2.0]]) @ array([3.0, 4.0])).tolist()
    [11.0]
    """
    a, b = array(A), array(B)
    _unlabelled("matmul", a, b)
    if a.ndim == 2 and b.ndim == 2:
        return matmul(a, b)
    if not a.ndim or not b.ndim:
        raise ShapeError("matmul: @ multiplies matrices, one operand is a scalar. Use * instead.")
    left = a if a.ndim > 1 else view_as(a, shape=(1, a.size))
    right = b if b.ndim > 1 else view_as(b, shape=(b.size, 1))
    y = _product("matmul", left, right)
    shape = y.shape
    if a.ndim == 1:
        shape = (*shape[:-2], shape[-1])
    if b.ndim == 1:
        shape = shape[:-1]
    return y if shape == y.shape else view_as(y, shape=shape)


def _product(who: str, a: DLArray, b: DLArray) -> DLArray:
    """Products over the last two dimensions, the others expanded from size 1."""
    pages_a, pages_b = a.shape[:-2], b.shape[:-2]
    if pages_a == pages_b:
        return matmul(a, b)
    try:
        pages = np.broadcast_shapes(pages_a, pages_b)
    except ValueError:
        raise ShapeError(
            f"{who}: pages {describe(pages_a)} and {describe(pages_b)} do not expand to one size. "
            "Every pair of sizes must be equal or have a 1."
        ) from None
    m, k = a.shape[-2:]
    if k == b.shape[-2] and Spec(pages_b).size == 1 and a.size:  # one matrix for all pages: one large product
        y = matmul(view_as(a, shape=(a.size // k, k)), view_as(b, shape=b.shape[-2:]))
        return view_as(y, shape=(*pages, m, b.shape[-1]))
    return matmul(_paged(a, pages), _paged(b, pages))


def _paged(x: DLArray, pages: tuple[int, ...]) -> DLArray:
    shape = (*pages, *x.shape[-2:])
    if x.shape == shape:
        return x
    return broadcast(x, shape=shape, dims=tuple(range(len(shape) - x.ndim, len(shape))))


@public
@options
def dot(A: Operand, B: Operand, dim: Dim = None) -> DLArray:
    """Scalar product of the vectors along `dim`: sum(A .* B, dim).

    >>> dot(array([1.0, 2.0]), array([3.0, 4.0])).tolist()
    [11.0]
    """
    a, b = array(A), array(B)
    if a.shape != b.shape:
        raise ShapeError(
            f"dot: equal sizes are wanted; got {describe(a.shape, a._labels)} and {describe(b.shape, b._labels)}. "
            "Expand one, or use sum(A * B, dim)."
        )
    return sum(times(a, b), dim)


# linear systems -------------------------------------------------------------------------------------------------


@public
def mldivide(A: Operand, B: Operand) -> DLArray:
    r"""The solution Y of A Y = B: MATLAB's A \ B.

    A : matrix, or a scalar (then B ./ A, and B may be formatted). Square: solved by elimination; otherwise the shortest
        of the least-squares solutions (MATLAB gives another one where there are many). Derivatives need full rank.
    B : as many rows as A; a 1-D B counts as a column and gives a 1-D Y.
    A singular square A gives Inf with a warning, as in MATLAB; on a GPU Inf or NaN, and none: it would have to wait.
    Source: MathWorks, reference page "mldivide"; Golub and Van Loan, Matrix Computations (2013), 5.3.

    >>> mldivide(array([[2.0, 0.0], [0.0, 4.0]]), array([2.0, 2.0])).tolist()
    [1.0, 0.5]
    """
    a, b = array(A), array(B)
    if a.size == 1 and not a._labels and a.ndim < 2:
        return b / a
    _unlabelled("mldivide", a, b)
    if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0]:
        raise ShapeError(
            f"mldivide: A Y = B needs matrices with equally many rows; got {describe(a.shape)} and "
            f"{describe(b.shape)}. Solve page by page, or transpose."
        )
    columns = b if b.ndim == 2 else view_as(b, shape=(b.size, 1))
    y = (solve if a.shape[0] == a.shape[1] else lstsq)(a, columns)
    return y if b.ndim == 2 else view_as(y, shape=(y.size,))


@public
def mrdivide(B: Operand, A: Operand) -> DLArray:
    """The solution Y of Y A = B: MATLAB's B / A. See `mldivide`; a scalar A divides each element of B.

    >>> mrdivide(array([[2.0, 2.0]]), array([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[1.0, 0.5]]
    """
    a, b = array(A), array(B)
    if a.size == 1 and not a._labels and a.ndim < 2:
        return b / a
    _unlabelled("mrdivide", a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"mrdivide: Y A = B needs matrices with equally many columns; got {describe(b.shape)} and "
            f"{describe(a.shape)}. Solve page by page, or transpose."
        )
    return transpose(mldivide(transpose(a), transpose(b)))


# triangles and diagonals ----------------------------------------------------------------------------------------


def _matrix(who: str, X: Operand) -> DLArray:
    x = array(X)
    if x.ndim != 2:
        raise ShapeError(f"{who}: a matrix is wanted, X is {describe(x.shape, x._labels)}. Take one page of it.")
    return x


def _lower(shape: tuple[int, ...], k: int) -> np.ndarray:
    rows, columns = shape
    return np.tri(rows, columns, k, dtype=bool)


@public
def tril(X: Operand, k: int = 0) -> DLArray:
    """The lower triangle of a matrix, up to its k-th diagonal (0: the main one); zeros above.

    >>> tril(array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 0.0], [3.0, 4.0]]
    """
    x = _matrix("tril", X)
    return where(_lower(x.shape, whole("tril", "k", k)), x, 0)


@public
def triu(X: Operand, k: int = 0) -> DLArray:
    """The upper triangle of a matrix, from its k-th diagonal on (0: the main one); zeros below.

    >>> triu(array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 2.0], [0.0, 4.0]]
    """
    x = _matrix("triu", X)
    return where(_lower(x.shape, whole("triu", "k", k) - 1), 0, x)


@public
def diag(X: Operand, k: int = 0) -> DLArray:
    """The k-th diagonal of a matrix as a column, or the matrix with a vector as its k-th diagonal.

    X : matrix, or vector (1-D, row or column). Raises LabelError for a formatted X.
    Source: MathWorks, reference page "diag".

    >>> diag(array([[1.0, 2.0], [3.0, 4.0]])).tolist(), diag(array([1.0, 2.0])).tolist()
    ([[1.0], [4.0]], [[1.0, 0.0], [0.0, 2.0]])
    """
    x, k = array(X), whole("diag", "k", k)
    if x._labels:
        raise LabelError(f'diag: rows and columns of a formatted array ("{x._labels}") differ. Use stripdims(X) first.')
    shape = x.shape
    if len(shape) == 1 or (len(shape) == 2 and 1 in shape):
        n = x.size
        side = n + abs(k)
        start = k if k >= 0 else -k * side
        y = place(view_as(x, shape=(n,)), shape=(side * side,), slices=((start, n, side + 1),))
        return view_as(y, shape=(side, side))
    rows, columns = _matrix("diag", x).shape
    start = k if k >= 0 else -k * columns
    count = max(0, min(rows, columns - k) if k >= 0 else min(rows + k, columns))
    y = crop(view_as(x, shape=(rows * columns,)), slices=((start if count else 0, count, columns + 1),))
    return view_as(y, shape=(count, 1))


@public
def trace(X: Operand) -> DLArray:
    """Sum of the diagonal of a square matrix.

    >>> trace(array([[1.0, 2.0], [3.0, 4.0]])).item()
    5.0
    """
    x = _matrix("trace", X)
    if x.shape[0] != x.shape[1]:
        raise ShapeError(f"trace: a square matrix is wanted, X is {describe(x.shape)}. Use sum(diag(X)).")
    return sum(diag(x), "all")
