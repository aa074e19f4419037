"""What all tests share: Hypothesis settings, printing, the torch marker, a clean house before and after each test."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import numpy as np
import pytest

from minidl.accelerate.function import PLACES
from minidl.core.errors import MinidlError
from minidl.core.random import rng
from minidl.core.tape import open_tapes

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
