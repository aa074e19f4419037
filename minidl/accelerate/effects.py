"""What a function does besides computing: it changes what it reaches, writes, asks for the time.

Changes are found by comparing what was there before with what is there afterwards; prints and the clock by watching the
calls of C functions (`sys.setprofile`, of this thread only, and only if nobody else is profiling).
"""

from __future__ import annotations

import array
import collections
import concurrent.futures
import dataclasses
import datetime
import dis
import io
import os
import queue
import random
import re
import sys
import threading
import types
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.accelerate.captures import CHANGING, Captures, Source, is_user_file, line_of_change
from minidl.accelerate.ownership import own_attributes
from minidl.core.dlarray import DLArray
from minidl.core.places import place
from minidl.core.tape import set_watch
from minidl.core.tree import flatten, paths

# C functions by name -> the modules (or classes) that they are of; what they give is another thing at another time
_CLOCKS = dict.fromkeys([
    "time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time",
    "process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "localtime", "gmtime",
    "ctime", "asctime", "strftime",
], ("time",)) | {
    "now": (), "utcnow": (), "today": (), "times": ("posix", "nt"), "getpid": ("posix", "nt"),
    "getppid": ("posix", "nt"), "getloadavg": ("posix", "nt"), "getrusage": ("resource",),
    "get_ident": ("_thread",), "get_native_id": ("_thread",),
}  # fmt: skip
_CHANCE = {
    "urandom": ("posix", "nt"), "getrandom": ("posix",), "generate_time_safe": ("_uuid",), "UuidCreate": ("_uuid",),
    "RAND_bytes": ("_ssl",),
}  # fmt: skip
_FILES = dict.fromkeys(["listdir", "scandir", "stat", "lstat", "access", "readlink", "getcwd"], ("posix", "nt"))
_OUTSIDE = _FILES | {
    "open": ("io", "_io", "posix", "nt"), "input": ("builtins",), "system": ("posix", "nt"), "read": ("posix", "nt"),
    "fork_exec": ("_posixsubprocess",), "CreateProcess": ("_winapi",), "fromfile": ("numpy",), "recv": (),
    "recv_into": (), "recvfrom": (), "connect": (),
}  # fmt: skip
_THREADS = {"start_new_thread": ("_thread",), "start_joinable_thread": ("_thread",)}
_FRAMES = {"_getframe": ("sys",), "_current_frames": ("sys",), "get_objects": ("gc",), "get_referrers": ("gc",)}
_KINDS: list[tuple[str, Any]] = [
    ("clock", _CLOCKS), ("chance", _CHANCE), ("outside", _OUTSIDE), ("frames", _FRAMES), ("threads", _THREADS),
]  # fmt: skip
_SAYING = {name: (kind, homes) for kind, table in _KINDS for name, homes in table.items()}
# the same of functions in Python
_CODES = {
    id(function.__code__): (kind, path)
    for function, kind, path in [
        (type(os.environ).__getitem__, "outside", "os.environ"),
        (type(os.environ).__iter__, "outside", "os.environ"),
        (random.Random.seed, "chance", "Random()"),
        (threading.current_thread, "clock", "current_thread"),
        (threading.Thread.start, "threads", "Thread.start"),
        (threading.Thread.join, "threads", "Thread.join"),
        (concurrent.futures.Future.result, "threads", "Future.result"),
        (queue.Queue.get, "threads", "Queue.get"),
    ]
}
# packages whose own business the time and files are: nothing of it gets into results
_QUIET = frozenset([
    "minidl", "warnings", "logging", "threading", "tqdm", "importlib", "_frozen_importlib",
    "_frozen_importlib_external", "zipimport", "pkgutil", "linecache", "traceback", "tokenize", "numba", "llvmlite",
    "cupy", "cuda", "concurrent", "multiprocessing", "IPython", "ipykernel", "zmq", "jupyter_client", "debugpy",
    "pydevd", "coverage", "_pytest", "pytest",
])  # fmt: skip
_QUIET_ABOUT = {
    "output": frozenset(["warnings", "minidl"]),
    "threads": _QUIET - {"threading", "concurrent", "multiprocessing"},
}
_TAKING = {"pop", "popitem", "popleft", "setdefault", "__setitem__", "__delitem__"}
_WATCHED = _SAYING.keys() | CHANGING | _TAKING | {"print"}
_CONTAINERS = (list, dict, set, collections.deque, bytearray)
_FILLED = (np.ndarray, *_CONTAINERS, array.array, memoryview)
LARGE_BYTES = 1 << 20  # of arrays above this size a checksum is kept, not a copy


