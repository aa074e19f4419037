"""Native words: their accuracy, special values, and what LLVM makes of them on several processors."""

import ctypes
import functools
import itertools
import math
import re

import numpy as np
import pytest

from minidl.backends.cpu.native.compiler import assembly, compiled
from minidl.backends.cpu.native.emitter import Module, with_lanes
from minidl.backends.cpu.native.target import described, host
from minidl.core.op import MAP, OPS
from minidl.kernels.cpu import scalars
from minidl.kernels.native.mathematics import ULPS
from minidl.kernels.native.words import ARITY, evaluate, is_supported

pytestmark = pytest.mark.skipif(not host().has_fma, reason="native programs need fused multiply-adds")

ELEMENTS = {"float32": "float", "float64": "double", "bool": "i1", "int64": "i64", "uint64": "i64"}
SIZES = {"float32": 4, "float64": 8, "int64": 8, "uint64": 8}
CURVES = [f"{word}({', '.join(['{0}', '{1}'][: ARITY[word]])})" for word in ULPS]
PLAIN = [
    "({0} + {1})", "({0} - {1})", "({0} * {1})", "({0} / {1})", "(-{0})", "({0} * {0})", "{0}", "({0} / 4)",
    "(1 - {0})", "({0} / -0.5)", "where({1} > 0, {0}, 0)", "where({0} <= {1}, {0}, {1} + 2.5)", "maximum({0}, 0)",
    "minimum(0.5, {0})", "fmax({0}, -1)", "fmin(1, {0})", "maximum({0}, {1})", "minimum({0}, {1})", "fmax({0}, {1})",
    "fmin({0}, {1})", "where({0}, {1}, {2})", "fabs({0})", "sign({0})", "floor({0})", "ceil({0})", "trunc({0})",
    "round_half_away({0})", "cast({0})", "where(isnan({0}), inf, -inf)",
]  # fmt: skip
TRUTHS = [
    "({0} == {1})", "({0} != {1})", "({0} < {1})", "({0} <= {1})", "({0} > {1})", "({0} >= {1})", "isnan({0})",
    "isinf({0})", "isfinite({0})", "logical_and({0}, {1})", "logical_or({0}, {1})", "logical_xor({0}, {1})",
    "logical_not({0})",
]  # fmt: skip
TEXTS = [*CURVES, *PLAIN, *TRUTHS]
KINDS = [(dtype, is_vector) for dtype in ("float32", "float64") for is_vector in (False, True)]
OTHERS = {
    "avx2": described("x86_64-unknown-linux-gnu", "haswell", "+avx,+avx2,+fma"),
    "neon": described("aarch64-unknown-linux-gnu", "generic", "+neon"),
}


def module(texts, dtype, lanes, target, literals=(), result=None):
    """k0, k1, ...: for each text a function (y, x0, x1, x2, n); places in `literals` hold numbers instead."""
    made, literals = Module(target), dict(literals)
    element = ELEMENTS[dtype]
    for i, text in enumerate(texts):
        out = result or ("bool" if text in TRUTHS else dtype)
        f = made.function(f"k{i}", ["ptr %y", "ptr %x0", "ptr %x1", "ptr %x2", "i64 %n"])
        with f.loop(0, "%n", lanes) as at:
            kind, args = with_lanes(lanes, element), []
            for place in range(3):
                if place in literals:
                    args.append(literals[place])
                elif dtype == "bool":
                    stored = f.load(with_lanes(lanes, "i8"), f.at(f"%x{place}", at))
                    args.append((f.convert(stored, with_lanes(lanes, "i8"), kind), dtype))
                else:
                    args.append((f.load(kind, f.at(f"%x{place}", f.mul(at, SIZES[dtype]))), dtype))
            literal = "float32" if dtype == "bool" else dtype if dtype in ("float32", "float64") else "float64"
            y = evaluate(f, text, args, lanes, out, literal)
            if out == "bool":
                y = f.convert(y, with_lanes(lanes, "i1"), with_lanes(lanes, "i8"))
                f.store(with_lanes(lanes, "i8"), y, f.at("%y", at))
            else:
                f.store(with_lanes(lanes, ELEMENTS[out]), y, f.at("%y", f.mul(at, SIZES[out])))
    return made.text()


