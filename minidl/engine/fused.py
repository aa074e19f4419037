"""Fused: a contraction with loops in its slots, and the same one over finer dimensions.

A loop over an operand need not have that operand's dimensions: both are split until they agree, and so are the
subscripts of the contraction. All of that is about sizes and strides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from minidl.backends.loop import Access, Loop
from minidl.core.contraction import Contraction, Subscript
from minidl.engine.fuse import Task
from minidl.engine.graph import Id, Node
from minidl.engine.layout import Layout, contractions_of
from minidl.engine.loops import refined, split, with_access


@dataclasses.dataclass(frozen=True)
class Place:
    """An operand as subscripts see it: the sizes of its dimensions, and where its elements lie."""

    shape: tuple[int, ...]
    access: Access


@dataclasses.dataclass(frozen=True)
class Fused:
    """A contraction and the loops in its slots.

    places : of y, a and b; a's and b's are those of the arrays that are read, elements of which the loads change
    loads  : of a, of b: a loop over the operand's dimensions whose one store, to MADE, is the number that is multiplied
    tail   : a loop over y's dimensions. What it loads from y's place is the finished sum of products
    end    : a loop over y's dimensions, that does not move along those that sums are taken over
    behind : small loops, one after the other, when all of that is done
    """

    name: str
    dtype: str
    nests: tuple[Contraction, ...]
    places: tuple[Place, Place, Place]
    where: list[str]
    loads: tuple[Loop | None, Loop | None] = (None, None)
    tail: Loop | None = None
    end: Loop | None = None
    keeps_y: bool = True
    hidden: frozenset[Id] = frozenset()  # sums that only `end` reads
    behind: tuple[Loop, ...] = ()

    @property
    def y(self) -> Id:
        """The buffer of the sums of products, whether it is stored or not."""
        return self.places[0].access.buffer

    @property
    def sums(self) -> set[Id]:
        """The buffers of the tail's sums."""
        return {s.access.buffer for s in self.tail.stores if s.combine} if self.tail else set()

    @property
    def kept(self) -> tuple[int, ...]:
        """The dimensions of y that sums are not taken over."""
        strides = [s.access.strides for s in self.tail.stores if s.combine] if self.tail else []
        return tuple([d for d in range(len(self.places[0].shape)) if any(s[d] for s in strides)])

    @property
    def reads(self) -> set[Id]:
        found = {place.access.buffer for place in self.places[1:]}
        for loop in (*self.loads, self.tail, self.end, *self.behind):
            found |= loop.reads if loop else set()
        made = {self.y, *(y for loop in (self.tail, self.end, *self.behind) if loop for y in loop.writes)}
        return found - made

    @property
    def writes(self) -> list[Id]:
        found = [self.y] if self.keeps_y else []
        for loop in (self.tail, self.end):
            found += [y for y in loop.writes if y not in self.hidden] if loop else []
        return found + [y for loop in self.behind for y in loop.writes]

    def __str__(self) -> str:
        lines = [self.name]
        for letter, loop in zip("ab", self.loads):
            lines += [f"load of {letter}: {_texts(loop)}"] if loop else []
        lines += [f"then {_texts(self.tail)}"] if self.tail else []
        lines += [f"then per column {_texts(self.end)}"] if self.end else []
        lines += [f"at last {_texts(loop)}" for loop in self.behind]
        return "; ".join(lines)


def _texts(loop: Loop) -> str:
    texts = [f"t{i} = {step.text.format(*step.args)}" for i, step in enumerate(loop.steps) if step.text]
    texts += [f"{s.access.buffer} by {s.combine.format('', s.source).strip()}" for s in loop.stores if s.combine]
    return ", ".join(texts) or "a copy"


Objection = Callable[[Fused], str]  # a backend's: '' if it can do that


