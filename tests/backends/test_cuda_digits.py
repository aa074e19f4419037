"""The digits example's network through the CUDA backend: plain calls, the program of its gradients, whole steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from minidl import adamupdate, dlaccelerate, dlarray, dlfeval, dlupdate, gpuArray, rng
from minidl.backends import use_backend
from minidl.core.dlarray import DLArray
from minidl.core.tree import flatten, paths
from minidl.engine.branches import levels, needs
from minidl.engine.devices import DeviceProgram
from minidl.engine.graph import Node

BATCH = 8
ROUNDING = {"single": 1e-5, "double": 1e-12}


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[2] / "examples" / "digits_accel.py"
    spec = importlib.util.spec_from_file_location("digits_accel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problem(example, kind, batch=BATCH):
    """(parameters, images, digits, angles, state) of one mini-batch."""
    rng(0)
    parameters, state = example.modelParameters(10, 1)
    r = np.random.default_rng(1)
    X = dlarray(r.normal(size=(28, 28, 1, batch)), "SSCB")
    digits = dlarray(np.eye(10)[:, r.integers(0, 10, batch)])
    angles = dlarray(r.uniform(-45, 45, (1, batch)))
    return [dlupdate(lambda x: x.astype(kind), x) for x in (parameters, X, digits, angles, state)]


def assert_near(found, expected, rounding):
    """Every array on the GPU, and near in the Euclidean norm, measured by what it is made of where that cancels."""
    names = paths(expected)
    pairs = list(zip(names, *(flatten(tree)[0] for tree in (found, expected)), strict=True))
    norms = {name: float(np.linalg.norm(y.numpy())) for name, _, y in pairs}
    for name, x, y in pairs:
        assert isinstance(x, DLArray) and x.device == "gpu" and x.shape == y.shape and x.dtype == y.dtype
        # a bias before batch normalisation has a gradient of 0: rounding of sums as large as its weights' gradient
        scale = max(norms[name], norms.get(name.replace("Bias", "Weights"), 0.0))
        assert float(np.linalg.norm(x.numpy() - y.numpy())) <= rounding * scale, name


@pytest.mark.parametrize("kind", ["single", "double"])
def test_gradients_of_the_whole_network(device, example, kind):
    arguments = problem(example, kind)
    with use_backend("reference"):
        expected = dlfeval(example.modelGradients, *arguments)
    there = [dlupdate(gpuArray, x) for x in arguments]
    assert_near(dlfeval(example.modelGradients, *there), expected, ROUNDING[kind])
    accelerated = dlaccelerate(example.modelGradients)
    for order in device.orders():
        device.set_order(order)
        assert_near(dlfeval(accelerated, *there), expected, ROUNDING[kind])
    dlfeval(accelerated, *there)
    assert accelerated.HitRate >= 50 and isinstance(accelerated.trace().program, DeviceProgram)


def test_phases(device, example):
    """The whole step with its solver: eight launches wait for one another, each contraction is one."""
    parameters, X, digits, angles, state = (dlupdate(gpuArray, x) for x in problem(example, "single", 32))
    step = dlaccelerate(example.modelStep)
    p, s, m, v = parameters, state, [], []
    for i in range(1, 3):
        p, s, _, m, v = dlfeval(step, p, X, digits, angles, s, m, v, dlarray(np.float32(i)))
    tasks = step.trace(-1).program.plan.schedule.tasks
    assert 1 + max(levels(needs(tasks))) == 8 and len(tasks) <= 19
    assert not any(isinstance(task.work, Node) for task in tasks)
    shown = str(step.trace(-1))
    for what in ("load of a: ", "; then t", "then per column", "at last ", "phase 0: 0 conv with sums", "phase 7: "):
        assert what in shown
    assert "phase 8: " not in shown


def test_prediction(device, example):
    parameters, X, _, _, state = problem(example, "single")
    with use_backend("reference"):
        expected = example.model(parameters, X, False, state)
    there = [dlupdate(gpuArray, x) for x in (parameters, X, state)]
    predict = dlaccelerate(example.model)
    for _ in range(2):
        found = predict(there[0], there[1], False, there[2])
        assert_near(found[:2], expected[:2], 1e-5)


def test_some_steps_of_training(device, example):
    """The solver outside, and inside of the accelerated function, on the device and on the host."""
    losses = {}
    for name, place in (("host", lambda x: x), ("device", gpuArray)):
        parameters, X, digits, angles, state = (dlupdate(place, x) for x in problem(example, "single"))
        step, gradients = dlaccelerate(example.modelStep), dlaccelerate(example.modelGradients)
        p, s, m, v = parameters, state, [], []
        for i in range(1, 4):
            g, s, loss = dlfeval(gradients, p, X, digits, angles, s)
            p, m, v = adamupdate(p, g, m, v, i)
            losses.setdefault((name, "outside"), []).append(float(loss))
        p, s, m, v = parameters, state, [], []
        for i in range(1, 4):
            p, s, loss, m, v = dlfeval(step, p, X, digits, angles, s, m, v, dlarray(np.float32(i)))
            losses.setdefault((name, "inside"), []).append(float(loss))
    expected = losses.pop(("host", "outside"))
    for way, found in losses.items():
        assert found == pytest.approx(expected, rel=2e-3), way
        assert found[0] == pytest.approx(expected[0], rel=1e-5), way
