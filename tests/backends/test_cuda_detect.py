"""Finding a GPU: every way in which there is none, or none that can be used, has its own words. Memory runs out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cusim
import numpy as np
import pytest

from minidl import (
    DeviceError,
    DeviceMemoryError,
    adamupdate,
    arrayDatastore,
    canUseGPU,
    dlarray,
    gpuArray,
    minibatchqueue,
    randn,
    zeros,
)
from minidl.backends.cuda import detect, streams
from minidl.kernels.cuda import compiler, launch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def with_cupy(monkeypatch):
    """with_cupy(library): minidl finds this in the place of CuPy; an exception is raised where it imports CuPy."""
    monkeypatch.delenv("MINIDL_DEVICE", raising=False)

    def put(library):
        def cupy():
            if isinstance(library, Exception):
                raise library
            return library

        launch.use(None)  # forgets what was compiled
        monkeypatch.setattr(compiler, "store", compiler.NOWHERE)
        monkeypatch.setattr(launch, "cupy", cupy)
        detect.forget()
        streams.forget()

    yield put
    launch.use(None)
    detect.forget()
    streams.forget()


def a_cupy(
    driver=13000, built=13000, devices=1, is_available=True, asarray=cusim.asarray, version="14.0.0", **others
):
    runtime = SimpleNamespace(
        driverGetVersion=lambda: driver, runtimeGetVersion=lambda: built, getDeviceCount=lambda: devices,
        getDevice=lambda: 0,
    )
    about = {**vars(cusim.cuda), "runtime": runtime, "is_available": lambda: is_available, **others}
    return SimpleNamespace(
        cuda=SimpleNamespace(**about), asarray=asarray, empty=cusim.empty, __version__=version, __name__="a_cupy"
    )


def broken(*args, **options):
    raise cusim.CUDARuntimeError("cudaErrorUnknown: unknown error")


def nvrtc(**changed):
    return SimpleNamespace(**{**vars(cusim.cuda.nvrtc), **changed})


def missing(*args):
    raise RuntimeError('Failure finding "libnvrtc.so.13": No such file')


class OfNonsense(cusim.Module):
    """A device whose kernels do nothing."""

    def get_function(self, name):
        return lambda grid, block, arguments, shared_mem: None


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (ModuleNotFoundError("No module named 'cupy'", name="cupy"),
         ["CuPy is not installed", "cupy-cuda13x[ctk]", "cupy-cuda12x[ctk]", "nvidia-smi"]),
        (ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
         ["CuPy is installed but cannot be imported", "fastrlock", "Reinstall"]),
        (ImportError("libnvrtc.so.13: cannot open shared object file"), ["cannot be imported", "libnvrtc.so.13"]),
        (a_cupy(driver=0), ["no NVIDIA driver"]),
        (a_cupy(driver=12080), ["too old", "CUDA 12.8", "made for 13.0", "cupy-cuda12x[ctk]"]),
        (a_cupy(devices=0), ["shows no GPU", "CUDA_VISIBLE_DEVICES"]),
        (a_cupy(is_available=False), ["shows no GPU"]),
        (a_cupy(asarray=broken), ["computation on it failed", "cudaErrorUnknown", "nvidia-smi"]),
        (a_cupy(asarray=lambda x: cusim.asarray(x + 1)), ["are not the same"]),
        (a_cupy(version="13.6.0"), ["CuPy 13.6.0 is too old", "needs 14", "cupy-cuda13x[ctk]"]),
        (a_cupy(nvrtc=nvrtc(getVersion=missing)),
         ["NVRTC) cannot be loaded", "libnvrtc.so.13", "'cupy-cuda13x[ctk]>=14'", "CUDA_PATH"]),
        (a_cupy(built=12090, nvrtc=nvrtc(getVersion=missing)), ["'cupy-cuda12x[ctk]>=14'"]),
        (a_cupy(nvrtc=nvrtc(getSupportedArchs=lambda: (100, 120))),
         ["NVRTC 0.1 does not compile for this GPU", "compute capability 9.0", "10.0 ... 12.0"]),
        (a_cupy(nvrtc=nvrtc(compileProgram=broken)), ["failed (DoesNotCompile", "twice", "-ftz=false"]),
        (a_cupy(Module=OfNonsense), ["computed nonsense"]),
    ],
)  # fmt: skip
def test_each_reason_has_its_words(with_cupy, explained, library, words):
    with_cupy(library)
    assert not canUseGPU()
    error = explained(lambda: gpuArray([1.0]), DeviceError, "gpuArray: no GPU can be used: ")
    assert all(word in str(error) for word in words), error
    explained(lambda: minibatchqueue(arrayDatastore([1.0]), OutputEnvironment="gpu"), DeviceError, words[0])
    assert next(minibatchqueue(arrayDatastore([1.0]))).device == "cpu"  # "auto" says nothing


def test_F3_the_extras_bring_the_compiler():
    text = (ROOT / "setup.py").read_text()
    assert all(f'"cupy-cuda{number}x[ctk]>={detect.OLDEST_CUPY}"' in text for number in (12, 13))


def test_F3_the_trial_launches_a_kernel_of_ours(device):
    if device.name == "shim":
        cusim.RawModule.launches.pop("twice", None)
        detect.forget()
        assert canUseGPU() and cusim.RawModule.launches["twice"] == 1


def test_a_newer_driver_will_do(with_cupy):
    with_cupy(a_cupy(driver=13020, built=13000))
    assert canUseGPU()


def test_the_question_is_asked_once(with_cupy):
    asked = []
    with_cupy(a_cupy(asarray=lambda x: asked.append(1) or cusim.asarray(x)))
    assert canUseGPU() and canUseGPU() and len(asked) == 1


def test_the_environment_can_rule_it_out(device, monkeypatch, explained):
    assert canUseGPU()
    monkeypatch.setenv("MINIDL_DEVICE", "cpu")
    assert not canUseGPU()
    explained(lambda: gpuArray(dlarray(1.0)), DeviceError, "MINIDL_DEVICE is cpu. Unset it")
    monkeypatch.delenv("MINIDL_DEVICE")
    assert canUseGPU()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_used", [True, False])
def test_after_a_fork(device, is_used):
    detect.forget()
    if is_used:
        assert canUseGPU()
    child = os.fork()
    if not child:
        text = detect.complaint()
        os._exit(("forked" in text and "spawn" in text) == is_used and bool(text) == is_used)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert canUseGPU()


# nothing of CUDA without need ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "code",
    [
        "",
        "y = m.dlfeval(lambda x: m.dlgradient(m.sum(m.exp(x), 'all'), x), m.dlarray([1.0]))",
        "acc = m.dlaccelerate(lambda x: x * 2); acc(m.dlarray([1.0])); acc(m.dlarray([1.0]))",
        "next(m.minibatchqueue(m.arrayDatastore([1.0]), OutputEnvironment='cpu'))",
        "m.gather(m.dlarray([1.0])); m.rand(2); m.isequal(m.dlarray([1.0]), [1.0])",
        "import os; os.environ['MINIDL_DEVICE'] = 'cpu'; assert not m.canUseGPU()",
        "import os; os.environ['MINIDL_DEVICE'] = 'cpu'; next(m.minibatchqueue(m.arrayDatastore([1.0])))",
    ],
)
def test_nothing_of_cuda_is_imported_without_need(code):
    words = ("cupy", "numba.cuda", "cuda")
    code = f"import sys, minidl as m; {code}\nprint([n for n in sys.modules if n in {words} or n.startswith('cupy')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


def test_asking_without_cupy_leaves_nothing_behind():
    code = "import sys; sys.modules['cupy'] = None; import minidl; print(minidl.canUseGPU())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "False", found.stderr


# memory -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def shim(device):
    if device.name != "shim":
        pytest.skip("only the shim can be told how much memory there is")
    return device


@pytest.mark.parametrize(
    "make",
    [
        lambda x: gpuArray(np.zeros(1000)),
        lambda x: gpuArray(dlarray(np.zeros(1000))),
        lambda x: x + 1,
        lambda x: x.T @ x,
        lambda x: x[::-1] * 2,
        lambda x: zeros(1000, 1, like=x),
        lambda x: randn(1000, 1, like=x),
        lambda x: x + np.zeros((1000, 1)),
        lambda x: adamupdate([x], [x], None, None, 1),
    ],
)
def test_memory_that_runs_out_is_freed_and_asked_for_again(shim, explained, make):
    x = gpuArray(dlarray(np.zeros((1000, 1))))
    make(x)
    with cusim.limit_memory(100, after_freeing=1 << 24):
        make(x)
    with cusim.limit_memory(4):
        error = explained(lambda: make(x), DeviceMemoryError, "the GPU has no room")
    assert isinstance(error, MemoryError) and "smaller mini-batches" in str(error)
    assert "bytes" in str(error) and "4 of 17,179,869,184 are free" in str(error)


def test_the_error_names_the_bytes(shim, explained):
    x = gpuArray(dlarray(np.zeros(1000)))
    with cusim.limit_memory(100):
        explained(lambda: x + 1, DeviceMemoryError, "plus: the GPU has no room: 8,000 bytes are asked for, 100 of")
        explained(lambda: gpuArray(np.zeros(500)), DeviceMemoryError, "4,000 bytes are")
        explained(lambda: next(minibatchqueue(arrayDatastore(np.zeros(500)), MiniBatchSize=500)), DeviceMemoryError,
                  "minibatchqueue: output 0:")  # fmt: skip
    assert (x + 1).device == "gpu"