def lanes_of(dtype, is_vector, target=None):
    return (target or host()).lanes(SIZES.get(dtype, 4)) if is_vector else 1


@functools.cache
def code(texts, dtype, lanes, literals=(), result=None):
    return compiled(module(texts, dtype, lanes, host(), literals, result))


def run(text, dtype, is_vector, *xs, literals=(), result=None, texts=None):
    """The values of one text for arrays."""
    texts, lanes = texts or tuple(TEXTS), lanes_of(dtype, is_vector)
    count = len(xs[0])
    xs = [np.concatenate([x, np.ones(-count % lanes, x.dtype)]) for x in (*xs, *[xs[0]] * (3 - len(xs)))]
    y = np.empty(len(xs[0]), result or ("bool" if text in TRUTHS else dtype))
    address = code(texts, dtype, lanes, literals, result).address(f"k{texts.index(text)}")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(address)
    function(y.ctypes.data, *[x.ctypes.data for x in xs], len(y))
    return y[:count]


# accuracy -------------------------------------------------------------------------------------------------------
NUMPY = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
         "atanh": "arctanh", "atan2": "arctan2", "pow": "power"}  # fmt: skip
SPANS = {"exp": 720, "expm1": 720, "sinh": 720, "cosh": 720, "tanh": 22, "sin": 1e6, "cos": 1e6, "tan": 1e6,
         "asin": 1, "acos": 1, "atanh": 1, "erf": 6.5, "erfc": 27}  # fmt: skip
IS_LONG = np.finfo(np.longdouble).nmant > 52


def specials(dtype):
    about = np.finfo(dtype)
    sizes = [0, 1, np.inf, about.tiny, about.max, about.smallest_subnormal, 0.5, 1.5, 2, 3, np.pi, 1 + about.eps,
             1 - about.epsneg, 2.0**16, 2.0**24 + 2, 2.0**27, 2.0**64, 1e22]  # fmt: skip
    return np.array([*sizes, *[-x for x in sizes], np.nan, -np.nan], dtype)


def arguments(word, dtype, count=4000):
    """Random bits, numbers near 0, near 1 and over the function's span, and special ones."""
    r = np.random.default_rng(len(word))
    whole = np.uint32 if dtype == "float32" else np.uint64
    span = SPANS.get(word, 20) / (8 if dtype == "float32" and word in ("exp", "expm1", "sinh", "cosh") else 1)
    xs = [r.integers(0, np.iinfo(whole).max, count, dtype=whole).view(dtype), r.uniform(-span, span, count)]
    xs += [r.uniform(-1, 1, count) * np.exp(r.uniform(-20, 3, count)), 1 + r.normal(size=count) * 0.3]
    xs += [np.arange(1, count) * (math.pi / 2)]
    return np.concatenate([np.concatenate(xs[1:]).astype(dtype), xs[0], specials(dtype)])


def truth(word, dtype, xs):
    if word in ("erf", "erfc"):
        return np.array([getattr(math, word)(x) for x in xs[0].tolist()])
    wide = np.float64 if dtype == "float32" and word != "fmod" or not IS_LONG else np.longdouble
    return getattr(np, NUMPY.get(word, word))(*[x.astype(wide) for x in xs])


def errors(y, expected):
    """In units in the last place; 0 where both are NaN or the same infinity, infinite where only one is."""
    about = np.finfo(y.dtype)
    exponent = np.frexp(np.maximum(np.abs(expected), expected.dtype.type(about.tiny)))[1]
    d = np.ldexp(np.abs(y.astype(expected.dtype) - expected), about.nmant + 1 - exponent)
    is_same = np.isnan(y) & np.isnan(expected) | (y == expected.astype(y.dtype)) & ~np.isfinite(y)
    return np.where(is_same, 0, np.where(np.isnan(d), np.inf, d))


