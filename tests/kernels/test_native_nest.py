"""Native loops: they do what `engine.interpreter.run_loop` does, whatever the range and its chunks, and no more."""

from __future__ import annotations

import ctypes
import itertools
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from backends.machine_code import REGISTER, STACK, TARGETS, basic_blocks, count
from engine.interpreter import UFUNCS, run_loop
from hypothesis import given, settings

from minidl.backends.cpu.native.compiler import assembly, compiled, unavailable
from minidl.backends.cpu.native.emitter import Module
from minidl.backends.cpu.native.target import host
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.kernels.native import nest

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

LANES = host().lanes(4)
GUARD = 40  # elements before and after what is accessed


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path))


class Case(NamedTuple):
    """A loop, the elements and type of each buffer, the range, and its cuts into chunks and of these into tiles."""

    loop: Loop
    buffers: dict[int, tuple[int, str]]
    range: int
    chunks: list[list[int]]  # of each chunk the first indices of its tiles, and the end


def places(access, sizes):
    """The element of each iteration."""
    at = np.full(sizes, access.offset, np.int64)
    for axis, (n, stride) in enumerate(zip(sizes, access.strides)):
        at += (np.arange(n) * stride).reshape([n if i == axis else 1 for i in range(len(sizes))])
    return at


def memory(case, seed):
    """Buffers of small whole numbers, so that sums are exact; floats that no iteration loads are NaN."""
    r = np.random.default_rng(seed)
    flat = {}
    for buffer, (size, dtype) in case.buffers.items():
        x = flat[buffer] = r.integers(-3, 4, size).astype(dtype)
        if dtype.startswith("float"):
            loaded = np.zeros(size, bool)
            for s in case.loop.steps:
                if s.access is not None and s.access.buffer == buffer:
                    loaded[places(s.access, case.loop.sizes).ravel()] = True
            x[~loaded] = np.nan
    return flat


def function_of(loop, dim, *, is_known=False):
    """k(table of addresses, lo, hi, first); `is_known`: for the whole range, known when the code is written."""
    module = Module(host())
    f = module.function("k", ["ptr %t", "i64 %lo", "i64 %hi", "i64 %first"])
    buffers = sorted({*loop.reads, *loop.writes})
    pointers = {b: f.op(f"inttoptr i64 {f.load('i64', f.at('%t', 8 * b))} to ptr") for b in buffers}
    lo, hi, first = (0, loop.sizes[dim], 0) if is_known else ("%lo", "%hi", "%first")
    nest.write(f, loop, lo, hi, lambda buffer, is_stored: pointers[buffer], first, dim)
    code = compiled(module.text())
    types = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    function = ctypes.CFUNCTYPE(None, *types)(code.address("k"))

    def run(flat, lo=0, hi=0, first=0):
        table = np.zeros(max(flat) + 1, np.int64)
        for buffer, x in flat.items():
            table[buffer] = x.ctypes.data
        function(table.ctypes.data, lo, hi, first)
        return code

    return run


def run(case, flat):
    """Chunk by chunk from the last to the first, tile by tile; what is reduced along the range is joined at the end."""
    loop, dim = case.loop, case.range
    function = function_of(loop, dim)
    summed = [s for s in loop.stores if s.combine and not s.access.strides[dim]]
    partial = [{**flat, **{s.access.buffer: flat[s.access.buffer].copy() for s in summed}} for _ in case.chunks]
    for tiles, here in reversed(list(zip(case.chunks, partial))):
        for lo, hi in itertools.pairwise(tiles):
            function(here, lo, hi, tiles[0])
    for s in summed:
        at = np.unique(places(s.access, [n if stride else 1 for n, stride in zip(loop.sizes, s.access.strides)]))
        found = np.stack([here[s.access.buffer][at] for here in partial])
        flat[s.access.buffer][at] = UFUNCS[s.combine].reduce(found, axis=0)


def check(case, seed=0):
    flat, expected = memory(case, seed), memory(case, seed)
    with np.errstate(all="ignore"):
        run_loop(case.loop, expected.__getitem__)
        function_of(case.loop, case.range, is_known=True)(flat)
    for buffer, x in expected.items():
        np.testing.assert_array_equal(flat[buffer], x, err_msg=f"buffer {buffer}, range known")
    if case.loop.sizes[case.range]:
        flat = memory(case, seed)
        run(case, flat)
        for buffer, x in expected.items():
            np.testing.assert_array_equal(flat[buffer], x, err_msg=f"buffer {buffer}, in chunks")


