"""The digits example's network in PyTorch and in JAX, with the initial weights and the batches of the minidl one.

Same arithmetic everywhere: 'same' padding with stride 2 pads 0 before and 1 after, as MATLAB does. Each peer writes its
losses as its users do (cross-entropy of logits), and Adam as its library has it.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from measure import Contestant

Arrays = dict[str, dict[str, np.ndarray]]
NORMS = {"batchnorm1": 16, "batchnorm2": 32, "batchnorm3": 32, "batchnormSkip": 32}


@dataclasses.dataclass
class Problem:
    """Initial parameters as minidl has them (struct of dlarrays) and batches as NumPy arrays.

    A batch is (X [28, 28, 1, B], T1 [10, B] one-hot, T2 [1, B] degrees).
    """

    parameters: Any
    state: Any
    batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def arrays(self) -> Arrays:
        """The parameters as NumPy arrays."""
        return {layer: {name: np.asarray(p) for name, p in ps.items()} for layer, ps in self.parameters.items()}


# PyTorch --------------------------------------------------------------------------------------------------------


class TorchNet:
    """Parameters, running statistics and optimiser of one PyTorch contestant."""

    def __init__(self, problem: Problem, is_channels_last: bool, is_compiled: bool, is_fused: bool) -> None:
        import torch

        layout = torch.channels_last if is_channels_last else torch.contiguous_format

        def images(x: np.ndarray, order: tuple[int, ...]) -> Any:
            return torch.tensor(np.ascontiguousarray(x.transpose(order))).contiguous(memory_format=layout)

        self.p = {}
        for layer, ps in problem.arrays().items():
            for name, w in ps.items():
                if w.ndim == 4:
                    t = images(w, (3, 2, 0, 1))
                elif layer.startswith("fc") and name == "Weights":  # columns count rows fastest, here columns
                    t = torch.tensor(w.reshape(-1, 32, 14, 14).transpose(0, 1, 3, 2).reshape(len(w), -1).copy())
                else:
                    t = torch.tensor(w.reshape(-1).copy())
                self.p[f"{layer}.{name}"] = t.requires_grad_(True)
        self.statistics = {name: (torch.zeros(n), torch.ones(n)) for name, n in NORMS.items()}
        self.batches = [
            (images(X, (3, 2, 0, 1)), torch.tensor(T1.argmax(0)), torch.tensor(T2.T.copy()))
            for X, T1, T2 in problem.batches
        ]
        self.solver = torch.optim.Adam(list(self.p.values()), lr=1e-3, fused=is_fused)
        compiled = torch.compile if is_compiled else (lambda f: f)
        self.loss, self.predictions = compiled(self._loss), compiled(self._predictions)

    def _conv(self, x: Any, layer: str, **options: Any) -> Any:
        from torch.nn.functional import conv2d

        return conv2d(x, self.p[f"{layer}.Weights"], self.p[f"{layer}.Bias"], **options)

    def _norm(self, x: Any, layer: str, is_training: bool) -> Any:
        from torch.nn.functional import batch_norm

        mean, variance = self.statistics[layer]
        scale, offset = self.p[f"{layer}.Scale"], self.p[f"{layer}.Offset"]
        return batch_norm(x, mean, variance, scale, offset, is_training, 0.1, 1e-5)

    def _model(self, x: Any, is_training: bool) -> Any:
        from torch.nn.functional import linear, pad, relu

        y = relu(self._norm(self._conv(x, "conv1", padding=2), "batchnorm1", is_training))
        skip = self._norm(self._conv(y, "convSkip", stride=2), "batchnormSkip", is_training)
        y = relu(self._norm(self._conv(pad(y, (0, 1, 0, 1)), "conv2", stride=2), "batchnorm2", is_training))
        y = self._norm(self._conv(y, "conv3", padding=1), "batchnorm3", is_training)
        features = relu(skip + y).flatten(1)
        return [linear(features, self.p[f"{fc}.Weights"], self.p[f"{fc}.Bias"]) for fc in ("fc1", "fc2")]

    def _loss(self, x: Any, digits: Any, angles: Any) -> Any:
        from torch.nn.functional import cross_entropy, mse_loss

        scores, found = self._model(x, True)
        return cross_entropy(scores, digits) + 0.1 * 0.5 * mse_loss(found, angles)  # one angle an image: mean over B

    def _predictions(self, x: Any) -> Any:
        scores, angles = self._model(x, False)
        return scores.softmax(1), angles

    def step(self, i: int) -> Any:
        """One training step; the loss."""
        self.solver.zero_grad(set_to_none=True)
        loss = self.loss(*self.batches[i % len(self.batches)])
        loss.backward()
        self.solver.step()
        return loss.detach()

    def predict(self, i: int) -> Any:
        """Probabilities and angles of one batch."""
        import torch

        with torch.no_grad():
            return self.predictions(self.batches[i % len(self.batches)][0])


def torch_contestants(problem: Problem, threads: int | None) -> tuple[list[Contestant], list[Contestant]]:
    """(training, prediction) in PyTorch: eager, channels last, compiled; plain and fused Adam."""
    import torch

    warnings.filterwarnings("ignore", module="torch")
    if threads is not None:
        torch.set_num_threads(threads)
    training, prediction = [], []
    for name, is_channels_last, is_compiled in (
        ("PyTorch eager", False, False),
        ("PyTorch eager, channels last", True, False),
        ("PyTorch torch.compile", False, True),
        ("PyTorch torch.compile, channels last", True, True),
    ):
        for is_fused in (False, True):
            net = TorchNet(problem, is_channels_last, is_compiled, is_fused)
            training.append(Contestant(f"{name}, fused Adam" if is_fused else name, net.step, is_peer=True))
        prediction.append(Contestant(name, net.predict, is_peer=True))
    return training, prediction


# JAX ------------------------------------------------------------------------------------------------------------


def jax_contestants(problem: Problem) -> tuple[list[Contestant], list[Contestant]]:
    """(training, prediction) in JAX: the whole step one jit, all state donated."""
    import jax
    import jax.numpy as jnp

    def conv(x: Any, p: Any, stride: int = 1, padding: str = "SAME") -> Any:
        y = jax.lax.conv_general_dilated(
            x, p["Weights"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + p["Bias"]

    def model(ps: Any, statistics: Any, x: Any, is_training: bool) -> Any:
        moved = dict(statistics)

        def norm(x: Any, layer: str) -> Any:
            mean, variance = statistics[layer]
            if is_training:
                mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
                moved[layer] = tuple(0.9 * old + 0.1 * new for old, new in zip(statistics[layer], (mean, variance)))
            factor = ps[layer]["Scale"] * jax.lax.rsqrt(variance + 1e-5)
            return (x - mean) * factor + ps[layer]["Offset"]

        y = jax.nn.relu(norm(conv(x, ps["conv1"]), "batchnorm1"))
        skip = norm(conv(y, ps["convSkip"], 2, "VALID"), "batchnormSkip")
        y = jax.nn.relu(norm(conv(y, ps["conv2"], 2), "batchnorm2"))
        y = norm(conv(y, ps["conv3"]), "batchnorm3")
        features = jax.nn.relu(skip + y).reshape(len(x), -1)
        scores, angles = (features @ ps[fc]["Weights"] + ps[fc]["Bias"] for fc in ("fc1", "fc2"))
        return scores, angles, moved

    def loss(ps: Any, statistics: Any, x: Any, digits: Any, angles: Any) -> Any:
        scores, found, moved = model(ps, statistics, x, True)
        labels = -(digits * jax.nn.log_softmax(scores)).sum() / len(x)
        return labels + 0.1 * 0.5 * ((found - angles) ** 2).sum() / len(x), moved

    def step(ps: Any, m: Any, v: Any, statistics: Any, t: Any, *batch: Any) -> Any:
        (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(ps, statistics, *batch)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        ps = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), ps, m, v)
        return ps, m, v, statistics, value

    def predictions(ps: Any, statistics: Any, x: Any) -> Any:
        scores, angles, _ = model(ps, statistics, x, False)
        return jax.nn.softmax(scores), angles

    step, predictions = jax.jit(step, donate_argnums=(0, 1, 2, 3)), jax.jit(predictions)

    def arranged(layer: str, name: str, w: np.ndarray) -> Any:
        if layer.startswith("fc") and name == "Weights":  # columns count rows, columns, channels; here the reverse
            w = w.reshape(-1, 32, 14, 14).transpose(3, 2, 1, 0).reshape(-1, len(w))
        return jnp.asarray(w if w.ndim == 4 or name == "Weights" else w.reshape(-1))

    def start() -> Any:
        ps = {layer: {name: arranged(layer, name, w) for name, w in ws.items()}
              for layer, ws in problem.arrays().items()}  # fmt: skip
        zeros = [jax.tree.map(jnp.zeros_like, ps) for _ in range(2)]
        return [ps, *zeros, {name: (jnp.zeros(n), jnp.ones(n)) for name, n in NORMS.items()}]

    batches = [
        (jnp.asarray(X.transpose(3, 0, 1, 2)), jnp.asarray(T1.T), jnp.asarray(T2.T)) for X, T1, T2 in problem.batches
    ]
    states, fixed = start(), start()

    def train(i: int) -> Any:
        *states[:], value = step(*states, np.float32(i + 1), *batches[i % len(batches)])
        return value

    def predict(i: int) -> Any:
        return predictions(fixed[0], fixed[3], batches[i % len(batches)][0])

    name = "JAX jit"
    return (
        [Contestant(f"{name} of the whole step", train, jax.block_until_ready, True)],
        [Contestant(name, predict, jax.block_until_ready, True)],
    )
