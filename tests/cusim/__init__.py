"""CuPy's words without a GPU: arrays in host memory that act as if they were on a device, kernels run by cusim.cpp.

`minidl.kernels.cuda.launch.use(cusim)` puts this module in the place of CuPy. It offers what minidl uses of CuPy and no
more: NumPy cannot read its arrays by accident, new memory is poisoned with NaN, memory can run out (`limit_memory`).
Modules are compiled by g++, once per text; `order(seed)` sets in which order threads and blocks have their turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cusim import graphs

__version__ = "14.0.0"
HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"minidl-cusim-{getattr(os, 'getuid', int)()}"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-fPIC", "-shared"]
SANITIZERS = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
MOST_BYTES = 256 << 20  # of compiled kernels that are kept
POISON = 0xFF  # as bytes of float or double it is NaN, as int64 -1


# arrays ---------------------------------------------------------------------------------------------------------
class Pointer(int):
    """An address, as `array.data`."""

    @property
    def ptr(self) -> int:
        return int(self)


class ndarray:
    """An array of the device: shape, strides, views and copies, but no numbers without `get`."""

    __array_priority__ = 100.0
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, dtype: Any = float, memptr: Any = None, strides: Any = None) -> None:
        self._mem = memptr.mem if memptr is not None else None  # as in CuPy, each array and view holds on to its memory
        if memptr is not None:  # host is a shape
            memory = np.asarray(SimpleNamespace(__array_interface__=memptr.interface(), keeper=memptr.mem))
            host = np.ndarray(host, dtype, memory, memptr.offset, strides)
        self._host = host
        self.device = _Device()

    def __del__(self) -> None:
        if hasattr(self, "_host"):
            graphs.hold(self._host)

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    base = property(lambda self: None if self._host.base is None else ndarray(self._host.base))

    @property
    def data(self) -> Pointer:
        return Pointer(self._host.__array_interface__["data"][0])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._host.__array_interface__, "version": 3}

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __len__(self) -> int:
        return len(self._host)

    def get(self, stream: Any = None, order: str = "C") -> np.ndarray:
        graphs.refuse("a copy to the host")
        graphs.wait()
        return np.array(self._host, order=order)  # type: ignore[call-overload]

    def set(self, values: np.ndarray) -> None:
        graphs.refuse("a copy from the host")
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError("set: shape and type must be those of the array")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        _fill_later(self._host, np.array(values))

    def reshape(self, *shape: Any) -> ndarray:
        found = self._host.reshape(*shape)
        if found.size and not np.shares_memory(found, self._host):
            made = ndarray(_poisoned(found.shape, found.dtype))
            graphs.issue(lambda: np.copyto(made._host, self._host.reshape(*shape)))
            return made
        return self._viewed(found)

    def _viewed(self, host: np.ndarray) -> ndarray:
        view = ndarray(host)
        view._mem, view.device = self._mem, self.device
        return view

    def transpose(self, *order: Any) -> ndarray:
        return self._viewed(self._host.transpose(*order))

    def view(self, dtype: Any = None) -> ndarray:
        return self._viewed(self._host.view() if dtype is None else self._host.view(dtype))

    def copy(self, order: str = "C") -> ndarray:
        made = ndarray(np.array(self._host, order=order))  # type: ignore[call-overload]
        graphs.issue(lambda: np.copyto(made._host, self._host))
        return made

    def __getitem__(self, key: Any) -> ndarray:
        key = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(k, (int, slice, type(...), type(None))) for k in key):
            raise TypeError("only views can be taken here")
        found = self._host[key]
        return self._viewed(found if isinstance(found, np.ndarray) else self._host[(*key, ...)])


_limit: int | None = None
_freed = 0


def _fill_later(host: np.ndarray, values: np.ndarray) -> None:
    graphs.issue(lambda: np.copyto(host, values))


def _poisoned(shape: Any, dtype: Any, values: np.ndarray | None = None) -> np.ndarray:
    made = np.empty(shape, dtype)
    _find_room(made.nbytes)
    if made.size:
        made.reshape(-1).view(np.uint8)[:] = POISON
    if values is not None:
        made[...] = values
    return made


def _find_room(nbytes: int) -> None:
    graphs.refuse("an allocation")
    if _limit is not None and nbytes > _limit:
        raise cuda.memory.OutOfMemoryError(f"Out of memory allocating {nbytes} bytes (limit {_limit})")


def empty(shape: Any, dtype: Any = float) -> ndarray:
    return ndarray(_poisoned(shape, dtype))


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    made = ndarray(_poisoned(shape, dtype))
    _fill_later(made._host, np.zeros(shape, dtype))
    return made


def asarray(a: Any, dtype: Any = None) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else ndarray(a._host.astype(dtype))
    if hasattr(a, "__cuda_array_interface__"):
        about = SimpleNamespace(__array_interface__=a.__cuda_array_interface__, owner=a)
        made = ndarray(np.asarray(about))
        made.device = getattr(a, "device", made.device)  # CuPy asks the driver
        return made
    a = np.asarray(a, dtype)
    _find_room(a.nbytes)
    order = "K" if a.flags.forc else "C"
    made = ndarray(np.full_like(a, 0, order=order))  # type: ignore[call-overload]
    _fill_later(made._host, np.array(a))
    return made


def asnumpy(a: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def _as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    return x._viewed(np.lib.stride_tricks.as_strided(x._host, shape, strides))


lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_as_strided))


def _solve(a: ndarray, b: ndarray) -> ndarray:
    graphs.wait()
    try:
        return ndarray(np.linalg.solve(a._host, b._host))
    except np.linalg.LinAlgError:
        return ndarray(np.full((a.shape[1], b.shape[1]), np.nan, b.dtype))


linalg = SimpleNamespace(
    solve=_solve, lstsq=lambda a, b, rcond=None: (ndarray(np.linalg.lstsq(a._host, b._host, rcond=rcond)[0]),)
)


# the device ------------------------------------------------------------------------------------------------------
class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class UnownedMemory:
    """Memory that belongs to its owner; arrays over it hold on to this object."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = ptr, size, owner


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.offset = mem, offset

    def interface(self) -> dict[str, Any]:
        return {"shape": (self.mem.size,), "typestr": "|u1", "data": (self.mem.ptr, False), "version": 3}