def fused_of(layout: Layout, task: Task) -> Fused | None:
    """A contraction as one with empty slots; None if the task is no contraction."""
    if isinstance(task.work, Fused):
        return task.work
    if not isinstance(task.work, Node):
        return None
    node = task.work
    nests = contractions_of(layout.graph, node)
    if not nests:
        return None
    places = [Place(layout.graph.specs[x].shape, layout.access[x]) for x in (*node.outputs, *node.reads)]
    y, a, b = (_plain(place) for place in places)
    dtype, where = layout.graph.specs[node.outputs[0]].dtype.name, [node.where] if node.where else []
    return Fused(node.op.name, dtype, tuple(map(_without_ones, nests)), (y, a, b), where)


def _plain(place: Place) -> Place:
    """The place with stride 0 along dimensions of size 1."""
    strides = tuple([0 if n == 1 else s for n, s in zip(place.shape, place.access.strides)])
    return Place(place.shape, dataclasses.replace(place.access, strides=strides))


def _without_ones(nest: Contraction) -> Contraction:
    """The nest with subscripts that do not name indices of size 1."""

    def changed(at: tuple[Subscript, ...]) -> tuple[Subscript, ...]:
        return tuple([Subscript(s.start, tuple([f for f in s.factors if nest.sizes[f[0]] != 1])) for s in at])

    return Contraction(nest.sizes, changed(nest.y), changed(nest.a), changed(nest.b))


# loops over an operand's dimensions -------------------------------------------------------------------------------
Parts = tuple[tuple[int, ...], ...]  # for each dimension the sizes that it is split into


def over(loop: Loop, access: Access, place: Place) -> tuple[Parts, Loop] | None:
    """The loop over the dimensions of a place, where `access`, one of the loop's, is the place's.

    The dimensions may have to be split: (sizes for each of them, the loop over all of these); None if it does not go.
    """
    if access.buffer != place.access.buffer or access.offset != place.access.offset or 0 in loop.sizes:
        return None
    strides = place.access.strides
    if any(s <= 0 and n != 1 for n, s in zip(place.shape, strides)) or any(s <= 0 for s in access.strides):
        return None
    loop_order = sorted(range(len(loop.sizes)), key=lambda i: -access.strides[i])
    dims = sorted([d for d, n in enumerate(place.shape) if n != 1], key=lambda d: -strides[d])
    ordered = with_access(
        loop, tuple([loop.sizes[i] for i in loop_order]), lambda s: tuple([s[i] for i in loop_order])
    )
    finer = refined(ordered.sizes, tuple([place.shape[d] for d in dims]))
    if finer is None:
        return None
    finest = split(ordered, finer)
    parts: list[tuple[int, ...]] = [(n,) for n in place.shape]
    numbers: dict[int, list[int]] = {}
    k = 0
    for d in dims:
        numbers[d], size = [], 1
        while size < place.shape[d]:
            numbers[d].append(k)
            size, k = size * finer[k], k + 1
        parts[d] = tuple([finer[i] for i in numbers[d]])
    order = [i for d in range(len(place.shape)) for i in numbers.get(d, [-1])]  # -1: a dimension of size 1
    sizes = tuple([1 if i < 0 else finer[i] for i in order])
    done = with_access(finest, sizes, lambda s: tuple([0 if i < 0 else s[i] for i in order]))
    wanted = Access(place.access.buffer, place.access.offset, _split_strides(place, parts))
    loaded = {s.access for s in done.steps if s.access is not None and s.access.buffer == access.buffer}
    stored = {s.access for s in done.stores if s.access.buffer == access.buffer}
    return (tuple(parts), done) if loaded | stored == {wanted} else None


