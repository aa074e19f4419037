"""Interleaved timing of contestants, and the Markdown page that tells what was measured on what."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PAUSE_SECONDS = 0.02  # before each chunk: the threads of the contestant before must have gone to sleep
CHUNK_SECONDS = 0.04  # short, so that some are disturbed by nobody
PACKAGES = ["numpy", "numba", "llvmlite", "torch", "jax"]


# contestants ----------------------------------------------------------------------------------------------------


EAGER, ACCELERATED, WHOLE = "minidl eager", "minidl accelerated", "minidl accelerated, whole step"


class Contestant(NamedTuple):
    """Something to time: `run(i)` does the i-th piece of work, `wait(result)` returns when it is done."""

    name: str
    run: Callable[[int], Any]
    wait: Callable[[Any], Any] = lambda result: None
    is_peer: bool = False


def interleaved(
    contestants: list[Contestant], rounds: int, chunk_seconds: float = CHUNK_SECONDS
) -> dict[str, list[float]]:
    """Seconds per piece of work, one number per round and contestant.

    Each round gives every contestant a short chunk in turn, so that whatever slows the machine slows all of them:
    compare numbers of one round. A pause before a chunk lets other contestants' spinning threads fall asleep, and two
    pieces of work, not counted, wake its own.
    """
    counts, done = {}, {}
    for c in contestants:
        for i in range(3):  # compile, fill caches
            c.wait(c.run(i))
        start = time.perf_counter()
        for i in range(3, 8):
            last = c.run(i)
        c.wait(last)
        counts[c.name] = max(3, round(chunk_seconds / (time.perf_counter() - start) * 5))
        done[c.name] = 8
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(rounds):
        for c in contestants:
            first, count = done[c.name], counts[c.name]
            time.sleep(PAUSE_SECONDS)
            c.run(first)
            c.wait(c.run(first + 1))
            start = time.perf_counter()
            for i in range(first + 2, first + 2 + count):
                last = c.run(i)
            c.wait(last)
            seconds[c.name].append((time.perf_counter() - start) / count)
            done[c.name] += 2 + count
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    """How many times as long a takes as b: the median over the rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def best(seconds: dict[str, list[float]], names: Iterable[str]) -> str | None:
    """The contestant with the lowest median; None if there is none."""
    return min(names, key=lambda name: statistics.median(seconds[name]), default=None)


def installed(name: str) -> bool:
    """Whether a peer can be measured; says so where it cannot."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: measured without it.", file=sys.stderr)
    return found


def example() -> ModuleType:
    """examples/digits_accel.py as a module."""
    spec = importlib.util.spec_from_file_location("digits_accel", HERE.parent / "examples" / "digits_accel.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# command line ---------------------------------------------------------------------------------------------------


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="chunks of each contestant")
    made.add_argument("--threads", type=int, default=None, help="CPU threads of every contestant (default: all)")
    made.add_argument("--write", action="store_true", help="store the page in benchmarks/results")
    return made


def limit_threads(count: int | None) -> None:
    """Have every contestant use `count` threads. Libraries look when they are imported, so this starts Python again."""
    if count is None or os.environ.get("MINIDL_NUM_THREADS") == str(count):
        return
    for name in ("MINIDL", "OMP", "MKL", "OPENBLAS", "NUMBA"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):  # JAX counts the CPUs that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv])


# page -----------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for row in (head, rule, *rows):
        cells = [x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(title: str, contestants: list[Contestant], seconds: dict[str, list[float]]) -> str:
    """One table."""
    against = references(contestants, seconds)
    rows = []
    for c in contestants:
        times = seconds[c.name]
        ratios = [f"{ratio(times, seconds[name]):.2f}" for name in against.values()]
        rows.append([c.name, f"{statistics.median(times) * 1e3:.2f}", f"{min(times) * 1e3:.2f}", *ratios])
    head = ["", "median, ms", "fastest chunk, ms", *(f"times {what}" for what in against)]
    chosen = "".join(f"\n- {what}: {name}" for what, name in against.items() if what.startswith("best"))
    return f"## {title}\n\n{table(head, rows)}\n{chosen}"


def references(contestants: list[Contestant], seconds: dict[str, list[float]]) -> dict[str, str]:
    """What everybody is compared with: the fastest peers that are there, and minidl eager."""
    peers = [c.name for c in contestants if c.is_peer]
    found = {
        "best PyTorch": best(seconds, [name for name in peers if name.startswith("PyTorch")]),
        "best PyTorch eager": best(seconds, [name for name in peers if name.startswith("PyTorch eager")]),
        "JAX": best(seconds, [name for name in peers if name.startswith("JAX")]),
        EAGER: EAGER,
    }
    return {what: name for what, name in found.items() if name is not None}


def setting() -> str:
    """Hardware, versions, date and command as Markdown."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"- {cpu_model()}, {cpus} cores used, {platform.system()}\n- {', '.join(found)}\n"
        f"- {datetime.date.today().isoformat()}, `{command}`"
    )


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def publish(page: str, name: str, is_written: bool) -> None:
    """Print a page, and store it if wanted."""
    print(page)
    if is_written:
        path = HERE / "results" / f"{datetime.date.today().isoformat()}-cpu-{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(page + "\n", encoding="utf-8")
        print(f"\nWritten to benchmarks/results/{path.name}")
