"""Streams and graphs without a GPU: what is launched while a stream captures is noted, and run by the graph's launch.

Within `lazily()` streams are as late as they may be: a launch or a copy runs when somebody waits for it, after what its
stream had to do before, and after the events that its stream was told to wait for; what other streams have to do stays
undone. So where an order is missing, it is seen as a wrong result.

As on a GPU, nothing may be allocated, copied to or from the host or waited for while a stream captures: each is an
error that says so, and the capture is void.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any


class CaptureError(RuntimeError):
    """What CUDA calls cudaErrorStreamCaptureUnsupported."""


class _Now(threading.local):
    def __init__(self) -> None:
        self.streams: list[Any] = []


_now = _Now()


class Work:
    """Something that a stream has to do, and what has to be done before."""

    def __init__(self, run: Callable[[], None], needed: set[Work], stream: Stream) -> None:
        self.run: Callable[[], None] | None = run
        self.needed, self.stream = needed, stream

    def do(self) -> None:
        """It and what it needs, if that is not done yet: first what its own stream has to do, then what others have."""
        waiting = [self]
        while waiting:
            left = [work for work in waiting[-1].needed if work.run is not None]
            if left:
                waiting += sorted(left, key=lambda work: work.stream is waiting[-1].stream)
                continue
            work = waiting.pop()
            if work.run is not None:
                run, work.run, work.needed = work.run, None, set()
                run()


_undone: list[Work] | None = None  # in the order in which it was asked for; None if streams are not lazy


@contextlib.contextmanager
def lazily() -> Iterator[None]:
    """Streams do what they have to do as late as they may."""
    global _undone
    _undone = []
    try:
        yield
    finally:
        undone, _undone = _undone, None
        for work in undone:
            work.do()
        held.clear()


held: list[Any] = []  # memory that undone work may touch


def hold(memory: Any) -> None:
    """Freed memory goes back to a pool; it is still there while somebody is late."""
    if _undone is not None:
        held.append(memory)


def issue(run: Callable[[], None]) -> None:
    """The current stream has this to do."""
    if _undone is None:
        run()
        return
    stream = current()
    needed = set(stream.tail)
    if stream.is_null or not stream.is_non_blocking:  # the default stream and those that heed it wait for each other
        for other in list(Stream.all):
            if other is not stream and (other.is_null or stream.is_null and not other.is_non_blocking):
                needed |= other.tail
    work = Work(run, needed, stream)
    stream.tail = {work}
    _undone.append(work)


def wait(stream: Any = None) -> None:
    """Until a stream has done what it has to do."""
    for work in (stream or current()).tail:
        work.do()


class Node:
    """A launch in a graph, and those that have to have run before it. values: its arguments, in ctypes."""

    def __init__(self, name: str, run: Callable[[], None], needed: set[Node], values: list[Any]) -> None:
        self.name, self.run, self.needed, self.values = name, run, needed, values


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
        issue(self._run)

    def _run(self) -> None:
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

    graph = graphExec = property(id)  # handles, for the driver


class Capture:
    """What is captured from one stream on and from those that wait for it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.is_void = False


