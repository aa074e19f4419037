"""Convolution: dlconv, and the closed family of ops conv, conv_input_grad, conv_weight_grad behind it.

The ops are label-free and channel-last, and each is the others' derivative:

    x [B, S1..Sn, C]    w [G, k1..kn, C/G, F/G]    y and g [B, O1..On, F]; channels of all groups one after the other
    padding: zeros, ((before, after), ...) per spatial dimension;  O = floor((S + before + after - reach) / stride) + 1,
    reach = (k - 1) * dilation + 1

Their bodies are sums over the taps of the filter: crop what a tap sees, then one matrix product per group.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from minidl.core.contraction import Contraction, index
from minidl.core.dlarray import DLArray, Operand, dlarray, public
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.core.labels import describe
from minidl.core.op import KERNEL, case, op
from minidl.core.options import options
from minidl.core.spec import Spec
from minidl.ops.create import full
from minidl.ops.formats import (
    Order,
    add_bias,
    arranged,
    frozen,
    give,
    inverse,
    memory_order,
    read,
    returned,
    unless_same,
)  # fmt: skip
from minidl.ops.linear import matmul
from minidl.ops.shape import concatenate
from minidl.ops.views import broadcast, crop, part, place, reorder, view_as

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def out_sizes(sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: Pads) -> Sizes:
    """Output positions per spatial dimension; 0 or less where the filter reaches beyond the padded input."""
    along = zip(sizes, kernel, stride, dilation, padding)
    return tuple([(n + lo + hi - (k - 1) * d - 1) // s + 1 for n, k, s, d, (lo, hi) in along])


def _taps(kernel: Sizes) -> list[Sizes]:
    return list(itertools.product(*map(range, kernel)))


def _inside(x: Any, padding: Pads) -> tuple[Sizes, tuple[tuple[int, int, int], ...]]:
    """The shape of x [B, S.., C] with its padding, and the slices where x stands in it."""
    shape = (x.shape[0], *(n + lo + hi for n, (lo, hi) in zip(x.shape[1:], padding)), x.shape[-1])
    return shape, ((0, x.shape[0], 1), *((lo, n, 1) for n, (lo, _) in zip(x.shape[1:], padding)), (0, x.shape[-1], 1))


def _seen(padded: Any, tap: Sizes, out: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    """Slices of the padded input: what one tap of the filter sees at each output position."""
    where = tuple([(t * d, n, s) for t, d, n, s in zip(tap, dilation, out, stride)])
    return ((0, padded[0], 1), *where, (0, padded[-1], 1))


def _by_group(x: Any, groups: int) -> Any:
    """[B, O.., C] as [G, N, C/G]."""
    return reorder(view_as(x, shape=(math.prod(x.shape[:-1]), groups, x.shape[-1] // groups)), order=(1, 0, 2))


def _tap_weights(w: Any, tap: Sizes) -> Any:
    """[G, C/G, F/G], the weights of one tap."""
    where = ((0, w.shape[0], 1), *((t, 1, 1) for t in tap), (0, w.shape[-2], 1), (0, w.shape[-1], 1))
    return view_as(crop(w, slices=where), shape=(w.shape[0], *w.shape[-2:]))


# the family -------------------------------------------------------------------------------------------------------
def _geometries(r):
    """(x, w, params): 1 to 3 dimensions, strides, dilations, groups, channel-wise, uneven padding."""
    return [
        (r.normal(size=x), r.normal(size=w), {"stride": s, "dilation": d, "padding": p})
        for x, w, s, d, p in [
            ((2, 5, 4, 2), (1, 3, 2, 2, 3), (1, 1), (1, 1), ((1, 1), (0, 1))),
            ((2, 6, 5, 2), (1, 3, 3, 2, 3), (2, 2), (1, 1), ((0, 1), (1, 1))),
            ((1, 7, 6, 4), (2, 3, 2, 2, 1), (2, 1), (2, 3), ((2, 1), (0, 0))),
            ((2, 4, 4, 3), (3, 2, 2, 1, 2), (1, 1), (1, 1), ((0, 0), (0, 0))),
            ((3, 7, 2), (1, 3, 2, 2), (3,), (1,), ((2, 0),)),
            ((1, 3, 4, 3, 2), (1, 2, 2, 2, 2, 2), (1, 2, 1), (1, 1, 2), ((0, 0), (1, 0), (1, 1))),
            ((2, 3, 3, 4), (1, 1, 1, 4, 2), (2, 2), (1, 1), ((0, 0), (0, 0))),
        ]
    ]


def _conv_samples(r):
    return [case(x, w, **params) for x, w, params in _geometries(r)]


@op(KERNEL, types="ff->f", samples=_conv_samples)
def conv(x, w, *, stride, dilation, padding):
    """y[b, o, f] = sum over taps k, channels c of x[b, o*stride + k*dilation - before, c] w[g, k, c, f]."""
    groups, kernel = w.shape[0], w.shape[1:-2]
    out = out_sizes(x.shape[1:-1], kernel, stride, dilation, padding)
    shape, here = _inside(x, padding)
    padded = place(x, shape=shape, slices=here)
    y = None
    for tap in _taps(kernel):
        seen = _by_group(crop(padded, slices=_seen(shape, tap, out, stride, dilation)), groups)
        part = matmul(seen, _tap_weights(w, tap))
        y = part if y is None else y + part
    return view_as(reorder(y, order=(1, 0, 2)), shape=(x.shape[0], *out, groups * w.shape[-1]))


@conv.infer
def _(x, w, *, stride, dilation, padding):
    if x.ndim < 3 or w.ndim != x.ndim + 1:
        raise ShapeError(
            f"conv: x is [B, S.., C] and w [G, k.., C/G, F/G]; got {describe(x.shape)} and {describe(w.shape)}. "
            "Use dlconv, which arranges them."
        )
    groups = w.shape[0]
    if x.shape[-1] != groups * w.shape[-2]:
        raise ShapeError(
            f"conv: x {describe(x.shape)} has {x.shape[-1]} channels, w {describe(w.shape)} takes "
            f"{groups * w.shape[-2]} ({groups} groups of {w.shape[-2]}). Give weights for as many channels as x has."
        )
    out = out_sizes(x.shape[1:-1], w.shape[1:-2], stride, dilation, padding)
    if min(out) < 1:
        raise ShapeError(
            f"conv: the filter {describe(w.shape[1:-2])} reaches beyond the input {describe(x.shape[1:-1])}. Pad more."
        )
    return Spec((x.shape[0], *out, groups * w.shape[-1]), x.dtype, x.device)


def _input_grad_samples(r):
    found = []
    for x, w, params in _geometries(r):
        size = x.shape[1:-1]
        g = r.normal(size=(x.shape[0], *out_sizes(size, w.shape[1:-2], **params), w.shape[0] * w.shape[-1]))
        found.append(case(g, w, size=size, **params))
    return found


@op(KERNEL, types="ff->f", samples=_input_grad_samples)
def conv_input_grad(g, w, *, size, stride, dilation, padding):
    """Gradient of conv by its input, which has the spatial sizes `size`; the adjoint of conv for these weights."""
    groups, kernel, out = w.shape[0], w.shape[1:-2], g.shape[1:-1]
    channels = groups * w.shape[-2]
    whole = Spec((g.shape[0], *size, channels))
    shape, here = _inside(whole, padding)
    by_group = _by_group(g, groups)
    padded = None
    for tap in _taps(kernel):
        part = matmul(by_group, reorder(_tap_weights(w, tap), order=(0, 2, 1)))
        part = view_as(reorder(part, order=(1, 0, 2)), shape=(g.shape[0], *out, channels))
        part = place(part, shape=shape, slices=_seen(shape, tap, out, stride, dilation))
        padded = part if padded is None else padded + part
    return crop(padded, slices=here)


@conv_input_grad.infer
def _(g, w, *, size, stride, dilation, padding):
    out = (*out_sizes(size, w.shape[1:-2], stride, dilation, padding), w.shape[0] * w.shape[-1])
    if g.shape[1:] != out:
        raise ShapeError(
            f"conv_input_grad: an input of size {describe(size)} gives outputs {describe(out)} per observation; "
            f"g has {describe(g.shape[1:])}. Give the size that belongs to g."
        )
    return Spec((g.shape[0], *size, w.shape[0] * w.shape[-2]), g.dtype, g.device)


def _weight_grad_samples(r):
    found = []
    for x, w, params in _geometries(r):
        g = r.normal(size=(x.shape[0], *out_sizes(x.shape[1:-1], w.shape[1:-2], **params), w.shape[0] * w.shape[-1]))
        found.append(case(g, x, size=w.shape[:-2], **params))
    return found


@op(KERNEL, types="ff->f", samples=_weight_grad_samples)
def conv_weight_grad(g, x, *, size, stride, dilation, padding):
    """Gradient of conv by its weights, whose shape starts with size, [G, k1..kn]; the adjoint of conv for this x."""
    (groups, *kernel), out = size, g.shape[1:-1]
    shape, here = _inside(x, padding)
    padded = place(x, shape=shape, slices=here)
    by_group = _by_group(g, groups)
    parts = []
    for tap in _taps(kernel):
        seen = _by_group(crop(padded, slices=_seen(shape, tap, out, stride, dilation)), groups)
        part = matmul(reorder(seen, order=(0, 2, 1)), by_group)
        parts.append(view_as(part, shape=(groups, 1, *part.shape[1:])))
    return view_as(concatenate(*parts, axis=1), shape=(*size, *parts[0].shape[2:]))


@conv_weight_grad.infer
def _(g, x, *, size, stride, dilation, padding):
    groups, *kernel = size
    out = (x.shape[0], *out_sizes(x.shape[1:-1], kernel, stride, dilation, padding))
    if g.shape[:-1] != out:
        raise ShapeError(
            f"conv_weight_grad: an input {describe(x.shape)} gives outputs {describe(out)} per filter; g is "
            f"{describe(g.shape)}. Give the x that belongs to g."
        )
    return Spec((*size, x.shape[-1] // groups, g.shape[-1] // groups), g.dtype, g.device)


def _input_grad(g, w, x, geometry):
    return conv_input_grad(g, w, size=x.shape[1:-1], **geometry)


def _weight_grad(g, x, w, geometry):
    return conv_weight_grad(g, x, size=w.shape[:-2], **geometry)


conv.vjps(
    lambda g, y, x, w, **geometry: _input_grad(g, w, x, geometry),
    lambda g, y, x, w, **geometry: _weight_grad(g, x, w, geometry),
)
conv_input_grad.vjps(  # here y is the gradient by the input, g the gradient by that: shaped like conv's x
    lambda g, y, h, w, size, **geometry: conv(g, w, **geometry),
    lambda g, y, h, w, size, **geometry: _weight_grad(h, g, w, geometry),
)
conv_weight_grad.vjps(  # here g is shaped like conv's w
    lambda g, y, h, x, size, **geometry: conv(x, g, **geometry),
    lambda g, y, h, x, size, **geometry: _input_grad(h, g, x, geometry),
)


# as sums of products: every part of a result by its subscripts -------------------------------------------------------
def _indices(rank: int) -> tuple[int, int, list[int], int, list[int], int]:
    """Numbers of the indices of a convolution: observation, group, positions, filter, taps, channel."""
    return 0, 1, list(range(2, 2 + rank)), 2 + rank, list(range(3 + rank, 3 + 2 * rank)), 3 + 2 * rank


def _subscripts(w_shape, out, stride, dilation, padding):
    """(sizes, x, w, y) of y[b, o, f] = sum of x[b, o * stride + k * dilation - before, c] * w[g, k, c, f]."""
    groups, kernel, (channels, filters) = w_shape[0], w_shape[1:-2], w_shape[-2:]
    b, g, positions, f, taps, c = _indices(len(kernel))
    x = [index(o, s, (k, d), start=-lo) for o, s, k, d, (lo, _) in zip(positions, stride, taps, dilation, padding)]
    return (
        (groups, *out, filters, *kernel, channels),
        (index(b), *x, index(g, channels, (c, 1))),
        (index(g), *map(index, taps), index(c), index(f)),
        (index(b), *map(index, positions), index(g, filters, (f, 1))),
    )


@conv.contraction
def _(x, w, *, stride, dilation, padding):
    out = out_sizes(x.shape[1:-1], w.shape[1:-2], stride, dilation, padding)
    sizes, x_at, w_at, y_at = _subscripts(w.shape, out, stride, dilation, padding)
    return [Contraction((x.shape[0], *sizes), y_at, x_at, w_at)]


@conv_weight_grad.contraction
def _(g, x, *, size, stride, dilation, padding):
    w_shape = (*size, x.shape[-1] // size[0], g.shape[-1] // size[0])
    sizes, x_at, w_at, y_at = _subscripts(w_shape, g.shape[1:-1], stride, dilation, padding)
    return [Contraction((x.shape[0], *sizes), w_at, y_at, x_at)]


@conv_input_grad.contraction
def _(g, w, *, size, stride, dilation, padding):
    """A part for each remainder of the input's positions by the strides: only some taps reach it, evenly spaced."""
    groups, kernel, (channels, filters) = w.shape[0], w.shape[1:-2], w.shape[-2:]
    b, group, positions, c, taps, f = _indices(len(kernel))
    parts = []
    for remainder in itertools.product(*map(range, stride)):
        along = [_reached(*facts) for facts in zip(remainder, size, kernel, stride, dilation, padding)]
        x_at = [index(i, s, start=r) for i, s, r in zip(positions, stride, remainder)]
        g_at = [index(i, 1, (k, -back), start=start) for i, k, (_, _, start, back, _, _) in zip(positions, taps, along)]
        w_at = [index(k, step, start=first) for k, (_, _, _, _, first, step) in zip(taps, along)]
        sizes = (g.shape[0], groups, *(n for n, *_ in along), channels, *(n for _, n, *_ in along), filters)
        if min(sizes[2 : 2 + len(kernel)]) > 0:
            parts.append(Contraction(
                sizes,
                (index(b), *x_at, index(group, channels, (c, 1))),
                (index(b), *g_at, index(group, filters, (f, 1))),
                (index(group), *w_at, index(c), index(f)),
            ))  # fmt: skip
    return parts


