"""The digits example's training step and prediction: minidl beside PyTorch and JAX, interleaved in one process.

    python benchmarks/digits.py [--batch 32] [--rounds 30] [--threads N] [--write]

All contestants start from the same weights and see the same batches; what a mini-batch queue does is left out.
"""

from __future__ import annotations

from typing import Any

import measure
import numpy as np
import peers
from measure import ACCELERATED, EAGER, WHOLE, Contestant
from training import Problem, accelerated, check_losses, minidl_training

from minidl import digitTrain4DArrayData, onehotencode, rng

INTRO = """\
Forward, loss, gradients, running statistics and Adam; prediction with trained statistics. Numbers of one run are
comparable, numbers of different runs are not. Ratios are medians over the rounds."""
BATCHES = 16
FEATURES = (32, 14, 14)  # what fc1 and fc2 read

Both = tuple[list[Contestant], list[Contestant]]  # (training, prediction)


def problem(example: Any, batch: int) -> Problem:
    """Initial weights and batches: images [28, 28, 1, B], one-hot digits [10, B], degrees [1, B]."""
    rng(0)
    parameters, state = example.modelParameters(10, 1)
    images, labels, angles = digitTrain4DArrayData()
    targets = np.asarray(onehotencode(labels[None, :], 0, ClassNames=list("0123456789")), np.float32)
    batches = []
    for i in range(BATCHES):
        chosen = np.arange(i * batch, (i + 1) * batch) % len(labels)
        batches.append((images[..., chosen], targets[:, chosen], angles[chosen].T))
    return Problem(parameters, state, batches, ("SSCB", "", ""))


def minidl_contestants(example: Any, problem: Problem) -> Both:
    """minidl's ways."""
    batches, model = problem.dlarrays(), example.model

    def predictor(function: Any) -> Any:
        return lambda i: function(problem.parameters, batches[i % len(batches)][0], False, problem.state)

    return (
        minidl_training(problem, example.modelGradients, example.modelStep),
        [Contestant(EAGER, predictor(model)), Contestant(ACCELERATED, predictor(accelerated(model)))],
    )


# peers ----------------------------------------------------------------------------------------------------------


class TorchDigits(peers.TorchNet):
    """The example's network in PyTorch."""

    features = FEATURES

    def batch(self, X: np.ndarray, T1: np.ndarray, T2: np.ndarray) -> Any:
        import torch

        return self.tensor(X), torch.tensor(T1.argmax(0)), self.tensor(T2)

    def _model(self, x: Any, is_training: bool) -> Any:
        from torch.nn.functional import relu

        y = relu(self._norm(self._conv(x, "conv1"), "batchnorm1", is_training))
        skip = self._norm(self._conv(y, "convSkip", stride=2), "batchnormSkip", is_training)
        y = relu(self._norm(self._conv(y, "conv2", stride=2), "batchnorm2", is_training))
        y = self._norm(self._conv(y, "conv3"), "batchnorm3", is_training)
        features = relu(skip + y).flatten(1)
        return self._linear(features, "fc1"), self._linear(features, "fc2")

    def _loss(self, x: Any, digits: Any, angles: Any) -> Any:
        from torch.nn.functional import cross_entropy, mse_loss

        scores, found = self._model(x, True)
        return cross_entropy(scores, digits) + 0.1 * 0.5 * mse_loss(found, angles)  # one angle an image: mean over B

    def _predictions(self, x: Any) -> Any:
        scores, angles = self._model(x, False)
        return scores.softmax(1), angles


def torch_contestants(problem: Problem, threads: int | None, **forms: tuple[bool, ...]) -> Both:
    """PyTorch's ways."""
    nets = peers.torch_nets(TorchDigits, problem, threads, **forms)
    return peers.torch_training(nets), peers.torch_prediction(nets)


def jax_contestants(problem: Problem) -> Both:
    """The example's network in JAX."""
    import jax

    def model(ps: Any, statistics: Any, x: Any, is_training: bool) -> Any:
        moved = {}

        def normed_conv(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
            y = peers.jax_conv(x, ps[conv], stride)
            y, moved[norm] = peers.jax_norm(y, ps[norm], statistics[norm], is_training)
            return y

        y = jax.nn.relu(normed_conv(x, "conv1", "batchnorm1"))
        skip = normed_conv(y, "convSkip", "batchnormSkip", 2)
        y = jax.nn.relu(normed_conv(y, "conv2", "batchnorm2", 2))
        y = normed_conv(y, "conv3", "batchnorm3")
        features = jax.nn.relu(skip + y).reshape(len(x), -1)
        scores, angles = (features @ ps[fc]["Weights"] + ps[fc]["Bias"] for fc in ("fc1", "fc2"))
        return scores, angles, moved

    def loss(ps: Any, statistics: Any, x: Any, digits: Any, angles: Any) -> Any:
        scores, found, moved = model(ps, statistics, x, True)
        return peers.jax_crossentropy(scores, digits) + 0.1 * 0.5 * ((found - angles) ** 2).sum() / len(x), moved

    def predictions(ps: Any, statistics: Any, x: Any) -> Any:
        scores, angles, _ = model(ps, statistics, x, False)
        return jax.nn.softmax(scores), angles

    start, batches = peers.jax_start(problem, FEATURES), peers.jax_batches(problem)
    predictions = jax.jit(predictions)

    def predict(i: int) -> Any:
        return predictions(*start, batches[i % len(batches)][0])

    return (
        [peers.jax_training(loss, problem, FEATURES)],
        [Contestant("JAX jit", predict, jax.block_until_ready, is_peer=True)],
    )


def contestants(batch: int, threads: int | None, **forms: tuple[bool, ...]) -> Both:
    """minidl and the peers that are installed, for batches of a size; `forms` as torch_nets takes them."""
    example = measure.example()
    task = problem(example, batch)
    training, prediction = minidl_contestants(example, task)
    found = [torch_contestants(task, threads, **forms)] if measure.installed("torch") else []
    found += [jax_contestants(task)] if measure.installed("jax") else []
    for more_training, more_prediction in found:
        training.extend(more_training)
        prediction.extend(more_prediction)
    return training, prediction


# page -----------------------------------------------------------------------------------------------------------


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
        reference = other if other in seconds else measure.references(contestants, seconds).get(other)
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

    training, prediction = contestants(options.batch, options.threads, fused=(False, True))
    check_losses(training)
    found = [(timed, measure.interleaved(timed, options.rounds)) for timed in (training, prediction)]
    sections = [measure.section(title, *one) for title, one in zip(("Training step", "Prediction"), found, strict=True)]
    title = f"# Digits example, batch {options.batch}"
    page = "\n\n".join([title, measure.setting(), INTRO, *sections, goals(*found)])
    measure.publish(page, "digits" if options.batch == 32 else f"digits-batch{options.batch}", options.write)


if __name__ == "__main__":
    main()
