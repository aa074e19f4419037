"""Whole training steps as CUDA graphs, beside PyTorch's and JAX's: python benchmarks/gpu.py --graphs

Everybody has the same weights, batches on the GPU and precision, and runs the whole step with Adam:
- PyTorch eager; its whole step captured by hand in one graph; torch.compile (max-autotune); the compiled step captured
  by hand in one graph
- JAX, jit of the whole step with all state donated

Batches are copied into what a captured step reads, by everybody that captures. Steps are queued one after the other;
the clock waits for the GPU at the end of a chunk. What matters most comes first: torch.compile is left out, and then
whole works are, when the time is nearly over.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import digits
import measure
import models
import numpy as np
import peers
from measure import Contestant
from training import Problem, Training, check_losses

from minidl import RetraceWarning, dlaccelerate, dlupdate, gpuArray
from minidl.backends import precision
from minidl.kernels.cuda import launch

UNFUSED, FUSED = "minidl, kernel by kernel", "minidl, fused"
COMPILE_SECONDS = 100  # what torch.compile may take in one of its modes
WORK_SECONDS = 20  # what a work may take without it
WARM_UPS = 3  # steps before a capture, on a stream beside, as PyTorch wants it
STEPS = 3120  # iterations of the example's training


class OnGPU(Problem):
    """A problem whose arrays are on the GPU."""

    @classmethod
    def of(cls, task: Problem) -> OnGPU:
        return cls(dlupdate(gpuArray, task.parameters), dlupdate(gpuArray, task.state), task.batches, task.formats)

    def dlarrays(self) -> list[tuple[Any, ...]]:
        return [tuple(gpuArray(x) for x in batch) for batch in super().dlarrays()]


# minidl ---------------------------------------------------------------------------------------------------------
def minidl_steps(task: Problem, step: Callable[..., Any]) -> list[Contestant]:
    """The whole step, unfused and fused, as graphs."""
    there = OnGPU.of(task)
    wait = lambda loss: launch.cupy().cuda.Device().synchronize()
    ways = {UNFUSED: "exact", FUSED: "fast"}
    found = []
    for name, how in ways.items():
        with warnings.catch_warnings():  # here it is for one problem after the other
            warnings.simplefilter("ignore", RetraceWarning)
            accelerated = dlaccelerate(step, Numerics=how)
        found.append(Contestant(name, Training(accelerated, there, is_whole=True).step, wait))
    return found


# PyTorch --------------------------------------------------------------------------------------------------------
class TorchStep:
    """A network's whole step: as it is, compiled, and each captured by hand in one graph."""

    def __init__(self, net: type[peers.TorchNet], task: Problem, mode: str | None, is_captured: bool) -> None:
        import torch

        self.net = net(task, False, True, True)
        self.net.solver = torch.optim.Adam(list(self.net.p.values()), lr=1e-3, fused=True, capturable=True)
        loss = self.net._loss if mode is None else torch.compile(self.net._loss, mode=mode, dynamic=False)
        self.batches = self.net.batches
        self.inputs = [x.clone() for x in self.batches[0]]
        self._loss, self._graph = loss, None
        if is_captured:
            self._capture()

    def _plain(self, *batch: Any) -> Any:
        self.net.solver.zero_grad(set_to_none=True)
        value = self._loss(*batch)
        value.backward()
        self.net.solver.step()
        return value.detach()

    def _capture(self) -> None:
        """Warm up, put everything back to where it was, and capture."""
        import torch

        kept = [p.detach().clone() for p in self.net.p.values()]
        statistics = [x.clone() for pair in self.net.statistics.values() for x in pair]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._plain(*self.inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        self.net.solver.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph):
            self.value = self._plain(*self.inputs)
        with torch.no_grad():
            for p, before in zip(self.net.p.values(), kept):
                p.copy_(before)
            for x, before in zip([x for pair in self.net.statistics.values() for x in pair], statistics):
                x.copy_(before)
            for state in self.net.solver.state.values():
                for x in state.values():
                    x.zero_()

    def step(self, i: int) -> Any:
        """One training step; the loss."""
        batch = self.batches[i % len(self.batches)]
        if self._graph is None:
            return self._plain(*batch)
        for to, x in zip(self.inputs, batch):
            to.copy_(x)
        self._graph.replay()
        return self.value.clone()


TORCH = {
    "PyTorch eager": (None, False),
    "PyTorch, one graph": (None, True),
    "PyTorch torch.compile": ("max-autotune", False),
    "PyTorch torch.compile, one graph": ("max-autotune-no-cudagraphs", True),
}


