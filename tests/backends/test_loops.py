"""Generated loops: every form of reduction, sizes beyond the thresholds, any number of threads, damaged caches."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
from engine.programs import LAYOUTS, assert_close, recorded

import minidl as m
from minidl.backends import cpu, reference
from minidl.backends.cache import cache_folder
from minidl.backends.cpu import loops
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.apply import constant
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.op import MAP, OPS
from minidl.engine.compile import compile_graph
from minidl.engine.layout import order_of
from minidl.kernels.cpu.threads import set_thread_count

RANDOM = np.random.default_rng(0)


@pytest.fixture(params=["native", "loops"], autouse=True)
def way(request, monkeypatch):
    """Both ways of compiling a trace: native programs, and loops compiled by Numba, where there are none."""
    monkeypatch.setenv("MINIDL_NATIVE", str(int(request.param == "native")))
    return request.param


@pytest.fixture
def all_threads():
    yield
    set_thread_count()


def replayed(function, *arrays):
    """What the compiled recording of a function makes of these arrays."""
    inputs = [dlarray(x) for x in arrays]
    graph, values, _ = recorded(function, *inputs)
    program = compile_graph(graph, [order_of(value.data) for value in values], cpu)
    return program.run([value.data for value in values])


def reduction(name, axes):
    return lambda x: OPS[f"reduce_{name}"](x, axes=axes)


def subsets(rank):
    return [axes for count in range(1, rank + 1) for axes in itertools.combinations(range(rank), count)]


# reductions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axes", subsets(4), ids=str)
def test_sum_along_any_axes(axes):
    x = RANDOM.normal(size=(2, 3, 4, 5))
    for layout in (0, 1, 4):
        assert_close(replayed(reduction("sum", axes), LAYOUTS[layout](x)), x.sum(axis=axes, keepdims=True), 1e-13)


FORMS = {"rows": ((300, 7), (1,)), "slabs": ((4, 300, 3), (1,)), "totals": ((300, 4), (0,)), "all": ((2000,), (0,))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "any", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_form_of_every_reduction(name, form, dtype):
    shape, axes = FORMS[form]
    x = 1 + 0.05 * RANDOM.normal(size=shape)
    x[RANDOM.random(shape) < 0.01] = np.nan if name in ("max", "min") else 1
    x = (x > (1.1 if name == "any" else 0.9)) if name in ("any", "all") else x.astype(dtype)
    expected = reference.REDUCTIONS[f"reduce_{name}"](x, axes=axes)
    assert_close(replayed(reduction(name, axes), x), expected, 1e-5 if dtype == "float32" else 1e-12)


def test_extremes_of_nans_alone_are_nan():
    x = np.array([[np.nan, np.nan], [np.nan, -1.0], [np.inf, np.nan]])
    for name in ("max", "min"):
        (y,) = replayed(reduction(name, (1,)), x)
        assert np.array_equal(y, [[np.nan], [-1.0], [np.inf]], equal_nan=True)


NOTHING = [((0,), (0,)), ((0, 3), (0,)), ((3, 0), (1,)), ((3, 0), (0,)), ((2, 0, 3), (1,)), ((0, 2, 3), (1, 2)),
           ((1, 1), (0, 1)), ((), ())]  # fmt: skip


@pytest.mark.parametrize("shape, axes", NOTHING, ids=str)
def test_reductions_of_nothing(shape, axes):
    for name in ("sum", "prod", "any"):
        x = np.ones(shape, bool if name == "any" else np.float32)
        assert_close(replayed(reduction(name, axes), x), reference.REDUCTIONS[f"reduce_{name}"](x, axes=axes))


SIZES = [(63,), (64,), (65,), (65535,), (65536,), (65537,), (200_003,), (7, 20_000), (8, 8192), (9, 8192), (8193, 8),
         (1025, 3, 30), (3, 1025, 30), (30, 3, 1025), (130_001, 1), (1, 130_001)]  # fmt: skip


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_sizes_beyond_the_thresholds(shape):
    x = RANDOM.integers(-8, 8, shape).astype(np.float32)  # sums of whole numbers are exact
    x.reshape(-1)[-1] = 99
    for axes in subsets(len(shape)):
        (y, z, w) = replayed(
            lambda x, axes=axes: [reduction("sum", axes)(x), reduction("max", axes)(x), x * 2 + 1], x
        )  # one loop, if fused, with all forms of stores
        assert np.array_equal(y, x.sum(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32))
        assert np.array_equal(z, x.max(axis=axes, keepdims=True))
        assert np.array_equal(w, x * 2 + 1)


@pytest.mark.parametrize("shape, axes", [((1_000_000,), (0,)), ((3, 300_000), (1,)), ((300_000, 3), (0,)),
                                         ((4, 100_000, 3), (1,)), ((100, 3000, 2), (0, 1)), ((50, 3, 4000), (0, 2))],
                         ids=str)  # fmt: skip
def test_long_sums_in_single_keep_their_digits(shape, axes):
    x = RANDOM.random(shape).astype(np.float32)
    (y,) = replayed(reduction("sum", axes), x)
    exact = x.astype(np.float64).sum(axis=axes, keepdims=True)
    assert np.max(np.abs(y - exact) / exact) < 1e-6


def test_long_sums_over_two_dimensions_with_a_gap_between():
    x = RANDOM.random((300, 1100, 4)).astype(np.float32)
    (y,) = replayed(lambda x: reduction("sum", (0, 1))(x[:, :1000]), x)
    exact = x[:, :1000].astype(np.float64).sum(axis=(0, 1), keepdims=True)
    assert np.max(np.abs(y - exact) / exact) < 1e-6


def everything(x):
    y = m.tanh(x) * 2
    return [y, *(reduction(name, axes)(y) for name in ("sum", "max") for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)))]


def test_results_do_not_depend_on_the_number_of_threads(all_threads):
    x = RANDOM.normal(size=(77, 33, 41)).astype(np.float32)
    found = []
    for threads in (1, 2, 3, 5):
        set_thread_count(threads)
        found.append(replayed(everything, x))
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))


# the words of the texts ------------------------------------------------------------------------------------------
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -2.5, 0.3, -3.0, 5.0, 0.9999, -0.9999, 1.0001, np.inf, -np.inf, np.nan,
           0.49999997, 8388609.0, 1e-30, -1e30, 1e-45, 88.0, -88.0, 710.0, 4503599627370497.0]  # fmt: skip


@pytest.mark.parametrize("dtype, rounding", [("float32", 3e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("arity", [1, 2])
def test_special_values(arity, dtype, rounding):
    ops = [op for op in OPS.values() if op.kind is MAP and op.text and op.arity == arity and op.is_float]
    pairs = np.array(list(itertools.product(SPECIAL, repeat=2))).astype(dtype)
    x, y = (np.resize(column, 5000) for column in pairs.T)  # so large that the ops share loops

    def function(x, y):
        if arity == 1:
            return [op(x) for op in ops] + [m.where(x > 0.2, x, y), m.where(y <= x, 2.0, x)]
        return [z for op in ops for z in (op(x, y), op(x, 2.0), op(-0.5, y), op(x, 3))]

    names = [op.name for op in ops for _ in range(1 if arity == 1 else 4)] + ["where"] * 2
    with np.errstate(all="ignore"):
        expected = [z.extractdata() for z in function(dlarray(x), dlarray(y))]
        for name, a, b in zip(names, replayed(function, x, y), expected):
            is_same = (a == b) | ((a != a) & (b != b))
            if b.dtype.kind == "f":
                is_same |= np.abs(a - b) <= rounding * np.abs(b)
                is_same &= (np.signbit(a) == np.signbit(b)) | (b != b)
            wrong = np.flatnonzero(~is_same)[:3]
            assert not len(wrong), f"{name} of {x[wrong]}, {y[wrong]}: {a[wrong]}, {b[wrong]}"


def test_casts():
    x = np.array([0.0, -0.0, 0.5, -3.7, np.nan, np.inf, 1e300, 1e-300])
    function = lambda x: [m.single(x), m.double(m.single(x)), m.logical(x), m.single(m.logical(x)) * 2 - (x > 0)]  # noqa: E731
    with np.errstate(all="ignore"):
        for a, b in zip(replayed(function, x), function(dlarray(x))):
            assert a.dtype == b.dtype and np.array_equal(a, b.extractdata(), equal_nan=True)


# numbers in the text ----------------------------------------------------------------------------------------------
def test_literals():
    x = np.array([-0.0, 0.0, 1.0, np.nan], np.float32)
    numbers = [0.0, -0.0, 1, True, np.nan, np.inf, -np.inf, 1e300, 1e-300, 0.1, 2**70]

    def function(x):
        return [y for number in numbers for y in (x + number, x * number, x < number, m.where(x == 0, number, x))]

    expected = [y.extractdata() for y in function(dlarray(x))]
    for found, wanted in zip(replayed(function, x), expected):
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted, equal_nan=wanted.dtype.kind == "f")
        if found.dtype.kind == "f":
            assert np.array_equal(np.signbit(found[:3]), np.signbit(wanted[:3]))


def test_one_text_serves_all_sizes():
    def text(n, k):
        load = Step("", (), "float32", access=Access(0, 0, (k, 1)))
        store = Store(Temp(0), Access(1, 0, (1, 0)), "float32", "({0} + {1})")
        return loops.Printed(Loop((n, k), [load], [store])).text

    assert text(3, 4) == text(30, 50)


# bodies at once ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_a_body_in_any_memory_layout(layout):
    x, y = RANDOM.normal(size=(2, 3, 4, 5))
    x, y = LAYOUTS[layout](x), LAYOUTS[(layout + 3) % len(LAYOUTS)](y)
    np.testing.assert_allclose(m.hypot(dlarray(x), dlarray(y)).extractdata(), np.hypot(x, y))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (20_000,), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_body_of_any_size(shape, dtype):
    x, y = (RANDOM.normal(size=shape).astype(dtype) for _ in range(2))
    found = m.hypot(dlarray(x), dlarray(y)).extractdata()
    assert (found.dtype, found.shape) == (x.dtype, shape)
    np.testing.assert_allclose(found, np.hypot(x, y), rtol=1e-6)


def test_a_body_of_numbers_and_repeated_numbers():
    x = np.float32([3.0, -1.0])
    for other in (4.0, 4, -0.5):
        np.testing.assert_allclose(m.hypot(dlarray(x), other).extractdata(), np.hypot(x, np.float32(other)), rtol=1e-6)
    repeated = DLArray(constant(np.broadcast_to(np.float32(3), (2, 3))))
    assert m.hypot(repeated, repeated).extractdata().tolist() == [[np.hypot(np.float32(3), np.float32(3))] * 3] * 2


def test_bodies_in_many_threads():
    arrays = [RANDOM.normal(size=(n, 7)).astype(dtype) for n in (10, 5000) for dtype in ("float32", "float64")]
    wrong = []

    def work(x):
        for _ in range(20):
            if not np.allclose(m.hypot(dlarray(x), 3.0).extractdata(), np.hypot(x, 3.0), rtol=1e-5):
                wrong.append(x.shape)

    threads = [threading.Thread(target=work, args=(x,)) for x in arrays for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# the cache on disk ------------------------------------------------------------------------------------------------
TEXT = """def k(start, stop, table):
    y = float64_at(table[0])
    for i in range(start, stop):
        y[i] = {}.0 + i
