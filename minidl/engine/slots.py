"""slots: neighbours of contractions that are computed within them, so that fewer kernels wait for each other.

A contraction has four places for loops, all of them about strides:

    load of a, of b   what makes an operand is computed of every element when it is read, if that costs less than a
                      kernel of its own and the memory it fills
    tail              what follows for each element of the result, and sums of that over everything but the columns
    end               what follows for each column, once its sums are there

So bias and batch statistics end up where a convolution stores its result, and normalisation and activation where the
next one reads it. On the CPU `tails`, `recompute` and `phases` do the like with registers and caches.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.contraction import Contraction, Subscript
from minidl.core.op import KERNEL, REDUCE
from minidl.core.spec import DOUBLE, SINGLE, Spec
from minidl.engine.fuse import Schedule, Task, array_count
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import Layout, contractions_of
from minidl.engine.loops import joined, kept_stores, merged, refined, split, with_access
from minidl.engine.passes import splice

SUM, COPY = "({0} + {1})", "{0}"
SUMS = {(SUM, SINGLE.name), (SUM, DOUBLE.name)}
MADE = Id(-1)  # the buffer that a load's loop "stores" its number in
MOST_STEPS = 64  # of a loop in a slot
MOST_ARRAYS = 40  # of a contraction and its slots
MOST_LARGE = 2  # arrays that are read for an operand, element by element

# Rough numbers of a large GPU, to weigh a kernel against work that is done several times.
LAUNCH = 3500.0  # nanoseconds for a kernel that others wait for: the gap before it, its beginning and its end
MEMORY = 2500.0  # bytes of memory read or written in a nanosecond
CACHE = 10000.0  # bytes read again from a cache
WORK = 20000.0  # operations
SECTOR = 32  # bytes that come together
COSTLY = re.compile(r"/|\b(?!(?:where|maximum|minimum|fmax|fmin|fabs|cast)\()[a-z_]\w*\(")  # more than one operation
SIDE = 64  # rows or columns of a contraction's tile, about: so many share what is read


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


def slotted(schedule: Schedule, objection: Objection) -> Schedule:
    """The schedule with loops in the slots of contractions, wherever that saves time and the backend can do it."""
    layout = schedule.layout
    outputs = {layout.access[y].buffer for y in layout.graph.outputs}
    tasks = _trimmed(_with_tails(_sooner(schedule.tasks), layout, objection), outputs)
    tasks = _trimmed(_with_loads(tasks, layout, outputs, objection), outputs)
    return Schedule(layout, tasks)


def _task(work: Any) -> Task:
    return Task(work, work.reads, work.writes)


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


def _over(loop: Loop, access: Access, place: Place) -> tuple[Parts, Loop] | None:
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
    return tuple([s for stride, sizes in zip(place.access.strides, parts) for s in _radix(sizes, stride)])


def _radix(sizes: Sequence[int], stride: int = 1) -> list[int]:
    """The strides of a dimension's parts."""
    found: list[int] = []
    for n in reversed(sizes):
        found.append(stride if n != 1 else 0)
        stride *= n
    return found[::-1]


def _split_loop(loop: Loop | None, parts: Parts) -> Loop | None:
    """A loop over an operand's dimensions over the parts of these."""
    if loop is None:
        return None
    sizes = tuple([n for ns in parts for n in ns])
    return with_access(loop, sizes, lambda s: tuple([x for k, ns in zip(s, parts) for x in _radix(ns, k)]))


def _split_fused(fused: Fused, k: int, parts: Parts) -> Fused | None:
    """The contraction with the dimensions of y, a or b (k = 0, 1, 2) split; None if its subscripts do not allow it."""
    if all(len(sizes) == 1 for sizes in parts):
        return fused
    nests = []
    for nest in fused.nests:
        found = _split_nest(nest, k, fused.places[k].shape, parts)
        if found is None:
            return None
        nests.append(found)
    places, loads = list(fused.places), list(fused.loads)
    old = places[k]
    access = dataclasses.replace(old.access, strides=_split_strides(old, parts))
    places[k] = Place(tuple([n for sizes in parts for n in sizes]), access)
    tail, end = fused.tail, fused.end
    if k == 0:
        tail, end = _split_loop(tail, parts), _split_loop(end, parts)
    else:
        loads[k - 1] = _split_loop(loads[k - 1], parts)
    return dataclasses.replace(
        fused, nests=tuple(nests), places=(places[0], places[1], places[2]), loads=(loads[0], loads[1]), tail=tail,
        end=end,
    )  # fmt: skip


