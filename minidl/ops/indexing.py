"""Subscripts: X[...] and X[...] = V, differentiable in X and V.

What a subscript may be: whole numbers (negative ones count from the end), slices, ..., None, logical masks, lists or
arrays of whole numbers, dlarrays of either, and mixes of them.

Unformatted arrays follow NumPy. Formatted ones keep their labels, so a whole number takes its dimension at size 1, as
X(1,:,:,:) does in MATLAB; a mask, list or 1-D array works along its own dimension, one of them at most. A mask or an
array of more dimensions takes single elements: its result is unformatted and follows NumPy.
"""

# mypy: disable-error-code="has-type"

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from minidl.core.apply import constant
from minidl.core.device import gpu_array, host, is_on_gpu
from minidl.core.dlarray import DLArray, Operand, check_plain, gathered, numbers, public
from minidl.core.errors import DTypeError, LabelError, ShapeError, SubscriptError
from minidl.core.labels import describe, positions
from minidl.core.op import KERNEL, case, named, op
from minidl.core.spec import Spec
from minidl.ops.axes import array
from minidl.ops.elementwise import eq, lt, where
from minidl.ops.views import broadcast, cast, crop, labelled, reorder, view_as, whole

# the ops: by position, without labels ---------------------------------------------------------------------------


@op(KERNEL, types="aa->f", samples=lambda r: [case(r.normal(size=(4, 5)), r.normal(size=(2, 3)),
                                                   slices=((1, 2, 1), (4, 3, -2)))])  # fmt: skip
def assign(x, v, *, slices):
    """x with v where a crop with these slices would take it from."""


assign.infer(lambda x, v, slices: x)
assign.vjps(lambda g, y, x, v, slices: assign(g, 0, slices=slices), lambda g, y, x, v, slices: crop(g, slices=slices))


def _flat_and_along(r):
    return [case(r.normal(size=(2, 3)), np.array([[0, 4], [4, -1]])),
            case(r.normal(size=(2, 3, 2)), np.array([2, 0, 2, 1]), axis=1)]  # fmt: skip


@op(KERNEL, types="aa->f", samples=_flat_and_along)
def gather(x, index, *, axis=None):
    """Elements by subscript: along `axis`, or among all elements of x, last dimension fastest."""


