"""README.md keeps its word: the set-up commands and the example."""

import re
from pathlib import Path

import pytest

import minidl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_two_commands_set_up():
    assert [text.strip() for text in blocks("")] == [
        'pip install -e ".[examples]" && python examples/digits_accel.py',
        'pip install -e ".[test]" && pytest',
    ]
    assert (ROOT / "examples" / "digits_accel.py").exists()


def test_the_example_trains(monkeypatch, capsys):
    images, labels, angles = minidl.digitTrain4DArrayData()
    monkeypatch.setattr(minidl, "digitTrain4DArrayData", lambda: (images[..., :640], labels[:640], angles[:640]))
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2 and losses[1] < losses[0] < 2.5


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
