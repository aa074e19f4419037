"""panels: a large operand that many rows share, in the order in which register blocks read it.

A register block reads a few vectors of each row of such an operand (the weights of a wide convolution, say). Where
rows are long, these lie far apart, and with sizes that are powers of two in few sets of the cache. So the operand is
laid out in panels of that many columns, each without gaps; the loop that makes it stores it so, or else it is copied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.spec import Spec
from minidl.engine.contract import Contract, Part
from minidl.engine.fuse import Schedule, Task
from minidl.engine.graph import Id
from minidl.engine.layout import copy
from minidl.engine.loops import split

LARGE_BYTES = 1 << 18  # smaller operands stay in a fast cache as they are
MANY_ROWS = 64  # that share the operand; fewer do not pay for a copy


def panelled(schedule: Schedule, columns_of: Callable[[Any], int]) -> Schedule:
    """The schedule with such operands in panels; columns_of gives the width of a panel for a type."""
    layout = schedule.layout
    tasks = list(schedule.tasks)
    for work in [task.work for task in schedule.tasks]:
        if not isinstance(work, Contract) or layout.nbytes(work.b) <= LARGE_BYTES:
            continue
        width = columns_of(layout.graph.specs[work.b].dtype)
        row = _row(work, width)
        if row is None or layout.elements(work.b) % row:
            continue
        spec = layout.graph.specs[work.b]
        panels = layout.graph.new(Spec((row // width, layout.elements(work.b) // row, width), spec.dtype, spec.device))
        _store_so(tasks, layout.elements(work.b), work, panels, row, width)
        place = next(k for k, task in enumerate(tasks) if task.work is work)
        parts = [_part(part, row, width, layout.elements(work.b)) for part in work.parts]
        changed = dataclasses.replace(work, b=panels, parts=parts)
        tasks[place] = Task(changed, changed.reads, changed.writes)
    return Schedule(layout, tasks)


def _vector(part: Part) -> int | None:
    """The index along which y and b have stride 1 and a stands still."""
    return next((i for i, (size, y, a, b) in enumerate(part.dims) if size > 1 and y == 1 and b == 1 and not a), None)


def _row(work: Contract, width: int) -> int | None:
    """The length of b's rows, if b has whole rows of several panels, shared by many rows of y."""
    rows = set()
    for part in work.parts:
        i = _vector(part)
        if i is None or 0 in [d[0] for d in part.dims]:
            return None
        size = part.dims[i][0]
        others = [d for k, d in enumerate(part.dims) if k != i]
        shared = math.prod([d[0] for d in others if d[1] and d[2] and not d[3]])
        if size % width or size < 2 * width or shared < MANY_ROWS or part.offsets[2] % size:
            return None
        if any(d[3] % size for d in others):
            return None
        rows.add(size)
    return rows.pop() if len(rows) == 1 else None


def _part(part: Part, row: int, width: int, elements: int) -> Part:
    """A nest that reads b in panels."""
    dims = []
    for i, (size, y, a, b) in enumerate(part.dims):
        if i == _vector(part):
            dims += [(size // width, y * width, a, elements // row * width), (width, y, a, 1)]
        else:
            dims.append((size, y, a, b // row * width))
    y_offset, a_offset, b_offset = part.offsets
    return Part(dims, (y_offset, a_offset, b_offset // row * width))


def _store_so(tasks: list[Task], elements: int, work: Contract, panels: Id, row: int, width: int) -> None:
    """Have the panels made: by the loop that makes b, if only this contraction reads b, or by a copy before it."""
    makers = [k for k, task in enumerate(tasks) if work.b in task.writes]
    is_read_once = sum(work.b in task.reads for task in tasks) == 1
    if len(makers) == 1 and is_read_once and isinstance(tasks[makers[0]].work, Loop):
        loop = tasks[makers[0]].work
        assert isinstance(loop, Loop)
        mine = [s for s in loop.stores if s.access.buffer == work.b]
        fits = loop.sizes[-1:] == (row,) and all(
            s.access.strides[-1] == 1 and not s.access.offset % row and not any(n % row for n in s.access.strides[:-1])
            and not s.combine for s in mine
        )  # fmt: skip
        if fits:
            cut = split(loop, (*loop.sizes[:-1], row // width, width))
            stores = [
                dataclasses.replace(s, access=_in_panels(s.access, panels, row, width, elements))
                if s.access.buffer == work.b else s for s in cut.stores
            ]  # fmt: skip
            made = dataclasses.replace(cut, stores=stores)
            tasks[makers[0]] = Task(made, made.reads, made.writes)
            return
    load = Access(work.b, 0, (row, width, 1))
    store = Access(panels, 0, (width, elements // row * width, 1))
    steps = [Step("", (), work.dtype, access=load), Step(copy.text or "", (Temp(0),), work.dtype, work.dtype)]
    loop = Loop((elements // row, row // width, width), steps, [Store(Temp(1), store, work.dtype)], list(work.where))
    place = next(k for k, task in enumerate(tasks) if task.work is work)
    tasks.insert(place, Task(loop, loop.reads, loop.writes))


def _in_panels(a: Access, panels: Id, row: int, width: int, elements: int) -> Access:
    """The access of a loop whose last dimension, a row, has been cut into (panels, columns)."""
    outer = tuple([n // row * width for n in a.strides[:-2]])
    return Access(panels, a.offset // row * width, (*outer, elements // row * width, 1))
