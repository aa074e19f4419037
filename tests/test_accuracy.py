"""Every MAP op of the registry in single precision against double: values and first derivatives, plain and replayed,
of numbers of every size. A new op needs no line here. (Solvers have operands whose sizes are bound to each other.)

Allowed is what rounding may cost: some units in the last place, and as many more as the arguments' own last places
are worth (the condition of the function there). What double precision shows to be a number must be one.
"""

from __future__ import annotations

import importlib
import pkgutil
import zlib

import numpy as np
import pytest
from scipy import special

import minidl as m
import minidl.ops
import minidl.train
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient
from minidl.backends import use_backend
from minidl.core.op import MAP, OPS

for _module in pkgutil.iter_modules(minidl.ops.__path__):
    importlib.import_module(f"minidl.ops.{_module.name}")

SINGLE = np.finfo(np.float32)
STEP = 1e-7  # of arguments, for the condition
MAPS = sorted(
    name for name, op in OPS.items()
    if op.kind is MAP and set(op.input_types) == set(op.output_types) == {"f"} and op.arity and not op.is_users
    and op.arity <= 3 and not op.samples or name in ("abs", "rem", "mod", "maximum", "minimum", "larger", "smaller")
)  # fmt: skip


def arguments(name: str, count: int) -> list[np.ndarray]:
    """Numbers of every size and sign, and such of modest size; of two operands many of like size."""
    r = np.random.default_rng(zlib.crc32(name.encode()))
    n = 400
    sizes = 10.0 ** r.uniform(-38, 38, n)
    found = []
    for k in range(count):
        like = sizes * r.uniform(0.1, 10, n) if k else sizes
        wild = 10.0 ** r.uniform(-38, 38, n)
        modest, near = r.uniform(-100, 100, n), r.uniform(-12, 12, n)
        one = 1 - 10.0 ** r.uniform(-6, 0, n)
        found.append(np.concatenate([r.choice([-1, 1], 3 * n) * np.concatenate([like, wild, one]), modest, near]))
    with np.errstate(over="ignore"):
        return [np.clip(x, -1e38, 1e38).astype(np.float32) for x in found]


def values_and_slopes(op):
    """The op's results and the derivatives of the first one by each operand."""

    def function(*xs):
        ys = op(*xs)
        ys = ys if isinstance(ys, tuple) else (ys,)
        return ys if op.is_constant else (*ys, *dlgradient(m.sum(ys[0], "all"), list(xs)))

    return function


def results(function, xs, dtype):
    with np.errstate(all="ignore"):
        return [y.numpy() for y in dlfeval(function, *[dlarray(x.astype(dtype)) for x in xs])]


def condition(function, xs, wanted):
    """How many times as large as the arguments' relative changes those of the results are."""
    total = [np.zeros(y.shape) for y in wanted]
    for k in range(len(xs)):
        for step in (STEP, -STEP):
            moved = [x.astype(np.float64) * (1 + step) if i == k else x for i, x in enumerate(xs)]
            for t, a, b in zip(total, results(function, moved, np.float64), wanted):
                with np.errstate(all="ignore"):
                    t += np.nan_to_num(np.abs(a - b) / (STEP * np.abs(b)), nan=0.0, posinf=1e30)
    return total