@gather.infer
def _(x, index, *, axis=None):
    shape = index.shape if axis is None else (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return Spec(shape, x.dtype, x.device)


gather.tells(passes_on=True)
gather.vjps(lambda g, y, x, index, axis=None: scatter_add(g, index, shape=x.shape, axis=axis), None)


def _scatter_add_cases(r):
    return [case(r.normal(size=(2, 2)), np.array([[0, 4], [4, -1]]), shape=(2, 3)),
            case(r.normal(size=(2, 4, 2)), np.array([2, 0, 2, 1]), shape=(2, 3, 2), axis=1)]  # fmt: skip


@op(KERNEL, types="aa->f", samples=_scatter_add_cases)
def scatter_add(x, index, *, shape, axis=None):
    """Zeros of the given shape to which each element of x is added where a gather would take it from."""


@scatter_add.infer
def _(x, index, *, shape, axis=None):
    return Spec(shape, x.dtype, x.device)


scatter_add.vjps(lambda g, y, x, index, shape, axis=None: gather(g, index, axis=axis), None)


def _scatter_cases(r):
    return [case(r.normal(size=(2, 3)), r.normal(size=(2, 2)), np.array([[0, 4], [4, -1]])),
            case(r.normal(size=(2, 3, 2)), r.normal(size=(2, 4, 2)), np.array([2, 0, 2, 1]), axis=1)]  # fmt: skip


@op(KERNEL, types="aaa->f", samples=_scatter_cases)
def scatter(x, v, index, *, axis=None):
    """x with the elements of v where a gather would take them from; of equal subscripts the last one wins."""


def _scatter_grad(g, y, x, v, index, *, axis=None):
    return scatter(g, 0, index, axis=axis)


def _scatter_value_grad(g, y, x, v, index, *, axis=None):
    # only the last of equal subscripts reached y: mark each place with who wrote it last
    size = x.size if axis is None else x.shape[axis]
    order = DLArray(constant(np.arange(index.size, dtype=np.float64).reshape(index.shape)))
    writer = scatter(named("full")(shape=(size,), value=-1.0, dtype="float64", device=g.device), order, index)
    is_last = eq(gather(writer, index), order)
    taken = gather(g, index, axis=axis)
    start = axis or 0
    is_last = broadcast(is_last, shape=taken.shape, dims=tuple(range(start, start + index.ndim)))
    return where(is_last, taken, 0)


scatter.infer(lambda x, v, index, axis=None: x)
scatter.vjps(_scatter_grad, _scatter_value_grad, None)

# what a key means -----------------------------------------------------------------------------------------------

Slices = tuple[tuple[int, int, int], ...]


class Selection(NamedTuple):
    """A key, understood: view x as `shape`, crop it, then take `subscripts` along axes, then drop axes of size 1."""

    shape: tuple[int, ...]  # x with a dimension of size 1 for each None
    slices: Slices
    dropped: tuple[int, ...]  # axes of whole numbers, which NumPy drops
    axes: tuple[int, ...]  # axes that are taken by arrays of subscripts
    subscripts: tuple[Any, ...]  # int64 arrays or dlarrays, one for each of `axes`
    is_labelled: bool


def _select(x: DLArray, key: Any) -> Selection:
    shape, labels = x._value.spec.shape, x._labels
    entries, array_count = _entries(x, key if type(key) is tuple else (key,))
    viewed: list[int] = []
    slices: list[tuple[int, int, int]] = []
    dropped: list[int] = []
    axes: list[int] = []
    subscripts: list[Any] = []
    entry: Any
    dim = 0
    for entry in entries:
        if entry is None:
            viewed.append(1)
            slices.append((0, 1, 1))
            continue
        n = shape[dim]
        kind = type(entry)
        if kind is slice:
            slices.append(_span(entry, n))
        elif kind is int:
            if not -n <= entry < n:
                raise _out_of_range(entry, dim, x)
            slices.append((entry % n, 1, 1))
            dropped.append(len(viewed))
        else:
            slices.append((0, n, 1))
            axes.append(len(viewed))
            subscripts.append(_in_range(entry, n, dim, x))
        viewed.append(n)
        dim += 1
    if labels and len(viewed) > len(shape):
        raise LabelError(
            f'X[...]: None would add a dimension without a label to "{labels}". Use stripdims(X) first, '
            "or relabel with one U more: dlarray(X, fmt)."
        )
    if labels and array_count > 1:
        raise LabelError(
            f'X[...]: a formatted array ("{labels}") takes a list or mask in one subscript at a time. '
            "Write X[i][:, k], or stripdims(X)[i, k] for NumPy's pairs."
        )
    is_labelled = bool(labels) and len(axes) <= 1 and (not axes or subscripts[0].ndim <= 1)
    if is_labelled:
        dropped = []
        if axes and subscripts[0].ndim == 0:
            subscripts[0] = view_as(subscripts[0], shape=(1,))
    elif axes:  # beside arrays NumPy takes whole numbers for arrays too
        rows = [(axis, np.array(slices[axis][0])) for axis in dropped] + list(zip(axes, subscripts))
        for axis in dropped:
            slices[axis] = (0, viewed[axis], 1)
        rows.sort(key=operator.itemgetter(0))
        axes, subscripts, dropped = [axis for axis, _ in rows], [index for _, index in rows], []
    return Selection(tuple(viewed), tuple(slices), tuple(dropped), tuple(axes), tuple(subscripts), is_labelled)


_PLAIN = (slice, int, type(None), type(...))


def _entries(x: DLArray, key: tuple[Any, ...]) -> tuple[list[Any], int]:
    """(Slices, whole numbers, None and arrays of subscripts: one, None apart, per dimension; how many were arrays)."""
    shape = x._value.spec.shape
    raw: list[Any] = [k if type(k) in _PLAIN else _subscript(k) for k in key]
    covered = [0 if k is None or k is Ellipsis else k.ndim if _is_mask(k) else 1 for k in raw]
    missing = len(shape) - sum(covered)
    if missing < 0:
        raise SubscriptError(
            f"X[...]: {sum(covered)} subscripts for X {describe(shape, x._labels)}, which has {len(shape)} dimensions. "
            "Give one for each dimension at most."
        )
    dots = [i for i, k in enumerate(raw) if k is Ellipsis]
    if len(dots) > 1:
        raise SubscriptError("X[...]: there is more than one '...'. Use one.")
    at = dots[0] if dots else len(raw)
    raw[at : at + 1] = [slice(None)] * missing
    entries: list[Any] = []
    count = dim = 0
    for k in raw:
        if _is_mask(k):
            if shape[dim : dim + k.ndim] != k.shape:
                raise SubscriptError(
                    f"X[mask]: the mask is {describe(k.shape)}, the dimensions of X that it covers are "
                    f"{describe(shape[dim : dim + k.ndim])}. Give a mask of the same size."
                )
            entries += np.nonzero(k)
            dim += k.ndim
            count += 1
        else:
            entries.append(k)
            dim += k is not None
            count += hasattr(k, "ndim") and k.ndim > 0
    return entries, count


def _is_mask(k: Any) -> bool:
    return isinstance(k, np.ndarray) and k.dtype.kind == "b"


def _subscript(k: Any) -> Any:
    """A subscript that is neither slice nor Python number: an int, an array of int64, a mask, or a float dlarray."""
    found = k if isinstance(k, DLArray) else gathered("X[...]", k)
    if found is not None:
        k = found
        if k.dtype.kind == "f":
            return k
        k = numbers(k)  # which elements a mask takes decides the size of the result
    elif is_on_gpu(k):
        k = host(gpu_array("X[...]", k))
    check_plain("X[...]", k)
    if isinstance(k, (list, tuple, range)):
        k = np.asarray(k) if len(k) else np.zeros(0, np.int64)
    if isinstance(k, np.generic):
        k = np.asarray(k)
    if not isinstance(k, np.ndarray) or k.dtype.kind not in "biu" or (k.dtype.kind == "b" and k.ndim == 0):
        shown = f"an array of {k.dtype}" if isinstance(k, np.ndarray) else repr(k)
        raise SubscriptError(
            f"X[...]: a subscript is a whole number, a slice, ..., None, a logical mask or an array of whole numbers; "
            f"got {shown}. Convert it: k.astype(int)."
        )
    if k.dtype.kind == "b":
        return k
    return int(k) if k.ndim == 0 else k.astype(np.int64, copy=False)


def _span(s: slice, n: int) -> tuple[int, int, int]:
    if s.start is None and s.stop is None and s.step is None:
        return (0, n, 1)
    try:
        found = range(*s.indices(n))
    except (TypeError, ValueError) as error:
        shown = ":".join("" if k is None else str(k) for k in (s.start, s.stop, s.step))
        raise SubscriptError(f"X[{shown}]: {error}. Use whole numbers and a step other than 0.") from None
    return (found.start, len(found), found.step) if found else (0, 0, 1)


def _in_range(index: Any, n: int, dim: int, x: DLArray) -> Any:
    """Subscripts along a dimension of size n, none negative where that is known; out of range: SubscriptError."""
    if isinstance(index, np.ndarray):
        if index.size:
            low, high = int(index.min()), int(index.max())
            if low < -n or high >= n:
                raise _out_of_range(high if high >= n else low, dim, x)
            if low < 0:
                index = np.where(index < 0, index + n, index)
        return index
    known = host(index._value.data)
    if known is not None:  # looked at for complaints alone: the result does not depend on it
        known = np.ravel(known)
        wrong = known[~((known == np.trunc(known)) & (known >= -n) & (known < n))]
        if wrong.size:
            raise _out_of_range(wrong[0].item(), dim, x)
    return cast(DLArray(index._value), dtype="int64")


def _out_of_range(k: float, dim: int, x: DLArray) -> SubscriptError:
    n = x.shape[dim]
    if k != k or k in (np.inf, -np.inf) or k != int(k):
        return SubscriptError(f"X[...]: subscript {k} in dimension {dim} is no whole number. Use floor, fix or round.")
    return SubscriptError(
        f"X[...]: subscript {int(k)} is out of range in dimension {dim} of X {describe(x.shape, x._labels)}: "
        + (f"it is 0 to {n - 1}, or -{n} to -1 from the end." if n else "it has no elements.")
    )


# taking and putting ---------------------------------------------------------------------------------------------


@public
def getitem(x: DLArray, key: Any) -> DLArray:
    """X[key]. Slices and whole numbers give a view, arrays and masks a copy."""
    chosen = _select(x, key)
    y = x if x._value.spec.shape == chosen.shape else view_as(x, shape=chosen.shape)
    if chosen.slices != whole(chosen.shape):
        y = crop(y, slices=chosen.slices)
    if chosen.axes:
        y, index, axis = _lined_up(y, chosen)
        y = gather(y, index, axis=axis)
    if chosen.dropped:
        y = view_as(y, shape=tuple([n for i, n in enumerate(y._value.spec.shape) if i not in chosen.dropped]))
    return labelled(y, x._labels) if chosen.is_labelled else DLArray(y._value)


def _lined_up(y: DLArray, chosen: Selection) -> tuple[DLArray, Any, int]:
    """y with the dimensions taken by arrays merged into one, the subscripts along it, and which one it is."""
    axes = chosen.axes
    if len(axes) == 1:
        return y, chosen.subscripts[0], axes[0]
    order, axis = _order(y.ndim, axes)
    if order != tuple(range(y.ndim)):
        y = reorder(y, order=order)
    shape = y._value.spec.shape
    sizes = shape[axis : axis + len(axes)]
    y = view_as(y, shape=(*shape[:axis], int(np.prod(sizes)), *shape[axis + len(axes) :]))
    return y, _merged(chosen.subscripts, sizes), axis


def _order(rank: int, axes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """NumPy's rule: neighbouring array subscripts give their dimensions in place, others in front."""
    if axes[-1] - axes[0] + 1 == len(axes):
        return tuple(range(rank)), axes[0]
    return (*axes, *(i for i in range(rank) if i not in axes)), 0


def _merged(subscripts: tuple[Any, ...], sizes: tuple[int, ...]) -> Any:
    if all(isinstance(index, np.ndarray) for index in subscripts):
        try:
            return np.asarray(np.ravel_multi_index(np.broadcast_arrays(*subscripts), sizes), np.int64)
        except ValueError:
            shown = " and ".join(describe(index.shape) for index in subscripts)
            raise ShapeError(
                f"X[...]: subscripts of sizes {shown} do not expand to one size. "
                "Give equal sizes, or take one dimension after the other."
            ) from None
    total: Any = 0
    for index, n in zip(subscripts, sizes):
        index = index if isinstance(index, DLArray) else array(index.astype(np.float64))
        index = cast(index, dtype="float64")
        total = total * n + where(lt(index, 0), index + n, index)
    return cast(total, dtype="int64")


@public
def setitem(x: DLArray, key: Any, v: Operand) -> DLArray:
    """A new dlarray like x, with v at x[key]; v is expanded to the size of x[key] and takes the type of x."""
    found = _masked(x, key, v)
    if found is not None:
        return found
    chosen = _select(x, key)
    before = x if x._value.spec.shape == chosen.shape else view_as(x, shape=chosen.shape)
    is_whole = chosen.slices == whole(chosen.shape)
    if not chosen.axes:
        shape = tuple([count for _, count, _ in chosen.slices])
        kept = tuple([n for i, n in enumerate(shape) if i not in chosen.dropped])
        v = _fitted(v, kept, x, chosen.is_labelled)
        if kept != shape and isinstance(v, DLArray):
            v = view_as(v, shape=shape)
        y = assign(before, v, slices=chosen.slices)
    else:
        region = before if is_whole else crop(before, slices=chosen.slices)
        rows, index, axis = _lined_up(region, chosen)
        shape = rows._value.spec.shape
        v = _fitted(v, (*shape[:axis], *index.shape, *shape[axis + 1 :]), x, chosen.is_labelled)
        y = scatter(rows, v, index, axis=axis)
        if len(chosen.axes) > 1:  # back from lined up
            order, _ = _order(region.ndim, chosen.axes)
            y = view_as(y, shape=tuple([region.shape[i] for i in order]))
            y = reorder(y, order=tuple([order.index(i) for i in range(len(order))]))
        if not is_whole:
            y = assign(before, y, slices=chosen.slices)
    if y._value.spec.shape != x._value.spec.shape:
        y = view_as(y, shape=x._value.spec.shape)
    return DLArray(y._value, x._labels)


def _masked(x: DLArray, key: Any, v: Operand) -> DLArray | None:
    """X[mask] = number, or = array of the size of X, without looking which elements the mask takes; else None."""
    entries = key if type(key) is tuple else (key,)
    places = [i for i, k in enumerate(entries) if getattr(getattr(k, "dtype", None), "kind", "") == "b" and np.ndim(k)]
    if len(places) != 1:
        return None
    mask = entries[places[0]]
    shape, start = x._value.spec.shape, places[0]
    others = [k for i, k in enumerate(entries) if i != start]
    if any(not (isinstance(k, slice) and k == slice(None)) for k in others):
        return None
    if shape[start : start + mask.ndim] != mask.shape:
        return None  # for the complaint
    size = getattr(v, "size", 1 if isinstance(v, (int, float)) else -1)
    if callable(size) or not (size == 1 or (getattr(v, "shape", None) == shape == mask.shape)):
        return None
    taken = view_as(array(mask), shape=(1,) * start + mask.shape + (1,) * (len(shape) - start - mask.ndim))
    v = _typed(v, x)
    if isinstance(v, DLArray):
        v = DLArray(v._value) if v.size != 1 else view_as(v, shape=())
    y = where(taken, v, DLArray(x._value))
    y = y if y.dtype == x.dtype else cast(y, dtype=x.dtype.name)
    return DLArray(y._value, x._labels)


def _typed(v: Operand, x: DLArray) -> Any:
    if isinstance(v, (bool, int, float)):
        return bool(v) if x.dtype.kind == "b" else v
    if isinstance(v, (list, tuple)) and not v:
        raise DTypeError("X[...] = []: elements cannot be deleted. Take the others: X = X[mask].")
    found = array(v)
    return found if found.dtype == x.dtype else cast(found, dtype=x.dtype.name)


def _fitted(v: Operand, shape: tuple[int, ...], x: DLArray, is_labelled: bool) -> Any:
    """v in the type of x and expanded to the size of what it replaces."""
    v = _typed(v, x)
    if not isinstance(v, DLArray):
        return v
    v = _without_columns(v, x._labels) if is_labelled else v
    old, labels = v._value.spec.shape, v._labels
    if old == shape and (labels in ("", x._labels) or not is_labelled):
        return v
    if is_labelled and labels:
        if any(labels.count(letter) > x._labels.count(letter) for letter in labels):
            raise LabelError(
                f'X[...] = V: V has the labels "{labels}", X has "{x._labels}". V may have no other labels than X: '
                "relabel it, or use stripdims(V)."
            )
        dims = positions(labels, x._labels)
    elif is_labelled and [n for n in old if n != 1] == [n for n in shape if n != 1]:
        return view_as(v, shape=shape)  # MATLAB's rule: dimensions of size 1 do not count
    elif is_labelled:
        dims = tuple(range(len(old)))
    else:
        while len(old) > len(shape) and old[0] == 1:
            old = old[1:]
        v = v if old == v._value.spec.shape else view_as(v, shape=old)
        dims = tuple(range(len(shape) - len(old), len(shape)))
    if len(old) > len(shape) or any(n not in (1, shape[dim]) for n, dim in zip(old, dims)):
        raise ShapeError(
            f"X[...] = V: V is {describe(v.shape, labels)}, what it replaces is "
            f"{describe(shape, x._labels if is_labelled else '')}. Every size must be equal or 1."
        )
    return DLArray(v._value) if old == shape else broadcast(v, shape=shape, dims=dims)


def _without_columns(v: DLArray, labels: str) -> DLArray:
    """v without the U of size 1 that makes a vector a column, where X has no such label."""
    own, shape = v._labels, v._value.spec.shape
    while own.endswith("U") and shape[-1] == 1 and own.count("U") > labels.count("U"):
        own, shape = own[:-1], shape[:-1]
    return v if own == v._labels else DLArray(view_as(v, shape=shape)._value, own)
