"""On a GPU the sample calls give what they give on the shim, and the same bits every time."""

from __future__ import annotations

import importlib
import shutil

import pytest

import cusim
from cusim import calls
from cusim.mutations import TF32, agree, results, standing_in


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
