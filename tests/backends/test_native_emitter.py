"""Emitted functions, executed on this processor; the same text in the assembly code of others."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import struct
import sys

import numpy as np
import pytest

from minidl.backends.cpu.native import compiler
from minidl.backends.cpu.native.compiler import assembly, compiled, unavailable
from minidl.backends.cpu.native.emitter import LLVM_TYPES, Function, Module, literal, split_type, with_lanes
from minidl.backends.cpu.native.target import Target, described, host

needs_native = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path))


def run(write, *args, texts=()):
    """Call a function whose body `write(f)` appends: its parameters are %a, %b, ...; arrays are pointers, ints i64."""
    module = Module(host())
    params = [f"{'ptr' if isinstance(x, np.ndarray) else 'i64'} %{name}" for name, x in zip("abcdef", args)]
    write(module.function("k", params))
    module.texts += texts
    code = compiled(module.text())
    types = [ctypes.c_void_p if isinstance(x, np.ndarray) else ctypes.c_int64 for x in args]
    call = ctypes.CFUNCTYPE(None, *types)(code.address("k"))
    call(*[x.ctypes.data if isinstance(x, np.ndarray) else x for x in args])


def calls(write, array, *numbers):
    """run, for each number, with a zeroed array and the number; what lies in the array then."""
    found = []
    for number in numbers:
        array[...] = 0
        run(write, array, number)
        found.append(array.tolist())
    return found


# loops and branches -------------------------------------------------------------------------------------------------
def count_up(f, i):
    """a[i] += 1"""
    at = f.at("%a", f.mul(i, 8))
    f.store("i64", f.add(f.load("i64", at), 1), at)


@needs_native
@pytest.mark.parametrize("start, step", [(0, 1), (1, 1), (0, 3), (2, 4)])
def test_loops_that_may_have_no_turn(start, step):
    def write(f):
        with f.loop(start, "%b", step, is_certain=False) as i:
            count_up(f, i)

    counts = range(-1, 10)
    expected = [[int(i in range(start, n, step)) for i in range(12)] for n in counts]
    assert calls(write, np.zeros(12, np.int64), *counts) == expected


@needs_native
@pytest.mark.parametrize("stop", range(8))
def test_loops_of_known_length(stop):
    def write(f):
        with f.loop(2, stop, 2) as i:
            assert isinstance(i, int) == (stop <= 4), "one turn, or none, is no loop"
            with f.loop(0, stop, is_certain=False) as _:  # a loop inside, unreachable if there is no turn
                count_up(f, i)

    assert calls(write, np.zeros(8, np.int64), 0) == [[stop * (i in range(2, stop, 2)) for i in range(8)]]


@needs_native
def test_loops_from_a_start_to_a_stop_and_variables_across_them():
    def write(f):
        total = f.var("i64", "0")
        with f.loop("%b", "%c", is_certain=False) as i:
            square = f.var("i64", "0")
            with f.loop(0, i, is_certain=False) as _:
                f.put("i64", square, f.add(f.get("i64", square), i))
            f.put("i64", total, f.add(f.get("i64", total), f.get("i64", square)))
        f.store("i64", f.get("i64", total), "%a")

    y = np.zeros(1, np.int64)
    for start, stop in [(0, 0), (3, 2), (0, 5), (4, 9)]:
        run(write, y, start, stop)
        assert y[0] == sum(i * i for i in range(start, stop))


@needs_native
def test_when_and_choice():
    def write(f):
        with f.loop(0, 8) as i:
            with f.when(f.less(i, "%b")):
                count_up(f, 0)
            with f.choice(f.less("%b", i)) as otherwise:
                count_up(f, 1)
                with f.when(f.less(6, i)):
                    count_up(f, 3)
                otherwise()
                with f.loop(0, "%b", is_certain=False) as _:
                    count_up(f, 2)

    expected = [[n, 7 - n, (n + 1) * n, int(n < 7)] for n in range(8)]
    assert calls(write, np.zeros(4, np.int64), *range(8)) == expected


# whole numbers ------------------------------------------------------------------------------------------------------
def test_known_numbers_take_no_instructions():
    f = Function("k", [], host() if unavailable() is None else described("aarch64", "generic", ""))
    assert (f.add(2, 3), f.sub(2, 3), f.mul(2, 3), f.div(7, 2), f.mod(7, 2), f.smaller(7, 2)) == (5, -1, 6, 3, 1, 2)
    same = [f.add("%n", 0), f.add(0, "%n"), f.sub("%n", 0), f.mul(1, "%n"), f.mul("%n", 1), f.div("%n", 1)]
    assert same == ["%n"] * 6
    assert (f.mul("%n", 0), f.mul(0, "%n"), f.mod("%n", 1)) == (0, 0, 0) and f.at("%p", 0) == "%p"
    assert f.finished() == "define void @k() #0 {\nentry:\n  ret void\n}\n"


@needs_native
def test_whole_numbers():
    def write(f):
        results = [f.add("%b", 5), f.sub(5, "%b"), f.mul("%b", -3), f.div("%b", 7), f.mod("%b", 7), f.smaller("%b", 9)]
        for k, value in enumerate(results):
            f.store("i64", value, f.at("%a", 8 * k))

    numbers = [0, 6, 9, 100, 2**40 + 3]
    expected = [[n + 5, 5 - n, -3 * n, n // 7, n % 7, min(n, 9)] for n in numbers]
    assert calls(write, np.zeros(6, np.int64), *numbers) == expected


# masks --------------------------------------------------------------------------------------------------------------
@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
@pytest.mark.parametrize("is_known", [False, True])
def test_masked_accesses_leave_their_neighbours(dtype, is_known):
    """For every count of lanes; those outside the mask are read as 0."""
    element = LLVM_TYPES[dtype]
    lanes = host().lanes(4)
    kind = f"<{lanes} x {element}>"
    source = (np.arange(lanes) + 1).astype(np.dtype(dtype) if dtype != "bool" else np.int8)

    def write(f, count):
        mask = f.mask(lanes, count)
        value = f.masked_load(kind, "%b", mask)
        f.store(kind, value, "%c")
        f.masked_store(kind, value, f.at("%a", source.itemsize), mask)

    for n in [-(2**31), -1, *range(lanes + 2), 2**31 + 1, 2**32, 2**40 + 3]:
        inside = np.arange(lanes) < n
        y, whole = np.full(lanes + 2, 77, source.dtype), np.full(lanes, 55, source.dtype)
        run(lambda f, n=n: write(f, n if is_known else "%d"), y, source, whole, n)
        np.testing.assert_array_equal(whole, np.where(inside, source, 0))
        np.testing.assert_array_equal(y, [77, *np.where(inside, source, 77), 77])


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux for a page")
def test_masked_accesses_at_the_end_of_memory():
    """The page after the last element may be neither read nor written."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    numbers = np.frombuffer(pages, np.float32, mmap.PAGESIZE // 4)
    numbers[:] = np.arange(numbers.size)
    tail = numbers[-3:]

    def write(f):
        kind, mask = f.vector("float"), f.mask(f.lanes(4), "%b")
        x = f.masked_load(kind, "%a", mask)
        f.masked_store(kind, f.fmul(kind, x, literal(kind, 2)), "%a", mask)

    run(write, tail, 3)
    np.testing.assert_array_equal(tail, 2 * np.arange(numbers.size)[-3:])
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


