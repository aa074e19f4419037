"""winograd: sliding sums of 3 x 3 products with 2.25 times fewer multiplications.

A contraction whose two summed indices of size 3 slide along two others (a convolution with a 3 x 3 filter and stride 1,
or its derivative by its input) is, for each 2 x 2 tile of the result,

    Y = A' [ sum over channels of (G w G') * (B' x B) ] A        with the 4 x 4 tile x of the input,

a product per place of the tile instead of per tap. The three transforms are loops of additions, the sum over channels
is a contraction without taps. The derivative by the weights is the exact adjoint: G' [ sum (A y A') * (B' x B) ] G.
The pass looks at strides and sizes alone.
Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016), F(2 x 2, 3 x 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.spec import Spec
from minidl.engine.contract import Contract, Part
from minidl.engine.fuse import Schedule, Task
from minidl.engine.graph import Id
from minidl.engine.layout import Layout, dense

LEAST_PRODUCTS = 256  # channels times filters; below, the transforms cost more than they save

Dim = tuple[int, int, int, int]  # size, strides of y, a, b
Vector = list[Any]  # Temps, or None for 0


class Match(NamedTuple):
    """Which index is what, by number; x is the operand that is slid along."""

    taps: tuple[int, int]
    places: tuple[int, int]
    is_swapped: bool  # x is b
    is_weight_grad: bool


def winograd(schedule: Schedule) -> Schedule:
    """The schedule with such contractions replaced by their transforms."""
    tasks: list[Task] = []
    for task in schedule.tasks:
        work = task.work
        found = _match(work) if isinstance(work, Contract) and len(work.parts) == 1 else None
        if found is None:
            tasks.append(task)
        else:
            assert isinstance(work, Contract)
            make = _weight_grad if found.is_weight_grad else _forward
            tasks += [Task(x, x.reads, x.writes) for x in make(schedule.layout, work, found)]
    return Schedule(schedule.layout, tasks)


def _match(work: Contract) -> Match | None:
    part = work.parts[0]
    for is_swapped, is_weight_grad in itertools.product((False, True), repeat=2):
        dims = [_seen(d, is_swapped) for d in part.dims]
        tap_numbers = [i for i, d in enumerate(dims) if d[0] == 3 and bool(d[1]) == is_weight_grad and d[2]
                       and bool(d[3]) != is_weight_grad]  # fmt: skip
        place_numbers = [i for i, d in enumerate(dims) if d[0] >= 4 and d[0] % 2 == 0
                         and bool(d[1]) != is_weight_grad and d[2] and bool(d[3]) == is_weight_grad]  # fmt: skip
        for taps in itertools.combinations(tap_numbers, 2):
            for places in itertools.permutations(place_numbers, 2):
                is_sliding = all(abs(dims[t][2]) == dims[p][2] for t, p in zip(taps, places))
                if is_sliding and _pays(dims, taps + places, is_weight_grad):
                    return Match(taps, places, is_swapped, is_weight_grad)
    return None


def _seen(d: Dim, is_swapped: bool) -> Dim:
    return (d[0], d[1], d[3], d[2]) if is_swapped else d


def _beside(dims: Sequence[Dim], used: tuple[int, ...]) -> dict[str, list[int]]:
    """The indices that do not slide, by the pair of operands that move along them. One that moves along another number
    of operands (groups; an operand that is the same for all observations) has a name that no transform asks for."""
    found: dict[str, list[int]] = {}
    for i, (size, *strides) in enumerate(dims):
        if i not in used and size > 1:
            found.setdefault("".join([name for name, stride in zip("yxw", strides) if stride]), []).append(i)
    return found


def _pays(dims: Sequence[Dim], used: tuple[int, ...], is_weight_grad: bool) -> bool:
    """Whether there are products enough per transform, and every other index is one of channels, filters or
    observations. A tile of x serves all filters, a tile of the other operand of places (the result, or its gradient)
    all channels; observations make more tiles, but no tile cheaper."""
    beside = _beside(dims, used)
    if not set(beside) <= {"yx", "yw", "xw"}:
        return False
    channels, filters = (
        math.prod(dims[i][0] for i in beside.get(pair, ())) for pair in ("yx" if is_weight_grad else "xw", "yw")
    )
    return min(channels, filters) >= 16 and channels * filters >= LEAST_PRODUCTS


# one-dimensional transforms, over scalars of a loop ---------------------------------------------------------------
class _Scalars:
    """The steps of a loop under construction."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.steps = dtype, []  # type: tuple[str, list[Step]]

    def load(self, access: Access) -> Temp:
        self.steps.append(Step("", (), self.dtype, access=access))
        return Temp(len(self.steps) - 1)

    def make(self, text: str, *args: Any) -> Temp:
        self.steps.append(Step(text, args, self.dtype, self.dtype))
        return Temp(len(self.steps) - 1)

    def plus(self, a: Any, b: Any) -> Temp:
        return self.make("({0} + {1})", a, b)

    def minus(self, a: Any, b: Any) -> Temp:
        return self.make("({0} - {1})", a, b)

    def half(self, a: Any) -> Temp:
        return self.make("({0} * {1})", a, 0.5)


