"""Devices: "cpu", whose arrays are NumPy's, and "gpu", whose arrays are CuPy's. A call is made where its data lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backends
from minidl.core.errors import DeviceError, DeviceMemoryError, DTypeError

backends.no_room, backends.refused = DeviceMemoryError, DeviceError


def device_of(data: Any) -> str:
    """Where an array lies."""
    return "cpu" if isinstance(data, np.ndarray) else "gpu"


def host(data: Any) -> Any:
    """The numbers of an array in the host's memory: itself if they are there (or if there are none)."""
    return data if data is None or isinstance(data, np.ndarray) else backends.gpu().fetched(data)


def copied(data: Any) -> Any:
    """A copy of an array, as it lies in memory, on the same device."""
    return data.copy("K") if isinstance(data, np.ndarray) else backends.gpu().copied(data)


def is_on_gpu(x: Any) -> bool:
    """Whether x is an array of some library in a GPU's memory (`__cuda_array_interface__`)."""
    return not isinstance(x, np.ndarray) and hasattr(x, "__cuda_array_interface__")


def gpu_array(who: str, x: Any) -> Any:
    """Such an array, or one of NumPy's, as CuPy's."""
    need_gpu(who)
    if isinstance(x, np.ndarray) and x.dtype.kind not in "fbiuc":
        raise DTypeError(f"{who}: numbers are wanted; got {x.dtype}. Text stays on the host: encode it first.")
    return backends.as_gpu_array(x, who)


def gpu_complaint() -> str:
    """Why no GPU can be used; '' if one can."""
    found: str = backends.gpu().complaint()
    return found


def need_gpu(who: str) -> None:
    """Raise DeviceError unless there is a GPU that can be used."""
    complaint = gpu_complaint()
    if complaint:
        raise DeviceError(f"{who}: no GPU can be used: {complaint}")
