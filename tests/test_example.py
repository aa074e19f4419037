"""examples/digits_accel.py on a small set of digits: everything that it shows and writes."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from minidl import DataError, DeviceError

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits_accel.py"
TRAINING, TESTING = 330, 72  # ten batches of 32 and a rest that is discarded; two batches and a rest that is returned
FIGURES = {"digits_training_time.png", "digits_prediction_time.png", "digits_test.png"}


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("digits_accel", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """The same on machines with a GPU."""
    monkeypatch.setenv("MINIDL_DEVICE", "cpu")


@pytest.fixture(scope="module")
def digits(module):
    """The first of the generated digits."""
    return [(X[..., :n], labels[:n], angles[:n])
            for (X, labels, angles), n in zip(module.load("generated"), (TRAINING, TESTING))]  # fmt: skip


@pytest.fixture
def example(module, digits, monkeypatch, tmp_path):
    """The example where there is no display, in an empty folder, with few digits."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(module, "has_display", lambda: False)
    monkeypatch.setattr(module, "load", lambda data: digits)
    monkeypatch.chdir(tmp_path)
    yield module
    module.pyplot().close("all")


def files():
    return {path.name for path in Path().iterdir()}


def is_picture(name):
    return Path(name).read_bytes().startswith(b"\x89PNG") and Path(name).stat().st_size > 5000


# the whole run ----------------------------------------------------------------------------------------------------


def test_default_run(example, capsys):
    results = example.main(["--epochs", "1"])

    assert len(results.lossBaseline) == len(results.lossAccelerated) == TRAINING // 32
    np.testing.assert_allclose(results.lossAccelerated, results.lossBaseline, rtol=1e-3)
    assert results.lossBaseline[-1] < results.lossBaseline[0]
    assert results.HitRate == 100 * 9 / 10  # the first call is recorded, the others replay it
    assert results.HitRatePrediction == pytest.approx(100 * 1 / 3)  # batches of 32, 32 and 8

    assert files() == FIGURES
    assert all(map(is_picture, FIGURES))

    text = capsys.readouterr().out
    for line in ("accfun.HitRate = 90.0000", "accfun2.HitRate = 33.3333", "Figure written to digits_test.png"):
        assert line in text
    for name in ("elapsedBaseline", "elapsedAccelerated", "elapsedPredictionBaseline", "elapsedPredictionAccelerated"):
        assert f"{name} = {results[name]:.4f}" in text
    assert f"speedup = {results.elapsedBaseline / results.elapsedAccelerated:.4f}" in text
    for name in ("Baseline", "Accelerated"):
        assert f"accuracy {results[f'accuracy{name}']:.2f} %" in text
        assert 0 <= results[f"accuracy{name}"] <= 100 and 0 < results[f"angleRMSE{name}"] < 90


