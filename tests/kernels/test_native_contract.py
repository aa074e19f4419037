"""Native contractions: their numbers against NumPy, the memory they leave alone, and what LLVM makes of them."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import sys
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from backends.machine_code import MOVE, MULTIPLY_ADD, STACK, TARGETS, basic_blocks, count
from engine.programs import recorded
from hypothesis import example, given, settings

import minidl as m
from minidl.backends import cpu
from minidl.backends.cpu.native.compiler import assembly, compiled, unavailable
from minidl.backends.cpu.native.emitter import Module
from minidl.backends.cpu.native.target import host
from minidl.core.dlarray import dlarray
from minidl.engine.contract import Contract
from minidl.engine.fuse import schedule
from minidl.engine.layout import choose_layout, dense, order_of
from minidl.engine.passes import expand, simplify
from minidl.kernels.native.contract import Dim, Operand, best_block, contract, form_of, merged, packed_dim

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

ELEMENTS = {"float32": "float", "float64": "double"}
LANES = {dtype: host().lanes(np.dtype(dtype).itemsize) for dtype in ELEMENTS}
GUARD = 80  # elements before and after each operand


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MINIDL_CACHE_DIR", str(tmp_path))


class Nest(NamedTuple):
    """A nest: its dimensions, the type, and whether the result is added to what is there (None: it never is)."""

    dims: tuple[Dim, ...]
    dtype: str
    keeps: bool | None


def places(dims, operand):
    """(the element that each index of the nest lies at, elements in all), guards included."""
    at = np.zeros([d.size for d in dims], np.int64)
    for axis, d in enumerate(dims):
        shape = [1] * len(dims)
        shape[axis] = d.size
        at = at + (np.arange(d.size) * d[operand]).reshape(shape)
    at += GUARD - (at.min() if at.size else 0)
    return at, int(at.max(initial=GUARD)) + 1 + GUARD


def function_of(nest, starts, target):
    """The text of k(y, a, b, keeps)."""
    module = Module(target)
    f = module.function("k", ["ptr %y", "ptr %a", "ptr %b", "i64 %keeps"])
    keeps = None if nest.keeps is None else f.op("icmp ne i64 %keeps, 0")
    operands = [Operand(f"%{name}", start) for name, start in zip("yab", starts)]
    contract(f, ELEMENTS[nest.dtype], list(nest.dims), *operands, keeps=keeps)
    return module.text()


def call(nest, starts, arrays):
    code = compiled(function_of(nest, starts, host()))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(code.address("k"))
    function(*[x.ctypes.data for x in arrays], int(bool(nest.keeps)))


def check(nest, seed=0):
    """Run a nest among NaNs: it must read and write its own elements only, and be right to rounding."""
    r = np.random.default_rng(seed)
    dims, dtype = nest.dims, nest.dtype
    at = [places([d for d in dims if d.y], 1), places(dims, 2), places(dims, 3)]
    arrays = [np.full(size, np.nan, dtype) for _, size in at]
    (where, _), _, _ = at
    for array, (own, _) in zip(arrays, at):
        array[own.ravel()] = r.normal(size=own.size)
    y, a, b = arrays
    is_own = np.zeros(y.size, bool)
    is_own[where.ravel()] = True
    y[~is_own] = r.normal(size=y.size - where.size)
    if not nest.keeps:
        y[is_own] = np.nan  # to be forgotten
    before = y.copy()
    call(nest, [int(own.ravel()[0]) if own.size else GUARD for own, _ in at], arrays)
    np.testing.assert_array_equal(y[~is_own], before[~is_own])
    sums = tuple(i for i, d in enumerate(dims) if not d.y)
    wide = np.longdouble if dtype == "float64" else np.float64
    products = a[at[1][0]].astype(wide) * b[at[2][0]].astype(wide)
    old = before[where].astype(wide) if nest.keeps else np.zeros(where.shape, wide)
    terms = int(np.prod([dims[i].size for i in sums], dtype=int))
    bound = (terms + 2) * np.finfo(dtype).eps / 2 * (np.abs(products).sum(axis=sums) + np.abs(old))  # any order of sums
    assert np.all(np.abs(y[where] - (products.sum(axis=sums) + old)) <= bound)


# any nest --------------------------------------------------------------------------------------------------------
ROLES = {"row": (1, 1, 0), "column": (1, 0, 1), "outer": (1, 1, 1), "sum": (0, 1, 1), "of a": (0, 1, 0),
         "of b": (0, 0, 1), "filled": (1, 0, 0)}  # fmt: skip


def laid_out(draw, sizes, moving, fastest, may_turn):
    """Strides of an operand along the dimensions that it moves along, in any order, with gaps, some backwards."""
    order = draw(st.permutations(moving))
    if fastest is not None:
        order = [i for i in order if i != fastest] + [fastest]
    strides, step = {}, 1 if fastest is not None else draw(st.sampled_from([1, 1, 2]))
    for i in reversed(order):
        turn = may_turn and i != fastest and draw(st.integers(0, 4)) == 0
        strides[i] = -step if turn else step
        step = step * max(sizes[i], 1) + draw(st.sampled_from([0, 0, 0, 1, 3]))
    return [strides.get(i, 0) for i in range(len(sizes))]


@st.composite
def nests(draw, *, most=20000):
    """Nests of all forms, and some that have none, for which one lane must do."""
    dtype = draw(st.sampled_from(["float32", "float32", "float64"]))
    lanes = LANES[dtype]
    form = draw(st.sampled_from(["broadcast", "broadcast", "each", "dot", "none"]))
    roles = [{"broadcast": "column", "each": "outer", "dot": "sum", "none": "row"}[form]]
    roles += draw(st.lists(st.sampled_from([*ROLES][:4] * 3 + [*ROLES][4:]), max_size=4))
    longest = st.sampled_from([1, 2, 3, lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 2, 5 * lanes + 1])
    sizes = [draw(longest)]
    if form == "dot":
        sizes = [max(sizes[0], lanes)]
    for _ in roles[1:]:
        room = max(1, most // int(np.prod(sizes)))
        sizes.append(draw(st.sampled_from([n for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 30) if n <= room])))
    if draw(st.integers(0, 15)) == 0:
        sizes[draw(st.integers(0, len(sizes) - 1))] = 0
    fast = {"broadcast": (0, None, 0), "each": (0, 0, 0), "dot": (None, 0, 0), "none": (None, None, None)}[form]
    columns = [
        laid_out(draw, sizes, [i for i, role in enumerate(roles) if ROLES[role][k]], fast[k], k > 0) for k in range(3)
    ]
    for i, role in enumerate(roles):  # a sum that slides along a kept dimension, as the taps of a filter do
        if role == "sum" and i and draw(st.booleans()):
            steps = [abs(columns[1][k]) for k, other in enumerate(roles) if ROLES[other][1] and k and k != i]
            if steps:
                columns[1][i] = draw(st.sampled_from(steps)) * draw(st.sampled_from([1, 1, 2, -1]))
    if draw(st.booleans()):
        columns[1], columns[2] = columns[2], columns[1]
    dims = list(zip(sizes, *columns))
    dims = [Dim(*d) for d in draw(st.permutations(dims))]
    return Nest(tuple(dims), dtype, draw(st.sampled_from([None, None, False, True])))


@settings(max_examples=400, derandomize=True)
@given(nests())
@example(Nest((), "float32", None))
@example(Nest((Dim(1, 1, 0, 1),), "float64", True))
def test_any_nest(nest):
    check(nest)


# forms -----------------------------------------------------------------------------------------------------------
def forms(lanes):
    """name: (dimensions, the form they have, whether a and b change places)."""
    images = [Dim(3, 700, 600, 0), Dim(5, 100, 120, 0), Dim(6, 16, 20, 0)]
    sliding = [Dim(3, 0, 120, 400), Dim(2, 0, 20, 200), Dim(7, 0, 1, 20)]
    long, far = 2 * lanes + 3, 41 * lanes
    return {
        "one number": ([Dim(1, 1, 0, 1)], None, False),
        "a row times a number": ([Dim(long, 1, 0, 1)], "broadcast", False),
        "outer product": ([Dim(5, long, 1, 0), Dim(long, 1, 0, 1)], "broadcast", False),
        "outer product, other way": ([Dim(long, 1, 1, 0), Dim(5, long, 0, 1)], "broadcast", True),
        "matrix product": ([Dim(9, long, 6, 0), Dim(long, 1, 0, 1), Dim(6, 0, 1, long)], "broadcast", False),
        "three row dimensions": ([*images, *sliding, Dim(16, 1, 0, 1)], "broadcast", False),
        "their taps backwards": (
            [*images, *[d._replace(a=-d.a) for d in sliding[:2]], sliding[2], Dim(16, 1, 0, 1)], "broadcast", False,
        ),
        "vectors to spare": ([Dim(8 * lanes, 1, 0, 1), Dim(3, 0, 1, 8 * lanes), Dim(40, 8 * lanes, 3, 0)],
                             "broadcast", False),
        "products of two vectors": ([Dim(4, long, long, long), Dim(long, 1, 1, 1)], "each", False),
        "channel by channel": (
            [Dim(4, 5 * long, 6 * long, 0), Dim(5, long, long, 0), Dim(long, 1, 1, 1), Dim(2, 0, long, long)],
            "each", False,
        ),
        "a scalar product": ([Dim(long, 0, 1, 1)], "dot", False),
        "many scalar products": ([Dim(long, 0, 1, 1), Dim(40, 50, long, 0), Dim(50, 1, 0, long)], None, False),
        "of few results": ([Dim(40 * lanes, 0, 1, 1), Dim(2, 3, 40 * lanes, 0), Dim(3, 1, 0, 40 * lanes)],
                           "dot", False),
        "with columns of two kinds": (
            [Dim(far - 3, 0, 1, 1), Dim(2, 8, far, 0), Dim(2, 4, 0, 2 * far), Dim(2, 1, 0, far)], "dot", False,
        ),
        "apart in y": ([Dim(long, 2, 0, 1), Dim(3, 3 * long, 1, 0)], None, False),
    }  # fmt: skip


NAMES = list(forms(16))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_forms(name, dtype):
    dims, form, is_swapped = forms(LANES[dtype])[name]
    found = form_of(dims, LANES[dtype])
    assert (found and found.name) == form
    assert found is None or found.is_swapped == is_swapped
    for keeps in (None, False, True):
        check(Nest(tuple(dims), dtype, keeps))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("rest", range(1, 9))
def test_every_rest_of_a_vector(rest, dtype):
    """Masked ends, one after the other, with one vector and with several."""
    for n in {rest * LANES[dtype] // 8, LANES[dtype] + rest, 3 * LANES[dtype] + rest - 1} - {0, 1}:
        check(Nest((Dim(6, n + 1, 4, 0), Dim(n, 1, 0, 1), Dim(4, 0, 1, n)), dtype, rest % 2 == 0))
        check(Nest((Dim(3, n + 1, n, n), Dim(n, 1, 1, 1), Dim(2, 0, 3 * n, 1)), dtype, None))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux for pages")
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_operands_at_the_end_of_memory(dtype):
    """The page after the last element of each operand may be neither read nor written."""
    lanes = LANES[dtype]
    n = lanes + 3
    table = [
        (Dim(5, n, 3, 0), Dim(n, 1, 0, 1), Dim(3, 0, 1, n)),
        (Dim(2, n, n, n), Dim(n, 1, 1, 1)),
        (Dim(n, 0, 1, 1), Dim(2, 1, n, 0)),
        (Dim(n, 1, 1, 0), Dim(2, n, 0, 3), Dim(3, 0, n, 1)),
    ]
    libc, ends, pages = ctypes.CDLL(None), [], []
    for _ in range(3):
        pages.append(mmap.mmap(-1, 2 * mmap.PAGESIZE))
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages[-1]))
        assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
        ends.append(np.frombuffer(pages[-1], dtype, mmap.PAGESIZE // np.dtype(dtype).itemsize))
    for dims in table:
        assert form_of(dims, lanes) is not None
        sizes = [1 + sum((d.size - 1) * d[k] for d in dims) for k in (1, 2, 3)]
        y, a, b = (whole[-size:] for whole, size in zip(ends, sizes))
        y[:], a[:], b[:] = 0, 1, 1
        call(Nest(dims, dtype, None), (0, 0, 0), [y, a, b])
        assert set(y.tolist()) == {float(np.prod([d.size for d in dims if not d.y]))}
    for page in pages:
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ) == 0


# choices ---------------------------------------------------------------------------------------------------------
@settings(max_examples=300, derandomize=True)
@given(nests(), st.sampled_from([2, 4, 8, 16]))
def test_a_form_says_how_vectors_can_be_loaded(nest, lanes):
    found = form_of(nest.dims, lanes)
    if found is None:
        return
    d = nest.dims[found.vector]
    d = d.swapped if found.is_swapped else d
    assert (bool(d.y), d.a, d.b) == {"broadcast": (True, 0, 1), "each": (True, 1, 1), "dot": (False, 1, 1)}[found.name]
    other = form_of([d.swapped for d in nest.dims], lanes)
    assert other is not None and other.name == found.name or found.name == "dot"


@settings(max_examples=300, derandomize=True)
@given(nests(), st.sampled_from([4, 16]))
def test_copies_that_packed_dim_asks_for_give_a_form(nest, lanes):
    """As choose_layout makes them: an operand anew without gaps, one dimension fastest; after two at the latest."""
    dims = list(nest.dims)
    for _ in range(3):
        wanted = packed_dim(dims)
        if form_of(dims, lanes) is not None or wanted is None:
            break
        i, is_a = wanted
        k = 2 if is_a else 3
        assert dims[i].y == 1 and dims[i][k] and not dims[i][5 - k]
        order = [n for n in range(len(dims)) if n != i and dims[n][k]] + [i]
        strides = dense([d.size if d[k] else 1 for d in dims], order)
        dims = [d._replace(**{"yab"[k - 1]: s if d[k] else 0}) for d, s in zip(dims, strides)]
    assert form_of(dims, lanes) is not None or packed_dim(dims) is None


@settings(max_examples=100, derandomize=True)
@given(
    st.integers(1, 70), st.sampled_from([1, 2, 3, 7, 28]), st.integers(1, 20), st.sampled_from([1, 9, 288, 5000]),
    st.sampled_from([14, 16, 30, 32]), st.sampled_from(["broadcast", "each", "dot"]),
)  # fmt: skip
def test_blocks_fit_the_registers(inner, outer, vectors, steps, registers, form):
    block = best_block(inner, outer, vectors, steps, registers, form == "each", form == "dot")
    assert 1 <= block.inner <= inner and 1 <= block.outer <= outer and 1 <= block.vectors <= vectors
    rows, q = block.inner * block.outer, block.vectors
    loaded = {"broadcast": q + 1, "each": 1, "dot": q + 1}[form]
    assert rows * q + loaded <= registers
    if form == "broadcast" and inner * outer * vectors >= registers and steps >= 288:
        assert rows * q >= registers // 3, "enough sums at once to hide the latency of a multiply-add"


@settings(max_examples=200, derandomize=True)
@given(nests())
def test_merged_dimensions_reach_the_same_elements_in_the_same_order(nest):
    dims = merged(nest.dims)
    assert all(d.size != 1 for d in dims)
    for operand in (1, 2, 3):
        np.testing.assert_array_equal(places(dims, operand)[0].ravel(), places(nest.dims, operand)[0].ravel())


# machine code ----------------------------------------------------------------------------------------------------
def packing(target):
    """What the backend asks of the layout, for another target than this host."""

    def wanted(dims, dtype):
        known = [Dim(*d) for d in dims]
        if form_of(known, target.lanes(dtype.itemsize)) is not None:
            return None
        found = packed_dim(known)
        if found is not None:
            return found[0], 0 if found[1] else 1
        return next((i, -1) for i, d in enumerate(known) if d.y == 1 and d.size > 1)

    return wanted


@functools.cache
def recording(name, dtype, direction):
    """(graph, orders of its inputs) of a function (0) or of its gradient by an input (1, 2)."""
    function, specs = SHAPES[name]
    inputs = [dlarray(np.ones(shape, dtype), labels) for shape, labels in specs]
    graph, values, _ = recorded(gradient(function, direction - 1) if direction else function, *inputs)
    return simplify(expand(cpu.has_native_kernel)(simplify(graph))), [order_of(value.data) for value in values]


def contraction(name, dtype, direction, target):
    """The last contraction, as the layout for a target has it."""
    graph, orders = recording(name, dtype, direction)
    layout = choose_layout(graph, orders, cpu.needs_dense, cpu.view, packing(target))
    return [t.work for t in schedule(layout, is_contracting=True).tasks if isinstance(t.work, Contract)][-1]


def convolution(size, kernel, channels, filters, stride=1, groups=1):
    """(x, w) -> y, shapes of x and w; 2 observations."""
    return (
        lambda x, w: m.dlconv(x, w, 0, Stride=stride, Padding="same"),
        [((size, size, channels, 2), "SSCB"),
         ((kernel, kernel, channels // groups, filters // groups, *([groups] if groups > 1 else [])), "")],
    )  # fmt: skip


def product(rows, steps, columns):
    return lambda x, w: x @ w, [((rows, steps), ""), ((steps, columns), "")]


SHAPES = {
    "digits 5x5 1-16": convolution(28, 5, 1, 16), "digits 3x3 16-32 by 2": convolution(28, 3, 16, 32, 2),
    "digits 3x3 32-32": convolution(14, 3, 32, 32), "digits 1x1 16-32 by 2": convolution(28, 1, 16, 32, 2),
    "digits 3x3 32-64": convolution(14, 3, 32, 64), "3x3 64-64": convolution(28, 3, 64, 64),
    "3x3 128-128": convolution(14, 3, 128, 128), "3x3 256-256": convolution(7, 3, 256, 256),
    "3x3 64-128 by 2": convolution(14, 3, 64, 128, 2), "7x7 3-64 by 2": convolution(32, 7, 3, 64, 2),
    "channel-wise": convolution(14, 3, 64, 64, groups=64), "groups": convolution(14, 3, 64, 64, groups=4),
    "linear": product(32, 784, 256), "square": product(256, 256, 256), "narrow": product(128, 1000, 10),
}  # fmt: skip


def gradient(function, k):
    def summed(*inputs):
        y = function(*inputs)
        return m.dlgradient(m.sum(m.stripdims(y * y), "all"), inputs[k])

    return lambda *inputs: m.dlfeval(summed, *inputs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SHAPES)
def test_inner_loops_stay_in_registers(name, target):
    """No stack traffic and no moves between registers beside the multiply-adds, forwards and in both gradients."""
    sums = 0
    for dtype, direction in itertools.product(ELEMENTS, range(3)):
        part = contraction(name, dtype, direction, TARGETS[target]).parts[0]
        nest = Nest(tuple([Dim(*d) for d in part.dims]), dtype, None)
        text = assembly(function_of(nest, part.offsets, TARGETS[target]), TARGETS[target])
        for block in basic_blocks(text):
            if n := count(MULTIPLY_ADD[target], block):
                sums += n
                assert not count(STACK, block), "\n".join(block)
                assert count(MOVE, block) <= n / 8, "\n".join(block)
    assert sums > 30
