"""Convolution (cross-correlation) over 1 to 3 spatial dimensions and its two derivatives.

    y[b, o, f] = sum over taps k and channels c of x[b, o * stride + k * dilation - lo, c] * w[g, k, c, f]

x: [B, S1..Sn, C]    w: [G, k1..kn, C/G, F/G]    y, g: [B, O1..On, F], the channels of a group side by side
stride, dilation: one number per dimension    padding: (lo, hi) per dimension, zeros; the size of y decides, not hi

All three directions are one loop, `_contract`: a matrix product whose rows lie anywhere, as tables of offsets say.

direction    rows                           sum over                          columns
conv         output pixels                  taps, channels of x               channels of y
input_grad   input pixels                   taps that reach them, ch. of g    channels of x (weights transposed)
weight_grad  weights: taps, channels of x   output pixels, images             channels of g

The borders are no special case: zeros are laid around x (or g) in scratch memory first, nothing else is copied.
Channel-wise convolutions (C/G = F/G = 1) take all channels as columns of one group and multiply element by element.
Source: Dumoulin & Visin, A guide to convolution arithmetic for deep learning (2016).
"""

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .threads import parallel_for, ranged
from .vector import ROWS, VECTOR_BYTES, lanes, multiply_add, store, zeros

Array = np.ndarray
Arrays = tuple[np.ndarray, ...]
Numbers = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]
Scratch = tuple[tuple[Numbers, DTypeLike], ...]  # shape and dtype of each array

_GRAIN = 200_000  # multiply-adds worth a hand-over to another thread
_TILES = 64  # so many independent blocks are enough for any machine


class _Plan(NamedTuple):
    """Where everything lies, for one image and one group; offsets count elements.

    Row r of the result stands at y_rows[r]; it is the sum over taps t and i < run of
    x[x_rows[r] + x_taps[t] + i * x_step] * w[w_taps[t] + i * w_step : ... + columns].
    """

    y_rows: np.ndarray
    x_rows: np.ndarray
    blocks: np.ndarray  # [n, 4]: up to ROWS rows (start, stop) that share their taps (start, stop)
    x_taps: np.ndarray
    w_taps: np.ndarray
    run: int
    x_step: int
    w_step: int
    columns: int
    groups: tuple[int, int, int, int]  # how many, and elements from one to the next in the result, x and w
    padded: tuple[int, ...] | None  # spatial shape of x with its zeros, None: x as it is
    lo: tuple[int, ...]  # so many of them before x, along each dimension
    channelwise: bool | None  # True or None: x has a value for each column, or one for all


