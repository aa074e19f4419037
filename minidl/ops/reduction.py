"""Fewer elements, or as many with memory: sums, extremes, moments, running totals and sorting.

Where MATLAB asks for a dimension, `dim` is a number (from 0; negative: from the end), a label ("C"; "S" means all
spatial dimensions), a list of either, or "all"; by default it is the first dimension whose size is not 1, as in MATLAB.
Reduced dimensions stay with size 1, labels stay; with "all" the result is an unformatted scalar of shape ().
NumPy's functions (np.sum(X, axis=...)) follow NumPy instead and drop reduced dimensions.
"""

# mypy: disable-error-code="has-type"

from __future__ import annotations

import builtins
import functools
import math
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, Operand, numbers, public
from minidl.core.errors import OptionError, choice
from minidl.core.op import KERNEL, MAP, REDUCE, case, named, op
from minidl.core.options import options
from minidl.core.spec import DOUBLE, INDEX, SINGLE, Spec
from minidl.ops.axes import Dim, array, axes_of, axis_of, refuse_truth
from minidl.ops.elementwise import (
    abs,
    and_,
    eq,
    exp,
    floor,
    gt,
    isfinite,
    isnan,
    larger,
    log_,
    lt,
    mod,
    ne,
    power,
    settled,
    sign,
    smaller,
    sqrt,
    square,
    square_,
    where,
)  # fmt: skip
from minidl.ops.shape import concatenate, flip
from minidl.ops.views import broadcast, cast, labelled, part, reorder, view_as

# the ops: along `axes`, without labels --------------------------------------------------------------------------


def _reduced(x, *, axes):
    return Spec(tuple([1 if i in axes else n for i, n in enumerate(x.shape)]), x.dtype, x.device)


def _two_cases(r):
    return [case(r.normal(size=(2, 3, 4)), axes=(0, 2)), case(r.normal(size=(3,)), axes=(0,))]


def _expanded(g, x):
    return broadcast(g, shape=x.shape, dims=tuple(range(x.ndim)))


@op(REDUCE, text="({0} + {1})", identity=0.0, samples=_two_cases)
def reduce_sum(x, *, axes):
    """Sum along `axes`; they stay with size 1."""


reduce_sum.infer(_reduced)
reduce_sum.vjps(lambda g, y, x, axes: _expanded(g, x))


@op(REDUCE, text="({0} * {1})", identity=1.0, samples=_two_cases)
def reduce_prod(x, *, axes):
    """Product along `axes`; they stay with size 1."""


reduce_prod.infer(_reduced)


@reduce_prod.vjps
def _(g, y, x, *, axes):
    # the product of all others, as product of those before and those after: no division, so zeros do no harm
    kept = tuple([i for i in range(x.ndim) if i not in axes])
    rows = _merged(x, kept, axes)
    n = rows.shape[1]
    if not n:
        return _expanded(g, x)
    one = named("full")(shape=(rows.shape[0], 1), value=1.0, dtype=x.dtype.name, device=x.device)
    before = cumprod_along(concatenate(one, part(rows, 1, 0, n - 1), axis=1), axis=1)
    after = concatenate(one, part(rows, 1, n - 1, n - 1, -1), axis=1)
    after = flip(cumprod_along(after, axis=1), 1)
    g = _expanded(g, x)
    return settled(g * _unmerged(before * after, x.shape, kept, axes), g)


def _merged(x, kept, axes):
    """x as a matrix: the kept axes along the rows, `axes` along the columns."""
    rows, columns = (math.prod(x.shape[i] for i in group) for group in (kept, axes))
    return view_as(reorder(x, order=kept + axes), shape=(rows, columns))


def _unmerged(rows, shape, kept, axes):
    order = kept + axes
    y = view_as(rows, shape=tuple([shape[i] for i in order]))
    return reorder(y, order=tuple([order.index(i) for i in range(len(order))]))