# numbers ------------------------------------------------------------------------------------------------------------
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.75, -2.75, 100.0, 0.1, 1e-30]


@needs_native
@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("new", ["float32", "float64", "bool", "int64"])
@pytest.mark.parametrize("old", ["float32", "float64", "bool", "int64"])
def test_converting(old, new, lanes):
    a, b = (with_lanes(lanes, LLVM_TYPES[dtype]) for dtype in (old, new))

    def write(f):
        for at in range(0, 8, lanes):
            value = f.load(a, f.at("%b", at * x.itemsize))
            f.store(b, f.convert(value, a, b), f.at("%a", at * y.itemsize))

    x = np.array([-3, 256, 2**40, 1, 0, 7, 1, 0] if old == "int64" else NUMBERS[:8]).astype(old)
    y = np.empty(8, new)
    run(write, y, x)
    np.testing.assert_array_equal(y, x.astype(new))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
def test_converting_truths(dtype):
    """i1 is what comparisons give; nan is true."""
    kind, truth = f"<8 x {LLVM_TYPES[dtype]}>", "<8 x i1>"
    numbers = [0, 1, 2, 0, -0.0, 3, np.nan, 0.1] if dtype.startswith("float") else [0, 1, 1, 0, 0, 1, 1, 0]
    x, y, z = np.array(numbers).astype(dtype), np.empty(8, dtype), np.empty(8, np.bool_)

    def write(f):
        value = f.convert(f.load(kind, "%a"), kind, truth)
        f.store(kind, f.convert(value, truth, kind), "%b")
        f.store("<8 x i8>", f.convert(value, truth, "<8 x i8>"), "%c")

    run(write, x, y, z)
    np.testing.assert_array_equal(z, x.astype(bool))
    np.testing.assert_array_equal(y, x.astype(bool).astype(dtype))


