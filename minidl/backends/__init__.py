"""Floor 2: who computes. A backend offers `run(op, specs, arrays, params)`: arrays, or None if it has no kernel.

`reference` is plain NumPy and defines what is right; `cpu` is the default: Numba kernels, the reference for the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from minidl.backends import cpu, reference

BACKENDS: dict[str, Any] = {"reference": reference, "cpu": cpu}
_current: Any = cpu


def current() -> Any:
    """The backend in use."""
    return _current


def run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> Any:
    """Results of `op` as arrays, or None if this backend has no kernel for it."""
    return _current.run(op, specs, arrays, params)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute on the named backend during the block ('reference' or 'cpu')."""
    global _current
    before, _current = _current, BACKENDS[name]
    try:
        yield
    finally:
        _current = before