def _split_nest(nest: Contraction, k: int, shape: tuple[int, ...], parts: Parts) -> Contraction | None:
    """The nest with finer indices, so that each part of a dimension has subscripts of its own."""
    for d, sizes in enumerate(parts):
        if len(sizes) > 1:
            subscript = (nest.y, nest.a, nest.b)[k][d]
            digits = sorted(subscript.factors, key=lambda f: -f[1])
            ranges = [nest.sizes[i] for i, _ in digits]
            if subscript.start or [f for _, f in digits] != _radix(ranges) or math.prod(ranges) != shape[d]:
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
                factors += zip(names, _radix(sizes, f)) if j == i else [(j, f)]
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
        found.append(Subscript(0, tuple(zip(mine, _radix([nest.sizes[i] for i in mine])))))
    return found


# sums that need not wait ------------------------------------------------------------------------------------------
def _sooner(tasks: Sequence[Task]) -> list[Task]:
    """Sums of a loop join the one that makes what they are taken of, if the rest of their loop waits for more."""
    tasks = list(tasks)
    for k, task in enumerate(tasks):
        if not isinstance(task.work, Loop) or len(task.work.stores) < 2:
            continue
        for x in [s.access.buffer for s in task.work.stores if s.combine]:
            rest = tasks[k].work
            assert isinstance(rest, Loop)
            part = kept_stores(rest, {x})
            i = max([i for i in range(k) if not part.reads.isdisjoint(tasks[i].writes)], default=None)
            if len(rest.stores) < 2 or i is None:
                continue
            before = tasks[i].work
            both = joined(before, part) if isinstance(before, Loop) else None
            if both is not None and array_count(both) <= MOST_ARRAYS:
                tasks[i] = _task(both)
                tasks[k] = _task(merged(kept_stores(rest, set(rest.writes) - {x})))
    return tasks


# tails and ends ---------------------------------------------------------------------------------------------------
def _with_tails(tasks: list[Task], layout: Layout, objection: Objection) -> list[Task]:
    """Loops after contractions in their tails and ends, each where everything that it reads is there: of several that
    can take a loop, that is the one that has to wait for most."""
    k = 0
    while k < len(tasks):
        loop = tasks[k].work
        if isinstance(loop, Loop):
            makers = [c for c in range(k) if not loop.reads.isdisjoint(tasks[c].writes)]
            level = _levels(tasks[:k]) if len(makers) > 1 else [0] * k
            for c in sorted(makers, key=lambda c: (level[c], c), reverse=True):
                fused, at = fused_of(layout, tasks[c]), _moment(tasks, c, k)
                if fused is None or at is None:
                    continue
                found = _absorbed(fused, loop, objection)
                if found is not None:
                    fused, rest = found
                    tasks[k : k + 1] = [] if rest is None else [_task(rest)]
                    tasks.insert(at + 1, _task(fused))
                    del tasks[c]
                    k -= rest is None
                    break
        k += 1
    return tasks


def _levels(tasks: list[Task]) -> list[int]:
    """How many tasks, one after the other, make what each one reads."""
    made: dict[Id, int] = {}
    found = []
    for task in tasks:
        found.append(max([made.get(x, 0) for x in task.reads], default=0))
        made.update(dict.fromkeys(task.writes, found[-1] + 1))
    return found


def _moment(tasks: list[Task], c: int, k: int) -> int | None:
    """The task after which task c can run together with the later task k; None if others stand between them."""
    at = max([i for i in range(c + 1, k) if not tasks[k].reads.isdisjoint(tasks[i].writes)], default=c)
    is_free = all(tasks[i].reads.isdisjoint(tasks[c].writes) for i in range(c + 1, at + 1))
    return at if is_free else None


