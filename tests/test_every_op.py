"""Every op of the registry, driven by what it declares: kind, types, domain, samples, body, rules.

A new op needs no test file: its row of facts is its test. Compared are the result with the rule `infer`, the default
backend's kernel with the body and with the reference backend, gradients of order 1 and 2 with finite differences,
single with double precision, memory layouts with each other, replay with the plain call.
"""

from __future__ import annotations

import importlib
import itertools
import pickle
import pkgutil
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from accelerate.hidden import Hidden
from hypothesis import given, settings

import minidl.ops
import minidl.train  # the solvers are ops too
from minidl.accelerate import dlaccelerate
from minidl.autodiff import dlfeval, dlgradient
from minidl.backends import reference, use_backend
from minidl.core.apply import abstract, constant
from minidl.core.device import device_of, host
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.op import KERNEL, MAP, OPS, REDUCE, VIEW, Op
from minidl.core.spec import Spec
from minidl.core.tape import alone

for _module in pkgutil.iter_modules(minidl.ops.__path__):
    importlib.import_module(f"minidl.ops.{_module.name}")

NAMES = sorted(OPS)
MAPS = [name for name in NAMES if OPS[name].kind is MAP]
REDUCTIONS = [name for name in NAMES if OPS[name].kind is REDUCE]
RTOL = {"float32": 2e-5, "float64": 1e-12}

Inputs = list[Any]  # arrays, and numbers as literals
PLACE = Hidden("place", default=(lambda x: x, "cpu"))  # what puts an array where it is computed with; the device's name


@pytest.fixture(autouse=True)
def everywhere(place):
    """Every test of this file runs once per backend: `wrap` puts arrays where that one computes."""
    PLACE.set((place, device_of(place(np.zeros(1)))))
    yield
    PLACE.set((lambda x: x, "cpu"))


def every(names: list[str]) -> Any:
    return pytest.mark.parametrize("name", names)


# cases ------------------------------------------------------------------------------------------------------------
def cases(op: Op, seed: int = 0) -> list[tuple[Inputs, dict[str, Any]]]:
    """Sample calls: the op's own ones, or for a MAP op arrays from its domain. Reals are double."""
    r = np.random.default_rng([seed, zlib.crc32(op.name.encode())])
    found = op.samples(r) if op.samples else [([r.uniform(*op.domain, (2, 3)) for _ in range(op.arity or 3)], {})]

    def typed(i: int, x: Any) -> Any:
        if is_literal(x):
            return x
        x = np.asarray(x)
        return x > np.mean(x) if op.input_type(i) == "b" and x.dtype.kind == "f" else x

    def placed(inputs: Any, params: dict[str, Any]) -> dict[str, Any]:
        return {**params, "device": PLACE.get()[1]} if not inputs and "device" in params else params

    return [([typed(i, x) for i, x in enumerate(inputs)], placed(inputs, params)) for inputs, params in found]


