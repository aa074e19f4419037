"""README.md keeps its word: the set-up commands and the example."""

import re
from pathlib import Path

import numpy as np
import pytest

import minidl
from minidl.testing import assert_accelerable

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if name == language]


def test_two_commands_set_up():
    assert [text.strip() for text in blocks("")] == [
        'pip install -e ".[examples]" && python examples/digits_accel.py',
        'pip install -e ".[test]" && pytest',
    ]
    assert (ROOT / "examples" / "digits_accel.py").exists()


def test_the_example_trains(monkeypatch, capsys):
    images, labels, angles = minidl.digitTrain4DArrayData()
    monkeypatch.setattr(minidl, "digitTrain4DArrayData", lambda: (images[..., :640], labels[:640], angles[:640]))
    example, seeing, testing = blocks("python")
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2 and losses[1] < losses[0] < 2.5
    exec(compile(seeing, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "recorded because" in shown and "conv_weight_grad" in shown and "\narena " in shown
    exec(compile(testing, "README.md", "exec"), names)
    assert names["accfun"].NumTraces == 1


def test_idioms_are_replayed():
    idioms, _ = blocks("py")
    names = vars(minidl).copy()
    names |= {"threshold": 0.5, "W": minidl.dlarray(np.ones((3, 2)))}
    body = "\n    ".join(idioms.strip().splitlines())
    function = "def step(X, W):\n    Y = X @ W\n    g = dlgradient(sum(Y * Y, 'all'), W)\n    " + body
    exec(compile(f"{function}\n    return g, rate, noise, target, Y", "README.md", "exec"), names)
    X, W = minidl.dlarray(np.full((4, 3), -2.0)), minidl.dlarray(np.ones((3, 2)))
    assert_accelerable(lambda X, W: minidl.dlfeval(names["step"], X, W), X, W)
    clipped = minidl.dlfeval(names["step"], X, W)[0]
    np.testing.assert_allclose(np.linalg.norm(np.asarray(clipped)), 0.5, rtol=1e-6)


def test_the_lines_for_a_gpu(device, monkeypatch, capsys):
    _, lines = blocks("py")
    X = minidl.dlarray([[1.0, 2.0]], "SC")
    ds = minidl.combine(minidl.arrayDatastore(np.ones((4, 3))), minidl.arrayDatastore(np.ones((4, 2))))
    names = {"ds": ds, "parameters": minidl.struct(w=X), "accfun": lambda p, X, T: (minidl.sum(p.w, "all"), p),
             "preprocess": lambda X, T: (np.ones((3, 3, 1, len(X))), np.concatenate(T).T)}  # fmt: skip
    exec(compile(lines, "README.md", "exec"), names)
    assert names["loss"].device == "gpu" and capsys.readouterr().out == f"{minidl.dlarray(3.0)}\n"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