def _input(s: _Scalars, x: Vector) -> Vector:
    """B' x: 4 -> 4."""
    return [s.minus(x[0], x[2]), s.plus(x[1], x[2]), s.minus(x[2], x[1]), s.minus(x[1], x[3])]


def _weights(s: _Scalars, w: Vector) -> Vector:
    """G w: 3 -> 4."""
    ends = s.plus(w[0], w[2])
    return [w[0], s.half(s.plus(ends, w[1])), s.half(s.minus(ends, w[1])), w[2]]


def _output(s: _Scalars, m: Vector) -> Vector:
    """A' m: 4 -> 2."""
    return [s.plus(s.plus(m[0], m[1]), m[2]), s.minus(s.minus(m[1], m[2]), m[3])]


def _output_adjoint(s: _Scalars, y: Vector) -> Vector:
    """A y: 2 -> 4."""
    return [y[0], s.plus(y[0], y[1]), s.minus(y[0], y[1]), s.make("(-{0})", y[1])]


def _weights_adjoint(s: _Scalars, u: Vector) -> Vector:
    """G' u: 4 -> 3."""
    both, apart = s.half(s.plus(u[1], u[2])), s.half(s.minus(u[1], u[2]))
    return [s.plus(u[0], both), apart, s.plus(both, u[3])]


def _transform(
    dtype: str, sizes: tuple[int, ...], loads: Callable[[int, int], Access], count: int,
    along: Callable[[_Scalars, Vector], Vector], stores: Callable[[int, int], Access], where: list[str],
) -> Loop:  # fmt: skip
    """The loop that applies a transform along both directions of a square of count x count loaded elements."""
    s = _Scalars(dtype)
    square = [[s.load(loads(i, j)) for j in range(count)] for i in range(count)]
    columns = [along(s, [square[i][j] for i in range(count)]) for j in range(count)]
    rows = [along(s, [column[i] for column in columns]) for i in range(len(columns[0]))]
    found = [Store(rows[i][j], stores(i, j), dtype) for i in range(len(rows)) for j in range(len(rows[0]))]
    return Loop(sizes, s.steps, found, where)


