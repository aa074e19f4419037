"""tails: loops over the result of a contraction that are done with its values while they are in registers.

A loop of the same group becomes the tail of a contraction if each of its iterations reads the contraction's result
once, at its own index, and if what it adds up runs along the vectors' dimension. The result is then stored only if
somebody else reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from minidl.backends.loop import Access, Loop, Store, Temp
from minidl.engine.contract import Contract
from minidl.engine.graph import Id
from minidl.engine.layout import Layout
from minidl.engine.loops import refined, split
from minidl.engine.phases import Group, Item, Phase

MOST_STEPS = 24  # of a tail; more do not fit beside a register block


def with_tails(
    phases: list[Phase], layout: Layout, takes_tail: Callable[[Contract, int, Group], bool], segments: list[Any]
) -> None:
    """Join loops to the contractions before them, in place; takes_tail says whether a backend can."""
    in_python = {b for segment in segments if not isinstance(segment, list) for b in segment.reads}
    readers: dict[Id, int] = {}
    for item in (x for phase in phases for x in (*(y for g in phase.groups for y in g.items), *phase.tail)):
        for x in item.reads:
            readers[x] = readers.get(x, 0) + 1
    outputs = {layout.access[y].buffer for y in layout.graph.outputs} | in_python
    for phase in phases:
        for group in phase.groups:
            for item in list(group.items):
                work = item.work
                if isinstance(work, Contract) and item.range is not None and takes_tail(work, item.range, group):
                    _join(group, item, readers, outputs)


def _join(group: Group, item: Item, readers: dict[Id, int], outputs: set[Id]) -> None:
    """Give a contraction the first loop after it that can be its tail."""
    work, k = item.work, group.items.index(item)
    assert isinstance(work, Contract) and item.range is not None
    y = work.y
    made: set[Id] = set()  # between the contraction and the loop
    for other in group.items[k + 1 :]:
        if y in other.reads:
            if isinstance(other.work, Loop) and not (made & other.reads) and not other.tail:
                found = _tail(work, item.range, other.work)
                if found is not None:
                    loop, source = found
                    if readers[y] > 1 or y in outputs:
                        loop.stores.append(Store(Temp(source), _access(work, item.range), work.dtype))
                    item.tail, item.source = loop, source
                    item.partial.update(other.partial)
                    group.items.remove(other)
            return
        made |= set(other.writes)


def _kept(work: Contract, i: int) -> list[tuple[int, int, int]] | None:
    """(number, size, stride of y) of the kept indices, the range first and the vectors last."""
    part = work.parts[0]
    kept = sorted([(-d[1], n, d[0]) for n, d in enumerate(part.dims) if d[1] and d[0] > 1])
    found = [(n, size, -stride) for stride, n, size in kept]
    return found if found and found[0][0] == i and found[-1][2] == 1 and len(found) > 1 else None


def _access(work: Contract, i: int) -> Access:
    kept = _kept(work, i)
    assert kept is not None
    return Access(work.y, work.parts[0].offsets[0], tuple([stride for _, _, stride in kept]))


def _tail(work: Contract, i: int, loop: Loop) -> tuple[Loop, int] | None:
    """(the loop over the kept indices, the step that is the contraction's value); None if it cannot be a tail."""
    kept = _kept(work, i)
    if kept is None or len(loop.steps) > MOST_STEPS:
        return None
    sizes = tuple([size for _, size, _ in kept])
    if refined(loop.sizes, sizes) != sizes:
        return None
    loop = split(loop, sizes)
    loads = [k for k, s in enumerate(loop.steps) if s.access is not None and s.access.buffer == work.y]
    if len(loads) != 1 or loop.steps[loads[0]].access != _access(work, i):
        return None
    for s in loop.stores:
        if not all(s.access.strides) and (not s.combine or any(s.access.strides[:-1]) or not s.access.strides[-1]):
            return None
    return dataclasses.replace(loop, stores=list(loop.stores)), loads[0]