class Event:
    """A moment of a stream: whatever was launched before has run."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.front: set[Node] = set()
        self.tail: set[Work] = set()
        self.capture: Capture | None = None

    def record(self, stream: Any = None) -> None:
        stream = stream or current()
        self.front, self.capture, self.moment = set(stream.front), stream.capture, time.perf_counter()
        self.tail = set(stream.tail)

    def synchronize(self) -> None:
        refuse("waiting for an event")
        for work in self.tail:
            work.do()

    @property
    def done(self) -> bool:
        return all(work.run is None for work in self.tail)


class Stream:
    """A stream; the current one of a thread is the innermost in a `with` statement."""

    graphs: list[Graph] = []  # all that were captured, for tests
    all: weakref.WeakSet[Stream] = weakref.WeakSet()
    null: Stream
    ptds: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else 2 if ptds else id(self)
        self.is_null, self.is_non_blocking = null, non_blocking
        self._tails: dict[int, set[Work]] = {}  # by thread, of the default stream of each thread
        Stream.all.add(self)
        self.capture: Capture | None = None
        self.is_origin = False
        self.front: set[Node] = set()  # the latest launches

    def _thread(self) -> int:
        return threading.get_ident() if self.ptr == 2 else 0

    @property
    def tail(self) -> set[Work]:
        """The latest of what it has to do."""
        return self._tails.get(self._thread(), set())

    @tail.setter
    def tail(self, works: set[Work]) -> None:
        self._tails[self._thread()] = works

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
        self.tail = self.tail | event.tail

    def is_capturing(self) -> bool:
        return self.capture is not None

    def synchronize(self) -> None:
        refuse("waiting for a stream")
        wait(self)


NULL = Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


def current() -> Stream:
    """The stream of this thread."""
    return _now.streams[-1] if _now.streams else NULL


def refuse(what: str) -> None:
    """Called by what must not be captured."""
    stream = current()
    if stream.capture is not None:
        stream.capture.is_void = True
        raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures")


def launched(name: str, run: Callable[[], None], values: list[Any]) -> None:
    """A kernel is launched on the current stream; values: its arguments, which `run` reads anew each time."""
    stream = current()
    if stream.capture is None:
        issue(run)
        return
    node = Node(name, run, stream.front, values)
    stream.capture.nodes.append(node)
    stream.front = {node}


# the driver ---------------------------------------------------------------------------------------------------------
KERNEL, MEMCPY, EMPTY = 0, 1, 5
NOTHING, FAILURE = 0, 1  # CUresult: no error, CUDA_ERROR_INVALID_VALUE


class KernelParams:
    """Parameters of a kernel's node: the arguments at the addresses that stand at `kernelParams`."""

    def __init__(self, node: Node) -> None:
        self.func = id(node)
        self._held = [ctypes.c_uint64(ctypes.c_uint64.from_buffer(x).value) for x in node.values]
        self._table = (ctypes.c_void_p * len(self._held))(*map(ctypes.addressof, self._held))
        self.kernelParams = ctypes.addressof(self._table)


def driver(*, fails_at: int = 0, other: str = "") -> SimpleNamespace:
    """What minidl uses of cuda.bindings.driver, for graphs of this module.

    fails_at : so manieth change of a node is refused; other: a kernel of this name counts as something else
    `changes` are the names of the kernels whose arguments were changed.
    """
    changes: list[str] = []

    def found(handle: int) -> Graph:
        return next(graph for graph in reversed(Stream.graphs) if id(graph) == handle)

    def nodes(handle: int, count: int = 0) -> tuple[int, list[Node], int]:
        all_of_them = found(handle).nodes
        return NOTHING, all_of_them[:count], len(all_of_them)

    def size_of(func: int, place: int) -> tuple[int, int, int]:
        values = next(n for graph in Stream.graphs for n in graph.nodes if id(n) == func).values
        known = place < len(values)
        return (NOTHING, 8 * place, ctypes.sizeof(values[place])) if known else (FAILURE, 0, 0)

    def change(handle: int, node: Node, params: KernelParams) -> tuple[int]:
        assert node in found(handle).nodes
        if len(changes) + 1 == fails_at:
            return (FAILURE,)
        for i, value in enumerate(node.values):
            at = ctypes.c_void_p.from_address(params.kernelParams + 8 * i).value
            assert at is not None
            ctypes.memmove(ctypes.addressof(value), at, 8)
        changes.append(node.name)
        return (NOTHING,)

    return SimpleNamespace(
        CUgraph=int, CUgraphExec=int, cuGraphGetNodes=nodes, cuFuncGetParamInfo=size_of,
        cuGraphNodeGetType=lambda node: (NOTHING, MEMCPY if node.name == other else KERNEL),
        cuGraphKernelNodeGetParams=lambda node: (NOTHING, KernelParams(node)),
        cuGraphExecKernelNodeSetParams=change, changes=changes,
        CUgraphNodeType=SimpleNamespace(CU_GRAPH_NODE_TYPE_KERNEL=KERNEL, CU_GRAPH_NODE_TYPE_EMPTY=EMPTY),
    )  # fmt: skip