def is_literal(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def is_real(x: Any) -> bool:
    return not is_literal(x) and x.dtype.kind == "f"


def wrap(x: Any, dtype: str = "float64") -> Any:
    """An input as the op gets it: literals as they are, reals in the given precision, others in their own type."""
    if is_literal(x) or isinstance(x, DLArray):
        return x
    return DLArray(constant(PLACE.get()[0](x.astype(dtype) if is_real(x) and x.dtype != dtype else x)))


def wrapped(inputs: Inputs, dtype: str = "float64") -> Inputs:
    return [wrap(x, dtype) for x in inputs]


def hosted(arrays: Inputs) -> Inputs:
    """The same inputs in the host's memory, where the reference backend computes."""
    return [x if is_literal(x) else DLArray(constant(host(x._value.data))) for x in arrays]


def shares_memory(x: Any, y: Any) -> bool:
    if device_of(x) == device_of(y) == "cpu":
        return bool(np.shares_memory(x, y))
    if device_of(x) != device_of(y):
        return False
    (a, b), (c, d) = map(extent, (x, y))
    return a < d and c < b


def extent(x: Any) -> tuple[int, int]:
    """The first address of an array of the device, and the first after it."""
    steps = [(n - 1) * stride for n, stride in zip(x.shape, x.strides)]
    low, high = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
    return x.data.ptr + low, x.data.ptr + (high + x.itemsize if x.size else 0)


def as_tuple(outputs: Any) -> tuple[DLArray, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def results(outputs: Any) -> list[np.ndarray]:
    return [y.numpy() for y in as_tuple(outputs)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], rtol: float) -> None:
    """Equal up to rounding: relative to each element, or to the largest one up to 1 (sums may cancel)."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        finite = np.abs(b[np.isfinite(b)]) if b.dtype.kind == "f" else np.zeros(0)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * min(np.max(finite, initial=0.0), 1.0))


# facts ------------------------------------------------------------------------------------------------------------
@every(NAMES)
def test_facts(name):
    op = OPS[name]
    assert op.__doc__.strip()
    assert op.kind is MAP or op.samples, "give samples=lambda r: [case(...)]"
    assert op.text is None or (op.kind in (MAP, REDUCE) and op.body is None), "a text is all of an op's meaning"
    assert op.kind is not MAP or op.text or op.body, "a MAP op has a text or a body"
    has_derivative = op.vjp_rule is not None or op.vjp_rules is not None or op.body is not None
    assert op.is_constant or op.arity == 0 or has_derivative, "declare vjps, a body, or is_constant=True"
    assert set(op.input_types + op.output_types) <= set("fba")
    assert pickle.loads(pickle.dumps(op)) is op
    for inputs, params in cases(op):
        hash(tuple(sorted(params.items())))
        assert op.arity in (None, len(inputs))
        assert all(x.dtype == "float64" for x in inputs if is_real(x)), "samples are double where they are real"


# results ----------------------------------------------------------------------------------------------------------
@every(NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_result_is_as_inferred_and_inputs_are_unchanged(name, dtype):
    op = OPS[name]
    for inputs, params in cases(op):
        arrays = wrapped(inputs, dtype)
        before = [x if is_literal(x) else x.numpy().copy() for x in arrays]
        outputs = as_tuple(op(*arrays, **params))
        specs = [x if is_literal(x) else x._value.spec for x in arrays]
        inferred = op.output_specs(specs, params)
        for y, spec in zip(outputs, inferred, strict=True):
            assert y._value.spec == spec and y.dims() == ""
            assert (y.numpy().shape, y.numpy().dtype) == (spec.shape, spec.dtype)
            if op.kind is not VIEW:
                assert not any(shares_memory(y._value.data, x._value.data) for x in arrays if not is_literal(x))
        assert all(is_literal(x) or same(x.numpy(), old) for x, old in zip(arrays, before))
        if any(not is_literal(x) for x in specs):  # without numbers: the same specs
            empty = as_tuple(op(*[x if is_literal(x) else abstract(x) for x in specs], **params))
            assert tuple(y._value.spec for y in empty) == inferred and empty[0]._value.data is None
        assert all(map(same, results(op(*arrays, **params)), results(outputs)))


@every(NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernel_equals_body_equals_reference(name, dtype):
    op = OPS[name]
    for seed in range(2):
        for inputs, params in cases(op, seed):
            arrays = wrapped(inputs, dtype)
            found = results(op(*arrays, **params))
            with use_backend("reference"):
                arrays = hosted(arrays)
                assert_close(found, results(op(*arrays, **params)), RTOL[dtype])
                if op.body is not None:
                    with alone():
                        assert_close(found, results(op.body(*arrays, **params)), RTOL[dtype])


@every([name for name in NAMES if OPS[name].kind is KERNEL and name in reference.KERNELS])
def test_reference_kernel_fills_all_of_its_outputs(name):
    op = OPS[name]
    for inputs, params in cases(op):
        specs = op.output_specs([x if is_literal(x) else Spec(x.shape, x.dtype) for x in inputs], params)
        filled = []
        for garbage in (0, 1):
            outputs = [np.full(spec.shape, garbage, spec.dtype) for spec in specs]
            reference.KERNELS[name](*outputs, *inputs, **params)
            filled.append(outputs)
        assert all(map(same, *filled))


@every([name for name in NAMES if name != "spacing"])  # which is about the type
def test_single_is_close_to_double(name):
    op = OPS[name]
    for inputs, params in cases(op):
        rounded = [x.astype("float32").astype("float64") if is_real(x) else x for x in inputs]
        found = [
            [y.astype("float64") if is_real(y) else y for y in results(op(*wrapped(rounded, dtype), **params))]
            for dtype in ("float32", "float64")
        ]
        assert_close(*found, 1e-4)


SPECIAL = [0.0, -0.0, 1.0, -1.5, 0.5, 3.0, np.inf, -np.inf, np.nan]


@every(MAPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_special_values(name, dtype):
    op = OPS[name]
    inputs, params = cases(op)[0]
    count = len(inputs)
    if count <= 3:
        rows = np.array(list(itertools.product(SPECIAL, repeat=count)))
    else:
        rows = np.random.default_rng(0).choice(SPECIAL, (500, count))
    arrays = [
        x if is_literal(x) else wrap(column > 0 if op.input_type(i) == "b" else np.ascontiguousarray(column), dtype)
        for i, (x, column) in enumerate(zip(inputs, rows.T))
    ]
    found = results(op(*arrays, **params))
    with use_backend("reference"):
        assert_close(found, results(op(*hosted(arrays), **params)), RTOL[dtype])


# shapes, labels, layouts, literals --------------------------------------------------------------------------------
def of_shape(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a sample input in another shape, repeated as needed."""
    return np.resize(x, shape) if np.prod(shape) else np.empty(shape, x.dtype)


@st.composite
def formats(draw, count):
    """(result's sizes by label and place, a format for each of `count` arrays, which of its sizes are 1)."""
    sizes = {
        letter: [draw(st.integers(0, 3)) for _ in range(draw(st.integers(0, 2 if letter in "SU" else 1)))]
        for letter in "SCBTU"
    }
    arrays = []
    for _ in range(count):
        labels = "".join(letter * draw(st.integers(0, len(places))) for letter, places in sizes.items())
        labels = labels if len(labels) > 1 else labels + "U" * (2 - len(labels))
        nth = [labels[:i].count(letter) for i, letter in enumerate(labels)]
        shape = [1 if k >= len(sizes[c]) or draw(st.booleans()) else sizes[c][k] for c, k in zip(labels, nth)]
        order = draw(st.permutations(range(len(labels))))
        kept = [order.index(i) for i in range(len(labels))]  # equal labels must keep their order among each other
        if any(labels[i] == labels[j] and kept[i] > kept[j] for i, j in itertools.combinations(range(len(labels)), 2)):
            order = range(len(labels))
        arrays.append(("".join(labels[i] for i in order), tuple(shape[i] for i in order)))
    return arrays


def aligned(x: DLArray, labels: str) -> np.ndarray:
    """The numbers of x with a dimension for each of `labels`; the k-th S of x stands at the k-th S there."""
    sizes = []
    for i, letter in enumerate(labels):
        own = [n for n, c in zip(x.shape, x.dims()) if c == letter]
        k = labels[:i].count(letter)
        sizes.append(own[k] if k < len(own) else 1)
    return x.numpy().reshape(sizes)


@pytest.mark.host
@every([name for name in MAPS if name != "cast"])
@given(data=st.data())
def test_map_expands_by_label(name, data):
    op = OPS[name]
    inputs, params = cases(op)[0]
    made = data.draw(formats(len(inputs)))
    arrays = [dlarray(PLACE.get()[0](of_shape(x, shape)), fmt) for x, (fmt, shape) in zip(inputs, made)]
    labels = "".join(c * max(x.dims().count(c) for x in arrays) for c in "SCBTU")
    outputs = as_tuple(op(*arrays, **params))
    plain = [np.array(x) for x in np.broadcast_arrays(*[aligned(x, labels) for x in arrays])]
    while len(labels) > 2 and labels[-1] == "U" and plain[0].shape[-1] == 1:  # the same rule as for dlarray(X, fmt)
        labels, plain = labels[:-1], [x[..., 0] for x in plain]
    assert all(y.dims() == labels for y in outputs)
    with use_backend("reference"):
        assert_close(results(outputs), results(op(*hosted(wrapped(plain)), **params)), 1e-12)


@every(MAPS)
@given(data=st.data())
def test_map_of_unlabelled_arrays_expands_as_numpy_does(name, data):
    op = OPS[name]
    inputs, params = cases(op)[0]
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=len(inputs), min_side=0, max_side=3, max_dims=4))
    arrays = [of_shape(x, shape) for x, shape in zip(inputs, shapes.input_shapes)]
    found = results(op(*wrapped(arrays), **params))
    assert all(y.shape == shapes.result_shape for y in found)
    plain = [np.array(np.broadcast_to(x, shapes.result_shape)) for x in arrays]
    with use_backend("reference"):
        assert_close(found, results(op(*hosted(wrapped(plain)), **params)), 1e-12)


