"""Losses: crossentropy, mse, huber, l1loss, l2loss. All are one pipeline:

    loss = 1/N * sum_j mask_j * weight_j * element(y_j, t_j)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, Operand, dlarray, public
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError, choice, number
from minidl.core.labels import describe
from minidl.core.op import MAP, case, op
from minidl.core.options import options
from minidl.core.spec import common_type
from minidl.ops.elementwise import (
    abs,
    and_,
    eq,
    isinf,
    le,
    log_,
    log_known,
    log_rest_known,
    lt,
    ne,
    square,
    where,
)  # fmt: skip
from minidl.ops.formats import Order, along, arranged, give, labels_of, read
from minidl.ops.reduction import reduce_sum
from minidl.ops.views import broadcast, cast, view_as

# elements ---------------------------------------------------------------------------------------------------------


def _pairs(r, **params):
    return [case(r.uniform(0.1, 0.9, size=(4, 3)), r.uniform(0, 1, size=(4, 3)), **params)]


@op(MAP, samples=lambda r: [case(r.uniform(0.1, 0.9, size=(4, 3)), least=0.01)])
def bounded(y, *, least):
    """y, but nowhere below `least`; NaN stays NaN. The derivative is 1 also at the bound, so that it can be left."""
    return where(lt(y, least), least, y)


bounded.vjps(lambda g, b, y, least: g, is_singular=False)


@op(MAP, types="ff->f", samples=functools.partial(_pairs, least=1e-15))
def single_label_loss(y, t, *, least):
    """-t log(y), y bounded from below."""
    return -(t * log_(bounded(y, least=least)))


single_label_loss.vjps(
    lambda g, e, y, t, least: -(g * t) / bounded(y, least=least),
    lambda g, e, y, t, least: -(g * log_(bounded(y, least=least))),
)


@op(MAP, types="ff->f", samples=functools.partial(_pairs, least=1e-15))
def multi_label_loss(y, t, *, least):
    """-(t log(y) + (1 - t) log(1 - y)), both logarithms' arguments bounded from below."""
    return -(t * log_(bounded(y, least=least)) + (1 - t) * log_(bounded(1 - y, least=least)))


@op(MAP)
def share_of_log(t, log_y):
    """t log(y), 0 where t is 0 and y is."""
    return where(and_(eq(t, 0), isinf(log_y)), 0, t * log_y)


@op(MAP)
def single_label_log_loss(log_y, t):
    """-t log(y), from the logarithm."""
    return -share_of_log(t, log_y)


single_label_log_loss.vjps(lambda g, e, log_y, t: -(g * t), lambda g, e, log_y, t: -(g * log_y))


@op(MAP)
def multi_label_log_loss(log_y, log_rest, t):
    """-(t log(y) + (1 - t) log(1 - y)), from the logarithms."""
    return -(share_of_log(t, log_y) + share_of_log(1 - t, log_rest))


multi_label_log_loss.vjps(
    lambda g, e, log_y, log_rest, t: -(g * t),
    lambda g, e, log_y, log_rest, t: -(g * (1 - t)),
    lambda g, e, log_y, log_rest, t: g * (log_rest - log_y),
)


@op(MAP)
def half_square_loss(y, t):
    """(y - t)^2 / 2."""
    return square(y - t) * 0.5


half_square_loss.vjps(lambda g, e, y, t: g * (y - t), lambda g, e, y, t: g * (t - y))


@op(MAP)
def square_loss(y, t):
    """(y - t)^2."""
    return square(y - t)


@op(MAP)
def absolute_loss(y, t):
    """|y - t|."""
    return abs(y - t)


@op(MAP, types="ff->f", samples=functools.partial(_pairs, delta=0.25))
def huber_loss(y, t, *, delta):
    """d^2 / 2 for d = |y - t| up to delta, delta * (d - delta/2) beyond."""
    d = abs(y - t)
    return where(le(d, delta), square(d) * 0.5, delta * (d - 0.5 * delta))


# the functions ----------------------------------------------------------------------------------------------------


