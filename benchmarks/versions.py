"""This version of minidl beside an older one: the digits example's step and prediction, cache hits, plain calls.

    python benchmarks/versions.py OLDER [--rounds 200] [--only step] [--threads N] [--write]

OLDER is the folder of another checkout, for example made by `git worktree add ../older v0.1`. Each version runs in a
process of its own, and the two take turns in short chunks: what slows the machine slows both. A ratio below 1 means
that this version is faster. `--only` takes rows whose name contains a text.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

HERE = Path(__file__).parent
CHUNK_SECONDS = 0.03
SERVE = "--serve"

INTRO = """\
Medians over the rounds, in microseconds; a ratio is the median of the rounds' own ratios, this version to the older
one. "quartiles" are those of the rounds' ratios: where 1 lies between them, the machine cannot tell the two apart."""


def works() -> dict[str, Callable[[int], Any]]:
    """What is timed, said by the front door alone, so that either version can do it."""
    import digits
    import overhead
    from training import ACCELERATED, EAGER, WHOLE

    from minidl import dlarray, relu, struct

    example = measure.example()
    training, prediction = digits.minidl_contestants(example, digits.problem(example, 32))
    found = {f"digits step, {c.name}": c.run for c in training if c.name in (WHOLE, ACCELERATED, EAGER)}
    found |= {f"digits prediction, {c.name}": c.run for c in prediction}
    x, image = dlarray(overhead.LEAF), dlarray(overhead.IMAGE, "SSCB")
    channel = dlarray(overhead.CHANNEL[:, None], "CB")
    for leaves in (overhead.FEW, overhead.MANY):
        parameters = struct(overhead.tree(x, leaves))
        found[overhead.hit(leaves)] = overhead.replayed(overhead.first_leaf, parameters)
        found[f"{overhead.hit(leaves)}, inside dlfeval"] = overhead.inside(overhead.first_leaf, parameters)
    found["100 plain x + x"] = overhead.repeated(lambda: x + x)
    found["100 plain relu(x)"] = overhead.repeated(lambda: relu(x))
    found["100 plain image + channel"] = overhead.repeated(lambda: image + channel)
    return found


def serve() -> None:
    """Answer requests `name count` of the parent process by seconds per piece of work."""
    answers = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")  # some functions are accelerated more than once here
    with contextlib.redirect_stdout(sys.stderr):
        found = works()
        print(json.dumps(list(found)), file=answers, flush=True)
        done = dict.fromkeys(found, 0)
        for line in sys.stdin:
            name, count = json.loads(line)
            run, first = found[name], done[name]
            run(first)
            run(first + 1)
            start = time.perf_counter()
            for i in range(first + 2, first + 2 + count):
                run(i)
            seconds = (time.perf_counter() - start) / count
            done[name] = first + 2 + count
            print(json.dumps(seconds), file=answers, flush=True)


class Version:
    """One version in a process of its own."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / "minidl" / "__init__.py").is_file():
            raise SystemExit(f"versions.py: {checkout} is no checkout of minidl.")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "versions.py"), SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        )  # fmt: skip
        self.names: list[str] = self._answer()

    def time(self, name: str, count: int) -> float:
        """Seconds per piece of work, of `count` pieces."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, count]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("versions.py: a version ended early; its message stands above.")
        return json.loads(line)


def main() -> None:
    """Measure and print."""
    if SERVE in sys.argv:
        serve()
        return
    parser = measure.parser(__doc__, rounds=200)
    parser.add_argument("older", type=Path, help="folder of the other checkout")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    measure.limit_threads(options.threads)

    new, old = Version(HERE.parent), Version(options.older)
    names = [name for name in new.names if name in old.names and options.only in name]
    counts = {}
    for name in names:
        for version in (new, old):
            version.time(name, 20)  # compile, fill caches
        counts[name] = max(1, round(CHUNK_SECONDS / old.time(name, 5)))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(options.rounds):
        for name in names:
            versions = (new, old) if i % 2 else (old, new)
            times = {version: version.time(name, counts[name]) for version in versions}
            seconds[name].append((times[new], times[old]))
    rows = []
    for name in names:
        a, b = zip(*seconds[name])
        ratios = [x / y for x, y in seconds[name]]
        low, middle, high = statistics.quantiles(ratios, n=4)
        best = min(a) / min(b)
        rows.append([name, f"{statistics.median(a) * 1e6:.1f}", f"{statistics.median(b) * 1e6:.1f}", f"{middle:.3f}",
                     f"{low:.3f} to {high:.3f}", f"{best:.3f}"])  # fmt: skip
    head = ["", "this version", "older", "ratio", "quartiles", "ratio of the fastest"]
    page = "\n\n".join(["# Two versions", measure.setting(), INTRO, measure.table(head, rows)])
    measure.publish(page, "versions", options.write)


if __name__ == "__main__":
    main()
