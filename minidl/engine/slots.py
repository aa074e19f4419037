"""slots: neighbours of contractions that are computed within them, so that fewer kernels wait for each other.

A contraction has five places for loops, all of them about strides:

    load of a, of b   what makes an operand is computed of every element when it is read, if that costs less than a
                      kernel of its own and the memory it fills
    tail              what follows for each element of the result, and sums of that over everything but the columns
    end               what follows for each column, once its sums are there
    behind            what is small and waits for all of that (see `blocks`)

So bias and batch statistics end up where a convolution stores its result, and normalisation and activation where the
next one reads it. On the CPU `tails`, `recompute` and `phases` do the like with registers and caches.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.spec import DOUBLE, SINGLE
from minidl.engine.branches import levels, needs
from minidl.engine.fuse import Schedule, Task, array_count
from minidl.engine.fused import Fused, Objection, Place, fused_of, over, split_fused, split_loop
from minidl.engine.graph import Id
from minidl.engine.layout import Layout
from minidl.engine.loops import joined, kept_stores, merged, with_access
from minidl.engine.sums import SUM

COPY = "{0}"
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


def slotted(schedule: Schedule, objection: Objection) -> Schedule:
    """The schedule with loops in the slots of contractions, wherever that saves time and the backend can do it."""
    layout = schedule.layout
    outputs = {layout.access[y].buffer for y in layout.graph.outputs}
    tasks = _trimmed(_with_tails(_sooner(schedule.tasks), layout, objection), outputs)
    tasks = _trimmed(_with_loads(tasks, layout, outputs, objection), outputs)
    return Schedule(layout, tasks)


def _task(work: Any) -> Task:
    return Task(work, work.reads, work.writes)


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
            level = levels(needs(tasks[:k])) if len(makers) > 1 else [0] * k
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
        found = over(loop, access, places[access.buffer]) if access.buffer in places else None
        if found is not None:
            parts, mine = found
            finer = split_fused(fused, 0, parts)
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
        found = over(loop, access, place)
        if found is None or any(len(sizes) != 1 for sizes in found[0]):
            return None
        mine = with_access(
            found[1], shape, lambda s: tuple([s[kept.index(d)] if d in kept else 0 for d in range(len(shape))])
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
    found = over(loop, access, Place(chain.sizes, chain.stores[0].access))
    if found is None:
        return None
    parts, mine = found
    finer = split_loop(chain, parts)
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
    found = over(chain, chain.stores[0].access, Place(fused.places[k].shape, access))
    if found is None:
        return None
    parts, mine = found
    finer = split_fused(fused, k, parts)
    rest = split_loop(loop, parts)
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