# any loop --------------------------------------------------------------------------------------------------------
FLOATS = ("({0} + {1})", "({0} - 2)", "({0} - {1})", "({0} * 0.5)", "maximum({0}, {1})", "fmin({0}, 1)", "fabs({0})",
          "(-{0})", "where({0} > {1}, {0}, 0)", "({0} * {1})")  # fmt: skip
TRUTHS = ("({0} > {1})", "({0} == 0)", "({0} <= 1)")
REDUCTIONS = {
    "float": (("({0} + {1})", 0.0), ("fmax({0}, {1})", -np.inf), ("fmin({0}, {1})", np.inf), ("({0} * {1})", 1.0)),
    "bool": (("logical_or({0}, {1})", 0.0), ("logical_and({0}, {1})", 1.0)),
}
SIGNS = "where({0} > 0, -1, 1)"  # products of these are exact


def accessed(draw, buffer, sizes, fixed=(), *, may_rest=True):
    """(an access, elements of its buffer): any order, gaps, backwards, repeated along some dimensions."""
    order = draw(st.permutations(range(len(sizes)))) if draw(st.booleans()) else list(range(len(sizes)))
    resting = {i for i in order if may_rest and draw(st.integers(0, 3)) == 0} | set(fixed)
    strides, step = [0] * len(sizes), draw(st.sampled_from([1, 1, 1, 2, 5]))
    for i in reversed(order):
        if i not in resting:
            strides[i] = -step if draw(st.integers(0, 5)) == 0 else step
            step = step * max(sizes[i], 1) + draw(st.sampled_from([0, 0, 0, 1, 300]))
    low = sum(min(0, (n - 1) * s) for n, s in zip(sizes, strides) if n)
    high = sum(max(0, (n - 1) * s) for n, s in zip(sizes, strides) if n)
    return Access(buffer, GUARD - low, tuple(strides)), high - low + 1 + 2 * GUARD


@st.composite
def loops(draw, *, most=6000):
    long = st.sampled_from([2, 3, LANES - 1, LANES, LANES + 1, 2 * LANES, 3 * LANES + 2, 4 * LANES, 9 * LANES + 5])
    sizes: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        sizes.append(draw(st.sampled_from([2, 3, 4, 5, 7, 9, 65, 130, 1, 0])))
    sizes.append(draw(long) if draw(st.integers(0, 9)) else draw(st.sampled_from([1, 0])))
    while np.prod(sizes) > most:
        sizes.pop(0)
    buffers: dict[int, tuple[int, str]] = {}
    steps: list[Step] = []

    def of(kinds):
        return [Temp(i) for i, s in enumerate(steps) if s.dtype in kinds]

    def step(text, args, dtype, literal):
        count = 1 + max(k for k in range(3) if f"{{{k}}}" in text)
        steps.append(Step(text, tuple(args[:count]), dtype, literal))

    def load(dtype):
        buffer = len(buffers)
        access, size = accessed(draw, buffer, sizes)
        buffers[buffer] = size, dtype
        steps.append(Step("", (), dtype, access=access))

    load(draw(st.sampled_from(["float32", "float32", "float64"])))
    for _ in range(draw(st.integers(0, 3))):
        load(draw(st.sampled_from(["float32", "float32", "float64", "bool", "int64"])))
    for _ in range(draw(st.integers(0, 5))):
        what = draw(st.integers(0, 6))
        dtype = draw(st.sampled_from(["float32", "float64"]))
        some = of([dtype]) or of(["float32", "float64"])
        dtype = steps[some[0]].dtype
        a, b = draw(st.sampled_from(some)), draw(st.sampled_from(some))
        if what < 3:
            step(draw(st.sampled_from(FLOATS)), (a, b), dtype, dtype)
        elif what == 3:
            step(draw(st.sampled_from(TRUTHS)), (a, b), "bool", dtype)
        elif what == 4:
            x = draw(st.sampled_from(of(["bool", "int64", "float32", "float64"])))
            to = draw(st.sampled_from(["float32", "float64", "bool"]))
            literal = steps[x].dtype if steps[x].dtype.startswith("float") else to
            steps.append(Step("cast({0})", (x,), to, literal))
        elif what == 5 and of(["bool"]):
            c = draw(st.sampled_from(of(["bool"])))
            steps.append(Step("where({0}, {1}, {2})", (c, a, draw(st.sampled_from([b, 2, 0.5]))), dtype, dtype))
        elif of(["bool"]):
            c = draw(st.sampled_from(of(["bool"])))
            text = draw(st.sampled_from(["logical_xor({0}, {1})", "logical_not({0})"]))
            step(text, (c, draw(st.sampled_from(of(["bool"])))), "bool", "bool")
    stores: list[Store] = []
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.sampled_from(of(["bool", "float32", "float64"])[-3:]))
        dtype = steps[source].dtype
        reduced = [i for i in range(len(sizes)) if draw(st.integers(0, 2)) == 0] if draw(st.integers(0, 2)) else []
        text, identity = "", 0.0
        if reduced:
            text, identity = draw(st.sampled_from(REDUCTIONS["bool" if dtype == "bool" else "float"]))
            if text == "({0} * {1})":
                steps.append(Step(SIGNS, (source,), dtype, dtype))
                source = Temp(len(steps) - 1)
            if dtype == "float32" and draw(st.booleans()):
                dtype = "float64"  # as partial results are
        access, size = accessed(draw, len(buffers), sizes, reduced, may_rest=False)
        buffers[len(buffers)] = size, dtype
        stores.append(Store(source, access, dtype, text, identity))
    loop = Loop(tuple(sizes), steps, stores)
    dim = draw(st.integers(0, len(sizes) - 1))
    cuts = sorted({0, sizes[dim], *draw(st.lists(st.integers(0, sizes[dim]), max_size=3))})
    chunks = []
    for lo, hi in itertools.pairwise(cuts):
        chunks.append(sorted({lo, hi, *draw(st.lists(st.integers(lo, hi), max_size=2))}))
    return Case(loop, buffers, dim, chunks or [[0]])


