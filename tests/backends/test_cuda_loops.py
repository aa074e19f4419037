"""Loops as CUDA C++: every form of reduction, shares, slices, layouts, wide subscripts, many arrays in one launch."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from engine.programs import LAYOUTS, assert_close, recorded

import minidl as m
from minidl.backends import reference
from minidl.backends.cuda import loops, many, printed
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.apply import apply_each, constant
from minidl.core.device import host
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.op import OPS
from minidl.engine.compile import compile_graph
from minidl.engine.devices import DeviceProgram
from minidl.engine.layout import order_of

RANDOM = np.random.default_rng(0)


def on(device, x):
    return DLArray(constant(device.array(x)))


def replayed(device, function, *arrays):
    """What the compiled recording of a function makes of these arrays, in every order of threads and blocks."""
    graph, values, _ = recorded(function, *[on(device, x) for x in arrays])
    program = compile_graph(graph, [order_of(value.data) for value in values], None)
    assert isinstance(program, DeviceProgram)
    found = []
    for order in device.orders():
        device.set_order(order)
        found.append([host(y) for y in program.run([value.data for value in values])])
    for other in found[1:]:
        assert all(x.tobytes() == y.tobytes() for x, y in zip(found[0], other)), "results depend on the order"
    return found[0]


def reduction(name, axes):
    return lambda x: OPS[f"reduce_{name}"](x, axes=axes)


def subsets(rank):
    return [axes for count in range(1, rank + 1) for axes in itertools.combinations(range(rank), count)]


# reductions -------------------------------------------------------------------------------------------------------
FORMS = [((300, 7), (1,)), ((4, 300, 3), (1,)), ((300, 4), (0,)), ((20000,), (0,)), ((3, 5000), (1,)),
         ((5000, 3), (0,)), ((40, 6, 50), (0, 2))]  # fmt: skip
SHAPES = [(7, 2000), (9, 1023), (1025, 3, 10), (3, 1025, 10), (10, 3, 1025), (13001, 1)]


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "any", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, axes", FORMS, ids=str)
def test_every_form_of_every_reduction(device, name, dtype, shape, axes):
    x = 1 + 0.0005 * RANDOM.normal(size=shape)
    x[RANDOM.random(shape) < 0.01] = np.nan if name in ("max", "min") else 1
    x = (x > (1.0015 if name == "any" else 0.9985)) if name in ("any", "all") else x.astype(dtype)
    expected = reference.REDUCTIONS[f"reduce_{name}"](x, axes=axes)
    rounding = 1e-5 if dtype == "float32" else 1e-12
    assert_close(replayed(device, reduction(name, axes), x), expected, rounding)
    assert_close(reduction(name, axes)(on(device, x)).numpy(), expected, rounding)


def test_extremes_of_nans_alone_are_nan(device):
    x = np.array([[np.nan, np.nan], [np.nan, -1.0], [np.inf, np.nan]])
    for name in ("max", "min"):
        (y,) = replayed(device, reduction(name, (1,)), x)
        assert np.array_equal(y, [[np.nan], [-1.0], [np.inf]], equal_nan=True)


NOTHING = [((0,), (0,)), ((0, 3), (0,)), ((3, 0), (1,)), ((3, 0), (0,)), ((2, 0, 3), (1,)), ((0, 2, 3), (1, 2)),
           ((1, 1), (0, 1)), ((), ())]  # fmt: skip


@pytest.mark.parametrize("shape, axes", NOTHING, ids=str)
def test_reductions_of_nothing(device, shape, axes):
    for name in ("sum", "prod", "any"):
        x = np.ones(shape, bool if name == "any" else np.float32)
        expected = reference.REDUCTIONS[f"reduce_{name}"](x, axes=axes)
        assert_close(reduction(name, axes)(on(device, x)).numpy(), expected)
        assert_close(replayed(device, reduction(name, axes), x), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_several_reductions_of_one_loop(device, shape):
    x = RANDOM.integers(-8, 8, shape).astype(np.float32)  # sums of whole numbers are exact
    x.reshape(-1)[-1] = 99
    for axes in subsets(len(shape)):
        (y, z, w) = replayed(
            device, lambda x, axes=axes: [reduction("sum", axes)(x), reduction("max", axes)(x), x * 2 + 1], x
        )
        assert np.array_equal(y, x.sum(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32))
        assert np.array_equal(z, x.max(axis=axes, keepdims=True))
        assert np.array_equal(w, x * 2 + 1)


def test_reductions_along_different_dimensions_of_one_loop(device):
    def everything(x):
        y = m.tanh(x) * 2
        return [y, *(reduction(n, axes)(y) for n in ("sum", "max") for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)))]

    x = RANDOM.normal(size=(5, 33, 70))
    expected = [y.numpy() for y in everything(dlarray(x))]
    assert_close(replayed(device, everything, x), expected, 1e-12)


@pytest.mark.parametrize("shape, axes", [((300_000,), (0,)), ((3, 100_000), (1,)), ((100_000, 3), (0,))], ids=str)
def test_long_sums_in_single_keep_their_digits(device, shape, axes):
    x = RANDOM.random(shape).astype(np.float32)
    exact = x.astype(np.float64).sum(axis=axes, keepdims=True)
    y = reduction("sum", axes)(on(device, x)).numpy()
    assert np.max(np.abs(y - exact) / exact) < 1e-6


def test_shares_leave_nothing_out():
    for outputs, length, is_row in itertools.product((0, 1, 5, 300, 10**6), (0, 1, 9, 10**6), (True, False)):
        lanes, columns, slices = printed.shares(outputs, length, is_row)
        assert 1 <= lanes * columns <= printed.THREADS and lanes & (lanes - 1) == columns & (columns - 1) == 0
        assert slices == 1 or -(-length // slices) * (slices - 1) < length, "no slice is empty"


# maps -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_results_keep_the_memory_order_of_their_operands(device, layout):
    x = LAYOUTS[layout](RANDOM.normal(size=(3, 4, 5)))
    y = m.exp(on(device, x) * 0.5)
    np.testing.assert_allclose(y.numpy(), np.exp(x * 0.5), rtol=1e-13)
    kept = order_of(on(device, x)._value.data)
    assert order_of(y._value.data) == kept or 0 in x.strides


def test_more_than_one_iteration_per_thread(device):
    x = RANDOM.normal(size=(1, printed.LARGE + 77)).astype(np.float32)
    assert np.array_equal((on(device, x) * 2 + 1).numpy(), x * np.float32(2) + np.float32(1))


@pytest.mark.parametrize("number", [-1.5, -0.0, 0.0, np.inf, -np.inf, np.nan, 1e300, 3, True, -7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_as_arguments_and_as_constants(device, number, dtype):
    x = np.array([0.5, -2.0, 0.0], dtype)
    with np.errstate(all="ignore"):
        expected = x - np.array(number).astype(dtype)
    assert_close((on(device, x) - number).numpy(), expected)
    assert_close(replayed(device, lambda x: x - number, x), expected)


def test_subscripts_of_64_bits(device):
    """Without so large an array: the loop says that it reaches far, and reads only what is there."""
    x, y = device.array(np.arange(6.0)), device.empty(3, np.float64)
    load = Step("", (), "float64", access=Access(0, 0, (1 << 31, 2)))
    loop = Loop((1, 3), [load, Step("({0} + {1})", (Temp(0), 1.0), "float64", "float64")],
                [Store(Temp(1), Access(1, 0, (3, 1)), "float64")])  # fmt: skip
    assert printed.index_type(loop) == "unsigned"  # one step along a dimension of size 1 is none
    far = Loop((2, 3), loop.steps, loop.stores)
    assert printed.index_type(far) == "i64"
    loops.bind_loop(loop, {0: x, 1: y}.__getitem__)()
    assert host(y).tolist() == [1.0, 3.0, 5.0]


def test_copies_between_all_types_and_layouts(device):
    x = RANDOM.normal(size=(4, 6))
    x[0, :3] = 0
    views = (lambda a: a, lambda a: a[::-1, 1::2], lambda a: a.transpose(1, 0))
    for before, after in itertools.product(("float32", "float64", "bool"), repeat=2):
        for source, target in itertools.product(views, repeat=2):
            held, filled = device.array(x.astype(before)), device.array(np.zeros_like(x).astype(after))
            view, into = source(held), target(filled)
            if view.shape == into.shape:
                loops.copy(into, view)
                assert np.array_equal(host(target(filled)), source(x.astype(before)).astype(after))


# many arrays at once ----------------------------------------------------------------------------------------------
def test_solvers_update_all_parameters_in_one_launch(device):
    op = OPS["adam"]
    shapes = [(3, 4), (5,), (1, 1), (7000,), (2, 3, 4), (0, 3)]
    count = op.arity
    columns = [[RANDOM.uniform(0.5, 1, shape).astype(np.float32) for shape in shapes] for _ in range(3)]
    numbers = [0.9, 0.99, 0.1, 0.2, 1e-3, 1e-8, 0.5, 0.25][: count - 3]
    there = apply_each(op, (*[[on(device, x) for x in column] for column in columns], *numbers))
    here = apply_each(op, (*[[dlarray(x) for x in column] for column in columns], *numbers))
    for found, expected in zip(there, here):
        for y, z in zip(found, expected):
            np.testing.assert_allclose(y.numpy(), z.numpy(), rtol=2e-6, atol=1e-7)
    if device.name == "shim":
        before = device.library.RawModule.launches.get("each", 0)
        apply_each(op, (*[[on(device, x) for x in column[:4]] for column in columns], *numbers))
        assert device.library.RawModule.launches["each"] == before + 1


def test_rows_of_other_orders_and_types(device):
    op = OPS["moving_average"]
    xs = [RANDOM.normal(size=(3, 4)), RANDOM.normal(size=(4, 3)).T, RANDOM.normal(size=(3, 4)).astype(np.float32),
          np.broadcast_to(RANDOM.normal(size=(1, 4)), (3, 4))]  # fmt: skip
    (found,) = apply_each(op, ([on(device, x) for x in xs], [on(device, x) for x in xs], 0.25))
    for y, x in zip(found, xs):
        assert y.dtype == x.dtype
        np.testing.assert_allclose(y.numpy(), x, rtol=1e-6)


def test_copy_each_takes_what_lies_otherwise_too(device):
    xs = [RANDOM.normal(size=(30, 40)), RANDOM.normal(size=(4, 5)).T, np.float32(RANDOM.normal(size=5000)),
          np.array(2.0), np.zeros((0, 2)), RANDOM.random((3, 3)) > 0.5]  # fmt: skip
    targets = [device.empty(x.shape, x.dtype) for x in xs]
    sources = [x if k % 2 else device.array(x) for k, x in enumerate(xs)]
    many.copy_each(targets, sources)
    assert all(np.array_equal(host(y), x) for y, x in zip(targets, xs))
    made = many.copies([device.array(x) for x in xs])
    for y, x in zip(made, xs):
        assert np.array_equal(host(y), x) and y.dtype == x.dtype
        assert order_of(y) == order_of(x) or not x.size


# rounding ---------------------------------------------------------------------------------------------------------
def test_N2_printed_loops_leave_no_sum_to_be_joined_with_a_product():
    """nvcc makes a multiply-add of `a * b + c`: so texts have words instead, which round one by one."""
    texts = [op.text for op in OPS.values() if op.text] + ["{0} * 1e-5 - (-{1} + 2)"]
    for text in texts:
        found = printed._worded(text, "float")
        assert not re.search(r"[\w)}] ?[-+*] ?[\w({]", re.sub(r"e[-+]\d+", "", found)), f"{text} is {found}"
    assert printed._worded("pow({0} + 0.5, 2) * -{1} - (inf > {0}) * 2.5", "float") == (
        "w_minus(w_times(w_pow(w_plus({0}, 0.5f), 2.0f), (-{1})), w_times((infinity((float)0) > {0}), 2.5f))"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_N2_zero_stays_zero_on_a_gpu(device, dtype):
    a, b = (RANDOM.normal(size=500).astype(dtype) for _ in range(2))

    def function(a, b):
        squares = m.sqrt(a * a - (a + 0) * (a + 0))
        return squares, a * b + (-a) * b, m.sum(a * b - b * a, "all"), (a > 0) * b - b * (a > 0)

    plain = [host(y._value.data) for y in function(on(device, a), on(device, b))]
    for y in (*replayed(device, function, a, b), *plain):
        assert not np.any(y)
