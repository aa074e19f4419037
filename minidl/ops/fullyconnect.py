"""fullyconnect: a weighted sum of all features of an observation, per output."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from minidl.core.dlarray import DLArray, Operand, dlarray, public
from minidl.core.errors import LabelError, ShapeError
from minidl.core.labels import describe, stored_order
from minidl.core.options import options
from minidl.ops.formats import Order, add_bias, arranged, memory_order, read, returned, unless_same
from minidl.ops.linear import matmul
from minidl.ops.views import reorder


@public
@options
def fullyconnect(
    X: Operand, weights: Operand, bias: Operand, *, DataFormat: str | None = None, WeightsFormat: str | None = None
) -> DLArray:
    """Fully connected layer: Y = weights * x + bias for every observation and time step.

    X : dlarray with labels, or unformatted with DataFormat. Its S, C and U dimensions are flattened into features;
        B and T are kept.
    weights : (outputs, features); column j belongs to feature j, counted as MATLAB does: the first S fastest, then the
        second, then C, then U. Or (outputs, size of each flattened dimension). With labels (its own or WeightsFormat)
        the outputs are its one C dimension ("CU"), wherever it stands.
    bias : vector with a number per output, or one number; 0 for none.
    Returns a dlarray labelled "C", then "B" and "T" if X has them ("CU" if neither); without labels if X has none,
    its C then stands where X's first flattened dimension stands.
    Raises ShapeError if the weights do not take as many features as X has.
    Source: MathWorks, reference page "fullyconnect".

    >>> import numpy as np
    >>> X = dlarray(np.ones((2, 2, 3, 32)), "SSCB")
    >>> fullyconnect(X, np.ones((10, 12)), 0).shape
    (10, 32)
    """
    x, labels, is_formatted = read("fullyconnect", X, DataFormat)
    w = weights if isinstance(weights, DLArray) else dlarray(weights)
    if WeightsFormat is not None:
        w, w_labels, _ = read("fullyconnect", w, WeightsFormat, "weights", "WeightsFormat")
    else:
        w_labels = w._labels
    plan = _plan(x._value.spec.shape, labels, w._value.spec.shape, w_labels, is_formatted)
    x = arranged(x, plan.x_order, plan.x_matrix)
    if plan.w_first is not None:
        w = reorder(w, order=plan.w_first)
    if plan.w_order is not None:
        w = reorder(arranged(w, None, plan.w_split), order=plan.w_order)
    w = reorder(arranged(w, None, plan.w_matrix), order=(1, 0))
    y = add_bias("fullyconnect", matmul(x, w), bias, plan.w_matrix[0])
    return DLArray(returned(y, plan.y_shape, plan.y_order)._value, plan.y_labels)


class _Plan(NamedTuple):
    """How X and the weights become matrices [N, features] and [outputs, features], and y [N, outputs] the result."""

    x_order: Order | None
    x_matrix: tuple[int, int]
    w_first: Order | None  # labelled weights: the outputs to the front
    w_split: tuple[int, ...]  # [outputs, size of each flattened dimension, slowest first]
    w_order: Order | None  # None: the weights' columns stay as they are
    w_matrix: tuple[int, int]
    y_shape: tuple[int, ...]
    y_order: Order | None
    y_labels: str


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], labels: str, w_shape: tuple[int, ...], w_labels: str, is_formatted: bool
) -> _Plan:  # fmt: skip
    flat = [i for i in stored_order(labels) if labels[i] not in "BT"]  # fastest first, as MATLAB counts features
    kept = [i for i in memory_order(labels) if labels[i] in "BT"]
    if not flat:
        raise LabelError(f'fullyconnect: X ("{labels}") has no S, C or U dimension to connect. Label its features C.')
    sizes = [shape[i] for i in flat]
    features, count = math.prod(sizes), math.prod([shape[i] for i in kept])
    w_first, outputs, columns = _outputs_first(w_shape, w_labels)
    if columns == _trimmed(sizes):
        slowest_first = flat  # the weights have a dimension for each of X's
    elif columns == _trimmed([features]):
        slowest_first = flat[::-1]
    else:
        raise ShapeError(
            f"fullyconnect: weights {describe(w_shape, w_labels)} need {describe(tuple(columns))} features, "
            f"X {describe(shape, labels)} has {features} ({'*'.join(labels[i] for i in flat)}). "
            f"Give weights of shape ({outputs}, {features})."
        )
    in_memory = [i for i in memory_order(labels) if i in flat]  # X's order, slowest first
    w_order: Order | None = (0, *(1 + slowest_first.index(i) for i in in_memory))
    if [i for i in in_memory if shape[i] != 1] == [i for i in slowest_first if shape[i] != 1]:
        w_order = None  # one order already
    elif count < outputs:
        in_memory, w_order = slowest_first, None  # X is the smaller one to rearrange
    y_labels, y_shape, y_order = _result(shape, labels, kept, flat, outputs, is_formatted)
    return _Plan(
        unless_same((*kept, *in_memory)), (count, features),
        w_first, (outputs, *(shape[i] for i in slowest_first)), w_order, (outputs, features),
        y_shape, y_order, y_labels,
    )  # fmt: skip


def _outputs_first(shape: tuple[int, ...], labels: str) -> tuple[Order | None, int, list[int]]:
    """(order that brings the outputs of the weights to the front, how many, the sizes of the other dimensions)."""
    if not labels:
        return None, shape[0] if shape else 1, _trimmed(shape[1:])
    if labels.count("C") != 1:
        raise LabelError(
            f'fullyconnect: labelled weights have one C, the outputs; got "{labels}". Use "CU", or no labels: '
            "(outputs, features)."
        )
    c = labels.index("C")
    others = [i for i in range(len(labels)) if i != c]
    return unless_same((c, *others)), shape[c], _trimmed([shape[i] for i in others])


def _trimmed(sizes: Sequence[int]) -> list[int]:
    """Sizes without the ones at the end, which arrays may have or not."""
    found = list(sizes)
    while found and found[-1] == 1:
        found.pop()
    return found


def _result(
    shape: tuple[int, ...], labels: str, kept: list[int], flat: list[int], outputs: int, is_formatted: bool
) -> tuple[str, tuple[int, ...], Order | None]:
    """(labels of Y, shape of y in memory, order from there to Y)."""
    y_shape = (*(shape[i] for i in kept), outputs)
    if not is_formatted:  # X's dimensions stay where they are; the outputs replace C, or the first flattened one
        place = labels.index("C") if "C" in labels else min(flat)
        places = [*kept, place]
        return "", y_shape, unless_same(tuple(sorted(range(len(places)), key=places.__getitem__)))
    if not kept:
        return "CU", (outputs, 1), None
    y_labels = "".join([labels[i] for i in kept]) + "C"
    order = stored_order(y_labels)
    return "".join([y_labels[i] for i in order]), y_shape, unless_same(order)
