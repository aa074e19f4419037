"""Element-wise functions: values against Python's mathematics, corners, types, labels, derivatives, wrong input."""

import math

import numpy as np
import pytest
from finite_differences import check_derivatives

import minidl.ops as m
from minidl.accelerate import dlaccelerate
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import DTypeError, LabelError, OptionError, ShapeError

nan, inf = math.nan, math.inf
POINTS = np.array([-2.5, -1.5, -0.7, -0.5, 0.0, 0.3, 0.5, 1.0, 1.5, 2.5])
POSITIVE = np.array([0.1, 0.5, 1.0, 2.0, 7.5])
UNIT = np.array([-0.9, -0.3, 0.0, 0.2, 0.99])


def away(x):
    return math.copysign(math.floor(abs(x) + 0.5), x)


ONE = {  # name: (function of one number, points)
    "uminus": (lambda x: -x, POINTS), "uplus": (lambda x: x, POINTS), "abs": (abs, POINTS),
    "sign": (lambda x: math.copysign(x != 0, x), POINTS), "square": (lambda x: x * x, POINTS),
    "exp": (math.exp, POINTS), "expm1": (math.expm1, POINTS), "log": (math.log, POSITIVE),
    "log2": (math.log2, POSITIVE),
    "log10": (math.log10, POSITIVE), "log1p": (math.log1p, POSITIVE), "sqrt": (math.sqrt, POSITIVE),
    "sin": (math.sin, POINTS), "cos": (math.cos, POINTS), "tan": (math.tan, POINTS),
    "sec": (lambda x: 1 / math.cos(x), POINTS), "csc": (lambda x: 1 / math.sin(x), POSITIVE),
    "cot": (lambda x: 1 / math.tan(x), POSITIVE), "asin": (math.asin, UNIT), "acos": (math.acos, UNIT),
    "atan": (math.atan, POINTS), "sinh": (math.sinh, POINTS), "cosh": (math.cosh, POINTS), "tanh": (math.tanh, POINTS),
    "asinh": (math.asinh, POINTS), "acosh": (math.acosh, POSITIVE + 1), "atanh": (math.atanh, UNIT),
    "floor": (math.floor, POINTS), "ceil": (math.ceil, POINTS), "fix": (math.trunc, POINTS), "round": (away, POINTS),
    "erf": (math.erf, np.linspace(-6.5, 6.5, 1001)), "real": (lambda x: x, POINTS), "imag": (lambda x: 0.0, POINTS),
    "conj": (lambda x: x, POINTS), "eps": (math.ulp, POINTS), "isnan": (math.isnan, POINTS),
    "isinf": (math.isinf, POINTS), "isfinite": (math.isfinite, POINTS), "not_": (lambda x: not x, POINTS),
}  # fmt: skip

TWO = {
    "plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b,
    "rdivide": lambda a, b: a / b, "ldivide": lambda a, b: b / a, "atan2": math.atan2, "hypot": math.hypot,
    "mod": lambda a, b: a % b, "rem": math.fmod, "max": max, "min": min, "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b, "and_": lambda a, b: bool(a and b), "or_": lambda a, b: bool(a or b),
    "xor": lambda a, b: bool(a) != bool(b),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_input(name, dtype):
    function, points = ONE[name]
    if name == "eps" and dtype == "float32":
        pytest.skip("about the type itself")
    y = getattr(m, name)(dlarray(points.astype(dtype)))
    expected = np.array([function(x) for x in points])
    assert y.dtype == (bool if expected.dtype == bool else dtype)
    np.testing.assert_allclose(y.numpy(), expected, rtol=3e-15 if dtype == "float64" else 3e-6, atol=0)


@pytest.mark.parametrize("name", TWO)
def test_two_inputs(name):
    a, b = np.array([-2.5, -1.0, 0.7, 2.0, 3.0, 0.5]), np.array([1.5, -1.0, 0.25, 3.0, -2.0, 0.5])
    y = getattr(m, name)(dlarray(a), dlarray(b))
    expected = np.array([TWO[name](x, z) for x, z in zip(a.tolist(), b.tolist())])
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-15)
    assert y.dtype == expected.dtype


