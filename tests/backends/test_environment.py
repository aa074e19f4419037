"""Environment variables with values that mean nothing: named errors, not a silent default."""

from __future__ import annotations

import pytest

from minidl.backends import environment
from minidl.backends.cpu.native import compiler
from minidl.backends.cuda import detect, graph
from minidl.kernels.cpu.threads import thread_count

ASKED = {
    "MINIDL_NATIVE": compiler.unavailable,
    "MINIDL_CUDA_GRAPHS": graph.is_wanted,
    "MINIDL_DEVICE": detect.complaint,
    "MINIDL_NUM_THREADS": thread_count,
}


@pytest.mark.parametrize(("name", "value"), [
    *(("MINIDL_NATIVE", value) for value in ("false", "off", "no", "2", "-0", "none")),
    ("MINIDL_CUDA_GRAPHS", "off"),
    *(("MINIDL_DEVICE", value) for value in ("gpu", "cuda:1", "0", "none")),
    *(("MINIDL_NUM_THREADS", value) for value in ("abc", "0", "-1", "1.5", "1e3", "²", "1000000000", "9" * 99, "1 2")),
])  # fmt: skip
def test_a_value_that_means_nothing_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as error:
        ASKED[name]()
    assert str(error.value).startswith(f"{name}: ") and repr(value) in str(error.value)


def test_values_that_mean_something(monkeypatch):
    for value, expected in [("", True), ("1", True), (" 1", True), ("0", False), ("0 ", False)]:
        monkeypatch.setenv("MINIDL_NATIVE", value)
        assert environment.is_on("MINIDL_NATIVE") is expected
    for value in ("cpu", "CPU", " cpu "):
        monkeypatch.setenv("MINIDL_DEVICE", value)
        assert "MINIDL_DEVICE is cpu" in detect.complaint()
    for value, count in [("3", 3), (" 3 ", 3), ("03", 3), ("1024", 1024)]:
        monkeypatch.setenv("MINIDL_NUM_THREADS", value)
        assert thread_count() == count