# the tasks --------------------------------------------------------------------------------------------------------
class _Indices:
    """The indices of a contraction, with those that do not slide in two groups: observations and channels of x, and
    filters; and the flat accesses of a loop over some of them."""

    def __init__(self, layout: Layout, work: Contract, match: Match) -> None:
        part = work.parts[0]
        self.graph, self.work = layout.graph, work
        self.dims = [_seen(d, match.is_swapped) for d in part.dims]
        offsets = part.offsets
        self.y_start, self.x_start, self.w_start = (
            (offsets[0], offsets[2], offsets[1]) if match.is_swapped else offsets
        )  # fmt: skip
        self.y, self.x, self.w = (work.y, work.b, work.a) if match.is_swapped else (work.y, work.a, work.b)
        self.taps, self.places = match.taps, match.places
        beside = _beside(self.dims, self.taps + self.places)
        self.filters = beside["yw"]
        names = ("xw", "yx") if match.is_weight_grad else ("yx", "xw")
        self.batch, self.channels = (beside.get(name, []) for name in names)
        self.tiles = tuple(self.dims[p][0] // 2 for p in self.places)
        self.device = self.graph.specs[work.y].device
        self.dtype = self.graph.specs[work.y].dtype

    def sizes(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.dims[i][0] for i in numbers)

    def strides(self, numbers: Sequence[int], operand: int) -> tuple[int, ...]:
        """1: of y, 2: of x, 3: of w."""
        return tuple(self.dims[i][operand] for i in numbers)

    def buffer(self, shape: tuple[int, ...]) -> Id:
        """A new buffer."""
        return self.graph.new(Spec(shape, self.dtype, self.device))

    def tap(self, operand: int, t: int) -> tuple[int, int]:
        """(start, step) of an operand along tap t, counted so that x moves on as its places do."""
        i = self.taps[t]
        step = self.dims[i][operand]
        return (0, step) if self.dims[i][2] == self.dims[self.places[t]][2] else (2 * step, -step)


def _forward(layout: Layout, work: Contract, match: Match) -> list[Loop | Contract]:
    n, dtype = _Indices(layout, work, match), work.dtype
    batch, channels, filters = n.batch, n.channels, n.filters
    count = math.prod(n.tiles)
    # weights -> u [16, channels, filters]
    inner = n.sizes(channels) + n.sizes(filters)
    size = math.prod(inner)
    u = n.buffer((16, *inner))
    (start1, step1), (start2, step2) = n.tap(3, 0), n.tap(3, 1)
    along = n.strides(channels + filters, 3)
    weights = _transform(
        dtype, inner,
        lambda i, j: Access(n.w, n.w_start + start1 + start2 + i * step1 + j * step2, along), 3, _weights,
        lambda i, j: Access(u, (4 * i + j) * size, dense(inner, range(len(inner)))), work.where,
    )  # fmt: skip
    # tiles of x -> v [batch, 16, tiles, channels]
    v, load = _x_tiles(n, batch, channels)
    # m [batch, 16, tiles, filters]
    m_shape = (*n.sizes(batch), 16, *n.tiles, *n.sizes(filters))
    m = n.buffer(m_shape)
    ms = dense(m_shape, range(len(m_shape)))
    vs = dense(v.shape, range(len(v.shape)))
    us = dense((16, *inner), range(1 + len(inner)))
    b, c = len(batch), len(channels)
    dims: list[Dim] = [(n.dims[i][0], ms[k], vs[k], 0) for k, i in enumerate(batch)]
    dims += [(16, ms[b], vs[b], us[0]), (count, ms[b + 2], vs[b + 2], 0)]
    dims += [(n.dims[i][0], ms[b + 3 + k], 0, us[1 + c + k]) for k, i in enumerate(filters)]
    dims += [(n.dims[i][0], 0, vs[b + 3 + k], us[1 + k]) for k, i in enumerate(channels)]
    product = Contract(f"{work.name} in tiles", dtype, m, v.buffer, u, [Part(dims, (0, 0, 0))], work.where)
    # m -> tiles of y
    sizes = (*n.sizes(batch), *n.tiles, *n.sizes(filters))
    m_along = (*ms[:b], *ms[b + 1 :])
    y1, y2 = (n.dims[p][1] for p in n.places)
    y_along = (*n.strides(batch, 1), 2 * y1, 2 * y2, *n.strides(filters, 1))
    output = _transform(
        dtype, sizes, lambda i, j: Access(m, (4 * i + j) * ms[b], m_along), 4, _output,
        lambda i, j: Access(n.y, n.y_start + i * y1 + j * y2, y_along), work.where,
    )  # fmt: skip
    return [weights, load, product, output]


class _Tiles(NamedTuple):
    buffer: Id
    shape: tuple[int, ...]


def _x_tiles(n: _Indices, batch: list[int], channels: list[int]) -> tuple[_Tiles, Loop]:
    """The transformed 4 x 4 tiles of x, [batch, 16, tiles, channels], and the loop that makes them."""
    shape = (*n.sizes(batch), 16, *n.tiles, *n.sizes(channels))
    v, vs, b = n.buffer(shape), dense(shape, range(len(shape))), len(batch)
    x1, x2 = (n.dims[p][2] for p in n.places)
    start = n.x_start + sum(n.tap(2, t)[0] for t in (0, 1))
    along = (*n.strides(batch, 2), 2 * x1, 2 * x2, *n.strides(channels, 2))
    loop = _transform(
        n.work.dtype, (*n.sizes(batch), *n.tiles, *n.sizes(channels)),
        lambda i, j: Access(n.x, start + i * x1 + j * x2, along), 4, _input,
        lambda i, j: Access(v, (4 * i + j) * vs[b], (*vs[:b], *vs[b + 1 :])), n.work.where,
    )  # fmt: skip
    return _Tiles(v, shape), loop


def _weight_grad(layout: Layout, work: Contract, match: Match) -> list[Loop | Contract]:
    # here w is the gradient of the result (it moves along places), and y has the shape of the weights
    n, dtype = _Indices(layout, work, match), work.dtype
    batch, channels, filters = n.batch, n.channels, n.filters
    v, load = _x_tiles(n, batch, channels)
    b, c = len(batch), len(channels)
    # tiles of the gradient -> g [batch, 16, tiles, filters]
    g_shape = (*n.sizes(batch), 16, *n.tiles, *n.sizes(filters))
    g, gs = n.buffer(g_shape), dense(g_shape, range(len(g_shape)))
    w1, w2 = (n.dims[p][3] for p in n.places)
    along = (*n.strides(batch, 3), 2 * w1, 2 * w2, *n.strides(filters, 3))
    gradient = _transform(
        dtype, (*n.sizes(batch), *n.tiles, *n.sizes(filters)),
        lambda i, j: Access(n.w, n.w_start + i * w1 + j * w2, along), 2, _output_adjoint,
        lambda i, j: Access(g, (4 * i + j) * gs[b], (*gs[:b], *gs[b + 1 :])), work.where,
    )  # fmt: skip
    # u [16, channels, filters], summed over batch and tiles
    inner = n.sizes(channels) + n.sizes(filters)
    size, u = math.prod(inner), n.buffer((16, *inner))
    us, vs = dense((16, *inner), range(1 + len(inner))), dense(v.shape, range(len(v.shape)))
    dims: list[Dim] = [(n.dims[i][0], 0, vs[k], gs[k]) for k, i in enumerate(batch)]
    dims += [(16, us[0], vs[b], gs[b]), (math.prod(n.tiles), 0, vs[b + 2], gs[b + 2])]
    dims += [(n.dims[i][0], us[1 + k], vs[b + 3 + k], 0) for k, i in enumerate(channels)]
    dims += [(n.dims[i][0], us[1 + c + k], 0, gs[b + 3 + k]) for k, i in enumerate(filters)]
    product = Contract(f"{work.name} in tiles", dtype, u, v.buffer, g, [Part(dims, (0, 0, 0))], work.where)
    (start1, step1), (start2, step2) = n.tap(1, 0), n.tap(1, 1)
    target = n.strides(channels + filters, 1)
    weights = _transform(
        dtype, inner, lambda i, j: Access(u, (4 * i + j) * size, us[1:]), 4, _weights_adjoint,
        lambda i, j: Access(n.y, n.y_start + start1 + start2 + i * step1 + j * step2, target), work.where,
    )  # fmt: skip
    return [load, gradient, product, weights]
