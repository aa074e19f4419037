"""fuse: loops that pass each other arrays, or read the same ones, become one loop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from minidl.core.op import MAP, REDUCE, VIEW
from minidl.engine.contract import Contract, contract_of
from minidl.engine.graph import Id, Node
from minidl.engine.layout import Layout, contractions_of
from minidl.engine.loops import Loop, joined, kept_stores, loop_of, merged, product_of

MOST_ARRAYS = 16  # of one loop; more do not fit the machine's registers and address units
SMALL = 4096  # iterations; below, joining siblings that share an input saves nothing


@dataclasses.dataclass
class Task:
    """What runs at once: a loop, a kernel node, or a contraction that the backend writes itself."""

    work: Any  # Loop, Node, Contract, or several loops side by side (`branches.Side`)
    reads: set[Id]
    writes: list[Id]


@dataclasses.dataclass
class Schedule:
    """Tasks in order, with the layout they are about."""

    layout: Layout
    tasks: list[Task]

    def __str__(self) -> str:
        lines = []
        for i, task in enumerate(self.tasks):
            if isinstance(task.work, Loop):
                lines.append(f"{i}: {task.work}")
            else:
                lines.append(f"{i}: {', '.join(map(str, task.writes))} = {describe(task.work)} of "
                             f"{', '.join(map(str, sorted(task.reads)))}")
        return "\n".join(lines)


def calls(layout: Layout) -> Schedule:
    """Each node a task of its own, as in plain calls: a backend binds it by the kernel that it takes for the op."""
    nodes = [node for node in layout.graph.nodes if node.op.kind is not VIEW]
    return Schedule(
        layout, [Task(n, {layout.access[x].buffer for x in n.reads}, list(n.outputs)) for n in nodes]
    )


def schedule(
    layout: Layout, *, is_fusing: bool = True, is_contracting: bool = False, is_mapping: bool = False
) -> Schedule:
    """Tasks of a graph: its MAP and REDUCE nodes as loops, joined as far as that is right and useful.

    is_contracting: contractions are tasks of their own kind, not kernels (choose_layout has prepared them).
    is_mapping: contractions with one term for each element are loops.
    """
    tasks: list[Task] = []
    for node in layout.graph.nodes:
        if node.op.kind is VIEW:
            continue
        loop = loop_of(layout, node) if node.op.kind in (MAP, REDUCE) else None
        if is_mapping and (nests := contractions_of(layout.graph, node)):
            loop = product_of(layout, node, nests)
        if loop is not None:
            if not is_fusing or not _join(tasks, loop):
                tasks.append(Task(loop, loop.reads, loop.writes))
        elif is_contracting and (nests := contractions_of(layout.graph, node)):
            contract = contract_of(layout, node, nests)
            tasks.append(Task(contract, contract.reads, contract.writes))
        else:
            tasks.append(Task(node, {layout.access[x].buffer for x in node.reads}, list(node.outputs)))
    tasks = _trimmed(layout, tasks)
    if is_fusing:  # once more: loops that have grown since may now be joined as wholes
        grown: list[Task] = []
        for task in tasks:
            if not (isinstance(task.work, Loop) and _join(grown, task.work)):
                grown.append(task)
        tasks = _trimmed(layout, grown)
    return Schedule(layout, tasks)


def _join(tasks: list[Task], loop: Loop) -> bool:
    """Join `loop` to the latest task that can take it; it then runs at that task's place."""
    reads, large = loop.reads, _large_loads(loop) if math.prod(loop.sizes) >= SMALL else set()
    for i in range(len(tasks) - 1, -1, -1):
        task = tasks[i]
        is_needed = not reads.isdisjoint(task.writes)
        if isinstance(task.work, Loop) and (is_needed or (large & task.reads and large & _large_loads(task.work))):
            both = joined(task.work, loop)
            if both is not None and array_count(both) <= MOST_ARRAYS:
                tasks[i] = Task(both, both.reads, both.writes)
                return True
        if is_needed:
            return False  # the loop cannot run before what it needs
    return False


def _large_loads(loop: Loop) -> set[Id]:
    return {s.access.buffer for s in loop.steps if s.access is not None and all(s.access.strides)}


def array_count(loop: Loop) -> int:
    """Arrays that a loop loads from or stores to."""
    return sum(s.access is not None for s in loop.steps) + len(loop.stores)


def _trimmed(layout: Layout, tasks: list[Task]) -> list[Task]:
    """Drop stores that no other task and no output needs, and join dimensions."""
    needed = {layout.access[y].buffer for y in layout.graph.outputs}
    kept: list[Task] = []
    for task in reversed(tasks):
        if isinstance(task.work, Loop):
            loop = merged(kept_stores(task.work, needed))
            task = Task(loop, loop.reads, loop.writes)
        kept.append(task)
        needed |= task.reads
    return kept[::-1]


def describe(work: Any) -> str:
    """One line about a task."""
    if isinstance(work, Loop):
        texts = [f"t{i} = {step.text.format(*step.args)}" for i, step in enumerate(work.steps) if step.text]
        texts += [f"{s.access.buffer} by {s.combine.format('', s.source).strip()}" for s in work.stores if s.combine]
        return f"loop {list(work.sizes)}: {'; '.join(texts)}"
    if isinstance(work, (Node, Contract)):
        return str(work.name if isinstance(work, Contract) else work.op.name)
    if hasattr(work, "loops"):  # side by side
        return " | ".join(map(describe, work.loops))
    return str(work)  # a contraction with slots
