"""phases: what can run side by side, and where everybody must wait.

A task runs over a *range*: one dimension of its iteration space, cut into chunks that threads take. Tasks over ranges
of one size, of which each reads of the other's results only what the same index of the range has made, are one *group*:
they run in lockstep, tile by tile, without waiting. What needs a whole result, because it is a sum over the range
or lies across it, belongs to the next *phase*. Small tasks run alone in the *tail* of a phase, when its last chunk is
done.

What is summed over the range is added up per chunk, in partial results, and these are combined afterwards, in order:
chunks depend on sizes alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.spec import DOUBLE, Spec
from minidl.engine.contract import Contract, contained
from minidl.engine.fuse import Schedule, Task
from minidl.engine.graph import Id
from minidl.engine.layout import Layout, dense
from minidl.engine.loops import refined, split

Work = Loop | Contract

CHUNKS = 8  # of a group, at most
SMALL_WORK = 4096  # elements; less is not worth a hand-over to other threads
TILE_WORK = 4096  # elements that a tile should have
ROWS, MANY_ROWS = 16, 64  # of a contraction that share what they read of its other operand
LARGE_BYTES = 1 << 18  # an operand of this size should be shared by many rows
SERIAL_CELLS = 512  # partial results with more cells than this are combined by all threads


@dataclasses.dataclass
class Item:
    """A task of a phase: what is done, and the number of the dimension that is the range (None: all at once).

    A contraction may have a tail, a loop over its values (see `tails`); step `source` of that is the value. It makes
    what the tail makes then.
    """

    work: Work
    range: int | None
    partial: dict[Id, Id] = dataclasses.field(default_factory=dict)  # buffer that is summed over the range -> partial
    tail: Loop | None = None
    source: int = -1

    @property
    def reads(self) -> set[Id]:
        """The buffers it reads."""
        if self.tail is None or not isinstance(self.work, Contract):
            return self.work.reads
        return (self.work.reads | self.tail.reads) - {self.work.y}

    @property
    def writes(self) -> list[Id]:
        """The buffers it makes."""
        return self.work.writes if self.tail is None else self.tail.writes

    @property
    def names(self) -> list[int | None]:
        """For each index of a contraction with a tail, the dimension of the tail that it is; None if it is summed."""
        assert isinstance(self.work, Contract)
        dims = self.work.parts[0].dims
        kept = sorted([(-d[1], n) for n, d in enumerate(dims) if d[1] and d[0] > 1])
        places = {n: place for place, (_, n) in enumerate(kept)}
        return [places.get(n) for n in range(len(dims))]

    @property
    def writes_whole(self) -> list[Id]:
        """What it makes without partial results."""
        return [y for y in self.writes if y not in self.partial and y not in self.partial.values()]


@dataclasses.dataclass
class Group:
    """Items over ranges of one size, in lockstep: `tile` indices at a time, in so many chunks of whole tiles."""

    size: int
    items: list[Item]
    tile: int = 1
    chunks: int = 1

    def bounds(self) -> list[tuple[int, int]]:
        """(first, one past the last) index of each chunk."""
        tiles = -(-self.size // self.tile)
        cuts = [c * tiles // self.chunks * self.tile for c in range(self.chunks)] + [self.size]
        return list(zip(cuts, cuts[1:]))


@dataclasses.dataclass
class Phase:
    """Groups whose chunks run in any order, and what one thread does when all are done."""

    groups: list[Group]
    tail: list[Item]


@dataclasses.dataclass(frozen=True)
class Home:
    """Where a buffer is made: the level (2p: groups of phase p, 2p + 1: its tail), the size of the group's range, and
    how far its elements of one index reach (0: it is not cut by the range)."""

    level: int
    size: int = 0
    reach: int = 0


def phased(schedule: Schedule, tasks: list[Task]) -> list[Phase]:
    """Phases for tasks that can all run natively.

    Planned twice: loops whose results are all read in one later group run there, right before their first reader, so
    that these results need not be kept in between.
    """
    first = _Planner(schedule.layout, tasks, {})
    first.plan()
    order, least = _later(first)
    planner = _Planner(schedule.layout, [tasks[k] for k in order], {n: least[k] for n, k in enumerate(order)})
    planner.plan()
    return planner.phases()


def _later(planner: _Planner) -> tuple[list[int], dict[int, int]]:
    """(a new order of the tasks, the level from which on each may run)."""
    tasks, levels, items = planner.tasks, planner.levels, planner.items
    readers: dict[Id, list[int]] = {}
    for k, task in enumerate(tasks):
        for x in task.reads:
            readers.setdefault(x, []).append(k)
    outputs = {planner.layout.access[y].buffer for y in planner.layout.graph.outputs}
    order, least = list(range(len(tasks))), dict[int, int]()
    for k in reversed(range(len(tasks))):
        work, writes, (level, size) = tasks[k].work, tasks[k].writes, levels[k]
        found = [(y, r) for y in writes for r in readers.get(y, [])]
        if not isinstance(work, Loop) or not found or outputs & set(writes) or items[k].range is None:
            continue
        reaches = {y: reach_of(items[k], y) for y in writes}
        if not all(reaches[y] and levels[r][1] == size and reach_of(items[r], y) == reaches[y] for y, r in found):
            continue
        there = {least.get(r, levels[r][0]) for _, r in found}
        if len(there) == 1 and (goal := there.pop()) > level:
            least[k] = goal
            order.remove(k)
            order.insert(min(order.index(r) for _, r in found), k)
    return order, {k: least.get(k, 0) for k in range(len(tasks))}


class _Planner:
    def __init__(self, layout: Layout, tasks: list[Task], least: dict[int, int]) -> None:
        self.layout, self.tasks, self.least = layout, tasks, least
        self.levels: list[tuple[int, int]] = []  # of each task: its level, and the size of its range (0: none)
        self.items: list[Item] = []
        self.homes: dict[Id, Home] = {}
        self.groups: dict[int, dict[int, Group]] = {}
        self.tails: dict[int, list[Item]] = {}
        self.main = self._main_size()

    def plan(self) -> None:
        """Find a place for every task."""
        for k, task in enumerate(self.tasks):
            work = task.work
            assert isinstance(work, (Loop, Contract))
            if isinstance(work, Loop):
                work = dataclasses.replace(work, stores=list(work.stores))  # combining stores are changed
            self.levels.append(self._add(work, self.least.get(k, 0)))

    def phases(self) -> list[Phase]:
        """The phases, cut into tiles and chunks."""
        last = max([*self.groups, *self.tails], default=-1)
        found = [Phase(list(self.groups.get(p, {}).values()), self.tails.get(p, [])) for p in range(-1, last + 1)]
        for phase in found:
            for group in phase.groups:
                self._cut(group)
            phase.groups.sort(key=lambda g: -sum(_amount(x.work) for x in g.items) / g.chunks)  # small chunks fill up
        for phase in found:
            for group in phase.groups:
                for item in group.items:
                    self._size_partials(item, group)
        return found

    # where a task goes ----------------------------------------------------------------------------------------------
    def _main_size(self) -> int:
        """The range that most arithmetic has: the observations."""
        votes: dict[int, float] = {}
        for task in self.tasks:
            if isinstance(task.work, Contract):
                for i, size in enumerate(task.work.sizes):
                    if size > 1 and task.work.reach_of(task.work.y, i) and not all(
                        task.work.moves(x, i) for x in (task.work.a, task.work.b)
                    ):
                        votes[size] = votes.get(size, 0) + task.work.flop
                        break
        return max(votes, key=votes.__getitem__, default=0)

    def _add(self, work: Work, least: int) -> tuple[int, int]:
        """Find a place for a task, not before level `least`; (its level, the size of its range)."""
        options = list(self._options(work))
        tail = max([self.homes[r].level | 1 for r in work.reads if r in self.homes], default=-1)
        levels = [(max(self._level(item, size), least), k) for k, (item, size) in enumerate(options)]
        level, k = min(levels, default=(-1, -1))
        is_beside = bool(levels) and (level <= tail or least > 0)  # in lockstep with what it reads, or is read by
        if not options or (_amount(work) < SMALL_WORK and not is_beside):
            self.items.append(Item(work, None))
            self._put_in_tail(self.items[-1], tail)
            return tail, 0
        item, size = options[k]
        self.items.append(item)
        group = self.groups.setdefault(level // 2, {}).setdefault(size, Group(size, []))
        group.items.append(item)
        for y in item.writes:
            if _is_summed(item, y):
                self._combine(item, y, level)
            else:
                self._settle(y, Home(level, size, reach_of(item, y)))
        return level, size

    def _put_in_tail(self, item: Item, level: int) -> None:
        self.tails.setdefault(level // 2, []).append(item)
        for y in item.writes:
            self._settle(y, Home(level))

    def _settle(self, y: Id, home: Home) -> None:
        """Note where a buffer is made; one that several tasks make parts of is there when all of them are done."""
        before = self.homes.get(y, home)
        self.homes[y] = home if before == home else Home(max(before.level, home.level) | 1)

    def _level(self, item: Item, size: int) -> int:
        """The first level at which the item can run in a group of its range."""
        level = 0
        for r in item.reads:
            home = self.homes.get(r)
            if home is None:
                continue
            is_beside = home.size == size and home.reach and home.reach == reach_of(item, r)
            level = max(level, home.level if is_beside else (home.level | 1) + 1)
        while self._is_unequal(item, size, level):
            level += 2
        return level

    def _is_unequal(self, item: Item, size: int, level: int) -> bool:
        """Whether an item wants several indices at once while the group of that level has contractions that are better
        off with one, or the other way round."""
        group = self.groups.get(level // 2, {}).get(size)
        if group is None or not isinstance(item.work, Contract) or item.range is None:
            return False
        others = [x for x in group.items if isinstance(x.work, Contract)]
        wanted = self._rows_wanted(item.work, item.range) > 1
        return any((self._rows_wanted(x.work, x.range) > 1) != wanted for x in others)  # type: ignore[arg-type]

    def _options(self, work: Work) -> Iterator[tuple[Item, int]]:
        """Ways of cutting a task: (item, size of its range), the better ones first."""
        if isinstance(work, Contract):
            yield from self._contract_options(work)
            return
        sizes = [self.homes[r].size for r in work.reads if r in self.homes] + [self.main, *work.sizes[:1]]
        total = math.prod(work.sizes)
        for size in dict.fromkeys(n for n in sizes if n > 1):
            if total % size == 0:
                cut = refined(work.sizes, (size, total // size) if total > size else (size,))
                if cut is not None and cut[:1] == (size,):
                    yield Item(split(work, cut), 0), size

    def _contract_options(self, work: Contract) -> Iterator[tuple[Item, int]]:
        kept: list[tuple[Item, int]] = []
        summed: list[tuple[Item, int]] = []
        for i, size in enumerate(work.sizes):
            if size <= 1 or not work.has_index(i):
                continue
            if work.moves(work.y, i):
                kept.append((Item(work, i), size))
            elif not work.moves(work.y, i) and self._is_beside(work, i, size):
                operands = sum(self.layout.nbytes(x) for x in (work.a, work.b))
                if self.layout.nbytes(work.y) * min(size, CHUNKS) <= operands:
                    summed.append((Item(work, i), size))
        # results that lie apart for each index can be read in lockstep; otherwise a range that threads can share well
        kept.sort(key=lambda x: (x[1] < CHUNKS and not self._is_aligned(x), not reach_of(x[0], work.y)))
        yield from kept + summed

    def _is_aligned(self, option: tuple[Item, int]) -> bool:
        """Whether a cut fits that of an operand that is made here."""
        item, size = option
        homes = {r: self.homes[r] for r in item.reads if r in self.homes}
        return any(home.size == size and home.reach and home.reach == reach_of(item, r) for r, home in homes.items())

    def _is_beside(self, work: Contract, i: int, size: int) -> bool:
        """Whether both operands are cut by the index i."""
        return all(work.reach_of(x, i) for x in (work.a, work.b))

    # sums over the range --------------------------------------------------------------------------------------------
    def _combine(self, item: Item, y: Id, level: int) -> None:
        """The partial results of an item's chunks, and what combines them."""
        graph = self.layout.graph
        spec, store = graph.specs[y], None
        if isinstance(item.work, Loop):
            store = next(s for s in item.work.stores if s.access.buffer == y)
            kept = [(n, s) for n, s in zip(item.work.sizes, store.access.strides) if s]
            dtype = DOUBLE if store.combine in ("({0} + {1})", "({0} * {1})") and spec.dtype.kind == "f" else spec.dtype
            combine, identity, offset = store.combine, store.identity, store.access.offset
        else:
            kept, dtype, combine, identity, offset = [(spec.size, 1)], spec.dtype, "({0} + {1})", 0.0, 0
        sizes = tuple(n for n, _ in kept)
        cells = math.prod(sizes)
        partial = graph.new(Spec((CHUNKS, cells), dtype, spec.device))
        item.partial[y] = partial
        if store is not None:
            assert isinstance(item.work, Loop)
            steps = iter(dense(sizes, range(len(sizes))))
            strides = tuple([next(steps) if s else 0 for s in store.access.strides])
            changed = dataclasses.replace(store, access=Access(partial, 0, strides), dtype=dtype.name)
            item.work.stores[item.work.stores.index(store)] = changed
        load = Access(partial, 0, (cells, *dense(sizes, range(len(sizes)))))
        target = Access(y, offset, (0, *(s for _, s in kept)))
        steps_ = [Step("", (), dtype.name, access=load)]
        loop = Loop((CHUNKS, *sizes), steps_, [Store(Temp(0), target, spec.dtype.name, combine, identity)],
                    item.work.where)
        if cells <= SERIAL_CELLS:
            self._put_in_tail(Item(loop, None), level + 1)
            return
        place = max(range(1, len(loop.sizes)), key=lambda d: loop.sizes[d])
        size = loop.sizes[place]
        group = self.groups.setdefault(level // 2 + 1, {}).setdefault(size, Group(size, []))
        group.items.append(Item(loop, place))
        self.homes[y] = Home(level + 2, size, reach_of(group.items[-1], y))

    def _size_partials(self, item: Item, group: Group) -> None:
        """Partial results have as many rows as there are chunks; what combines them runs over those."""
        for y, partial in item.partial.items():
            spec = self.layout.graph.specs[partial]
            self.layout.graph.specs[partial] = spec._replace(shape=(group.chunks, spec.shape[1]))
            for other in self._all_items():
                if isinstance(other.work, Loop) and partial in other.work.reads and y in other.work.writes:
                    other.work.sizes = (group.chunks, *other.work.sizes[1:])

    def _all_items(self) -> Iterator[Item]:
        for groups in self.groups.values():
            for group in groups.values():
                yield from group.items
        for tail in self.tails.values():
            yield from tail

    # tiles and chunks -----------------------------------------------------------------------------------------------
    def _cut(self, group: Group) -> None:
        """Tiles large enough to be worth a call, chunks large enough to be worth a hand-over."""
        amounts = [_amount(item.work) for item in group.items]
        tile = max(1, min(group.size, math.ceil(TILE_WORK * group.size / max(*amounts, 1))))
        contracts = [(item.work, item.range) for item in group.items if isinstance(item.work, Contract)]
        if contracts:
            wanted = max(self._rows_wanted(work, i) for work, i in contracts if i is not None)
            tile = max(1, min(max(wanted, min(tile, group.size // CHUNKS)), group.size // 2))
        if all(isinstance(item.work, Loop) and item.range == len(item.work.sizes) - 1 for item in group.items):
            tile = -(-tile // 64) * 64  # whole vectors
        group.tile = tile
        tiles = -(-group.size // tile)
        group.chunks = max(1, min(tiles, CHUNKS, round(sum(amounts) / SMALL_WORK)))


    def _rows_wanted(self, work: Contract, i: int) -> int:
        """Indices that a contraction should take at once, so that each number of the other operand is used by enough
        rows: more of them where that operand is too large to stay in a fast cache."""
        shared = [x for x in (work.a, work.b) if not work.moves(x, i)]
        is_large = any(self.layout.nbytes(x) > LARGE_BYTES for x in shared)
        if not work.is_row(i):
            return ROWS if work.needs_rows(i) else 1
        if not work.needs_rows(i) and not is_large:
            return 1
        return -(-(MANY_ROWS if is_large else ROWS) // max(1, work.rows(i)))


def _amount(work: Work) -> float:
    """Elements that are computed; eight multiply-adds of a contraction count as one."""
    if isinstance(work, Contract):
        return work.flop / 16
    return math.prod(work.sizes) * max(1, len(work.steps) / 4)


def _is_summed(item: Item, y: Id) -> bool:
    """Whether a result is combined along the item's range."""
    assert item.range is not None
    if isinstance(item.work, Contract):
        return not item.work.moves(y, item.range)
    return any(s.combine and not s.access.strides[item.range] for s in item.work.stores if s.access.buffer == y)


def reach_of(item: Item, buffer: Id) -> int:
    """How far apart the elements of neighbouring indices of the range lie in a buffer, if those of one index keep
    within that distance; otherwise 0."""
    work, d = item.work, item.range
    assert d is not None
    reaches = set()
    if isinstance(work, Contract):
        if item.tail is None or buffer in work.reads:
            reaches.add(work.reach_of(buffer, d))
        if item.tail is None:
            return reaches.pop()
        work, d = item.tail, 0
    accesses = [s.access for s in work.steps if s.access is not None] + [s.access for s in work.stores]
    for a in accesses:
        if a.buffer == buffer:
            sides = [(n, s) for k, (n, s) in enumerate(zip(work.sizes, a.strides)) if k != d]
            reaches.add(contained(a.offset, a.strides[d], sides))
    return reaches.pop() if len(reaches) == 1 else 0