CORNERS = [  # expression, value; MATLAB's, unless a docstring says otherwise
    ("m.mod(dlarray(5.0), 0)", 5.0), ("m.mod(dlarray(-1.0), 3)", 2.0), ("m.mod(dlarray(1.0), -3)", -2.0),
    ("m.mod(dlarray(-6.0), 3)", -0.0), ("m.mod(5, dlarray(3.0))", 2.0), ("m.mod(dlarray(inf), 3)", nan),
    ("m.rem(dlarray(-1.0), 3)", -1.0), ("m.rem(dlarray(5.0), 0)", nan), ("m.rem(dlarray(5.0), inf)", 5.0),
    ("m.max(dlarray(nan), 1)", 1.0), ("m.max(2, dlarray(nan))", 2.0), ("m.min(dlarray(nan), dlarray(nan))", nan),
    ("m.round(dlarray(0.49999999999999994))", 0.0), ("m.round(dlarray(-2.5))", -3.0), ("m.round(dlarray(inf))", inf),
    ("m.sign(dlarray(nan))", nan), ("m.log(dlarray(0.0))", -inf), ("m.log(dlarray(-1.0))", nan),
    ("m.sqrt(dlarray(-1.0))", nan), ("m.asin(dlarray(2.0))", nan), ("m.power(dlarray(0.0), 0)", 1.0),
    ("m.power(dlarray(nan), dlarray(0.0))", 1.0), ("m.power(dlarray(-8.0), 3)", -512.0),
    ("m.power(dlarray(-8.0), 1 / 3)", nan), ("m.power(dlarray(4.0), -1)", 0.25), ("m.power(2, dlarray(3.0))", 8.0),
    ("m.power(dlarray(4.0), 0.5)", 2.0), ("m.power(dlarray(True), 1)", 1.0), ("m.realpow(dlarray(2.0), 4)", 16.0),
    ("dlarray(1.0) / 0", inf), ("dlarray(0.0) / 0", nan), ("-1 / dlarray(0.0)", -inf), ("7 // dlarray(2.0)", 3.0),
    ("dlarray(-7.0) % 3", 2.0), ("2 ** dlarray(3.0)", 8.0), ("1 - dlarray(3.0)", -2.0), ("abs(dlarray(-3.0))", 3.0),
    ("m.hypot(3, dlarray(4.0))", 5.0), ("m.hypot(dlarray(1e200), 1e200)", math.hypot(1e200, 1e200)),
    ("m.hypot(dlarray(0.0), 0)", 0.0), ("m.hypot(dlarray(inf), 1)", inf), ("m.hypot(dlarray(nan), 1)", nan),
    ("m.atan2(dlarray(0.0), -1)", math.pi), ("m.erf(dlarray(inf))", 1.0), ("m.erf(dlarray(-30.0))", -1.0),
    ("m.erf(dlarray(nan))", nan), ("m.expm1(dlarray(1e-18))", 1e-18), ("m.log1p(dlarray(1e-18))", 1e-18),
    ("m.eps()", 2.0**-52), ("m.eps('single')", 2.0**-23), ("m.eps(dlarray(0.0))", 5e-324), ("m.eps(dlarray(inf))", nan),
    ("m.eps(dlarray(np.float32(1)))", 2.0**-23), ("m.imag(dlarray(inf))", 0.0), ("m.where(True, dlarray(1.0), 2)", 1.0),
    ("m.where(dlarray(False), 1, 2)", 2.0), ("m.plus(1, 2)", 3.0), ("dlarray(True) + True", 2.0),
    ("m.times(dlarray(True), dlarray(True))", 1.0), ("m.and_(dlarray(3.0), 0.5)", True),
    ("m.not_(dlarray(nan))", False),
    ("~dlarray(True)", False), ("dlarray(True) & False", False), ("True | dlarray(False)", True),
    ("dlarray(2.0) ^ True", False), ("m.isnan(dlarray(True))", False), ("dlarray(1.0) == True", True),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", CORNERS, ids=[text for text, _ in CORNERS])
def test_corners(text, expected):
    y = eval(text)
    y = y.item() if isinstance(y, DLArray) else y
    assert type(y) is type(expected)
    assert y == expected or (y != y and expected != expected)


TYPES = [  # operands, type of their sum, type of their comparison is always logical
    (np.float32([1]), np.float64([1]), "float32"), (np.float64([1]), np.float64([1]), "float64"),
    (np.array([True]), np.array([True]), "float64"), (np.array([True]), np.float32([1]), "float32"),
    (np.float32([1]), 2, "float32"), (np.float32([1]), 0.1, "float32"), (np.float32([1]), np.float64(0.1), "float32"),
    (np.float32([1]), True, "float32"), (np.array([True]), 0.5, "float64"),
]  # fmt: skip


@pytest.mark.parametrize("a, b, dtype", TYPES)
def test_common_type(a, b, dtype):
    for x, y in ((dlarray(a), b), (b, dlarray(a))):
        assert m.plus(x, y).dtype == m.times(x, y).dtype == m.max(x, y).dtype == m.where(True, x, y).dtype == dtype
        assert m.lt(x, y).dtype == m.and_(x, y).dtype == bool


FORMATS = [  # labels and sizes of two operands, and of the result
    ("SC", (3, 2), "SSCB", (3, 4, 2, 5), "SSCB", (3, 4, 2, 5)),
    ("CB", (2, 5), "CB", (2, 1), "CB", (2, 5)),
    ("CB", (2, 5), "BT", (5, 7), "CBT", (2, 5, 7)),
    ("SSC", (3, 4, 2), "SC", (3, 2), "SSC", (3, 4, 2)),
    ("CU", (2, 1), "BU", (5, 1), "CBU", (2, 5, 1)),
    ("UU", (3, 2), "CU", (4, 3), "CUU", (4, 3, 2)),
    ("CB", (2, 5), "", (), "CB", (2, 5)),
    ("CB", (2, 5), "", (2,), "CB", (2, 5)),
    ("CB", (2, 5), "", (2, 1), "CB", (2, 5)),
    ("CB", (1, 5), "", (2, 5), "CB", (2, 5)),
    ("", (3, 1), "", (4,), "", (3, 4)),
]


@pytest.mark.parametrize("fa, sa, fb, sb, f, s", FORMATS)
def test_labels_are_matched(fa, sa, fb, sb, f, s):
    r = np.random.default_rng(1)
    a, b = r.normal(size=sa), r.normal(size=sb)
    x, y = (dlarray(v, fmt) if fmt else dlarray(v) for v, fmt in ((a, fa), (b, fb)))
    left, right = m.minus(x, y), m.minus(y, x)
    f, s = (f[:-1], s[:-1]) if len(f) > 2 and f[-1] == "U" and s[-1] == 1 else (f, s)
    assert (left.dims(), left.shape) == (right.dims(), right.shape) == (f, s)
    np.testing.assert_array_equal(left.numpy(), -right.numpy())
    assert m.lt(x, y).dims() == m.where(m.lt(x, y), x, y).dims() == f


def test_a_matched_sum_in_numbers():
    x = dlarray(np.arange(6.0).reshape(2, 3), "SC")
    y = dlarray(np.arange(3.0) * 10, "C")
    np.testing.assert_array_equal((x + y).numpy().squeeze(), np.arange(6.0).reshape(2, 3) + np.arange(3.0) * 10)


SMOOTH_ONE = [name for name in ONE if name not in (
    "sign", "floor", "ceil", "fix", "round", "eps", "isnan", "isinf", "isfinite", "not_", "uplus", "conj", "real",
    "imag")]


def squared(f):
    """f, made non-linear: gradients of linear functions are constants, which have no further ones."""
    return lambda *xs: m.square(f(*xs))


@pytest.mark.parametrize("name", SMOOTH_ONE)
def test_derivatives_of_one_input(name):
    points = ONE[name][1]
    points = points[:: len(points) // 5]
    check_derivatives(squared(getattr(m, name)), points[points != 0] * 0.93 + 0.01, rtol=1e-5)


SMOOTH_TWO = ["plus", "minus", "times", "rdivide", "ldivide", "atan2", "hypot", "mod", "rem", "max", "min"]


@pytest.mark.parametrize("name", SMOOTH_TWO)
def test_derivatives_of_two_inputs(name):
    a, b = np.array([-2.6, 0.7, 2.1, 3.3]), np.array([1.5, -0.4, 0.9, -2.0])
    f = squared(getattr(m, name))
    check_derivatives(f, a, b)
    check_derivatives(lambda x: f(x, 1.25), a)
    check_derivatives(lambda x: f(1.25, x), a)
    check_derivatives(f, a[:, None], b)  # expanded


@pytest.mark.parametrize("p", [1, 2, 3, -1, -2, 0.5, 1.7, 2.0])
def test_derivatives_of_powers(p):
    x = np.array([0.4, 1.0, 2.2])
    check_derivatives(squared(lambda x: m.power(x, p)), x)
    check_derivatives(lambda p: m.power(1.7, p), x)
    check_derivatives(m.power, x, np.array([p, p, p], float))


KINKS = [  # function, point, its gradient there
    (lambda x: abs(x), 0.0, 0.0), (lambda x: m.max(x, 0), 0.0, 1.0), (lambda x: m.max(0, x), 0.0, 0.0),
    (lambda x: m.min(x, 0), 0.0, 1.0), (lambda x: m.min(0, x), 0.0, 0.0), (lambda x: m.max(x, nan), 2.0, 1.0),
    (lambda x: m.max(nan, x), 2.0, 1.0), (lambda x: m.power(x, 0), 0.0, 0.0), (lambda x: m.power(x, 1), 0.0, 1.0),
    (lambda x: m.power(x, 2), 0.0, 0.0), (lambda x: m.power(x, dlarray(2.0)), 0.0, 0.0),
    (lambda x: m.power(x, dlarray(0.0)), 0.0, 0.0), (lambda x: m.power(0, x), 2.0, 0.0),
    (lambda x: m.power(dlarray(0.0), x), 2.0, 0.0), (lambda x: m.power(dlarray(2.0), x), 0.0, math.log(2)),
    (lambda x: m.power(x, 3), -2.0, 12.0), (lambda x: m.hypot(x, 0), 0.0, 0.0), (lambda x: m.sqrt(x), 0.0, inf),
    (lambda x: m.round(x) + m.floor(x) + m.sign(x), 0.3, 0.0), (lambda x: m.mod(x, 0), 2.0, 1.0),
    (lambda x: m.mod(2, x), 0.0, 0.0), (lambda x: m.where(m.gt(x, 0), m.log(x), x), -1.0, 1.0),
    (lambda x: m.times(x, m.gt(x, 0)), 2.0, 1.0), (lambda x: m.imag(x) + m.real(x), 2.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("function, point, expected", KINKS)
def test_gradients_at_corners(function, point, expected):
    assert dlfeval(lambda x: dlgradient(m.sum(function(x), "all"), x), dlarray(point)).item() == expected


def test_second_derivative_of_power_at_zero_exponent():
    def fun(a, b):
        g = dlgradient(m.power(a, b), a, EnableHigherDerivatives=True)
        return g, dlgradient(g, b)

    g, h = dlfeval(fun, dlarray(2.0), dlarray(0.0))
    assert (g.item(), h.item()) == (0.0, 0.5)  # d/db b a^(b-1) = a^(b-1) (1 + b log a)


def test_rounding_replays_as_it_runs():
    x = dlarray([0.49999999999999994, -0.5, 2.5, -0.3, 4503599627370497.0, nan, inf])
    replay = dlaccelerate(lambda x: m.round(x))
    for _ in range(2):
        np.testing.assert_array_equal(replay(x).numpy(), [0, -1, 3, 0, 4503599627370497.0, nan, inf])


def test_inputs_of_many_kinds():
    x = dlarray(np.float32([1, 2]))
    for other in (np.float32([3, 4]), [3, 4], np.array([3.0, 4.0]), dlarray([3.0, 4.0])):
        assert (x + other).tolist() == m.plus(other, x).tolist() == [4, 6]
        assert (x + other).dtype == np.float32
    assert (x * np.float64(2)).dtype == (np.float64(2) * x).dtype == np.float32
    assert m.sin(0.0).item() == 0.0


BAD = [  # call, error, a word of its text
    (lambda: dlarray(np.zeros((2, 3))) + dlarray(np.zeros((2, 4))), ShapeError, "plus: sizes"),
    (lambda: dlarray(np.zeros((2, 3)), "CB") * dlarray(np.zeros((2, 4)), "CB"), ShapeError, "batch"),
    (lambda: dlarray(np.zeros((2, 3)), "CB") - np.zeros((2, 3, 4)), LabelError, "Label it"),
    (lambda: dlarray(1.0) + "text", DTypeError, "onehotencode"),
    (lambda: dlarray(1.0) + np.array([1, 2], np.int32), DTypeError, "astype"),
    (lambda: dlarray(1.0) + 2j, DTypeError, "real"),
    (lambda: m.exp(None), DTypeError, "exp"),
    (lambda: m.eps("half"), OptionError, "single"),
    (lambda: m.eps(dlarray(True)), DTypeError, "Convert"),
    (lambda: m.max(dlarray([1.0, 2.0]), dlarray([1.0]), 0), OptionError, "[]"),
]


@pytest.mark.parametrize("call, error, word", BAD)
def test_bad_input(call, error, word, explained):
    explained(call, error, word)
