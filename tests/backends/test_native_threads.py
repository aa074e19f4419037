"""Native programs and threads: any number of them, few processors, forks, two callers at once, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import minidl as m
from minidl import dlaccelerate, dlarray
from minidl.backends.cpu.native import program
from minidl.kernels.cpu.threads import set_thread_count

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(1)
X, W = (dlarray(RANDOM.normal(size=size).astype("float32") * 0.1) for size in ((900, 200), (200, 200)))


def function(x, w):
    y = m.tanh(x @ w)
    return m.sum(y @ w, 0), m.mean(y, 1)


def same_bits(a, b):
    return all(np.array_equal(x.extractdata(), y.extractdata()) for x, y in zip(a, b))


@pytest.fixture(autouse=True)
def usual_threads():
    yield
    set_thread_count()


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(program, "usable_cpus", lambda: 8)
    found = []
    for threads in (1, 2, 3, 8):
        set_thread_count(threads)
        accfun = dlaccelerate(function)
        found += [accfun(X, W) for _ in range(6)][1:]
        assert accfun.trace().program._segments[0].threads == threads
    assert all(same_bits(found[0], other) for other in found)


def test_two_programs_from_four_threads():
    functions = [dlaccelerate(function), dlaccelerate(lambda x, w: m.sum(m.exp(-m.abs(x @ w)), 1))]
    expected = [[f(X, W) for _ in range(2)][1] for f in functions]
    expected = [y if isinstance(y, tuple) else (y,) for y in expected]
    wrong = []

    def work(start):
        for i in range(60):
            k = (start + i) % 2
            y = functions[k](X, W)
            if not same_bits(y if isinstance(y, tuple) else (y,), expected[k]):
                wrong.append((start, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def run(code, **environment):
    """What a fresh Python prints."""
    head = "from minidl import dlaccelerate, dlarray\nimport minidl as m, numpy as np, os, sys, threading, time\n"
    started = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    return started.stdout.split()


PROGRAM = """
f = dlaccelerate(lambda x, w: m.sum(m.tanh(x @ w) @ w, 'all'))
x, w = (dlarray(np.random.default_rng(k).normal(size=s).astype('f') * .1)
        for k, s in enumerate([(900, 200), (200, 200)]))
"""


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_the_environment_sets_the_number(threads):
    code = PROGRAM + "print(*{f(x, w).item() for _ in range(5)}, f.trace().program._segments[0].threads)"
    *numbers, count = run(code, MINIDL_NUM_THREADS=threads)
    assert int(count) == min(int(threads), program.usable_cpus())
    assert len(numbers) <= 2  # the first call is a plain one


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to processors")
def test_one_processor_for_all_threads():
    code = PROGRAM + """
f(x, w); y = f(x, w).item()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(y, *{f(x, w).item() for _ in range(50)})
"""
    first, *others = run(code, MINIDL_NUM_THREADS="3")
    assert others == [first]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_replays_while_the_parent_does():
    code = PROGRAM + """
f(x, w); y = f(x, w).item()
going = True
def replay():
    while going: f(x, w)
thread = threading.Thread(target=replay); thread.start()
good = 0
for _ in range(10):
    time.sleep(0.005)
    child = os.fork()
    if not child:
        os._exit(0 if all(f(x, w).item() == y for _ in range(3)) else 1)
    good += os.waitpid(child, 0)[1] == 0
going = False; thread.join(); print(good)
"""
    assert run(code) == ["10"]


def test_a_busy_neighbour_does_no_harm():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        accfun = dlaccelerate(function)
        found = [accfun(X, W) for _ in range(60)]
        assert all(same_bits(found[1], other) for other in found[1:])
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a process alone")
def test_an_interruption_leaves_the_program_usable():
    code = PROGRAM + """
f(x, w); y = f(x, w).item()
print('ready', flush=True)
try:
    while True: f(x, w)
except KeyboardInterrupt:
    print(all(f(x, w).item() == y for _ in range(20)))
"""
    head = "from minidl import dlaccelerate, dlarray\nimport minidl as m, numpy as np, os, sys, threading, time\n"
    process = subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].strip() == "True"