@op(REDUCE, text="fmax({0}, {1})", identity=math.nan, samples=_two_cases)
def reduce_max(x, *, axes):
    """Largest element along `axes`, NaNs left out; the gradient goes to the first of equal ones."""


reduce_max.infer(_reduced)
reduce_max.vjps(lambda g, y, x, axes: named("scatter_add")(g, argmax(x, axes=axes), shape=x.shape))


@op(REDUCE, text="fmin({0}, {1})", identity=math.nan, samples=_two_cases)
def reduce_min(x, *, axes):
    """Smallest element along `axes`, NaNs left out; the gradient goes to the first of equal ones."""


reduce_min.infer(_reduced)
reduce_min.vjps(lambda g, y, x, axes: named("scatter_add")(g, argmax(-x, axes=axes), shape=x.shape))


@op(REDUCE, text="logical_or({0}, {1})", identity=False, types="b->b", samples=_two_cases, is_constant=True)
def reduce_any(x, *, axes):
    """Whether any element along `axes` is true."""


reduce_any.infer(_reduced)


@op(REDUCE, text="logical_and({0}, {1})", identity=True, types="b->b", samples=_two_cases, is_constant=True)
def reduce_all(x, *, axes):
    """Whether all elements along `axes` are true."""


reduce_all.infer(_reduced)


@op(KERNEL, samples=_two_cases, is_constant=True)
def argmax(x, *, axes):
    """Where the largest element along `axes` is: its place among all elements of x, last dimension fastest.

    Of equal ones the first, counted with the first of `axes` running fastest; NaNs are left out.
    """


@argmax.infer
def _(x, *, axes):
    return _reduced(x, axes=axes)._replace(dtype=INDEX)


@op(KERNEL, samples=lambda r: [case(r.normal(size=(3, 4)), axis=0, descending=True)], is_constant=True)
def argsort(x, *, axis, descending):
    """Places among all elements of x, last dimension fastest, that put x in order along `axis`; equal ones keep theirs.

    NaNs come last in rising and first in falling order.
    """


@argsort.infer
def _(x, *, axis, descending):
    return Spec(x.shape, INDEX, x.device)


@op(KERNEL, samples=lambda r: [case(r.normal(size=(2, 3)), axis=1), case(r.normal(size=(3,)), axis=0)])
def cumsum_along(x, *, axis):
    """Running sum along `axis`."""


cumsum_along.infer(lambda x, axis: x)
cumsum_along.vjps(lambda g, y, x, axis: flip(cumsum_along(flip(g, axis), axis=axis), axis))


@op(KERNEL, samples=lambda r: [case(r.normal(size=(2, 3)), axis=1), case(r.normal(size=(5,)), axis=0)])
def cumprod_along(x, *, axis):
    """Running product along `axis`."""
    # doubling: after the step of length s, every element is the product of the 2s up to it. No division, so the
    # derivative of this body is right where elements are 0. Source: Hillis and Steele, Data parallel algorithms (1986).
    n, step = x.shape[axis], 1
    while step < n:
        head, tail = part(x, axis, 0, step), part(x, axis, step, n - step)
        x = concatenate(head, tail * part(x, axis, 0, n - step), axis=axis)
        step *= 2
    return x


cumprod_along.infer(lambda x, axis: x)

# dimensions in, labels back -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)
def _plan(who: str, dim: Any, shape: tuple[int, ...], labels: str) -> tuple[tuple[int, ...], bool]:
    """(axes to reduce, whether the result is a scalar of shape ())."""
    return axes_of(who, dim, shape, labels), isinstance(dim, str) and dim.lower() == "all"


def _planned(who: str, dim: Any, x: DLArray) -> tuple[tuple[int, ...], bool]:
    if type(dim) is list:
        dim = tuple(dim)
    elif isinstance(dim, (np.ndarray, DLArray)):
        dim = tuple((numbers(dim) if isinstance(dim, DLArray) else dim).reshape(-1).tolist())
    refuse_truth(who, dim)
    try:
        return _plan(who, dim, x._value.spec.shape, x._labels)
    except TypeError:  # not hashable
        return axes_of(who, dim, x._value.spec.shape, x._labels), False


