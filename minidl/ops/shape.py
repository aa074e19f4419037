"""Other shapes: reshaping, rearranging, repeating, joining and turning arrays.

Plain functions over the primitive views; labels follow their dimensions.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, Operand, public
from minidl.core.errors import LabelError, OptionError, ShapeError, choice, whole
from minidl.core.labels import describe
from minidl.core.op import KERNEL, case, op
from minidl.core.options import options
from minidl.core.spec import Spec, common_type
from minidl.ops.axes import Dim, array, axes_of, axis_of
from minidl.ops.views import broadcast, cast, crop, labelled, part, reorder, view_as

# another shape --------------------------------------------------------------------------------------------------


@public
@options
def reshape(X: Operand, *size: Any, Order: str = "F") -> DLArray:
    """The same elements under another shape. THE FIRST DIMENSION RUNS FASTEST, as in MATLAB; NumPy's runs last.

    X     : any array.
    size  : sizes one by one or as one list; one of them may be [], None or -1 and is inferred.
    Order : "F" (the default) takes and puts elements column by column, MATLAB's order; "C" row by row, NumPy's.
            The method X.reshape(...) is this function; np.reshape(X, ...) is NumPy's, row by row.
    Returns an unformatted dlarray, whatever the labels of X.
    Raises ShapeError if the numbers of elements differ.
    Source: MathWorks, reference page "reshape".

    >>> X = array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> reshape(X, 3, 2).tolist()
    [[1.0, 5.0], [4.0, 3.0], [2.0, 6.0]]
    >>> reshape(X, 3, [], Order="C").tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    """
    x = array(X)
    shape = _inferred(x._value.spec.shape, sizes("reshape", size, is_inferable=True))
    order = choice("reshape", "Order", Order, ["F", "C"])
    return _row_major(x, shape) if order == "C" else _column_major(x, shape)


def sizes(who: str, size: tuple[Any, ...], *, is_inferable: bool = False) -> tuple[int, ...]:
    """Sizes given one by one or as one list, as a tuple; -1 for the one to infer."""
    if len(size) == 1 and isinstance(size[0], (tuple, list, np.ndarray)) and (len(size[0]) or not is_inferable):
        size = tuple(size[0])
    found = []
    for n in size:
        if is_inferable and (n is None or (isinstance(n, (list, tuple)) and not n)):
            n = -1
        try:
            n = operator.index(n)
        except TypeError:
            raise OptionError(f"{who}: sizes are whole numbers; got {n!r}.") from None
        if n < (-1 if is_inferable else 0):
            raise OptionError(f"{who}: sizes are whole numbers from 0 on; got {n}.")
        found.append(n)
    if found.count(-1) > 1:
        raise OptionError(f"{who}: one size at most can be inferred; {found.count(-1)} are left open. Give the others.")
    return tuple(found)


def _inferred(old: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if -1 not in shape:
        if math.prod(shape) != math.prod(old):
            raise ShapeError(
                f"reshape: {describe(old)} has {math.prod(old)} elements, {describe(shape)} would have "
                f"{math.prod(shape)}. Give sizes with the same product."
            )
        return shape
    known = 1
    for n in shape:
        known *= n if n != -1 else 1
    size = Spec(old).size
    if known == 0 or size % known:
        raise ShapeError(
            f"reshape: {describe(old)} has {size} elements, which {known} does not divide. "
            "Give sizes whose product divides the number of elements."
        )
    return tuple([size // known if n == -1 else n for n in shape])


def _row_major(x: DLArray, shape: tuple[int, ...]) -> DLArray:
    return DLArray(x._value) if x._value.spec.shape == shape else view_as(x, shape=shape)


def _column_major(x: DLArray, shape: tuple[int, ...]) -> DLArray:
    old = x._value.spec.shape
    if [n for n in old if n != 1] == [n for n in shape if n != 1]:  # dimensions of size 1 come and go in any order
        return _row_major(x, shape)
    x = DLArray(x._value)
    if len(old) > 1:
        x = reorder(x, order=tuple(range(len(old) - 1, -1, -1)))
    x = view_as(x, shape=shape[::-1])
    return reorder(x, order=tuple(range(len(shape) - 1, -1, -1))) if len(shape) > 1 else x


@public
@options
def squeeze(X: Operand) -> DLArray:
    """X without its dimensions of size 1 and their labels.

    As in MATLAB, arrays of up to two dimensions stay as they are, and at least two dimensions are left: a column if
    one is not of size 1. np.squeeze(X) leaves as few dimensions as NumPy does.

    >>> squeeze(array(np.zeros((1, 3, 1, 2)))).shape, squeeze(array(np.zeros((1, 1, 3)))).shape
    ((3, 2), (3, 1))
    """
    x = array(X)
    shape, labels = x._value.spec.shape, x._labels
    if len(shape) <= 2 or 1 not in shape:
        return x
    kept = [i for i, n in enumerate(shape) if n != 1]
    new = tuple([shape[i] for i in kept])
    new_labels = "".join([labels[i] for i in kept]) if labels else ""
    if labels:
        new_labels += ("UU" if not kept else "U" if len(kept) == 1 else "")
    return labelled(view_as(x, shape=new + (1,) * (2 - len(new))), new_labels)


@public
def shiftdim(X: Operand, n: int | None = None) -> DLArray:
    """Dimensions moved round by n to the left; a negative n puts dimensions of size 1 in front.

    n : how far; by default so far that the first dimension is not of size 1.
    Returns an unformatted dlarray. Raises LabelError for a formatted X, whose dimensions have their order.

    >>> shiftdim(array(np.zeros((2, 3, 4))), 1).shape
    (3, 4, 2)
    """
    x = array(X)
    shape = x._value.spec.shape
    if x._labels:
        raise _fixed_order("shiftdim", x)
    if n is None:
        n = next((i for i, size in enumerate(shape) if size != 1), 0)
        return view_as(x, shape=shape[n:]) if n else x
    n = whole("shiftdim", "n", n)
    if n < 0:
        return view_as(x, shape=(1,) * -n + shape)
    n = n % max(len(shape), 1)
    return reorder(x, order=tuple([*range(n, len(shape)), *range(n)])) if n else x


# another order --------------------------------------------------------------------------------------------------


@public
@options
def permute(X: Operand, *order: Any) -> DLArray:
    """Dimensions in another order: dimension i of the result is dimension order[i] of X.

    X     : any array; of a formatted one only dimensions with equal labels may change places.
    order : each dimension once, one by one or as a list. For an unformatted X it may go on beyond the last dimension
            (they have size 1).
    Raises LabelError if labels would get out of order, OptionError if `order` is no order.
    Source: MathWorks, reference page "permute".

    >>> permute(array(np.zeros((2, 3, 4))), 2, 0, 1).shape
    (4, 2, 3)
    """
    x = array(X)
    shape, labels = x._value.spec.shape, x._labels
    found = order[0] if len(order) == 1 and not isinstance(order[0], (int, np.integer)) else order
    try:
        wanted = tuple([operator.index(i) for i in found])
    except TypeError:
        raise OptionError(f"permute: an order is whole numbers, one for each dimension of X; got {found!r}.") from None
    if sorted(wanted) != list(range(len(wanted))) or len(wanted) < len(shape):
        raise OptionError(
            f"permute: the order {wanted} must name each of the {len(shape)} dimensions of X "
            f"({describe(shape, labels)}) once, counting from 0."
        )
    if labels and (len(wanted) > len(shape) or any(labels[i] != labels[k] for i, k in enumerate(wanted))):
        raise _fixed_order("permute", x)
    if len(wanted) > len(shape):
        x = view_as(x, shape=shape + (1,) * (len(wanted) - len(shape)))
    if wanted == tuple(range(len(wanted))):
        return x
    return DLArray(reorder(x, order=wanted)._value, labels)


def _fixed_order(who: str, x: DLArray) -> LabelError:
    return LabelError(
        f'{who}: dimensions with labels stand in the order S, C, B, T, U; of "{x._labels}" only dimensions with equal '
        "labels may change places. Take the labels off first: stripdims(X)."
    )


@public
@options
def transpose(X: Operand) -> DLArray:
    """Rows and columns exchanged: X.'

    X : matrix; a formatted one must have twice the same label. A 1-D array or a scalar is its own transpose.
    Raises ShapeError for more dimensions, LabelError for two different labels.

    >>> transpose(array([[1.0, 2.0]])).tolist()
    [[1.0], [2.0]]
    """
    x = array(X)
    if x.ndim > 2:
        raise ShapeError(
            f"transpose: a matrix is wanted, X is {describe(x.shape, x._labels)}. Use permute(X, order), "
            "or stripdims and permute if it is formatted."
        )
    if x.ndim < 2:
        return x
    if x._labels and x._labels[0] != x._labels[1]:
        raise _fixed_order("transpose", x)
    return DLArray(reorder(x, order=(1, 0))._value, x._labels)


@public
def ctranspose(X: Operand) -> DLArray:
    """The transpose X'; arrays are real.

    >>> ctranspose(array([[1.0, 2.0]])).shape
    (2, 1)
    """
    return transpose(X)


@public
@options
def flip(X: Operand, dim: Dim = None) -> DLArray:
    """Elements in reverse order along `dim` (number, label or several; by default the first of size other than 1).

    >>> flip(array([1.0, 2.0, 3.0])).tolist()
    [3.0, 2.0, 1.0]
    """
    x = array(X)
    shape = x._value.spec.shape
    axes = axes_of("flip", dim, shape, x._labels)
    slices = tuple([(n - 1, n, -1) if i in axes and n else (0, n, 1) for i, n in enumerate(shape)])
    return DLArray(crop(x, slices=slices)._value, x._labels)


@public
def rot90(X: Operand, k: int = 1) -> DLArray:
    """A matrix turned by k quarter turns against the clock.

    >>> rot90(array([[1.0, 2.0]])).tolist()
    [[2.0], [1.0]]
    """
    x = array(X)
    if x.ndim != 2:
        raise ShapeError(f"rot90: a matrix is wanted, X is {describe(x.shape, x._labels)}. Take one page of it.")
    k = whole("rot90", "k", k) % 4
    if k == 1:
        return flip(transpose(x), 0)
    if k == 2:
        return flip(x, (0, 1))
    return flip(transpose(x), 1) if k == 3 else x


@public
def circshift(X: Operand, K: Any, dim: Dim = None) -> DLArray:
    """Elements moved round by K places along `dim`; those that leave at the end come in at the front.

    K   : a whole number, or one for each dimension from the first on (or for each of several `dim`).
    dim : number or label; by default the first whose size is not 1.
    Source: MathWorks, reference page "circshift".

    >>> circshift(array([1.0, 2.0, 3.0]), 1).tolist()
    [3.0, 1.0, 2.0]
    """
    x = array(X)
    shape, labels = x._value.spec.shape, x._labels
    is_single = isinstance(K, (int, np.integer)) or not np.iterable(K)
    shifts = [whole("circshift", "K", k) for k in ([K] if is_single else K)]
    if dim is None and not is_single:
        axes: Any = range(len(shifts))
    elif isinstance(dim, (list, tuple)):
        axes = [axis_of("circshift", one, shape, labels) for one in dim]
    else:
        axes = axes_of("circshift", dim, shape, labels)
    if len(shifts) != len(axes) or (axes and max(axes) >= len(shape)):
        raise OptionError(f"circshift: {len(shifts)} shifts for {len(axes)} dimensions of X {describe(shape, labels)}. "
                          "Give one shift for each dimension.")  # fmt: skip
    y = DLArray(x._value)
    for axis, shift in zip(axes, shifts):
        n = shape[axis]
        shift = shift % n if n else 0
        if shift:
            y = concatenate(part(y, axis, n - shift, shift), part(y, axis, 0, n - shift), axis=axis)
    return DLArray(y._value, labels)


# repeating and joining ------------------------------------------------------------------------------------------


@public
@options
def repmat(X: Operand, *counts: Any) -> DLArray:
    """X repeated like tiles.

    counts : how often along each dimension, one by one or as a list; a single number n means n rows and n columns of
             tiles, as in MATLAB. Further counts make further dimensions (labelled U if X is formatted).
    Source: MathWorks, reference page "repmat".

    >>> repmat(array([[1.0, 2.0]]), 2, 2).tolist()
    [[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    """
    x = array(X)
    times = sizes("repmat", counts)
    if len(times) == 1 and not isinstance(counts[0], (tuple, list, np.ndarray)):
        times = times * 2
    rank = max(x.ndim, len(times))
    times += (1,) * (rank - len(times))
    shape = x._value.spec.shape + (1,) * (rank - x.ndim)
    y = _repeated(x, shape, times, is_inner=False)
    return labelled(y, x._labels + "U" * (rank - x.ndim) if x._labels else "")


@public
def repelem(X: Operand, *counts: Any) -> DLArray:
    """Each element of X repeated in its place.

    counts : for a vector (1-D, row or column) one number; otherwise one for each dimension.

    >>> repelem(array([1.0, 2.0]), 2).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    x = array(X)
    times = sizes("repelem", counts)
    shape = x._value.spec.shape
    if len(times) == 1 and shape and sum(n != 1 for n in shape) <= 1:
        axis = axes_of("repelem", None, shape, "")[0]
        times = tuple([times[0] if i == axis else 1 for i in range(len(shape))])
    if len(times) < len(shape):
        raise OptionError(
            f"repelem: {len(times)} counts for X {describe(shape, x._labels)}. Give one for each dimension."
        )
    shape += (1,) * (len(times) - len(shape))
    y = _repeated(x, shape, times, is_inner=True)
    return labelled(y, x._labels + "U" * (len(times) - x.ndim) if x._labels else "")


def _repeated(x: DLArray, shape: tuple[int, ...], times: tuple[int, ...], *, is_inner: bool) -> DLArray:
    """Each dimension n becomes (t, n) or, for elements, (n, t) and is then merged to n * t."""
    spread: list[int] = []
    dims = []
    for n, t in zip(shape, times):
        if is_inner:
            dims.append(len(spread))
        spread += [n, t] if is_inner else [t, n]
        if not is_inner:
            dims.append(len(spread) - 1)
    y = x if x._value.spec.shape == shape else view_as(x, shape=shape)
    y = broadcast(y, shape=tuple(spread), dims=tuple(dims))
    return view_as(y, shape=tuple([n * t for n, t in zip(shape, times)]))


@op(KERNEL, types="a->f", samples=lambda r: [case(r.normal(size=(2, 3)), r.normal(size=(2, 1)), axis=1)])
def concatenate(*xs, axis):
    """Arrays of one type joined along `axis`."""


@concatenate.infer
def _(*xs, axis):
    first = xs[0].shape
    for x in xs[1:]:
        if x.shape[:axis] + x.shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise ShapeError(
                f"cat: {describe(first)} and {describe(x.shape)} do not join along dimension {axis}. "
                "All other sizes must be equal."
            )
    return Spec((*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), xs[0].dtype, xs[0].device)


@concatenate.assembly
def _(*xs, axis):
    slices, start = [], 0
    for x in xs:
        slices.append(tuple([(start if d == axis else 0, n, 1) for d, n in enumerate(x.shape)]))
        start += x.shape[axis]
    return slices


@concatenate.vjp
def _(g, y, *xs, axis):
    starts = [0]
    for x in xs:
        starts.append(starts[-1] + x.shape[axis])
    return [part(g, axis, start, x.shape[axis]) for start, x in zip(starts, xs)]


concatenate.tells(passes_on=True)


@public
def cat(dim: Dim, *X: Operand) -> DLArray:
    """Arrays joined along `dim`.

    dim : number or label; the number of dimensions itself stacks arrays along a new one (labelled U if formatted).
    X   : arrays with the same format, or unformatted; equal sizes in all other dimensions. Empty [] are left out.
    Returns a dlarray, formatted if one of them is. Logical if all are, single if one is, otherwise double.
    Raises LabelError if formats differ, ShapeError if sizes do not fit.
    Source: MathWorks, reference page "cat".

    >>> cat(0, array([1.0]), array([2.0, 3.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    return _joined("cat", dim, [array(x) for x in X])


@public
def vertcat(*X: Operand) -> DLArray:
    """Arrays joined along dimension 0: [A; B].

    >>> vertcat(array([[1.0]]), array([[2.0]])).tolist()
    [[1.0], [2.0]]
    """
    return _joined("vertcat", 0, [array(x) for x in X])


@public
def horzcat(*X: Operand) -> DLArray:
    """Arrays joined along dimension 1: [A B]. 1-D arrays count as columns.

    >>> horzcat(array([[1.0]]), array([[2.0]])).tolist()
    [[1.0, 2.0]]
    """
    return _joined("horzcat", 1, [array(x) for x in X])


def _joined(who: str, dim: Dim, arrays: list[DLArray]) -> DLArray:
    if len(arrays) > 1:
        arrays = [x for x in arrays if x.shape not in ((0,), (0, 0)) or x._labels] or arrays[:1]
    if not arrays:
        raise OptionError(f"{who}: nothing to join. Give at least one array.")
    labels = next((x._labels for x in arrays if x._labels), "")
    for x in arrays:
        if x._labels and x._labels != labels:
            raise LabelError(
                f'{who}: formats differ: "{labels}" and "{x._labels}". Join arrays with equal formats: '
                "relabel them with dlarray(X, fmt) or use stripdims."
            )
    rank = max(x.ndim for x in arrays)
    if isinstance(dim, (int, np.integer)) and not isinstance(dim, bool) and rank <= dim < rank + 8:
        axis, rank = int(dim), int(dim) + 1
    else:
        axis = axis_of(who, dim, max((x.shape for x in arrays), key=len), labels)
    arrays = [x if x.ndim == rank else view_as(x, shape=x.shape + (1,) * (rank - x.ndim)) for x in arrays]
    return labelled(concatenate(*one_type(arrays), axis=axis), labels + "U" * (rank - len(labels)) if labels else "")


@public
def stacked(who: str, arrays: list[DLArray]) -> DLArray:
    """Arrays of one size along a new dimension: the first, or for formatted ones the last, labelled U."""
    first = arrays[0]
    for x in arrays:
        if x.shape != first.shape:
            raise ShapeError(
                f"{who}: dlarrays in a list are stacked and need one size; they are {describe(first.shape)} and "
                f"{describe(x.shape)}. Join arrays of several sizes with cat, vertcat or horzcat."
            )
    if any([x._labels for x in arrays]):
        return _joined(who, first.ndim, arrays)
    rows = [view_as(x, shape=(1, *x._value.spec.shape)) for x in arrays]
    return concatenate(*one_type(rows), axis=0)


def one_type(arrays: list[DLArray]) -> list[DLArray]:
    """The arrays in their common type: logical if all are, single if one is, otherwise double."""
    dtypes = [x.dtype for x in arrays]
    if all(dtype == dtypes[0] for dtype in dtypes):
        return arrays
    dtype = common_type(dtypes)
    return [x if x.dtype == dtype else cast(x, dtype=dtype.name) for x in arrays]
