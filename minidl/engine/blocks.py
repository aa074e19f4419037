"""Small loops that need each other as one task: one block of threads does them one after the other.

Between two kernels that need each other lies a launch, between two loops of one block a barrier, which costs far less.
So what is too small for more than one block (a softmax of a few scores, losses, numbers per channel) goes into one; and
where it has to wait for a contraction, the last block of that does it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from minidl.core.op import KERNEL, Op
from minidl.core.spec import Spec
from minidl.engine.bodies import body_of
from minidl.engine.branches import Several, levels, needs
from minidl.engine.fuse import Schedule, Task, array_count
from minidl.engine.fused import Fused, fused_of
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import Layout
from minidl.engine.loops import Loop

SMALL = 1 << 13  # iterations of a loop that one block does as soon as many would
MOST_TASKS = 1000  # of a program; beyond it nothing is joined
MOST_ARRAYS = 300  # of a block: a kernel has 4 KB for its parameters
SMALL_BEHIND = 1 << 11  # iterations of a loop that the last block of a contraction does: it has fewer threads


class Block(Several):
    """Loops that one block does, in this order."""

    word = "then"


def small_ones(graph: Graph, is_kept: Callable[[Op], bool]) -> set[Id]:
    """First results of the small nodes that have a kernel, and a body of nothing but loops."""
    return {node.outputs[0] for node in graph.nodes if _is_openable(graph, node, is_kept)}


def _is_openable(graph: Graph, node: Node, is_kept: Callable[[Op], bool]) -> bool:
    if max([graph.specs[x].size for x in (*node.reads, *node.outputs)], default=0) > SMALL:
        return False
    found = body_of(graph, node, is_kept)
    if found is None:
        return False
    inner, kept = found
    return not any(n.op.kind is KERNEL for n in kept) and all(isinstance(s, Spec) and s.size for s in inner.specs)


def in_one_block(schedule: Schedule) -> Schedule:
    """Small loops that need each other joined, where nothing has to wait longer for it.

    What one loop needs and no other task does, such as sums over targets beside a softmax, comes along.
    """
    tasks = schedule.tasks
    if len(tasks) > MOST_TASKS:
        return schedule
    needed = needs(tasks)
    group = list(range(len(tasks)))  # of each task, the number of its group: that of its first member
    members: dict[int, list[int]] = {j: [j] for j in group}
    for j, task in enumerate(tasks):
        if not _is_small(task):
            continue
        before = sorted({group[i] for i in needed[j]}, reverse=True)
        if not any(_is_joined(tasks, needed, group, members, first, [], j) for first in before):
            for first in before:
                others = [x for x in before if x != first and _readers(x, needed, group, members) <= {first, x, j}]
                if others and _is_joined(tasks, needed, group, members, first, others, j):
                    break
    order = _order(needed, group, members)
    assert order is not None
    return Schedule(schedule.layout, [_joined([tasks[i] for i in members[first]]) for first in order])


def _is_joined(
    tasks: Sequence[Task], needed: Sequence[set[int]], group: list[int], members: dict[int, list[int]],
    first: int, others: Sequence[int], j: int,
) -> bool:  # fmt: skip
    """Whether task j, and other groups that it needs, could be joined to a group; then they are."""
    mine = members[first]
    joined = sorted([*mine, *(k for other in others for k in members[other]), j])
    if not all(_is_small(tasks[i]) for i in joined) or _arrays(joined, tasks) > MOST_ARRAYS:
        return False
    if _level(set(joined), needed, group, members) > _level(set(mine), needed, group, members):
        return False
    before = list(group), dict(members)
    for other in (*others, j):
        del members[other]
    members[first] = joined
    for k in joined:
        group[k] = first
    if _order(needed, group, members) is not None:
        return True
    group[:] = before[0]
    members.clear()
    members.update(before[1])
    return False


def _readers(
    first: int, needed: Sequence[set[int]], group: Sequence[int], members: dict[int, list[int]]
) -> set[int]:  # fmt: skip
    """The groups that need something of a group."""
    mine = set(members[first])
    return {group[k] for k, found in enumerate(needed) if found & mine}


def _is_small(task: Task) -> bool:
    return isinstance(task.work, Loop) and 0 < math.prod(task.work.sizes) <= SMALL


def _arrays(numbers: Sequence[int], tasks: Sequence[Task]) -> int:
    return sum(array_count(tasks[i].work) for i in numbers)


def _level(
    mine: set[int], needed: Sequence[set[int]], group: Sequence[int], members: dict[int, list[int]]
) -> int:  # fmt: skip
    """How many tasks, one after the other, these have to wait for."""
    known: dict[int, int] = {}

    def level(first: int) -> int:
        if first not in known:
            known[first] = 0  # while it is looked at: a cycle is found elsewhere
            inside = set(members[first])
            outside = {group[i] for k in inside for i in needed[k] if i not in inside}
            known[first] = 1 + max(map(level, outside), default=-1)
        return known[first]

    outside = {group[i] for k in mine for i in needed[k] if i not in mine}
    return 1 + max(map(level, outside), default=-1)


def _order(needed: Sequence[set[int]], group: Sequence[int], members: dict[int, list[int]]) -> list[int] | None:
    """The groups in an order in which they can run; None if two of them would wait for each other."""
    waits = {first: {group[i] for k in mine for i in needed[k]} - {first} for first, mine in members.items()}
    found: list[int] = []
    done: set[int] = set()
    waiting = sorted(waits)
    while waiting:
        ready = [first for first in waiting if waits[first] <= done]
        if not ready:
            return None
        found += ready
        done.update(ready)
        waiting = [first for first in waiting if first not in done]
    return found


def _joined(tasks: list[Task]) -> Task:
    if len(tasks) == 1:
        return tasks[0]
    writes = [y for task in tasks for y in task.writes]
    reads = {x for task in tasks for x in task.reads} - set(writes)
    return Task(Block([task.work for task in tasks]), reads, writes)


def behind(schedule: Schedule, objection: Callable[[Fused], str]) -> Schedule:
    """Blocks that others wait for done by the last block of the contraction that they wait for longest.

    objection : why the backend cannot do that; '' if it can
    """
    tasks = list(schedule.tasks)
    if len(tasks) > MOST_TASKS:
        return schedule
    while True:
        tasks = _by_level(tasks)
        needed = needs(tasks)
        level, waited = levels(needed), set().union(*needed)
        for j, task in enumerate(tasks):
            latest = [i for i in needed[j] if level[i] == level[j] - 1]
            if len(latest) == 1 and j in waited:
                fused = _with_behind(schedule.layout, tasks[latest[0]], task, objection)
                if fused is not None:
                    tasks[latest[0]] = Task(fused, fused.reads, fused.writes)
                    del tasks[j]
                    break
        else:
            return Schedule(schedule.layout, tasks)


def _by_level(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, those that have to wait for fewer others first."""
    level = levels(needs(tasks))
    return [tasks[j] for j in sorted(range(len(tasks)), key=level.__getitem__)]


def _with_behind(layout: Layout, first: Task, task: Task, objection: Callable[[Fused], str]) -> Fused | None:
    """The first task, if it is a contraction, with a small one behind it."""
    loops = task.work.loops if isinstance(task.work, Block) else [task.work]
    if not all(isinstance(x, Loop) and 0 < math.prod(x.sizes) <= SMALL_BEHIND for x in loops):
        return None
    fused = fused_of(layout, first)
    if fused is None:
        return None
    where = list(dict.fromkeys([*fused.where, *(line for x in loops for line in x.where)]))
    fused = dataclasses.replace(fused, behind=(*fused.behind, *loops), where=where)
    counts = [array_count(x) for x in (*fused.loads, fused.tail, fused.end, *fused.behind) if x is not None]
    return fused if sum(counts) <= MOST_ARRAYS and not objection(fused) else None


def depth(schedule: Schedule) -> tuple[int, int]:
    """(how many tasks have to wait for one another, how many there are)."""
    found = levels(needs(schedule.tasks))
    return 1 + max(found, default=-1), len(found)