def _finished(y: DLArray, labels: str, is_scalar: bool) -> DLArray:
    if is_scalar:
        return view_as(y, shape=()) if y._value.spec.shape else y
    return labelled(y, labels) if labels else y


def _count(x: DLArray, axes: tuple[int, ...]) -> int:
    shape, n = x._value.spec.shape, 1
    for i in axes:
        n *= shape[i]
    return n


def _filled(x: DLArray, axes: tuple[int, ...], value: float) -> DLArray:
    dtype = x.dtype if x.dtype.kind == "f" else DOUBLE
    return named("full")(shape=_reduced(x._value.spec, axes=axes).shape, value=value, dtype=dtype.name, device=x.device)


# sums and moments -----------------------------------------------------------------------------------------------


@public
@options
def sum(X: Operand, dim: Dim = None) -> DLArray:
    """Sum of the elements along `dim`; 0 where there are none. Logical arrays are counted in double.

    >>> sum(array([[1.0, 2.0], [3.0, 4.0]]), 1).tolist(), sum(array([[1.0, 2.0], [3.0, 4.0]]), "all").item()
    ([[3.0], [7.0]], 10.0)
    """
    x = array(X)
    axes, is_scalar = _planned("sum", dim, x)
    return _finished(reduce_sum(x, axes=axes), x._labels, is_scalar)


@public
@options
def mean(X: Operand, dim: Dim = None) -> DLArray:
    """Mean of the elements along `dim`; NaN where there are none.

    >>> mean(array([[1.0, 2.0], [3.0, 4.0]]), 0).tolist()
    [[2.0, 3.0]]
    """
    x = array(X)
    axes, is_scalar = _planned("mean", dim, x)
    return _finished(_mean(x, axes), x._labels, is_scalar)


def _mean(x: DLArray, axes: tuple[int, ...]) -> DLArray:
    n = _count(x, axes)
    return reduce_sum(x, axes=axes) / n if n else _filled(x, axes, math.nan)


@public
@options
def prod(X: Operand, dim: Dim = None) -> DLArray:
    """Product of the elements along `dim`; 1 where there are none. The derivative is right where elements are 0.

    >>> prod(array([2.0, 3.0])).tolist()
    [6.0]
    """
    x = array(X)
    axes, is_scalar = _planned("prod", dim, x)
    return _finished(reduce_prod(x, axes=axes), x._labels, is_scalar)


@public
@options
def var(X: Operand, w: int | str | None = 0, dim: Dim = None) -> DLArray:
    """Variance along `dim`.

        y = sum((x - mean(x))^2) / (n - 1)    w = 0, the default (n = 1 gives 0)
        y = sum((x - mean(x))^2) / n          w = 1

    w : 0 or 1, or [] or None for 0. A text here is taken for `dim`: var(X, "C").
    NaN where there are no elements.
    Source: MathWorks, reference page "var".

    >>> var(array([1.0, 2.0, 3.0])).tolist(), var(array([1.0, 3.0]), 1).tolist()
    ([1.0], [1.0])
    """
    x = array(X)
    w, dim = _weight("var", w, dim)
    axes, is_scalar = _planned("var", dim, x)
    return _finished(_variance(x, axes, w), x._labels, is_scalar)


@public
@options
def std(X: Operand, w: int | str | None = 0, dim: Dim = None) -> DLArray:
    """Standard deviation along `dim`: the square root of `var`. Its gradient is 0 where all elements are equal.

    >>> std(array([1.0, 2.0, 3.0])).tolist()
    [1.0]
    """
    x = array(X)
    w, dim = _weight("std", w, dim)
    axes, is_scalar = _planned("std", dim, x)
    n = _count(x, axes)
    if not n:
        return _finished(_filled(x, axes, math.nan), x._labels, is_scalar)
    x, labels = DLArray(x._value), x._labels
    y = norm_along(x - _mean(x, axes), axes=axes, p=2.0, share=1 / builtins.max(n - 1 + w, 1))
    return _finished(y, labels, is_scalar)