@public
@options
def crossentropy(
    Y: Operand, T: Operand, weights: Operand | None = None, *, ClassificationMode: str | None = None,
    TargetCategories: str | None = None, Mask: Operand | None = None, Reduction: str = "sum",
    NormalizationFactor: str = "batch-size", DataFormat: str | None = None, WeightsFormat: str | None = None,
) -> DLArray:  # fmt: skip
    """Cross-entropy between predicted probabilities and targets.

        single-label:  loss = -1/N * sum_j w_j T_j log(Y_j)
        multilabel:    loss = -1/N * sum_j w_j (T_j log(Y_j) + (1 - T_j) log(1 - Y_j))

    Y : probabilities (not logits) along C: dlarray "CB", "SSCB", ..., or unformatted with DataFormat. What softmax or
        sigmoid made (however it was labelled, reshaped or indexed since) has its logarithm computed from the logits:
        the loss is right where Y rounds to 0, and so is its derivative by the logits, softmax(z) - T. Of other
        numbers, and of arguments of dlfeval and of accelerated functions, the logarithm is that of Y bounded from
        below by eps of its type, so that the loss and its gradient are finite; the gradient passes through at the
        bound. The derivative by Y itself is -T/Y. NaN stays NaN.
    T : as large as Y; one-hot, or any distribution along C. Without labels its dimensions are those of Y.
    weights : "C" (per class), "B" (per observation) or of any other labels, its own or in WeightsFormat; expanded to Y.
        They do not alter N. Without labels: one number, or as large as Y.
    ClassificationMode : "single-label" or "multilabel" (older: TargetCategories, "exclusive" or "independent").
    Mask : as large as Y or expanded to it; where it is 0 the element does not count.
    Reduction : "sum", or "none" for the elements, as large as Y and labelled like it, not divided by N.
    NormalizationFactor : N: "batch-size" (size of B, or 1), "all-elements", "mask-included" (elements that the mask
        lets pass) or "none" (1).
    Returns an unformatted scalar dlarray, in nats per observation (divide by log 2 for bits).
    Raises LabelError, ShapeError and OptionError for what does not fit.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), eq. 4.108; MathWorks, page "crossentropy".

    >>> Y = dlarray([[0.5, 0.25], [0.5, 0.75]], "CB")
    >>> round(crossentropy(Y, [[1.0, 0.0], [0.0, 1.0]]).item(), 4)  # (log 2 + log 4/3) / 2
    0.4904
    """
    if ClassificationMode is not None and TargetCategories is not None:
        raise OptionError(
            "crossentropy: ClassificationMode and TargetCategories are two names of one option. Give the first alone."
        )
    modes = ("exclusive", "independent") if TargetCategories is not None else ("single-label", "multilabel")
    given = TargetCategories if TargetCategories is not None else ClassificationMode
    is_single = given is None or modes.index(
        choice("crossentropy", "ClassificationMode" if modes[0][0] == "s" else "TargetCategories", given, modes)
    ) == 0  # fmt: skip
    element = _single_label if is_single else _multi_label
    return _loss(
        "crossentropy", element, Y, T, weights, Mask, Reduction, NormalizationFactor, DataFormat, WeightsFormat,
        lambda dtype: {"least": float(np.finfo(dtype).eps)},
    )  # fmt: skip


def _single_label(y: DLArray, t: DLArray, *, least: float) -> DLArray:
    log_y = log_known(y, least=least)
    return single_label_loss(y, t, least=least) if log_y is None else single_label_log_loss(log_y, t)


def _multi_label(y: DLArray, t: DLArray, *, least: float) -> DLArray:
    log_y, log_rest = log_known(y, least=least), log_rest_known(y, least=least)
    if log_y is None or log_rest is None:
        return multi_label_loss(y, t, least=least)
    return multi_label_log_loss(log_y, log_rest, t)


@public
@options
def mse(Y: Operand, T: Operand, *, DataFormat: str | None = None) -> DLArray:
    """Half mean squared error: loss = 1/(2N) * sum_j (Y_j - T_j)^2, N the number of observations (size of B, or 1).

    Y : dlarray with labels, or unformatted with DataFormat.  T : as large as Y, with its labels or without any.
    Returns an unformatted scalar dlarray, in the square of Y's unit. (l2loss has no half and more options.)
    Source: MathWorks, reference page "mse".

    >>> mse(dlarray([[1.0, 2.0]], "CB"), [[0.0, 4.0]]).item()
    1.25
    """
    return _loss("mse", half_square_loss, Y, T, None, None, "sum", "batch-size", DataFormat, None)


@public
@options
def l2loss(
    Y: Operand, T: Operand, weights: Operand | None = None, *, Mask: Operand | None = None, Reduction: str = "sum",
    NormalizationFactor: str = "batch-size", DataFormat: str | None = None, WeightsFormat: str | None = None,
) -> DLArray:  # fmt: skip
    """Squared error: loss = 1/N * sum_j w_j (Y_j - T_j)^2. Arguments and options as in `crossentropy`.

    Source: MathWorks, reference page "l2loss".

    >>> l2loss(dlarray([[1.0, 2.0]], "CB"), [[0.0, 4.0]]).item()
    2.5
    """
    return _loss(
        "l2loss", square_loss, Y, T, weights, Mask, Reduction, NormalizationFactor, DataFormat, WeightsFormat
    )  # fmt: skip


