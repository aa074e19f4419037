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


def capture(steps: Sequence[Callable[[], Any]]) -> Any:
    """What the steps launch, as one graph: `launch()` runs it on the current stream.

    The steps have run before, so that their modules are loaded. They must not allocate, copy from or to the host, or
    wait; if they do, or raise, the capture is ended and forgotten and the error goes on.
    """
    cupy = launch.cupy()
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with stream:
        stream.begin_capture()
        try:
            for step in steps:
                step()
        except BaseException:
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture()


class Shared:
    """A piece of the device's memory. Every array over it, and every view of one, holds on to `keeper`."""

    def __init__(self, block: Any, offset: int, nbytes: int) -> None:
        self.keeper = launch.cupy().cuda.UnownedMemory(block.data.ptr + offset, nbytes, block)

    def array(self, shape: tuple[int, ...], dtype: Any, offset: int = 0, strides: Sequence[int] | None = None) -> Any:
        """An array over it; offset and strides count elements."""
        cuda = launch.cupy().cuda
        size = dtype.itemsize
        pointer = cuda.MemoryPointer(self.keeper, offset * size)
        steps = None if strides is None else tuple([n * size for n in strides])
        return launch.cupy().ndarray(shape, dtype, pointer, steps)
