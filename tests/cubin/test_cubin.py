"""Kernels, compiled for several architectures: each fits a multiprocessor, and nothing spills out of its registers.

Which ones, a run draws anew, by a seed that it prints; with MINIDL_TEST_EVERY=1 it is every kernel for every one.

The texts are those that the CUDA backend asks for when it runs the sample calls of all ops and a training step of the
digits example, with batches of 32, in single precision, on tensor cores and in double precision: call by call, and as
a program.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator

import pytest
from cusim import calls
from cusim.mutations import standing_in
from drawn import generator, some

from cubin import DoesNotCompile, Report, compiled, compiled_all, compiler, reports_of
from cubin.recorder import Recorder, Texts
from minidl.kernels.cuda import launch

LARGEST_SHARED = {"sm_75": 64, "sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # KiB a block may have
MOST_ARCHITECTURES, MOST_TEXTS = 2, 150  # that a run draws
REGISTERS = 64 << 10  # of a multiprocessor
STATIC_SHARED = 48 << 10
# sin, cos and tan of large angles keep some digits of the angle over pi in memory: rare, and no more than this
ANGLE_STACK = 40
ANGLES = re.compile(r"= w_(sin|cos|tan)\(")
SMALL_STACK = 24  # what ptxas keeps there, around the division of doubles for one, although registers are left

pytestmark = pytest.mark.skipif(compiler() is None, reason="neither NVRTC (nvidia-cuda-nvrtc) nor nvcc is installed")


STEPS = [("float32", "float32"), ("float32", "tf32"), ("float64", "float32")]


def sample_calls() -> Iterator[calls.SampleCall | calls.KernelCall]:
    yield from calls.of_registry()
    yield from calls.of_rooms()
    for dtype, setting in STEPS:
        yield from calls.of_training_step(32, dtype, setting)


@functools.cache
def recorded(arch: str) -> tuple[Texts, list[str]]:
    """All texts that a GPU of an architecture is given, with the launches of their kernels; and which calls failed."""
    failed = []
    with standing_in(Recorder(arch.removeprefix("sm_"))) as recorder:
        for call in sample_calls():
            try:
                call.run(recorder)
            except Exception as error:
                failed.append(f"{call}: {type(error).__name__}: {error}")
        for dtype, setting in STEPS:
            calls.replay_training_step(32, dtype, setting)
        for dtype in ("float32", "float64"):
            calls.go_round(dtype)
    return recorder.texts, failed


def test_every_call_runs():
    _, failed = recorded("sm_90")
    assert not failed, "\n".join(dict.fromkeys(failed))


def complaints(report: Report, arch: str, text: str, threads: int, dynamic: int) -> list[str]:
    """What is wrong with a kernel that is launched in blocks of so many threads with so much dynamic shared memory."""
    found = []
    warps = -(-threads // 32)
    most = min(255, REGISTERS // (32 * warps) // 8 * 8)  # they are given out in eights, to whole warps
    if report.registers > most:
        found.append(f"{threads} threads with {report.registers} registers each do not fit a multiprocessor")
    allowed = ANGLE_STACK if ANGLES.search(text) else SMALL_STACK if report.registers < most else 0
    if report.stack > allowed:
        what = f"{report.spilled} bytes are spilled" if report.spilled else "an array with subscripts not known before"
        found.append(f"{report.stack} bytes of stack, {what}; {report.registers} registers of {most}")
    if report.shared > STATIC_SHARED or report.shared + dynamic > LARGEST_SHARED[arch] << 10:
        found.append(f"{report.shared} bytes of static and {dynamic} of dynamic shared memory are too many")
    if report.flushes:
        found.append("numbers below the normal ones are flushed to zero")
    return found


def those_drawn() -> list[tuple[str, list[str]]]:
    """(architecture, texts to compile for it): some of both, or all of them if MINIDL_TEST_EVERY is set."""
    if os.environ.get("MINIDL_TEST_EVERY"):
        return [(arch, list(recorded(arch)[0])) for arch in LARGEST_SHARED]
    found = []
    for arch in some(LARGEST_SHARED, MOST_ARCHITECTURES):
        texts = list(recorded(arch)[0])
        places = generator().choice(len(texts), min(len(texts), MOST_TEXTS), replace=False)
        found.append((arch, [texts[k] for k in places]))
    return found


def test_every_kernel_fits():
    """Drawn anew in each run: all texts for all architectures take minutes."""
    found = []
    for arch, texts in those_drawn():
        for text, reports in zip(texts, compiled_all([(text, arch) for text in texts])):
            uses, head = recorded(arch)[0][text], text.split("// What every kernel")[0]
            if isinstance(reports, DoesNotCompile):
                found.append(f"{arch}, {', '.join(uses)}: {reports}\n{text[-2000:]}")
                continue
            assert set(uses) <= {report.name for report in reports}
            for report in reports:
                if report.name in uses and uses[report.name].threads:
                    use = uses[report.name]
                    constants = ", ".join(re.findall(r"^#define (\w+ .*)$", head, re.M))
                    wrong = complaints(report, arch, text, use.threads, use.dynamic)
                    found += [f"{arch}, {report.name} ({constants}): {what}" for what in wrong]
    assert not found, "\n".join([f"{len(found)} complaints:", *dict.fromkeys(found)])


def test_every_kernel_is_launched():
    """Every kernel of every .cu file, by some call."""
    launched = {name for uses in recorded("sm_90")[0].values() for name in uses}
    written = {
        (path.name, name)
        for path in launch.HERE.glob("*.cu")
        for name in re.findall(r'extern "C" __global__ void[^{;]*?(\w+)\([^()]*\)\s*\{', path.read_text())
    }
    missing = {(file, name) for file, name in written if name not in launched}
    assert not missing, f"no sample call launches {sorted(missing)}"


# the check itself ---------------------------------------------------------------------------------------------------
def reported(body: str, bound: int = 256, arch: str = "sm_90") -> list[str]:
    """Complaints about a kernel of one text."""
    head = f'extern "C" __global__ void __launch_bounds__({bound}) k(float *y)'
    text = launch.text_of("portable.h") + f"{head} {{{body}}}"
    (report,) = compiled(text, arch)
    return complaints(report, arch, text, bound, 0)


def test_what_fits_is_not_complained_about():
    assert reported("y[threadIdx.x] = 1;") == []
    assert reported("__shared__ float a[12000]; a[threadIdx.x] = y[3]; __syncthreads(); y[threadIdx.x] = a[9];") == []


def test_spills_and_stacks_are_seen():
    body = "float a[N]; for (int i = 0; i < N; i++) a[i] = y[i * threadIdx.x] + i; __syncthreads(); "
    body = body.replace("for", "\n#pragma unroll\nfor")
    spills = body + "\n#pragma unroll\nfor (int i = 0; i < N; i++) y[i * 3 * threadIdx.x] = a[i] * a[N - 1 - i];"
    assert any("spilled" in what for what in reported(spills.replace("N", "128"), bound=1024))
    stack = "float a[99]; int n = (int)y[0]; for (int i = 0; i < n; i++) a[i] = y[i] + 1; y[1] = a[n - 3];"
    assert any("stack" in what for what in reported(stack))


def test_too_much_shared_memory_is_seen():
    with pytest.raises(DoesNotCompile):
        reported("__shared__ float a[13000]; a[threadIdx.x] = y[3]; __syncthreads(); y[threadIdx.x] = a[9];")
    report = Report("k", 255, 0, 0, 40 << 10)
    assert len(complaints(report, "sm_75", "", 512, 32 << 10)) == 2
    assert not complaints(report, "sm_90", "", 256, 32 << 10)


def test_F1_flushing_to_zero_is_seen():
    assert any("flushed to zero" in what for what in reported('asm("add.ftz.f32 %0, %0, %0;" : "+f"(y[0]));'))
    assert reported("y[0] = expf(y[1]) / sqrtf(y[2]) + logf(y[3]);", bound=64) == []


def test_nonsense_does_not_compile():
    with pytest.raises(DoesNotCompile, match="nonsense"):
        compiled("nonsense", "sm_90")


def test_the_log_of_nvcc_and_of_nvrtc():
    log = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 23 registers, used 1 barriers, 16 bytes cumulative stack size, 144 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    assert reports_of(log) == [Report("a", 23, 12, 16, 144), Report("b", 8, 0, 0, 0)]
