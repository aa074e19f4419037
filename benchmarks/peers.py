"""What the works have in common in PyTorch and in JAX: arrays from minidl's, the optimiser, the forms to compare.

Same arithmetic everywhere: 'same' padding with stride 2 pads 0 before and 1 after, as MATLAB does. Each peer writes its
losses as its users do (cross-entropy of logits), and Adam as its library has it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Contestant
from training import Problem

Features = tuple[int, int, int] | None  # channels, rows, columns of an image that fully connected layers read
FUSED = ", fused Adam"


def connected(w: np.ndarray, features: Features) -> np.ndarray:
    """Weights of a fully connected layer as [outputs, channels, rows, columns]: in MATLAB, rows count fastest."""
    if features is None:
        return w
    channels, rows, columns = features
    return w.reshape(-1, channels, columns, rows).transpose(0, 1, 3, 2)


# PyTorch --------------------------------------------------------------------------------------------------------


class TorchNet:
    """Parameters, running statistics, batches and optimiser of one PyTorch contestant. A work says what it computes."""

    features: Features = None

    def __init__(self, problem: Problem, is_compiled: bool, is_channels_last: bool, is_fused: bool) -> None:
        import torch

        self.layout = torch.channels_last if is_channels_last else torch.contiguous_format
        self.p = {
            f"{layer}.{name}": self._parameter(name, w).requires_grad_(True)
            for layer, ps in problem.arrays().items()
            for name, w in ps.items()
        }
        self.statistics = {
            layer: (torch.zeros(s.TrainedMean.size), torch.ones(s.TrainedMean.size))
            for layer, s in problem.state.items()
        }
        self.batches = [self.batch(*batch) for batch in problem.batches]
        self.solver = torch.optim.Adam(list(self.p.values()), lr=1e-3, fused=is_fused)
        compiled = (lambda f: torch.compile(f, dynamic=False)) if is_compiled else (lambda f: f)
        self.loss, self.predictions = compiled(self._loss), compiled(self._predictions)

    def tensor(self, x: np.ndarray) -> Any:
        """A batch's array with observations first; images as they are laid out."""
        import torch

        if x.ndim == 4:
            return torch.tensor(x.transpose(3, 2, 0, 1).copy()).contiguous(memory_format=self.layout)
        return torch.tensor(x.T.copy())

    def batch(self, *arrays: np.ndarray) -> Any:
        """What `_loss` takes."""
        return tuple(self.tensor(x) for x in arrays)

    def _parameter(self, name: str, w: np.ndarray) -> Any:
        import torch

        if w.ndim == 4:
            return self.tensor(w)
        return torch.tensor(connected(w, self.features).reshape(len(w), -1) if name == "Weights" else w.reshape(-1))

    def _loss(self, *batch: Any) -> Any:
        raise NotImplementedError

    def _predictions(self, x: Any) -> Any:
        raise NotImplementedError

    def _linear(self, x: Any, layer: str) -> Any:
        from torch.nn.functional import linear

        return linear(x, self.p[f"{layer}.Weights"], self.p[f"{layer}.Bias"])

    def _conv(self, x: Any, layer: str, stride: int = 1) -> Any:
        from torch.nn.functional import conv2d, pad

        w, b = self.p[f"{layer}.Weights"], self.p[f"{layer}.Bias"]
        padding = w.shape[2] // 2
        if padding and stride == 2:
            x, padding = pad(x, (0, 1, 0, 1)), 0
        return conv2d(x, w, b, stride=stride, padding=padding)

    def _norm(self, x: Any, layer: str, is_training: bool) -> Any:
        from torch.nn.functional import batch_norm

        mean, variance = self.statistics[layer]
        scale, offset = self.p[f"{layer}.Scale"], self.p[f"{layer}.Offset"]
        return batch_norm(x, mean, variance, scale, offset, is_training, 0.1, 1e-5)

    def step(self, i: int) -> Any:
        """One training step; the loss."""
        self.solver.zero_grad(set_to_none=True)
        loss = self.loss(*self.batches[i % len(self.batches)])
        loss.backward()
        self.solver.step()
        return loss.detach()

    def predict(self, i: int) -> Any:
        """Predictions for one batch."""
        import torch

        with torch.no_grad():
            return self.predictions(self.batches[i % len(self.batches)][0])