@every(REDUCTIONS)
@given(data=st.data())
def test_reduction_along_any_axes(name, data):
    op = OPS[name]
    inputs, params = cases(op)[0]
    if len(inputs) != 1 or set(params) != {"axes"}:
        pytest.skip("has more inputs or parameters than an array and its axes")
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=4))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    shape = tuple(n if i in axes or data.draw(st.integers(0, 5)) else 0 for i, n in enumerate(shape))
    x = wrap(of_shape(inputs[0], shape))
    found = results(op(x, axes=axes))
    assert found[0].shape == tuple(1 if i in axes else n for i, n in enumerate(shape))
    with use_backend("reference"):
        assert_close(found, results(op(*hosted([x]), axes=axes)), 1e-12)


def spaced(x: np.ndarray) -> np.ndarray:
    """Every second element of a larger array."""
    large = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
    inner = large[tuple([slice(1, None, 2)] * x.ndim)]
    inner[...] = x
    return inner


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "last dimension fastest": np.ascontiguousarray,
    "first dimension fastest": np.asfortranarray,
    "backwards": lambda x: np.ascontiguousarray(np.flip(x)).__getitem__((slice(None, None, -1),) * x.ndim),
    "spaced": spaced,
    "channel first in memory": lambda x: np.ascontiguousarray(np.moveaxis(x, -1, 0)).transpose(*range(1, x.ndim), 0),
}


