"""Floor 2: who computes. A backend offers `run(op, specs, arrays, params)`: arrays, or None if it has no kernel.

`reference` is plain NumPy and defines what is right; `cpu` is the default: Numba kernels, the reference for the rest;
`cuda` is for data on a GPU. The device of a call follows its data.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from minidl.backends import cpu, precision, reference

BACKENDS: dict[str, Any] = {"reference": reference, "cpu": cpu}
_current: Any = cpu
_gpu: Any = None
_has_gpu_arrays = False


class NoRoom(MemoryError):
    """An array found no room on the GPU, even after everything unused was freed."""


no_room: type[NoRoom] = NoRoom  # what is raised then; the floor above has a name of its own for it
refused: type[Exception] = RuntimeError  # the same for what is asked of a GPU and cannot be


def current() -> Any:
    """The backend in use for data in the host's memory."""
    return _current


def gpu() -> Any:
    """The backend for data in a GPU's memory; of CUDA it imports nothing before that is needed."""
    global _gpu
    if _gpu is None:
        _gpu = importlib.import_module("minidl.backends.cuda")
    return _gpu


def setting() -> str:
    """Everything global that alters results, as a text: part of every signature."""
    name: str = _current.__name__
    how = precision.current()
    return name if how == precision.NAMES[0] else f"{name}, {how}"


def has_used_gpu() -> bool:
    """Whether there can be arrays on a GPU."""
    return _has_gpu_arrays


def as_gpu_array(x: Any, who: str = "gpuArray") -> Any:
    """An array of NumPy's, or of another library on the GPU, as CuPy's. Raises DeviceError if it is on another GPU."""
    global _has_gpu_arrays
    _has_gpu_arrays = True
    return gpu().as_array(x, who)


def of(device: str) -> Any:
    """The backend for data on that device."""
    return _current if device == "cpu" else gpu()


def run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> Any:
    """Results of `op` as arrays on the device of its specs, or None if the backend there has no kernel for it."""
    global _has_gpu_arrays
    if specs[0].device == "cpu":
        return _current.run(op, specs, arrays, params)
    _has_gpu_arrays = True
    return gpu().run(op, specs, arrays, params)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute on the named backend during the block ('reference' or 'cpu')."""
    global _current
    before, _current = _current, BACKENDS[name]
    try:
        yield
    finally:
        _current = before