def _absorbed(fused: Fused, loop: Loop, objection: Objection) -> tuple[Fused, Loop | None] | None:
    """The contraction with a loop in its tail or its end, and what of the loop has no place there."""
    wholes = {s.access.buffer for s in loop.stores if not s.combine}
    columns = {s.access.buffer for s in loop.stores if any(s.access.strides)}
    for some in dict.fromkeys(frozenset(x) for x in (loop.writes, columns, wholes) if x):
        part, rest = _parted(loop, some)
        for found in (_with_tail(fused, part), _with_end(fused, part)):
            if found is not None and _fits(found) and not objection(found):
                where = list(dict.fromkeys([*found.where, *loop.where]))
                return dataclasses.replace(found, where=where), rest
    return None


def _parted(loop: Loop, some: frozenset[Id]) -> tuple[Loop, Loop | None]:
    """The loop as two: one that makes some of its results, and one that makes the others, reading these."""
    others = set(loop.writes) - some
    if not others:
        return loop, None
    steps = list(loop.steps)
    for s in loop.stores:
        step = steps[s.source]
        if s.access.buffer in some and not s.combine and step.access is None and step.dtype == s.dtype:
            steps[s.source] = Step("", (), s.dtype, access=s.access)
    return kept_stores(loop, set(some)), kept_stores(dataclasses.replace(loop, steps=steps), others)


def _fits(fused: Fused) -> bool:
    loops = [loop for loop in (*fused.loads, fused.tail, fused.end) if loop is not None]
    is_small = all(len(x.steps) <= MOST_STEPS for x in loops) and sum(map(array_count, loops)) <= MOST_ARRAYS
    return is_small and all(load is None or len(_large(load)) <= MOST_LARGE for load in fused.loads)


def _large(loop: Loop) -> set[Access]:
    """What a loop loads for each iteration anew."""
    found = {s.access for s in loop.steps if s.access is not None}
    return {a for a in found if all(s for s, n in zip(a.strides, loop.sizes) if n != 1)}


def _with_tail(fused: Fused, loop: Loop) -> Fused | None:
    later = {*fused.sums, *(fused.end.writes if fused.end else [])}
    if later & loop.reads or any(s.combine and (s.combine, s.dtype) not in SUMS for s in loop.stores):
        return None
    y = fused.places[0]
    places = {fused.y: y}
    if fused.tail is not None:
        places.update({s.access.buffer: Place(y.shape, s.access) for s in fused.tail.stores if not s.combine})
    for access in [s.access for s in loop.steps if s.access is not None]:
        over = _over(loop, access, places[access.buffer]) if access.buffer in places else None
        if over is not None:
            parts, mine = over
            finer = _split_fused(fused, 0, parts)
            if finer is None:
                return None
            tail = mine if finer.tail is None else joined(finer.tail, mine)
            return dataclasses.replace(finer, tail=tail) if tail is not None and _is_tail(finer, tail) else None
    return None


def _is_tail(fused: Fused, tail: Loop) -> bool:
    """Whether the loop loads the sums of products as they lie, and either stores every element or sums up to one place
    for each set of subscripts of the same dimensions."""
    shape = fused.places[0].shape
    if any(s.access.buffer == fused.y and s.access != fused.places[0].access for s in tail.steps if s.access):
        return False
    kept = set()
    for s in tail.stores:
        moves = tuple([d for d, n in enumerate(shape) if n != 1 and s.access.strides[d]])
        if s.combine:
            kept.add(moves)
        elif len(moves) != sum(n != 1 for n in shape):
            return False
    return len(kept) <= 1 and () not in kept


