"""Streams and graphs without a GPU: what is launched while a stream captures is noted, and run by the graph's launch.

As on a GPU, nothing may be allocated, copied to or from the host or waited for while a stream captures: each is an
error that says so, and the capture is void.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any


class CaptureError(RuntimeError):
    """What CUDA calls cudaErrorStreamCaptureUnsupported."""


class _Now(threading.local):
    def __init__(self) -> None:
        self.streams: list[Any] = []


_now = _Now()


class Node:
    """A launch in a graph, and those that have to have run before it."""

    def __init__(self, name: str, run: Callable[[], None], needed: set[Node]) -> None:
        self.name, self.run, self.needed = name, run, needed


class Graph:
    """Launches and what each has to wait for; they run in an order that respects that, another one at every launch.

    The first launch takes them as they were captured. Later ones take them in any order that a GPU could: what has
    to wait and does not, is seen as a wrong result.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.count = 0  # how often it was launched

    @property
    def names(self) -> list[str]:
        """The kernels, in the order of their capture."""
        return [node.name for node in self.nodes]

    @property
    def depth(self) -> int:
        """How many launches have to wait for one another, at most."""
        depths: dict[Node, int] = {}
        for node in self.nodes:
            depths[node] = 1 + max((depths[x] for x in node.needed), default=0)
        return max(depths.values(), default=0)

    def launch(self, stream: Any = None) -> None:
        refuse("a graph's launch")
        chance = random.Random(self.count)
        waiting, done = list(self.nodes), set()
        while waiting:
            ready = [node for node in waiting if node.needed <= done]
            node = ready[0 if self.count == 0 else -1 if self.count == 1 else chance.randrange(len(ready))]
            node.run()
            done.add(node)
            waiting.remove(node)
        self.count += 1

    def upload(self, stream: Any = None) -> None:
        pass


class Capture:
    """What is captured from one stream on and from those that wait for it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.is_void = False


class Event:
    """A moment of a stream: whatever was launched before has run."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.front: set[Node] = set()
        self.capture: Capture | None = None

    def record(self, stream: Any = None) -> None:
        stream = stream or current()
        self.front, self.capture, self.moment = set(stream.front), stream.capture, time.perf_counter()

    def synchronize(self) -> None:
        refuse("waiting for an event")


class Stream:
    """A stream; the current one of a thread is the innermost in a `with` statement."""

    graphs: list[Graph] = []  # all that were captured, for tests

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.is_null = null
        self.capture: Capture | None = None
        self.is_origin = False
        self.front: set[Node] = set()  # the latest launches

    def __enter__(self) -> Stream:
        _now.streams.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _now.streams.pop()

    def begin_capture(self, mode: Any = None) -> None:
        if self.is_null:
            raise RuntimeError("cannot capture on default (legacy) stream")
        if self.capture is not None:
            raise CaptureError("cudaErrorIllegalState: the stream is capturing already")
        self.capture, self.is_origin, self.front = Capture(), True, set()

    def end_capture(self) -> Graph:
        if self.capture is None or not self.is_origin:
            raise CaptureError("cudaErrorIllegalState: no capture began on this stream")
        capture, self.capture, self.is_origin = self.capture, None, False
        behind, waiting = set(), list(self.front)
        while waiting:
            node = waiting.pop()
            if node not in behind:
                behind.add(node)
                waiting += node.needed
        self.front = set()
        if capture.is_void:
            raise CaptureError("cudaErrorStreamCaptureInvalidated: something was done that cannot be captured")
        if behind != set(capture.nodes):
            raise CaptureError("cudaErrorStreamCaptureUnjoined: a stream was not joined again")
        graph = Graph(capture.nodes)
        Stream.graphs.append(graph)
        return graph

    def wait_event(self, event: Event) -> None:
        if event.capture is not None:
            if self.capture is not None and self.capture is not event.capture:
                raise CaptureError("cudaErrorStreamCaptureMerge: two captures would become one")
            self.capture = event.capture
        self.front = self.front | event.front

    def is_capturing(self) -> bool:
        return self.capture is not None

    def synchronize(self) -> None:
        refuse("waiting for a stream")


NULL = Stream(null=True)


def current() -> Stream:
    """The stream of this thread."""
    return _now.streams[-1] if _now.streams else NULL


def refuse(what: str) -> None:
    """Called by what must not be captured."""
    stream = current()
    if stream.capture is not None:
        stream.capture.is_void = True
        raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures")


def launched(name: str, run: Callable[[], None]) -> None:
    """A kernel is launched on the current stream."""
    stream = current()
    if stream.capture is None:
        run()
        return
    node = Node(name, run, stream.front)
    stream.capture.nodes.append(node)
    stream.front = {node}
