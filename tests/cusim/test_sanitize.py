"""Sample calls of all kernels under the sanitizers: nothing is found, unless a subscript is one too large."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import generator

import cusim
from cusim import sanitize

SCRIPT = cusim.HERE / "sanitize.py"

pytestmark = pytest.mark.skipif(sanitize.library() is None, reason="gcc has no AddressSanitizer here")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_no_call_reaches_beyond_its_arrays():
    """Every second call, from the first or from the second on; all of them if MINIDL_TEST_EVERY is set."""
    first = int(generator().integers(2))
    found = run() if os.environ.get("MINIDL_TEST_EVERY") else run("--every-second", str(first))
    assert found.returncode == 0 and "no finding" in found.stdout, found.stderr[-4000:]


@pytest.mark.parametrize("file", ["batchnorm.cu", "softmax.cu", "spacing.cu", "scan.cu"])
def test_a_subscript_that_is_one_too_large_is_found(file):
    found = run("--shift", file)
    assert found.returncode and "no finding" not in found.stdout
    assert re.search(r"AddressSanitizer: \S+-overflow|runtime error", found.stderr), found.stderr[-4000:]
    where = re.search(r"#0 .* (/\S+/kernel-\w+\.cpp):(\d+)", found.stderr)
    assert where is not None, found.stderr[-4000:]
    line = Path(where[1]).read_text(encoding="utf-8").splitlines()[int(where[2]) - 1]
    assert "+ 1] =" in line, line