def complaints(found, wanted, worth, xs):
    """Where a result in single precision is not what double precision says it is."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(np.float32)
        bound = np.abs(wanted) * SINGLE.eps * (16 + 4 * worth) + 4 * SINGLE.tiny
        is_right = np.abs(found.astype(np.float64) - wanted) <= bound
    is_right |= np.isnan(wanted) | (rounded == found)
    is_right |= ~np.isfinite(found) & (np.abs(wanted) > 0.99 * SINGLE.max)  # parts of it may be infinite, too
    return [(*[float(x[i]) for x in xs], float(found[i]), float(wanted[i])) for i in np.flatnonzero(~is_right)]


@pytest.mark.parametrize("name", MAPS)
def test_N6_single_precision_has_the_digits_that_double_shows(name):
    op = OPS[name]
    xs, function = arguments(name, op.arity), values_and_slopes(op)
    with use_backend("reference"):
        wanted = results(function, xs, np.float64)
        worth = condition(function, xs, wanted)
    accelerated = dlaccelerate(function)
    ways = {"plain": function, "recorded": accelerated, "replayed": accelerated}
    for way, run in ways.items():
        for k, y in enumerate(results(run, xs, np.float32)):
            bad = complaints(y, wanted[k], worth[k], xs)
            what = "value" if k < len(op.output_types) else f"derivative by operand {k - len(op.output_types)}"
            assert not bad, f"{way}, {what}: {len(bad)} are wrong: arguments, found, right: {bad[:3]}"
    assert accelerated.HitRate > 0


# right values by hand -------------------------------------------------------------------------------------------
inf, nan = np.inf, np.nan
WAYS = {
    "plain": lambda function: function,
    "fast": lambda function: replayed(dlaccelerate(function)),
    "exact": lambda function: replayed(dlaccelerate(function, Numerics="exact")),
}


def replayed(accelerated):
    """The function, of which the second call of each kind is looked at."""

    def run(*args):
        dlfeval(accelerated, *args)
        return accelerated(*args)

    return run


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_N6_hypot_of_an_infinity_is_infinite(way, dtype, place):
    a, b = np.array([(a, b) for a in (inf, -inf, nan, 3.0, 0.0) for b in (inf, -inf, nan, 4.0, 0.0)], dtype).T
    found = dlfeval(way(m.hypot), dlarray(place(a.copy())), dlarray(place(b.copy())))
    np.testing.assert_array_equal(m.gather(found).numpy(), np.hypot(a, b))
    assert dlfeval(way(lambda x: m.hypot(x, inf)), dlarray(nan)).item() == inf


TAILS = {  # function, its values and its slopes in double precision
    "sigmoid": (m.sigmoid, special.expit, lambda x: special.expit(x) * special.expit(-x)),
    "gelu": (m.gelu, lambda x: x * special.ndtr(x),
             lambda x: special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)),
    "tanh": (m.tanh, np.tanh, lambda x: 4 * special.expit(2 * x) * special.expit(-2 * x)),
    "erfc": (OPS["erfc"], special.erfc, lambda x: -2 / np.sqrt(np.pi) * np.exp(-x * x)),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_N6_tails_keep_their_digits(name, way):
    function, values, slopes = TAILS[name]
    x = np.concatenate([np.linspace(-104, 104, 417), np.linspace(-14, 14, 449), [-5, -88.8, -0.0]]).astype("float32")
    wide = x.astype(float)
    y, g = dlfeval(way(lambda x: (function(x), dlgradient(m.sum(function(x), "all"), x))), dlarray(x))
    for found, wanted in ((y, values(wide)), (g, slopes(wide))):
        assert found.dtype == np.float32
        # arguments of exp are as large as x or x^2, and rounded
        rounding = SINGLE.eps * (8 + wide * wide) * np.abs(wanted) + 16 * SINGLE.smallest_subnormal
        error = np.abs(found.numpy() - wanted)
        error[np.abs(wide + 0.75) < 0.1] *= name != "gelu"  # where its slope is the difference of two numbers
        worst = np.argmax(error - rounding)
        assert error[worst] <= rounding[worst], (x[worst], found.numpy()[worst], wanted[worst])


def test_N6_tails_at_infinity(way):
    x = dlarray(np.array([-inf, inf, nan, -1e30, 1e30]))
    run = way(lambda x: (m.sigmoid(x), m.gelu(x), m.gelu(x, Approximation="tanh"), OPS["erfc"](x)))
    sigmoid, gelu, gelu_tanh, erfc = (y.numpy() for y in dlfeval(run, x))
    np.testing.assert_array_equal(sigmoid, [0, 1, nan, 0, 1])
    np.testing.assert_array_equal(gelu, [0, inf, nan, 0, 1e30])
    np.testing.assert_array_equal(gelu_tanh, [0, inf, nan, 0, 1e30])
    np.testing.assert_array_equal(erfc, [2, 0, nan, 2, 0])


SCALES = [("float32", scale) for scale in (1e-25, 1e25, 1e-37, 3e37, 1.0)]
SCALES += [("float64", scale) for scale in (1e-200, 1e200, 1e-300, 1e307, 1.0)]


@pytest.mark.parametrize("dtype, scale", SCALES)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4.5, inf])
def test_N6_norms_of_any_scale(dtype, scale, p, way):
    v = np.array([3.0, -4.0, 0.0, 1.0])
    size = np.linalg.norm(v, p)
    slope = np.sign(v) * (np.abs(v) / size) ** (p - 1) if p != inf else np.where(np.abs(v) == 4, np.sign(v), 0)
    run = way(lambda x: (m.vecnorm(x, p), dlgradient(m.sum(m.vecnorm(x, p), "all"), x)))
    y, g = dlfeval(run, dlarray((v * scale).astype(dtype)))
    digits = {"float32": 2e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(y.numpy() / np.asarray(scale, dtype), [size], rtol=digits)
    np.testing.assert_allclose(g.numpy(), slope, rtol=digits)


@pytest.mark.parametrize("w", [0, 1])
@pytest.mark.parametrize("dtype, scale", SCALES[:2] + SCALES[5:7])
def test_N6_deviations_of_any_scale(dtype, scale, w, way):
    x = np.array([3.0, 5.0, 4.0, 9.0])
    run = way(lambda x: (m.std(x, w), dlgradient(m.sum(m.std(x, w), "all"), x)))
    y, g = dlfeval(run, dlarray((x * scale).astype(dtype)))
    size = np.std(x, ddof=1 - w)
    np.testing.assert_allclose(np.std(dlarray((x * scale).astype(dtype)), ddof=1 - w).item() / scale, size, rtol=1e-6)
    np.testing.assert_allclose(y.numpy() / np.asarray(scale, dtype), [size], rtol=1e-6)
    np.testing.assert_allclose(g.numpy(), (x - x.mean()) / size / (3 + w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_N6_norms_of_what_is_no_number(p, way):
    norm = way(lambda x: m.vecnorm(x, p, 1))
    x = np.array([[0.0, 0.0], [inf, 1.0], [-inf, 0.0], [nan, 1.0], [nan, inf], [nan, nan]])
    np.testing.assert_array_equal(dlfeval(norm, dlarray(x)).numpy()[:, 0], [0, inf, inf, nan, nan, nan])
    assert dlfeval(norm, dlarray(np.zeros((2, 0)))).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_N6_second_derivatives_of_norms_of_any_scale(scale, way):
    """Of norm(x): (I - x x' / y^2) / y."""

    def product(x, v):
        g = dlgradient(m.sum(m.vecnorm(x), "all"), x, EnableHigherDerivatives=True)
        return dlgradient(m.sum(g * v, "all"), x)

    x, v = np.array([3.0, 4.0, 0.0]), np.array([1.0, -2.0, 0.5])
    wanted = (v - x * (x @ v) / 25) / 5
    for dtype, digits in (("float32", 1e-6), ("float64", 1e-13)):
        found = dlfeval(way(product), dlarray((x * scale).astype(dtype)), dlarray(v.astype(dtype)))
        np.testing.assert_allclose(found.numpy() * np.asarray(scale, dtype), wanted, rtol=digits, atol=digits)
