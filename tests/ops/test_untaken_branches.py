"""N3: a branch that is not taken has no share in a gradient, however steep it is; one that is taken keeps its own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import minidl as m
from minidl import dlaccelerate, dlarray, dlfeval, dlgradient
from minidl.core.op import MAP, OPS

INF, NAN = math.inf, math.nan
POINTS = [0.0, -0.0, 1.0, -1.0, INF, -INF, 1e30, NAN]
MODES = {"plain": lambda f: f, "fast": dlaccelerate, "exact": lambda f: dlaccelerate(f, Numerics="exact")}
NAMES = [
    name for name, op in sorted(OPS.items())
    if op.kind is MAP and not (op.is_constant or op.is_users) and op.output_types == "f" and "f" in op.input_types
]  # fmt: skip


def slopes(function):
    """First derivatives of the sum, and those of their sum."""

    def f(*x):
        g = dlgradient(m.sum(function(*x), "all"), list(x), EnableHigherDerivatives=True)
        total = m.sum(m.where(np.zeros(x[0].shape, bool), x[0], 0), "all")  # traced, also where the derivative is not
        for one in g:
            total = total + m.sum(one, "all")
        return g, dlgradient(total, list(x))

    return f


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("name", NAMES)
def test_N3_no_op_has_a_share_where_its_gradient_is_0(name, mode):
    op = OPS[name]
    r = np.random.default_rng(0)
    sample, params = op.samples(r)[0] if op.samples else ([None] * (op.arity or 3), {})
    rows = [POINTS] * len(sample)
    table = np.array(list(itertools.product(*rows)) if len(sample) < 3 else r.choice(POINTS, (100, len(sample))))
    columns = [c > 0 if op.input_type(i) == "b" else c for i, c in enumerate(table.T)]
    reals = [i for i, c in enumerate(columns) if c.dtype.kind == "f"]

    def untaken(*x):
        full = list(columns)
        for i, one in zip(reals, x):
            full[i] = one
        return m.where(np.zeros(len(table), bool), op(*full, **params), 0)

    x = [dlarray(columns[i]) for i in reals]
    f = MODES[mode](slopes(untaken))
    for _ in range(1 if mode == "plain" else 2):
        for order in dlfeval(f, *x):
            for g in order:
                assert (g.numpy() == 0).all()


ROWS = np.array([[0, 0, 0], [1, 1, 1], [-1, 0, 1], [INF, 1, 0], [-INF, -INF, -INF], [NAN, 1e30, 2]])
FUNCTIONS = {
    "vecnorm": lambda x: m.vecnorm(x, 2, 1), "vecnorm 1": lambda x: m.vecnorm(x, 1, 1),
    "vecnorm 3": lambda x: m.vecnorm(x, 3, 1), "vecnorm 1/2": lambda x: m.vecnorm(x, 0.5, 1),
    "vecnorm inf": lambda x: m.vecnorm(x, INF, 1), "std": lambda x: m.std(x, 0, 1), "var": lambda x: m.var(x, 0, 1),
    "prod": lambda x: m.prod(x, 1), "cumprod": lambda x: m.cumprod(x, 1), "sort": lambda x: m.sort(x, 1),
    "median": lambda x: m.median(x, 1), "logsumexp": lambda x: m.logsumexp(x, 1),
    "softmax": lambda x: m.softmax(x, DataFormat="BC"), "logsoftmax": lambda x: m.logsoftmax(x, DataFormat="BC"),
    "log softmax": lambda x: m.log(m.softmax(x, DataFormat="BC")),
    "log(1 - softmax)": lambda x: m.log(1 - m.softmax(x, DataFormat="BC")),
    "x^x": lambda x: x**x, "x^0.5": lambda x: x**0.5, "x^-2": lambda x: x**-2, "2^x": lambda x: 2**x,
    "x / x": lambda x: x / x, "sec": m.sec, "csc": m.csc, "cot": m.cot, "x log x": lambda x: x * m.log(x),
    "x / |x|": lambda x: x / m.vecnorm(x, 2, 1), "sin(x) / x": lambda x: m.sin(x) / x,
    "crossentropy": lambda x: m.crossentropy(x, np.ones((6, 3)), DataFormat="BC", Reduction="none"),
    "multilabel": lambda x: m.crossentropy(
        m.sigmoid(x), np.ones((6, 3)) / 2, DataFormat="BC", Reduction="none", ClassificationMode="multilabel"
    ),
    "huber": lambda x: m.huber(x, np.zeros((6, 3)), DataFormat="BC", Reduction="none"),
    "l1loss": lambda x: m.l1loss(x, np.zeros((6, 3)), DataFormat="BC", Reduction="none"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_N3_functions_of_rows_have_no_share(name):
    f = slopes(lambda x: m.where(np.zeros((6, 1), bool), FUNCTIONS[name](x), 0))
    accelerated = dlaccelerate(f)
    for g in (f, accelerated, accelerated):
        for order in dlfeval(g, dlarray(ROWS)):
            assert (order[0].numpy() == 0).all()


CASES = {  # function, point, first derivative, second derivative (None: not asked)
    "root": (lambda x: m.where(x > 0, m.sqrt(x), 0), 0.0, 0.0, 0.0),
    "distance": (lambda x: np.maximum(m.sqrt(x * x + x * x), 1e-3), 0.0, 0.0, 0.0),
    "quotient": (lambda n: m.where(n > 1, 3 / n, n), 0.0, 1.0, 0.0),
    "overflow": (lambda x: m.where(x < 100, m.exp(x), 0), 1000.0, 0.0, 0.0),
    "product": (lambda x: m.where(x < 5, x * (1 / (x - 7)), x), 7.0, 1.0, 0.0),
    "missing": (lambda x: m.where(m.isnan(x), 0, m.tanh(x)), NAN, 0.0, 0.0),
    "taken": (m.sqrt, 0.0, INF, None),
    "taken too": (lambda x: m.where(x >= 0, m.log(x), 0), 0.0, INF, None),
    "NaN of its own": (lambda x: m.sqrt(x) * NAN, 1.0, NAN, NAN),
    "a minimum": (lambda x: (m.sqrt(x) - 1) ** 2, 1.0, 0.0, 0.5),  # the gradient is 0, and no branch
    "another": (lambda x: m.log(x) ** 2, 1.0, 0.0, 2.0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_N3_right_derivatives(name, mode, place):
    function, at, first, second = CASES[name]
    f = MODES[mode](slopes(function))
    for _ in range(1 if mode == "plain" else 2):
        g, h = dlfeval(f, dlarray(place(np.array([at]))))
        np.testing.assert_allclose(g[0].numpy(), first, rtol=1e-12)
        if second is not None:
            np.testing.assert_allclose(h[0].numpy(), second, rtol=1e-12)


@pytest.mark.parametrize("square", [lambda n: n**2, lambda n: n * n, m.square, np.square])
@pytest.mark.parametrize("at", [[0.0, 0.0], [3.0, 4.0]])
def test_N3_the_square_of_a_norm_has_a_second_derivative_everywhere(square, at):
    v = np.array([0.5, -2.0])

    def f(x):
        g = dlgradient(square(m.vecnorm(x)).sum("all"), x, EnableHigherDerivatives=True)
        return g, dlgradient((g * v).sum("all"), x)

    accelerated = dlaccelerate(f)
    for run in (f, accelerated, accelerated):
        g, h = dlfeval(run, dlarray(np.array(at)))
        np.testing.assert_allclose(g.numpy(), 2 * np.array(at), rtol=1e-12)
        np.testing.assert_allclose(h.numpy(), 2 * v, rtol=1e-12)


def test_N3_ops_of_users_have_no_share_either():
    @m.op(MAP, text="sqrt(fabs({0}))")
    def root_of_size(x):
        "sqrt(|x|)."

    @root_of_size.vjp
    def _(g, y, x):
        return (g * m.sign(x) / (2 * y),)

    f = slopes(lambda x: m.where(x > 0, root_of_size(x), x))
    g, h = dlfeval(f, dlarray(np.array([0.0, 4.0])))
    np.testing.assert_allclose(g[0].numpy(), [1, 0.25])
    np.testing.assert_allclose(h[0].numpy(), [0, -1 / 32])