"""


def works(number):
    """Whether a generated function is compiled and does what it says."""
    y = np.zeros(3)
    from minidl.kernels.cpu.threads import parallel_call

    parallel_call(loops.compiled(TEXT.format(number)), 3, 3, np.array([y.ctypes.data]), (y,))
    return y.tolist() == [number, number + 1, number + 2]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and nothing in memory."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # compiled code beside its source
    monkeypatch.setattr(loops, "_addresses", {})
    return tmp_path / "cache"


def test_the_folder_is_chosen_and_made(fresh):
    assert cache_folder(is_made=False) is None and not fresh.exists()
    assert works(1) and cache_folder(is_made=False) == fresh
    (file,) = fresh.glob("k_*.py")
    assert "Generated by minidl" in file.read_text() and not list(fresh.glob("*.tmp"))


@pytest.mark.parametrize("pattern", ["*.py", "**/*.nbi", "**/*.nbc"])
@pytest.mark.parametrize("rubbish", [b"", b"\xff\xfe no text"], ids=["empty", "garbage"])
def test_damaged_files_are_no_harm(fresh, monkeypatch, pattern, rubbish):
    assert works(2)
    damaged = list(fresh.glob(pattern))
    assert damaged
    for file in damaged:
        file.write_bytes(rubbish)
    monkeypatch.setattr(loops, "_addresses", {})
    assert works(2)


def test_no_folder_to_write_to(fresh, monkeypatch):
    fresh.write_text("a file stands in the way")
    assert works(3)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIDL_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert works(4)


def test_two_processes_at_once(fresh, way):
    code = ("from minidl import *\nf = dlaccelerate(lambda x: (x * 2 + 1).sum('all'))\n"
            "x = dlarray([1.0, 2.0])\nprint([f(x).item() for _ in range(3)])")  # fmt: skip
    root = str(Path(m.__file__).parents[1])
    environment = {**os.environ, "MINIDL_CACHE_DIR": str(fresh), "PYTHONPATH": root}
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for _ in range(3)]  # fmt: skip
    assert [process.communicate(timeout=100)[0].strip() for process in started] == ["[8.0, 8.0, 8.0]"] * 3
    kept = list(fresh.glob("k_*.py")) if way == "loops" else list(fresh.glob("native/*.o"))  # and that of a probe
    assert len(kept) == (1 if way == "loops" else 2) and not list(fresh.rglob("*.tmp"))