@needs_native
def test_narrow_whole_numbers_keep_their_sign():
    def write(f):
        f.store("i64", f.convert(f.convert("%b", "i64", "i32"), "i32", "i64"), "%a")

    assert calls(write, np.zeros(1, np.int64), -5, 7) == [[-5], [7]]


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_literals(dtype):
    numbers = [*NUMBERS, np.inf, -np.inf, np.nan, 1e39, -1e39, 1e-320, 1 / 3]
    kind = LLVM_TYPES[dtype]
    y = np.empty((len(numbers), 2), dtype)

    def write(f):
        for k, number in enumerate(numbers):
            f.store(f"<2 x {kind}>", literal(f"<2 x {kind}>", number), f.at("%a", k * 2 * y.itemsize))

    run(write, y)
    with np.errstate(all="ignore"):
        expected = np.array(numbers).astype(dtype)
    np.testing.assert_array_equal(y, np.stack([expected] * 2, 1))
    np.testing.assert_array_equal(np.signbit(y[:, 0]), np.signbit(expected))


def test_literals_of_other_types():
    assert literal("i64", 3) == "3" and literal("<2 x i1>", True) == "<i1 1, i1 1>"
    assert literal("float", 0.1) == f"0x{struct.unpack('Q', struct.pack('d', np.float32(0.1)))[0]:016X}"
    assert split_type("<4 x double>") == (4, "double") and split_type("i8") == (1, "i8")
    assert with_lanes(1, "float") == "float" and with_lanes(16, "i1") == "<16 x i1>"


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("is_vector", [False, True])
def test_arithmetic(dtype, is_vector, random):
    element = LLVM_TYPES[dtype]
    lanes = host().lanes(np.dtype(dtype).itemsize) if is_vector else 1
    kind = with_lanes(lanes, element)
    a, b = random.uniform(0.5, 2, (2, lanes)).astype(dtype)
    b[0] = a[0]
    y = np.empty((9, lanes), dtype)

    def write(f):
        x, z = f.load(kind, "%b"), f.load(kind, "%c")
        is_less = f.compare("olt", kind, x, z)
        results = [
            f.fadd(kind, x, z), f.fsub(kind, x, z), f.fmul(kind, x, z), f.fdiv(kind, x, z), f.fneg(kind, x),
            f.sqrt(kind, x), f.select(kind, is_less, x, z), f.intrinsic("maxnum", kind, x, z),
            f.binary("frem", kind, literal(kind, 0.0), z),
        ]  # fmt: skip
        for k, value in enumerate(results):
            f.store(kind, value, f.at("%a", k * a.nbytes))

    run(write, y, a, b)
    expected = [a + b, a - b, a * b, a / b, -a, np.sqrt(a), np.minimum(a, b), np.maximum(a, b), 0 * a]
    np.testing.assert_array_equal(y, np.array(expected, dtype))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_rounds_once(dtype):
    kind = with_lanes(host().lanes(np.dtype(dtype).itemsize), LLVM_TYPES[dtype])
    tiny = np.finfo(dtype).eps
    x = np.array([1 + tiny, -(1 + 2 * tiny)], dtype)  # (1 + e)^2 = 1 + 2 e + e^2
    y = np.empty(split_type(kind)[0], dtype)

    def write(f):
        a, c = (f.splat(kind, f.load(LLVM_TYPES[dtype], f.at("%b", k * x.itemsize))) for k in range(2))
        f.store(kind, f.fma(kind, a, a, c), "%a")

    run(write, y, x)
    np.testing.assert_array_equal(y, np.full_like(y, tiny * tiny))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_totals_and_lanes(dtype, lanes):
    element = LLVM_TYPES[dtype]
    kind = with_lanes(lanes, element)
    x, y = np.arange(1, lanes + 1).astype(dtype), np.empty(3, dtype)

    def write(f):
        value = f.load(kind, "%b")
        results = f.total(kind, value), f.lane(kind, value, 0), f.lane(kind, value, "%c")
        for k, one in enumerate(results):
            f.store(element, one, f.at("%a", k * y.itemsize))

    run(write, y, x, lanes - 1)
    assert y.tolist() == [lanes * (lanes + 1) / 2, 1, lanes]


