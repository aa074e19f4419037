"""CUDA graphs: launches captured once and launched as one; memory whose users can be counted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from minidl.kernels.cuda import launch


def is_wanted() -> bool:
    """Whether programs are to be captured: not with MINIDL_CUDA_GRAPHS=0."""
    return os.environ.get("MINIDL_CUDA_GRAPHS") != "0"


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
