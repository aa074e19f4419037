"""Works besides the digits example, each in minidl, PyTorch and JAX: a perceptron, a stack of convolutions, and a
network that learns a differential equation.

goals.py times them. All contestants of a work start from the same weights and see the same batches, in single
precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import numpy as np
import peers
from measure import Contestant
from training import Problem, minidl_training

from minidl import (
    adamupdate,
    batchnorm,
    cat,
    crossentropy,
    digitTrain4DArrayData,
    dlconv,
    dlgradient,
    fullyconnect,
    initializeGlorot,
    initializeHe,
    initializeOnes,
    initializeZeros,
    mse,
    onehotencode,
    relu,
    rng,
    softmax,
    struct,
    sum,
    tanh,
    zeros,
)


def whole_step(modelGradients: Callable[..., Any]) -> Callable[..., Any]:
    """A whole training step, Adam included, from a function that gives (gradients, state, loss)."""

    def modelStep(parameters, *arguments):
        *batch, state, trailingAvg, trailingAvgSq, iteration = arguments
        gradients, state, loss = modelGradients(parameters, *batch, state)
        parameters, trailingAvg, trailingAvgSq = adamupdate(
            parameters, gradients, trailingAvg, trailingAvgSq, iteration
        )
        return parameters, state, loss, trailingAvg, trailingAvgSq

    return modelStep


def connection(outputs: int, inputs: int) -> struct:
    """Initial parameters of a fully connected layer."""
    return struct(Weights=initializeGlorot([outputs, inputs], outputs, inputs), Bias=initializeZeros([outputs, 1]))


def onehot(labels: np.ndarray, classes: Any) -> np.ndarray:
    return np.asarray(onehotencode(labels[None, :], 0, ClassNames=classes), np.float32)


class TorchClassifier(peers.TorchNet):
    """What a network that scores classes has in common with the others."""

    def batch(self, X: np.ndarray, T: np.ndarray) -> Any:
        import torch

        return self.tensor(X), torch.tensor(T.argmax(0))

    def _loss(self, x: Any, labels: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy(self._scores(x), labels)

    def _scores(self, x: Any) -> Any:
        raise NotImplementedError


# a perceptron: 784-256-256-10 on digits -------------------------------------------------------------------------
PERCEPTRON = [784, 256, 256, 10]


def perceptron_problem(batch: int = 64) -> Problem:
    """Initial weights, and digits as columns."""
    rng(0)
    sizes = list(zip(PERCEPTRON[1:], PERCEPTRON))
    parameters = struct({f"fc{i}": connection(*size) for i, size in enumerate(sizes, 1)})
    images, labels, _ = digitTrain4DArrayData()
    X, T = images.reshape(784, -1), onehot(labels, list("0123456789"))
    batches = [(X[:, i : i + batch], T[:, i : i + batch]) for i in range(0, 16 * batch, batch)]
    return Problem(parameters, struct(), batches, ("CB", "CB"))


def perceptron_gradients(parameters, X, T, state):
    Y = relu(fullyconnect(X, parameters.fc1.Weights, parameters.fc1.Bias))
    Y = relu(fullyconnect(Y, parameters.fc2.Weights, parameters.fc2.Bias))
    Y = softmax(fullyconnect(Y, parameters.fc3.Weights, parameters.fc3.Bias))
    loss = crossentropy(Y, T)
    return dlgradient(loss, parameters), state, loss


class TorchPerceptron(TorchClassifier):
    def _scores(self, x: Any) -> Any:
        from torch.nn.functional import relu

        return self._linear(relu(self._linear(relu(self._linear(x, "fc1")), "fc2")), "fc3")


def jax_perceptron(problem: Problem) -> list[Contestant]:
    from jax.nn import relu

    def loss(ps: Any, statistics: Any, x: Any, targets: Any) -> Any:
        for layer in ("fc1", "fc2"):
            x = relu(x @ ps[layer]["Weights"] + ps[layer]["Bias"])
        return peers.jax_crossentropy(x @ ps["fc3"]["Weights"] + ps["fc3"]["Bias"], targets), statistics

    return [peers.jax_training(loss, problem)]


# a stack of convolutions as in VGG: 32x32x3, channels 64-128-256 ------------------------------------------------
# minidl has no pooling: each second convolution has stride 2 and halves the image instead. As in VGG with batch
# normalisation, each convolution is 3x3, padded to the same size, normalised, and goes through relu.
STACK = [(3, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2), (128, 256, 1), (256, 256, 2)]  # channels, stride
STACK_FEATURES = (256, 4, 4)  # what its fully connected layer reads


def stack_problem(batch: int = 32) -> Problem:
    """Initial weights, and noise as images: ten classes of different colours."""
    rng(0)
    parameters, state = struct(), struct()
    for i, (inputs, outputs, _) in enumerate(STACK, 1):
        conv = struct(Weights=initializeHe([3, 3, inputs, outputs], 9 * inputs), Bias=initializeZeros([outputs, 1]))
        parameters[f"conv{i}"] = conv
        parameters[f"batchnorm{i}"] = struct(Offset=initializeZeros([outputs, 1]), Scale=initializeOnes([outputs, 1]))
        state[f"batchnorm{i}"] = struct(
            TrainedMean=initializeZeros([outputs, 1]), TrainedVariance=initializeOnes([outputs, 1])
        )
    parameters.fc = connection(10, 4096)
    random = np.random.default_rng(0)
    colours = random.normal(size=(3, 10))
    batches = []
    for _ in range(8):
        labels = random.integers(0, 10, batch)
        images = random.normal(size=(32, 32, 3, batch)) + colours[:, labels]
        batches.append((images.astype(np.float32), onehot(labels, range(10))))
    return Problem(parameters, state, batches, ("SSCB", "CB"))


def stack_gradients(parameters, X, T, state):
    state = state.copy()
    for i, (_, _, stride) in enumerate(STACK, 1):
        conv, norm, trained = parameters[f"conv{i}"], parameters[f"batchnorm{i}"], state[f"batchnorm{i}"]
        X = dlconv(X, conv.Weights, conv.Bias, Padding="same", Stride=stride)
        X, trained.TrainedMean, trained.TrainedVariance = batchnorm(
            X, norm.Offset, norm.Scale, trained.TrainedMean, trained.TrainedVariance, nargout=3
        )
        X = relu(X)
    Y = softmax(fullyconnect(X, parameters.fc.Weights, parameters.fc.Bias))
    loss = crossentropy(Y, T)
    return dlgradient(loss, parameters), state, loss


class TorchStack(TorchClassifier):
    features = STACK_FEATURES

    def _scores(self, x: Any) -> Any:
        from torch.nn.functional import relu

        for i, (_, _, stride) in enumerate(STACK, 1):
            x = relu(self._norm(self._conv(x, f"conv{i}", stride), f"batchnorm{i}", True))
        return self._linear(x.flatten(1), "fc")


def jax_stack(problem: Problem) -> list[Contestant]:
    from jax.nn import relu

    def loss(ps: Any, statistics: Any, x: Any, targets: Any) -> Any:
        moved = {}
        for i, (_, _, stride) in enumerate(STACK, 1):
            norm = f"batchnorm{i}"
            x, moved[norm] = peers.jax_norm(peers.jax_conv(x, ps[f"conv{i}"], stride), ps[norm], statistics[norm], True)
            x = relu(x)
        scores = x.reshape(len(x), -1) @ ps["fc"]["Weights"] + ps["fc"]["Bias"]
        return peers.jax_crossentropy(scores, targets), moved

    return [peers.jax_training(loss, problem, STACK_FEATURES)]


# a differential equation: u(x, t) by 2-64-64-64-1, Burgers' equation at 1,024 points ----------------------------
# After the MathWorks example "Solve Partial Differential Equation Using Deep Learning":
#     u_t + u u_x - nu u_xx = 0 inside, u(x, 0) = -sin(pi x), u(-1, t) = u(1, t) = 0.
EQUATION = [2, 64, 64, 64, 1]
POINTS, KNOWN = 1024, 100  # inside; with known u
NU = 0.01 / np.pi


def equation_problem() -> Problem:
    """Initial weights, and one batch of rows: x, t of the points inside; x, t, u of the known ones."""
    rng(0)
    sizes = list(zip(EQUATION[1:], EQUATION))
    parameters = struct({f"fc{i}": connection(*size) for i, size in enumerate(sizes, 1)})
    random = np.random.default_rng(0)
    X, T = random.uniform(-1, 1, POINTS), random.uniform(0, 1, POINTS)
    is_border = np.arange(KNOWN) % 2 == 1
    X0 = np.where(is_border, np.sign(random.uniform(-1, 1, KNOWN)), random.uniform(-1, 1, KNOWN))
    T0 = np.where(is_border, random.uniform(0, 1, KNOWN), 0)
    U0 = np.where(is_border, 0, -np.sin(np.pi * X0))
    batch = tuple(row[None, :].astype(np.float32) for row in (X, T, X0, T0, U0))
    return Problem(parameters, struct(), [batch], ("CB",) * 5)


def equation_solution(parameters, X, T):
    U = cat(0, X, T)
    for layer in ("fc1", "fc2", "fc3"):
        U = tanh(fullyconnect(U, parameters[layer].Weights, parameters[layer].Bias))
    return fullyconnect(U, parameters.fc4.Weights, parameters.fc4.Bias)


def equation_gradients(parameters, X, T, X0, T0, U0, state):
    U = equation_solution(parameters, X, T)
    Ux, Ut = dlgradient(sum(U, "all"), X, T, EnableHigherDerivatives=True)
    Uxx = dlgradient(sum(Ux, "all"), X, EnableHigherDerivatives=True)
    residual = Ut + U * Ux - NU * Uxx
    loss = mse(residual, zeros(1, POINTS, like=residual)) + mse(equation_solution(parameters, X0, T0), U0)
    return dlgradient(loss, parameters), state, loss


class TorchEquation(peers.TorchNet):
    """torch.compile takes second derivatives where it is told to trace torch.autograd.grad. The gradients by the
    parameters are taken inside the compiled function, too: that is faster than `backward` outside."""

    def __init__(self, problem: Problem, is_compiled: bool, *forms: bool) -> None:
        import torch

        if is_compiled and hasattr(torch._dynamo.config, "trace_autograd_ops"):  # without it, it cannot
            torch._dynamo.config.trace_autograd_ops = True
        super().__init__(problem, is_compiled, *forms)

    def batch(self, *rows: np.ndarray) -> Any:
        x, t, *known = super().batch(*rows)
        return x.requires_grad_(True), t.requires_grad_(True), *known

    def _solution(self, x: Any, t: Any) -> Any:
        import torch

        u = torch.cat([x, t], 1)
        for layer in ("fc1", "fc2", "fc3"):
            u = torch.tanh(self._linear(u, layer))
        return self._linear(u, "fc4")

    def _loss(self, x: Any, t: Any, x0: Any, t0: Any, u0: Any) -> Any:
        from torch.autograd import grad
        from torch.nn.functional import mse_loss

        u = self._solution(x, t)
        ux, ut = grad(u.sum(), (x, t), create_graph=True)
        (uxx,) = grad(ux.sum(), x, create_graph=True)
        residual = ut + u * ux - NU * uxx
        loss = 0.5 * (residual.square().mean() + mse_loss(self._solution(x0, t0), u0))
        return loss.detach(), grad(loss, list(self.p.values()))

    def step(self, i: int) -> Any:
        """One training step; the loss."""
        loss, gradients = self.loss(*self.batches[i % len(self.batches)])
        for p, gradient in zip(self.p.values(), gradients):
            p.grad = gradient
        self.solver.step()
        return loss


def jax_equation(problem: Problem) -> list[Contestant]:
    """Two forms: derivatives by the coordinates forwards (jvp), or backwards (grad of a sum over the points)."""
    import jax
    import jax.numpy as jnp

    def solution(ps: Any, x: Any, t: Any) -> Any:
        u = jnp.concatenate([x, t], 1)
        for layer in ("fc1", "fc2", "fc3"):
            u = jnp.tanh(u @ ps[layer]["Weights"] + ps[layer]["Bias"])
        return u @ ps["fc4"]["Weights"] + ps["fc4"]["Bias"]

    def forwards(u: Any, x: Any, t: Any) -> Any:
        one = jnp.ones_like(x)
        (value, ux), (_, uxx) = jax.jvp(lambda x: jax.jvp(lambda x: u(x, t), (x,), (one,)), (x,), (one,))
        return value, ux, jax.jvp(lambda t: u(x, t), (t,), (one,))[1], uxx

    def backwards(u: Any, x: Any, t: Any) -> Any:
        total = lambda x, t: u(x, t).sum()
        ux, ut = jax.grad(total, (0, 1))(x, t)
        return u(x, t), ux, ut, jax.grad(lambda x: jax.grad(total)(x, t).sum())(x)

    def trained(derivatives: Any, name: str) -> Contestant:
        def loss(ps: Any, statistics: Any, x: Any, t: Any, x0: Any, t0: Any, u0: Any) -> Any:
            u = lambda x, t: solution(ps, x, t)
            value, ux, ut, uxx = derivatives(u, x, t)
            residual = ut + value * ux - NU * uxx
            return 0.5 * ((residual**2).mean() + ((u(x0, t0) - u0) ** 2).mean()), statistics

        return peers.jax_training(loss, problem, name=name)

    return [trained(forwards, "JAX jit, jvp of jvp"), trained(backwards, "JAX jit, grad of grad")]


# all of them ----------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """How to set a work up, and its training step: in minidl, in PyTorch, in JAX."""

    problem: Callable[[], Problem]
    gradients: Callable[..., Any]
    net: type[peers.TorchNet]
    in_jax: Callable[[Problem], list[Contestant]]
    channels_last: tuple[bool, ...] = (False,)  # the layouts that PyTorch is to try
    tolerance: float = 2e-4  # of check_losses

    def contestants(self, threads: int | None) -> list[Contestant]:
        """minidl and the peers that are installed."""
        problem = self.problem()
        found = minidl_training(problem, self.gradients, whole_step(self.gradients))
        if measure.installed("torch"):
            found += peers.torch_training(peers.torch_nets(self.net, problem, threads, self.channels_last))
        if measure.installed("jax"):
            found += self.in_jax(problem)
        return found


PERCEPTRON_WORK = Work(perceptron_problem, perceptron_gradients, TorchPerceptron, jax_perceptron)
STACK_WORK = Work(stack_problem, stack_gradients, TorchStack, jax_stack, (False, True), 1e-3)
EQUATION_WORK = Work(equation_problem, equation_gradients, TorchEquation, jax_equation)
