"""CUDA contractions: every sum of products an op declares, against plain sums in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minidl.core.contraction import Contraction, index
from minidl.core.spec import Spec
from minidl.core.vocabulary import OPS
from minidl.kernels.cuda import contract as module
from minidl.kernels.cuda.contract import Change, Read, Slots, Stored, Summed, Tail
from minidl.kernels.cuda.contract_tiles import tiles_for

FAMILY = ["conv", "conv_input_grad", "conv_weight_grad"]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# x, w, stride, dilation, padding
GEOMETRIES = {
    "digits 1": ((2, 28, 28, 1), (1, 5, 5, 1, 16), (1, 1), (1, 1), ((2, 2), (2, 2))),
    "digits skip": ((2, 28, 28, 16), (1, 1, 1, 16, 32), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "digits 2": ((2, 28, 28, 16), (1, 3, 3, 16, 32), (2, 2), (1, 1), ((0, 1), (0, 1))),
    "digits 3": ((2, 14, 14, 32), (1, 3, 3, 32, 32), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "1-D": ((3, 19, 3), (1, 4, 3, 5), (3,), (2,), ((2, 0),)),
    "3-D": ((2, 5, 6, 7, 3), (1, 2, 3, 2, 3, 4), (2, 1, 3), (1, 2, 1), ((1, 0), (2, 1), (0, 3))),
    "prime sizes": ((2, 11, 13, 17), (1, 3, 2, 17, 37), (1, 1), (1, 1), ((1, 0), (0, 1))),
    "groups": ((2, 8, 9, 12), (3, 3, 3, 4, 6), (1, 2), (2, 1), ((2, 2), (1, 1))),
    "channel-wise": ((2, 9, 11, 19), (19, 3, 3, 1, 1), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "channel-wise, strided": ((2, 9, 11, 37), (37, 3, 2, 1, 1), (2, 3), (2, 1), ((2, 1), (0, 4))),
    "stride beyond the kernel": ((2, 11, 12, 3), (1, 2, 1, 3, 4), (3, 5), (1, 1), ((0, 0), (0, 0))),
    "dilation and stride share a factor": ((2, 13, 12, 2), (1, 3, 4, 2, 3), (4, 2), (2, 2), ((3, 3), (1, 2))),
    "kernel beyond the input": ((1, 3, 2, 2), (1, 5, 7, 2, 3), (1, 1), (1, 1), ((2, 2), (4, 3))),
    "padding beyond the kernel": ((2, 4, 3, 3), (1, 2, 2, 3, 2), (1, 1), (1, 1), ((5, 4), (0, 6))),
    "input cut off": ((2, 9, 8, 2), (1, 3, 3, 2, 4), (2, 2), (1, 1), ((-2, -1), (0, -2))),
    "no image": ((0, 5, 5, 2), (1, 3, 3, 2, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "no channels": ((2, 5, 5, 0), (1, 3, 3, 0, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
}

# a, b
PRODUCTS = {
    "small": ((5, 7), (7, 3)),
    "whole tiles": ((128, 64), (64, 128)),
    "left over": ((131, 67), (67, 101)),
    "one column": ((203, 309), (309, 1)),
    "one row": ((1, 310), (310, 205)),
    "one number": ((1, 2000), (2000, 1)),
    "long sum": ((17, 5003), (5003, 19)),
    "outer": ((37, 1), (1, 41)),
    "pages": ((3, 2, 33, 20), (3, 2, 20, 18)),
    "many small pages": ((300, 2, 3), (300, 3, 2)),
    "no terms": ((4, 0), (0, 5)),
    "no rows": ((0, 4), (4, 5)),
    "no columns": ((3, 4), (4, 0)),
}


def places(subscripts, sizes):
    """Positions along each dimension, for all indices of a nest."""
    grid = np.indices(sizes)
    return [s.start + sum((factor * grid[i] for i, factor in s.factors), np.zeros(sizes, np.int64)) for s in subscripts]


def numbers(x, subscripts, sizes):
    """x at the places of a nest, 0 beyond its bounds."""
    at = places(subscripts, sizes)
    inside = np.logical_and.reduce([(p >= 0) & (p < n) for p, n in zip(at, x.shape)] + [np.full(sizes, True)])
    if not x.size:
        return np.zeros(sizes)
    return np.where(inside, x[tuple(np.clip(p, 0, n - 1) for p, n in zip(at, x.shape))], 0)


def plain(shape, a, b, nests):
    """The sums, in double precision, one product at a time."""
    y = np.zeros(shape)
    for nest in nests:
        kept = {i for s in nest.y for i, _ in s.factors}
        summed = tuple(i for i in range(len(nest.sizes)) if i not in kept)
        total = (numbers(a, nest.a, nest.sizes) * numbers(b, nest.b, nest.sizes)).sum(summed, keepdims=True)
        at = places(nest.y, [1 if i in summed else n for i, n in enumerate(nest.sizes)])
        y[tuple(at)] = total
    return y


def close(found, expected, tolerance):
    scale = np.abs(expected).max(initial=0) or 1.0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


class Problem:
    """One call of an op: inputs, nests, and the result in double precision."""

    def __init__(self, op, inputs, params, dtype):
        self.inputs = [np.asarray(x, dtype) for x in inputs]
        specs = [Spec(x.shape, x.dtype) for x in self.inputs]
        self.dtype = np.dtype(dtype)
        self.shape = OPS[op].infer_rule(*specs, **params).shape
        self.nests = OPS[op].contraction_rule(*specs, **params)

    def expected(self, change=lambda x: x):
        a, b = (x.astype(np.float64) for x in self.inputs)
        return plain(self.shape, change(a), change(b), self.nests)

    def run(self, device, **options):
        """The result on the device, in the order that was asked for, everything else poisoned."""
        y = device.empty(self.shape, self.dtype)
        contract(device, y, *map(device.array, self.inputs), self.nests, **options)
        return y.get()


def contract(device, y, a, b, nests, **options):
    """A plan for these arrays, run twice: counters are zeros again after each run. Gives the plan."""
    extras = options.pop("extras", ())
    plan = module.plan(nests, *[module.layout_of(x) for x in (y, a, b)], dtype=y.dtype, **options)
    counters = device.array(np.zeros(plan.counters, "int32"))
    for _ in range(2):
        scratch = tuple(device.empty(*each) for each in plan.scratch)
        plan.run(y, a, b, extras, scratch, counters)
        assert not counters.get().any()
    return plan


def convolution(op, name, dtype, random):
    x_shape, w_shape, stride, dilation, padding = GEOMETRIES[name]
    params = {"stride": stride, "dilation": dilation, "padding": padding}
    x, w = random.normal(size=x_shape), random.normal(size=w_shape)
    out = OPS["conv"].infer_rule(Spec(x_shape), Spec(w_shape), **params).shape
    g = random.normal(size=out)
    if op == "conv":
        return Problem(op, (x, w), params, dtype)
    if op == "conv_input_grad":
        return Problem(op, (g, w), {"size": x_shape[1:-1], **params}, dtype)
    return Problem(op, (g, x), {"size": w_shape[:-2], **params}, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("op", [*FAMILY, "matmul"])
def test_samples(op, dtype, device, random):
    for inputs, params in OPS[op].samples(random):
        problem = Problem(op, inputs, params, dtype)
        close(problem.run(device), problem.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("op", FAMILY)
def test_convolutions(op, name, dtype, device, random):
    problem = convolution(op, name, dtype, random)
    expected = problem.expected()
    found = []
    for seed in device.orders():
        device.set_order(seed)
        found.append(problem.run(device))
        close(found[-1], expected, TOLERANCE[dtype])
    assert all(np.array_equal(x, found[0]) for x in found)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name, dtype, device, random):
    a, b = (random.normal(size=shape) for shape in PRODUCTS[name])
    for seed in device.orders():
        device.set_order(seed)
        close(Problem("matmul", (a, b), {}, dtype).run(device), a @ b, TOLERANCE[dtype])


# how arrays lie -----------------------------------------------------------------------------------------------------
def laid(device, x, order, step, offset):
    """x on the device with its dimensions in another order of memory, gaps between elements, and a start of its own."""
    moved = np.transpose(x, order)
    room = device.empty((offset + moved.size * step + 8,), x.dtype)
    dense = device.array(np.ascontiguousarray(moved))
    strides = [s * step for s in dense.strides]
    view = device.library.lib.stride_tricks.as_strided(room[offset:], moved.shape, strides)
    back = view.transpose(*np.argsort(order))
    return room, back


def put(device, x, **how):
    """A copy of x on the device that lies as told."""
    room, view = laid(device, x, **how)
    if device.name == "gpu":
        view[...] = device.array(x)
    else:
        view._host[...] = x  # an array with gaps cannot be set
    return room, view


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step, offset", [(1, 0), (1, 1), (1, 2), (3, 0), (4, 4)])
def test_layouts(dtype, step, offset, device, random):
    """Any strides of results and operands: transposed, with gaps, at odd addresses; what lies between is left alone."""
    orders = (0, 3, 1, 2), (3, 2, 1, 0), (0, 1, 2, 3), (0, 3, 2, 1)
    for op, order in zip(["conv", "conv", "conv", "conv_input_grad"], orders):
        problem = convolution(op, "prime sizes", dtype, random)
        _, a = put(device, problem.inputs[0], order=order, step=step, offset=offset)
        _, b = put(device, problem.inputs[1], order=(4, 2, 1, 0, 3), step=step, offset=offset)
        room, y = laid(device, np.empty(problem.shape, dtype), order, step, offset)
        contract(device, y, a, b, problem.nests)
        close(y.get(), problem.expected(), TOLERANCE[dtype])
        assert np.isfinite(room.get()).sum() == y.size


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_transposed_products(precision, device, random):
    a, b = random.normal(size=(70, 36)).astype("float32"), random.normal(size=(36, 52)).astype("float32")
    for turn_a in (False, True):
        for turn_b in (False, True):
            for turn_y in (False, True):
                left = device.array(np.ascontiguousarray(a.T)).transpose(1, 0) if turn_a else device.array(a)
                right = device.array(np.ascontiguousarray(b.T)).transpose(1, 0) if turn_b else device.array(b)
                y = device.empty((52, 70), "float32").transpose(1, 0) if turn_y else device.empty((70, 52), "float32")
                nests = OPS["matmul"].contraction_rule(Spec(a.shape), Spec(b.shape))
                contract(device, y, left, right, nests, precision=precision)
                close(y.get(), a.astype("float64") @ b, 1e-5 if precision == "float32" else 2e-3)


def test_pages_that_are_one(device, random):
    """Pages expanded from one have stride 0: they become columns of one product."""
    a, b = random.normal(size=(3, 20, 30)), random.normal(size=(30, 17))
    pages = device.library.lib.stride_tricks.as_strided(device.array(b), (3, 30, 17), (0, *b.strides))
    y = device.empty((3, 20, 17), "float64")
    nests = OPS["matmul"].contraction_rule(Spec(a.shape), Spec((3, 30, 17)))
    contract(device, y, device.array(a), pages, nests)
    close(y.get(), a @ b, 1e-12)


def test_elements_left_out_are_zero(device, random):
    """A nest that makes every third column only."""
    a, b = random.normal(size=(9, 5)), random.normal(size=(5, 4))
    nest = Contraction((9, 4, 5), (index(0), index(1, 3, start=1)), (index(0), index(2)), (index(2), index(1)))
    y = device.empty((9, 12), "float64")
    contract(device, y, device.array(a), device.array(b), (nest,))
    expected = np.zeros((9, 12))
    expected[:, 1::3] = a @ b
    close(y.get(), expected, 1e-12)
    with pytest.raises(ValueError, match="leave out"):
        contract(device, y, device.array(a), device.array(b), (nest,), slots=Slots(y=Change("x + 1")))


# precision, slices --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["digits 1", "digits 2", "digits 3", "prime sizes", "groups", "no image", "3-D"])
@pytest.mark.parametrize("op", FAMILY)
def test_tensor_cores(op, name, device, random):
    """Products of rounded numbers: near the exact result, and nearer still to that of rounded operands."""
    problem = convolution(op, name, "float32", random)
    for seed in device.orders():
        device.set_order(seed)
        found = problem.run(device, precision="tf32")
        close(found, problem.expected(), 2e-3)
    close(found, problem.expected(to_tf32), 1e-5)


def to_tf32(x):
    bits = x.astype("float32").view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view("float32").astype(np.float64)


def test_tensor_cores_need_a_device_that_has_them(device, random, monkeypatch):
    problem = convolution("conv", "digits 3", "float32", random)
    monkeypatch.setattr(module, "_capability", lambda library: 75)
    close(problem.run(device, precision="tf32"), problem.expected(), 1e-5)
    with pytest.raises(ValueError, match="bfloat16"):
        problem.run(device, precision="bfloat16")


def test_doubles_are_not_rounded(device, random):
    problem = convolution("conv", "digits 3", "float64", random)
    close(problem.run(device, precision="tf32"), problem.expected(), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_slices(dtype, device, random):
    """Long sums are cut into slices whose sums are added in order; how many, the shapes alone decide."""
    problem = convolution("conv_weight_grad", "digits 2", dtype, random)
    y, a, b = device.empty(problem.shape, dtype), *map(device.array, problem.inputs)
    (((slices, elements), kind),) = contract(device, y, a, b, problem.nests).scratch
    assert slices > 4 and elements == math.prod(problem.shape) and kind == dtype
    found = []
    for seed in device.orders():
        device.set_order(seed)
        found.append(problem.run(device))
    assert all(np.array_equal(x, found[0]) for x in found)


@pytest.mark.parametrize("op, a, b, slices", [
    ("matmul", (70, 900), (900, 5), 5), ("matmul", (70, 900), (900, 5), 8), ("matmul", (70, 900), (900, 5), 9),
    ("conv_weight_grad", (3, 9, 9, 2), (3, 9, 9, 2), 7), ("conv_weight_grad", (3, 9, 9, 2), (3, 9, 9, 2), 27),
])
def test_any_number_of_slices(op, a, b, slices, device, random, monkeypatch):
    """One group of slices or several, the last one whole or not; tiles, and elements by themselves."""
    monkeypatch.setattr(module, "_slices", lambda *rest: slices)
    module._plan.cache_clear()
    params = {"size": (2, 3, 3), "stride": (1, 1), "dilation": (1, 1), "padding": ((1, 1), (1, 1))}
    problem = Problem(op, (random.normal(size=a), random.normal(size=b)), params if op != "matmul" else {}, "float64")
    for seed in device.orders():
        device.set_order(seed)
        close(problem.run(device), problem.expected(), 1e-12)
    module._plan.cache_clear()


@pytest.mark.parametrize("itemsize, is_tensor, tolerance", [(4, False, 1e-5), (8, False, 1e-12), (4, True, 2e-3)])
def test_every_tile(itemsize, is_tensor, tolerance, device, random, monkeypatch):
    """Each shape of tile, with rows, columns and terms left over."""
    a, b = (random.normal(size=shape).astype(f"float{8 * itemsize}") for shape in [(150, 45), (45, 140)])
    nests = OPS["matmul"].contraction_rule(Spec(a.shape), Spec(b.shape))
    monkeypatch.setattr(module, "_slices", lambda *rest: 1)
    tiles = {tile[:2]: tile for tile in tiles_for(itemsize, is_tensor)}
    for number, shape in enumerate(tiles):  # the numbers of terms in turn
        fitting = [tile for tile in tiles_for(itemsize, is_tensor) if tile[:2] == shape]
        tile = fitting[number % len(fitting)]
        monkeypatch.setattr(module, "best_tile", lambda *rest, tile=tile: (tile, 1, 0.0))
        x, w, y = device.array(a), device.array(b), device.empty((150, 140), a.dtype)
        layouts = map(module.layout_of, (y, x, w))
        module.Plan(tuple(nests), *layouts, a.dtype.name, is_tensor, module.NONE).run(y, x, w)
        close(y.get(), a.astype("float64") @ b, tolerance)


# slots --------------------------------------------------------------------------------------------------------------
ALONG_LAST = (0, 0, 0, 1)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("name", ["digits 1", "digits 2", "prime sizes", "groups", "channel-wise"])
def test_load_and_store(name, precision, device, random):
    """Input normalised and cut off on load, weights scaled, a bias, a mask: the zeros around the image stay zeros."""
    problem = convolution("conv", name, "float32", random)
    x, w = (v.astype("float64") for v in problem.inputs)
    channels, filters = x.shape[-1], problem.shape[-1]
    scale, shift, bias = random.normal(size=channels), 3 + random.normal(size=channels), random.normal(size=filters)
    factor, mask = random.normal(size=()), random.normal(size=problem.shape) > 0
    along_mask = tuple([s // mask.itemsize for s in mask.strides])
    slots = Slots(
        a=Change(
            "w_maximum((T)(x * scale + shift), (T)0)", (Read("scale", 0, ALONG_LAST), Read("shift", 1, ALONG_LAST))
        ),
        b=Change("x * factor", (Read("factor", 2, (0,) * 5),)),
        y=Change("keeps ? x + bias : (T)0", (Read("bias", 3, ALONG_LAST), Read("keeps", 4, along_mask))),
        types=("float32", "float32", "float64", "float32", "bool"),
    )  # fmt: skip
    extras = (*(v.astype("float32") for v in (scale, shift)), factor, bias.astype("float32"), mask)
    found = problem.run(
        device, precision=precision, slots=slots, extras=tuple(device.array(np.asarray(v)) for v in extras)
    )
    y = plain(problem.shape, np.maximum(x * scale + shift, 0), w * factor, problem.nests)
    close(found, np.where(mask, y + bias, 0), 1e-5 if precision == "float32" else 2e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("op", ["conv_input_grad", "conv_weight_grad"])
@pytest.mark.parametrize("name", ["digits skip", "digits 2", "groups", "stride beyond the kernel"])
def test_slots_of_parts_and_slices(name, op, dtype, device, random):
    """Several parts, and sums in slices: each element is still changed once."""
    problem = convolution(op, name, dtype, random)
    a, b = (v.astype("float64") for v in problem.inputs)
    gate, extra = random.normal(size=a.shape), random.normal(size=problem.shape)
    strides = [tuple([s // 8 for s in v.strides]) for v in (gate, extra)]
    slots = Slots(
        a=Change("gate > 0 ? x : (T)0", (Read("gate", 0, strides[0]),)),
        y=Change("w_maximum(x, (T)0) + extra", (Read("extra", 1, strides[1]),)),
        types=(dtype, dtype),
    )  # fmt: skip
    found = problem.run(device, slots=slots, extras=tuple(device.array(v.astype(dtype)) for v in (gate, extra)))
    y = plain(problem.shape, np.where(gate > 0, a, 0), b, problem.nests)
    close(found, np.maximum(y, 0) + extra, TOLERANCE[dtype])


# more results, sums ---------------------------------------------------------------------------------------------------
def run_plan(device, problem, slots, extras, precision="float32", layout=None):
    """(y or None, the plan): everything by a plan made for the arrays, the results among the extras poisoned before."""
    a, b = map(device.array, problem.inputs)
    y = device.empty(problem.shape, problem.dtype)
    layouts = [module.layout_of(x) for x in (y, a, b)]
    about = {"dtype": problem.dtype, "precision": precision, "slots": slots}
    assert module.objection(problem.nests, *layouts, **about) == ""
    plan = module.plan(problem.nests, *layouts, **about)
    scratch = tuple(device.empty(*each) for each in plan.scratch)
    counters = device.array(np.zeros(plan.counters, "int32"))
    plan.run(y if slots.keeps_y else None, a, b, extras, scratch, counters)
    assert not counters.get().any()
    return (y.get() if slots.keeps_y else None), plan


def strides_of(x):
    return tuple([s // x.itemsize for s in x.strides])


SUMMED = {
    ("conv", "digits 1"), ("conv", "digits 2"), ("conv", "digits 3"), ("conv", "prime sizes"), ("conv", "groups"),
    ("conv", "1-D"), ("conv", "no channels"), ("conv", "no image"), ("conv_input_grad", "digits 2"),
    ("conv_input_grad", "groups"), ("conv_input_grad", "3-D"), ("conv_weight_grad", "digits 2"),
    ("conv_weight_grad", "1-D"),
}  # fmt: skip


@pytest.mark.parametrize("dtype, precision", [("float32", "float32"), ("float64", "float32"), ("float32", "tf32")])
@pytest.mark.parametrize("op, name", sorted(SUMMED))
def test_stores_and_sums(op, name, dtype, precision, device, random):
    """A chain of statements, results of three types besides y, and sums per channel, followed by what a layer does."""
    problem = convolution(op, name, dtype, random)
    shape, channels = problem.shape, problem.shape[-1]
    along = (0,) * (len(shape) - 1) + (1,)
    bias, old = 3 + random.normal(size=channels), random.normal(size=(channels, 2))
    gate = random.normal(size=shape) > -1
    made = [np.empty(shape[::-1], dtype).T, np.empty(shape, bool), np.empty(shape, "float64")]
    count = max(math.prod(shape[:-1]), 1)
    slots = Slots(
        y=Change(
            "t2", (Read("bias", 0, along), Read("t0", 1, strides_of(gate))),
            ("const T t1 = x + bias;", "const T t2 = w_where(t0, t1, t1 * (T)0.5);"),
        ),
        stores=(
            Stored("w_maximum(y, (T)0)", 2, strides_of(made[0])), Stored("t1 > 3", 3, strides_of(made[1])),
            Stored("(double)x * 2", 4, strides_of(made[2])),
        ),
        sums=(Summed("y", 5, along), Summed("(double)t1 * t1"), Summed("t0 ? 1 : 0", 6, (7, *along[1:-1], 2), 1)),
        kept=(len(shape) - 1,),
        tail=Tail(
            (f"const double mean = s0 / {count};", f"const double square = s1 / {count};"),
            (Read("old", 7, tuple([2 * n for n in along])),),
            (
                Stored("old * 0.75 + mean * 0.25", 7, tuple([2 * n for n in along])),
                Stored("square + old", 8, along),
            ),
        ),
        types=(dtype, "bool", dtype, "bool", "float64", dtype, "float64", "float64", dtype),
    )  # fmt: skip
    found = []
    for seed in device.orders():  # neighbours moved at once, or one by one
        device.set_order(seed)
        laid_out = device.empty(shape[::-1], dtype)
        others = [laid_out.transpose(*reversed(range(len(shape)))), device.empty(shape, bool)]
        others += [device.empty(shape, "float64"), device.empty((channels,), dtype)]
        others += [device.empty((2 * channels + 1,), "float64"), device.array(old), device.empty((channels,), dtype)]
        extras = (device.array(bias.astype(dtype)), device.array(gate), *others)
        y, _ = run_plan(device, problem, slots._replace(is_aligned=seed != 1), extras, precision)
        found.append([y, *(x.get() for x in others)])
    for results in found[1:]:
        assert all(np.array_equal(x, z, equal_nan=True) for x, z in zip(results, found[0]))
    y, relu, mask, twice, total, gated, averaged, squares = found[0]
    tolerance = 2e-3 if precision == "tf32" else TOLERANCE[dtype]
    x = problem.expected()
    t1 = x + bias
    expected = np.where(gate, t1, t1 * 0.5)
    axes = tuple(range(len(shape) - 1))
    close(y, expected, tolerance)
    close(relu, np.maximum(expected, 0), tolerance)
    close(twice, 2 * x, tolerance)
    unsure = np.abs(t1 - 3) < tolerance * 10 * np.abs(t1).max(initial=1)
    assert ((mask == (t1 > 3)) | unsure).all()
    close(total, expected.sum(axes), tolerance)
    close(y.astype("float64").sum(axes), total, 1e-6 if dtype == "float32" else 1e-14)
    assert np.array_equal(gated[1::2], gate.sum(axes)) and np.isnan(gated[::2]).all()
    close(averaged[:, 0], old[:, 0] * 0.75 + expected.sum(axes) / count * 0.25, tolerance)
    assert np.array_equal(averaged[:, 1], old[:, 1])
    close(squares, (t1**2).sum(axes) / count + old[:, 0], tolerance)


@pytest.mark.parametrize(
    "op, name", [("conv", "digits 2"), ("conv_input_grad", "digits 2"), ("conv_input_grad", "3-D")]
)
def test_sums_in_groups(op, name, device, random, monkeypatch):
    """Rows of partial sums, those of several parts too, in many groups, of which the last ones are not whole."""
    monkeypatch.setattr(module, "ONE_GROUP", (1, 2))
    module._plan.cache_clear()
    test_stores_and_sums(op, name, "float64", "float32", device, random)
    module._plan.cache_clear()


def test_sums_of_many_columns(device, random, monkeypatch):
    """The last block would have too much to do: a kernel of its own finishes them, with the same results."""
    monkeypatch.setattr(module, "MOST_JOINED", 4)
    module._plan.cache_clear()
    test_stores_and_sums("conv", "digits 2", "float64", "float32", device, random)
    module._plan.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "a, b",
    [
        ((5, 7), (7, 3)),
        ((131, 67), (67, 101)),
        ((3, 300), (300, 40)),
        ((7, 3, 9, 20), (7, 3, 20, 18)),
        ((17, 5003), (5003, 19)),
        ((4, 0), (0, 5)),
        ((0, 4), (4, 5)),
        ((2, 2000), (2000, 1)),
    ],
)
def test_sums_of_products(a, b, turned, dtype, device, random):
    """What is kept may be the indices of a or those of b; pages are added up as well. y itself is not stored."""
    problem = Problem("matmul", (random.normal(size=a), random.normal(size=b)), {}, dtype)
    kept = len(problem.shape) - 1 - turned
    along = tuple([int(d == kept) for d in range(len(problem.shape))])
    slots = Slots(
        stores=(Stored("y", 0, tuple([s // 8 for s in np.empty(problem.shape).strides])),),
        sums=(Summed("y", 1, along), Summed("(double)y * y", 2, along)), kept=(kept,), keeps_y=False,
        types=(dtype, "float32", "float64"),
    )  # fmt: skip
    for seed in device.orders():
        device.set_order(seed)
        size = problem.shape[kept]
        extras = (
            device.empty(problem.shape, dtype),
            device.empty((size,), "float32"),
            device.empty((size,), "float64"),
        )
        _, plan = run_plan(device, problem, slots, extras)
        assert plan.slices > 1 or a[-1] < 1000
        y, total, squares = (x.get() for x in extras)
        axes = tuple(d for d in range(y.ndim) if d != kept)
        close(y, problem.expected(), TOLERANCE[dtype])
        close(total, y.sum(axes, dtype="float64"), 1e-6)
        close(squares, (y.astype("float64") ** 2).sum(axes), 1e-14)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype, precision", [("float32", "float32"), ("float64", "float32"), ("float32", "tf32")])
def test_sums_of_some_of_the_columns(turned, dtype, precision, device, random):
    """y[b, s, c] from a[b, k] and w[k, s, c], summed over b and s: positions s become pages."""
    a, w = random.normal(size=(21, 6)).astype(dtype), random.normal(size=(6, 9, 18)).astype(dtype)
    subscripts = [tuple(map(index, axes)) for axes in ((0, 1, 2), (0, 3), (3, 1, 2))]
    left, right = (w, a) if turned else (a, w)
    nest = Contraction((21, 9, 18, 6), subscripts[0], *(subscripts[:0:-1] if turned else subscripts[1:]))
    slots = Slots(sums=(Summed("y", 0, (0, 0, 1)),), kept=(2,), types=("float64",))
    found = []
    for seed in device.orders():
        device.set_order(seed)
        y, total = device.empty((21, 9, 18), dtype), device.empty((18,), "float64")
        contract(device, y, device.array(left), device.array(right), (nest,), precision=precision, slots=slots,
                 extras=(total,))  # fmt: skip
        found.append((y.get(), total.get()))
        close(found[-1][0], np.einsum("bk,ksc->bsc", a, w, dtype="float64"), 2e-3 if precision == "tf32" else 1e-6)
        close(total.get(), y.get().sum((0, 1), dtype="float64"), 1e-13)
    assert all(np.array_equal(x, z) for one in found[1:] for x, z in zip(one, found[0]))


def test_the_last_block_goes_on(device, random):
    """Statements behind everything see all of y, and sums of columns that are finished; with slices or without."""
    for rows, terms in ((700, 30), (20, 3000)):
        problem = Problem("matmul", (random.normal(size=(rows, terms)), random.normal(size=(terms, 24))), {}, "float64")
        lines = (
            "for (int c = threadIdx.x; c < 24; c += THREADS) {",
            f"  double most = e1[c]; for (int i = 0; i < {rows}; i++) most = w_maximum(most, e2[i * 24 + c]);",
            "  e3[c] = most;",
            "}",
        )
        for has_sums in (False, True):
            slots = Slots(behind=module.Behind(lines, (1, 2, 3)), types=("float64",) * 4)
            if has_sums:
                tail = Tail(("const double t0 = s0 * 2;",), (), (Stored("t0", 1, (0, 1)),))
                slots = slots._replace(sums=(Summed("y"),), kept=(1,), tail=tail)
            for seed in device.orders():
                device.set_order(seed)
                y = device.empty((rows, 24), "float64")
                level = device.empty((24,), "float64") if has_sums else device.array(np.full(24, -1e9))
                most = device.empty((24,), "float64")
                a, b = map(device.array, problem.inputs)
                contract(device, y, a, b, problem.nests, slots=slots, extras=(most, level, y, most))
                close(y.get(), problem.expected(), 1e-12)
                expected = problem.expected().max(0)
                close(most.get(), np.maximum(expected, 2 * problem.expected().sum(0)) if has_sums else expected, 1e-11)


LOADED = ["1-D", "digits 2", "groups", "channel-wise", "kernel beyond the input", "3-D"]


@pytest.mark.parametrize("dtype, precision", [("float32", "float32"), ("float64", "float32"), ("float32", "tf32")])
@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("op", FAMILY)
def test_chains_of_both_operands(op, name, dtype, precision, device, random):
    """Arrays like the operand, of its channels, of everything but these, numbers: zeros beyond bounds stay zeros."""
    problem = convolution(op, name, dtype, random)
    expected, reads, types, arrays = [], [], [], []
    for x in problem.inputs:
        pixels = random.normal(size=(1, *x.shape[1:-1], 1))
        like, gate, channel = (
            random.normal(size=x.shape),
            random.normal(size=x.shape) > 0,
            random.normal(size=x.shape[-1]),
        )
        number = random.normal(size=())
        mine = [like.astype(dtype), gate, channel.astype("float64"), pixels.astype(dtype), number]
        strides = [strides_of(v) for v in mine]
        strides[2:] = (*(0,) * (x.ndim - 1), 1), (0, *strides[3][1:-1], 0), (0,) * x.ndim
        names = "like", "gate", "channel", "pixel", "number"
        reads.append(tuple([Read(n, len(arrays) + i, s) for i, (n, s) in enumerate(zip(names, strides))]))
        arrays += mine
        types += [dtype, "bool", "float64", dtype, "float64"]
        expected.append(np.where(gate, (x.astype("float64") - like) * channel + pixels, number))
    chain = "T t7 = (x - like) * (T)channel;", "t7 += pixel;"
    changes = [Change("w_where(gate, t7, (T)number)", r, chain) for r in reads]
    twice = Stored("x + (double)y", len(types), strides_of(np.empty(problem.shape)))
    slots = Slots(*changes, types=(*types, "float64"), stores=(twice,))
    extras = *(device.array(np.asarray(v)) for v in arrays), device.empty(problem.shape, "float64")
    found = []
    for seed in device.orders():
        device.set_order(seed)
        y, _ = run_plan(device, problem, slots._replace(is_aligned=seed != 1), extras, precision)
        found.append(y)
        assert np.array_equal(extras[-1].get(), 2.0 * y)
    assert all(np.array_equal(x, found[0]) for x in found)
    y = plain(problem.shape, *expected, problem.nests)
    close(found[0], y, 2e-3 if precision == "tf32" else TOLERANCE[dtype])


def test_sums_that_cannot_be(device, random, monkeypatch):
    problem = convolution("conv", "digits 3", "float32", random)
    layouts = [module.layout_of(device.array(x)) for x in (np.empty(problem.shape, "float32"), *problem.inputs)]

    def objection(**slots):
        return module.objection(problem.nests, *layouts, dtype="float32", slots=Slots(**slots))

    assert objection(sums=(Summed("y"),), kept=(3,)) == ""
    assert "only a, or only b" in objection(sums=(Summed("y"),), kept=(2, 3))
    assert "only a, or only b" in objection(sums=(Summed("y"),), kept=())
    assert "find room" in objection(sums=(Summed("y"),) * 9, kept=(3,))
    behind = module.Behind(("e0[0] = 1;",), (0,))
    assert objection(sums=(Summed("y"),), kept=(3,), behind=behind, types=("float32",)) == ""
    monkeypatch.setattr(module, "MOST_JOINED", 3)
    assert "so many columns" in objection(sums=(Summed("y"),), kept=(3,), behind=behind, types=("float32",))
    problem = convolution("conv", "channel-wise", "float32", random)
    layouts = [module.layout_of(device.array(x)) for x in (np.empty(problem.shape, "float32"), *problem.inputs)]
    assert "one element" in objection(sums=(Summed("y"),), kept=(3,))
    assert "no block is the last" in objection(behind=behind, types=("float32",))
    problem = convolution("conv", "no image", "float32", random)
    layouts = [module.layout_of(device.array(x)) for x in (np.empty(problem.shape, "float32"), *problem.inputs)]
    assert "y is empty" in objection(behind=behind, types=("float32",))
    problem = convolution("conv", "channel-wise", "float32", random)
    layouts = [module.layout_of(device.array(x)) for x in (np.empty(problem.shape, "float32"), *problem.inputs)]
    with pytest.raises(ValueError, match="one element"):
        module.plan(problem.nests, *layouts, dtype="float32", slots=Slots(sums=(Summed("y"),), kept=(3,)))
