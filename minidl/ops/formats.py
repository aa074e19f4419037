"""Formats: how DataFormat and WeightsFormat options become dimension labels, and labels an order in memory.

The functions of this wing compute on unlabelled arrays with their labels in a string beside them, one label per
dimension in the array's own order. So an unformatted array with DataFormat="BSSC" is never rearranged for its
labels' sake, and its result has the order of its dimensions.

Everything is computed with channels last: B, T, U..., S..., C. Images lie in memory like that, and results are left
like that, so bringing an array to this order and back is a view.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minidl.core.dlarray import DLArray, dlarray, shape_of
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.core.labels import NAMES, check_format, describe
from minidl.ops.elementwise import plus
from minidl.ops.views import broadcast, reorder, view_as

Order = tuple[int, ...]


# labels in --------------------------------------------------------------------------------------------------------
def read(who: str, X: Any, fmt: str | None, name: str = "X", option: str = "DataFormat") -> tuple[DLArray, str, bool]:
    """(X, a label per dimension, whether X is formatted itself). X without any labels is a LabelError."""
    x = X if isinstance(X, DLArray) else dlarray(X)
    if x._labels:
        if fmt is not None:
            raise OptionError(
                f'{who}: {option} is for unformatted arrays, {name} is formatted: "{x._labels}". '
                f"Leave {option} out, or relabel: dlarray({name}, fmt)."
            )
        return x, x._labels, True
    shape = x._value.spec.shape
    if fmt is None:
        raise LabelError(
            f"{who}: {name} ({describe(shape)}) is unformatted, and which dimension is which matters here. "
            f"Label it, dlarray({name}, fmt), or give {option}=fmt."
        )
    if type(fmt).__hash__ is None or type(fmt) is tuple:  # no key of a cache, and no text
        check_format(who, fmt)
    labels = labels_of(who, name, shape, fmt)
    if len(labels) > len(shape):
        x = view_as(x, shape=shape + (1,) * (len(labels) - len(shape)))
    return x, labels, False


@functools.lru_cache(maxsize=1024)
def labels_of(who: str, name: str, shape: tuple[int, ...], fmt: str) -> str:
    """A label per dimension of an unformatted array: `fmt`, with U for dimensions of size 1 that it leaves out."""
    if not isinstance(fmt, str) or not fmt:
        raise OptionError(f'{who}: the format of {name} is a text of labels such as "SSCB"; got {fmt!r}.')
    check_format(who, fmt)
    if len(fmt) == 1 and len(shape) > 1 and sum(n != 1 for n in shape) <= 1:  # one label names a row or a column
        long = next((i for i, n in enumerate(shape) if n != 1), 0)
        return "U" * long + fmt + "U" * (len(shape) - long - 1)
    if any(n != 1 for n in shape[len(fmt) :]):
        raise LabelError(
            f'{who}: the format "{fmt}" has {len(fmt)} labels, {name} has {len(shape)} dimensions ({describe(shape)}). '
            "Give a label for each dimension."
        )
    return fmt + "U" * (len(shape) - len(fmt))


def check(who: str, X: Any, fmt: str | None) -> None:
    """For functions that ask nothing of the labels: complain about a DataFormat that cannot be."""
    if fmt is not None:
        read(who, X, fmt)


def give(y: DLArray, labels: str, is_formatted: bool, X: Any) -> DLArray:
    """The result y with its labels if X was formatted; else without, nor the last dimensions that X did not have."""
    if is_formatted:
        return DLArray(y._value, labels)
    shape = y._value.spec.shape
    keep, ndim = len(shape), len(shape_of(X))
    while keep > ndim and shape[keep - 1] == 1:
        keep -= 1
    return arranged(y, None, shape[:keep])


# order in memory --------------------------------------------------------------------------------------------------
_MEMORY_RANK = {letter: rank for rank, letter in enumerate("BTUSC")}


def memory_order(labels: str) -> Order:
    """Positions of `labels` in the order B, T, U..., S..., C; equal labels keep their order. 'SSCB' -> (3, 0, 1, 2)."""
    return tuple(sorted(range(len(labels)), key=lambda i: _MEMORY_RANK[labels[i]]))


def inverse(order: Order) -> Order:
    """The order that undoes `order`."""
    return tuple([order.index(i) for i in range(len(order))])


def unless_same(order: Order) -> Order | None:
    """`order`, or None if it moves nothing."""
    return None if order == tuple(range(len(order))) else order


def arranged(x: DLArray, order: Order | None, shape: tuple[int, ...]) -> DLArray:
    """x with its dimensions in another order, then under another shape; free where x lies in memory like that."""
    if order is not None:
        x = reorder(x, order=order)
    return x if x._value.spec.shape == shape else view_as(x, shape=shape)


def returned(y: DLArray, shape: tuple[int, ...], order: Order | None) -> DLArray:
    """The way back: y under another shape, then with its dimensions in another order."""
    if y._value.spec.shape != shape:
        y = view_as(y, shape=shape)
    return y if order is None else reorder(y, order=order)


class Rows(NamedTuple):
    """How an array becomes a matrix [N, C], a row per observation, position and time step, and comes back."""

    order: Order | None
    matrix: tuple[int, int]
    full: tuple[int, ...]  # with channels last, before the other dimensions are merged
    back: Order | None


@functools.lru_cache(maxsize=1024)
def rows(who: str, shape: tuple[int, ...], labels: str) -> Rows:
    """The plan for X of that shape; without a C, or with no channel in it, there is none."""
    if "C" not in labels:
        raise LabelError(
            f'{who}: works along C (channel), but X has the labels "{labels}". Name the dimension that holds the '
            'channels: dlarray(X, fmt) with a C in fmt, for example "CB".'
        )
    order = memory_order(labels)
    full = tuple([shape[i] for i in order])
    if not full[-1]:
        raise ShapeError(f"{who}: X ({describe(shape, labels)}) has no channels. Give at least one.")
    count = 1
    for n in full[:-1]:
        count *= n
    return Rows(unless_same(order), (count, full[-1]), full, unless_same(inverse(order)))


@functools.lru_cache(maxsize=1024)
def along(who: str, name: str, shape: tuple[int, ...], labels: str, to: str) -> tuple[Order | None, tuple[int, ...]]:
    """(order, shape) that lay an array with `labels` along dimensions labelled `to`; size 1 where it has none."""
    left = list(range(len(labels)))
    order, laid = [], []
    for letter in to:
        at = next((i for i in left if labels[i] == letter), None)
        laid.append(1 if at is None else shape[at])
        if at is not None:
            left.remove(at)
            order.append(at)
    for i in left:
        if shape[i] != 1:
            raise LabelError(
                f"{who}: {name} ({describe(shape, labels)}) has a {NAMES[labels[i]]} dimension that the first input, "
                f'"{to}", has not. Give both the same labels.'
            )
    return unless_same(tuple(order + left)), tuple(laid)


# vectors ----------------------------------------------------------------------------------------------------------
def vector(who: str, name: str, v: Any, count: int) -> DLArray:
    """v, one number per channel in any orientation, with shape (count,); a single number with shape ()."""
    x = v if isinstance(v, DLArray) else dlarray(v)
    shape = x._value.spec.shape
    if shape == (count,):
        return x
    return view_as(x, shape=_vector_shape(who, name, shape, x._labels, count))


@functools.lru_cache(maxsize=1024)
def _vector_shape(who: str, name: str, shape: tuple[int, ...], labels: str, count: int) -> tuple[int, ...]:
    long = [i for i, n in enumerate(shape) if n != 1]
    size = shape[long[0]] if long else 1
    if len(long) > 1 or size not in (1, count):
        raise ShapeError(
            f"{who}: {name} is a vector with one number per channel of the result, {count} of them; "
            f"got {describe(shape, labels)}. Give shape ({count}, 1)."
        )
    if labels and long and labels[long[0]] != "C":
        raise LabelError(
            f'{who}: {name} runs along C (channel); it has the labels "{labels}". Use dlarray({name}, "C").'
        )
    return (count,) if size == count else ()


def repeated(v: DLArray, count: int) -> DLArray:
    """A vector as `vector` gives it, a single number repeated."""
    return v if v._value.spec.shape else broadcast(v, shape=(count,), dims=())


def add_bias(who: str, y: DLArray, bias: Any, count: int) -> DLArray:
    """y [..., C] plus one number per channel; a plain 0 costs nothing."""
    if isinstance(bias, (int, float)):
        return y if bias == 0 else plus(y, bias)
    return plus(y, vector(who, "bias", bias, count))


# options ----------------------------------------------------------------------------------------------------------
def frozen(value: Any) -> Any:
    """An option's value as the key of a plan: lists and arrays as tuples; what no option takes, as its text."""
    kind = type(value)
    if kind is int or kind is str or kind is float:
        return value
    if kind is list or kind is tuple:
        return tuple([frozen(x) for x in value])
    if isinstance(value, np.ndarray):
        return frozen(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return repr(value)
