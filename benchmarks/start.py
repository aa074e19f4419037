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


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--steps", choices=["usual", "whole"], help=measure.argparse.SUPPRESS)  # for the child process
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(steps(options.steps == "whole")))
        return

    run(["-c", IMPORT])  # writes bytecode
    imports = [run(["-c", IMPORT]) for _ in range(options.rounds)]
    lines = [["import minidl", f"{statistics.median(imports):.2f}", "", f"{GOALS['import']:.1f}"]]
    rows: list[list[str]] = []
    for way, title in (("usual", "adamupdate outside"), ("whole", "whole step")):
        with tempfile.TemporaryDirectory() as place:
            folders = {"MINIDL_CACHE_DIR": f"{place}/minidl", "NUMBA_CACHE_DIR": f"{place}/numba"}
            cold = run([__file__, "--steps", way], **folders)
            warm = [run([__file__, "--steps", way], **folders) for _ in range(options.rounds)]
        for name, found in (("cold", [cold]), ("warm", warm)):
            middle = {what: statistics.median(one[what] for one in found) for what in cold}
            first = middle["step 1"]
            two = first + middle["step 2"]
            lines.append([f"first accelerated step, {title}, {name}", f"{first:.2f}", f"{two:.2f}", f"{GOALS[name]:.0f}"])
            rows.append([f"{title}, {name}", *(f"{middle[what]:.3f}" for what in cold)])
    intro = (
        "Seconds, median of the processes. The first step is recorded and its result returned at once; a later one compiles "
        "the recording (the second; with the whole step the third, since the second has the solver's state for the first "
        "time)."
    )
    page = "\n\n".join([
        "# Start", measure.setting(), intro,
        measure.table(["", "first step", "first and second step", "goal"], lines),
        measure.table(["part by part", *cold], rows),
    ])  # fmt: skip
    measure.publish(page, "start", options.write)


if __name__ == "__main__":
    main()