def _with_end(fused: Fused, loop: Loop) -> Fused | None:
    """The contraction with a loop over the columns behind its sums."""
    if fused.tail is None or not fused.sums or any(s.combine for s in loop.stores):
        return None
    kept, shape = fused.kept, fused.places[0].shape
    if loop.reads & {fused.y, *(s.access.buffer for s in fused.tail.stores if not s.combine)}:
        return None
    places = {s.access.buffer: s.access for s in fused.tail.stores if s.combine}
    if fused.end is not None:
        places.update({s.access.buffer: s.access for s in fused.end.stores})
    for access in [s.access for s in loop.steps if s.access is not None]:
        if access.buffer not in places:
            continue
        source = places[access.buffer]
        place = Place(tuple([shape[d] for d in kept]), _along(source, kept))
        over = _over(loop, access, place)
        if over is None or any(len(sizes) != 1 for sizes in over[0]):
            return None
        mine = with_access(
            over[1], shape, lambda s: tuple([s[kept.index(d)] if d in kept else 0 for d in range(len(shape))])
        )
        end = mine if fused.end is None else joined(fused.end, mine)
        reads = [s.access for s in end.steps if s.access is not None] if end else []
        if end is None or any(a != places.get(a.buffer, a) for a in reads):
            return None
        return dataclasses.replace(fused, end=end)
    return None


def _along(access: Access, dims: Sequence[int]) -> Access:
    return Access(access.buffer, access.offset, tuple([access.strides[d] for d in dims]))


# loads --------------------------------------------------------------------------------------------------------------
def _with_loads(tasks: list[Task], layout: Layout, outputs: set[Id], objection: Objection) -> list[Task]:
    """Operands made of what they are made of when they are read, if nobody needs them otherwise and that is quicker."""
    tasks = list(tasks)
    for m, task in enumerate(tasks):
        if not isinstance(task.work, Loop):
            continue
        for x in list(task.writes):
            maker = tasks[m].work
            if x in outputs or not isinstance(maker, Loop):
                continue
            readers = [k for k in range(m + 1, len(tasks)) if x in tasks[k].reads]
            works = [fused_of(layout, tasks[k]) or tasks[k].work for k in readers]
            chain = kept_stores(maker, {x})
            if chain.stores[0].combine or not all(chain.stores[0].access.strides):
                continue
            changed = _with_chain_in_each(works, chain, x, len(maker.stores) == 1, objection)
            if changed is None:
                continue
            for k, work in zip(readers, changed):
                tasks[k] = _task(work)
            tasks[m] = _task(merged(kept_stores(maker, set(maker.writes) - {x})))
    return [task for task in tasks if task.writes]


def _with_chain_in_each(
    works: list[Any], chain: Loop, x: Id, is_gone: bool, objection: Objection
) -> list[Any] | None:
    """All readers of x with what makes it; None if one cannot have that, or if it would cost more than it saves.

    is_gone : whether the loop that makes x makes nothing else; if it does, at least nobody waits for it any more
    """
    larges, nbytes = len(_large(chain)), math.prod(chain.sizes) * _itemsize(chain.stores[0].dtype)
    if larges > MOST_LARGE:
        return None
    saved = LAUNCH + nbytes * (1 + larges * is_gone) / MEMORY
    if sum(_cost(work, chain, x) for work in works) > saved:
        return None
    found: list[Any] = []
    for work in works:
        if isinstance(work, Loop):
            loop = _loop_with_chain(work, chain, x)
            if loop is None or array_count(loop) > MOST_ARRAYS:
                return None
            found.append(loop)
        elif isinstance(work, Fused):
            fused = _with_chain(work, chain, x)
            if fused is None or not _fits(fused) or objection(fused):
                return None
            found.append(dataclasses.replace(fused, where=list(dict.fromkeys([*chain.where, *fused.where]))))
        else:
            return None
        if x in found[-1].reads:
            return None
    return found


def _cost(work: Any, chain: Loop, x: Id) -> float:
    """What it costs a reader of x to make it itself, in nanoseconds."""
    elements = math.prod(chain.sizes)
    if not isinstance(work, Fused):
        return _work_cost(chain, elements, elements)
    cost = _work_cost(chain, elements, elements) if work.tail and x in work.tail.reads else 0.0
    for k, load in enumerate(work.loads):
        if x == work.places[k + 1].access.buffer or (load and x in load.reads):
            cost += _load_cost(work, k + 1, chain, elements)
    return cost


def _itemsize(dtype: str) -> int:
    return 8 if dtype.endswith("64") else 1 if dtype == "bool" else 4


