"""What a function does besides computing: it changes what it reaches, writes, asks for the time.

Changes are found by comparing what was there before with what is there afterwards; prints and the clock by watching the
calls of C functions (`sys.setprofile`, of this thread only, and only if nobody else is profiling).
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import io
import sys
import types
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.accelerate.captures import CHANGING, Captures, Source, is_user_file, line_of_change
from minidl.core.dlarray import DLArray
from minidl.core.tape import place, set_watch
from minidl.core.tree import flatten, paths

_CLOCKS = frozenset([
    "time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time",
    "process_time_ns", "now", "utcnow", "today", "urandom",
])  # fmt: skip
_WATCHED = _CLOCKS | CHANGING | {"print", "pop", "popitem", "popleft", "setdefault", "__setitem__", "__delitem__"}
_CONTAINERS = (list, dict, set, collections.deque, bytearray)
LARGE_BYTES = 1 << 20  # of arrays above this size a checksum is kept, not a copy


@dataclasses.dataclass(frozen=True)
class Effect:
    """kind "change", "output" or "clock"; what, and where (file:line); is_read: the function reads what it changes."""

    kind: str
    path: str
    where: str
    is_read: bool = False


class Watch:
    """Around a run of a function: afterwards `effects` says what it did besides computing."""

    def __init__(self, captures: Captures, leaves: Sequence[Any]) -> None:
        self._captures, self._leaves = captures, leaves
        read = {id(source) for source in captures.reads}
        self._sources = [(source, id(source) in read) for source in dict.fromkeys(captures.reads + captures.writes)]
        self._before = [_content(source.read(leaves)) for source, _ in self._sources]
        self._lines: dict[int, str] = {}  # container by id -> where a method changed it
        self._calls: dict[Effect, None] = {}
        self.effects: list[Effect] = []

    def __enter__(self) -> Watch:
        self._is_profiling = sys.getprofile() is None
        if self._is_profiling:
            set_watch(self._look)
            sys.setprofile(self._look)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._is_profiling:
            sys.setprofile(None)
            set_watch(None)
        if kind is None:
            self.effects = [*self._changes(), *self._calls]

    def _changes(self) -> list[Effect]:
        found = []
        for (source, is_read), before in zip(self._sources, self._before):
            after = _content(source.read(self._leaves))
            if before.is_same(after):
                continue
            where = next((self._lines[i] for i in after.containers if i in self._lines), None)
            where = where or line_of_change(self._captures.codes, source.name)
            found.append(Effect("change", _changed_path(source, before, after), where, is_read))
        return found

    def _look(self, frame: types.FrameType, event: str, called: Any) -> None:
        if event != "c_call" or called.__name__ not in _WATCHED:
            return
        name, owner = called.__name__, getattr(called, "__self__", None)
        if name == "print":
            self._note("output", "print", frame)
        elif isinstance(owner, io.IOBase):
            if name in ("write", "writelines"):
                self._note("output", name, frame)
        elif isinstance(owner, _CONTAINERS):
            if is_user_file(frame.f_code.co_filename):
                self._lines[id(owner)] = place(frame.f_code.co_filename, frame.f_lineno)
        elif name in _CLOCKS and is_user_file(frame.f_code.co_filename):
            home = getattr(owner, "__name__", "")
            if home in ("time", "posix", "nt") or owner in (datetime.datetime, datetime.date):
                self._note("clock", f"{home}.{name}", frame)

    def _note(self, kind: str, path: str, frame: types.FrameType | None) -> None:
        while frame is not None and not is_user_file(frame.f_code.co_filename):
            name = frame.f_globals.get("__name__", "")
            if name == "warnings" or name.startswith("minidl."):
                return  # a warning, a cache file: not the function's output
            frame = frame.f_back
        if frame is not None:
            where = place(frame.f_code.co_filename, frame.f_lineno)
            if not (path == "write" and Effect(kind, "print", where) in self._calls):  # a print writes
                self._calls.setdefault(Effect(kind, path, where))


# snapshots ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class _Content:
    """What an object holds: leaves in a form that can be compared later, kept alive so that ids stay theirs."""

    structure: Any
    leaves: list[Any]
    paths: list[str]
    containers: list[int]
    kept: list[Any]

    def is_same(self, other: _Content) -> bool:
        return self.structure == other.structure and self.leaves == other.leaves


def _content(x: Any) -> _Content:
    leaves, structure = flatten(x)
    return _Content(structure, [_state(leaf) for leaf in leaves], paths(x), _containers(x), leaves)


def _state(x: Any) -> tuple[Any, ...]:
    """Something equal as long as the leaf is as it was. Runs no code of the user's."""
    kind = type(x)
    if kind is DLArray:
        return "dlarray", x._labels, x._value.age
    if isinstance(x, np.ndarray) and not x.dtype.hasobject:
        if not x.flags.writeable and x.flags.owndata:
            return "array", id(x)
        data: Any = np.ascontiguousarray(x).data if x.nbytes > LARGE_BYTES else x.tobytes()
        return "array", x.shape, x.dtype, zlib.crc32(data) if x.nbytes > LARGE_BYTES else data
    if isinstance(x, (list, set, frozenset, collections.deque)):
        return kind, [_state(y) for y in tuple(x)]
    if isinstance(x, bytearray):
        return kind, bytes(x)
    if kind in (bool, int, str, bytes):
        return kind, x
    return (kind, repr(x)) if kind in (float, complex) else ("object", id(x))


def _containers(x: Any) -> list[int]:
    """The ids of an object and of the containers inside it."""
    if isinstance(x, dict):
        return [id(x), *(i for y in list(dict.values(x)) for i in _containers(y))]
    if isinstance(x, (list, tuple, set, frozenset, collections.deque, bytearray)):
        return [id(x), *(i for y in tuple(x) for i in _containers(y) if not isinstance(x, bytearray))]
    return []


def _changed_path(source: Source, before: _Content, after: _Content) -> str:
    """The name of the source, and of the element if just one has changed."""
    if before.structure != after.structure:
        return source.path
    places = [place for place, a, b in zip(after.paths, before.leaves, after.leaves) if a != b]
    if len(places) != 1 or not places[0]:
        return source.path
    return source.path + (places[0] if places[0].startswith("[") else f".{places[0]}")
