"""Tape: the list of calls, in the order they happened. autodiff reads it backwards, accelerate forwards."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minidl.core.places import user_line
from minidl.core.spec import Value, next_age


class Call:
    """One op applied: op, inputs (Values, or Python numbers as literals), params, outputs, the user's source line.

    A call made on the way back by dlgradient has the line of the call that it differentiates, and `is_gradient`.
    """

    __slots__ = ("op", "inputs", "params", "outputs", "where", "is_gradient")

    def __init__(
        self, op: Any, inputs: tuple[Any, ...], params: dict[str, Any], outputs: tuple[Value, ...], where: str = ""
    ) -> None:
        self.op, self.inputs, self.params, self.outputs, self.where = op, inputs, params, outputs, where
        self.is_gradient = False

    def __repr__(self) -> str:
        return f"{self.op.name}({', '.join(map(repr, self.inputs))})"


class Tape:
    """A list of calls and the values that depend on the tape's roots.

    A gradient tape (`everything=False`) keeps the calls that a root reaches; a recording keeps all of them, with the
    source line of each, and notes what Python looked at (`reads`). To a recording every value that was there before it
    began is a root: it may be another one at the next call.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.everything = everything
        self.calls: list[Call] = []
        self.known: dict[int, Value] = {}  # by id; holding the value keeps the id from being given out again
        self.released: set[int] = set()
        self.reads: list[tuple[Value, str]] = []
        self.is_paused = False
        self.given: list[Any] = []  # what dlfeval was called with, leaf by leaf; for complaints
        self.began = next_age()

    def add_root(self, value: Value) -> None:
        self.known[id(value)] = value

    def knows(self, value: Value) -> bool:
        return id(value) in self.known

    def was_before(self, value: Value) -> bool:
        """Whether a value is older than this tape."""
        return value.age < self.began

    def record(self, call: Call) -> None:
        if self.is_paused:
            return
        known = self.known
        depends = any(id(x) in known for x in call.inputs)
        if self.everything:
            if not call.where:
                behind = _open.behind
                call.where, call.is_gradient = (behind.where, True) if behind and behind.where else (user_line(), False)
            depends = depends or any(type(x) is Value and x.age < self.began for x in call.inputs)
        elif not depends:
            return
        self.calls.append(call)
        if depends:
            for value in call.outputs:
                known[id(value)] = value


class Mark:
    """What some tapes hold at a moment. `restore` takes them back to it."""

    def __init__(self, tapes: Iterable[Tape]) -> None:
        self._held = [(tape, list(tape.calls), len(tape.known), set(tape.released)) for tape in tapes]

    def restore(self) -> None:
        for tape, calls, known, released in self._held:
            tape.calls[:], tape.released = calls, released
            while len(tape.known) > known:  # the latest came last
                tape.known.popitem()


class _Open(threading.local):
    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.horizon = 0  # what values of a lower age were made of does not count
        self.behind: Call | None = None  # the call whose derivative is being computed
        self.is_alone = False  # the tapes are hidden
        self.watch: Any = None  # the profile function of a recording, which kernels need not be seen by


_open = _Open()


following: list[Tape] = []  # what all threads have open


def open_tapes() -> list[Tape]:
    """This thread's open tapes, innermost last."""
    return _open.tapes


@contextlib.contextmanager
def opened(tape: Tape) -> Iterator[Tape]:
    """Open `tape` for the block; whatever happens inside, it is closed again."""
    tapes, horizon = _open.tapes, _open.horizon
    depth = len(tapes)
    tapes.append(tape)
    if tape.everything:
        _open.horizon = tape.began
    following.append(tape)
    try:
        with np.errstate(all="ignore"):  # inf and nan are results like others; set once here, not at every call
            yield tape
    finally:
        following.remove(tape)
        del tapes[depth:]
        _open.horizon = horizon


@contextlib.contextmanager
def alone(tape: Tape | None = None) -> Iterator[None]:
    """Hide all open tapes for the block (and show only `tape`, if given), and what its arguments were made of."""
    before = _open.tapes, _open.is_alone, _open.horizon
    _open.tapes, _open.is_alone, _open.horizon = [] if tape is None else [tape], True, next_age()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _open.tapes, _open.is_alone, _open.horizon = before


def horizon() -> int:
    """The age from which on values tell what they were made of.

    A recording, and the body of an op, depend on their arguments and on nothing behind these.
    """
    return _open.horizon


@contextlib.contextmanager
def within() -> Iterator[None]:
    """The block depends on its arguments and on nothing behind these."""
    before, _open.horizon = _open.horizon, next_age()
    try:
        yield
    finally:
        _open.horizon = before


@contextlib.contextmanager
def paused(tapes: Iterable[Tape]) -> Iterator[None]:
    """Keep the given tapes from recording during the block."""
    stopped = [tape for tape in tapes if not tape.is_paused]
    for tape in stopped:
        tape.is_paused = True
    try:
        yield
    finally:
        for tape in stopped:
            tape.is_paused = False


@contextlib.contextmanager
def going_back() -> Iterator[_Open]:
    """Set `.behind` of what this gives to a call: calls made then compute its derivative and take its source line."""
    before = _open.behind
    try:
        yield _open
    finally:
        _open.behind = before


def set_watch(watch: Any) -> None:
    """Name this thread's profile function as one that is stopped while kernels run (and are compiled)."""
    _open.watch = watch


def is_watched() -> bool:
    """Whether there is such a function."""
    return _open.watch is not None


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Stop it for the block."""
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(_open.watch)


def note_read(value: Value) -> None:
    """Python is about to look at the numbers of `value`: what it does then need not be right for other numbers."""
    for tape in _open.tapes:
        if tape.everything and (id(value) in tape.known or value.age < tape.began):
            tape.reads.append((value, user_line()))


def note_use_elsewhere(value: Value) -> bool:
    """In a thread without tapes: tell the recordings of other threads that know `value` that it was looked at.

    Returns whether a gradient tape follows it there, so that what is computed here from it loses its derivative.
    """
    if _open.is_alone:
        return False
    found = False
    for tape in following[:]:
        if tape.known.get(id(value)) is value:
            found |= not (tape.everything or tape.is_paused)
            if tape.everything:
                tape.reads.append((value, user_line()))
    return found


def is_differentiated(value: Value) -> bool:
    """Whether a gradient tape is following `value`: numbers taken out of it lose their derivative."""
    if not _open.tapes:
        return note_use_elsewhere(value)
    return any([not tape.everything and not tape.is_paused and id(value) in tape.known for tape in _open.tapes])
