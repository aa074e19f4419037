"""A training problem, minidl's ways of solving it, and the check that all contestants solve the same one."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import ACCELERATED, EAGER, WHOLE, Contestant

from minidl import RetraceWarning, adamupdate, dlaccelerate, dlarray, dlfeval

Arrays = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass
class Problem:
    """Initial parameters and state as minidl has them (structs of dlarrays), and batches as NumPy arrays.

    formats : the labels of a batch's arrays. Whatever they are, the last dimension counts observations.
    """

    parameters: Any
    state: Any
    batches: list[tuple[np.ndarray, ...]]
    formats: tuple[str, ...]

    def arrays(self) -> Arrays:
        """The parameters as NumPy arrays."""
        return {layer: {name: np.asarray(p) for name, p in ps.items()} for layer, ps in self.parameters.items()}

    def dlarrays(self) -> list[tuple[Any, ...]]:
        """The batches as minidl takes them."""
        return [tuple(dlarray(x, labels) for x, labels in zip(batch, self.formats)) for batch in self.batches]


class Training:
    """One way of training with minidl; adamupdate as the example calls it, or inside the accelerated function."""

    def __init__(self, function: Any, problem: Problem, is_whole: bool = False) -> None:
        self.function, self.is_whole = function, is_whole
        self.batches = problem.dlarrays()
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


def accelerated(function: Callable[..., Any]) -> Any:
    """dlaccelerate, without the advice to do it only once: here it is for one problem after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetraceWarning)
        return dlaccelerate(function)


def minidl_training(problem: Problem, gradients: Callable[..., Any], step: Callable[..., Any]) -> list[Contestant]:
    """minidl's three ways: plain calls, accelerated with the solver outside, the whole step accelerated.

    gradients : (parameters, *batch, state) -> (gradients, state, loss).
    step : (parameters, *batch, state, averageGrad, averageSqGrad, iteration) -> (parameters, state, loss, averages).
    """
    ways = {
        EAGER: Training(gradients, problem),
        ACCELERATED: Training(accelerated(gradients), problem),
        WHOLE: Training(accelerated(step), problem, is_whole=True),
    }
    return [Contestant(name, way.step) for name, way in ways.items()]


def check_losses(contestants: list[Contestant], tolerance: float = 2e-4, steps: int = 4) -> dict[str, str]:
    """Everyone computes the same thing: the losses of the first steps, replays among them, agree.

    The first one nearly to the bit. Then Adam divides gradients by their size, also those that are mostly rounding,
    and `tolerance` is what the peers, too, differ by among themselves.
    Peers that cannot do it at all are taken out of the list; returns who and why.
    """
    unable: dict[str, str] = {}
    for i in range(steps):
        losses = {}
        for c in list(contestants):
            try:
                losses[c.name] = float(c.run(i))
            except Exception as error:
                if not c.is_peer or i > 0:
                    raise
                unable[c.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                contestants.remove(c)
                print(f"{c.name} is left out: {unable[c.name]}", file=sys.stderr)
        reference, first = next(iter(losses.items()))
        for name, loss in losses.items():
            is_near = abs(loss - first) <= (tolerance if i else 1e-5) * abs(first)
            assert is_near, f"step {i + 1}: {name} has loss {loss}, {reference} has {first}"
    return unable