def test_printed_hit_rates_are_those_of_the_mathworks_page():
    """3,120 calls with one miss, 157 calls with two."""
    iterations = 20 * (5000 // 32)
    assert round(100 * (iterations - 1) / iterations, 4) == 99.9679
    batches = -(-5000 // 32)
    assert round(100 * (batches - 2) / batches, 4) == 98.7261


def test_whole_step_with_growing_curve(example, capsys):
    results = example.main(["--epochs", "1", "--whole-step", "--plots", "training-progress"])
    np.testing.assert_allclose(results.lossAccelerated, results.lossBaseline, rtol=1e-3)
    assert results.HitRate == 100 * 8 / 10  # the second call has the solver's averages for the first time
    assert files() == FIGURES | {"digits_loss_baseline.png", "digits_loss_accelerated.png"}
    assert all(map(is_picture, files()))
    axes = example.pyplot().figure("Training Progress (Accelerated)").axes[0]
    assert axes.get_title().startswith("Epoch: 1, Elapsed: 00:00:")
    np.testing.assert_allclose(axes.lines[0].get_ydata(), results.lossAccelerated)


def test_the_seed_decides_weights_and_order(example, monkeypatch):
    losses = []
    for seed in ("5", "5", "6"):
        with monkeypatch.context() as patch:
            stop_at(example, patch, 3)
            losses.append(example.main(["--epochs", "1", "--seed", seed]).lossBaseline)
    assert losses[0] == losses[1] != losses[2]
    assert len(losses[0]) == 2


@pytest.mark.parametrize("options", [["--device", "gpu"], ["--whole-step"]])
def test_on_a_gpu(example, digits, device, monkeypatch, capsys, options):
    """With --device gpu, and with "auto" where there is one, all is computed there. Few digits: the shim is slow."""
    few = [(X[..., :n], labels[:n], angles[:n]) for (X, labels, angles), n in zip(digits, (6, 3))]
    monkeypatch.setattr(example, "load", lambda data: few)
    expected = example.main(["--epochs", "1", "--batch", "2", "--device", "cpu"])
    example.pyplot().close("all")
    monkeypatch.delenv("MINIDL_DEVICE")
    seen = set()
    adamupdate = example.adamupdate
    monkeypatch.setattr(example, "adamupdate", lambda p, *rest: seen.add(p.fc1.Weights.device) or adamupdate(p, *rest))
    results = example.main(["--epochs", "1", "--batch", "2", *options])
    assert seen == {"gpu"}
    np.testing.assert_allclose(results.lossBaseline, expected.lossBaseline, rtol=1e-2)
    np.testing.assert_allclose(results.lossAccelerated, results.lossBaseline, rtol=1e-2)
    assert results.HitRate == pytest.approx(100 * (1 if "--whole-step" in options else 2) / 3)
    assert files() == FIGURES


# Ctrl-C -----------------------------------------------------------------------------------------------------------


def stop_at(example, monkeypatch, count):
    """Press Ctrl-C while mini-batch `count` is being prepared."""
    prepare, made = example.preprocessMiniBatch, []

    def preprocessMiniBatch(XCell, YCell, angleCell):
        made.append(1)
        if len(made) == count:
            signal.raise_signal(signal.SIGINT)
        return prepare(XCell, YCell, angleCell)

    monkeypatch.setattr(example, "preprocessMiniBatch", preprocessMiniBatch)


def test_ctrl_c_in_the_baseline_training(example, monkeypatch, capsys):
    stop_at(example, monkeypatch, 4)
    results = example.main(["--epochs", "1"])
    text = capsys.readouterr().out
    assert "Stopped. Baseline training did 3 iterations in " in text
    assert f"loss of the last one {results.lossBaseline[-1]:.4f}" in text
    assert "elapsedAccelerated" not in results
    assert not files()


def test_ctrl_c_in_the_accelerated_training(example, monkeypatch, capsys):
    stop_at(example, monkeypatch, TRAINING // 32 + 3)
    results = example.main(["--epochs", "1"])
    text = capsys.readouterr().out
    assert "Stopped. Accelerated training did 2 iterations in " in text
    assert f"Baseline training: 10 iterations in {results.elapsedBaseline:.1f} s." in text
    assert len(results.lossBaseline) == 10


def test_M7_a_line_per_epoch_where_there_is_no_terminal(example, capsys):
    """And after 30 iterations how long it will take, in which the slow first ones do not count."""
    now = [0.0]
    options = example.struct(epochs=3, iterationsPerEpoch=20, plots="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example.time, "perf_counter", lambda: now[0])
        progress = example.Progress("Baseline", options)
        for i in range(60):
            now[0] += 2.5 if i < 10 else 0.5
            progress.update(1 + i // 20, float(i))
        progress.close()
    out, err = capsys.readouterr()
    assert out == "Baseline training: about 30 s\n"
    assert err.splitlines() == [
        f"Baseline: epoch {k} of 3, mean loss {loss}, {seconds} s"
        for k, loss, seconds in [(1, "9.5000", 30.0), (2, "29.5000", 40.0), (3, "49.5000", 50.0)]
    ]


@pytest.mark.parametrize(("argv", "is_told"), [([], True), (["--epochs", "2"], False)])
def test_M7_how_long_it_will_be_is_said_at_once(example, monkeypatch, capsys, argv, is_told):
    stop_at(example, monkeypatch, 1)
    example.main(argv)
    first = capsys.readouterr().out.splitlines()[0]
    epochs = argv[-1] if argv else "20"
    assert first.startswith(f"Training twice, {epochs} epochs of 10 iterations each: first without acceleration")
    assert ("--epochs 2 shows everything in seconds" in first) == is_told


def test_ctrl_c_before_the_first_iteration(example, monkeypatch, capsys):
    stop_at(example, monkeypatch, 1)
    example.main(["--epochs", "1"])
    text = capsys.readouterr().out
    assert "Stopped. Baseline training did 0 iterations" in text and "loss of the last" not in text


# options and data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--batch", "-3"], "--batch must be at least 1, got -3"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--plots", "some"], "argument --plots: invalid choice: 'some'"),
        (["--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_wrong_options_are_explained(example, capsys, argv, said):
    with pytest.raises(SystemExit) as stopped:
        example.main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused(example):
    with pytest.raises(SystemExit, match="--batch 400 is more than the 330 observations. Give a smaller."):
        example.main(["--batch", "400"])


def test_a_device_that_is_not_there_is_refused(example):
    with pytest.raises(DeviceError, match="gpuArray: no GPU can be used: .*MINIDL_DEVICE"):
        example.main(["--device", "gpu"])


def test_a_folder_without_data_is_refused(module, tmp_path):
    with pytest.raises(DataError, match="found none at"):
        module.main(["--data", str(tmp_path)])


def test_handwritten_digits_are_loaded(module):
    pytest.importorskip("sklearn", reason="the handwritten digits come from scikit-learn, which is not installed")
    for images, labels, angles in module.load("handwritten"):
        assert images.shape == (28, 28, 1, 5000) and angles.shape == (5000, 1)
        assert {*labels} == {*"0123456789"} and abs(angles).max() <= 45


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "w"}, True),
     ("darwin", {}, True), ("win32", {}, True)],
)  # fmt: skip
def test_a_display_is_found(module, monkeypatch, platform, environment, expected):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert module.has_display() is expected
