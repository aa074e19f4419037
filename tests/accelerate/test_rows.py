"""Every behaviour has a test that bears its name; what is compiled comes from the disk the second time (B8)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = [*(f"A{k}" for k in range(1, 15)), *(f"B{k}" for k in range(1, 9)), *(f"C{k}" for k in range(1, 7)),
        *(f"D{k}" for k in range(1, 5))]  # fmt: skip
TEXT = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))

SCRIPT = """
import sys
import numpy as np
from minidl import dlaccelerate, dlarray, tanh

accfun = dlaccelerate(lambda x: tanh(x) * 2 + x)
x = dlarray(np.arange(6.0))
first = accfun(x)
compiler = "minidl.backends.cpu.native.compiler"
assert compiler not in sys.modules, "the first call waits for no compiler"
assert np.allclose(accfun(x), first, rtol=1e-12) and accfun.HitRate == 50
print(int(compiler in sys.modules))
"""


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row, backend):
    assert re.search(rf"^def test_{row}_\w+\(", TEXT, re.M)


@pytest.mark.only_on("cpu")
def test_B8_the_first_call_is_eager_and_compiled_code_stays_on_the_disk(tmp_path):
    environment = {**os.environ, "MINIDL_CACHE_DIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)  # it would lie elsewhere
    seen = []
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True,
                               cwd=HERE.parents[1])  # fmt: skip
        assert found.returncode == 0 and found.stdout.strip() == "1", found.stderr
        files = {path: path.stat().st_ino for path in tmp_path.rglob("*.o")}
        assert files, "compiled code is kept"
        seen.append(files)
    assert seen[0] == seen[1]  # the second process has compiled nothing