@dataclasses.dataclass(frozen=True)
class Effect:
    """What, and where (file:line).

    kind : "change" (is_read: the function reads what it changes), "fill" (of an argument), "output"; or what it asks
           that may say something else each time: "clock", "chance", "outside" (files, the environment, other
           processes), "frames", "threads".
    """

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
        self._theirs = [_counts(x) for x, _, _ in captures.theirs]
        self._given = [(k, _state(x)) for k, x in enumerate(leaves) if isinstance(x, _FILLED)]
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
            if before.is_same(after) or source.holder is sys.modules:  # a module that was imported just now
                continue
            where = next((self._lines[i] for i in after.containers if i in self._lines), None)
            where = where or line_of_change(self._captures.codes, source.name)
            found.append(Effect("change", _changed_path(source, before, after), where, is_read))
        for (x, path, line), counts in zip(self._captures.theirs, self._theirs):
            if any(name in counts and counts[name] != new for name, new in _counts(x).items()):
                found.append(Effect("change", path, line, True))
        for k, state in self._given:
            if _state(self._leaves[k]) != state:
                path = self._captures.names[k]
                where = self._lines.get(id(self._leaves[k])) or line_of_change(self._captures.codes, path)
                found.append(Effect("fill", path, where))
        return found

    def _look(self, frame: types.FrameType, event: str, called: Any) -> None:
        if event == "call":
            found = _CODES.get(id(frame.f_code))
            if found is not None and not (found[1] == "Random()" and frame.f_locals.get("a") is not None):
                self._note(*found, frame.f_back)
            return
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
        elif name in _SAYING:
            self._say(name, owner, called, frame)

    def _say(self, name: str, owner: Any, called: Any, frame: types.FrameType) -> None:
        """A call of a C function that has the name of one that says something else each time: is it that one?"""
        kind, homes = _SAYING[name]
        home = str(getattr(owner, "__name__", None) or getattr(called, "__module__", None) or type(owner).__name__)
        if homes and home.partition(".")[0] not in homes:
            return
        if not homes and not (isinstance(owner, type) and issubclass(owner, datetime.date) or home == "socket"):
            return
        if name == "open" and _is_for_writing(frame):
            return
        if kind == "frames" and not is_user_file(frame.f_code.co_filename):
            if frame.f_globals.get("__name__") != "inspect" or frame.f_back is None:
                return
            if not is_user_file(frame.f_back.f_code.co_filename):
                return
        if kind == "clock" and "-packages" in frame.f_code.co_filename:
            return  # a library's own: perhaps it was called by the garbage collection, wherever that came
        if kind == "chance" and _is_seeded(frame):
            return
        self._note(kind, name if home in ("builtins", "io", "_io") else f"{home}.{name}", frame)

    def _note(self, kind: str, path: str, frame: types.FrameType | None) -> None:
        while frame is not None and not _is_users(frame):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _QUIET_ABOUT.get(kind, _QUIET):
                return  # a warning, a cache file: not the function's output
            frame = frame.f_back
        if frame is not None:
            where = place(frame.f_code.co_filename, frame.f_lineno)
            if not (path == "write" and Effect(kind, "print", where) in self._calls):  # a print writes
                self._calls.setdefault(Effect(kind, path, where))


def _is_users(frame: types.FrameType) -> bool:
    """Whether the user's code runs there; generated code belongs to who had it generated."""
    name, file = frame.f_code.co_filename, frame.f_globals.get("__file__")
    if name == "<string>" and isinstance(file, str):
        return is_user_file(file)
    is_loose = name == "<string>" and str(frame.f_globals.get("__name__")) in ("None", "builtins")
    return is_user_file(name) and not is_loose


def _is_seeded(frame: types.FrameType | None) -> bool:
    """Whether the numbers are for a RandomState(seed), which draws some of the system's and makes no use of them."""
    while frame is not None and frame.f_globals.get("__name__") in ("random", "secrets"):
        frame = frame.f_back
    if frame is None:
        return False
    before = [x for x in dis.get_instructions(frame.f_code) if x.offset < frame.f_lasti]
    named = [k for k, x in enumerate(before) if x.argval == "RandomState"]
    loads = [x for x in before[named[-1] + 1 :] if x.opname.startswith("LOAD_")] if named else []
    if len(loads) != 1:
        return False
    spaces = (frame.f_locals, frame.f_globals)
    name = loads[0].argval
    seed = name if loads[0].opname == "LOAD_CONST" else next((x[name] for x in spaces if name in x), None)
    return seed is not None


def _is_for_writing(frame: types.FrameType) -> bool:
    """Whether the call of `open` that a frame is at can only write: told by the mode that stands in the code, or in a
    variable `mode`."""
    before = [x for x in dis.get_instructions(frame.f_code) if x.offset <= frame.f_lasti]
    named = [k for k, x in enumerate(before) if x.argval == "open"]
    loads = [x for x in before[named[-1] + 1 :] if x.opname.startswith("LOAD_")] if named else []
    texts: list[Any] = [x.argval for x in loads[1:] if x.opname == "LOAD_CONST"]
    texts.append(frame.f_locals.get("mode"))
    modes = [text for text in texts if isinstance(text, str) and re.fullmatch("[rwxabtU+]+", text)]
    return bool(modes) and modes[0][0] in "wxa" and "+" not in modes[0]


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


def _counts(x: Any) -> dict[str, Any]:
    """Numbers and arrays that an object of a library has as attributes: how far it is, if it goes on with each use."""
    return {
        name: _state(y) for name, y in list(own_attributes(x).items())
        if type(y) in (int, float, bool) or type(y) is np.ndarray and not y.dtype.hasobject
    }  # fmt: skip


def _state(x: Any) -> tuple[Any, ...]:
    """Something equal as long as the leaf is as it was. Runs no code of the user's."""
    kind = type(x)
    if kind is DLArray:
        return "dlarray", x._labels, x._value.age
    if isinstance(x, np.ndarray) and not x.dtype.hasobject:
        data: Any = np.ascontiguousarray(x).data if x.nbytes > LARGE_BYTES else x.tobytes()
        return "array", x.shape, x.dtype, zlib.crc32(data) if x.nbytes > LARGE_BYTES else data
    if isinstance(x, (list, set, frozenset, collections.deque)):
        return kind, [_state(y) for y in tuple(x)]
    if isinstance(x, np.ndarray):
        return "array", x.shape, tuple(map(id, x.reshape(-1).tolist()))
    if isinstance(x, (bytearray, array.array, memoryview)):
        return kind, bytes(x)
    if isinstance(x, dict):
        return kind, [(id(k), _state(y)) for k, y in dict.items(x)]
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
