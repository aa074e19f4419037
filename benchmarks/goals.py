"""What the CPU backend is to reach, and what it does: one table of all works, each interleaved with its peers.

    python benchmarks/goals.py [--rounds 15] [--only digits mlp ...] [--threads 2] [--write]

Takes some minutes; --only takes the names of groups: digits, digits-1, digits-8, digits-128, mlp, vgg, pinn, start,
example.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from typing import NamedTuple

import digits
import measure
import models
import start
from measure import ACCELERATED, EAGER, WHOLE, Contestant
from training import check_losses

INTRO = """\
Each work is done by all contestants in turns, in one process, in single precision, from the same weights on the same
batches; a ratio is the median over the rounds. The best peer is the fastest of PyTorch (eager and torch.compile, for
images in both layouts, fused Adam) and JAX (one jit, state donated). Before timing, the losses of the first steps were
found to agree."""
TRAINING, PREDICTION = "digits training step, batch {}", "digits prediction, batch {}"
PERCEPTRON = "MLP 784-256-256-10, batch 64, training step"
STACK = "VGG-like stack 32x32x3, channels 64-128-256, batch 32, training step"
EQUATION = "PINN-style MLP 2-64-64-64-1, 1,024 points, u_xx in the loss, training step"
Timed = dict[str, list[Contestant]]  # by the work's title


class Goal(NamedTuple):
    """A work that one contestant is to do in at most so many times the time of another, the best peer unless named."""

    title: str
    limit: float
    name: str = WHOLE
    remark: str = "whole step accelerated"


class Speedup(NamedTuple):
    """A work that minidl accelerated is to do at least so many times as fast as minidl eager."""

    title: str
    limit: float


class Limit(NamedTuple):
    """What is to take at most so many seconds."""

    title: str
    limit: float


FIRST, REPLAY = "first call of the digits step, {} disk", "first calls until the first replay, {} disk"
EXAMPLE = "the whole example but its baseline training, 20 epochs accelerated"
GOALS: list[Goal | Speedup | Limit] = [
    Goal(TRAINING.format(32), 0.33),
    Goal(TRAINING.format(32), 0.38, ACCELERATED, "adamupdate outside"),
    Goal(PREDICTION.format(32), 0.5, ACCELERATED, ""),
    Goal(TRAINING.format(1), 0.33),
    Goal(TRAINING.format(8), 0.33),
    Goal(TRAINING.format(128), 0.4),
    Goal(PERCEPTRON, 0.4),
    Goal(STACK, 0.8),
    Goal(EQUATION, 0.4),
    Speedup(TRAINING.format(32), 2.5),
    Speedup(PREDICTION.format(32), 2.0),
    Limit(FIRST.format("cold"), 3.0),
    Limit(FIRST.format("warm"), 0.5),
    Limit(REPLAY.format("cold"), 3.0),
    Limit(REPLAY.format("warm"), 0.5),
    Limit(EXAMPLE, 16.0),
]


# groups of works ------------------------------------------------------------------------------------------------


def digits_of_all_ways(threads: int | None, notes: list[str]) -> Timed:
    """The digits example with batches of 32."""
    training, prediction = digits.contestants(32, threads)
    check(training, notes)
    return {TRAINING.format(32): training, PREDICTION.format(32): prediction}


def digits_of(batch: int) -> Callable[[int | None, list[str]], Timed]:
    """Its training step with batches of another size."""

    def group(threads: int | None, notes: list[str]) -> Timed:
        training, _ = digits.contestants(batch, threads)
        check(training, notes)
        return {TRAINING.format(batch): training}

    return group


def work_of(title: str, work: models.Work, note: str = "") -> Callable[[int | None, list[str]], Timed]:
    """A training step of models.py."""

    def group(threads: int | None, notes: list[str]) -> Timed:
        notes.extend([note] if note else [])
        training = work.contestants(threads)
        check(training, notes, work.tolerance)
        return {title: training}

    return group


def check(contestants: list[Contestant], notes: list[str], tolerance: float = 2e-4) -> None:
    unable = check_losses(contestants, tolerance)
    notes.extend(f"{name} could not do it: {why}" for name, why in unable.items())


def first_calls(notes: list[str]) -> dict[str, float]:
    """Seconds of the first steps, the whole step accelerated, in processes of their own."""
    notes.append(
        "Of the digits step, whole, the first call records; the second meets the solver's averages and records again; "
        "the third compiles the recording and is the first replay (benchmarks/start.py has each). All three are held "
        "against the first call's goal, too."
    )
    found = {}
    for heat, seconds in start.cold_and_warm("whole", 3).items():
        found[FIRST.format(heat)] = seconds["step 1"]
        found[REPLAY.format(heat)] = sum(seconds[f"step {i}"] for i in (1, 2, 3))
    return found


def whole_example(notes: list[str]) -> dict[str, float]:
    """Seconds of examples/digits_accel.py in a process of its own, with empty caches."""
    with tempfile.TemporaryDirectory() as place:
        folders = {"MINIDL_CACHE_DIR": f"{place}/minidl", "NUMBA_CACHE_DIR": f"{place}/numba"}
        script = measure.HERE.parent / "examples" / "digits_accel.py"
        began = time.perf_counter()
        result = subprocess.run(
            [sys.executable, str(script)], env={**os.environ, **folders}, cwd=place, text=True, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    said = {name: float(x) for name, x in re.findall(r"^(\w+) = ([\d.]+)$", result.stdout, re.M)}
    notes.append(
        f"The whole example (examples/digits_accel.py, caches empty before) took {seconds:.1f} s: "
        f"{said['elapsedBaseline']:.1f} s baseline training, {said['elapsedAccelerated']:.1f} s accelerated training, "
        f"the rest import, data, predictions and figures."
    )
    return {EXAMPLE: seconds - said["elapsedBaseline"]}


HALVES = "The VGG-like stack has no pooling, which minidl lacks: each second convolution halves the image by stride 2."
TIMED: dict[str, Callable[[int | None, list[str]], Timed]] = {
    "digits": digits_of_all_ways,
    "digits-1": digits_of(1),
    "digits-8": digits_of(8),
    "digits-128": digits_of(128),
    "mlp": work_of(PERCEPTRON, models.PERCEPTRON_WORK),
    "vgg": work_of(STACK, models.STACK_WORK, HALVES),
    "pinn": work_of(EQUATION, models.EQUATION_WORK),
}


# page -----------------------------------------------------------------------------------------------------------


def row(goal: Goal | Speedup, contestants: list[Contestant], seconds: dict[str, list[float]]) -> list[str] | None:
    """A line of the table; None if there is no peer."""
    ms = {name: f"{statistics.median(times) * 1e3:.2f}" for name, times in seconds.items()}
    if isinstance(goal, Speedup):
        found = measure.ratio(seconds[EAGER], seconds[ACCELERATED])
        title, name, other = f"{goal.title}: accelerated against eager", ACCELERATED, EAGER
        figure, bound, is_met = f"{found:.1f}x", f"at least {goal.limit}x", found >= goal.limit
    else:
        best = measure.best(seconds, [c.name for c in contestants if c.is_peer])
        if best is None:
            return None
        found = measure.ratio(seconds[goal.name], seconds[best])
        title, name, other = ", ".join(filter(None, [goal.title, goal.remark])), goal.name, best
        figure, bound, is_met = f"{found:.2f}", f"at most {goal.limit}", found <= goal.limit
    return [title, ms[name], f"{ms[other]} ({other})", figure, bound, "yes" if is_met else "no"]


def limit_row(goal: Limit, seconds: float) -> list[str]:
    is_met = "yes" if seconds < goal.limit else "no"
    return [goal.title, f"{seconds * 1e3:,.0f}", "", "", f"under {goal.limit:g} s", is_met]


def busy() -> list[str]:
    """Says so if other programs may keep the processors busy: then the numbers do not count."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [f"The load average was {load:.1f} at the start: alone on the machine?"] if load > 0.7 else []


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=15)
    groups = [*TIMED, "start", "example"]
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, metavar="GROUP", help=", ".join(groups))
    parser.set_defaults(threads=2)
    options = parser.parse_args()
    measure.limit_threads(options.threads)

    notes = busy()
    lines: dict[Goal | Speedup | Limit, list[str] | None] = {}
    sections = []
    for group in groups:
        if group not in options.only:
            continue
        began = time.perf_counter()
        if group in TIMED:
            for title, contestants in TIMED[group](options.threads, notes).items():
                seconds = measure.interleaved(contestants, options.rounds)
                sections.append(measure.section(title, contestants, seconds))
                for goal in GOALS:
                    if goal.title == title and not isinstance(goal, Limit):
                        lines[goal] = row(goal, contestants, seconds)
        else:
            took = first_calls(notes) if group == "start" else whole_example(notes)
            for goal in GOALS:
                if goal.title in took and isinstance(goal, Limit):
                    lines[goal] = limit_row(goal, took[goal.title])
        print(f"{group}: measured in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    head = ["work", "minidl, ms", "best peer, ms", "ratio", "goal", "met"]
    table = measure.table(head, [line for goal in GOALS if (line := lines.get(goal)) is not None])
    remarks = ["\n".join(textwrap.fill(f"- {note}", 120, subsequent_indent="  ") for note in notes)] if notes else []
    page = "\n\n".join(["# Goals", measure.setting(), INTRO, table, *remarks, *sections])
    name = "goals" if options.only == groups else f"goals-of-{'-'.join(options.only)}"
    measure.publish(page, name, options.write)


if __name__ == "__main__":
    main()
