"""Tape: the list of calls, in the order they happened. autodiff reads it backwards, accelerate forwards."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minidl.core.spec import Value

_HOUSE = str(Path(__file__).resolve().parents[1]) + os.sep


class Call:
    """One op applied: op, inputs (Values, or Python numbers as literals), params, outputs, the user's source line."""

    __slots__ = ("op", "inputs", "params", "outputs", "where")

    def __init__(
        self, op: Any, inputs: tuple[Any, ...], params: dict[str, Any], outputs: tuple[Value, ...], where: str = ""
    ) -> None:
        self.op, self.inputs, self.params, self.outputs, self.where = op, inputs, params, outputs, where

    def __repr__(self) -> str:
        return f"{self.op.name}({', '.join(map(repr, self.inputs))})"


class Tape:
    """A list of calls and the values that depend on the tape's roots.

    A gradient tape (`everything=False`) keeps the calls that a root reaches; a recording keeps all of them, with the
    source line of each, and notes where Python looked at a number that depends on a root (`reads`).
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.everything = everything
        self.calls: list[Call] = []
        self.known: dict[int, Value] = {}  # by id; holding the value keeps the id from being given out again
        self.released: set[int] = set()
        self.reads: list[str] = []
        self.is_paused = False

    def add_root(self, value: Value) -> None:
        self.known[id(value)] = value

    def knows(self, value: Value) -> bool:
        return id(value) in self.known

    def record(self, call: Call) -> None:
        if self.is_paused:
            return
        known = self.known
        depends = any(id(x) in known for x in call.inputs)
        if not depends and not self.everything:
            return
        if self.everything:
            call.where = call.where or user_line()
        self.calls.append(call)
        if depends:
            for value in call.outputs:
                known[id(value)] = value


class _Open(threading.local):
    def __init__(self) -> None:
        self.tapes: list[Tape] = []


_open = _Open()


def open_tapes() -> list[Tape]:
    """This thread's open tapes, innermost last."""
    return _open.tapes


@contextlib.contextmanager
def opened(tape: Tape) -> Iterator[Tape]:
    """Open `tape` for the block; whatever happens inside, it is closed again."""
    tapes = _open.tapes
    depth = len(tapes)
    tapes.append(tape)
    try:
        with np.errstate(all="ignore"):  # inf and nan are results like others; set once here, not at every call
            yield tape
    finally:
        del tapes[depth:]


@contextlib.contextmanager
def alone(tape: Tape | None = None) -> Iterator[None]:
    """Hide all open tapes for the block (and show only `tape`, if given)."""
    before, _open.tapes = _open.tapes, [] if tape is None else [tape]
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _open.tapes = before


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


def note_read(value: Value) -> None:
    """Python is about to look at the numbers of `value`: recordings that it depends on must not be replayed."""
    for tape in _open.tapes:
        if tape.everything and id(value) in tape.known:
            tape.reads.append(user_line())


def user_line() -> str:
    """file:line of the innermost frame outside minidl."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HOUSE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"
