"""On a GPU the sample calls give what they give on the shim, and the same bits every time."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest

import cusim
from cusim import calls
from cusim.mutations import TF32, agree, results, standing_in
from minidl import dlaccelerate, dlarray, dlfeval, dlupdate, gpuArray
from minidl.backends import precision


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("g++") is None, reason="the shim needs g++")
@pytest.mark.parametrize("call", list(calls.of_rooms()), ids=str)
def test_a_gpu_computes_what_the_shim_computes(call):
    with standing_in(cusim):
        right = results(call, cusim, 0)
    cupy = importlib.import_module("cupy")
    with standing_in(cupy):
        found, again = results(call, cupy, 0), results(call, cupy, 0)
    assert agree(found, right, TF32 if call.setting == "tf32" else None)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("setting", ["float32", "tf32"])
def test_graphs_of_a_training_step_allocate_nothing_and_give_what_single_launches_give(setting, monkeypatch):
    """The digits step on a GPU: while it is captured CuPy is asked for no memory; graphs give the bits of launches."""
    cupy = importlib.import_module("cupy")
    asked: list[int] = []

    class Hook(cupy.cuda.MemoryHook):
        name = "what is asked for while a stream captures"

        def malloc_preprocess(self, **asking):
            if cupy.cuda.get_current_stream().is_capturing():
                asked.append(asking["size"])

    step = calls.training_step(32, "float32")

    def losses(is_captured: str) -> list[bytes]:
        monkeypatch.setenv("MINIDL_CUDA_GRAPHS", is_captured)
        function = dlaccelerate(step.example.modelStep)
        parameters, state, *arrays = dlupdate(gpuArray, [step.parameters, step.state, *step.batch])
        average, square, found = [], [], []
        for i in range(1, 13):
            iteration = dlarray(np.float32(i))
            parameters, state, loss, average, square = dlfeval(
                function, parameters, *arrays, state, average, square, iteration
            )
            found.append(loss.numpy().tobytes())
        program = function.trace().program
        assert program.failures == 0
        assert any(x.graph is not None for x in program._executables.values()) == (is_captured == "1")
        return found

    with standing_in(cupy), Hook(), precision.chosen(setting):
        assert losses("1") == losses("0")
    assert not asked