@ranged
def _contract(start, stop, y, x, w, y_rows, x_rows, blocks, x_taps, w_taps, steps, groups, images, channelwise):
    """Items: (columns, group, chunk of images, block of rows). The rest as in _Plan; channelwise: True or None."""
    run, x_step, w_step, columns = steps
    group_count, y_group, x_group, w_group = groups
    image_count, chunk_count, y_chunk, x_image, w_image = images  # w_image: 0 where all images share w
    width = lanes(y)
    item = start
    while item < stop:  # the blocks of this range that belong to one chunk, image by image while it is in the cache
        rest, block_start = divmod(item, len(blocks))
        rest, chunk = divmod(rest, chunk_count)
        panel, group = divmod(rest, group_count)
        block_stop = min(block_start + stop - item, len(blocks))
        item += block_stop - block_start
        column = panel * 2 * width
        count = columns - column
        y_start = chunk * y_chunk + group * y_group + column
        x_column = group * x_group + (0 if channelwise is None else column)
        first = chunk * image_count // chunk_count
        for image in range(first, (chunk + 1) * image_count // chunk_count):
            x_start, w_start = image * x_image + x_column, image * w_image + group * w_group + column
            for block in range(block_start, block_stop):
                # Each image has a sum of its own, added to the others' in memory: short sums round less.
                row, row_stop, tap, tap_stop = blocks[block, 0], blocks[block, 1], blocks[block, 2], blocks[block, 3]
                if count > width:
                    total = zeros(y, ROWS, 2)
                    for t in range(tap, tap_stop):
                        for i in range(run):
                            at, factor = x_start + x_taps[t] + i * x_step, w_start + w_taps[t] + i * w_step
                            total = multiply_add(total, x, at, x_rows, row, w, factor, count, channelwise)
                    store(total, y, y_start, y_rows, row, row_stop, count, image > first)
                else:
                    narrow = zeros(y, ROWS, 1)
                    for t in range(tap, tap_stop):
                        for i in range(run):
                            at, factor = x_start + x_taps[t] + i * x_step, w_start + w_taps[t] + i * w_step
                            narrow = multiply_add(narrow, x, at, x_rows, row, w, factor, count, channelwise)
                    store(narrow, y, y_start, y_rows, row, row_stop, count, image > first)


def _grid(counts, steps, start=0) -> np.ndarray:
    """Offsets start + sum of i_d * step_d of all points i of a grid, last dimension fastest."""
    offsets = np.array([start], np.int64)
    for count, step in zip(counts, steps, strict=True):
        offsets = np.add.outer(offsets, step * np.arange(count, dtype=np.int64)).ravel()
    return offsets


def _units(sizes, channels):
    """Elements from one pixel to the next, along each of the spatial dimensions."""
    return sizes[1] * sizes[2] * channels, sizes[2] * channels, channels


def _times(factors, others):
    return tuple(a * b for a, b in zip(factors, others, strict=True))


def _blocks(row_start, row_stop, tap_start, tap_stop):
    return [(row, min(row + ROWS, row_stop), tap_start, tap_stop) for row in range(row_start, row_stop, ROWS)]


def _table(rows):
    """A table of rows that may be read a block at a time: the last entry is repeated."""
    return np.concatenate([rows, np.repeat(rows[-1:], ROWS - 1)])


def _is_channelwise(w_shape):
    """True or None, as _Plan wants it."""
    return w_shape[0] > 1 and w_shape[4:] == (1, 1) or None


def _groups(w_shape, *steps):
    """Groups to be computed one by one, with their steps; channel-wise, all are columns of one."""
    return (1, 0, 0, 0) if _is_channelwise(w_shape) else (w_shape[0], *steps)


def _reach(x_size, w_shape, y_size, stride, dilation, lo):
    """Spatial shape of the part of x, with its zeros, that the outputs read; None if x itself can be read."""
    dimensions = zip(y_size, w_shape[1:4], stride, dilation, strict=True)
    reach = tuple(max((o - 1) * s + (k - 1) * d + 1, 0) for o, k, s, d in dimensions)
    return None if lo == (0, 0, 0) and all(r <= s for r, s in zip(reach, x_size, strict=True)) else reach


@lru_cache(maxsize=64)
def _plan_conv(x_size, w_shape, y_size, stride, dilation, lo) -> _Plan:
    groups, *kernel, x_channels, y_channels = w_shape
    padded = _reach(x_size, w_shape, y_size, stride, dilation, lo)
    units = _units(padded or x_size, groups * x_channels)
    x_rows = _grid(y_size, _times(stride, units))
    y_rows = _grid(y_size, _units(y_size, groups * y_channels))
    channelwise = _is_channelwise(w_shape)
    taps, run, columns = kernel, x_channels, groups if channelwise else y_channels
    w_units = _units(kernel, x_channels * columns)
    if groups == 1 and dilation[2] == 1:  # channels of neighbouring taps are neighbours: one long run
        taps, run = [kernel[0], kernel[1], 1], kernel[2] * x_channels
    x_taps, w_taps = _grid(taps, _times(dilation, units)), _grid(taps, w_units)
    blocks = np.array(_blocks(0, len(x_rows), 0, len(x_taps)), np.int64)
    steps = 1, columns, columns, _groups(w_shape, y_channels, x_channels, prod(w_shape[1:]))
    return _Plan(_table(y_rows), _table(x_rows), blocks, x_taps, w_taps, run, *steps, padded, lo, channelwise)


def _phases(size, kernel, stride, dilation, lo):
    """Along one dimension, which outputs the pixels of x have met.

    Pixel i met tap k at output (i + lo - k * dilation) / stride, where that is whole. So the pixels phase + stride * j
    share their taps, and are met at j + offset. A list of (phase, number of pixels, [(kernel - 1 - k, offset)]).
    """
    phases = []
    for phase in range(min(stride, size)):
        met = [(place, *divmod(phase + lo - (kernel - 1 - place) * dilation, stride)) for place in range(kernel)]
        taps = [(place, offset) for place, offset, rest in met if rest == 0]
        phases.append((phase, len(range(phase, size, stride)), taps))
    return phases


@lru_cache(maxsize=64)
def _plan_input_grad(x_size, w_shape, y_size, stride, dilation, lo) -> _Plan:
    """Here the weights are transposed and turned round: tap k stands at place kernel - 1 - k."""
    groups, *kernel, x_channels, y_channels = w_shape
    phases = [_phases(*each) for each in zip(x_size, kernel, stride, dilation, lo, strict=True)]
    met = [[(offset, offset + n - 1) for _, n, taps in each for _, offset in taps] or [(0, 0)] for each in phases]
    first, last = [min(min(pair) for pair in each) for each in met], [max(max(pair) for pair in each) for each in met]
    padded, g_lo = None, (0, 0, 0)
    if any(low < 0 or high >= size for low, high, size in zip(first, last, y_size, strict=True)):
        padded = tuple(high - low + 1 for low, high in zip(first, last, strict=True))
        g_lo = tuple(-low for low in first)
    channelwise = _is_channelwise(w_shape)
    columns = groups if channelwise else x_channels
    x_units, g_units = _units(x_size, groups * x_channels), _units(padded or y_size, groups * y_channels)
    w_units = _units(kernel, y_channels * columns)
    is_merged = groups == 1 and stride[2] == dilation[2] == 1  # channels of neighbouring taps are neighbours
    run = y_channels * kernel[2] if is_merged else y_channels
    x_rows, g_rows, blocks, g_taps, w_taps = [], [], [], [], []
    row = 0
    for three in product(*phases):
        counts = [count for _, count, _ in three]
        x_rows.append(_grid(counts, _times(stride, x_units), sum(_times([phase for phase, _, _ in three], x_units))))
        g_rows.append(_grid(counts, g_units, sum(_times(g_lo, g_units))))
        tap = len(g_taps)
        for met_taps in product(three[0][2], three[1][2], three[2][2][:1] if is_merged else three[2][2]):
            w_taps.append(sum(_times([place for place, _ in met_taps], w_units)))
            g_taps.append(sum(_times([offset for _, offset in met_taps], g_units)))
        blocks += _blocks(row, row + len(x_rows[-1]), tap, len(g_taps))
        row += len(x_rows[-1])
    tables = [np.array(table, np.int64) for table in (blocks, g_taps, w_taps)]
    rows = _table(np.concatenate(x_rows)), _table(np.concatenate(g_rows))
    steps = 1, columns, columns, _groups(w_shape, x_channels, y_channels, prod(w_shape[1:]))
    return _Plan(*rows, *tables, run, *steps, padded, g_lo, channelwise)


@lru_cache(maxsize=64)
def _plan_weight_grad(x_size, w_shape, y_size, stride, dilation, lo) -> _Plan:
    groups, *kernel, x_channels, y_channels = w_shape
    padded = _reach(x_size, w_shape, y_size, stride, dilation, lo)
    units = _units(padded or x_size, groups * x_channels)
    channelwise = _is_channelwise(w_shape)
    columns = groups if channelwise else y_channels
    x_rows = _grid([*kernel, x_channels], [*_times(dilation, units), 1])
    y_rows = columns * np.arange(len(x_rows), dtype=np.int64)
    lines, g_units = [y_size[0], y_size[1], 1], _units(y_size, groups * y_channels)
    x_taps, g_taps = _grid(lines, _times(stride, units)), _grid(lines, g_units)
    blocks = np.array(_blocks(0, len(x_rows), 0, len(x_taps)), np.int64)
    steps = stride[2] * units[2], g_units[2], columns, _groups(w_shape, prod(w_shape[1:]), x_channels, y_channels)
    return _Plan(_table(y_rows), _table(x_rows), blocks, x_taps, g_taps, y_size[2], *steps, padded, lo, channelwise)


def _canonical(x_shape, w_shape, y_shape, stride, dilation, padding):
    """Arguments of the _plan functions: three spatial dimensions, no batch."""
    missing = 5 - len(x_shape)
    ones, lo = (1,) * missing, (0,) * missing + tuple(low for low, _ in padding)
    x_size, w_shape, y_size = (*ones, *x_shape[1:-1]), (w_shape[0], *ones, *w_shape[1:]), (*ones, *y_shape[1:-1])
    return x_size, w_shape, y_size, (*ones, *stride), (*ones, *dilation), lo


def _padded_shape(plan, x_shape):
    return (0,) if plan.padded is None else (x_shape[0], *plan.padded, x_shape[-1])


def _with_zeros(plan, x, space):
    """x with the zeros that the plan wants around it, in memory `space`."""
    if plan.padded is None:
        return x
    y = space.reshape(x.shape[0], *plan.padded, x.shape[-1])
    x = x.reshape(x.shape[0], *(1,) * (5 - x.ndim), *x.shape[1:])
    here, there = [slice(None)], [slice(None)]
    for size, whole, lo in zip(x.shape[1:-1], plan.padded, plan.lo, strict=True):
        start, first = max(lo, 0), max(-lo, 0)
        count = max(min(whole - start, size - first), 0)
        here.append(slice(start, start + count))
        there.append(slice(first, first + count))
    y[...] = 0
    y[tuple(here)] = x[tuple(there)]
    return space


def _run(plan, y, x, w, images, chunks, image_steps):
    """Compute what the plan describes, for all groups, and for `images` images in `chunks` sums."""
    wide = 2 * VECTOR_BYTES // y.itemsize
    count = -(-plan.columns // wide) * plan.groups[0] * chunks * len(plan.blocks)
    work = ROWS * wide * plan.run * len(plan.x_taps) * (images // chunks)
    steps, counts = (plan.run, plan.x_step, plan.w_step, plan.columns), (images, chunks, *image_steps)
    arrays = y.reshape(-1), x.reshape(-1), w.reshape(-1), *plan[:5]
    parallel_for(_contract, count, 1 + _GRAIN // (work + 1), *arrays, steps, plan.groups, counts, plan.channelwise)


def _is_empty(result, *factors):
    """True, with result 0, where there is nothing to add up."""
    if result.size and all(factor.size for factor in factors):
        return False
    result[...] = 0
    return True


def conv_scratch(
    y: Numbers, x: Numbers, w: Numbers, *, dtype: DTypeLike, stride: Numbers, dilation: Numbers, padding: Padding
) -> Scratch:
    """Scratch of `conv` for arrays of these shapes: ((shape, dtype), ...)."""
    plan = _plan_conv(*_canonical(x, w, y, stride, dilation, padding))
    return (_padded_shape(plan, x), dtype), (w if plan.channelwise else (0,), dtype)


def conv(
    y: Array, x: Array, w: Array, *, stride: Numbers, dilation: Numbers, padding: Padding, scratch: Arrays = ()
) -> None:
    """y[b, o, f] = sum over k, c of x[b, o * stride + k * dilation - lo, c] * w[g, k, c, f]."""
    if _is_empty(y, x, w):
        return
    plan = _plan_conv(*_canonical(x.shape, w.shape, y.shape, stride, dilation, padding))
    space, turned = scratch
    x = _with_zeros(plan, x, space)
    if plan.channelwise:  # taps first
        np.copyto(turned.reshape(-1, len(w)), w.reshape(len(w), -1).T)
        w = turned
    images = len(y)
    _run(plan, y, x, w, images, images, (y.size // images, x.size // images, 0))


def conv_input_grad_scratch(
    x: Numbers, g: Numbers, w: Numbers, *, dtype: DTypeLike, stride: Numbers, dilation: Numbers, padding: Padding
) -> Scratch:
    """Scratch of `conv_input_grad` for arrays of these shapes: ((shape, dtype), ...)."""
    plan = _plan_input_grad(*_canonical(x, w, g, stride, dilation, padding))
    return (_padded_shape(plan, g), dtype), (w, dtype)


def conv_input_grad(
    x: Array, g: Array, w: Array, *, stride: Numbers, dilation: Numbers, padding: Padding, scratch: Arrays = ()
) -> None:
    """x[b, i, c] = sum over o, k, f with o * stride + k * dilation - lo = i of g[b, o, f] * w[g, k, c, f].

    The derivative of sum(g * conv(x, w)) with respect to x; x is the result, of the input's shape.
    """
    if _is_empty(x, g, w):
        return
    plan = _plan_input_grad(*_canonical(x.shape, w.shape, g.shape, stride, dilation, padding))
    space, turned = scratch
    g = _with_zeros(plan, g, space)
    backward = np.flip(w, tuple(range(1, w.ndim - 2)))
    if plan.channelwise:  # taps first
        np.copyto(turned.reshape(-1, len(w)), backward.reshape(len(w), -1).T)
    else:
        np.copyto(turned.reshape(*w.shape[:-2], w.shape[-1], w.shape[-2]), backward.swapaxes(-1, -2))
    images = len(x)
    _run(plan, x, g, turned, images, images, (x.size // images, g.size // images, 0))


def conv_weight_grad_scratch(
    w: Numbers, g: Numbers, x: Numbers, *, dtype: DTypeLike, stride: Numbers, dilation: Numbers, padding: Padding
) -> Scratch:
    """Scratch of `conv_weight_grad` for arrays of these shapes: ((shape, dtype), ...)."""
    plan = _plan_weight_grad(*_canonical(x, w, g, stride, dilation, padding))
    tiles = -(-plan.columns * np.dtype(dtype).itemsize // (2 * VECTOR_BYTES)) * plan.groups[0] * len(plan.blocks)
    chunks = max(1, min(x[0], 16, -(-_TILES // tiles))) if tiles else 1
    return (_padded_shape(plan, x), dtype), ((chunks, *w), dtype)


def conv_weight_grad(
    w: Array, g: Array, x: Array, *, stride: Numbers, dilation: Numbers, padding: Padding, scratch: Arrays = ()
) -> None:
    """w[g, k, c, f] = sum over b, o of x[b, o * stride + k * dilation - lo, c] * g[b, o, f].

    The derivative of sum(g * conv(x, w)) with respect to w; w is the result, of the weights' shape.
    """
    if _is_empty(w, g, x):
        return
    plan = _plan_weight_grad(*_canonical(x.shape, w.shape, g.shape, stride, dilation, padding))
    space, sums = scratch
    x = _with_zeros(plan, x, space)
    images = len(x)
    _run(plan, sums, x, g, images, len(sums), (w.size, x.size // images, g.size // images))
    if plan.channelwise:  # the sums have taps first
        np.add.reduce(sums.reshape(len(sums), -1, len(w)), axis=0, out=w.reshape(len(w), -1).T)
    else:
        np.add.reduce(sums, axis=0, out=w)