@public
@options
def l1loss(
    Y: Operand, T: Operand, weights: Operand | None = None, *, Mask: Operand | None = None, Reduction: str = "sum",
    NormalizationFactor: str = "batch-size", DataFormat: str | None = None, WeightsFormat: str | None = None,
) -> DLArray:  # fmt: skip
    """Absolute error: loss = 1/N * sum_j w_j |Y_j - T_j|. Arguments and options as in `crossentropy`.

    Source: MathWorks, reference page "l1loss".

    >>> l1loss(dlarray([[1.0, 2.0]], "CB"), [[0.0, 4.0]]).item()
    1.5
    """
    return _loss(
        "l1loss", absolute_loss, Y, T, weights, Mask, Reduction, NormalizationFactor, DataFormat, WeightsFormat
    )  # fmt: skip


@public
@options
def huber(
    Y: Operand, T: Operand, weights: Operand | None = None, *, TransitionPoint: float = 1.0,
    Mask: Operand | None = None, Reduction: str = "sum", NormalizationFactor: str = "batch-size",
    DataFormat: str | None = None, WeightsFormat: str | None = None,
) -> DLArray:  # fmt: skip
    """Huber loss: 1/N * sum_j w_j h(|Y_j - T_j|); h(d) = d^2/2 up to d = TransitionPoint, a straight line beyond.

    Arguments and options as in `crossentropy`.
    Source: Huber, Robust Estimation of a Location Parameter (1964); MathWorks, reference page "huber".

    >>> huber(dlarray([[1.0, 2.0]], "CB"), [[0.0, 4.0]]).item()
    1.0
    """
    delta = number("huber", "TransitionPoint", TransitionPoint, "a number above 0", lambda d: d > 0)
    return _loss(
        "huber", huber_loss, Y, T, weights, Mask, Reduction, NormalizationFactor, DataFormat, WeightsFormat,
        lambda dtype: {"delta": delta},
    )  # fmt: skip


# the pipeline -----------------------------------------------------------------------------------------------------
FACTORS = ("batch-size", "all-elements", "mask-included", "none")


def _loss(
    who: str, element: Callable[..., DLArray], Y: Any, T: Any, weights: Any, mask: Any, reduction: str, factor: str,
    fmt: str | None, weights_fmt: str | None, params_of: Callable[[np.dtype[Any]], dict[str, float]] = lambda dtype: {},
) -> DLArray:  # fmt: skip
    if reduction != "sum":
        reduction = choice(who, "Reduction", reduction, ("sum", "none"))
    if factor != "batch-size":
        factor = choice(who, "NormalizationFactor", factor, FACTORS)
    y, labels, is_formatted, t = _pair(who, Y, T, fmt)
    shape = y._value.spec.shape
    e = element(y, t, **params_of(common_type([y._value.spec.dtype, t._value.spec.dtype])))
    if weights is not None:
        e = e * _beside(who, "weights", weights, weights_fmt, shape, labels)
    elif weights_fmt is not None:
        raise OptionError(f"{who}: WeightsFormat is for weights, and there are none. Give weights, or leave it out.")
    if mask is not None:
        mask = _beside(who, "Mask", mask, None, shape, labels)
        e = where(mask, e, 0)
    if reduction == "none":
        return give(e, labels, is_formatted, Y)
    total = view_as(reduce_sum(e, axes=tuple(range(len(shape)))), shape=())
    if factor == "mask-included" and mask is not None:
        counted = cast(ne(mask, 0), dtype=e.dtype.name)
        counted = broadcast(counted, shape=shape, dims=tuple(range(counted.ndim)))
        return total / view_as(reduce_sum(counted, axes=tuple(range(len(shape)))), shape=())
    count = _count(who, factor, shape, labels)
    return total if count == 1 else total / count


def _count(who: str, factor: str, shape: tuple[int, ...], labels: str) -> int:
    if factor == "none":
        return 1
    count = int(np.prod(shape)) if factor != "batch-size" else shape[labels.index("B")] if "B" in labels else 1
    if not count:
        raise ShapeError(f"{who}: Y ({describe(shape, labels)}) is empty, so there is no mean. Give observations.")
    return count


