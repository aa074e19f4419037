"""Contractions with loops in their slots: the loops as lines of C, the arrays by their numbers, bound to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.backends import precision
from minidl.backends.cuda import printed
from minidl.kernels.cuda import contract, launch


def objection(fused: Any) -> str:
    """Why the template cannot do what a contraction is to do besides; '' if it can."""
    spelt = Spelt(fused)
    return contract.objection(
        fused.nests, *spelt.layouts(), dtype=fused.dtype, precision=precision.current(), slots=spelt.slots
    )


class Bound:
    """A contraction with slots, bound to memory. Called, it runs; scratch and counters are kept alive by it."""

    def __init__(self, fused: Any, flat: Callable[[Any], Any], before: Any) -> None:
        spelt = Spelt(fused)
        self._arrays = tuple([None if place is None else _placed(place, flat) for place in spelt.places])
        self._extras = tuple([flat(buffer) for buffer in spelt.buffers])
        layouts = [
            layout if x is None else layout._replace(is_aligned=_is_aligned(x))
            for layout, x in zip(spelt.layouts(), self._arrays)
        ]
        slots = spelt.slots._replace(is_aligned=all(map(_is_aligned, self._extras)))
        about: dict[str, Any] = {"dtype": fused.dtype, "precision": precision.current(), "slots": slots}
        self._plan = plan = contract.plan(fused.nests, *layouts, **about)
        plan.prepare()
        if isinstance(before, Bound) and (before._plan.scratch, before._plan.counters) == (plan.scratch, plan.counters):
            self._scratch: tuple[Any, ...] = before._scratch
            self._counters: Any = before._counters
        else:
            self._scratch, self._counters = new_scratch(plan)

    def __call__(self) -> None:
        self._plan.run(*self._arrays, self._extras, self._scratch, self._counters)


def bind_fused(fused: Any, flat: Callable[[Any], Any], before: Any = None) -> Callable[[], None]:
    """A contraction with slots as a function without arguments; flat(buffer) is a buffer as a flat array.

    before : what this gave for other memory. They never run at the same time, so both have the same scratch.
    """
    return Bound(fused, flat, before)


def _is_aligned(x: Any) -> bool:
    return bool(x.data.ptr % contract.BASE_ALIGNMENT == 0)


def new_scratch(plan: Any) -> tuple[tuple[Any, ...], Any]:
    """(a plan's scratch; what it counts its blocks with, at zero, or None if it does not count them)."""
    cupy = launch.cupy()
    counters = cupy.zeros(plan.counters, np.int32) if plan.counters else None
    return tuple([cupy.empty(shape, dtype) for shape, dtype in plan.scratch]), counters


def _placed(place: Any, flat: Callable[[Any], Any]) -> Any:
    memory, access = flat(place.access.buffer), place.access
    strides = tuple([n * memory.itemsize for n in access.strides])
    return launch.cupy().lib.stride_tricks.as_strided(memory[access.offset :], place.shape, strides)


class Spelt:
    """What a contraction and its loops are in the words of the template.

    slots   : the loops as C
    buffers : the arrays that they read and write, in the order of their numbers
    places  : of y, a and b; None for a y that nobody needs
    """

    def __init__(self, fused: Any) -> None:
        self._fused = fused
        self.buffers: list[Any] = []
        self._types: list[str] = []
        y, a, b = fused.places
        changes = [
            None if loop is None else self._change(loop, place, loop.stores[0].source)
            for loop, place in zip(fused.loads, (a, b))
        ]
        tail, stores, sums = fused.tail, [], []
        result, self.places = None, [y, a, b]
        if tail is not None:
            plain = [s for s in tail.stores if not s.combine]
            combined = [s for s in tail.stores if s.combine]
            source = None
            if not fused.keeps_y:  # the first store takes y's place, if it is one of its type
                first = next((s for s in plain if s.dtype == fused.dtype), None)
                self.places[0] = None
                if first is not None:
                    plain.remove(first)
                    self.places[0] = type(y)(y.shape, first.access)
                    source = first.source
            result = self._change(tail, y, source)
            stores = [self._stored(s) for s in plain]
            sums = [self._summed(s) for s in combined]
        end = self._end(fused.end, [s.access.buffer for s in tail.stores if s.combine]) if fused.end else None
        behind = self._behind(fused.behind) if fused.behind else None
        self.slots = contract.Slots(
            *changes, result, tuple(self._types), stores=tuple(stores), sums=tuple(sums), kept=fused.kept, tail=end,
            behind=behind, keeps_y=self.places[0] is not None,
        )  # fmt: skip

    def layouts(self) -> tuple[contract.Layout, ...]:
        """Layouts of y, a and b, as if they stood at round addresses."""
        places = [place or self._fused.places[0] for place in self.places]
        size = contract.BASE_ALIGNMENT // (8 if self._fused.dtype == "float64" else 4)
        return tuple([contract.Layout(p.shape, p.access.strides, p.access.offset % size == 0) for p in places])

    def _number(self, buffer: Any, dtype: str) -> int:
        if buffer not in self.buffers:
            self.buffers.append(buffer)
            self._types.append(dtype)
        return self.buffers.index(buffer)

    def _reads(self, loop: Any, known: Sequence[Any]) -> tuple[contract.Read, ...]:
        return tuple([
            contract.Read(f"t{i}", self._number(s.access.buffer, s.dtype), s.access.strides, s.access.offset)
            for i, s in enumerate(loop.steps)
            if s.access is not None and s.access.buffer not in known and s.access not in known
        ])  # fmt: skip

    def _change(self, loop: Any, place: Any, source: int | None) -> contract.Change:
        """The steps of a loop that begins with what lies at a place; without a source nothing becomes of that."""
        lines = []
        for i, step in enumerate(loop.steps):
            if step.access == place.access:
                lines.append(f"{printed.ctype(step.dtype)} t{i} = x;")
            elif step.access is None:
                lines.append(f"{printed.ctype(step.dtype)} t{i} = {printed.expression(step)};")
        text = "x" if source is None else f"t{int(source)}"
        return contract.Change(text, self._reads(loop, [place.access]), tuple(lines))

    def _stored(self, store: Any) -> contract.Stored:
        number = self._number(store.access.buffer, store.dtype)
        return contract.Stored(f"t{int(store.source)}", number, store.access.strides, store.access.offset)

    def _summed(self, store: Any) -> contract.Summed:
        text = f"(double)t{int(store.source)}"
        if store.access.buffer in self._fused.hidden:
            return contract.Summed(text)
        number = self._number(store.access.buffer, store.dtype)
        return contract.Summed(text, number, store.access.strides, store.access.offset)

    def _behind(self, loops: Sequence[Any]) -> contract.Behind:
        types = {s.access.buffer: s.dtype for loop in loops for s in (*loop.steps, *loop.stores) if s.access}
        bodies, lines = printed.in_turn(loops, "THREADS")
        heads, numbers = [], []
        for body in bodies:
            for declared, (_, buffer, offset) in zip(body.declared, body.arguments, strict=True):
                numbers.append(self._number(buffer, types[buffer]))
                heads.append(f"{declared} = e{numbers[-1]} + {offset};")
        return contract.Behind((*heads, *lines), tuple(dict.fromkeys(numbers)))

    def _end(self, loop: Any, sums: list[Any]) -> contract.Tail:
        lines = []
        for i, step in enumerate(loop.steps):
            c = printed.ctype(step.dtype)
            if step.access is None:
                lines.append(f"{c} t{i} = {printed.expression(step)};")
            elif step.access.buffer in sums:
                lines.append(f"{c} t{i} = ({c})s{sums.index(step.access.buffer)};")
        stores = tuple([self._stored(s) for s in loop.stores])
        return contract.Tail(tuple(lines), self._reads(loop, sums), stores)