@needs_native
def test_variables_of_many_kinds():
    """Variables become registers: nothing of them is left in memory."""
    target = host()
    module = Module(target)
    f = module.function("k", ["ptr %a", "ptr %b", "i64 %n"])
    kind = f.vector("float")
    sums = [f.var(kind, literal(kind, k)) for k in range(4)]
    last, is_last = f.var("float", literal("float", 0)), f.var("i1", "false")
    with f.loop(0, "%n", is_certain=False) as i:
        x = f.load("float", f.at("%b", f.mul(i, 4)))
        f.put("float", last, x)
        f.put("i1", is_last, f.less(i, 5))
        for s in sums:
            f.put(kind, s, f.fadd(kind, f.get(kind, s), f.splat(kind, x)))
    for k, s in enumerate(sums):
        f.store("float", f.total(kind, f.get(kind, s)), f.at("%a", 4 * k))
    f.store("float", f.get("float", last), f.at("%a", 16))
    f.store("i8", f.convert(f.get("i1", is_last), "i1", "i8"), f.at("%a", 20))
    found = str(compiler._optimized(module.text(), compiler.machine(target)))
    assert "alloca" in module.text() and "alloca" not in found

    lanes, x, y = f.lanes(4), np.arange(1, 8, dtype=np.float32), np.zeros(6, np.float32)
    code = compiled(module.text())
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(code.address("k"))
    for n in (0, 3, 7):
        call(y.ctypes.data, x.ctypes.data, n)
        assert y[:4].tolist() == [lanes * (k + x[:n].sum()) for k in range(4)]
        assert y[4] == (x[n - 1] if n else 0) and y[5:].view(np.int8)[0] == (0 < n <= 5)


# modules ------------------------------------------------------------------------------------------------------------
@needs_native
def test_functions_call_each_other_and_texts():
    twice = "define double @twice(double %x) #0 {\n  %y = fadd double %x, %x\n  ret double %y\n}\n"
    module = Module(host())
    f = module.function("k", ["ptr %a"])
    for k, name in enumerate(["twice", "thrice", "sqrt"]):  # one by hand, one of this module, one of the C library
        value = f.call(name, "double", "double 16.0", types="double")
        f.store("double", value, f.at("%a", 8 * k))
    f.call("nothing", "void", "i64 7", types="i64")
    g = module.function("thrice", ["double %x"], returns="double")
    g.do("ret double " + g.fadd("double", g.call("twice", "double", "double %x", types="double"), "%x"))
    module.function("nothing", ["i64 %n"])
    module.texts.append(twice)
    y, code = np.empty(3), compiled(module.text())
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("k"))(y.ctypes.data)
    assert y.tolist() == [32, 48, 4]


# other processors ---------------------------------------------------------------------------------------------------
NEOVERSE = described("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+fullfp16")
HASWELL = described("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma")
SKYLAKE = described("x86_64-unknown-linux-gnu", "skylake-avx512", "+avx512f,+avx512vl,+avx512dq,+avx2,+fma")


