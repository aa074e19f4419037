"""The C library's memory: freed arrays stay with the process, for the arrays of the next step.

By default glibc gives every array above some size back to the system when it is freed and asks for fresh pages, to be
zeroed one by one, for the next: in a training loop that can cost more than the arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 1 << 28  # freed memory beyond this at the end of the heap goes back to the system
LARGE_BYTES = 1 << 25  # a larger array has pages of its own (32 MB, the most that glibc allows)


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory; whether it could be asked (it can on Linux with glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
    return False