@settings(max_examples=300, derandomize=True)
@given(loops())
def test_any_loop(case):
    check(case)


def simple(sizes, strides, combine="", dtype="float32", steps=(), stored=None):
    """A loop that loads one dense array, computes, and stores or reduces with these strides."""
    dims = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]
    load = Step("", (), dtype, access=Access(0, 0, tuple(dims)))
    store = Store(Temp(len(steps)), Access(1, 0, strides), stored or dtype, combine, 0.0)
    return Loop(sizes, [load, *steps], [store])


@pytest.mark.parametrize("value", [np.float32(2.5), np.float64(-1), np.bool_(True)])
def test_a_loop_of_one_turn(value):
    """What has no dimensions has one turn."""
    x, y = np.array([value, value]), np.zeros(2, value.dtype)
    function_of(simple((1,), (0,), dtype=value.dtype.name), 0)({0: x, 1: y}, 0, 1)
    assert y[0] == value and y[1] == 0


# accuracy --------------------------------------------------------------------------------------------------------
SUM = "({0} + {1})"
SUMS = {
    "all": ((40, 50, 33), (0, 0, 0)), "rows": ((3, 9001), (1, 0)), "columns": ((9001, 19), (0, 1)),
    "in the middle": ((3, 2000, 20), (20, 0, 1)), "around it": ((300, 5, 65), (0, 1, 0)),
    "twice": ((7, 11, 130, 9), (0, 9, 0, 1)), "few": ((2, 3), (0, 1)), "one vector": ((300, LANES), (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SUMS)
def test_sums_are_accurate(name, dtype, random):
    """Within the rounding of BLOCK terms in single precision, of all of them in double."""
    sizes, strides = SUMS[name]
    x = (random.normal(size=sizes) + 0.5).astype(dtype)
    wide = np.longdouble if dtype == "float64" else np.float64
    axes = tuple(i for i, stride in enumerate(strides) if not stride)
    expected, size = (f(x.astype(wide)).sum(axis=axes).ravel() for f in (np.positive, np.abs))
    for dim in range(len(sizes)):
        y = np.full(expected.size, np.nan, dtype)
        function_of(simple(sizes, strides, SUM, dtype), dim)({0: x.ravel(), 1: y}, 0, sizes[dim], 0)
        terms = nest.BLOCK if dtype == "float32" else x.size // y.size
        assert np.all(np.abs(y - expected) <= (terms + 2) * np.finfo(dtype).eps / 2 * size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pair", [((0, 0, 1), (0, 0, 0)), ((20, 0, 1), (1, 0, 0)), ((20, 0, 1), (3000, 1, 0))])
def test_sums_along_different_dimensions_of_one_loop_are_accurate(pair, dtype, random):
    """None of them adds up in memory, in single precision."""
    sizes = 3, 3000, 20
    loop = simple(sizes, pair[0], SUM, dtype)
    loop.stores.append(Store(Temp(0), Access(2, 0, pair[1]), dtype, SUM, 0.0))
    x = (random.normal(size=sizes) + 1).astype(dtype)
    flat = {0: x.ravel(), 1: np.zeros(9000, dtype), 2: np.zeros(9000, dtype)}
    function_of(loop, 0, is_known=True)(flat)
    for y, strides in zip((flat[1], flat[2]), pair):
        axes = tuple(i for i, stride in enumerate(strides) if not stride)
        expected = x.sum(axis=axes, dtype=np.longdouble).ravel()
        size = np.abs(x).sum(axis=axes, dtype=np.longdouble).ravel()
        terms = nest.BLOCK if dtype == "float32" else x.size // expected.size
        assert np.all(np.abs(y[: expected.size] - expected) <= (terms + 2) * np.finfo(dtype).eps / 2 * size)


def test_large_numbers_are_added_up_in_double(random):
    """Chunks with cells in double, as partial results are: nothing is lost where the sum is small."""
    x = np.repeat(np.float32([1e8, 1, -1e8]), 100 * LANES).reshape(3, 100, LANES)
    y = np.zeros(LANES)
    function = function_of(simple((3, 100, LANES), (0, 0, 1), SUM, stored="float64"), 0)
    for i in range(3):
        function({0: x.ravel(), 1: y}, i, i + 1, 0)
    np.testing.assert_array_equal(y, np.full(LANES, 100.0))


def test_bool_and_whole_number_reductions():
    x = np.zeros((5, 40), bool)
    x[2, 7] = True
    for text, identity, f in (("logical_or({0}, {1})", 0.0, np.any), ("logical_and({0}, {1})", 1.0, np.all)):
        for strides, axis in (((0, 1), 0), ((1, 0), 1), ((0, 0), None)):
            loop = simple((5, 40), strides, text, "bool")
            loop.stores[0] = Store(Temp(0), Access(1, 0, strides), "bool", text, identity)
            y = np.zeros(40, bool)
            function_of(loop, 0, is_known=True)({0: x.ravel(), 1: y})
            expected = np.atleast_1d(f(x, axis=axis))
            assert np.array_equal(y[: expected.size], expected) and not y[expected.size :].any()


def test_what_is_supported():
    loop = simple((4,), (1,))
    assert nest.is_supported(loop)
    for changed in (
        Loop((4,), [*loop.steps, Step("gamma({0})", (Temp(0),), "float32", "float32")], loop.stores),
        Loop((4,), [Step("", (), "complex64", access=Access(0, 0, (1,)))], loop.stores),
        Loop((4,), loop.steps, [Store(Temp(0), Access(1, 0, (0,)), "float32", "gcd({0}, {1})", 0.0)]),
        Loop((4,), loop.steps, [Store(Temp(0), Access(1, 0, (1,)), "float16")]),
    ):
        assert not nest.is_supported(changed)


# machine code ----------------------------------------------------------------------------------------------------


def chain(*texts):
    """Steps that each take the one before, and the first."""
    return [Step(text, (Temp(k), Temp(0)), "float32", "float32") for k, text in enumerate(texts)]


PLAIN = {
    "relu of an affine map": simple((50, 64, 32), (2048, 32, 1), steps=chain(
        "({0} * 1.5)", "({0} + 0.25)", "maximum({0}, 0)")),
    "a sum of squares": simple((50, 64, 32), (0, 0, 1), SUM, steps=chain("({0} * {1})")),
    "a sum of squares along vectors": simple((50, 4096), (1, 0), SUM, steps=chain("({0} * {1})")),
    "a step of momentum": Loop(
        (4096,),
        [Step("", (), "float32", access=Access(b, 0, (1,))) for b in range(3)] + [
            Step("({0} * 0.9)", (Temp(1),), "float32", "float32"),
            Step("({0} * 0.01)", (Temp(2),), "float32", "float32"),
            Step("({0} - {1})", (Temp(3), Temp(4)), "float32", "float32"),
            Step("({0} + {1})", (Temp(0), Temp(5)), "float32", "float32"),
        ],
        [Store(Temp(5), Access(3, 0, (1,)), "float32"), Store(Temp(6), Access(4, 0, (1,)), "float32")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PLAIN)
def test_inner_loops_stay_in_registers(name, target):
    module = Module(TARGETS[target])
    f = module.function("k", [*[f"ptr %b{k}" for k in range(5)], "i64 %lo", "i64 %hi"])
    nest.write(f, PLAIN[name], "%lo", "%hi", lambda buffer, is_stored: f"%b{buffer}", "%lo", 0)
    blocks = basic_blocks(assembly(module.text(), TARGETS[target]))
    inner = [block for block in blocks if count(REGISTER[target], block) > 3]
    assert inner and not any(count(STACK, block) for block in inner)