def known(target: Target) -> Target:
    """The target, or a skipped test where llvmlite was built without it; the wheels for Linux and x86-64 have all."""
    if not (sys.platform.startswith("linux") and platform.machine() == "x86_64"):
        try:
            compiler.machine(target)
        except RuntimeError as error:
            pytest.skip(f"this llvmlite has no {target.triple}: {error}")
    return target


def written_for(target):
    """y = 3 x + y of any length, with a masked end, and a total in float64."""
    module = Module(target)
    f = module.function("k", ["ptr %y", "ptr %x", "i64 %n"])
    kind, lanes = f.vector("float"), f.lanes(4)
    total = f.var("double", literal("double", 0))
    whole = f.mul(f.div("%n", lanes), lanes)
    with f.loop(0, whole, lanes, is_certain=False) as i:
        x, y = (f.at(p, f.mul(i, 4)) for p in ("%x", "%y"))
        value = f.fma(kind, f.load(kind, x), literal(kind, 3), f.load(kind, y))
        f.store(kind, value, y)
        wide = f.total(kind, value)
        f.put("double", total, f.fadd("double", f.get("double", total), f.convert(wide, "float", "double")))
    with f.when(f.less(whole, "%n")):
        mask = f.mask(lanes, f.sub("%n", whole))
        x, y = (f.at(p, f.mul(whole, 4)) for p in ("%x", "%y"))
        value = f.fma(kind, f.masked_load(kind, x, mask), literal(kind, 3), f.masked_load(kind, y, mask))
        f.masked_store(kind, value, y, mask)
    f.store("double", f.get("double", total), "%y")
    return module.text()


@needs_native
@pytest.mark.parametrize(
    "target, lanes, words, others",
    [
        (NEOVERSE, 4, [r"fmla\s+v\d+\.4s", r"fcvt\s+d\d+, s\d+"], ["ymm"]),
        (HASWELL, 8, [r"vfmadd\w+ps\s.*%ymm", r"vmaskmovps\s"], ["zmm", "fmla"]),
        (SKYLAKE, 16, [r"vfmadd\w+ps\s.*%zmm", r"%zmm\d+ \{%k\d\} \{z\}"], ["fmla"]),
    ],
    ids=lambda x: x.cpu if isinstance(x, Target) else "",
)
def test_assembly_of_other_processors(target, lanes, words, others):
    found = assembly(written_for(known(target)), target)
    assert target.lanes(4) == lanes and target.has_fma
    for word in words:
        assert re.search(word, found), f"no {word} in\n{found}"
    assert not any(word in found for word in others)


@needs_native
@pytest.mark.parametrize("n", [0, 1, 5, 16, 33, 64])
def test_what_the_assembly_was_made_of_runs_here(n, random):
    x, y = random.standard_normal((2, n + 2)).astype(np.float32)
    expected = y.copy()
    expected[:n] += 3 * x[:n]
    code = compiled(written_for(host()))
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(code.address("k"))
    call(y.ctypes.data, x.ctypes.data, n)
    np.testing.assert_allclose(y[2:], expected[2:], rtol=1e-5, atol=1e-6)  # the total lies in the first two
    whole = n - n % host().lanes(4)
    np.testing.assert_allclose(y[:2].view(np.float64)[0], expected[:whole].sum(dtype=np.float64), rtol=1e-5, atol=1e-5)


def test_described_processors():
    assert [t.vector_bytes for t in (NEOVERSE, HASWELL, SKYLAKE)] == [16, 32, 64]
    assert [t.registers for t in (NEOVERSE, HASWELL, SKYLAKE)] == [32, 16, 32]
    assert [t.is_x86 for t in (NEOVERSE, HASWELL, SKYLAKE)] == [False, True, True]
    assert not described("x86_64-unknown-linux-gnu", "nehalem", "+sse4.2").has_fma
    assert not described("x86_64-unknown-linux-gnu", "odd", "+avx2,-fma").has_fma