@pytest.mark.parametrize(("dtype", "is_vector"), KINDS)
@pytest.mark.parametrize("word", ULPS)
def test_accuracy_and_special_values(word, dtype, is_vector):
    text = next(t for t in CURVES if t.startswith(word + "("))
    xs = [arguments(word, dtype)]
    if ARITY[word] == 2:
        pairs = np.array(list(itertools.product(specials(dtype), specials(dtype)))).T
        other = np.random.default_rng(1).permutation(xs[0])
        if word == "pow":
            other[::2] = np.random.default_rng(2).uniform(-40, 40, len(other[::2]))
        xs = [np.concatenate([xs[0], pairs[0]]), np.concatenate([other, pairs[1]])]
    bound = ULPS[word][dtype == "float64"]
    if dtype == "float64" and (word in ("erf", "erfc") or not IS_LONG):
        bound += 1  # of the reference
    y = run(text, dtype, is_vector, *xs)
    with np.errstate(all="ignore"):
        expected = truth(word, dtype, xs)
        d, rounded = errors(y, expected), expected.astype(dtype)
    worst = int(np.argmax(d))
    assert d[worst] <= bound, [*[x[worst] for x in xs], y[worst], expected[worst]]
    zeros = (y == 0) & (rounded == 0)
    assert np.array_equal(np.signbit(y[zeros]), np.signbit(expected[zeros]))


def test_sines_near_multiples_of_half_a_turn():
    k = np.random.default_rng(0).integers(1, 2**26, 20000)
    for dtype, is_vector in KINDS:
        x = (k % (2**15 if dtype == "float32" else 2**26) * (np.pi / 2)).astype(dtype)
        for word in ("sin", "cos", "tan"):
            y = run(f"{word}({{0}})", dtype, is_vector, x)
            if dtype == "float32" or IS_LONG:
                assert errors(y, truth(word, dtype, [x])).max() <= ULPS[word][dtype == "float64"]


# meaning --------------------------------------------------------------------------------------------------------
VOCABULARY = {name: getattr(getattr(scalars, name), "py_func", getattr(scalars, name)) for name in scalars.__all__}


def meant(text, dtype, *xs):
    """What the words of kernels.cpu.scalars say, number by number."""
    kind = np.dtype(dtype).type
    text = re.sub(r"(?<![\w{.])(\d+(?:\.\d+)?)(?![\w}.])", r"kind(\1)", text).replace("cast(", "kind(")
    function = eval(f"lambda a, b, c: {text.format('a', 'b', 'c')}", {**VOCABULARY, "kind": kind})
    with np.errstate(all="ignore"):
        return np.array([function(*row) for row in zip(*xs)])


@pytest.mark.parametrize(("dtype", "is_vector"), KINDS)
@pytest.mark.parametrize("text", [*PLAIN, *TRUTHS])
def test_words_mean_what_those_for_numba_mean(text, dtype, is_vector):
    values = np.array([0, -0.0, 1, -1, 0.5, -2.5, 1e30, np.inf, -np.inf, np.nan], dtype)
    a, b, c = np.array(list(itertools.product(values, values, values[:4]))).T.copy()
    y, expected = run(text, dtype, is_vector, a, b, c), meant(text, dtype, a, b, c)
    assert np.array_equal(y, expected.astype(y.dtype), equal_nan=y.dtype != bool)
    is_number = ~np.isnan(y)
    assert np.array_equal(np.signbit(y[is_number]), np.signbit(expected[is_number])) or y.dtype == bool


