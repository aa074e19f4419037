"""What all tests share: Hypothesis settings, printing, the torch marker, a clean house before and after each test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import cusim
import hypothesis
import numpy as np
import pytest

from minidl import backends
from minidl.accelerate.function import PLACES
from minidl.accelerate.recording import Trace
from minidl.core.errors import MinidlError
from minidl.core.random import rng
from minidl.core.tape import open_tapes
from minidl.kernels.cuda import compiler, launch

hypothesis.settings.register_profile(
    "minidl",
    deadline=None,  # the first call of a kernel compiles it
    max_examples=20,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("minidl")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "torch: compares with PyTorch; skipped where torch is not installed")
    config.addinivalue_line("markers", "ill_compiler: breaks the compiler on purpose, so that recordings are given up")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on a GPU run when they are asked for: pytest -m gpu. Those marked `host` need no other place than that."""
    is_asked_for = "gpu" in (config.getoption("-m") or "")

    def is_left_out(item: pytest.Item) -> bool:
        if item.get_closest_marker("gpu") and not is_asked_for:
            return True
        place = getattr(item, "callspec", None) and item.callspec.params.get("place", "cpu")
        return bool(item.get_closest_marker("host") and place not in (None, "cpu"))

    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed; the comparison with it is optional")


@pytest.fixture
def explained():
    """explained(call, error, word): the call raises this error, with the word in its text; gives the error."""

    def check(call, error, word):
        with pytest.raises(error) as found:
            call()
        assert isinstance(found.value, MinidlError) and word in str(found.value)
        return found.value

    return check


@pytest.fixture(autouse=True)
def every_recording_compiles(request, monkeypatch):
    """A recording that cannot be compiled costs speed alone, and a test may have silenced the warning: so it fails."""
    failures, compiled = [], Trace._compiled

    def noted(trace):
        try:
            program = compiled(trace)
        except Exception as error:
            failures.append(f"{trace.name}: {error}")
            raise
        if trace.failure:
            failures.append(f"{trace.name}: {trace.failure}")
        return program

    monkeypatch.setattr(Trace, "_compiled", noted)
    yield
    if not request.node.get_closest_marker("ill_compiler"):
        assert not failures, "recordings that could not be compiled"


@pytest.fixture(autouse=True)
def clean_house():
    """Each test starts from the default random state and must leave no tape open."""
    rng("default")
    PLACES.clear()  # tests of one line run for many parameters
    with np.printoptions(precision=8, suppress=False, threshold=1000, linewidth=75, legacy=False):
        yield
    left, open_tapes()[:] = len(open_tapes()), []
    assert not left, "the test left a tape open"


@pytest.fixture
def random():
    """A NumPy generator, the same for every run."""
    return np.random.default_rng(2024)


class Device:
    """Where a CUDA kernel runs: on the CPU, by `cusim`, or on a GPU, by CuPy. `library` is the one or the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = cusim if name == "shim" else importlib.import_module("cupy")

    def orders(self) -> list[int]:
        """Threads and blocks in different orders, one after the other; a GPU has its own."""
        if self.name == "gpu":
            return [0]
        return [0, 1, 3]

    def set_order(self, seed: int) -> None:
        if self.name == "shim":
            cusim.order(seed)

    def array(self, x: np.ndarray):
        """x on the device."""
        return self.library.asarray(x)

    def empty(self, shape, dtype):
        """An array of which each byte is 255: NaN as a real number, -1 as a whole one."""
        made = self.library.empty(shape, dtype)
        if self.name == "gpu":
            made.view("uint8")[...] = 255 if made.size else 0
        return made


def use(library) -> None:
    """Have minidl take this library for CuPy; None for CuPy itself."""
    is_cupy = library is None or library.__name__ == "cupy"
    compiler.keep_in(backends.gpu().STORE if is_cupy else compiler.NOWHERE)  # the shim keeps what it compiles itself
    launch.use(library)
    backends.gpu().forget()


@contextlib.contextmanager
def in_use(name: str) -> Iterator[Device]:
    """minidl computes there what is to be computed on a GPU."""
    found = Device(name)
    use(found.library)
    found.set_order(0)
    yield found
    found.set_order(0)
    use(None)


ON_GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@pytest.fixture(params=["shim", ON_GPU])
def device(request):
    """A place to run CUDA kernels; with `pytest -m gpu` it is a real GPU."""
    with in_use(request.param) as found:
        yield found


@pytest.fixture(params=["cpu", "shim", ON_GPU])
def place(request):
    """Where data are put: a function from NumPy arrays to arrays there. The same test for every backend."""
    if request.param == "cpu":
        yield lambda x: x
        return
    with in_use(request.param) as found:
        yield found.array
