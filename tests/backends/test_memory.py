"""minidl.backends.cpu.memory: freed memory stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from minidl.backends.cpu.memory import keep_freed_memory
assert keep_freed_memory()
def step():
    return [np.ones(400_000, np.float32) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_arrays_of_the_next_step_take_no_fresh_pages():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    if run.returncode and "assert keep_freed_memory()" in run.stderr:
        pytest.skip("this C library has no mallopt")
    assert int(run.stdout) < 1000, run.stderr  # each step's arrays have 3,125 pages
