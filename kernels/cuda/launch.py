"""From the text of a .cu file to a kernel that can be launched: constants in front, includes in place, CuPy compiles.

Conventions of all kernels in this room, since CuPy passes Python's numbers so: whole numbers are `i64`, reals are
`double`, arrays are pointers. Constants are macros in capitals. A launch on no blocks is none.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
OPTIONS = ("-std=c++17",)
STATIC_SHARED_BYTES = 48 << 10  # a kernel that wants more has to ask for it
CTYPES = {
    "float32": "float", "float64": "double", "bool": "bool", "int64": "i64", "uint64": "u64", "int32": "int",
}  # fmt: skip

_library: Any = None
_driver: Any = None


def cupy() -> Any:
    """CuPy, imported at the first need; tests put another library with the same words in its place (`use`)."""
    global _library
    if _library is None:
        import cupy as library

        _library = library
    return _library


def driver() -> Any:
    """CUDA's driver, by the names of NVIDIA's `cuda.bindings.driver`; None where that is not installed."""
    global _driver
    if _library is None or _library.__name__ != "cupy":
        return _driver  # what stands for CuPy has no driver, unless `use` names one
    if _driver is None:
        try:
            _driver = importlib.import_module("cuda.bindings.driver")
        except Exception:  # not there, or not able to find the driver
            _driver = False
    return _driver or None


def use(library: Any, its_driver: Any = None) -> None:
    """Let this library stand for CuPy from now on; None for CuPy itself."""
    global _library, _driver
    _library, _driver = library, its_driver
    module.cache_clear()
    kernel.cache_clear()
    compiled.cache_clear()


@functools.cache
def text_of(file: str) -> str:
    """A file of this room with the room's headers in the place of their includes, each once."""
    return _inlined(file, set())


def _inlined(file: str, seen: set[str]) -> str:
    seen.add(file)

    def put(found: re.Match[str]) -> str:
        name = found[1]
        if not (HERE / name).exists():
            return found[0]  # cusim.h: only there where the kernels run on the CPU
        return "" if name in seen else _inlined(name, seen)

    return re.sub(r'^#include "([^"]+)"\n', put, (HERE / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


def source(text: str, constants: tuple[tuple[str, Any], ...]) -> str:
    """Text with its constants in front: ints and texts as they are, types by their names in C."""
    lines = [f"#define {name} {_constant(value)}\n" for name, value in constants]
    return "".join(lines) + text


def _constant(value: Any) -> str:
    if isinstance(value, np.dtype):
        return CTYPES[value.name]
    return str(int(value)) if isinstance(value, (bool, np.bool_)) else str(value)


@functools.cache
def module(text: str) -> Any:
    """The compiled module of a whole text."""
    return cupy().RawModule(code=text, options=OPTIONS, backend="nvrtc")


@functools.cache
def kernel(file: str, name: str, **constants: Any) -> Launch:
    """The kernel `name` of a .cu file, for these constants."""
    return Launch(module(source(text_of(file), tuple(constants.items()))).get_function(name))


@functools.cache
def compiled(text: str, name: str) -> Launch:
    """The kernel `name` of a whole text, such as a generated one."""
    return Launch(module(text).get_function(name))


class Launch:
    """A compiled kernel: `launch(grid, block, arguments, shared=bytes)`; grid and block are numbers or tuples."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function: Any = function
        self._largest = STATIC_SHARED_BYTES

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], *, shared: int = 0) -> None:
        grid = grid if isinstance(grid, tuple) else (grid,)
        block = block if isinstance(block, tuple) else (block,)
        if 0 in grid:
            return
        if shared > self._largest:
            self._function.max_dynamic_shared_size_bytes = shared
            self._largest = shared
        self._function(grid, block, arguments, shared_mem=shared)