def torch_nets(
    net: type[TorchNet],
    problem: Problem,
    threads: int | None,
    channels_last: tuple[bool, ...] = (False, True),
    fused: tuple[bool, ...] = (True,),
) -> dict[str, TorchNet]:
    """The forms of one network: eager and compiled; plain layout and channels last; plain and fused Adam."""
    import torch

    warnings.filterwarnings("ignore", module="torch")
    torch._dynamo.reset()  # each work compiled as if it were the only one: no limits, no shapes seen before
    if threads is not None:
        torch.set_num_threads(threads)
    made = {}
    for is_compiled, is_channels_last, is_fused in itertools.product((False, True), channels_last, fused):
        name = "PyTorch torch.compile" if is_compiled else "PyTorch eager"
        name += (", channels last" if is_channels_last else "") + (FUSED if is_fused else "")
        made[name] = net(problem, is_compiled, is_channels_last, is_fused)
    return made


def torch_training(nets: dict[str, TorchNet]) -> list[Contestant]:
    return [Contestant(name, net.step, is_peer=True) for name, net in nets.items()]


def torch_prediction(nets: dict[str, TorchNet]) -> list[Contestant]:
    """One for each network with fused Adam: the optimiser does not matter here."""
    return [
        Contestant(name.removesuffix(FUSED), net.predict, is_peer=True)
        for name, net in nets.items()
        if name.endswith(FUSED)
    ]


# JAX ------------------------------------------------------------------------------------------------------------


def jax_start(problem: Problem, features: Features = None) -> tuple[Any, Any]:
    """Initial parameters and running statistics."""
    import jax.numpy as jnp

    def arranged(name: str, w: np.ndarray) -> Any:
        if w.ndim == 2 and name == "Weights":
            w = np.moveaxis(connected(w, features), (0, 1), (-1, -2)).reshape(-1, len(w))
        return jnp.array(w if name == "Weights" else w.reshape(-1))

    ps = {layer: {name: arranged(name, w) for name, w in ws.items()} for layer, ws in problem.arrays().items()}
    sizes = {layer: s.TrainedMean.size for layer, s in problem.state.items()}
    return ps, {layer: (jnp.zeros(n), jnp.ones(n)) for layer, n in sizes.items()}


def jax_batches(problem: Problem) -> list[tuple[Any, ...]]:
    """The batches with observations first and channels last."""
    import jax.numpy as jnp

    return [tuple(jnp.asarray(np.moveaxis(x, -1, 0)) for x in batch) for batch in problem.batches]


def jax_conv(x: Any, p: Any, stride: int = 1) -> Any:
    from jax.lax import conv_general_dilated

    order = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, p["Weights"], (stride, stride), "SAME", dimension_numbers=order) + p["Bias"]


def jax_norm(x: Any, p: Any, statistics: Any, is_training: bool) -> tuple[Any, Any]:
    """Batch normalisation and the running statistics after it."""
    from jax.lax import rsqrt

    mean, variance = statistics
    if is_training:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        statistics = tuple(0.9 * old + 0.1 * new for old, new in zip(statistics, (mean, variance)))
    return (x - mean) * (p["Scale"] * rsqrt(variance + 1e-5)) + p["Offset"], statistics


def jax_crossentropy(scores: Any, targets: Any) -> Any:
    from jax.nn import log_softmax

    return -(targets * log_softmax(scores)).sum() / len(scores)


def jax_training(
    loss: Callable[..., Any], problem: Problem, features: Features = None, name: str = "JAX jit of the whole step"
) -> Contestant:
    """The whole step one jit, all state donated.

    loss : (parameters, running statistics, *batch) -> (loss, new statistics).
    """
    import jax
    import jax.numpy as jnp

    def step(ps: Any, m: Any, v: Any, statistics: Any, t: Any, *batch: Any) -> Any:
        (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(ps, statistics, *batch)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        ps = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), ps, m, v)
        return ps, m, v, statistics, value

    step = jax.jit(step, donate_argnums=(0, 1, 2, 3))
    ps, statistics = jax_start(problem, features)
    states = [ps, *(jax.tree.map(jnp.zeros_like, ps) for _ in range(2)), statistics]
    batches = jax_batches(problem)

    def train(i: int) -> Any:
        *states[:], value = step(*states, np.float32(i + 1), *batches[i % len(batches)])
        return value

    return Contestant(name, train, jax.block_until_ready, is_peer=True)