class _Pool:
    def free_all_blocks(self) -> None:
        global _freed, _limit
        _freed += 1
        if _limit_after_freeing is not None:
            _limit = _limit_after_freeing

    def used_bytes(self) -> int:
        return 0


_limit_after_freeing: int | None = None


_count = 1
_here = threading.local()


def _get_device() -> int:
    return getattr(_here, "device", 0)


@contextlib.contextmanager
def devices(count: int) -> Iterator[None]:
    """There are so many GPUs."""
    global _count
    _count = count
    try:
        yield
    finally:
        _count, _here.device = 1, 0


class _Device:
    """A device: `with Device(n)` makes it the current one of this thread."""

    def __init__(self, device: int | None = None) -> None:
        self.id = _get_device() if device is None else device
        self._before: list[int] = []

    compute_capability = "90"

    def __enter__(self) -> _Device:
        self._before.append(_get_device())
        self.use()
        return self

    def __exit__(self, *error: Any) -> None:
        _here.device = self._before.pop()

    def use(self) -> None:
        _here.device = self.id

    def synchronize(self) -> None:
        pass


NVRTC_VERSION = (0, 1)  # none that there is: machine code kept between runs is never taken for that of a GPU
ARCHS = (75, 80, 90, 100, 120)


class NVRTCError(RuntimeError):
    pass


class _Program:
    """A text on its way through g++."""

    def __init__(self, text: str) -> None:
        self.text, self.log, self.options = text, "", ()


_programs: dict[int, _Program] = {}
compilations: list[str] = []  # texts that were compiled, for tests


def _create_program(src: str, name: str, headers: Any, include_names: Any) -> int:
    made = _Program(src)
    _programs[id(made)] = made
    return id(made)


def _compile_program(prog: int, options: tuple[str, ...]) -> None:
    """As NVRTC with these options would; the numbers have to be those of g++ here."""
    program, wanted = _programs[prog], {"-ftz=false", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-std=c++17"}
    if not wanted <= set(options) or not set(options) - wanted <= {f"-arch=sm_{arch}" for arch in ARCHS}:
        program.log = f"the shim has no kernels for the options {options}"
        raise NVRTCError("NVRTC_ERROR_INVALID_OPTION (5)")
    compilations.append(program.text)
    try:
        _compiled_text(program.text)
    except RuntimeError as error:
        program.log = str(error)
        raise NVRTCError("NVRTC_ERROR_COMPILATION (6)") from None


_nvrtc = SimpleNamespace(
    NVRTCError=NVRTCError, getVersion=lambda: NVRTC_VERSION, getSupportedArchs=lambda: ARCHS,
    createProgram=_create_program, compileProgram=_compile_program,
    getProgramLog=lambda prog: _programs[prog].log, getCUBIN=lambda prog: _programs[prog].text.encode(),
    getPTX=lambda prog: _programs[prog].text.encode(), destroyProgram=lambda prog: _programs.pop(prog, None),
)  # fmt: skip


class Module:
    """A compiled text. What stands for machine code is the text; g++ has compiled it before."""

    def load(self, cubin: bytes) -> None:
        _library()
        self._module = ctypes.CDLL(str(_compiled_text(cubin.decode())))

    def get_function(self, name: str) -> Function:
        return Function(self, name)


def _set_attribute(f: int, attribute: int, value: int) -> None:
    assert attribute == 8
    _functions_by_ptr[f]._limit = min(value, 227 << 10)


cuda = SimpleNamespace(
    nvrtc=_nvrtc,
    driver=SimpleNamespace(funcSetAttribute=_set_attribute, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8),
    Module=Module,
    is_available=lambda: True,
    Device=_Device,
    Stream=graphs.Stream,
    UnownedMemory=UnownedMemory,
    MemoryPointer=MemoryPointer,
    Event=graphs.Event,
    get_elapsed_time=lambda start_event, end_event: 1e3 * (end_event.moment - start_event.moment),
    get_current_stream=graphs.current,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: _count, getDevice=_get_device,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000, memGetInfo=lambda: (_limit or 1 << 34, 1 << 34),
        getDeviceProperties=lambda device: {"name": b"the shim"},
    ),
)  # fmt: skip
_pool = _Pool()


