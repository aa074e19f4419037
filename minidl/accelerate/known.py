"""Calls whose arguments are results of earlier calls: they are known by their containers, not leaf by leaf.

Programs on a GPU give the same containers and dlarrays again (`core.handout`). So a training loop goes round among a
few sets of arguments, and what has been found out about a set is remembered: that it fits the signature, and which
executables are bound to where it lies. Arguments that are dlarrays, such as a mini-batch, are looked at each time.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minidl.accelerate.captures import Leaf
from minidl.accelerate.signature import Array, guard_of
from minidl.core import handout
from minidl.core.handout import Handout, is_suitable
from minidl.core.spec import Value
from minidl.core.tree import LEAF, count_leaves, shared_of
from minidl.engine.devices import DeviceFrame, DeviceProgram

if TYPE_CHECKING:
    from minidl.accelerate.recording import Trace

MOST_SETS = 16  # of arguments, remembered of a trace


class _Set:
    """Arguments that are parts of handouts: (handout, weakly; which child) for each that is a tree."""

    def __init__(self, parts: list[tuple[weakref.ref[Handout], int]], ids: frozenset[int]) -> None:
        self.parts, self.ids = parts, ids
        self.handouts = list(dict.fromkeys(me for me, _ in parts))
        self.executables: dict[Any, Any] = {}  # (frame, addresses of the other arrays) -> executable
        self.binding = -1  # how many bindings the program had made when these were found


def known_calls(trace: Trace, program: Any) -> KnownCalls | None:
    """For a trace whose results can be given again; None for others."""
    if not isinstance(program, DeviceProgram) or not program.has_own_results:
        return None
    inputs = len(trace.signature.pattern)
    is_right = (
        trace.has_handles_alone and trace.is_distinct and not trace.changed and is_suitable(trace.structure)
        and shared_of(trace.signature.arguments.structure) is None  # no container is there twice
        and all(k < inputs for k, _ in program.targets)  # no random numbers
        and not any(isinstance(source.holder, Leaf) for source in trace.signature.plan.sources)
        and not any(form.spec.size == 1 for _, form in trace.outlines)  # a number may be moved without its origin
    )  # fmt: skip
    return KnownCalls(trace, program) if is_right else None


class KnownCalls:
    """The sets of arguments that a trace was called with, and replays for them."""

    def __init__(self, trace: Trace, program: DeviceProgram) -> None:
        self._trace, self._program = weakref.ref(trace), program  # whoever calls this holds the trace
        self._captured_count = trace.captured_count
        self._sets: dict[tuple[int, ...], _Set] = {}
        signature = trace.signature
        leaves = iter(signature.arguments.leaves)
        self._trees: list[int] = []  # positional arguments that may be parts of handouts
        self._order: list[tuple[int, int]] = []  # of the values of a call: (number of the tree, how many) or (-1, 1)
        for k, child in enumerate(signature.arguments.structure[2][0][2]):
            own = list(itertools.islice(leaves, count_leaves(child)))
            is_array = [type(leaf) is Array for leaf in own]
            if child != LEAF and own and all(is_array) and is_suitable(child):
                self._order.append((len(self._trees), len(own)))
                self._trees.append(k)
            else:
                self._order.extend([(-1, 1)] * sum(is_array))
        rest = len(signature.pattern) - sum(n for _, n in self._order)
        self._order.extend([(-1, 1)] * rest)  # keywords and captures
        self._guard = guard_of(signature, self._trees)
        places, place = [], 0
        for tree, count in self._order:
            if tree < 0:
                places.append(place)
            place += count
        needed = {k: j for j, (k, _) in enumerate(program.targets)}
        self._others = [(number, k, needed[k]) for number, k in enumerate(places) if k in needed]
        self._other_inputs = frozenset([k for _, k, _ in self._others])

    def replay(self, args: tuple[Any, ...], kwargs: dict[str, Any], is_renewed: bool) -> tuple[Any] | None:
        """The results, in a tuple, if the call is known."""
        try:
            found = self._sets.get(tuple([id(args[k]) for k in self._trees]))
        except IndexError:
            return None
        if found is None:
            return None
        handouts = handout.all_intact(found.handouts)
        if handouts is None:
            return None
        values = self._guard(args, kwargs)
        if values is None or not self._is_distinct(found, values, is_renewed):
            return None
        return self._run(found, values, handouts)

    def _given(self, frame: DeviceFrame) -> tuple[Any]:
        trace = self._trace()
        assert trace is not None
        return (trace.given(frame),)

    def _is_distinct(self, found: _Set, values: list[Value], is_renewed: bool) -> bool:
        if is_renewed:  # arguments stand for arrays of their own; captures remain
            captured = values[len(values) - self._captured_count :] if self._captured_count else []
            return len(captured) < 2 or len(set(map(id, captured))) == len(captured)
        ids = set(map(id, values))
        return len(ids) == len(values) and found.ids.isdisjoint(ids)

    def _run(self, found: _Set, values: list[Value], handouts: Sequence[Handout]) -> tuple[Any] | None:
        program = self._program
        with program.lock:
            frame = program.free_frame(handouts)
            if frame is None:
                return None
            key = frame.number, *[program.address(j, values[n].data) for n, _, j in self._others]
            executable = found.executables.get(key) if found.binding == program.binding_count else None
            if executable is None:
                arrays: Any = self._arrays(found, values)
                executable = program.executable(frame, arrays)
                if found.binding != program.binding_count:
                    found.binding = program.binding_count
                    found.executables.clear()
                if len(found.executables) < MOST_SETS:
                    found.executables[key] = executable
            else:
                program.count_hit()
            if not executable.slots:
                arrays = ()
            elif executable.copied <= self._other_inputs:
                arrays = {k: values[n].data for n, k, _ in self._others}
            else:
                arrays = self._arrays(found, values)
            program.fill(executable, arrays)
            return self._given(frame)

    def replay_values(self, values: list[Value]) -> tuple[Any] | None:
        """The results of any call, in a tuple, given all values that it reads; None if no frame is free."""
        program = self._program
        with program.lock:
            frame = program.free_frame()
            if frame is None:
                return None
            arrays = [value.data for value in values]
            program.fill(program.executable(frame, arrays), arrays)
            return self._given(frame)

    def _arrays(self, found: _Set, values: list[Value]) -> list[Any]:
        """All arrays that the program reads; those of the random state, which it does not, are not there."""
        rest, arrays = iter(values), []
        for tree, _ in self._order:
            if tree < 0:
                arrays.append(next(rest).data)
            else:
                me, child = found.parts[tree]
                handout = me()
                assert handout is not None
                arrays.extend([value.data for value in handout.values_of(child)])
        return arrays

    def remember(self, args: tuple[Any, ...]) -> None:
        """The call's arguments fit: know them from now on, if they are parts of handouts."""
        parts: list[tuple[Handout, int]] = []
        ids: list[int] = []
        for k in self._trees:
            part = handout.known(args[k])
            if part is None or not part[0].is_intact():
                return
            parts.append(part)
            ids.extend(map(id, part[0].values_of(part[1])))
        key = tuple([id(args[k]) for k in self._trees])
        if key in self._sets:
            return
        while len(self._sets) >= MOST_SETS:
            self._sets.pop(next(iter(self._sets)), None)
        forget = functools.partial(_forget, weakref.ref(self), key)
        self._sets[key] = _Set([(weakref.ref(one, forget), child) for one, child in parts], frozenset(ids))


def _forget(me: weakref.ref[KnownCalls], key: tuple[int, ...], gone: Any) -> None:
    known = me()
    if known is not None:
        known._sets.pop(key, None)
