"""From a text to machine code: NVRTC with options of our own, several texts at once, results kept between runs.

CuPy's way to compile (`RawModule`) flushes numbers below 1.2e-38 to zero and cannot be told not to. So NVRTC is called
by the names that CuPy has for it (`cupy.cuda.nvrtc`), and what it makes is loaded by `cupy.cuda.Module`.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

# The numbers are those of IEEE 754, as on the CPU: numbers below the normal ones stay, quotients and roots are the
# nearest ones, products and sums are rounded one by one. Where a kernel wants a multiply-add it says so.
OPTIONS = ("-std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=false")
MOST_AT_ONCE = 8  # of texts; each takes up to 300 MB while it is compiled
_FORMAT = 1  # count up when other machine code is made of the same text with the same options
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\s*\(")

T = TypeVar("T")


class NoCompiler(RuntimeError):
    """CUDA's compiler is not there, or not able to compile for the device."""


class DoesNotCompile(RuntimeError):
    """A text that the compiler refuses."""


class Store(Protocol):
    """Where machine code is kept between runs. get(key): what was put there, or None. Neither of them raises."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...


class Nowhere:
    """Nothing is kept."""

    def get(self, key: str) -> bytes | None:
        return None

    def put(self, key: str, data: bytes) -> None:
        pass


NOWHERE = Nowhere()
store: Store = NOWHERE  # the floor above has a folder


def keep_in(place: Store) -> None:
    """Keep machine code there from now on."""
    global store
    store = place


class Compiler:
    """NVRTC for the current device of a library: CuPy, or what stands for it.

    target  : what it compiles for, as sm_90 (machine code) or compute_90 (for a device that is newer than NVRTC; the
              driver makes machine code of that)
    options : all that it is given
    """

    def __init__(self, library: Any) -> None:
        capability = int(library.cuda.Device().compute_capability)
        try:
            self._nvrtc = library.cuda.nvrtc
            self.version = tuple(self._nvrtc.getVersion())
            known = [int(arch) for arch in self._nvrtc.getSupportedArchs()]
        except Exception as error:
            raise NoCompiler(f"CUDA's compiler (NVRTC) cannot be loaded ({type(error).__name__}: {error})") from error
        self.target = _target(capability, known)
        if not self.target:
            raise NoCompiler(
                f"NVRTC {self} does not compile for this GPU (compute capability {capability / 10}), but for "
                f"{min(known) / 10} ... {max(known) / 10}"
            )
        self.options = (*OPTIONS, f"-arch={self.target}")

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    def key(self, text: str) -> str:
        """What the machine code depends on, as a name. Headers stand in the text."""
        facts = (_FORMAT, self.version, self.options, text)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def code(self, text: str) -> bytes:
        """What the device loads: kept from before, or compiled now."""
        key = self.key(text)
        found = store.get(key)
        if found is None:
            found = self._compiled(text)
            store.put(key, found)
        return found

    def _compiled(self, text: str) -> bytes:
        nvrtc, names = self._nvrtc, ", ".join(dict.fromkeys(_KERNEL.findall(text))) or "no kernel"
        program = nvrtc.createProgram(text, f"{names.partition(',')[0]}.cu", (), ())
        try:
            try:
                nvrtc.compileProgram(program, self.options)
                made = nvrtc.getCUBIN(program) if self.target.startswith("sm_") else nvrtc.getPTX(program)
            except Exception as error:
                raise DoesNotCompile(
                    f"a text of minidl ({names}) does not compile: NVRTC {self}, {' '.join(self.options)}: {error}\n"
                    f"{nvrtc.getProgramLog(program)[:4000]}"
                ) from error
        finally:
            nvrtc.destroyProgram(program)
        return made if isinstance(made, bytes) else made.encode()


def _target(capability: int, known: Iterable[int]) -> str:
    """The best that NVRTC can do for a device: machine code runs on devices of one major number, from its minor on."""
    older = [arch for arch in known if arch <= capability]
    same = [arch for arch in older if arch // 10 == capability // 10]
    return f"sm_{max(same)}" if same else f"compute_{max(older)}" if older else ""


# several at once ------------------------------------------------------------------------------------------------
class Job(Generic[T]):
    """Something that is made once, by whoever comes first: a worker, or who needs it. A failure is tried again."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._lock = threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if self._work is not None:
                self._made, self._work = self._work(), None
            return self._made

    def renew(self) -> None:
        """In a forked child: whoever was at work is not there."""
        self._lock = threading.Lock()


class Workers:
    """Threads that do what will be needed soon; they end when nothing is left to do. NVRTC lets several in at once."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Leave undone what nobody has begun."""
        self._lock = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._count = 0

    def add(self, job: Job[Any]) -> None:
        """Have it done ahead. If it fails, whoever needs it finds out."""
        with self._lock:
            self._jobs.append(job)
            if self._count >= most_at_once():
                return
            self._count += 1
        threading.Thread(target=self._work, args=(self._jobs, self._lock), name="minidl compiler").start()

    def _work(self, jobs: deque[Job[Any]], lock: Any) -> None:
        while True:
            with lock:
                if not jobs or not threading.main_thread().is_alive():  # Python ends, and waits for this thread
                    if lock is self._lock:  # nothing was forgotten meanwhile
                        self._count -= 1
                    return
                job = jobs.popleft()
            try:
                job()
            except BaseException:  # whatever it is, it comes again for whoever needs the job
                continue


def most_at_once() -> int:
    """How many texts are compiled at the same time."""
    mine = getattr(os, "sched_getaffinity", None)
    return max(1, min(len(mine(0)) if mine else os.cpu_count() or 1, MOST_AT_ONCE))


workers = Workers()
