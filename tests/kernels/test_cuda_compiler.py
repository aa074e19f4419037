"""From a text to machine code: options, several texts at once, what is kept between runs, failures. On the shim."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import cusim
import numpy as np
import pytest

from minidl import dlaccelerate, dlarray, exp, gpuArray
from minidl.backends import cuda
from minidl.kernels.cuda import compiler, launch

TEXT = """
extern "C" __global__ void NAME(double *y) { y[threadIdx.x] = VALUE; }
"""


@pytest.fixture(params=["shim"])
def device(request):
    """These tests look at what the shim's compiler is given."""
    from conftest import in_use

    with in_use("shim") as found:
        yield found


@pytest.fixture
def folder(device, monkeypatch, tmp_path):
    """An empty folder where machine code is kept."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "store", cuda.STORE)
    return tmp_path / "cuda"


def text(name="k", value=1):
    return launch.text_of("portable.h") + TEXT.replace("NAME", name).replace("VALUE", str(value))


def result(library, source, name="k"):
    y = library.empty(3)
    launch.compiled(source, name)(1, 3, (y,))
    return y.get()


def anew():
    """As in a new process."""
    launch.use(cusim)
    cusim.compilations.clear()


def library_with(capability="90", **changed):
    nvrtc = SimpleNamespace(**{**vars(cusim.cuda.nvrtc), **changed})
    device = type("Device", (cusim.cuda.Device,), {"compute_capability": capability})
    return SimpleNamespace(cuda=SimpleNamespace(nvrtc=nvrtc, Device=device))


# F1: numbers below the normal ones stay -----------------------------------------------------------------------------
def test_F1_nothing_is_flushed_to_zero_and_nothing_contracted_unasked(device):
    asked = []
    library = library_with(compileProgram=lambda prog, options: asked.append(options))
    compiler.Compiler(library).code(text())
    (options,) = asked
    assert [x for x in options if "ftz" in x or "fast" in x] == ["-ftz=false"] and "-fmad=false" in options
    assert options == (*compiler.OPTIONS, "-arch=sm_90")


def test_F1_kernels_do_not_go_through_the_library_that_flushes(device, monkeypatch):
    monkeypatch.setattr(cusim, "RawKernel", None)  # those of users
    smallest = np.float32(2) ** -149
    x = gpuArray(dlarray(np.array([smallest, -smallest, 0], np.float32)))
    assert np.array_equal((x + x).numpy(), np.array([2, -2, 0], np.float32) * smallest)


# kept between runs --------------------------------------------------------------------------------------------------
def test_F1_machine_code_is_kept_between_runs(folder):
    assert result(cusim, text(value=1)).tolist() == [1, 1, 1]
    assert len(list(folder.iterdir())) == 1
    anew()
    assert result(cusim, text(value=1)).tolist() == [1, 1, 1] and not cusim.compilations
    assert result(cusim, text(value=2)).tolist() == [2, 2, 2] and len(cusim.compilations) == 1


def test_F1_what_is_kept_belongs_to_text_options_device_and_compiler(monkeypatch):
    keys = [compiler.Compiler(library_with()).key(text(value=k)) for k in (1, 2)]
    keys.append(compiler.Compiler(library_with("100")).key(text()))
    keys.append(compiler.Compiler(library_with(getVersion=lambda: (13, 6))).key(text()))
    monkeypatch.setattr(compiler, "OPTIONS", compiler.OPTIONS[:-1])
    keys.append(compiler.Compiler(library_with()).key(text()))
    assert len(set(keys)) == 5


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:-1] + b"?", lambda data: b""])
def test_F1_damaged_machine_code_is_made_anew(folder, damage):
    result(cusim, text())
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    anew()
    assert result(cusim, text()).tolist() == [1, 1, 1] and len(cusim.compilations) == 1
    anew()
    assert result(cusim, text()).tolist() == [1, 1, 1] and not cusim.compilations


def test_F1_a_folder_that_cannot_be_written_or_is_full_changes_nothing(folder, monkeypatch):
    folder.parent.joinpath("cuda").write_text("a file in its place")
    assert result(cusim, text()).tolist() == [1, 1, 1] and cusim.compilations

    def full(*moved):
        raise OSError(28, "No space left on device")

    folder.unlink()
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(cusim.os, "replace", full)  # g++ has made this text already
    anew()
    assert result(cusim, text()).tolist() == [1, 1, 1] and not list(folder.iterdir())


# several at once ----------------------------------------------------------------------------------------------------
def test_F1_texts_asked_for_together_are_compiled_together(device, monkeypatch):
    """Two compilations that wait for each other: one after the other, neither would end."""
    meeting, plain = threading.Barrier(2, timeout=20), cusim.cuda.nvrtc.compileProgram

    def together(prog, options):
        meeting.wait()
        plain(prog, options)

    monkeypatch.setattr(cusim.cuda.nvrtc, "compileProgram", together)
    monkeypatch.setattr(compiler, "most_at_once", lambda: 2)
    kernels = [launch.compiled(text(f"k{i}", i), f"k{i}") for i in range(4)]
    for i, kernel in enumerate(kernels):
        y = cusim.empty(3)
        kernel(1, 3, (y,))
        assert y.get().tolist() == [i, i, i]


def test_F1_the_texts_of_a_plan_are_compiled_ahead_of_its_first_launch(device, monkeypatch):
    """All are asked for before any kernel runs: so they are compiled side by side."""
    x = gpuArray(dlarray(np.ones((40, 40), np.float32)))
    function = dlaccelerate(lambda x, w: exp(x @ w).T @ x + 1)
    function(x, x)
    launch.use(cusim)  # nothing is compiled any more
    launch.cupy()
    asked, made = [], launch.module
    monkeypatch.setattr(launch, "module", lambda text: asked.append(text) or made(text))
    launched = []
    run = cusim.Function.__call__
    noted = lambda *a, **b: launched.append(len(set(asked))) or run(*a, **b)
    monkeypatch.setattr(cusim.Function, "__call__", noted)
    again = dlaccelerate(lambda x, w: exp(x @ w).T @ x + 1, Audit=False)  # whose calls are launched one by one
    again(x, x)  # recorded
    start = len(launched)
    asked.clear()
    launch.use(cusim)
    again(x, x)
    program = again.trace().program
    assert len(launched) - start >= len(program.plan.schedule.tasks) >= 2
    assert len(set(launched[start:])) == 1, "something was compiled between two launches"


def test_F1_most_at_once_is_bounded(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert compiler.most_at_once() == compiler.MOST_AT_ONCE
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(2), raising=False)
    assert compiler.most_at_once() == 2


def test_F1_a_failure_is_told_and_tried_again():
    tries = []

    def work():
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return "made"

    job = compiler.Job(work)
    with pytest.raises(MemoryError):
        job()
    assert job() == job() == "made" and len(tries) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_F1_a_forked_child_does_not_wait_for_threads_it_does_not_have(device, monkeypatch):
    begun, may_end, plain = threading.Event(), threading.Event(), cusim.cuda.nvrtc.compileProgram

    def slow(prog, options):
        begun.set()
        may_end.wait(20)
        plain(prog, options)

    monkeypatch.setattr(cusim.cuda.nvrtc, "compileProgram", slow)
    source = text("forked", 7)
    kernel = launch.compiled(source, "forked")
    assert begun.wait(20)
    child = os.fork()
    if not child:
        cusim.cuda.nvrtc.compileProgram = plain
        y = cusim.empty(3)
        kernel(1, 3, (y,))
        os._exit(y.get().tolist() == [7, 7, 7])
    may_end.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# failures -----------------------------------------------------------------------------------------------------------
def test_F1_a_text_that_does_not_compile_is_shown_with_its_log(device):
    source = text("broken", "no_such_number")
    with pytest.raises(compiler.DoesNotCompile, match=r"(?s)\(broken\) does not compile: NVRTC .*no_such_number"):
        result(cusim, source, "broken")
    assert result(cusim, text()).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("capability", "target"),
    [(75, "sm_75"), (90, "sm_90"), (86, "sm_80"), (121, "sm_120"), (130, "compute_120"), (110, "compute_100")],
)
def test_F1_what_is_compiled_for_a_device(capability, target):
    """Machine code for its own kind, from its own minor number down; for a newer device what the driver can finish."""
    assert compiler.Compiler(library_with(str(capability))).target == target


def test_F1_a_device_older_than_the_compiler_is_none(device):
    with pytest.raises(compiler.NoCompiler, match=r"does not compile for this GPU \(compute capability 7.0\)"):
        compiler.Compiler(library_with("70"))


# F1: nothing depends on it ------------------------------------------------------------------------------------------
def test_F1_in_normal_ranges_nothing_depends_on_subnormal_numbers(device):
    """A kernel of each room, with everything below 1.2e-38 taken for zero, gives the same bits."""
    from cusim import calls
    from cusim.mutations import results

    chosen = {}
    for call in calls.of_rooms():
        name = str(call).partition("(")[0]
        if "float32" in str(call) and name != "spacing":
            chosen.setdefault(name, call)
    assert len(chosen) >= 8
    for call in chosen.values():
        plain = results(call, cusim, 0)
        with cusim.flushed_to_zero():
            flushed = results(call, cusim, 0)
        assert [y.tobytes() for y in flushed] == [y.tobytes() for y in plain], str(call)


def test_F1_the_shim_can_flush_to_zero(device):
    """The test above sees something: with flushing, half of the smallest normal number is nothing."""
    x = gpuArray(dlarray(np.array([2.0**-126], np.float32)))
    assert (x * 0.5).numpy()[0] == 2.0**-127
    with cusim.flushed_to_zero():
        assert (x * 0.5).numpy()[0] == 0
