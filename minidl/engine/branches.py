"""Which tasks of a plan have to wait for which: what a graph's branches are made of, and what may stand side by side.

On a GPU what costs is not how many kernels there are but how many have to wait for each other. So tasks keep only the
dependencies that data impose: they are levelled, and launched on several streams that become branches of a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from minidl.engine.fuse import Schedule, Task, array_count
from minidl.engine.graph import Id
from minidl.engine.loops import Loop

MOST_STREAMS = 6
MOST_ARRAYS = 400  # of loops side by side: a kernel has 4 KB for its parameters
Place = tuple[Any, int, int]  # a memory, and from where to where in it


def needs(tasks: Sequence[Task], place: Callable[[Id], Place] | None = None) -> list[set[int]]:
    """For each task the earlier ones that it has to wait for: those that write what it reads, or use what it writes.

    place: where a buffer lies. Without it buffers share no memory.
    """
    touching = {} if place is None else _touching(tasks, place)
    writers: dict[Id, list[int]] = {}
    readers: dict[Id, list[int]] = {}
    found: list[set[int]] = []
    for j, task in enumerate(tasks):
        mine: set[int] = set()
        for x in task.reads:
            for b in touching.get(x, (x,)):
                mine.update(writers.get(b, ()))
        for y in task.writes:
            for b in touching.get(y, (y,)):
                mine.update(writers.get(b, ()), readers.get(b, ()))
        found.append(mine)
        for x in task.reads:
            readers.setdefault(x, []).append(j)
        for y in task.writes:
            writers.setdefault(y, []).append(j)
    return found


def _touching(tasks: Sequence[Task], place: Callable[[Id], Place]) -> dict[Id, list[Id]]:
    """For each buffer those that share memory with it, itself among them."""
    buffers = {b: place(b) for task in tasks for b in (*task.reads, *task.writes)}
    found: dict[Id, list[Id]] = {b: [b] for b in buffers}
    by_memory: dict[Any, list[Id]] = {}
    for b in sorted(buffers, key=lambda b: buffers[b][1]):
        by_memory.setdefault(buffers[b][0], []).append(b)
    for some in by_memory.values():
        open_ones: list[Id] = []  # that may reach as far as the next one begins
        for b in some:
            _, begin, end = buffers[b]
            open_ones = [a for a in open_ones if buffers[a][2] > begin]
            for a in open_ones:
                if begin < end:
                    found[a].append(b)
                    found[b].append(a)
            open_ones.append(b)
    return found


def direct(needed: Sequence[set[int]]) -> list[set[int]]:
    """Without those that another one of them waits for already."""
    behind: list[set[int]] = []  # everything that a task waits for, directly or not
    found = []
    for mine in needed:
        through = set().union(*(behind[i] for i in mine)) if mine else set()
        behind.append(mine | through)
        found.append(mine - through)
    return found


def levels(needed: Sequence[set[int]]) -> list[int]:
    """How many tasks, one after the other, each one has to wait for."""
    found: list[int] = []
    for mine in needed:
        found.append(1 + max((found[i] for i in mine), default=-1))
    return found


def streams_of(needed: Sequence[set[int]]) -> list[int]:
    """A stream for each task, such that those of one stream may run one after the other at little cost.

    A task goes on where the latest of those that it waits for was the last one; otherwise it begins a branch, on the
    stream that has been idle for longest.
    """
    last: list[int] = []  # of each stream the last task
    found: list[int] = []
    for j, mine in enumerate(needed):
        ends = [s for s, i in enumerate(last) if i in mine]
        if ends:
            stream = max(ends, key=lambda s: last[s])
        elif len(last) < MOST_STREAMS:
            stream = len(last)
            last.append(j)
        else:
            stream = min(range(len(last)), key=lambda s: last[s])
        last[stream] = j
        found.append(stream)
    return found


# loops that stand side by side ------------------------------------------------------------------------------------
@dataclasses.dataclass
class Several:
    """Loops that are one task, and one launch."""

    loops: list[Loop]
    word: ClassVar[str]  # how one goes with the next

    @property
    def where(self) -> list[str]:
        return list(dict.fromkeys(line for loop in self.loops for line in loop.where))

    def __str__(self) -> str:
        return f"\n   {self.word} ".join(map(str, self.loops))


class Side(Several):
    """Loops that do not need each other."""

    word = "beside"


def side_by_side(schedule: Schedule) -> Schedule:
    """Tasks level by level; within a level the loops that combine nothing become one task.

    What nobody waits for (results such as updated parameters) may come as late as it likes: these loops meet at the
    end.
    """
    tasks = schedule.tasks
    needed = needs(tasks)
    level = levels(needed)
    waited = set().union(*needed) if needed else set()
    deepest = max(level, default=0)
    level = [n if j in waited or not is_plain(tasks[j]) else deepest for j, n in enumerate(level)]
    kept: list[Task] = []
    for n in range(deepest + 1):
        here = [task for task, own in zip(tasks, level) if own == n]
        kept += [task for task in here if not is_plain(task)]
        kept += map(_beside, _handfuls([task for task in here if is_plain(task)]))
    return Schedule(schedule.layout, kept)


def _handfuls(tasks: list[Task]) -> list[list[Task]]:
    """The tasks in groups of no more arrays than a kernel takes parameters."""
    found: list[list[Task]] = []
    count = MOST_ARRAYS
    for task in tasks:
        assert isinstance(task.work, Loop)
        arrays = array_count(task.work)
        if count + arrays > MOST_ARRAYS:
            found.append([])
            count = 0
        found[-1].append(task)
        count += arrays
    return found


def _beside(tasks: list[Task]) -> Task:
    if len(tasks) == 1:
        return tasks[0]
    reads = set().union(*(task.reads for task in tasks))
    return Task(Side([task.work for task in tasks]), reads, [y for task in tasks for y in task.writes])


def is_plain(task: Task) -> bool:
    """Whether a task is a loop that stores each of its results once."""
    return isinstance(task.work, Loop) and not any(
        store.combine and not all(store.access.strides) for store in task.work.stores
    )
