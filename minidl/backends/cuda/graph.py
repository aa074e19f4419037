"""CUDA graphs: launches captured once and launched as one, and changed where inputs lie elsewhere; shared memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from minidl.backends.environment import is_on
from minidl.kernels.cuda import launch


def is_wanted() -> bool:
    """Whether programs are to be captured: not with MINIDL_CUDA_GRAPHS=0."""
    return is_on("MINIDL_CUDA_GRAPHS")


def capture(steps: Sequence[Callable[[], Any]], streams: Sequence[int], needed: Sequence[set[int]]) -> Any:
    """What the steps launch, as one graph: `launch()` runs it on the current stream.

    streams : for each step the number of the stream to launch it on; several streams become branches of the graph
    needed  : for each step the numbers of those that it has to wait for
    The steps have run before, so that their modules are loaded. They must not allocate, copy from or to the host, or
    wait; if they do, or raise, the capture is ended and forgotten and the error goes on.
    """
    cuda = launch.cupy().cuda
    count = max(streams, default=0) + 1
    made = [cuda.Stream(non_blocking=True) for _ in range(count)]  # the default stream cannot be captured
    origin = made[0]
    with origin:
        origin.begin_capture()
        try:
            _launch_in_branches(steps, streams, needed, made)
        except BaseException:
            with contextlib.suppress(Exception):
                origin.end_capture()
            raise
        return origin.end_capture()


def _launch_in_branches(
    steps: Sequence[Callable[[], Any]], streams: Sequence[int], needed: Sequence[set[int]], made: list[Any]
) -> None:
    cuda = launch.cupy().cuda
    start = _marked(cuda, made[0])
    for stream in made[1:]:
        stream.wait_event(start)
    others = {i for j, mine in enumerate(needed) for i in mine if streams[i] != streams[j]}
    ends: dict[int, Any] = {}
    for j, (step, number) in enumerate(zip(steps, streams)):
        stream = made[number]
        for i in sorted(needed[j]):
            if streams[i] != number:
                stream.wait_event(ends[i])
        with stream:
            step()
        if j in others:
            ends[j] = _marked(cuda, stream)
    for stream in made[1:]:
        made[0].wait_event(_marked(cuda, stream))


def _marked(cuda: Any, stream: Any) -> Any:
    event = cuda.Event(disable_timing=True)
    event.record(stream)
    return event


def can_redirect() -> bool:
    """Whether arguments of captured launches can be changed: by the driver, which CuPy does not offer."""
    return launch.driver() is not None


class Arguments:
    """The kernels of a captured graph and their arguments, to be changed when arrays lie elsewhere.

    is_possible : whether all that the graph does is known: kernels whose arguments have 8 bytes, as all of ours have
    """

    def __init__(self, graph: Any) -> None:
        self._driver, self._executable = launch.driver(), 0
        self._nodes: list[tuple[Any, Any, Any, Any]] = []  # (node, parameters, words, what points to them)
        try:
            self._executable = graph.graphExec
            self.is_possible = self._driver is not None and self._read(graph.graph)
        except Exception:  # an old driver, or CuPy, lacks a name; then nothing is changed, and inputs are copied
            self.is_possible = False

    def _read(self, graph: int) -> bool:
        driver = self._driver
        handle = driver.CUgraph(graph)
        error, _, count = driver.cuGraphGetNodes(handle)
        error, nodes, _ = driver.cuGraphGetNodes(handle, count) if not error else (error, [], 0)
        if error:
            return False
        kinds = driver.CUgraphNodeType
        for node in nodes[:count]:
            error, kind = driver.cuGraphNodeGetType(node)
            if error or kind not in (kinds.CU_GRAPH_NODE_TYPE_KERNEL, kinds.CU_GRAPH_NODE_TYPE_EMPTY):
                return False
            if kind == kinds.CU_GRAPH_NODE_TYPE_KERNEL and not self._read_kernel(node):
                return False
        return True

    def _read_kernel(self, node: Any) -> bool:
        driver = self._driver
        error, params = driver.cuGraphKernelNodeGetParams(node)
        if error or not int(params.func):
            return False
        found: list[int] = []
        while True:
            error, _, size = driver.cuFuncGetParamInfo(params.func, len(found))
            if error:
                break
            if size != 8:
                return False
            place = ctypes.c_void_p.from_address(int(params.kernelParams) + 8 * len(found)).value
            assert place is not None
            found.append(ctypes.c_uint64.from_address(place).value)
        words = (ctypes.c_uint64 * max(len(found), 1))(*found)
        pointers = (ctypes.c_void_p * len(words))(*[ctypes.addressof(words) + 8 * i for i in range(len(words))])
        params.kernelParams = ctypes.addressof(pointers)
        self._nodes.append((node, params, words, pointers))
        return True

    def redirect(self, ranges: Sequence[tuple[int, int, int]]) -> bool:
        """For each (old address, bytes, new address): what was read there is read here by launches from now on.

        False if the driver refuses; the graph is then of no use any more.
        """
        driver = self._driver
        executable = driver.CUgraphExec(self._executable)
        for node, params, words, _ in self._nodes:
            is_changed = False
            for i, word in enumerate(words):
                for old, nbytes, new in ranges:
                    if old <= word < old + nbytes:
                        words[i], is_changed = word - old + new, True
            if is_changed and driver.cuGraphExecKernelNodeSetParams(executable, node, params)[0]:
                return False
        return True


class Shared:
    """A piece of the device's memory.

    Whoever has an array over it, or a view of one, holds on to the array, to its pointer (`array.data`) or to `keeper`.
    """

    def __init__(self, block: Any, offset: int, nbytes: int) -> None:
        cuda = launch.cupy().cuda
        self.keeper = cuda.UnownedMemory(block.data.ptr + offset, nbytes, block, cuda.Device().id)

    def array(self, shape: tuple[int, ...], dtype: Any, offset: int = 0, strides: Sequence[int] | None = None) -> Any:
        """An array over it; offset and strides count elements."""
        cuda = launch.cupy().cuda
        size = dtype.itemsize
        pointer = cuda.MemoryPointer(self.keeper, offset * size)
        steps = None if strides is None else tuple([n * size for n in strides])
        return launch.cupy().ndarray(shape, dtype, pointer, steps)