@pytest.mark.parametrize(("dtype", "is_vector"), KINDS)
@pytest.mark.parametrize(("place", "number"), [(0, 2), (1, 3), (1, 0.1), (1, math.nan), (0, -0.0)])
def test_arguments_may_be_numbers(place, number, dtype, is_vector):
    texts = ("({0} + {1})", "({0} / {1})", "({0} < {1})", "maximum({0}, {1})", "fmin({0}, {1})", "pow({0}, {1})")
    values = np.array([0, 1, -1, 0.5, 7, np.inf, -np.inf, np.nan], dtype)
    for text in texts:
        y = run(text, dtype, is_vector, values, literals=((place, number),), texts=texts)
        filled = np.full_like(values, number)
        pair = [filled, values] if place == 0 else [values, filled]
        expected = meant(text, dtype, *pair, values)
        if text.startswith("pow"):
            with np.errstate(all="ignore"):
                assert errors(y, expected).max() <= 1.5
        else:
            assert np.array_equal(y, expected.astype(y.dtype), equal_nan=y.dtype != bool)


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("power", [0, 1, 2, 3, -1, 0.5])
def test_powers_by_numbers(power, is_vector):
    x = np.concatenate([np.linspace(-3, 3, 97), specials("float64")])
    y = run("pow({0}, {1})", "float64", is_vector, x, literals=((1, power),), texts=("pow({0}, {1})",))
    with np.errstate(all="ignore"):
        assert errors(y, np.power(x, np.full_like(x, power))).max() <= 2


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("new", ["float32", "float64", "bool"])
@pytest.mark.parametrize("old", ["float32", "float64", "bool", "int64", "uint64"])
def test_casts(old, new, is_vector):
    x = np.array([0, 1, 2, 2**40 + 1, 2**53 + 1, 2**63 - 1]).astype(old)
    if old != "bool":
        x = np.concatenate([x, (2**64 - 1 - x) if old == "uint64" else -x])
    y = run("cast({0})", old, is_vector, x, result=new, texts=("cast({0})",))
    assert np.array_equal(y, x.astype(new))


@pytest.mark.parametrize("is_vector", [False, True])
def test_truths_count_as_numbers(is_vector):
    a, b = np.array(list(itertools.product([False, True], repeat=2))).T.copy()
    texts = ("({0} + {1})", "({0} * 2.5)", "where({0}, {1}, 3)", "exp({0})", "(-{0})")
    expected = [a + b * 1.0, a * 2.5, np.where(a, b, 3), np.exp(a * 1.0), -(a * 1.0)]
    for text, value in zip(texts, expected):
        assert np.allclose(run(text, "bool", is_vector, a, b, result="float32", texts=texts), value, rtol=1e-6)
    texts = ("({0} == {1})", "where({0}, {1}, {2})", "({0} < {1})", "logical_xor({0}, {1})")
    for text, value in zip(texts, [a == b, np.where(a, b, a), a < b, a ^ b]):
        assert np.array_equal(run(text, "bool", is_vector, a, b, result="bool", texts=texts), value)


def test_whole_numbers_compare_by_their_sign():
    a, b = np.array([[1, -1, 5], [-1, 1, 5]])
    texts = ("({0} < {1})", "({0} == {1})")
    for dtype in ("int64", "uint64"):
        x, y = a.astype(dtype), b.astype(dtype)
        assert np.array_equal(run(texts[0], dtype, True, x, y, result="bool", texts=texts), x < y)
        assert np.array_equal(run(texts[1], dtype, True, x, y, result="bool", texts=texts), x == y)


def test_every_text_of_an_op_is_supported():
    texts = [op.text for op in OPS.values() if op.kind is MAP and op.text]
    assert len(texts) > 40 and all(map(is_supported, texts))
    for text in ("gamma({0})", "exp({0}, {1})", "exp(", "{0}.real", "[{0}]", "where({0}, {1})", "x + {0}", "'a'"):
        assert not is_supported(text)


# code -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [None, *OTHERS.values()], ids=["host", *OTHERS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_rare_words_call_the_library(dtype, target):
    target = target or host()
    found = assembly(module(TEXTS, dtype, target.lanes(SIZES[dtype]), target), target)
    names = set(re.findall(r"\b(?:call\w*|bl)\s+\*?%?([A-Za-z]\w*)", found)) - {"rax", "rcx", "rdx", "rbx", "rbp"}
    names = {name.removesuffix("f") if not name.startswith("far_") else "far" for name in names}
    assert names <= {"far", "sin", "cos", "tan", "fmod", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rsi"}
    loops = assembly(module(["exp({0})", "tanh({0})", "log({0})"], dtype, target.lanes(SIZES[dtype]), target), target)
    assert not re.search(r"\b(call|bl)\b", loops)
    width = {64: "zmm", 32: "ymm", 16: "v0.4s" if dtype == "float32" else "v0.2d"}[target.vector_bytes]
    assert width in loops
