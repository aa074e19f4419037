"""Memory of the device: when it runs out, what CuPy's pool keeps is freed and the work is tried once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from minidl import backends
from minidl.backends.cuda.streams import begin, end
from minidl.kernels.cuda import launch

T = TypeVar("T")
_releasing: dict[Callable[[], None], None] = {}


def releasing(release: Callable[[], None]) -> None:
    """`release()` lets go of memory that is kept to be used again; it is called when there is not enough."""
    _releasing[release] = None


def release_all() -> None:
    """Let go of all such memory."""
    for release in list(_releasing):
        release()


def new_bytes(nbytes: int) -> Any:
    """So many bytes of the device, to be kept."""
    return with_room(lambda: launch.cupy().empty(max(nbytes, 1), np.uint8), "dlaccelerate", ())


def new_table(rows: Sequence[Sequence[int]]) -> Any:
    """A table of addresses and counts on the device."""
    data = np.array(rows, np.int64)
    return with_room(lambda: launch.cupy().asarray(data), "dlaccelerate", (data,))


def with_room(work: Callable[[], T], who: str, specs: tuple[Any, ...]) -> T:
    """What the work gives, in order (`streams`); specs: its results, named in the error when they find no room."""
    begin(who)
    try:
        return _with_room(work, who, specs)
    finally:
        end()


def _with_room(work: Callable[[], T], who: str, specs: tuple[Any, ...]) -> T:
    cupy = launch.cupy()
    try:
        return work()
    except cupy.cuda.memory.OutOfMemoryError:
        pass
    release_all()
    cupy.get_default_memory_pool().free_all_blocks()
    try:
        return work()
    except cupy.cuda.memory.OutOfMemoryError as error:
        nbytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
        asked = f"{nbytes:,} bytes are asked for" if specs else str(error)
        free, total = cupy.cuda.runtime.memGetInfo()
        raise backends.no_room(
            f"{who}: the GPU has no room: {asked}, {free:,} of {total:,} are free. Use smaller "
            "mini-batches, let go of arrays that are not needed any more, or gather them to the host."
        ) from error
