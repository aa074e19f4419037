"""plan_memory: one arena for everything that a program touches; buffers whose lives do not overlap share bytes."""

from __future__ import annotations

import bisect
import dataclasses

from minidl.core.spec import Spec
from minidl.engine.fuse import Schedule, describe
from minidl.engine.graph import Id
from minidl.engine.loops import Loop

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
            where = task.work.where if isinstance(task.work, Loop) else [task.work.where]
            lines.append(f"{i:>3} {made} ({nbytes:,} bytes) <- {describe(task.work)}  # {', '.join(where)}")
        return "\n".join(lines)


def plan_memory(schedule: Schedule) -> Plan:
    """Offsets for all buffers. Inputs and outputs live throughout; the rest from first write to last read.

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
    placed: list[tuple[int, int, int, int]] = []  # offset, end offset, first, last; in order of offsets
    offsets: dict[Id, int] = {}
    for buffer in sorted(lives, key=lambda b: (-graph.specs[b].nbytes, b)):
        first, last = lives[buffer]
        size = -(-max(graph.specs[buffer].nbytes, 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offset = 0
        for low, high, born, dead in placed:
            if born <= last and first <= dead:
                if low - offset >= size:
                    break
                offset = max(offset, high)
        bisect.insort(placed, (offset, offset + size, first, last))
        offsets[buffer] = offset
    return Plan(schedule, offsets, max((high for _, high, _, _ in placed), default=0))
