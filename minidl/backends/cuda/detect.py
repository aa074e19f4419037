"""Whether there is a GPU that can be used, and if not, why: asked once, at the first need, never at import."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from minidl import backends
from minidl.backends import environment
from minidl.backends.cuda import streams
from minidl.kernels.cuda import compiler, launch

OLDEST_CUPY = 14  # earlier ones have graphs whose kernels cannot be told, and extras without a compiler
_is_forked = False


def complaint() -> str:
    """Why no GPU can be used, with the remedy; '' if one can."""
    if _is_forked:
        return (
            "this process was forked from one that uses the GPU, and CUDA does not survive that. Start workers by "
            'multiprocessing.get_context("spawn"), or before the GPU is first used.'
        )
    return _complaint(environment.device())


@functools.cache
def _complaint(wanted: str) -> str:
    if wanted == "cpu":
        return "the environment variable MINIDL_DEVICE is cpu. Unset it."
    try:
        cupy = launch.cupy()
    except ImportError as error:
        if getattr(error, "name", "") == "cupy":
            return (
                f"CuPy is not installed. For a driver of CUDA 13 (nvidia-smi tells): {_installing(13)}; of CUDA 12: "
                f"{_installing(12)}."
            )
        return f"CuPy is installed but cannot be imported ({error}). Reinstall it: pip install --force-reinstall."
    try:
        return _trial(cupy)
    except compiler.NoCompiler as error:
        return (
            f"{error}. It comes with CuPy's extra ctk: {_installing(_built(cupy))}; or install the CUDA Toolkit and "
            "set CUDA_PATH."
        )
    except backends.refused:  # not here and now: it is asked again
        raise
    except Exception as error:  # a broken driver, no memory, a compiler that fails
        return f"a small computation on it failed ({type(error).__name__}: {error}). Check the driver: nvidia-smi."


def _installing(cuda: int) -> str:
    """How CuPy and CUDA's compiler are installed for a version of CUDA."""
    return f"pip install --upgrade 'cupy-cuda{cuda}x[ctk]>={OLDEST_CUPY}'"


def _built(cupy: Any) -> int:
    """For which CUDA this CuPy is made."""
    return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000


_TWICE = """
// y[i] = 2 x[i] for the threads of one block. Grid: one block. No shared memory. Floor: a launch.
extern "C" __global__ void twice(double *y, const double *x) { y[threadIdx.x] = 2 * x[threadIdx.x]; }
"""


def _trial(cupy: Any) -> str:
    if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
        return (
            f"CuPy {cupy.__version__} is too old: minidl needs {OLDEST_CUPY} or later. Update it: "
            f"{_installing(_built(cupy))}."
        )
    driver, built = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if not driver:
        return "there is no NVIDIA driver on this machine. Compute on the CPU, or install the driver."
    if driver // 1000 < built // 1000:
        return (
            f"the driver is too old: it supports CUDA {_version(driver)}, CuPy is made for {_version(built)}. Update "
            f"it, or install the CuPy that it supports: {_installing(driver // 1000)}."
        )
    if not cupy.cuda.is_available() or not cupy.cuda.runtime.getDeviceCount():
        return "the driver shows no GPU (CUDA_VISIBLE_DEVICES may hide it). Look at nvidia-smi."
    streams.begin("gpuArray")
    try:
        return _computed(cupy)
    finally:
        streams.end()


def _computed(cupy: Any) -> str:
    """What is wrong with a little work."""
    wanted = np.arange(4.0)
    there = cupy.asarray(wanted)
    if not np.array_equal(there.get(), wanted):
        return "numbers copied to it and back are not the same. Look at nvidia-smi and the system's log."
    made = cupy.empty(wanted.shape)
    launch.compiled(launch.text_of("portable.h") + _TWICE, "twice")(1, wanted.size, (made, there))
    if not np.array_equal(made.get(), 2 * wanted):
        return "a kernel compiled for it computed nonsense. Look at nvidia-smi and the system's log."
    return ""


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def forget() -> None:
    """Ask again at the next need."""
    _complaint.cache_clear()


def _note_fork() -> None:
    global _is_forked
    was_asked = _complaint.cache_info().currsize > 0
    _is_forked = _is_forked or (was_asked and not _complaint(environment.device()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
