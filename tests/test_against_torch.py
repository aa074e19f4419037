"""The digits example beside PyTorch, in double precision: from the same weights and batches the same losses.

PyTorch has neither Adam with MATLAB's place of epsilon nor moving averages of population variances: they stand here by
hand.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from minidl import adamupdate, dlaccelerate, dlarray, dlfeval, dlupdate, rng

pytestmark = pytest.mark.torch

STEPS, BATCH = 50, 8
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits_accel.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits_accel", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def start(example):
    """Initial parameters and state, as double dlarrays."""
    rng(3)
    parameters, state = example.modelParameters(10, 1)
    return dlupdate(_double, parameters), dlupdate(_double, state)


def _double(x):
    return dlarray(np.asarray(x, np.float64))


@pytest.fixture(scope="module")
def batches():
    """(X [28, 28, 1, B], digits [B], angles [1, B]) for each step."""
    random = np.random.default_rng(11)
    return [
        (random.random((28, 28, 1, BATCH)), random.integers(0, 10, BATCH), random.uniform(-45, 45, (1, BATCH)))
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="module")
def expected(start, batches):
    """What PyTorch makes of it: (losses, probabilities and angles of the first batch in the end)."""
    import torch

    net = TorchNet(*start)
    losses = [net.step(t + 1, *batch) for t, batch in enumerate(batches)]
    with torch.no_grad():
        scores, angles = net.model(net.images(batches[0][0]), False)
    return np.array(losses), scores.softmax(1).numpy(), angles.numpy()


class TorchNet:
    """The example's network and training step."""

    def __init__(self, parameters, state):
        import torch

        def tensor(layer, name, p):
            p = np.asarray(p)
            if p.ndim == 4:  # [k, k, C, F]
                p = p.transpose(3, 2, 0, 1)
            elif name == "Weights":  # MATLAB counts the features of an image with the first spatial dimension fastest
                p = p.reshape(len(p), 32, 14, 14).swapaxes(2, 3).reshape(len(p), -1)
            else:
                p = p.reshape(-1)
            return torch.tensor(p.copy())

        self.p = {(a, b): tensor(a, b, x) for a, layer in parameters.items() for b, x in layer.items()}
        self.s = {(a, b): tensor(a, b, x) for a, layer in state.items() for b, x in layer.items()}
        for p in self.p.values():
            p.requires_grad_(True)
        self.m = {name: torch.zeros_like(p) for name, p in self.p.items()}
        self.v = {name: torch.zeros_like(p) for name, p in self.p.items()}

    @staticmethod
    def images(x):
        import torch

        return torch.tensor(x.transpose(3, 2, 0, 1).copy())

    def conv(self, x, layer, stride=1):
        from torch.nn.functional import conv2d, pad

        w = self.p[layer, "Weights"]
        reach = w.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + reach - x.shape[-1], 0)
        x = pad(x, (total // 2, total - total // 2) * 2)
        return conv2d(x, w, self.p[layer, "Bias"], stride=stride)

    def norm(self, x, layer, is_training):
        from torch import no_grad

        mean, variance = self.s[layer, "TrainedMean"], self.s[layer, "TrainedVariance"]
        if is_training:
            with no_grad():
                new_mean, new_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                self.s[layer, "TrainedMean"] = 0.1 * new_mean + 0.9 * mean
                self.s[layer, "TrainedVariance"] = 0.1 * new_variance + 0.9 * variance
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        mean, variance, scale, offset = (
            v[:, None, None] for v in (mean, variance, self.p[layer, "Scale"], self.p[layer, "Offset"])
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + offset

    def model(self, x, is_training):
        from torch.nn.functional import linear, relu

        y = relu(self.norm(self.conv(x, "conv1"), "batchnorm1", is_training))
        skip = self.norm(self.conv(y, "convSkip", 2), "batchnormSkip", is_training)
        y = relu(self.norm(self.conv(y, "conv2", 2), "batchnorm2", is_training))
        y = self.norm(self.conv(y, "conv3"), "batchnorm3", is_training)
        features = relu(skip + y).flatten(1)
        return [linear(features, self.p[layer, "Weights"], self.p[layer, "Bias"]) for layer in ("fc1", "fc2")]

    def step(self, t, x, digits, angles):
        import torch

        scores, found = self.model(self.images(x), True)
        labels = -scores.log_softmax(1)[torch.arange(BATCH), torch.tensor(digits)].sum() / BATCH
        loss = labels + 0.1 * 0.5 * ((found - torch.tensor(angles.T.copy())) ** 2).sum() / BATCH
        gradients = torch.autograd.grad(loss, list(self.p.values()))
        rate = 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        with torch.no_grad():
            for name, g in zip(self.p, gradients):
                self.m[name] = 0.9 * self.m[name] + 0.1 * g
                self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
                self.p[name] -= rate * self.m[name] / (self.v[name].sqrt() + 1e-8)
        return loss.item()


def one_hot(digits):
    return np.eye(10)[:, digits]


@pytest.mark.parametrize("numerics", ["eager", "exact", "fast"])
def test_same_losses_as_pytorch(example, start, batches, expected, numerics):
    parameters, state = start
    gradientsFcn, model = example.modelGradients, example.model
    if numerics != "eager":
        gradientsFcn, model = dlaccelerate(gradientsFcn, Numerics=numerics), dlaccelerate(model, Numerics=numerics)
    m, v, losses = [], [], []
    for t, (x, digits, angles) in enumerate(batches):
        X, T1, T2 = dlarray(x, "SSCB"), dlarray(one_hot(digits)), dlarray(angles)
        gradients, state, loss = dlfeval(gradientsFcn, parameters, X, T1, T2, state)
        parameters, m, v = adamupdate(parameters, gradients, m, v, t + 1)
        losses.append(loss.item())
    np.testing.assert_allclose(losses, expected[0], rtol=1e-9)

    probabilities, angles, _ = model(parameters, dlarray(batches[0][0], "SSCB"), False, state)
    np.testing.assert_allclose(np.asarray(probabilities).T, expected[1], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(np.asarray(angles).T, expected[2], rtol=1e-7, atol=1e-7)
    if numerics != "eager":
        assert gradientsFcn.HitRate == 100 * (STEPS - 1) / STEPS


def test_whole_step_has_the_same_losses(example, start, batches, expected):
    parameters, state = start
    step = dlaccelerate(example.modelStep)
    m, v, losses = [], [], []
    for t, (x, digits, angles) in enumerate(batches):
        X, T1, T2 = dlarray(x, "SSCB"), dlarray(one_hot(digits)), dlarray(angles)
        parameters, state, loss, m, v = dlfeval(step, parameters, X, T1, T2, state, m, v, dlarray(t + 1.0))
        losses.append(loss.item())
    np.testing.assert_allclose(losses, expected[0], rtol=1e-9)