def _weight(who: str, w: Any, dim: Dim) -> tuple[int, Dim]:
    if isinstance(w, str) and dim is None:
        return 0, w
    if w is None or (isinstance(w, (list, tuple)) and not w):
        return 0, dim
    if isinstance(w, (int, float, np.integer)) and not isinstance(w, bool) and w in (0, 1):
        return int(w), dim
    raise OptionError(
        f"{who}: the weight w is 0 (divide by n - 1) or 1 (divide by n); got {w!r}. "
        f"The dimension comes after it: {who}(X, 0, dim)."
    )


def _variance(x: DLArray, axes: tuple[int, ...], w: int) -> DLArray:
    n = _count(x, axes)
    if not n:
        return _filled(x, axes, math.nan)
    x = DLArray(x._value)
    return reduce_sum(square(x - _mean(x, axes)), axes=axes) / builtins.max(n - 1 + w, 1)


@op(MAP, domain=(0.1, 3.0))
def root(x):
    """Square root whose derivative at 0 is 0: of a sum of squares, that is a subgradient."""
    is_zero = eq(x, 0)
    return where(is_zero, 0, sqrt(where(is_zero, 1, x)))


root.tells(square=lambda x: x)


def _two_norms(r):
    x = r.normal(size=(2, 3, 4))
    return [case(x, axes=(0, 2), p=2.0, share=0.5), case(x, axes=(1,), p=3.0, share=1.0)]


def _shared(x, axes, share):
    y = reduce_sum(x, axes=axes)
    return y if share == 1 else y * share


@op(KERNEL, samples=_two_norms)
def norm_along(x, *, axes, p, share):
    """(share * sum(|x|^p))^(1/p) along `axes`; they stay with size 1. The sum neither overflows nor vanishes."""
    if p == 2 and x.dtype == SINGLE:
        return cast(root(_shared(square_(cast(x, dtype="float64")), axes, share)), dtype="float32")
    most = larger(reduce_max(x, axes=axes), -reduce_min(x, axes=axes))
    if p == 2:  # by a power of 2, so that nothing is rounded
        scale = where(gt(most, 2.0**400), 2.0**700, where(lt(most, 2.0**-400), 2.0**-700, 1))
        return root(_shared(square_(x / scale), axes, share)) * scale
    scale = where(and_(gt(most, 0), isfinite(most)), most, 1)
    total = _shared(power(abs(x) / scale, p), axes, share)
    return where(gt(total, 0), power(where(gt(total, 0), total, 1), 1 / p), total) * scale  # of 0 without a slope


@norm_along.infer
def _(x, *, axes, p, share):
    return _reduced(x, axes=axes)


@norm_along.vjps
def _(g, y, x, *, axes, p, share):
    part = x / where(eq(y, 0), 1, y)
    if p != 2:
        part = sign(x) * power(where(eq(x, 0), 1, abs(part)), p - 1)
    g = _expanded(g, x)
    return settled(g * (part if share == 1 else part * share), g)


norm_along.tells(square=lambda x, axes, p, share: _shared(square_(x), axes, share) if p == 2 else None)


