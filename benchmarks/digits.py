"""The digits example's training step and prediction: minidl beside PyTorch and JAX, interleaved in one process.

    python benchmarks/digits.py [--batch 32] [--rounds 30] [--threads N] [--write]

All contestants start from the same weights and see the same batches; what a mini-batch queue does is left out.
"""

from __future__ import annotations

import statistics
from typing import Any

import measure
import numpy as np
from measure import Contestant
from peers import Problem, jax_contestants, torch_contestants

from minidl import (
    adamupdate,
    digitTrain4DArrayData,
    dlaccelerate,
    dlarray,
    dlfeval,
    onehotencode,
    rng,
)

INTRO = """\
Forward, loss, gradients, running statistics and Adam; prediction with trained statistics. Numbers of one run are
comparable, numbers of different runs are not. Ratios are medians over the rounds."""
BATCHES = 16
EAGER, ACCELERATED, WHOLE = "minidl eager", "minidl accelerated", "minidl accelerated, whole step"


def problem(example: Any, batch: int) -> Problem:
    """Initial weights and batches."""
    rng(0)
    parameters, state = example.modelParameters(10, 1)
    images, labels, angles = digitTrain4DArrayData()
    targets = np.asarray(onehotencode(labels[None, :], 0, ClassNames=list("0123456789")), np.float32)
    batches = []
    for i in range(BATCHES):
        chosen = np.arange(i * batch, (i + 1) * batch) % len(labels)
        batches.append((images[..., chosen], targets[:, chosen], angles[chosen].T))
    return Problem(parameters, state, batches)


class Training:
    """One way of training with minidl; adamupdate as the example calls it, or inside the accelerated function."""

    def __init__(self, function: Any, batches: list[Any], problem: Problem, is_whole: bool = False) -> None:
        self.function, self.batches, self.is_whole = function, batches, is_whole
        self.parameters, self.state = problem.parameters.copy(), problem.state.copy()
        self.m: Any = []
        self.v: Any = []

    def step(self, i: int) -> Any:
        """One training step; the loss."""
        batch = self.batches[i % len(self.batches)]
        if self.is_whole:
            self.parameters, self.state, loss, self.m, self.v = dlfeval(
                self.function, self.parameters, *batch, self.state, self.m, self.v, dlarray(np.float32(i + 1))
            )
        else:
            gradients, self.state, loss = dlfeval(self.function, self.parameters, *batch, self.state)
            self.parameters, self.m, self.v = adamupdate(self.parameters, gradients, self.m, self.v, i + 1)
        return loss


def minidl_contestants(example: Any, problem: Problem) -> tuple[list[Contestant], list[Contestant]]:
    """(training, prediction) in minidl."""
    batches = [(dlarray(X, "SSCB"), dlarray(T1), dlarray(T2)) for X, T1, T2 in problem.batches]
    gradients, model = example.modelGradients, example.model
    ways = {
        EAGER: Training(gradients, batches, problem),
        ACCELERATED: Training(dlaccelerate(gradients), batches, problem),
        WHOLE: Training(dlaccelerate(example.modelStep), batches, problem, is_whole=True),
    }

    def predictor(function: Any) -> Any:
        return lambda i: function(problem.parameters, batches[i % len(batches)][0], False, problem.state)

    return (
        [Contestant(name, way.step) for name, way in ways.items()],
        [Contestant(EAGER, predictor(model)), Contestant(ACCELERATED, predictor(dlaccelerate(model)))],
    )


def check_losses(contestants: list[Contestant]) -> None:
    """Everyone computes the same thing: the losses of the first two steps agree."""
    for i in range(2):
        losses = {c.name: float(c.run(i)) for c in contestants}
        first = next(iter(losses.values()))
        for name, loss in losses.items():
            assert abs(loss - first) <= 1e-3 * abs(first), f"step {i}: {name} has loss {loss}, {EAGER} has {first}"


def section(title: str, contestants: list[Contestant], seconds: dict[str, list[float]]) -> str:
    """One table."""
    against = references(contestants, seconds)
    rows = []
    for c in contestants:
        times = seconds[c.name]
        ratios = [f"{measure.ratio(times, seconds[name]):.2f}" for name in against.values()]
        rows.append([c.name, f"{statistics.median(times) * 1e3:.2f}", f"{min(times) * 1e3:.2f}", *ratios])
    head = ["", "median, ms", "fastest chunk, ms", *(f"times {what}" for what in against)]
    chosen = "".join(f"\n- {what}: {name}" for what, name in against.items() if what.startswith("best"))
    return f"## {title}\n\n{measure.table(head, rows)}\n{chosen}"


def references(contestants: list[Contestant], seconds: dict[str, list[float]]) -> dict[str, str]:
    """What everybody is compared with: the fastest peers that are there, and minidl eager."""
    peers = [c.name for c in contestants if c.is_peer]
    found = {
        "best PyTorch": measure.best(seconds, [name for name in peers if name.startswith("PyTorch")]),
        "best PyTorch eager": measure.best(seconds, [name for name in peers if name.startswith("PyTorch eager")]),
        "JAX": measure.best(seconds, [name for name in peers if name.startswith("JAX")]),
        EAGER: EAGER,
    }
    return {what: name for what, name in found.items() if name is not None}


def goals(training: tuple[Any, Any], prediction: tuple[Any, Any]) -> str:
    """What the CPU backend is to reach, and what it did."""
    wanted = [
        ("accelerated step", training, ACCELERATED, "best PyTorch", "at most", 1.5),
        ("accelerated step, Adam included", training, WHOLE, "best PyTorch", "at most", 1.5),
        ("eager step", training, EAGER, "best PyTorch eager", "at most", 2.5),
        ("eager step", training, EAGER, ACCELERATED, "at least", 1.52),
        ("eager prediction", prediction, EAGER, ACCELERATED, "at least", 1.28),
    ]
    rows = []
    for what, (contestants, seconds), name, other, bound, limit in wanted:
        reference = other if other in seconds else references(contestants, seconds).get(other)
        if reference is not None:
            found = measure.ratio(seconds[name], seconds[reference])
            is_met = found <= limit if bound == "at most" else found >= limit
            verdict = "yes" if is_met else "no"
            rows.append([f"{what}, times {other}", f"{bound} {limit}", f"{found:.2f}", verdict])
    return f"## Goals\n\n{measure.table(['', 'goal', 'found', 'met'], rows)}"


def main() -> None:
    """Measure and print."""
    parser = measure.parser(__doc__, rounds=30)
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    options = parser.parse_args()
    measure.limit_threads(options.threads)

    example = measure.example()
    task = problem(example, options.batch)
    training, prediction = minidl_contestants(example, task)
    if measure.installed("torch"):
        for chosen, more in zip((training, prediction), torch_contestants(task, options.threads), strict=True):
            chosen.extend(more)
    if measure.installed("jax"):
        for chosen, more in zip((training, prediction), jax_contestants(task), strict=True):
            chosen.extend(more)

    check_losses(training)
    found = [(contestants, measure.interleaved(contestants, options.rounds)) for contestants in (training, prediction)]
    sections = [section(title, *one) for title, one in zip(("Training step", "Prediction"), found, strict=True)]
    title = f"# Digits example, batch {options.batch}"
    page = "\n\n".join([title, measure.setting(), INTRO, *sections, goals(*found)])
    measure.publish(page, "digits" if options.batch == 32 else f"digits-batch{options.batch}", options.write)


if __name__ == "__main__":
    main()