def _reached(
    remainder: int, size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]
) -> tuple[int, int, int, int, int, int]:
    """Input position u * stride + remainder is reached by tap first + t * step from output start + u - t * back.

    (number of u, number of t, start, back, first, step)
    """
    step = stride // math.gcd(stride, dilation)
    place = remainder + padding[0]
    first = next((k for k in range(min(step, kernel)) if (place - k * dilation) % stride == 0), None)
    count = -(-(size - remainder) // stride)
    if first is None:
        return count, 0, 0, 0, 0, 1
    taps = -(-(kernel - first) // step)
    return count, taps, (place - first * dilation) // stride, step * dilation // stride, first, step


# dlconv -----------------------------------------------------------------------------------------------------------
EDGES = INCLUDE_EDGE, EXCLUDE_EDGE, REPLICATE = "symmetric-include-edge", "symmetric-exclude-edge", "replicate"


@public
@options
def dlconv(
    X: Operand, weights: Operand, bias: Operand, *, DataFormat: str | None = None, WeightsFormat: str | None = None,
    Stride: Any = 1, DilationFactor: Any = 1, Padding: Any = 0, PaddingValue: Any = 0,
) -> DLArray:  # fmt: skip
    """Convolution of X with filters, plus bias (cross-correlation: the filters are not flipped).

        y[o, f] = bias[f] + sum_k sum_c x[o * Stride + k * DilationFactor - padding, c] * weights[k, c, f]

    X : dlarray with labels, such as "SSCB"; C is required. Convolved are its S dimensions and, if weights have a T,
        its T; all others are carried along. Without labels give DataFormat.
    weights : without labels (k1, .., kn, C, F), one k per S of X; (k1, .., kn, C/G, F/G, G) for G groups of channels
        (channel-wise: G = C). With labels, its own or WeightsFormat: S and T the filter sizes, C the channels per
        group, the first U the filters per group, the second U the groups: "SSCU", "SSCUU", "TCU".
    bias : vector with a number per filter, or one number; 0 for none.
    Stride, DilationFactor : whole number, or one per convolved dimension (S.., then T).
    Padding : 0; "same" (output size is ceil(input size / Stride); the odd one goes to the end); "causal" (one
        dimension, all before it); p or (p1, .., pn), p at both ends of a dimension; or a 2-by-n matrix
        [[before1, .., beforen], [after1, .., aftern]].
    PaddingValue : a number, "symmetric-include-edge", "symmetric-exclude-edge" or "replicate".
    Returns a dlarray labelled as X (or with the order of X's dimensions), sizes
        floor((size + padding - ((k - 1) * DilationFactor + 1)) / Stride) + 1, F channels ordered by group.
    Raises LabelError, ShapeError and OptionError for what does not fit.
    Source: MathWorks, reference page "dlconv"; Dumoulin and Visin, A guide to convolution arithmetic (2016).

    >>> import numpy as np
    >>> X = dlarray(np.ones((28, 28, 1, 32), "float32"), "SSCB")
    >>> dlconv(X, np.ones((3, 3, 1, 16), "float32"), 0, Padding="same", Stride=2).shape
    (14, 14, 16, 32)
    """
    x, labels, is_formatted = read("dlconv", X, DataFormat)
    w = weights if isinstance(weights, DLArray) else dlarray(weights)
    if WeightsFormat is not None:
        w, w_labels, _ = read("dlconv", w, WeightsFormat, "weights", "WeightsFormat")
    else:
        w_labels = w._labels
    plan = _plan(
        x._value.spec.shape, labels, w._value.spec.shape, w_labels,
        frozen(Stride), frozen(DilationFactor), frozen(Padding), frozen(PaddingValue),
    )  # fmt: skip
    x = arranged(x, plan.x_order, plan.x_shape)
    w = arranged(w, plan.w_order, plan.w_shape)
    if plan.edges is not None:
        x = _with_edges(x, plan.padding, plan.edges)
    y = conv(x, w, stride=plan.stride, dilation=plan.dilation, padding=plan.zeros)
    try:
        y = add_bias("dlconv", y, bias, plan.y_shape[-1])
    except ShapeError as error:
        hint = _of_pytorch(w_labels, w.shape if isinstance(weights, DLArray) else np.shape(weights), x.shape[-1])
        raise (ShapeError(f"{error}{hint}") if hint else error) from None
    return give(returned(y, plan.y_shape, plan.y_order), labels, is_formatted, X)


class _Plan(NamedTuple):
    """How a dlconv becomes a conv: orders and shapes in and out, geometry, and what stands beyond the edges."""

    x_order: Order | None
    x_shape: Sizes
    w_order: Order | None
    w_shape: Sizes
    y_shape: Sizes
    y_order: Order | None
    stride: Sizes
    dilation: Sizes
    padding: Pads
    zeros: Pads  # the part of the padding that conv does itself
    edges: Any  # None: zeros


def _of_pytorch(labels: str, w_shape: Sizes, channels: int) -> str:
    """What to say where unlabelled filters may be laid out as PyTorch has them: (filters, channels, sizes ..)."""
    if labels or len(w_shape) < 3 or w_shape[1] != channels:
        return ""
    spatial = "S" * (len(w_shape) - 2)
    return f' Filters as PyTorch lays them out, (filters, channels, sizes ..), are told by WeightsFormat="UC{spatial}".'


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: Sizes, labels: str, w_shape: Sizes, w_labels: str, stride: Any, dilation: Any, padding: Any, value: Any
) -> _Plan:
    if "C" not in labels:
        raise LabelError(
            f'dlconv: X needs a C (channel) dimension; it has the labels "{labels}". Use for example "SSCB".'
        )
    spatial = [i for i, letter in enumerate(labels) if letter == "S"]
    given = w_labels
    w_labels = w_labels or _default_labels(len(spatial), w_shape)
    groups, filters, w_order, kernel, channels = _weight_order(labels, len(spatial), w_shape, w_labels)
    over = spatial + ([labels.index("T")] if "T" in w_labels else [])
    if not over:
        raise LabelError(
            f'dlconv: X ("{labels}") has no S (spatial) dimension to convolve over. To convolve over T (time), label '
            'the weights with a T, for example WeightsFormat="TCU".'
        )
    if len(over) > 3:
        raise LabelError(
            f'dlconv: convolves over up to 3 dimensions; X ("{labels}") has {len(over)}. Label the others U.'
        )
    c = labels.index("C")
    if shape[c] != groups * channels:
        each = f" in {groups} groups of {channels}" if groups > 1 else ""
        raise ShapeError(
            f"dlconv: X {describe(shape, labels)} has {shape[c]} channels, weights {describe(w_shape)} take "
            f"{groups * channels}{each}. Weights are (filter sizes.., channels / groups, filters / groups, groups)."
            f"{_of_pytorch(given, w_shape, shape[c])}"
        )
    others = [i for i in memory_order(labels) if i not in over and i != c]
    sizes = tuple([shape[i] for i in over])
    n = len(over)
    stride = _numbers("Stride", stride, n)
    dilation = _numbers("DilationFactor", dilation, n)
    pads = _pads(padding, sizes, kernel, stride, dilation)
    out = out_sizes(sizes, kernel, stride, dilation, pads)
    if min(out) < 1:
        raise ShapeError(
            f"dlconv: a filter of size {describe(kernel)} with DilationFactor {dilation} reaches beyond the input of "
            f'size {describe(sizes)}, padding {pads} included. Pad more, for example Padding="same".'
            f"{_of_pytorch(given, w_shape, shape[c])}"
        )
    edges = _edges(value, pads, sizes)
    order = (*others, *over, c)
    kept = tuple([shape[i] for i in others])
    return _Plan(
        unless_same(order), (math.prod(kept), *sizes, shape[c]),
        w_order, (groups, *kernel, channels, filters),
        (*kept, *out, groups * filters), unless_same(inverse(order)),
        stride, dilation, pads, pads if edges is None else ((0, 0),) * n, edges,
    )  # fmt: skip


def _default_labels(n: int, shape: Sizes) -> str:
    """Labels of unlabelled weights [k1..kn, C/G, F/G, G]."""
    labels = "S" * n + "CUU"
    if any(size != 1 for size in shape[len(labels) :]):
        raise ShapeError(
            f"dlconv: weights {describe(shape)} have {len(shape)} dimensions; for X with {n} spatial ones they are "
            f"[{n} filter sizes, channels / groups, filters / groups, groups]. Give at most {n + 3}."
        )
    return labels


def _weight_order(labels: str, n: int, shape: Sizes, w_labels: str) -> tuple[int, int, Order | None, Sizes, int]:
    """(groups, filters per group, order that gives [G, k.., C/G, F/G], kernel sizes, channels per group)."""
    found = {letter: [i for i, mine in enumerate(w_labels) if mine == letter] for letter in "SCBTU"}
    if found["B"] or len(found["C"]) != 1 or len(found["U"]) > 2:
        raise LabelError(
            "dlconv: weights have S or T for filter sizes, one C for the channels per group, U for the filters per "
            f'group and a second U for the groups; got "{w_labels}". Use for example "SSCU".'
        )
    if len(found["S"]) > n or (found["T"] and "T" not in labels):
        raise LabelError(
            f'dlconv: weights "{w_labels}" are to slide over dimensions that X ("{labels}") has not. Give the weights '
            "at most as many S as X has, and a T only if X has one."
        )
    ndim = len(shape)
    shape = shape + (1,) * (len(w_labels) - ndim)  # dimensions that are not there have size 1
    order = found["U"][1:] + found["S"] + found["T"] + found["C"] + found["U"][:1]
    order = [i for i in order if i < ndim] + list(range(len(w_labels), ndim))
    kernel = [shape[i] for i in found["S"]] + [1] * (n - len(found["S"])) + [shape[i] for i in found["T"]]
    filters = shape[found["U"][0]] if found["U"] else 1
    groups = shape[found["U"][1]] if len(found["U"]) > 1 else 1
    return groups, filters, unless_same(tuple(order)), tuple(kernel), shape[found["C"][0]]


def _numbers(option: str, value: Any, n: int, least: int = 1) -> Sizes:
    """One whole number per convolved dimension."""
    numbers = value if isinstance(value, tuple) else (value,) * n
    if len(numbers) == 1 and isinstance(numbers[0], tuple):  # a row vector as a 1-by-n matrix
        numbers = numbers[0]
    if len(numbers) != n or not all(isinstance(x, (int, float)) and x == int(x) and x >= least for x in numbers):
        many = f", or {n} of them" if n > 1 else ""
        raise OptionError(f"dlconv: {option} is a whole number >= {least}{many}; got {value!r}.")
    return tuple([int(x) for x in numbers])


def _pads(value: Any, sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pads:
    n = len(sizes)
    if isinstance(value, str):
        if value.lower() not in ("same", "causal"):
            raise OptionError(
                'dlconv: Padding is "same", "causal", a whole number >= 0, one per convolved dimension, or a 2-by-n '
                f"matrix; got {value!r}."
            )
        if value.lower() == "same":
            totals = [
                max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                for size, k, s, d in zip(sizes, kernel, stride, dilation)
            ]
            return tuple([(p // 2, p - p // 2) for p in totals])
        if n != 1:
            raise OptionError(
                f'dlconv: Padding="causal" is for convolutions over one dimension; this one has {n}. '
                f"Use a 2-by-{n} matrix."
            )
        return (((kernel[0] - 1) * dilation[0], 0),)
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(row, tuple) for row in value):
        before, after = [_numbers("each row of Padding", row, n, 0) for row in value]
        return tuple(zip(before, after))
    if isinstance(value, tuple) and len(value) != n and not (len(value) == 1 and isinstance(value[0], tuple)):
        raise OptionError(
            f"dlconv: Padding as a vector has a number per convolved dimension, {n} here; got {value!r}. For different "
            f"numbers before and after, give a 2-by-{n} matrix: [[before..], [after..]]."
        )
    return tuple([(p, p) for p in _numbers("Padding", value, n, 0)])


def _edges(value: Any, padding: Pads, sizes: Sizes) -> Any:
    """What stands in the padding: a number, one of EDGES, or None for zeros."""
    if isinstance(value, str):
        found = next((known for known in EDGES if known == value.lower()), None)
        if found is None:
            raise OptionError(f"dlconv: PaddingValue is a number or one of {', '.join(EDGES)}; got {value!r}.")
        value = found
    elif isinstance(value, tuple):
        raise OptionError(f"dlconv: PaddingValue is one number for all of the padding; got {value!r}.")
    if value == 0 or not any(map(any, padding)):
        return None
    for size, (lo, hi) in zip(sizes, padding):
        most = {INCLUDE_EDGE: size, EXCLUDE_EDGE: size - 1, REPLICATE: lo + hi if size else 0}.get(value, lo + hi)
        if max(lo, hi) > most:
            raise ShapeError(
                f'dlconv: PaddingValue="{value}" finds at most {most} elements to mirror where the padding asks for '
                f'{max(lo, hi)}. Pad less, or use "{REPLICATE}".'
            )
    return value


def _with_edges(x: DLArray, padding: Pads, value: Any) -> DLArray:
    """x [B, S.., C] padded with a number, with mirror images of itself or with its outermost elements."""
    for axis, (lo, hi) in enumerate(padding, 1):
        n = x.shape[axis]
        if value == INCLUDE_EDGE:
            before, after = part(x, axis, lo - 1, lo, -1), part(x, axis, n - 1, hi, -1)
        elif value == EXCLUDE_EDGE:
            before, after = part(x, axis, lo, lo, -1), part(x, axis, n - 2, hi, -1)
        elif value == REPLICATE:
            before, after = _repeated(part(x, axis, 0, 1), axis, lo), _repeated(part(x, axis, n - 1, 1), axis, hi)
        else:
            number = full(shape=(1,) * x.ndim, value=float(value), dtype=x.dtype.name, device=x.device)
            before, after = (_repeated(number, axis, count, x.shape) for count in (lo, hi))
        parts = [before] * (lo > 0) + [x] + [after] * (hi > 0)
        x = concatenate(*parts, axis=axis) if len(parts) > 1 else x
    return x


def _repeated(x: DLArray, axis: int, count: int, shape: Sizes | None = None) -> DLArray:
    """x with `count` elements along the axis instead of one, and otherwise the given shape."""
    shape = x.shape if shape is None else shape
    return broadcast(x, shape=(*shape[:axis], count, *shape[axis + 1 :]), dims=tuple(range(x.ndim)))