def torch_steps(
    net: type[peers.TorchNet], task: Problem, setting: str, deadline: float = math.inf
) -> list[Contestant]:  # fmt: skip
    """PyTorch's ways; one that cannot be made, or not in time, is left out, and says why."""
    if not measure.installed("torch"):
        return []
    import torch

    if not torch.cuda.is_available():
        print("PyTorch finds no GPU: measured without it.", file=sys.stderr)
        return []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting == "tf32"
    torch.backends.cudnn.benchmark = True
    wait = lambda loss: torch.cuda.synchronize()
    found = []
    for name, (mode, is_captured) in TORCH.items():
        if mode is not None and time.monotonic() + COMPILE_SECONDS > deadline:
            print(f"{name} is left out: there is no time to compile.", file=sys.stderr)
            continue
        torch._dynamo.reset()
        torch.set_default_device("cuda")
        try:
            found.append(Contestant(name, TorchStep(net, task, mode, is_captured).step, wait, is_peer=True))
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            torch.set_default_device("cpu")
    return found


def jax_steps(make: Callable[[Problem], list[Contestant]], task: Problem, setting: str) -> list[Contestant]:
    """JAX's way."""
    if not measure.installed("jax"):
        return []
    import jax

    if jax.default_backend() != "gpu":
        print("JAX finds no GPU: measured without it.", file=sys.stderr)
        return []
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if setting == "tf32" else "highest")
    return make(task)


# works ----------------------------------------------------------------------------------------------------------
def sections(batches: list[int], rounds: int, deadline: float = math.inf) -> Iterator[str]:
    """The parts of the page, each as soon as it is measured: the first batch, the perceptron, the other batches."""
    example = measure.example()
    step = models.whole_step(models.perceptron_gradients)
    first, *others = batches

    def of_digits(batch: int, setting: str) -> str:
        title = f"Digits, whole training step, batch {batch}, {setting}"
        jax = lambda task: digits.jax_contestants(task)[0]
        task = digits.problem(example, batch)
        return section(title, task, example.modelStep, digits.TorchDigits, jax, setting, rounds, deadline)

    def of_perceptron(setting: str) -> str:
        title = f"Perceptron 784-256-256-10, whole training step, batch 64, {setting}"
        task, jax = models.perceptron_problem(), models.jax_perceptron
        return section(title, task, step, models.TorchPerceptron, jax, setting, rounds, deadline)

    works: list[tuple[str, Callable[[], str]]] = []
    for some in ([first], others):
        for setting in precision.NAMES:
            works += [(f"digits {n} {setting}", functools.partial(of_digits, n, setting)) for n in some]
        if some == [first]:
            works.insert(1, ("the whole training", functools.partial(whole_training, example)))
            works += [(f"perceptron {s}", functools.partial(of_perceptron, s)) for s in precision.NAMES]
    for k, (_, work) in enumerate(works):
        if time.monotonic() + WORK_SECONDS > deadline:
            yield f"Not measured for lack of time: {', '.join(name for name, _ in works[k:])}."
            return
        yield work()


def section(
    title: str, task: Problem, step: Callable[..., Any], net: type[peers.TorchNet],
    jax: Callable[[Problem], list[Contestant]], setting: str, rounds: int, deadline: float = math.inf,
) -> str:  # fmt: skip
    """One work, everybody in turn."""
    with precision.chosen(setting):
        contestants = minidl_steps(task, step) + torch_steps(net, task, setting, deadline)
        contestants += jax_steps(jax, task, setting)
        check_losses(contestants, tolerance=5e-3 if setting == "tf32" else 1e-3)
        seconds = measure.interleaved(contestants, rounds)
    own = np.median(seconds[FUSED])
    rows = [
        [c.name, f"{np.median(seconds[c.name]) * 1e6:.1f}", f"{min(seconds[c.name]) * 1e6:.1f}",
         f"{own / np.median(seconds[c.name]):.2f}"]
        for c in contestants
    ]  # fmt: skip
    return f"## {title}\n\n{measure.table(['', 'median, us', 'fastest chunk, us', 'minidl, fused, times'], rows)}"


def whole_training(example: Any, steps: int = STEPS, batch: int = 32) -> str:
    """As many steps as the example takes, the loss of the last one fetched at the end."""
    (_, fused) = minidl_steps(digits.problem(example, batch), example.modelStep)
    for i in range(12):
        fused.wait(fused.run(i))
    start = time.perf_counter()
    for i in range(12, 12 + steps):
        loss = fused.run(i)
    value = float(loss)
    seconds = time.perf_counter() - start
    each = f"{seconds:.3f} s, {seconds / steps * 1e6:.1f} us each; loss {value:.4f}"
    return f"## {steps} iterations of the digits example, batch {batch}\n\n{each}"