@every(NAMES)
@settings(max_examples=6)
@given(data=st.data())
def test_memory_layout_does_not_matter(name, data):
    op = OPS[name]
    for inputs, params in cases(op):
        laid = [
            x if is_literal(x) or not x.ndim else LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))](x) for x in inputs
        ]
        assert all(is_literal(x) or same(x, y) for x, y in zip(inputs, laid))
        assert_close(results(op(*wrapped(laid), **params)), results(op(*wrapped(inputs), **params)), 1e-12)


@every([name for name in MAPS if (OPS[name].arity or 3) > 1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_literal_stands_for_an_array_of_it(name, dtype):
    op = OPS[name]
    inputs, params = cases(op)[0]
    arrays = wrapped(inputs, dtype)
    for i, x in enumerate(inputs):
        if is_literal(x) or not any(is_real(y) for k, y in enumerate(inputs) if k != i):
            continue
        number = bool(x.flat[0]) if x.dtype.kind == "b" else float(np.float32(x.flat[0]))
        full = [wrap(np.full(x.shape, number), dtype) if k == i else y for k, y in enumerate(arrays)]
        short = [number if k == i else y for k, y in enumerate(arrays)]
        assert_close(results(op(*short, **params)), results(op(*full, **params)), RTOL[dtype])
        if not op.is_constant:
            wanted = [k for k, y in enumerate(inputs) if k != i and is_real(y)]
            assert_close(*[gradients(op, args, params, wanted) for args in (short, full)], 10 * RTOL[dtype])


# derivatives ------------------------------------------------------------------------------------------------------
def weights(shape: tuple[int, ...], start: float = 1.0) -> np.ndarray:
    return np.cos(start + np.arange(np.prod(shape, dtype=int), dtype="float64")).reshape(shape)


def weighted(arrays: Any, start: float = 1.0) -> Any:
    """One number from many: the weighted sum of all real arrays."""
    sums = [
        OPS["reduce_sum"](y * wrap(weights(y.shape, start + k), y.dtype.name), axes=tuple(range(y.ndim)))
        for k, y in enumerate(arrays)
        if y.dtype.kind == "f"
    ]
    flat = [OPS["view_as"](y, shape=()) for y in sums]
    total = flat[0]
    for y in flat[1:]:
        total = total + y
    return total


def varied(op: Op, args: Inputs, params: dict[str, Any], wanted: list[int]) -> Callable[[list[DLArray]], Any]:
    """The op's weighted outputs as a function of the wanted inputs."""

    def loss(arrays: list[DLArray]) -> Any:
        full = list(args)
        for k, x in zip(wanted, arrays):
            full[k] = x
        return weighted(as_tuple(op(*full, **params)))

    return loss


def gradients(op: Op, args: Inputs, params: dict[str, Any], wanted: list[int]) -> list[np.ndarray]:
    loss = varied(op, args, params, wanted)
    return [g.numpy() for g in dlfeval(lambda xs: dlgradient(loss(xs), xs), [args[k] for k in wanted])]


def slope(function: Callable[[float], float], h: float) -> float:
    """Derivative at 0 by differences, with an error of order h^4."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


@every([name for name in NAMES if not (OPS[name].is_constant or OPS[name].is_choice)])  # a choice alters one way alone
def test_gradients_to_order_two(name):
    op = OPS[name]
    r = np.random.default_rng(zlib.crc32(name.encode()))
    for inputs, params in cases(op):
        wanted = [i for i, x in enumerate(inputs) if is_real(x)]
        if not wanted:
            continue
        args = wrapped(inputs)
        loss = varied(op, args, params, wanted)
        start = [inputs[k] for k in wanted]

        def first(arrays, loss=loss):
            return weighted(dlgradient(loss(arrays), arrays, EnableHigherDerivatives=True), 0.5)

        def both(arrays, loss=loss, first=first):
            g = dlgradient(loss(arrays), arrays, RetainData=True)
            # an op that is linear has a gradient that does not depend on its inputs: 0 * x keeps it on the tape
            return g, dlgradient(first(arrays) + 0.0 * weighted(arrays), arrays)

        found, second = dlfeval(both, wrapped(start))
        for i, x in enumerate(start):
            assert (found[i].shape, found[i].dtype) == (x.shape, x.dtype)
            direction = r.uniform(0.5, 1.0, x.shape) * r.choice([-1, 1], x.shape)

            def moved(t, i=i, x=x, direction=direction, start=start):
                return wrapped([*start[:i], x + t * direction, *start[i + 1 :]])

            for order, function, g in (1, loss, found), (2, lambda xs, f=first: dlfeval(f, xs), second):
                step, error = (1e-4, 1e-8) if function(moved(0)).dtype == "float64" else (0.1, 1e-5)
                expected = slope(lambda t, f=function, moved=moved: f(moved(t)).item(), step)
                got = float(np.sum(g[i].numpy() * direction))
                scale = float(np.sum(np.abs(g[i].numpy()))) + 1.0
                assert got == pytest.approx(expected, rel=1e2 * error, abs=error * scale), f"order {order}, {wanted[i]}"


# replay -----------------------------------------------------------------------------------------------------------
@every(NAMES)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_replay_equals_the_plain_call(name, mode):
    op = OPS[name]
    inputs, params = cases(op)[0]
    wanted = [] if op.is_constant else [i for i, x in enumerate(inputs) if is_real(x)]

    def plain(args):
        outputs = list(as_tuple(op(*args, **params)))
        if not wanted:
            return outputs
        return outputs + dlgradient(weighted(outputs), [args[i] for i in wanted])

    accelerated = dlaccelerate(plain, Numerics=mode)
    for seed in range(3):
        args = wrapped(cases(op, seed)[0][0], "float32")
        expected, found = results(tuple(dlfeval(plain, args))), results(tuple(dlfeval(accelerated, args)))
        if mode == "exact":
            assert all(map(same, found, expected))
        else:
            assert_close(found, expected, 1e-4)
    assert accelerated.HitRate > 0 or not any(isinstance(x, np.ndarray) for x in inputs)