def _load_cost(fused: Fused, k: int, chain: Loop, elements: int) -> float:
    """What it costs to make an operand again each time when it is loaded."""
    loads = 0
    for nest in fused.nests:
        mine, other = (nest.a, nest.b) if k == 1 else (nest.b, nest.a)
        used, theirs = (({i for s in at for i, _ in s.factors}) for at in (mine, other))
        kept = {i for s in nest.y for i, _ in s.factors}
        rows = math.prod([nest.sizes[i] for i in kept - used if i in theirs])
        read = math.prod([n for i, n in enumerate(nest.sizes) if i in used or i not in kept])
        loads += read * -(-rows // SIDE)
    return _work_cost(chain, loads, elements)


def _work_cost(chain: Loop, loads: int, elements: int) -> float:
    """What a chain costs, so many times, more than a number that is read."""
    made, larges = chain.stores[0], _large(chain)
    operations = sum(16 if COSTLY.search(step.text) else 1 for step in chain.steps if step.text)
    extra = max(0, (len(larges) - 1) * _itemsize(made.dtype))
    fastest = min(range(len(chain.sizes)), key=lambda i: made.access.strides[i], default=-1)
    if fastest >= 0 and any(abs(a.strides[fastest]) > made.access.strides[fastest] for a in larges):
        extra += SECTOR  # neighbours of the operand are no neighbours there
    return elements * extra / MEMORY + loads * (extra / CACHE + operations / WORK)


def _loop_with_chain(loop: Loop, chain: Loop, x: Id) -> Loop | None:
    access = next(s.access for s in loop.steps if s.access is not None and s.access.buffer == x)
    over = _over(loop, access, Place(chain.sizes, chain.stores[0].access))
    if over is None:
        return None
    parts, mine = over
    finer = _split_loop(chain, parts)
    assert finer is not None
    both = joined(finer, mine)
    return None if both is None else merged(kept_stores(both, set(loop.writes)))


def _with_chain(fused: Fused, chain: Loop, x: Id) -> Fused | None:
    """The contraction making x itself wherever it reads it."""
    for k in (1, 2):
        place, load = fused.places[k], fused.loads[k - 1]
        if load is None:
            if place.access.buffer != x:
                continue
            load = _identity(place, fused.dtype)
        if x not in load.reads:
            continue
        found = _made_by(fused, k, load, chain, x)
        if found is None:
            return None
        fused = found
    for is_end, loop in enumerate((fused.tail, fused.end)):
        if loop is not None and x in loop.reads:
            if is_end:
                return None
            found = _made_by(fused, 0, loop, chain, x)
            if found is None:
                return None
            fused = found
    return fused


def _identity(place: Place, dtype: str) -> Loop:
    """An operand's load that changes nothing."""
    store = Store(Temp(0), Access(MADE, 0, place.access.strides), dtype)
    return Loop(place.shape, [Step("", (), dtype, access=place.access)], [store])


def _made_by(fused: Fused, k: int, loop: Loop, chain: Loop, x: Id) -> Fused | None:
    """The contraction with a chain in front of a loop over the dimensions of y, a or b."""
    access = next(s.access for s in loop.steps if s.access is not None and s.access.buffer == x)
    over = _over(chain, chain.stores[0].access, Place(fused.places[k].shape, access))
    if over is None:
        return None
    parts, mine = over
    finer = _split_fused(fused, k, parts)
    rest = _split_loop(loop, parts)
    assert rest is not None
    both = joined(mine, rest) if finer is not None else None
    if finer is None or both is None:
        return None
    both = kept_stores(both, set(loop.writes))
    both.where = loop.where
    if k == 0:
        return dataclasses.replace(finer, tail=both) if _is_tail(finer, both) else None
    main = _main(both, fused.dtype)
    if main is None or both.stores[0].dtype != fused.dtype:
        return None
    places, loads = list(finer.places), list(finer.loads)
    places[k] = Place(both.sizes, main)
    loads[k - 1] = None if _is_copy(both) else both
    return dataclasses.replace(finer, places=(places[0], places[1], places[2]), loads=(loads[0], loads[1]))


def _is_copy(load: Loop) -> bool:
    """Whether a load changes nothing: the operand only lies elsewhere."""
    step = load.steps[load.stores[0].source]
    while step.text == COPY and load.steps[step.args[0]].dtype == step.dtype:
        step = load.steps[step.args[0]]
    return step.access is not None


def _main(load: Loop, dtype: str) -> Access | None:
    """The array that an operand's load reads at first: of its type, all of its elements, side by side if one is so."""
    moves = [n != 1 for n in load.sizes]
    found = [
        s.access for s in load.steps
        if s.access is not None and s.dtype == dtype and all(t for t, m in zip(s.access.strides, moves) if m)
    ]  # fmt: skip
    if not found:
        return None
    return min(found, key=lambda a: min([abs(t) for t, m in zip(a.strides, moves) if m], default=1))


# what nobody reads ------------------------------------------------------------------------------------------------
def _trimmed(tasks: list[Task], outputs: set[Id]) -> list[Task]:
    """The tasks without results that no later one and no output needs."""
    needed, found = set(outputs), []
    for task in reversed(tasks):
        if isinstance(task.work, Fused):
            task = _task(_needed_of(task.work, needed))
        elif isinstance(task.work, Loop):
            task = _task(merged(kept_stores(task.work, needed)))
        if task.writes:
            found.append(task)
            needed |= task.reads
    return found[::-1]


def _needed_of(fused: Fused, needed: set[Id]) -> Fused:
    end = fused.end and kept_stores(fused.end, needed)
    end = end if end and end.stores else None
    of_end = {x for x in (end.reads if end else set()) if x in fused.sums}
    tail = fused.tail and kept_stores(fused.tail, needed | of_end)
    tail = tail if tail and tail.stores else None
    keeps_y = fused.y in needed or tail is None
    return dataclasses.replace(fused, tail=tail, end=end, keeps_y=keeps_y, hidden=frozenset(of_end - needed))


# ops whose bodies fit ---------------------------------------------------------------------------------------------
def openable(graph: Graph) -> set[Id]:
    """First results of the nodes whose bodies are made of loops and sums over all but the last dimension."""
    return {node.outputs[0] for node in graph.nodes if _is_openable(graph, node)}


def _is_openable(graph: Graph, node: Node) -> bool:
    if node.op.kind is not KERNEL or node.op.body is None or node.op.contraction_rule is not None or node.op.kernels:
        return False  # a user's kernel is there to be used
    specs = tuple([graph.specs[x] if isinstance(x, Id) else x for x in node.inputs])
    if any(isinstance(x, Spec) and not x.size for x in specs):
        return False
    inner = Graph([*graph.specs], [], {}, [], [])
    kept: list[Node] = []
    splice(inner, node, lambda op: op.body is None, kept, {})
    sums = [n for n in kept if n.op.kind is REDUCE]
    return (
        bool(sums) and not any(n.op.kind is KERNEL for n in kept)
        and all(n.op.text == SUM and n.params["axes"] == tuple(range(inner.specs[n.inputs[0]].ndim - 1)) for n in sums)
    )  # fmt: skip


def opened(graph: Graph, chosen: set[Id]) -> tuple[Graph, dict[Id, range]]:
    """The graph with bodies in the place of the chosen nodes, and for each of them the numbers of its body's values."""
    graph = graph.with_nodes(graph.nodes)
    kept: list[Node] = []
    names: dict[Id, Any] = {}
    found = {}
    for node in graph.nodes:
        first, before = node.outputs[0], len(graph.specs)
        node = node.renamed(names)
        if first in chosen:
            splice(graph, node, lambda op: op.body is None, kept, names)
            found[first] = range(before, len(graph.specs))
        else:
            kept.append(node)
    return graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs]), found


def riding(schedule: Schedule, bodies: dict[Id, range]) -> set[Id]:
    """The opened nodes whose sums are all taken on the way, by a contraction or by a loop that has more to do.

    The others had better stay kernels.
    """
    alone: set[int] = set()
    for task in schedule.tasks:
        if isinstance(task.work, Loop) and all(s.combine for s in task.work.stores):
            alone |= {int(y) for y in task.writes}
    return {y for y, numbers in bodies.items() if not any(n in alone for n in numbers)}