@public
@options
def vecnorm(X: Operand, p: float = 2, dim: Dim = None) -> DLArray:
    """p-norm of the vectors along `dim`.

        y = sum(|x|^p)^(1/p);  p = inf: max |x|

    Nothing overflows or vanishes on the way. Its gradient is 0 where the vector is 0 (p >= 1).
    Source: MathWorks, reference page "vecnorm".

    >>> vecnorm(array([3.0, 4.0])).tolist()
    [5.0]
    """
    x = array(X)
    if not isinstance(p, (int, float, np.number)) or isinstance(p, bool) or not p > 0:
        raise OptionError(f"vecnorm: the norm p is a number above 0 or inf; got {p!r}. Dimensions come after it.")
    axes, is_scalar = _planned("vecnorm", dim, x)
    if p == 1:
        y = reduce_sum(abs(x), axes=axes)
    elif p == math.inf:
        y = reduce_max(abs(x), axes=axes) if _count(x, axes) else _filled(x, axes, 0.0)
    elif not _count(x, axes):
        y = _filled(x, axes, 0.0)
    else:
        y = norm_along(x if x.dtype.kind == "f" else x + 0, axes=axes, p=float(p), share=1.0)
    return _finished(y, x._labels, is_scalar)


@public
@options
def median(X: Operand, dim: Dim = None) -> DLArray:
    """Median along `dim`: the middle element in order, or the mean of the two in the middle.

    NaN where an element is NaN or where there are none.

    >>> median(array([3.0, 1.0, 2.0])).tolist(), median(array([4.0, 1.0, 2.0, 3.0]), "all").item()
    ([2.0], 2.5)
    """
    x = array(X)
    axes, is_scalar = _planned("median", dim, x)
    n = _count(x, axes)
    if not n:
        return _finished(_filled(x, axes, math.nan), x._labels, is_scalar)
    kept = tuple([i for i in range(x.ndim) if i not in axes])
    rows = _sorted(_merged(x, kept, axes), 1, descending=False)[0]
    y = part(rows, 1, n // 2, 1)
    if n % 2 == 0:
        y = (part(rows, 1, n // 2 - 1, 1) + y) / 2
    y = where(isnan(part(rows, 1, n - 1, 1)), math.nan, y)  # NaNs are last in order
    y = view_as(y, shape=_reduced(x._value.spec, axes=axes).shape)
    return _finished(y, x._labels, is_scalar)


@op(KERNEL, samples=_two_cases)
def logsumexp_along(x, *, axes):
    """log(sum(exp(x))) along `axes`; they stay with size 1."""
    most = reduce_max(x, axes=axes)
    shift = where(isfinite(most), most, 0)  # so that exp cannot overflow; what is infinite stays so without
    return log_(reduce_sum(exp(x - shift), axes=axes)) + shift


logsumexp_along.infer(_reduced)


@logsumexp_along.vjps
def _(g, y, x, *, axes):
    # the part of x in the sum: 0 of a sum that is 0, all of one that is infinite, as for any large number
    rest = where(eq(x, math.inf), 0, x - where(eq(y, -math.inf), 0, y))
    g = _expanded(g, x)
    return settled(g * exp(rest), g)


@public
@options
def logsumexp(X: Operand, dim: Dim = None) -> DLArray:
    """Logarithm of the sum of exponentials along `dim`, without overflow: y = log(sum(exp(x))).

    X : array of any shape and labels.  dim : as in `sum`. Reduced dimensions stay with size 1, labels stay.
    -Inf where all elements are -Inf or there are none, Inf where one is Inf; NaN stays NaN. The derivative is the
    softmax of X, 0 where the sum is 0. MATLAB has no function of this name.
    Source: Blanchard, Higham and Higham, Accurately computing the log-sum-exp and softmax functions (2021).

    >>> logsumexp(array([1000.0, 1000.0])).tolist()
    [1000.6931471805599]
    """
    x = array(X)
    x = x if x.dtype.kind == "f" else x + 0
    axes, is_scalar = _planned("logsumexp", dim, x)
    y = logsumexp_along(x, axes=axes) if _count(x, axes) else _filled(x, axes, -math.inf)
    return _finished(y, x._labels, is_scalar)


# extremes -------------------------------------------------------------------------------------------------------


@public
@options
def max(X: Operand, Y: Any = None, dim: Dim = None, *, nargout: int = 1) -> Any:
    """Largest elements: of X along `dim`, or of X and Y element by element.

    max(X)             along the first dimension whose size is not 1
    max(X, [], dim)    along `dim`; also max(X, dim=dim), and max(X, "C") or max(X, "all"), as a text is no operand
    max(X, Y)          the larger of each pair, expanded by label
    nargout : 2 gives (values, indices): places along `dim`, from 0, as a double dlarray that can be a subscript. Over
              several dimensions they count through all of them, the first running fastest (as X.reshape(-1) does).

    NaNs are left out, as in MATLAB: the result is NaN only where nothing else is there. Of equal elements the first one
    gets the gradient (MATLAB's choice is not documented). An array without elements along `dim` gives an empty result.
    Source: MathWorks, reference page "max".

    >>> max(array([[1.0, 5.0], [4.0, 2.0]])).tolist()
    [[4.0, 5.0]]
    >>> M, I = max(array([3.0, 7.0, 7.0]), nargout=2)
    >>> M.tolist(), I.tolist()
    ([7.0], [1.0])
    """
    return _extreme("max", X, Y, dim, nargout)


@public
@options
def min(X: Operand, Y: Any = None, dim: Dim = None, *, nargout: int = 1) -> Any:
    """Smallest elements: of X along `dim`, or of X and Y element by element. See `max` for everything else.

    >>> min(array([[1.0, 5.0], [4.0, 2.0]]), [], 1).tolist(), min(array([1.0, 3.0]), 2).tolist()
    ([[1.0], [2.0]], [1.0, 2.0])
    """
    return _extreme("min", X, Y, dim, nargout)


_EXTREMES = {"max": (reduce_max, larger), "min": (reduce_min, smaller)}


def _extreme(who: str, X: Operand, Y: Any, dim: Dim, nargout: int) -> Any:
    reduce, pick = _EXTREMES[who]
    if isinstance(Y, str) and dim is None:
        Y, dim = None, Y
    if Y is not None and not (isinstance(Y, (list, tuple)) and not Y):
        if dim is not None or nargout != 1:
            raise OptionError(
                f"{who}: two arrays are compared element by element, without a dimension and with one result. "
                f"Along a dimension it is {who}(X, [], dim)."
            )
        return pick(X, Y)
    x = array(X)
    axes, is_scalar = _planned(who, dim, x)
    shape = x._value.spec.shape
    if any([shape[i] == 0 for i in axes]):  # MATLAB: nothing has no largest element, the result is as empty
        empty = DLArray(x._value, "" if is_scalar else x._labels)
        return empty if nargout == 1 else (empty, empty)
    if nargout == 1:
        return _finished(reduce(x, axes=axes), x._labels, is_scalar)
    if nargout != 2:
        raise _too_many(who, nargout)
    x = x if x.dtype.kind == "f" else x + 0
    flat = argmax(x if who == "max" else -x, axes=axes)
    values, places = named("gather")(x, flat), _places(flat, shape, axes)
    return _finished(values, x._labels, is_scalar), _finished(places, x._labels, is_scalar)


def _too_many(who: str, nargout: int) -> OptionError:
    return OptionError(f"{who}: nargout is 1 (values) or 2 (values and indices); got {nargout!r}.")


def _places(flat: DLArray, shape: tuple[int, ...], axes: tuple[int, ...]) -> DLArray:
    """Places among all elements (last dimension fastest) as places along `axes` (first of them fastest)."""
    flat = cast(flat, dtype="float64")
    places, stride = None, 1
    for axis in axes:
        inner = math.prod(shape[axis + 1 :])
        along = mod(floor(flat / inner), shape[axis]) if inner > 1 else mod(flat, shape[axis])
        places = along * stride if places is None else places + along * stride
        stride *= shape[axis]
    return flat * 0 if places is None else places


# logic ----------------------------------------------------------------------------------------------------------


@public
@options
def any(X: Operand, dim: Dim = None) -> DLArray:
    """Whether any element along `dim` is other than 0 (NaNs do not count); false where there are none.

    >>> any(array([0.0, 2.0])).tolist()
    [True]
    """
    x = array(X)
    axes, is_scalar = _planned("any", dim, x)
    truth = x if x.dtype.kind == "b" else and_(ne(x, 0), eq(x, x))
    return _finished(reduce_any(truth, axes=axes), x._labels, is_scalar)


@public
@options
def all(X: Operand, dim: Dim = None) -> DLArray:
    """Whether all elements along `dim` are other than 0 (NaN is); true where there are none.

    >>> all(array([0.0, 2.0]), "all").item()
    False
    """
    x = array(X)
    axes, is_scalar = _planned("all", dim, x)
    return _finished(reduce_all(x, axes=axes), x._labels, is_scalar)


# with memory ----------------------------------------------------------------------------------------------------


@public
@options
def cumsum(X: Operand, dim: Dim = None, direction: str = "forward") -> DLArray:
    """Running sum along one dimension.

    direction : "forward" or "reverse", from the last element on.

    >>> cumsum(array([1.0, 2.0, 3.0])).tolist(), cumsum(array([1.0, 2.0, 3.0]), 0, "reverse").tolist()
    ([1.0, 3.0, 6.0], [6.0, 5.0, 3.0])
    """
    return _running("cumsum", cumsum_along, X, dim, direction)


@public
@options
def cumprod(X: Operand, dim: Dim = None, direction: str = "forward") -> DLArray:
    """Running product along one dimension. The derivative is right where elements are 0.

    direction : "forward" or "reverse", from the last element on.

    >>> cumprod(array([1.0, 2.0, 3.0])).tolist()
    [1.0, 2.0, 6.0]
    """
    return _running("cumprod", cumprod_along, X, dim, direction)


def _running(who: str, run: Any, X: Operand, dim: Any, direction: str) -> DLArray:
    x = array(X)
    labels = x._labels
    if isinstance(dim, str) and dim.lower() in ("forward", "reverse"):
        dim, direction = None, dim
    is_reverse = choice(who, "the direction", direction, ["forward", "reverse"]) == "reverse"
    if x.ndim == 0:
        return x + 0
    axis = axis_of(who, dim, x._value.spec.shape, labels)
    y = flip(run(flip(x, axis), axis=axis), axis) if is_reverse else run(x, axis=axis)
    return DLArray(y._value, labels)


@public
@options
def sort(X: Operand, dim: Any = None, direction: str = "ascend", *, nargout: int = 1) -> Any:
    """Elements in order along one dimension; equal ones keep their order.

    direction : "ascend" (NaNs last) or "descend" (NaNs first); also as second argument.
    nargout   : 2 gives (values, indices): where along `dim`, from 0, each value stood.
    Source: MathWorks, reference page "sort".

    >>> B, I = sort(array([3.0, 1.0, 2.0]), nargout=2)
    >>> B.tolist(), I.tolist(), sort(array([3.0, 1.0, 2.0]), "descend").tolist()
    ([1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [3.0, 2.0, 1.0])
    """
    x = array(X)
    if isinstance(dim, str) and dim.lower() in ("ascend", "descend"):
        dim, direction = None, dim
    is_descending = choice("sort", "the direction", direction, ["ascend", "descend"]) == "descend"
    if nargout not in (1, 2):
        raise _too_many("sort", nargout)
    if x.ndim == 0:
        return x if nargout == 1 else (x, x * 0)
    axis = axis_of("sort", dim, x._value.spec.shape, x._labels)
    y, flat = _sorted(x, axis, descending=is_descending)
    y = DLArray(y._value, x._labels)
    return y if nargout == 1 else (y, DLArray(_places(flat, x.shape, (axis,))._value, x._labels))


def _sorted(x: DLArray, axis: int, *, descending: bool) -> tuple[DLArray, DLArray]:
    flat = argsort(x, axis=axis, descending=descending)
    return named("gather")(DLArray(x._value), flat), flat
