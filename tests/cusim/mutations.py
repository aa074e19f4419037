"""Mutants: a kernel's text with one mistake in it, and whether any sample call notices.

A mutant that nobody notices shows a barrier that is not needed, or samples that are too weak. Every mutant runs in a
process of its own, since what it does to memory is anybody's guess: wrong numbers, an error of the shim, a crash or a
time-out are all ways of being noticed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from conftest import use
from cubin.recorder import Recorder

import cusim
from cusim.calls import KernelCall, SampleCall

ORDERS = (0, 1, 3)
SECONDS = 30  # what takes longer hangs
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
TF32 = 2e-3
BARRIER = re.compile(r"__sync(threads|warp)\([^)]*\);")
INDEX = re.compile(r"\bthreadIdx\.[xyz]")


Call = SampleCall | KernelCall


class Mutant(NamedTuple):
    """In the texts of a file, `old` (found there once, and `line` is in it) becomes `new`."""

    file: str
    number: int
    line: str
    old: str
    new: str

    def __str__(self) -> str:
        changed = " ".join(self.new.split())
        return f"{self.file}:{self.number}: {self.line.strip()}  [{changed}]"

    def alters(self, text: str) -> bool:
        """Whether the compiler gets to see it: not within an #if that does not hold."""
        return self.old in text and seen_of(text) != seen_of(text.replace(self.old, self.new))


@functools.lru_cache(maxsize=256)
def seen_of(text: str) -> str:
    """What is left of a text after its preprocessor."""
    command = ["g++", "-E", "-P", "-nostdinc", "-D__CUDACC__", "-x", "c++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def mutants(file: str, text: str, pattern: re.Pattern[str], replacement: str) -> Iterator[Mutant]:
    """One for each place of the pattern outside of comments and of the definitions of macros."""
    for found in pattern.finditer(text):
        number = text.count("\n", 0, found.start()) + 1
        line = text.splitlines()[number - 1]
        before = line[: found.start() - text.rfind("\n", 0, found.start()) - 1]
        if "//" in before or line.startswith("#define"):
            continue
        start, stop = found.span()
        while text.count(text[start:stop]) > 1:  # as much of the text around it as tells it from others
            start, stop = max(start - 10, 0), min(stop + 10, len(text))
        new = text[start : found.start()] + found.expand(replacement) + text[found.end() : stop]
        yield Mutant(file, number, line, text[start:stop], new)


def barriers(file: str, text: str) -> Iterator[Mutant]:
    """Each barrier left out."""
    return mutants(file, text, BARRIER, "")


SHIFTS = [  # (what follows a thread's number, what becomes of it); left alone: `% n == 0`, where any lane would do
    (r" / (\w+)", r"(\g<0> + 1)"),
    (r"(?= % NUMBER / )", r"(\g<0> + 1)"),
    (r"(?= % NUMBER(?! /| == 0| < ))", r"(\g<0> & ~1u)"),  # a remainder would only be turned round
    (r"(?! [/%] )", r"(\g<0> + 1)"),
]


def shifted(file: str, text: str) -> Iterator[Mutant]:
    """Each thread's number, one too large; where only a remainder of it counts, that of its even neighbour."""
    for follows, replacement in SHIFTS:
        pattern = re.compile(INDEX.pattern + follows.replace("NUMBER", r"(?:\w+\b|\([^()]*\))"))
        yield from mutants(file, text, pattern, replacement)


class Mutated:
    """cusim, but for one text."""

    def __init__(self, mutant: Mutant) -> None:
        nvrtc = cusim.cuda.nvrtc

        def create(src: str, *others: Any) -> int:
            return nvrtc.createProgram(src.replace(mutant.old, mutant.new), *others)

        changed = SimpleNamespace(**{**vars(nvrtc), "createProgram": create})
        self.cuda = SimpleNamespace(**{**vars(cusim.cuda), "nvrtc": changed})

    def __getattr__(self, name: str) -> Any:
        return getattr(cusim, name)


@contextlib.contextmanager
def standing_in(library: Any) -> Iterator[Any]:
    """Let a library take CuPy's place, with nothing left of what another one compiled."""
    use(library)
    try:
        yield library
    finally:
        use(None)


def texts_of(call: Call) -> list[str]:
    """The texts whose kernels a call launches."""
    with standing_in(Recorder()) as recorder:
        call.run(recorder)
    return list(recorder.texts)


def results(call: Call, library: Any, order: int) -> list[np.ndarray]:
    """What a call gives, with threads and blocks in one of the orders."""
    cusim.order(order)
    try:
        return [y.get() for y in call.run(library) or []]
    finally:
        cusim.order(0)


def agree(found: list[np.ndarray], right: list[np.ndarray], tolerance: float | None = None) -> bool:
    """Equal as far as tests of kernels ask for it: within rounding, relative to the largest number.

    tolerance : relative; None: that of the first result's type (sums of singles in double are as exact as these).
    """
    types = [y.dtype.name for y in right if y.dtype.kind == "f"]
    near = tolerance or (TOLERANCES[types[0]] if types else 0)
    for a, b in zip(found, right, strict=True):
        if b.dtype.kind != "f":
            if not np.array_equal(a, b):
                return False
            continue
        size = np.max(np.abs(b), where=np.isfinite(b), initial=0.0)
        if not np.allclose(a, b, rtol=near, atol=near * size, equal_nan=True):
            return False
    return True


class Samples:
    """Sample calls, their texts, and their right results."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._calls = [(call, texts_of(call)) for call in calls]
        self._calls.sort(key=lambda found: -sum(x.size for x in found[0].inputs if isinstance(x, np.ndarray)))
        self._right: dict[int, list[np.ndarray]] = {}

    def touched(self, mutant: Mutant) -> Iterator[Call]:
        """Calls that see the mutant; large ones, which notice most, first."""
        for call, texts in self._calls:
            if any(map(mutant.alters, texts)):
                yield call

    def right(self, call: Call) -> list[np.ndarray]:
        """Results without mistakes; the same in all orders."""
        if id(call) not in self._right:
            with standing_in(cusim):
                found = [results(call, cusim, order) for order in ORDERS]
            for other in found[1:]:
                for a, b in zip(found[0], other):
                    assert a.tobytes() == b.tobytes(), f"{call} depends on the order of threads or blocks"
            self._right[id(call)] = found[0]
        return self._right[id(call)]

    def notice(self, mutant: Mutant) -> bool:
        """Whether any call gives wrong results, or none, with the mistake."""
        return any(self._notices(call, mutant) for call in self.touched(mutant))

    def _notices(self, call: Call, mutant: Mutant) -> bool:
        self.right(call)
        child = os.fork()
        if not child:
            os._exit(self._run(call, mutant))
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) != UNNOTICED

    def _run(self, call: Call, mutant: Mutant) -> int:
        """In the process of the mutant."""
        faulthandler.disable()  # a crash is no news
        signal.alarm(SECONDS)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        near = TF32 if call.setting == "tf32" else None
        try:
            with standing_in(Mutated(mutant)) as library:
                is_right = all(agree(results(call, library, order), self.right(call), near) for order in ORDERS)
        except BaseException:
            return NOTICED
        return UNNOTICED if is_right else NOTICED


NOTICED, UNNOTICED = 0, 77  # exit codes of a mutant's process
