"""Every barrier in every kernel is needed, and seen to be needed by the shim; so is every thread's own number.

A barrier is left out, or a thread's number is one too large, in one place at a time: some sample call must notice.
"""

from __future__ import annotations

import os
import re

import pytest

from cusim import calls
from cusim.mutations import Mutant, Samples, barriers, shifted
from minidl.kernels.cuda import launch

FILES = sorted(path.name for path in launch.HERE.iterdir() if path.suffix in (".cu", ".cuh", ".h"))

# mutants that need not be noticed: (file, a part of the line) -> why
EXPLAINED = {
    ("contract.cu", "int line_of() { return threadIdx.x / 32 "): "lines are added up, in any order",
    ("contract.cu", "/ 32 % WARPS_N * (BN / WARPS_N)"): "any warp may have any columns: loads and stores ask here",
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every mutant runs in a forked process")


@pytest.fixture(scope="module")
def samples():
    return Samples(call for call in calls.of_rooms() if call.is_by_hand and not is_repeated(call))


def is_repeated(call: calls.SampleCall | calls.KernelCall) -> bool:
    """Whether nothing but the type tells the kernel from that of another call. (Of a sort more is different.)"""
    name = call.op.name if isinstance(call, calls.SampleCall) else ""
    return "float64" in str(call) and not name.startswith(("arg", "scatter", "random"))


def text(file: str) -> str:
    return (launch.HERE / file).read_text(encoding="utf-8")


def unnoticed(samples: Samples, found: list[Mutant]) -> list[str]:
    left = []
    for mutant in found:
        is_explained = any(mutant.file == file and part in mutant.line for file, part in EXPLAINED)
        if not is_explained and not samples.notice(mutant):
            left.append(f"{mutant} ({len(list(samples.touched(mutant)))} calls)")
    return left


@pytest.mark.parametrize("file", [file for file in FILES if list(barriers(file, text(file)))])
def test_a_missing_barrier_is_noticed(file, samples):
    left = unnoticed(samples, list(barriers(file, text(file))))
    assert not left, "not needed, or the samples are too weak:\n" + "\n".join(left)


@pytest.mark.parametrize("file", [file for file in FILES if list(shifted(file, text(file)))])
def test_a_shifted_thread_is_noticed(file, samples):
    left = unnoticed(samples, list(shifted(file, text(file))))
    assert not left, "the samples are too weak:\n" + "\n".join(left)


def test_mistakes_in_printed_loops_are_noticed():
    """Reductions that the backend prints as kernels: along rows, down columns, in slices."""
    samples = Samples(call for call in calls.of_rooms() if not call.is_by_hand)
    seen, left = set(), []
    for call, texts in samples._calls:
        for printed in texts:
            own = printed[len(launch.text_of("words.cuh")) :]
            shape = re.sub(r"\d+", "0", own)
            if shape not in seen and "float64" not in str(call):
                seen.add(shape)
                left += unnoticed(samples, [*barriers("printed", own), *shifted("printed", own)])
    assert seen and not left, "\n".join(left)


def test_explanations_are_needed():
    for file, part in EXPLAINED:
        assert part in text(file), f"{file} has no {part!r} any more"
