"""plan_memory: one arena for everything that a program touches; buffers whose lives do not overlap share bytes."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minidl.core.spec import Spec
from minidl.engine.contract import Contract
from minidl.engine.fuse import Schedule, Task, describe
from minidl.engine.graph import Id, Node
from minidl.engine.phases import Group, Item, Phase, phased, reach_of
from minidl.engine.tails import with_tails

BOUND_BYTES = 1 << 13  # an input from this size on is read where it lies, a smaller one is copied to the arena
ALIGNMENT_BYTES = 64  # a cache line, and the widest vector load


@dataclasses.dataclass
class Plan:
    """A schedule and the byte offset of every buffer in the arena (constants keep memory of their own)."""

    schedule: Schedule
    offsets: dict[Id, int]
    arena_bytes: int

    def spec(self, buffer: Id) -> Spec:
        return self.schedule.layout.graph.specs[buffer]

    def __str__(self) -> str:
        graph = self.schedule.layout.graph
        total = sum(graph.specs[b].nbytes for b in self.offsets)
        lines = [f"arena {self.arena_bytes:,} bytes for {len(self.offsets)} buffers of {total:,} bytes"]
        for i, task in enumerate(self.schedule.tasks):
            made = ", ".join(f"{y}@{self.offsets[y]}" for y in task.writes)
            nbytes = sum(graph.specs[y].nbytes for y in task.writes)
            where = [task.work.where] if isinstance(task.work, Node) else task.work.where
            lines.append(f"{i:>3} {made} ({nbytes:,} bytes) <- {describe(task.work)}  # {', '.join(where)}")
        return "\n".join(lines)


def plan_memory(schedule: Schedule, *, is_sharing: bool = True) -> Plan:
    """Offsets for all buffers. Inputs and outputs live throughout; the rest from first write to last read.

    is_sharing: whether buffers that do not live at one time share bytes; tasks that share none may run at one time.

    Largest first, each at the lowest offset where it overlaps no buffer alive at the same time (Pisarchyk and Lee,
    Efficient Memory Management for Deep Neural Net Inference, 2020, greedy by size).
    """
    graph, access = schedule.layout.graph, schedule.layout.access
    end = len(schedule.tasks)
    lives: dict[Id, tuple[int, int]] = {x: (-1, end) for x in graph.inputs}
    for i, task in enumerate(schedule.tasks):
        for buffer in task.reads:
            if buffer in lives:
                lives[buffer] = (lives[buffer][0], max(lives[buffer][1], i))
        for buffer in task.writes:
            lives.setdefault(buffer, (i, i))
    for y in graph.outputs:
        buffer = access[y].buffer
        if buffer in lives:
            lives[buffer] = (lives[buffer][0], end)
    if not is_sharing:
        lives = {buffer: (-1, end) for buffer in lives}
    return Plan(schedule, *packed(lives, schedule.layout.nbytes))


def packed(lives: dict[Id, tuple[int, int]], nbytes: Callable[[Id], int]) -> tuple[dict[Id, int], int]:
    """(offsets, bytes in all) for buffers that live from a first to a last moment each."""
    placed: list[tuple[int, int, int, int]] = []  # offset, end offset, first, last; in order of offsets
    offsets: dict[Id, int] = {}
    for buffer in sorted(lives, key=lambda b: (-nbytes(b), b)):
        first, last = lives[buffer]
        size = -(-max(nbytes(buffer), 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offset = 0
        for low, high, born, dead in placed:
            if born <= last and first <= dead:
                if low - offset >= size:
                    break
                offset = max(offset, high)
        bisect.insort(placed, (offset, offset + size, first, last))
        offsets[buffer] = offset
    return offsets, max((high for _, high, _, _ in placed), default=0)


# phases ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class PhasedPlan(Plan):
    """A plan for tasks in phases: segments are lists of phases, or tasks that only Python can run.

    scratch: buffers that live within one group lie in memory of each thread: {buffer: (offset, bytes per index)}.
    """

    segments: list[list[Phase] | Task] = dataclasses.field(default_factory=list)
    scratch: dict[Id, tuple[int, int]] = dataclasses.field(default_factory=dict)
    scratch_bytes: int = 0
    bound: set[Id] = dataclasses.field(default_factory=set)  # inputs that are read where the caller has them

    def __str__(self) -> str:
        phases = [segment for segment in self.segments if isinstance(segment, list)]
        flop = sum(_flop(item) for item in _items(phases))
        lines = [
            f"arena {self.arena_bytes:,} bytes for {len(self.offsets)} buffers, scratch {self.scratch_bytes:,} bytes "
            f"per thread for {len(self.scratch)}; {sum(map(len, phases))} phases, {flop:,} FLOP in sums of products"
        ]
        number = 0
        for segment in self.segments:
            if isinstance(segment, Task):
                lines.append(f"kernel {self._item(segment.writes, segment.reads)} <- {describe(segment.work)}")
                continue
            for phase in segment:
                if not phase.groups and not phase.tail:
                    continue
                number += 1
                lines.append(f"phase {number}")
                for group in phase.groups:
                    lines.append(f"  {group.size} in tiles of {group.tile}, {group.chunks} chunks")
                    lines += [self._line(item, "    ") for item in group.items]
                if phase.tail:
                    lines.append("  then, on one thread")
                    lines += [self._line(item, "    ") for item in phase.tail]
        return "\n".join(lines)

    def _item(self, writes: Iterable[Id], reads: Iterable[Id]) -> str:
        made = ", ".join(f"{y}@{self._where(y)}" for y in writes)
        return f"{made} of {', '.join(map(str, sorted(reads)))}"

    def _where(self, buffer: Id) -> str:
        if buffer in self.scratch:
            return f"scratch+{self.scratch[buffer][0]}"
        return str(self.offsets.get(buffer, "outside"))

    def _line(self, item: Item, pad: str) -> str:
        nbytes = sum(self.schedule.layout.nbytes(y) for y in item.writes)
        flop = f", {_flop(item):,} FLOP" if _flop(item) else ""
        done = describe(item.work) if item.tail is None else f"{describe(item.work)}, then {describe(item.tail)}"
        where = dict.fromkeys([*item.work.where, *(item.tail.where if item.tail else [])])
        return f"{pad}{self._item(item.writes, item.reads)} ({nbytes:,} bytes{flop}) <- {done}  # {', '.join(where)}"


def _items(segments: list[list[Phase]]) -> Iterator[Item]:
    for phases in segments:
        for phase in phases:
            for group in phase.groups:
                yield from group.items
            yield from phase.tail


def _flop(item: Item) -> int:
    return item.work.flop if isinstance(item.work, Contract) else 0


def plan_phases(
    schedule: Schedule, is_native: Callable[[Task], bool], takes_tail: Callable[[Contract, int, Group], bool]
) -> PhasedPlan:
    """Phases for the tasks that are native, in order, and memory for all buffers.

    A buffer lives from the level where it is made to the level where it is last read (see `phases`); what a group makes
    and reads alone, index by index, lies in scratch. Buffers with zeros around their values share bytes with nobody.
    """
    layout = schedule.layout
    segments: list[list[Phase] | Task] = []
    for native, run in itertools.groupby(schedule.tasks, is_native):
        tasks = list(run)
        segments += [phased(schedule, tasks)] if native else tasks
    with_tails([phase for s in segments if isinstance(s, list) for phase in s], layout, takes_tail, segments)
    moments: list[tuple[int, set[Id], list[Id]]] = []  # (time, reads, writes)
    homes: dict[Id, set[Any]] = {}  # buffer -> the groups that touch it, and how
    time = 0
    places: dict[Id, tuple[int, int]] = {}  # (time, place in the group)
    for segment in segments:
        if isinstance(segment, Task):
            moments.append((time, segment.reads, segment.writes))
            for buffer in [*segment.reads, *segment.writes]:
                homes.setdefault(buffer, set()).add(None)
            time += 1
            continue
        for phase in segment:
            for group in phase.groups:
                for k, item in enumerate(group.items):
                    moments.append((time, item.reads, [*item.partial.values(), *item.writes_whole]))
                    for buffer in [*item.reads, *item.writes, *item.partial.values()]:
                        reach = reach_of(item, buffer) if buffer not in item.partial.values() else 0
                        homes.setdefault(buffer, set()).add((id(group), reach) if reach else None)
                        first, _ = places.get(buffer, (k, k))
                        places[buffer] = first, k
            for item in phase.tail:
                moments.append((time + 1, item.reads, item.writes))
                for buffer in [*item.reads, *item.writes]:
                    homes.setdefault(buffer, set()).add(None)
            time += 2
    fixed = {*layout.graph.inputs, *layout.memory, *(layout.access[y].buffer for y in layout.graph.outputs)}
    local = {b for b, found in homes.items() if len(found) == 1 and None not in found and b not in fixed}
    tiles = {id(g): g.tile for s in segments if isinstance(s, list) for p in s for g in p.groups}
    scratch_lives, scratch_sizes, reaches = {}, {}, {}
    for buffer in local:
        ((group_id, reach),) = homes[buffer]
        itemsize = layout.graph.specs[buffer].dtype.itemsize
        reaches[buffer] = reach * itemsize
        scratch_sizes[buffer] = reach * itemsize * tiles[group_id]
        born = next(t for t, _, writes in moments if buffer in writes)
        first, last = places[buffer]
        span = (born * 10000 + first, born * 10000 + last)
        scratch_lives[buffer] = (-1, time * 10000) if buffer in layout.padded else span
    lives: dict[Id, tuple[int, int]] = {x: (-1, time) for x in layout.graph.inputs}
    for moment, reads, writes in moments:
        for buffer in writes:
            lives.setdefault(buffer, (moment, moment))
        for buffer in reads:
            if buffer in lives:
                lives[buffer] = (lives[buffer][0], max(lives[buffer][1], moment))
    results = {layout.access[y].buffer for y in layout.graph.outputs}
    in_python = {b for s in segments if isinstance(s, Task) for b in (*s.reads, *s.writes)}
    bound = {x for x in layout.graph.inputs if x in homes and layout.nbytes(x) >= BOUND_BYTES} - results - in_python
    for buffer in list(lives):
        if buffer in local or buffer in bound:
            del lives[buffer]
        elif buffer in layout.padded or buffer in fixed:
            lives[buffer] = (-1 if buffer in layout.padded else lives[buffer][0], time)
    offsets, arena_bytes = packed(lives, layout.nbytes)
    inner, scratch_bytes = packed(scratch_lives, scratch_sizes.__getitem__)
    scratch = {buffer: (offset, reaches[buffer]) for buffer, offset in inner.items()}
    return PhasedPlan(schedule, offsets, arena_bytes, segments, scratch, scratch_bytes, bound)