def _split_strides(place: Place, parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple([s for stride, sizes in zip(place.access.strides, parts) for s in radix(sizes, stride)])


def radix(sizes: Sequence[int], stride: int = 1) -> list[int]:
    """The strides of a dimension's parts."""
    found: list[int] = []
    for n in reversed(sizes):
        found.append(stride if n != 1 else 0)
        stride *= n
    return found[::-1]


def split_loop(loop: Loop | None, parts: Parts) -> Loop | None:
    """A loop over an operand's dimensions over the parts of these."""
    if loop is None:
        return None
    sizes = tuple([n for ns in parts for n in ns])
    return with_access(loop, sizes, lambda s: tuple([x for k, ns in zip(s, parts) for x in radix(ns, k)]))


def split_fused(fused: Fused, k: int, parts: Parts) -> Fused | None:
    """The contraction with the dimensions of y, a or b (k = 0, 1, 2) split; None if its subscripts do not allow it."""
    if all(len(sizes) == 1 for sizes in parts):
        return fused
    nests = []
    for nest in fused.nests:
        found = split_nest(nest, k, fused.places[k].shape, parts)
        if found is None:
            return None
        nests.append(found)
    places, loads = list(fused.places), list(fused.loads)
    old = places[k]
    access = dataclasses.replace(old.access, strides=_split_strides(old, parts))
    places[k] = Place(tuple([n for sizes in parts for n in sizes]), access)
    tail, end = fused.tail, fused.end
    if k == 0:
        tail, end = split_loop(tail, parts), split_loop(end, parts)
    else:
        loads[k - 1] = split_loop(loads[k - 1], parts)
    return dataclasses.replace(
        fused, nests=tuple(nests), places=(places[0], places[1], places[2]), loads=(loads[0], loads[1]), tail=tail,
        end=end,
    )  # fmt: skip


def split_nest(nest: Contraction, k: int, shape: tuple[int, ...], parts: Parts) -> Contraction | None:
    """The nest with finer indices, so that each part of a dimension has subscripts of its own."""
    for d, sizes in enumerate(parts):
        if len(sizes) > 1:
            subscript = (nest.y, nest.a, nest.b)[k][d]
            digits = sorted(subscript.factors, key=lambda f: -f[1])
            ranges = [nest.sizes[i] for i, _ in digits]
            if subscript.start or [f for _, f in digits] != radix(ranges) or math.prod(ranges) != shape[d]:
                return None
            finer = refined(tuple(ranges), sizes)
            if finer is None:
                return None
            at = 0
            for i, _ in digits:
                mine, n = [], 1
                while n < nest.sizes[i]:
                    mine.append(finer[at])
                    n, at = n * finer[at], at + 1
                nest = _split_index(nest, i, mine)
    rows = [list(nest.y), list(nest.a), list(nest.b)]
    rows[k] = [s for d, sizes in enumerate(parts) for s in _parts_of(nest, rows[k][d], sizes)]
    return Contraction(nest.sizes, tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))


def _split_index(nest: Contraction, i: int, sizes: Sequence[int]) -> Contraction:
    """The nest with index i as the first of several, the others at the end."""
    if len(sizes) == 1:
        return nest
    names = [i, *range(len(nest.sizes), len(nest.sizes) + len(sizes) - 1)]
    ranges = list(nest.sizes) + list(sizes[1:])
    ranges[i] = sizes[0]

    def changed(at: tuple[Subscript, ...]) -> tuple[Subscript, ...]:
        found = []
        for s in at:
            factors: list[tuple[int, int]] = []
            for j, f in s.factors:
                factors += zip(names, radix(sizes, f)) if j == i else [(j, f)]
            found.append(Subscript(s.start, tuple(factors)))
        return tuple(found)

    return Contraction(tuple(ranges), changed(nest.y), changed(nest.a), changed(nest.b))


def _parts_of(nest: Contraction, subscript: Subscript, sizes: tuple[int, ...]) -> list[Subscript]:
    """The subscripts of a dimension's parts."""
    if len(sizes) == 1:
        return [subscript]
    digits = sorted(subscript.factors, key=lambda f: -f[1])
    found = []
    for n in sizes:
        mine: list[int] = []
        while math.prod([nest.sizes[i] for i in mine]) < n:
            mine.append(digits.pop(0)[0])
        found.append(Subscript(0, tuple(zip(mine, radix([nest.sizes[i] for i in mine])))))
    return found
