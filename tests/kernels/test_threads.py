"""Threads of the CPU kernels."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minidl.kernels.cpu import threads as module
from minidl.kernels.cpu.threads import parallel_for, ranged, set_thread_count, thread_count


@ranged
def _count(start, stop, hits, sizes, step):
    """Adds 1 to each index of the range and notes the length of the block that it came in."""
    for i in range(start, stop):
        hits[i] += step
        sizes[i] = stop - start


@ranged
def _grow(start, stop, y, turns):
    for i in range(start, stop):
        value = 0.0
        for _ in range(turns):
            value = value * 0.5 + i
        y[i] = value


@pytest.fixture(autouse=True)
def several_threads():
    before = thread_count()
    set_thread_count(3)
    yield
    set_thread_count(before)  # a test may have left nonsense in the environment, which is put back later


@pytest.mark.parametrize(("count", "grain"), [(0, 1), (1, 1), (2, 1), (7, 3), (100, 1), (1000, 64), (5, 100)])
def test_every_index_once_in_blocks_of_at_least_the_grain(count, grain):
    hits, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for _ in range(50):
        parallel_for(_count, count, grain, hits, sizes, 1)
    assert np.all(hits == 50)
    assert np.all(sizes[: count - count % grain] >= min(grain, count))


def test_workers_sleep_and_wake():
    hits, sizes = np.zeros(100, np.int64), np.zeros(100, np.int64)
    for turn in range(1, 4):
        parallel_for(_count, 100, 1, hits, sizes, 1)
        deadline = time.monotonic() + 20
        while not all(worker.asleep for worker in module._pool.workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(worker.asleep for worker in module._pool.workers)
        assert np.all(hits == turn)


def test_concurrent_callers():
    """Python threads that meet in parallel_for: one gets the workers, the others go on alone."""
    results = [np.zeros(64) for _ in range(4)]

    def call(y):
        for _ in range(100):
            y[:] = 0
            parallel_for(_grow, len(y), 1, y, 200)

    callers = [threading.Thread(target=call, args=(y,)) for y in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(np.allclose(y, 2 * np.arange(64)) for y in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own():
    y = np.zeros(64)
    parallel_for(_grow, len(y), 1, y, 10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            z = np.zeros(64)
            parallel_for(_grow, len(z), 1, z, 10)
            code = 0 if np.array_equal(y, z) and module._pool.threads == 3 and len(module._pool.workers) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("text", "count"), [("1", 1), (" 3 ", 3), ("", None)])
def test_environment(text, count, monkeypatch):
    monkeypatch.setenv("MINIDL_NUM_THREADS", text)
    assert thread_count() == (count or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_environment_is_checked(text, monkeypatch):
    monkeypatch.setenv("MINIDL_NUM_THREADS", text)
    with pytest.raises(ValueError, match="MINIDL_NUM_THREADS: a whole number"):
        thread_count()


def test_division_by_zero_and_overflow_do_not_raise():
    @ranged
    def divide(start, stop, y, x):
        for i in range(start, stop):
            y[i] = x[i] / x[0]

    y = np.empty(3)
    parallel_for(divide, 3, 1, y, np.array([0.0, 1.0, -1.0]))
    assert np.isnan(y[0]) and y[1] == np.inf and y[2] == -np.inf


def test_kernels_is_no_package_of_its_own():
    code = f"import sys; sys.path.insert(0, {str(Path(module.__file__).parents[2])!r}); import kernels"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in result.stderr and "minidl.kernels" in result.stderr


def test_interpreter_ends_while_workers_spin():
    code = (
        "import numpy as np\n"
        "from minidl.kernels.cpu.batchnorm import _merge_grad\n"
        "from minidl.kernels.cpu.threads import parallel_for, set_thread_count\n"
        "set_thread_count(2)\n"
        "a = np.ones((2, 2, 64), np.float32); b = np.empty(64, np.float32); c = np.empty_like(b)\n"
        "parallel_for(_merge_grad, 64, 1, b, c, a)\n"
        "print(b.sum())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "128.0", "")
