"""From LLVM text to machine code in memory; compiled objects are kept on disk for later runs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import threading
import time
import weakref
from typing import Any

from minidl.backends.cache import Shelf, cache_folder
from minidl.backends.cpu.native.target import Target, host
from minidl.backends.environment import is_on

OLDEST_LLVM = 20  # earlier releases of llvmlite have typed pointers
_FORMAT = 1  # count up when other machine code is made of the same text: passes, code model, options
_OBJECTS = Shelf("native", ".o")  # machine code of earlier runs


class Code:
    """Machine code in memory. It lives as long as this object: whoever calls an address keeps its Code."""

    def __init__(self, engine: Any, is_from_disk: bool, compile_seconds: float) -> None:
        self._engine = engine  # without it the code is gone
        self.is_from_disk = is_from_disk
        self.compile_seconds = compile_seconds  # or seconds of loading, from disk

    def address(self, name: str) -> int:
        """Address of a function."""
        found = int(self._engine.get_function_address(name))
        if not found:
            raise LookupError(f"Code.address: expected a function that the module defines, got {name!r}.")
        return found


@functools.cache
def _llvm() -> Any:
    """llvmlite.binding, ready for this processor."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def _llvm_for_all() -> Any:
    """llvmlite.binding, ready for every processor that it knows."""
    llvm = _llvm()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


def machine(target: Target) -> Any:
    """LLVM's code generator for a target."""
    is_native = target.triple.partition("-")[0] == host().triple.partition("-")[0]
    found = (_llvm() if is_native else _llvm_for_all()).Target.from_triple(target.triple)
    is_here = target == host()
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, jit=is_here, codemodel="jitdefault" if is_here else "default"
    )


def _optimized(text: str, generator: Any) -> Any:
    """The module with its variables in registers: LLVM's larger pipelines give no faster code here."""
    llvm = _llvm()
    module = llvm.parse_assembly(text, llvm.create_context())  # types and constants are freed with the context
    module.data_layout = str(generator.target_data)
    module.verify()
    passes = llvm.create_pass_builder(generator, llvm.create_pipeline_tuning_options(speed_level=2))
    manager = llvm.create_new_function_pass_manager()
    manager.add_sroa_pass()
    for function in module.functions:
        if not function.is_declaration:
            manager.run(function, passes)
    return module


def assembly(text: str, target: Target) -> str:
    """The assembly code of a module, to look at."""
    generator = machine(target)
    return str(generator.emit_assembly(_optimized(text, generator)))


_codes: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()
_lock = threading.Lock()  # one for all: llvmlite lets in one thread at a time


def compiled(text: str) -> Code:
    """The module's code for this processor: from memory, from disk, or compiled now."""
    target = host()
    key = _key(text, target)
    code = _codes.get(key)
    if code is None:
        with _lock:
            code = _codes.get(key)  # another thread may have been here first
            if code is None:
                code = _codes[key] = _made(key, text, target)
    return code


def _key(text: str, target: Target) -> str:
    """What the machine code depends on, as a name."""
    facts = (_FORMAT, _llvm().llvm_version_info, target.triple, target.cpu, target.features)
    summed = hashlib.sha256(repr(facts).encode())
    summed.update(text.encode())
    return summed.hexdigest()


def _made(key: str, text: str, target: Target) -> Code:
    """The code from disk or, where it is not there, compiled and written to disk."""
    started = time.perf_counter()
    llvm, generator = _llvm(), machine(target)
    kept = _OBJECTS.get(key)
    found = generator.emit_object(_optimized(text, generator)) if kept is None else kept
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), generator)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found))
    engine.finalize_object()
    if kept is None:
        _OBJECTS.put(key, found)
    return Code(engine, kept is not None, time.perf_counter() - started)


# forks: a child that begins while a thread is in LLVM could never use it ------------------------------------------
_llvmlite_lock: Any = None


def _rest() -> None:
    """Wait until no thread is in LLVM, and let none in."""
    global _llvmlite_lock
    _lock.acquire()
    lib = getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None)
    _llvmlite_lock = getattr(lib, "_lock", None) or contextlib.nullcontext()
    _llvmlite_lock.__enter__()


def _go_on() -> None:
    _llvmlite_lock.__exit__(None, None, None)
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_rest, after_in_parent=_go_on, after_in_child=_go_on)


# whether it works here --------------------------------------------------------------------------------------------
def unavailable() -> str | None:
    """Why this host has no native programs, in a sentence; None if it has them."""
    if not is_on("MINIDL_NATIVE"):
        return "Native programs are turned off by the environment variable MINIDL_NATIVE=0."
    return _unavailable()


LIBRARY = [name + kind for name in ("sin", "cos", "tan", "fmod") for kind in ("", "f")]  # what code may call


@functools.cache
def _unavailable() -> str | None:
    cache_folder()  # what it warns of, where warnings are errors, is no reason to do without
    try:
        import llvmlite.binding as llvm

        version, target = llvm.llvm_version_info, host()
    except Exception as error:  # missing, or its library does not load
        return f"Native programs need llvmlite, which cannot be imported ({_one_line(error)}): install numba anew."
    if version[0] < OLDEST_LLVM:
        return f"Native programs need LLVM {OLDEST_LLVM}, llvmlite has LLVM {version[0]}: upgrade numba and llvmlite."
    if not target.has_fma:
        return f"Native programs need a processor with FMA instructions, {target.cpu} has none that minidl knows."
    missing = [name for name in LIBRARY if not _is_linked(name)]
    if missing:
        return f"Native programs call the C library's {', '.join(missing)}, which this process does not have."
    try:
        llvm.check_jit_execution()
        if not _works(target):
            return f"Native programs need an LLVM that compiles for {target.cpu}; a first program computed nonsense."
    except Exception as error:
        return f"Native programs cannot be compiled on this host ({_one_line(error)})."
    return None


def _is_linked(name: str) -> bool:
    """Whether code can call a function of the C library; on Windows it is told where."""
    import llvmlite.binding as llvm

    try:
        if sys.platform == "win32":
            function = getattr(ctypes.CDLL("ucrtbase"), name)
            llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
        else:
            getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return False
    return True


def _works(target: Target) -> bool:
    """Whether a small program computes what it should: y[i] = 2 * x[i] + 1, masked, for one register of x."""
    from minidl.backends.cpu.native.emitter import Module, literal

    module = Module(target)
    f = module.function("probe", ["ptr %y", "ptr %x", "i64 %n"])
    kind, lanes = f.vector("float"), f.lanes(4)
    mask = f.mask(lanes, "%n")
    y = f.fma(kind, f.masked_load(kind, "%x", mask), literal(kind, 2), literal(kind, 1))
    f.masked_store(kind, y, "%y", mask)
    code = compiled(module.text())
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(code.address("probe"))
    numbers = ctypes.c_float * lanes
    given, found = numbers(*range(lanes)), numbers(*[-1] * lanes)
    run(ctypes.addressof(found), ctypes.addressof(given), lanes - 1)
    return list(found) == [*(2 * i + 1 for i in range(lanes - 1)), -1]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
