"""benchmarks/gpu.py on the shim, with tiny sizes: kernels are right, tables are whole, times mean nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cusim
import numpy as np
import pytest
from conftest import use

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark as a module, with the shim in CuPy's place."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(gpu, "MOST", 2)
    monkeypatch.setattr(gpu, "SECONDS", 1e-6)
    use(cusim)
    yield gpu
    use(None)
    for name in ("gpu", "digits", "measure", "peers", "training"):
        sys.modules.pop(name, None)


@pytest.fixture
def clock(gpu):
    return gpu.Clock(rounds=1)


def limits_of(gpu, clock):
    return gpu.ceilings(clock, copies=[1 << 10, 1 << 12], steps=2, blocks=2)


def test_ceilings(gpu, clock):
    limits = limits_of(gpu, clock)
    assert set(limits.copies) == {1 << 10, 1 << 12} and set(limits.rates) == {"float32", "float64", "tf32"}
    assert limits.copy(1 << 20) == pytest.approx(limits.copies[1 << 12] * 256)
    assert limits.floor(0, 1e12, "float32") == pytest.approx(1e12 / limits.rates["float32"])
    table = gpu.ceilings_table(limits)
    assert "copy, 4 KiB moved" in table and "multiply-add, tf32" in table


def test_the_copy_copies(gpu):
    x, y = cusim.asarray(np.arange(4000, dtype=np.float32)), cusim.empty(4000, "float32")
    gpu.kernel("copy")(4, 256, (y, x, 1000))
    assert np.array_equal(y.get(), x.get())


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_kernels_of_a_training_step(gpu, clock):
    found = {}
    for setting in ("float32", "tf32"):
        works = [work for work in gpu.step_works(1, setting) if "conv" not in work.title or work.operations < 2e6]
        found[setting] = rows(gpu.kernel_table(iter(works), clock, limits_of(gpu, clock)))
        for title, seconds, *_ in found[setting]:
            assert float(seconds.replace(",", "")) > 0, title
    titles = [row[0] for row in found["float32"]]
    assert any(title.startswith("adam of 20 arrays") for title in titles)
    assert any(title.startswith("batchnorm_train") for title in titles)
    assert found["tf32"] and all("tf32" in row[0] for row in found["tf32"])


def test_bytes_and_operations_of_a_kernel(gpu):
    a, b = np.ones((6, 50), np.float32), np.ones((50, 7), np.float32)
    work = gpu.work_of(gpu.SampleCall(gpu.OPS["matmul"], (a, b), {}, "tf32"))
    assert (work.nbytes, work.operations, work.setting) == (4 * (300 + 350 + 42), 2 * 6 * 50 * 7, "tf32")
    wide = np.broadcast_to(np.ones((1, 9), np.float32), (5, 9))
    assert gpu.work_of(gpu.SampleCall(gpu.OPS["tanh"], (wide,), {})).nbytes == 4 * (9 + 45)


def test_larger_kernels_and_products(gpu, clock):
    limits = limits_of(gpu, clock)
    for works in (gpu.larger_works(scale=128), gpu.products((33,))):
        for title, seconds, *_ in rows(gpu.kernel_table(works, clock, limits)):
            assert float(seconds.replace(",", "")) > 0, title


def test_a_kernel_that_fails_is_told(gpu, clock):
    def fail():
        raise RuntimeError("no such kernel")

    (row,) = rows(gpu.kernel_table(iter([gpu.Work("bad", fail, 8)]), clock, limits_of(gpu, clock)))
    assert row[:2] == ["bad", "RuntimeError: no such kernel"]


def test_training_step(gpu, monkeypatch):
    monkeypatch.setattr(gpu.measure, "installed", lambda name: False)
    monkeypatch.setattr(gpu.measure, "CHUNK_SECONDS", 1e-4)
    monkeypatch.setattr(gpu.digits, "BATCHES", 1)
    section = gpu.training_section(1, "float32", rounds=1, ways=(gpu.EAGER,))
    assert "Digits training step, batch 1, float32" in section and gpu.EAGER in section


def test_the_page_says_where_it_was_measured(gpu):
    assert "the shim" in gpu.setting_of_gpu() and "CUDA 13.0" in gpu.setting_of_gpu()


def test_nothing_is_measured_without_a_gpu(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "canUseGPU", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1 and "no GPU" in capsys.readouterr().out


def test_whole_steps_as_graphs(gpu, monkeypatch):
    import graphs
    import models

    monkeypatch.setattr(gpu.measure, "CHUNK_SECONDS", 1e-6)
    monkeypatch.setattr(gpu.measure, "PAUSE_SECONDS", 0.0)
    for name in ("torch_steps", "jax_steps"):
        monkeypatch.setattr(graphs, name, lambda *work: [])
    example = gpu.measure.example()
    task = gpu.digits.problem(example, 2)
    text = graphs.section("Digits", task, example.modelStep, gpu.digits.TorchDigits, None, "tf32", 1)
    found = {row[0]: row[1:] for row in rows(text[text.index("|") :])}
    assert list(found) == [graphs.UNFUSED, graphs.FUSED] and found[graphs.FUSED][2] == "1.00"
    step = models.whole_step(models.perceptron_gradients)
    text = graphs.section("MLP", models.perceptron_problem(4), step, models.TorchPerceptron, None, "float32", 1)
    assert graphs.FUSED in text
    assert "loss" in graphs.whole_training(example, 2, 2)
    (text,) = graphs.sections([2, 3], 1, deadline=time.monotonic())
    assert text.startswith("Not measured for lack of time: digits 2 float32, the whole training, digits 2 tf32, percep")
    assert text.endswith("digits 3 float32, digits 3 tf32.")
    for name in ("graphs", "models"):
        sys.modules.pop(name, None)