def get_default_memory_pool() -> _Pool:
    return _pool


@contextlib.contextmanager
def limit_memory(nbytes: int, after_freeing: int | None = None) -> Iterator[None]:
    """An array larger than `nbytes` finds no memory (after the pool was freed: larger than `after_freeing`)."""
    global _limit, _limit_after_freeing
    _limit, _limit_after_freeing = nbytes, after_freeing
    try:
        yield
    finally:
        _limit = _limit_after_freeing = None


# kernels ---------------------------------------------------------------------------------------------------------
def _compiled(name: str, text: str | None, flags: list[str]) -> Path:
    """The shared library of a text (None: cusim.cpp), from the cache or made now."""
    runtime = "".join((HERE / file).read_text() for file in ("cusim.h", "cusim.cpp"))
    key = hashlib.sha256("\0".join([runtime, text or "", *flags]).encode()).hexdigest()[:24]
    path = CACHE / f"{name}-{key}.so"
    if not path.exists():
        if not sys.platform.startswith("linux") or shutil.which("g++") is None:
            import pytest  # these are tests then

            pytest.skip("kernels run on the CPU by means of g++, on Linux")
        CACHE.mkdir(parents=True, exist_ok=True)
        source = path.with_suffix(".cpp")  # it stays there: reports of the sanitizers name its lines
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            made = Path(place) / "made"
            made.write_text(text if text is not None else (HERE / "cusim.cpp").read_text())
            os.replace(made, source)
            plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of sanitize.py
            command = ["g++", *FLAGS, *flags, f"-I{HERE}", str(source), "-o", str(made)]
            found = subprocess.run(command, capture_output=True, text=True, env=plain)
            if found.returncode:
                raise RuntimeError(f"the kernel does not compile:\n{found.stderr[:4000]}")
            os.replace(made, path)
    return path


def _trim() -> None:
    """Keep the cache below MOST_BYTES: what is oldest goes, but nothing of the last hour, which others may be using."""
    found = sorted((about.st_mtime, about.st_size, entry.path)
                   for entry in (os.scandir(CACHE) if CACHE.exists() else ())
                   if entry.is_file() and (about := entry.stat()))  # fmt: skip
    total = sum(size for _, size, _ in found)
    for moment, size, path in found:
        if total <= MOST_BYTES or moment > time.time() - 3600:
            break
        Path(path).unlink(missing_ok=True)
        total -= size


MORE_FLAGS = SANITIZERS if os.environ.get("CUSIM_SANITIZE") else []


_runtime: Any = None
_turn = threading.Lock()  # fibers are those of one thread


def _library() -> Any:
    global _runtime
    if _runtime is None:
        _trim()
        _runtime = ctypes.CDLL(str(_compiled("cusim", None, MORE_FLAGS)), mode=ctypes.RTLD_GLOBAL)
    return _runtime


def order(seed: int) -> None:
    """0: threads and blocks as numbered; 1: backwards; 2: shuffled; from 3 on: four blocks at a time, in turns."""
    _library().cusim_order(seed)


@contextlib.contextmanager
def flushed_to_zero() -> Iterator[None]:
    """Kernels take numbers below the normal ones for zero, as with -ftz=true (on x86-64; doubles too)."""
    _library().cusim_flush(1)
    try:
        yield
    finally:
        _library().cusim_flush(0)


KERNEL = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\(((?:[^()]|\([^()]*\))*)\)\s+)?(\w+)\('
)  # launch bounds, name
# which arrays a pointer of this letter may be given (cusim.h, cusim_type): kinds and bytes of an element; others any
POINTERS = {"F": ("f", 4), "D": ("f", 8), "I": ("iu", 4), "L": ("iu", 8), "B": ("b", 1)}


