"""From the text of a .cu file to a kernel that can be launched: constants in front, includes in place, then compiled.

Conventions of all kernels in this room, since CuPy passes Python's numbers so: whole numbers are `i64`, reals are
`double`, arrays are pointers. Constants are macros in capitals. A launch on no blocks is none.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from . import compiler

HERE = Path(__file__).parent
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
    compiler.workers.forget()
    the_compiler.cache_clear()
    _modules.clear()
    loaded.cache_clear()
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


_modules: dict[str, compiler.Job[Any]] = {}


@functools.cache
def the_compiler() -> compiler.Compiler:
    """The compiler for this device. Raises NoCompiler if there is none."""
    return compiler.Compiler(cupy())


def module(text: str) -> compiler.Job[Any]:
    """The compiled module of a whole text, begun by a worker: so what is asked for together is compiled together."""
    job = _modules.get(text)
    if job is None:
        job = _modules[text] = compiler.Job(functools.partial(the_compiler().code, text))
        compiler.workers.add(job)
    return job


@functools.cache
def loaded(text: str) -> Any:
    """The module, where the device can run it."""
    made = cupy().cuda.Module()
    made.load(module(text)())
    return made


@functools.cache
def kernel(file: str, name: str, **constants: Any) -> Launch:
    """The kernel `name` of a .cu file, for these constants."""
    return Launch(source(text_of(file), tuple(constants.items())), name)


@functools.cache
def compiled(text: str, name: str) -> Launch:
    """The kernel `name` of a whole text, such as a generated one."""
    return Launch(text, name)


class Launch:
    """A kernel: `launch(grid, block, arguments, shared=bytes)`; grid and block are numbers or tuples.

    It is compiled ahead, and loaded at its first launch.
    """

    def __init__(self, text: str, name: str) -> None:
        module(text)
        self._text, self._name = text, name
        self._function: Any = None
        self._largest = STATIC_SHARED_BYTES

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], *, shared: int = 0) -> None:
        grid = grid if isinstance(grid, tuple) else (grid,)
        block = block if isinstance(block, tuple) else (block,)
        if 0 in grid:
            return
        if self._function is None:
            self._function = loaded(self._text).get_function(self._name)
        if shared > self._largest:
            driver = cupy().cuda.driver
            driver.funcSetAttribute(
                self._function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared
            )
            self._largest = shared
        self._function(grid, block, arguments, shared_mem=shared)


def _renew() -> None:
    compiler.workers.forget()
    for job in _modules.values():
        job.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
