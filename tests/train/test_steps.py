"""Solver steps on a GPU: the same numbers as plain calls, whatever is held, changed or mixed in between."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import cusim
import numpy as np
import pytest

from minidl import adamupdate, backends, dlarray, dlupdate, gpuArray, rmspropupdate, sgdmupdate, struct
from minidl.core.tree import flatten
from minidl.train import steps

R = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_kept():
    steps.release()
    yield
    steps.release()


def tree(dtype="float32"):
    return struct(
        a=struct(W=dlarray(R.normal(size=(5, 7)).astype(dtype)), b=dlarray(R.normal(size=(7, 1)).astype(dtype))),
        c=dlarray(R.normal(size=(2, 3, 4)).astype(dtype), "SSC"), none=None,
    )  # fmt: skip


def numbers(x):
    return [np.array(y.numpy()) for y in flatten(x)[0]]


UPDATES = {
    "adam": (lambda p, g, s, t, **o: adamupdate(p, g, *s, t, **o), 2),
    "sgdm": (lambda p, g, s, t, **o: sgdmupdate(p, g, *s, **o), 1),
    "rmsprop": (lambda p, g, s, t, **o: rmspropupdate(p, g, *s, **o), 1),
}


def loop(update, count, put, gradient, each=lambda k, p, s: None, options=lambda k: {}, dtype="float32"):
    global R
    R = np.random.default_rng(1)
    p, s, found = dlupdate(put, tree(dtype)), (None,) * count, []
    gs = [dlupdate(put, tree(dtype)) for _ in range(3)]
    for k in range(14):
        p, *s = update(p, gradient(gs, k), s, k + 1, **options(k))
        changed = each(k, p, s)
        p = p if changed is None else changed
        found.append(numbers((p, *s)))
    return found


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        for x, y in zip(one, other, strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=1e-12 if x.dtype == "float64" else 1e-5, atol=1e-6)


def both(name, **options):
    update, count = UPDATES[name]
    found = loop(update, count, gpuArray, lambda gs, k: gs[k % 3], **options)
    assert_alike(found, loop(update, count, lambda x: x, lambda gs, k: gs[k % 3], **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UPDATES)
def test_steps_are_those_of_plain_calls(device, name, dtype):
    both(name, dtype=dtype)


@pytest.mark.parametrize("name", UPDATES)
def test_rates_and_options_may_change(device, name):
    other = {"adam": dict(gradDecay=0.8), "sgdm": dict(momentum=0.5), "rmsprop": dict(epsilon=1e-3)}[name]
    both(name, options=lambda k: {"learnRate": 0.1 / (k + 1), **(other if k > 8 else {})})


def test_a_loop_is_one_launch_a_step_into_two_frames(device):
    """With the gradients of one step, as an accelerated function gives them again and again."""
    update, count = UPDATES["adam"]
    g = None

    def gradient(gs, k):
        nonlocal g
        g = sgdmupdate(gs[k % 3], gs[0], None, 0.5)[0] if g is None else g  # part of a handout
        return g

    launches = []

    def each(k, p, s):
        launches.append(dict(cusim.RawModule.launches))

    loop(update, count, gpuArray, gradient, each)
    assert launches[-1].get("each", 0) - launches[-5].get("each", 0) == 4
    assert len(steps._sets) >= 2 and max(len(step._frames) for step in steps._steps.values()) <= 3


def test_results_that_are_held_keep_their_numbers(device):
    update, count = UPDATES["adam"]
    kept = []

    def each(k, p, s):
        if k in (4, 5, 9):
            kept.append((p.a, numbers(p.a)))
        if k in (7, 10):
            kept.append((s[0].c, numbers(s[0].c)))

    loop(update, count, gpuArray, lambda gs, k: gs[0], each)
    assert all(np.array_equal(x, y) for held, before in kept for x, y in zip(numbers(held), before))


def changed_in_place(k, p, s):
    if k in (3, 7):
        p.c[0] = 1.0
    if k == 5:
        p.a.b = p.a.b * 2
    if k == 9:
        s[0].a.W = s[0].a.W * 0


def copied(k, p, s):
    return p.copy() if k % 4 == 2 else None


def computed(k, p, s):
    return dlupdate(lambda x: x * 0.99, p) if k % 4 == 3 else None


@pytest.mark.parametrize("each", [changed_in_place, copied, computed])
@pytest.mark.parametrize("name", UPDATES)
def test_what_is_done_between_steps_counts(device, name, each):
    both(name, each=each)


def test_parameters_in_another_memory_order_than_gradients(device):
    w = R.normal(size=(6, 8)).astype(np.float32)
    for put in (gpuArray,):
        p, q, m, v = struct(w=put(dlarray(w))), struct(w=dlarray(w)), None, None
        m2 = v2 = None
        g = struct(w=put(dlarray(np.asfortranarray(w))))
        for t in range(1, 7):
            p, m, v = adamupdate(p, g, m, v, t)
            q, m2, v2 = adamupdate(q, struct(w=dlarray(w)), m2, v2, t)
        np.testing.assert_allclose(p.w.numpy(), q.w.numpy(), rtol=1e-6)


def test_memory_is_let_go_of_when_there_is_not_enough(device):
    p, g = dlupdate(gpuArray, tree()), dlupdate(gpuArray, tree())
    p, m, v = adamupdate(p, g, None, None, 1)
    step = weakref.ref(next(iter(steps._steps.values())))
    before = numbers(p)
    if device.name == "shim":
        with cusim.limit_memory(100, after_freeing=1 << 30):
            gpuArray(np.ones(1000, np.float32))
    else:
        backends.gpu().forget()
    gc.collect()
    assert step() is None and all(map(np.array_equal, numbers(p), before))


AT_THE_END = """
import cusim, numpy as np
import minidl.core.tape
from minidl import *
from minidl.kernels.cuda import launch

launch.use(cusim)
there = lambda *shape: gpuArray(dlarray(np.ones(shape, "f")))
p, m, v, x = {"w": there(3, 3), "b": there(3, 1)}, [], [], there(3, 5)
gradients = dlaccelerate(lambda p, x: dlgradient(sum(tanh(p["w"] @ x + p["b"]), "all"), p))
mbq = minibatchqueue(arrayDatastore(np.ones((40, 3), "f")), MiniBatchSize=4)
for i in range(8):
    p, m, v = adamupdate(p, dlfeval(gradients, p, x), m, v, i + 1)
    batch = next(mbq)
minidl.core.tape.kept = p, m, v, batch, gradients, mbq  # until modules have lost their names
"""


def test_python_ends_without_a_word():
    """What is forgotten when Python ends asks no module for anything: modules are empty by then."""
    if shutil.which("g++") is None:
        pytest.skip("the shim needs g++")
    place = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=place, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
