"""How long minidl takes to start: the import, and the first accelerated steps of the digits example.

    python benchmarks/start.py [--rounds 3] [--write]

Each number comes from a Python process of its own. Cold: with empty cache folders, as on a machine that has never run
minidl; warm: with the compiled code that the cold run left there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import measure

GOALS = {"import": 0.6, "cold": 15.0, "warm": 3.0}  # seconds
INTRO = """\
Seconds, warm ones the median of several processes. An accelerated function's first call is recorded and its result
returned at once; the next call of the same kind compiles the recording. That is step 2, and with the whole step
accelerated step 3, since step 2 has the solver's averages for the first time."""
IMPORT = "import time; start = time.perf_counter(); import minidl; print(time.perf_counter() - start)"


def run(code: list[str], **environment: str) -> Any:
    """What a fresh Python prints, read as JSON."""
    result = subprocess.run(
        [sys.executable, *code], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def steps(is_whole: bool) -> dict[str, float]:
    """Seconds that the first accelerated training steps take in this process, and how they start."""
    start = time.perf_counter()
    import digits

    seconds = {"import": time.perf_counter() - start}
    start = time.perf_counter()
    example = measure.example()
    task = digits.problem(example, 32)
    contestants, _ = digits.minidl_contestants(example, task)
    wanted = digits.WHOLE if is_whole else digits.ACCELERATED
    (training,) = [c for c in contestants if c.name == wanted]
    seconds["data and weights"] = time.perf_counter() - start
    for i in range(6):
        start = time.perf_counter()
        training.run(i)
        seconds[f"step {i + 1}"] = time.perf_counter() - start
    return seconds


def cold_and_warm(way: str, rounds: int) -> dict[str, dict[str, float]]:
    """What `steps` finds in a process without compiled code, and (the median) in those after it."""
    with tempfile.TemporaryDirectory() as place:
        folders = {"MINIDL_CACHE_DIR": f"{place}/minidl", "NUMBA_CACHE_DIR": f"{place}/numba"}
        cold, *warm = (run([__file__, "--steps", way], **folders) for _ in range(1 + rounds))
    return {"cold": cold, "warm": {what: statistics.median(one[what] for one in warm) for what in cold}}


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--steps", choices=["usual", "whole"], help=measure.argparse.SUPPRESS)  # for the child process
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(steps(options.steps == "whole")))
        return

    run(["-c", IMPORT])  # writes bytecode
    seconds = statistics.median(run(["-c", IMPORT]) for _ in range(options.rounds))
    rows = []
    for way, title, count in (("usual", "adamupdate outside", 2), ("whole", "whole step", 3)):
        for heat, parts in cold_and_warm(way, options.rounds).items():
            until = sum(parts[f"step {i + 1}"] for i in range(count))
            rows.append([f"{title}, {heat}", *(f"{x:.2f}" for x in (*parts.values(), until)), f"{GOALS[heat]:.0f}"])
    page = "\n\n".join([
        "# Start", measure.setting(), INTRO, f"`import minidl`: {seconds:.2f} s (goal: {GOALS['import']} s).",
        measure.table(["", *parts, "until first replay", "goal"], rows),
    ])  # fmt: skip
    measure.publish(page, "start", options.write)


if __name__ == "__main__":
    main()
