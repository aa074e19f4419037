"""The algebra of loops: a node as a loop, finer and coarser iteration spaces, two loops as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.contraction import Contraction
from minidl.core.op import MAP
from minidl.core.spec import DOUBLE, SINGLE
from minidl.engine.graph import Id, Node
from minidl.engine.layout import Layout, flat_offset, flat_strides, memory_order

PRODUCT = "({0} * {1})"


def loop_of(layout: Layout, node: Node) -> Loop:
    """A MAP or REDUCE node as a loop over its (larger) side, dimensions in memory order, none of size 1."""
    specs, access = layout.graph.specs, layout.access
    (y,) = node.outputs
    space = y if node.op.kind is MAP else node.inputs[0]
    shape = specs[space].shape
    order = [i for i in memory_order(shape, access[space].strides) if shape[i] != 1]
    if node.op.kind is MAP:
        order = [i for i in order if access[y].strides[i] != 0]  # along the others everything stays the same
    steps: list[Step] = []
    args: list[Any] = []
    floats = []
    for x in node.inputs:
        if isinstance(x, Id):
            a = access[x]
            steps.append(Step("", (), specs[x].dtype.name, access=_along(a, order)))
            args.append(Temp(len(steps) - 1))
            if specs[x].dtype in (SINGLE, DOUBLE):
                floats.append(specs[x].dtype.name)
        else:
            args.append(x)
    made = specs[y].dtype.name
    literal = floats[0] if floats else made
    if node.op.kind is MAP:
        steps.append(Step(node.op.text or "", tuple(args), made, literal))
        store = Store(Temp(len(steps) - 1), _along(access[y], order), made)
    else:
        kept = [0 if i in node.params["axes"] else s for i, s in enumerate(access[y].strides)]
        target = Access(y, 0, tuple(kept[i] for i in order))
        is_plain = all(target.strides)  # along dimensions of size 1 there is nothing to combine
        store = Store(args[0], target, made, "" if is_plain else node.op.text or "", node.op.identity)
    return Loop(tuple(shape[i] for i in order), steps, [store], [node.where] if node.where else [])


def product_of(layout: Layout, node: Node, nests: Sequence[Contraction]) -> Loop | None:
    """A sum of products that has but one term, such as an outer product, as a loop; None if there is more to it."""
    if len(nests) != 1:
        return None
    (nest,), specs, access = nests, layout.graph.specs, layout.access
    operands = [(x, at) for x, at in zip((*node.outputs, *node.inputs), (nest.y, nest.a, nest.b))]
    dims = [d for d in flat_strides(nest, node, access) if d[0] != 1]
    is_within = all(
        low >= 0 and high < n
        for x, at in operands
        for (low, high), n in zip([s.bounds(nest.sizes) for s in at], specs[x].shape)
    )
    made = math.prod([n for n, *_ in dims])
    if not is_within or made != specs[node.outputs[0]].size or not all(stride > 0 for _, stride, *_ in dims):
        return None
    dims.sort(key=lambda d: -d[1])
    dtype = specs[node.outputs[0]].dtype.name
    y, a, b = (
        Access(access[x].buffer, flat_offset(at, access[x]), tuple([d[k + 1] for d in dims]))
        for k, (x, at) in enumerate(operands)
    )
    steps = [Step("", (), dtype, access=a), Step("", (), dtype, access=b)]
    steps.append(Step(PRODUCT, (Temp(0), Temp(1)), dtype, dtype))
    return Loop(tuple([n for n, *_ in dims]), steps, [Store(Temp(2), y, dtype)], [node.where] if node.where else [])


def _along(a: Access, order: list[int]) -> Access:
    return Access(a.buffer, a.offset, tuple(a.strides[i] for i in order))


def refined(sizes: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...] | None:
    """The coarsest iteration space that both can be split into, keeping the order of iterations; None if there is none.

    (401408,) and (25088, 16) -> (25088, 16).
    """
    if sizes == others:
        return sizes
    if _product(sizes) != _product(others) or not _product(sizes):
        return None
    cuts = sorted({*_cuts(sizes), *_cuts(others)})
    found = []
    for low, high in zip(cuts, cuts[1:]):
        if high % low:
            return None
        found.append(high // low)
    return tuple(reversed(found))


def _product(sizes: tuple[int, ...]) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n


def _cuts(sizes: tuple[int, ...]) -> list[int]:
    cuts, n = [1], 1
    for size in reversed(sizes):
        n *= size
        cuts.append(n)
    return cuts


def split(loop: Loop, sizes: tuple[int, ...]) -> Loop:
    """The same loop over a finer iteration space."""
    if loop.sizes == sizes:
        return loop
    return with_access(loop, sizes, lambda strides: _split_strides(loop.sizes, strides, sizes))


def _split_strides(old: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    remaining = list(zip(old, strides))
    size, stride = remaining.pop() if remaining else (1, 0)
    step = 1
    for n in reversed(new):
        while size == 1 and remaining and n > 1:
            size, stride = remaining.pop()
            step = 1
        found.append(stride * step)
        size //= n
        step *= n
    return tuple(reversed(found))


def merged(loop: Loop) -> Loop:
    """The same loop over the coarsest iteration space: neighbouring dimensions joined where all accesses allow it."""
    rows = [a.strides for a in _accesses(loop)]
    sizes = list(loop.sizes)
    columns = [[row[i] for row in rows] for i in range(len(sizes))]
    i = len(sizes) - 1
    while i > 0:
        if all(outer == inner * sizes[i] for outer, inner in zip(columns[i - 1], columns[i])):
            sizes[i - 1] *= sizes[i]
            columns[i - 1] = columns[i]
            del sizes[i], columns[i]
        i -= 1
    joined = iter([tuple(column[k] for column in columns) for k in range(len(rows))])
    return with_access(loop, tuple(sizes), lambda strides: next(joined))


def _accesses(loop: Loop) -> list[Access]:
    return [s.access for s in loop.steps if s.access is not None] + [s.access for s in loop.stores]


def with_access(loop: Loop, sizes: tuple[int, ...], change: Any) -> Loop:
    def changed(a: Access) -> Access:
        return Access(a.buffer, a.offset, change(a.strides))

    steps = [s if s.access is None else dataclasses.replace(s, access=changed(s.access)) for s in loop.steps]
    stores = [dataclasses.replace(s, access=changed(s.access)) for s in loop.stores]
    return Loop(sizes, steps, stores, loop.where)


def joined(first: Loop, second: Loop) -> Loop | None:
    """Both loops as one, `second` taking what `first` makes from registers; None if they cannot be one.

    They can if one iteration space serves both and `second` reads of `first`'s results only what the same iteration
    has just stored.
    """
    sizes = refined(first.sizes, second.sizes)
    if sizes is None:
        return None
    first, second = split(first, sizes), split(second, sizes)
    stored = {s.access.buffer: s for s in first.stores}
    loaded = {s.access: Temp(i) for i, s in enumerate(first.steps) if s.access is not None}
    steps = list(first.steps)
    made = {_meaning(s): Temp(i) for i, s in enumerate(steps) if s.access is None}
    names: list[Temp] = []
    for step in second.steps:
        if step.access is not None:
            store = stored.get(step.access.buffer)
            if store is not None:
                if store.combine or store.access != step.access:
                    return None
                names.append(store.source)
                continue
            if step.access in loaded:
                names.append(loaded[step.access])
                continue
            loaded[step.access] = Temp(len(steps))
        args = tuple([names[x] if isinstance(x, Temp) else x for x in step.args])
        step = dataclasses.replace(step, args=args)
        known = made.setdefault(_meaning(step), Temp(len(steps))) if step.access is None else Temp(len(steps))
        names.append(known)
        if known == len(steps):
            steps.append(step)
    stores = first.stores + [dataclasses.replace(s, source=names[s.source]) for s in second.stores]
    return Loop(sizes, steps, stores, first.where + [w for w in second.where if w not in first.where])


def _meaning(step: Step) -> tuple[Any, ...]:
    """What two computed scalars must have in common to be one. The texts tell 0.0 from -0.0 and 1 from True."""
    return step.text, step.args, repr(step.args), step.dtype, step.literal_dtype


def kept_stores(loop: Loop, needed: set[Id]) -> Loop:
    """The loop without stores that nobody reads, and without the scalars that only they used."""
    stores = [s for s in loop.stores if s.access.buffer in needed]
    used: set[int] = {int(s.source) for s in stores}
    for i in range(len(loop.steps) - 1, -1, -1):
        if i in used:
            used.update(int(x) for x in loop.steps[i].args if isinstance(x, Temp))
    names = {old: Temp(new) for new, old in enumerate(sorted(used))}
    steps = [
        dataclasses.replace(
            loop.steps[i], args=tuple([names[int(x)] if isinstance(x, Temp) else x for x in loop.steps[i].args])
        )
        for i in sorted(used)
    ]
    return Loop(loop.sizes, steps, [dataclasses.replace(s, source=names[int(s.source)]) for s in stores], loop.where)


