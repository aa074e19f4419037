"""Streams and graphs without a GPU: what is launched while a stream captures is noted, and run when the graph is launched.

As on a GPU, nothing may be allocated, copied to or from the host or waited for while a stream captures: each is an
error that says so, and the capture is void.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class CaptureError(RuntimeError):
    """What CUDA calls cudaErrorStreamCaptureUnsupported."""


class _Now(threading.local):
    def __init__(self) -> None:
        self.streams: list[Any] = []


_now = _Now()


class Graph:
    """Launches in the order in which they were captured."""

    def __init__(self, launches: list[tuple[str, Callable[[], None]]]) -> None:
        self.launches = launches
        self.count = 0  # how often it was launched

    @property
    def names(self) -> list[str]:
        """The kernels, in order."""
        return [name for name, _ in self.launches]

    def launch(self, stream: Any = None) -> None:
        refuse("a graph's launch")
        self.count += 1
        for _, run in self.launches:
            run()

    def upload(self, stream: Any = None) -> None:
        pass


class Stream:
    """A stream; the current one of a thread is the innermost in a `with` statement."""

    graphs: list[Graph] = []  # all that were captured, for tests

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.is_null = null
        self.captured: list[tuple[str, Callable[[], None]]] | None = None
        self.is_void = False

    def __enter__(self) -> Stream:
        _now.streams.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _now.streams.pop()

    def begin_capture(self, mode: Any = None) -> None:
        if self.is_null:
            raise RuntimeError("cannot capture on default (legacy) stream")
        if self.captured is not None:
            raise CaptureError("cudaErrorIllegalState: the stream is capturing already")
        self.captured, self.is_void = [], False

    def end_capture(self) -> Graph:
        if self.captured is None:
            raise CaptureError("cudaErrorIllegalState: the stream is not capturing")
        launches, self.captured = self.captured, None
        if self.is_void:
            raise CaptureError("cudaErrorStreamCaptureInvalidated: something was done that cannot be captured")
        graph = Graph(launches)
        Stream.graphs.append(graph)
        return graph

    def is_capturing(self) -> bool:
        return self.captured is not None

    def synchronize(self) -> None:
        refuse("waiting for a stream")


NULL = Stream(null=True)


def current() -> Stream:
    """The stream of this thread."""
    return _now.streams[-1] if _now.streams else NULL


def refuse(what: str) -> None:
    """Called by what must not be captured."""
    stream = current()
    if stream.captured is not None:
        stream.is_void = True
        raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures")


def launched(name: str, run: Callable[[], None]) -> None:
    """A kernel is launched on the current stream."""
    stream = current()
    if stream.captured is not None:
        stream.captured.append((name, run))
    else:
        run()
