"""The global generator: its bits are the published ones, its draws lie apart, `rng` seeds it as MATLAB's does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import minidl.ops as m
from minidl.backends import reference
from minidl.core.dlarray import dlarray
from minidl.core.errors import OptionError
from minidl.core.random import GENERATOR, generator_of, host_generator, rng

WORD = 2**64


def philox(counter, key):
    """Philox 4x64 with 10 rounds, as the paper writes it (Salmon, Moraes, Dror and Shaw, 2011, section 4)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(c[0] * 0xD2E7470EE14C6C93, WORD)
        high1, low1 = divmod(c[2] * 0xCA5A826395121157, WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % WORD, (k[1] + 0xBB67AE8584CAA73B) % WORD]
    return c


def words_of(seed, draw, count):
    """The first words of a draw by the documented layout: key (seed, 0), counter (block, 0, draw, 0), blocks from 1."""
    return [word for block in range(1, count // 4 + 2) for word in philox((block, 0, draw, 0), (seed, 0))][:count]


ONES = WORD - 1
KNOWN = {  # Random123's file of known answers, philox4x64-10: counter, key, result
    "zeros": ((0, 0, 0, 0), (0, 0),
              (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    "ones": ((ONES, ONES, ONES, ONES), (ONES, ONES),
             (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    "pi": ((0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
           (0x452821E638D01377, 0xBE5466CF34E90C6C),
           (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6)),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name):
    counter, key, expected = KNOWN[name]
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256  # NumPy counts on before each block
    host = np.random.Philox(key=key[0] + (key[1] << 64), counter=before)
    assert tuple(host.random_raw(4).tolist()) == tuple(philox(counter, key)) == expected


@pytest.mark.parametrize("seed, draw", [(0, 0), (1, 0), (0, 1), (7, 12345), (WORD - 1, WORD - 2)])
def test_a_draw_is_the_documented_blocks(seed, draw):
    raw = generator_of(np.array([seed, draw], np.uint64)).bit_generator.random_raw(10)
    assert raw.tolist() == words_of(seed, draw, 10)


@pytest.mark.parametrize("seed, skipped", [(0, 0), (5, 0), (5, 3), (2**63 + 1, 1)])
@pytest.mark.parametrize("is_plain", [False, True])
def test_uniform_numbers_are_the_words_shifted(seed, skipped, is_plain):
    def draw(dtype):
        rng(seed)
        for _ in range(skipped):
            m.rand(1)
        like = np.zeros(1, dtype)
        return np.asarray(m.rand(2, 5, like=like if is_plain else dlarray(like))).ravel()

    words = words_of(seed, skipped, 10)
    assert draw(np.float64).tolist() == [(word >> 11) * 2.0**-53 for word in words]
    halves = [half for word in words for half in (word % 2**32, word >> 32)][:10]  # the lower half comes first
    assert draw(np.float32).tolist() == [(half >> 8) * 2.0**-24 for half in halves]


@pytest.mark.parametrize("law", ["rand", "randn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_and_traced_draws_are_the_same_bits(dtype, law):
    found = []
    for like in (np.zeros(1, dtype), dlarray(np.zeros(1, dtype))):
        rng(11)
        m.rand(3)
        found.append(np.asarray(getattr(m, law)(100, like=like)))
    assert found[0].dtype == found[1].dtype == dtype and found[0].tobytes() == found[1].tobytes()


# normal numbers ---------------------------------------------------------------------------------------------------
def inverse(word):
    """The inverse of the normal distribution function at (k + 1/2) / 2^53, by SciPy."""
    ndtri = pytest.importorskip("scipy.special").ndtri
    k = word >> 11
    return ndtri((2 * k + 1) * 2.0**-54) if k < 2**52 else -ndtri((2 * (2**53 - 1 - k) + 1) * 2.0**-54)


@pytest.mark.parametrize("seed, skipped", [(0, 0), (5, 3), (2**63 + 1, 1)])
def test_normal_numbers_are_the_inverse_at_the_words(seed, skipped):
    def draw(dtype):
        rng(seed)
        for _ in range(skipped):
            m.rand(1)
        return m.randn(2, 5, like=dlarray(np.zeros(1, dtype))).numpy().ravel()

    double = draw(np.float64)
    assert double == pytest.approx([inverse(word) for word in words_of(seed, skipped, 10)], rel=2e-15)
    assert draw(np.float32).tolist() == double.astype(np.float32).tolist()


def test_normal_numbers_are_right_everywhere():
    """In the centre, in the tails to their ends, and at the seams of the approximations."""
    random = np.random.default_rng(1)
    tops = [*range(100), *(2**k for k in range(53)), *random.integers(0, 2**53, 2000).tolist()]
    tops += [int(p * 2**53) + k for p in (0.075, np.exp(-25)) for k in range(-50, 50)]
    words = np.array([top << 11 for top in tops], np.uint64)
    found = reference._normal(words)
    assert found == pytest.approx([inverse(int(word)) for word in words], rel=2e-15, abs=1e-16)
    assert np.array_equal(reference._normal(~words), -found)  # symmetric to the last bit
    assert found.min() == found[0] == pytest.approx(-8.2924, abs=1e-4) and np.isfinite(found).all()
    rising = np.sort(words)
    assert np.all(np.diff(reference._normal(rising)) >= -1e-15)


def test_normal_numbers_follow_their_law():
    stats = pytest.importorskip("scipy.stats")
    rng(12)
    n = 200_000
    y = m.randn(n, 1, like=dlarray(1.0)).numpy().ravel()
    assert abs(y.mean()) < 4 / np.sqrt(n) and abs(y.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((y**3).mean()) < 4 * np.sqrt(15 / n) and abs((y**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(y, "norm").pvalue > 0.01
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("law", ["rand", "randn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_depends_on_its_place_alone(law, dtype):
    like, found = dlarray(np.zeros(1, dtype)), []
    for size in ((1, 20001), (20001, 1), (9, 1), (4, 3), (0, 1)):
        rng(6)
        found.append(getattr(m, law)(*size, like=like).numpy().ravel())
    for y in found:
        assert y.dtype == dtype and np.array_equal(y, found[0][: y.size])


def test_draws_do_not_overlap():
    rng(3)
    draws = [host_generator().bit_generator.random_raw(4000).tolist() for _ in range(8)]
    rng(4)
    draws.append(host_generator().bit_generator.random_raw(4000).tolist())
    assert len(set().union(*draws)) == 9 * 4000  # of 64 bits each: one equal pair by chance in 10^10 tries


def test_a_draw_has_room_for_2_to_the_130_words():
    host = generator_of(np.array([3, 0], np.uint64)).bit_generator
    host.advance(2**128 - 1)  # blocks
    assert host.random_raw(8).tolist() == philox((0, 0, 1, 0), (3, 0)) + words_of(3, 1, 4)  # its last one, the next's


def test_the_size_of_a_draw_does_not_move_the_next_one():
    following = []
    for count in (1, 7, 1000):
        rng(2)
        m.rand(count)
        following.append(m.rand(3).tolist())
    assert following[0] == following[1] == following[2]


# rng --------------------------------------------------------------------------------------------------------------
def test_the_state_has_matlabs_fields():
    rng(7)
    m.rand(2), m.randn(2, like=dlarray(1.0)), m.randperm(3)
    state = rng()
    assert state == {"Type": "philox", "Seed": 7, "Draws": 3} and (state.Type, state.Seed) == ("philox", 7)
    assert GENERATOR.value.data.tolist() == [7, 3]


@pytest.mark.parametrize("seed, expected", [
    (0, 0), (5, 5), (np.int64(5), 5), (np.uint64(WORD - 1), WORD - 1), ("default", 0), (None, 99),
])  # fmt: skip
@pytest.mark.parametrize("generator", [(), ("philox",), ("Philox",)])
def test_seeds(seed, expected, generator):
    rng(99)
    before = rng()
    if seed is None:
        generator = ()
    assert rng(seed, *generator) == before == {"Type": "philox", "Seed": 99, "Draws": 0}
    assert rng() == {"Type": "philox", "Seed": expected, "Draws": 0}


def test_a_state_goes_back_exactly():
    rng(6)
    m.rand(5)
    state = rng()
    first = m.rand(4), m.randn(4, like=dlarray(1.0)).tolist()
    assert rng(dict(state)) == {"Type": "philox", "Seed": 6, "Draws": 3} and rng() == state
    again = m.rand(4), m.randn(4, like=dlarray(1.0)).tolist()
    assert first[0].tolist() == again[0].tolist() and first[1] == again[1]


def test_shuffle_gives_another_seed_each_time():
    seeds = []
    for _ in range(8):
        rng("shuffle", "philox")
        seeds.append(rng().Seed)
    assert len(set(seeds)) > 1 and all(0 <= seed < 2**32 for seed in seeds) and rng().Draws == 0


@pytest.mark.parametrize("call, word", [
    (lambda: rng(1, "twister"), '"philox"'), (lambda: rng("shuffle", "threefry"), '"philox"'),
    (lambda: rng(1, 2), '"philox"'), (lambda: rng(rng() | {"Type": "twister"}), '"philox"'),
    (lambda: rng(None, "philox"), "rng(seed, generator)"), (lambda: rng(rng(), "philox"), "rng(seed, generator)"),
    (lambda: rng("twister"), '"default"'), (lambda: rng(WORD), "2^64"), (lambda: rng(-1), "seed"),
    (lambda: rng(1.5), "seed"), (lambda: rng(True), "seed"), (lambda: rng({"Seed": 1}), "state"),
    (lambda: rng(rng() | {"Draws": -1}), "whole"),
])  # fmt: skip
def test_wrong_calls_leave_the_state_alone(call, word, explained):
    rng(8)
    m.rand(1)
    explained(call, OptionError, word)
    assert rng() == {"Type": "philox", "Seed": 8, "Draws": 1}


def test_threads_never_draw_the_same_numbers():
    rng(1)
    found: list[float] = []

    def draw():
        for _ in range(50):
            found.append(float(m.rand(1, like=dlarray(1.0)).item()))
            found.append(float(m.rand(1).item()))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [(words_of(1, draw, 1)[0] >> 11) * 2.0**-53 for draw in range(400)]
    assert sorted(found) == sorted(expected) and rng().Draws == 400


# N8: worker processes ---------------------------------------------------------------------------------------------
WORKERS = """
import multiprocessing, os, sys
import numpy as np
import minidl as m

double = m.dlaccelerate(lambda x: x + m.rand(1, like=x))

def draw(_):
    x = m.dlarray(0.0)
    order = m.shuffle(m.arrayDatastore(np.arange(20))).readall()
    replayed = [float(double(x)) for _ in range(3)] if sys.argv[1:2] == ["fork"] else m.rand(3, 1).tolist()
    return (m.rng().Seed, m.rand(1).item(), m.randn(1).item(), replayed,
            m.initializeGlorot([2, 2], 2, 2).extractdata().tolist(), np.ravel(order).tolist())

def send(_, queue):
    queue.put(draw(0))

if __name__ == "__main__":
    way, before = sys.argv[1:]
    exec(before)
    context = multiprocessing.get_context(way)
    queue = context.SimpleQueue()
    found = []
    for i in range(2):
        process = context.Process(target=send, args=[i, queue])
        process.start()
        found.append(queue.get())
        process.join()
    print([found, draw(0)])
"""


def drawn(tmp_path, way, before=""):
    """What two worker processes and then the main process draw."""
    (tmp_path / "workers.py").write_text(WORKERS)
    path = os.pathsep.join(filter(None, sys.path))
    out = subprocess.run([sys.executable, str(tmp_path / "workers.py"), way, before], text=True, capture_output=True,
                         env=os.environ | {"PYTHONPATH": path}, timeout=200)  # fmt: skip
    assert out.returncode == 0, out.stderr
    return ast.literal_eval(out.stdout)


def are_different(all_drawn):
    """Each kind of draw is another one in each process."""
    return all(len({repr(kind) for kind in kinds}) == len(all_drawn) for kinds in zip(*all_drawn))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.parametrize("way", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_N8_workers_draw_different_numbers(tmp_path, way):
    workers, main = drawn(tmp_path, way, "draw(0)" if way == "fork" else "")  # forks find it compiled
    assert are_different([*workers, main]) and main[0] == 0, "the main process draws what it always has"
    assert all(len({repr(x) for x in worker[3]}) == 3 for worker in workers), "each replay draws anew"


@needs_fork
def test_N8_a_seed_that_was_set_is_inherited_by_forks(tmp_path):
    workers, main = drawn(tmp_path, "fork", "draw(0); m.rng(7)")
    assert workers[0] == workers[1] == main and main[0] == 7


@needs_fork
def test_N8_forks_of_forks_and_of_threads(monkeypatch):
    """Children, grandchildren and forks at the same time from several threads: all draw other numbers."""
    script = """
import os, threading
import minidl as m
import minidl.core.random as r
def fork(depth):
    child = os.fork()
    if child == 0:
        os.write(1, f"{m.rng().Seed} {m.rand(1).item()}\\n".encode())
        if depth:
            fork(depth - 1); fork(depth - 1)
        os._exit(0)
    os.waitpid(child, 0)
r.LOCK.acquire()
threads = [threading.Thread(target=fork, args=[1]) for _ in range(4)]  # while another thread draws
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", script], text=True, capture_output=True, timeout=100,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    lines = out.stdout.splitlines()
    assert len(lines) == len(set(lines)) == 12, out.stdout + out.stderr


def test_N8_trying_a_function_sets_no_seed():
    from minidl.core import random
    from minidl.testing import assert_accelerable

    before, random._seed = random._seed, 5
    assert_accelerable(lambda x: x * 2, dlarray([1.0]))
    assert random._seed == 5
    random._seed = before


def test_N8_names_of_workers(monkeypatch):
    """Numbered names decide; workers that somebody has given one name are told apart by their processes."""
    import multiprocessing.process
    from types import SimpleNamespace

    from minidl.core import random

    def seed(name, pid):
        monkeypatch.setattr(multiprocessing.process, "current_process", lambda: SimpleNamespace(name=name))
        monkeypatch.setattr(os, "getpid", lambda: pid)
        return random._start_seed()

    assert seed("MainProcess", 1) == 0
    assert seed("SpawnPoolWorker-1", 1) == seed("SpawnPoolWorker-1", 2) != seed("SpawnPoolWorker-2", 1)
    assert seed("SpawnProcess-1:2", 1) == seed("SpawnProcess-1:2", 2) != seed("SpawnProcess-2:1", 2)
    assert len({seed("loader", 1), seed("loader", 2), seed("other", 1), 0}) == 4
