"""Kernels as a GPU would get them: compiled to machine code, without a GPU, and what the assembler says about each.

The compiler is NVRTC (the wheel nvidia-cuda-nvrtc, or that of a CUDA toolkit), the one that CuPy uses; where it is
missing, nvcc. What was compiled before is remembered on disk, by text, architecture and version of the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from minidl.kernels.cuda.compiler import OPTIONS

CACHE = Path(tempfile.gettempdir()) / f"minidl-cubin-{os.getuid()}"
WORKERS = 2


class Report(NamedTuple):
    """One kernel on one architecture. Bytes: spilled (stores and loads), of the stack, of static shared memory.

    flushes : whether an instruction of its text takes numbers below the normal ones for zero; CUDA's own exp and its
              kind may, within their arithmetic (`approx`)
    """

    name: str
    registers: int
    spilled: int
    stack: int
    shared: int
    flushes: bool = False


class DoesNotCompile(Exception):
    """The compiler's words."""


# compilers ------------------------------------------------------------------------------------------------------
class Nvrtc:
    """NVIDIA's compiler as a library."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"NVRTC {major.value}.{minor.value}"

    def _call(self, name: str, *arguments: Any) -> int:
        return getattr(self._library, name)(*arguments)

    def log(self, text: str, arch: str) -> tuple[str, str]:
        """(what the assembler says of a text's kernels, what it was given)."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
        options = [option.encode() for option in (*OPTIONS, f"-arch={arch}", "--ptxas-options=-v")]
        failed = self._call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        self._call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("nvrtcGetProgramLog", program, log)
        if not failed:
            self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
            failed = not size.value
        ptx = ctypes.create_string_buffer(0)
        if not failed:
            self._call("nvrtcGetPTXSize", program, ctypes.byref(size))
            ptx = ctypes.create_string_buffer(size.value)
            failed = self._call("nvrtcGetPTX", program, ptx)
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        if failed:
            raise DoesNotCompile(log.value.decode()[:4000])
        return log.value.decode(), ptx.value.decode()


class Nvcc:
    """The compiler of a CUDA toolkit as a program."""

    def __init__(self, path: str) -> None:
        self._path = path
        said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        self.version = "nvcc " + (re.findall(r"V([\d.]+)", said) or ["of unknown version"])[0]

    def log(self, text: str, arch: str) -> tuple[str, str]:
        """(what the assembler says of a text's kernels, what it was given)."""
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / "kernel.cu"
            source.write_text(text)
            command = [self._path, *OPTIONS, f"-arch={arch}", str(source)]
            found = subprocess.run(
                [*command, "-cubin", "-Xptxas", "-v", "-o", f"{place}/cubin"], capture_output=True, text=True
            )
            if found.returncode:
                raise DoesNotCompile((found.stdout + found.stderr)[:4000])
            ptx = subprocess.run([*command, "-ptx", "-o", "-"], capture_output=True, text=True, check=True).stdout
        return found.stdout + found.stderr, ptx


@functools.cache
def compiler() -> Nvrtc | Nvcc | None:
    """NVRTC, or nvcc, or None."""
    spec = importlib.util.find_spec("nvidia")
    places = [*((spec.submodule_search_locations or []) if spec else [])]
    patterns = [f"{place}/*/lib/libnvrtc.so.*" for place in places] + ["/usr/local/cuda/lib64/libnvrtc.so"]
    for pattern in patterns:
        for path in sorted(glob.glob(pattern), reverse=True):
            try:
                return Nvrtc(path)
            except OSError:
                continue
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return Nvcc(nvcc) if nvcc else None


# reports --------------------------------------------------------------------------------------------------------
def reports_of(log: str, ptx: str = "") -> list[Report]:
    """What `ptxas -v` says, kernel by kernel; functions that a kernel calls count with it."""
    flushing = re.findall(r"[\w.]+\.ftz\b", re.sub(r"//[^\n]*", "", ptx))
    found, flushes = [], any("approx" not in instruction for instruction in flushing)
    for part in re.split(r"Compiling entry function '", log)[1:]:
        numbers = {
            what: sum(map(int, re.findall(pattern, part)))
            for what, pattern in {
                "stack": r"(\d+) bytes stack frame",
                "spilled": r"(\d+) bytes spill (?:stores|loads)",
                "shared": r"(\d+) bytes smem",
                "registers": r"Used (\d+) registers",
            }.items()
        }
        found.append(Report(name=part.split("'")[0], flushes=flushes, **numbers))
    return found


def compiled(text: str, arch: str) -> list[Report]:
    """Compile a text for an architecture, as sm_90; reports of its kernels."""
    made = compiler()
    assert made is not None
    facts = [text, arch, made.version, *OPTIONS, Path(__file__).read_text()]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]
    path = CACHE / key
    if not path.exists():
        found = reports_of(*made.log(text, arch))
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"{key}.{os.getpid()}"
        new.write_text(json.dumps(found))
        os.replace(new, path)
    return [Report(*report) for report in json.loads(path.read_text())]


def compiled_all(texts: list[tuple[str, str]]) -> list[list[Report] | DoesNotCompile]:
    """`compiled` for many (text, architecture), two at a time."""

    def one(work: tuple[str, str]) -> list[Report] | DoesNotCompile:
        try:
            return compiled(*work)
        except DoesNotCompile as error:
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, texts))
