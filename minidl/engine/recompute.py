"""recompute: values that are cheaper to make again than to keep.

A loop's result that later loops read, and that is made of at most one large array by a few cheap operations, is made
again by its readers from that array. The array must lie in memory until then instead of the result; nothing is stored.
"""

from __future__ import annotations

import re

from minidl.engine.fuse import MOST_ARRAYS, Schedule, Task, array_count
from minidl.engine.graph import Id
from minidl.engine.loops import Loop, joined, kept_stores, merged

CHEAPEST = 8  # operations of a chain
# what takes more than an instruction or two
_COSTLY = re.compile(r"/|\b(?!(?:where|maximum|minimum|fmax|fmin|fabs|cast)\()[a-z_]\w*\(")
SMALL = 4096  # elements; a smaller result is not worth it


def recomputed(schedule: Schedule) -> Schedule:
    """The schedule with cheap results made where they are read; loops that then make nothing are gone."""
    layout = schedule.layout
    tasks = list(schedule.tasks)
    outputs = {layout.access[y].buffer for y in layout.graph.outputs}
    writes = [y for task in tasks for y in task.writes]
    makers = {s.access.buffer: k for k, task in enumerate(tasks) if isinstance(task.work, Loop)
              for s in task.work.stores if not s.combine and writes.count(s.access.buffer) == 1}  # fmt: skip
    for k, task in enumerate(tasks):
        if not isinstance(task.work, Loop):
            continue
        loop = task.work
        for x in sorted(loop.reads):
            if x in makers and makers[x] < k and x not in outputs and layout.elements(x) >= SMALL:
                maker = tasks[makers[x]].work
                assert isinstance(maker, Loop)
                loop = _with_chain(maker, x, loop) or loop
        if loop is not task.work:
            tasks[k] = Task(loop, loop.reads, loop.writes)
    return Schedule(layout, _needed(tasks, outputs))


def _with_chain(maker: Loop, x: Id, loop: Loop) -> Loop | None:
    """`loop` making x itself instead of loading it; None if that does not pay or does not go."""
    chain = kept_stores(maker, {x})
    if any(_COSTLY.search(step.text) for step in chain.steps):
        return None
    large = {s.access for s in chain.steps if s.access is not None and all(s.access.strides)}
    if len(large) > 1 or sum(step.access is None for step in chain.steps) > CHEAPEST:
        return None
    both = joined(chain, loop)
    if both is None:
        return None
    both = merged(kept_stores(both, {s.access.buffer for s in loop.stores}))
    return both if array_count(both) <= MOST_ARRAYS and x not in both.reads else None


def _needed(tasks: list[Task], outputs: set[Id]) -> list[Task]:
    """Without stores that nobody reads any more."""
    needed, kept = set(outputs), []
    for task in reversed(tasks):
        if isinstance(task.work, Loop):
            loop = merged(kept_stores(task.work, needed))
            if not loop.stores:
                continue
            task = Task(loop, loop.reads, loop.writes)
        kept.append(task)
        needed |= task.reads
    return kept[::-1]