def _pair(who: str, Y: Any, T: Any, fmt: str | None) -> tuple[DLArray, str, bool, DLArray]:
    """(Y without labels, its labels, whether it gives them to the result, T laid along the dimensions of Y)."""
    t = T if isinstance(T, DLArray) else _target(who, T)
    y = Y if isinstance(Y, DLArray) else dlarray(Y)
    if not y._labels and fmt is None and t._labels:  # only T is formatted: Y has its dimensions
        labels, is_formatted = t._labels, True
        if y._value.spec.shape != t._value.spec.shape:
            y = arranged(y, None, _same_shape(who, "Y", y._value.spec.shape, "T", t._value.spec.shape, labels))
        return DLArray(y._value), labels, is_formatted, DLArray(t._value)
    y, labels, is_formatted = read(who, y, fmt, "Y")
    shape = y._value.spec.shape
    if not t._labels:
        if t._value.spec.shape != shape:
            t = arranged(t, None, _same_shape(who, "T", t._value.spec.shape, "Y", shape, labels))
    elif t._labels != labels or t._value.spec.shape != shape:
        t = arranged(t, *_laid(who, "T", t._value.spec.shape, t._labels, shape, labels, False))
    return DLArray(y._value), labels, is_formatted, DLArray(t._value)


@functools.lru_cache(maxsize=1024)
def _same_shape(
    who: str, name: str, shape: tuple[int, ...], other: str, wanted: tuple[int, ...], labels: str
) -> tuple[int, ...]:
    """The wanted shape, if `shape` is that but for ones at the end."""
    n = max(len(shape), len(wanted))
    if shape + (1,) * (n - len(shape)) != wanted + (1,) * (n - len(wanted)):
        raise ShapeError(
            f"{who}: {name} is as large as {other}, {describe(wanted, labels)}; got {describe(shape)}. "
            f"Give {name} the shape {wanted}.{_of_classes(who, name)}"
        )
    return wanted


def _of_classes(who: str, name: str) -> str:
    """What to do with targets that are the classes themselves."""
    if who != "crossentropy" or name != "T":
        return ""
    return " If T holds numbers or names of classes, make it one-hot: onehotencode(T, 0, ClassNames=...)."


def _target(who: str, T: Any) -> DLArray:
    try:
        return dlarray(T)
    except DTypeError as error:
        if who != "crossentropy":
            raise
        kind = getattr(T, "dtype", None) or type(T).__name__
        raise DTypeError(
            f"{who}: T is one-hot, or another distribution along C, of type single, double or logical; got {kind}."
            f"{_of_classes(who, 'T')}"
        ) from error


@functools.lru_cache(maxsize=1024)
def _laid(
    who: str, name: str, shape: tuple[int, ...], labels: str, y_shape: tuple[int, ...], y_labels: str, expands: bool
) -> tuple[Order | None, tuple[int, ...]]:
    """(order, shape) that lay an array along the dimensions of Y; it is as large as Y, or expands to it."""
    order, laid = along(who, name, shape, labels, y_labels)
    if any(n != m and not (expands and n == 1) for n, m in zip(laid, y_shape)):
        raise ShapeError(
            f"{who}: {name} ({describe(shape, labels)}) does not fit Y ({describe(y_shape, y_labels)}). "
            f"Its sizes are those of Y{', or 1' if expands else ''}.{_of_classes(who, name)}"
        )
    return order, laid


def _beside(
    who: str, name: str, x: Any, fmt: str | None, y_shape: tuple[int, ...], y_labels: str
) -> DLArray:  # fmt: skip
    """Weights or a mask, laid along the dimensions of Y and ready to expand to it."""
    x = x if isinstance(x, DLArray) else dlarray(x)
    shape = x._value.spec.shape
    if not x._labels and fmt is None:
        if x.size == 1:
            return view_as(x, shape=())
        if name == "weights":  # a vector could be of classes or of observations
            try:
                return DLArray(arranged(x, None, _same_shape(who, name, shape, "Y", y_shape, y_labels))._value)
            except ShapeError as error:
                raise LabelError(f'{error} Or say what it runs along, for example WeightsFormat="C".') from None
        labels = labels_of(who, name, shape + (1,) * (len(y_labels) - len(shape)), y_labels)
        shape = shape + (1,) * (len(labels) - len(shape))
        x = arranged(x, None, shape)
    else:
        x, labels, _ = read(who, x, fmt, name, "WeightsFormat")
        shape = x._value.spec.shape
    return DLArray(arranged(x, *_laid(who, name, shape, labels, y_shape, y_labels, True))._value)
