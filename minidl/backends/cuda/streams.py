"""Streams and devices: all that minidl does on a GPU is done in the order in which it was asked for, on one device.

Programs, frames, tables and mini-batches are memory that calls share, so a call on another stream than the one before
waits there for what that one has left to do. Each piece of work stands between `begin` and `end`. As long as there is
one stream alone, that costs a look at which it is.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, NamedTuple

from minidl import backends
from minidl.kernels.cuda import launch

PER_THREAD = 2  # what CUDA calls the default stream of each thread: one name, another stream in every thread
MOST_MARKS = 16  # from then on streams that have nothing left to do are forgotten


class _Mark(NamedTuple):
    """The end of a stream's work: the number of that work, an event behind it, the stream (so that it lives)."""

    number: int
    event: Any
    stream: Any


Key = tuple[int, int]  # of a stream: the id of CuPy's object, and of the thread if each has its own


class _State:
    """What is known of streams and devices since the first work."""

    def __init__(self) -> None:
        cuda = launch.cupy().cuda
        self.cuda = cuda
        self.current, self.get_device = cuda.get_current_stream, cuda.runtime.getDevice
        self.device: int = self.get_device()
        self.has_others = cuda.runtime.getDeviceCount() > 1
        self.lock = threading.Lock()
        self.alone: Any = None  # CuPy's default stream, while all work was there
        self.only: tuple[Key, Any] | None = None  # the one stream there was so far
        self.are_many = False
        self.marks: dict[Key, _Mark] = {}
        self.waited: dict[Key, int] = {}  # all work up to this number was waited for
        self.numbers = itertools.count(1)


_state: _State | None = None


def begin(who: str) -> None:
    """What follows comes after all that was launched before, on whatever stream. Call `end` after it.

    Raises DeviceError if another device is current than at first, or if the current stream is being captured.
    """
    state = _state or _begun()
    if state.has_others and state.get_device() != state.device:
        raise backends.refused(_about_devices(who, f"device {state.get_device()} is current", state.device))
    stream = state.current()
    if stream is not state.alone:
        _enter(who, state, stream)


def end() -> None:
    """The work is launched."""
    state = _state
    if state is not None and state.are_many:
        _leave(state, state.current())


def check_device(who: str, x: Any) -> None:
    """Raise DeviceError if an array lies on another device."""
    state = _state or _begun()
    if state.has_others and int(x.device.id) != state.device:
        raise backends.refused(_about_devices(who, f"an array lies on device {x.device.id}", state.device))


def has_begun() -> bool:
    """Whether there was any work."""
    return _state is not None


def forget() -> None:
    """As if nothing had been launched yet."""
    global _state
    _state = None


def _begun() -> _State:
    global _state
    _state = _State()
    return _state


def _about_devices(who: str, found: str, first: int) -> str:
    return (
        f"{who}: minidl computes on one GPU, in this process device {first}, the first one that it used; here {found}. "
        "Use one process for each GPU, and say which by the environment variable CUDA_VISIBLE_DEVICES; or make a "
        "device current (cupy.cuda.Device(n).use()) before minidl first looks for a GPU, and in every thread."
    )


def _key(stream: Any) -> Key:
    return id(stream), threading.get_ident() if stream.ptr == PER_THREAD else 0


def _enter(who: str, state: _State, stream: Any) -> None:
    if stream.ptr and stream.is_capturing():
        raise backends.refused(
            f"{who}: the current stream ({stream}) is being captured, and minidl's calls allocate, so they cannot be "
            "part of a graph. Call it before or after the capture; dlaccelerate captures its calls itself."
        )
    key = _key(stream)
    with state.lock:
        if not state.are_many:
            if state.only is None:
                state.only = key, stream
                state.are_many = bool(key[1])  # a thread cannot speak for the stream of another one
                state.alone = None if stream.ptr else stream
                return
            if state.only[0] == key:
                return
            state.are_many, state.alone = True, None  # before the event: whoever is at work will mark its end
            _mark(state, *state.only)
        for other, mark in list(state.marks.items()):
            if other != key and mark.number > state.waited.get(key, 0):
                stream.wait_event(mark.event)
        if len(state.marks) > MOST_MARKS:
            _drop_idle(state)
        state.waited[key] = max([mark.number for mark in state.marks.values()], default=0)


def _leave(state: _State, stream: Any) -> None:
    with state.lock:
        _mark(state, _key(stream), stream)


def _mark(state: _State, key: Key, stream: Any) -> None:
    event = state.cuda.Event(disable_timing=True)
    event.record(stream)
    state.marks[key] = _Mark(next(state.numbers), event, stream)


def _drop_idle(state: _State) -> None:
    """Forget streams that have nothing left to do; one of them that comes again is new."""
    for key, mark in list(state.marks.items()):
        if mark.event.done:
            del state.marks[key]
            state.waited.pop(key, None)