def _compiled_text(text: str) -> Path:
    """The shared library of a text with kernels."""
    bounds = {name: bound.split(",")[0] or "1024" for bound, name in KERNEL.findall(text)}
    text += "".join(f"\nCUSIM_EXPORT({name}, ({bound}))" for name, bound in bounds.items()) + "\n"
    return _compiled("kernel", text, MORE_FLAGS)


_functions_by_ptr: weakref.WeakValueDictionary[int, Function] = weakref.WeakValueDictionary()


class Function:
    """A kernel; arguments are passed as CuPy passes them: pointers, 8-byte whole numbers, doubles.

    What CuPy would let pass, and a GPU would take for other numbers, is an error here: arguments too few or too many,
    or of another type than the kernel's.
    """

    def __init__(self, module: Module, funcname: str) -> None:
        found = module._module
        if not hasattr(found, f"cusim_run_{funcname}"):
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {funcname}")
        self._name, self._run = funcname, getattr(found, f"cusim_run_{funcname}")
        self._run.restype = ctypes.c_char_p
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        letters, bound = getattr(found, f"cusim_letters_{funcname}"), getattr(found, f"cusim_bound_{funcname}")
        letters.restype, bound.restype = ctypes.c_char_p, ctypes.c_uint
        self._letters, self._bound = letters().decode(), bound()
        self.ptr, self._limit = id(self), 48 << 10
        _functions_by_ptr[self.ptr] = self

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        grid, block = (tuple(shape) + (1,) * (3 - len(shape)) for shape in (grid, block))
        threads = block[0] * block[1] * block[2]
        if not (0 < threads <= self._bound and min(grid) > 0 and grid[0] < 1 << 31 and max(grid[1:]) < 1 << 16):
            limits = f"grid {grid}, block {block}, at most {self._bound} threads"
            raise CUDARuntimeError(f"{self._name}: cudaErrorInvalidConfiguration: {limits}")
        if shared_mem > self._limit:
            raise CUDARuntimeError(f"{self._name}: cudaErrorInvalidValue: {shared_mem} bytes of shared memory")
        if len(args) != len(self._letters):
            raise TypeError(f"{self._name} takes {len(self._letters)} arguments, here are {len(args)}")
        values = [self._argument(i, x) for i, x in enumerate(args)]
        table = (ctypes.c_void_p * len(values))(*[ctypes.addressof(x) for x in values])
        shape = (ctypes.c_uint * 6)(*grid, *block)

        def run(held: Any = values) -> None:
            with _turn:
                error = self._run(table, shape, shared_mem)
            RawModule.launches[self._name] = RawModule.launches.get(self._name, 0) + 1
            if error:
                raise CUDARuntimeError(f"{self._name}: {error.decode()}")

        graphs.launched(self._name, run, values)

    def _argument(self, i: int, x: Any) -> Any:
        letter = self._letters[i]
        if isinstance(x, ndarray):
            kinds, itemsize = POINTERS.get(letter, (x.dtype.kind, x.dtype.itemsize))
            if letter.isupper() and x.dtype.kind in kinds and x.dtype.itemsize == itemsize:
                return ctypes.c_void_p(int(x.data))
        elif type(x) is int or isinstance(x, np.integer) and x.itemsize == 8:
            if letter == "l" or letter.isupper() and not 0 < x < 4096:  # addresses may come as numbers
                return ctypes.c_longlong(int(x))
        elif isinstance(x, float):
            if letter == "d":
                return ctypes.c_double(x)
        else:  # CuPy passes a bool as one byte, a NumPy number by its size
            raise TypeError(f"{self._name}, argument {i}: give an array, an int or a float instead of {type(x)}")
        given = f"an array of {x.dtype}" if isinstance(x, ndarray) else type(x).__name__
        raise TypeError(f"{self._name}, argument {i}: the kernel takes {LETTERS[letter]}, here is {given}")


class RawModule:
    """A text as users compile it; `launches` counts the launches of all kernels, by their names."""

    launches: dict[str, int] = {}

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        self._made = Module()
        self._made.load(code.encode())

    def get_function(self, name: str) -> RawKernel:
        return RawKernel("", name, made=self._made)


class RawKernel(Function):
    """A kernel as users write one."""

    def __init__(
        self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", *, made: Any = None
    ) -> None:
        super().__init__(made or RawModule(code='#include "cusim.h"\n' + code)._made, name)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, value: int) -> None:
        _set_attribute(self.ptr, 8, value)


LETTERS = {
    "f": "a float (make it double)", "d": "a double", "i": "an int (make it i64)", "l": "a 64-bit whole number",
    "b": "a bool (make it i64)", "?": "something else", "F": "float32", "D": "float64", "I": "32-bit whole numbers",
    "L": "64-bit whole numbers", "B": "bool", "P": "an array",
}  # fmt: skip
