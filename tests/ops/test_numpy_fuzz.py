"""N7. NumPy's functions on dlarrays against NumPy on plain arrays: equal shape, type and numbers, or a named error.

Random calls of every function in the tables: scalars, empty arrays, ranks 0 to 4, axes of every kind, all options,
NaN, Inf, -0.0, subnormal and huge numbers, logical arrays. What NumPy refuses must be refused; what is refused though
NumPy takes it must be refused by a named error. The seed changes with every run; MINIDL_FUZZ_SEED=... repeats one.
"""

import os
import time
import warnings

import numpy as np
import pytest

from minidl.core.dlarray import DLArray, dlarray
from minidl.core.errors import MinidlError
from minidl.ops.numpy_protocol import FUNCTIONS, REDUCTIONS, RUNNING, UFUNCS

SEED = int(os.environ.get("MINIDL_FUZZ_SEED", time.time_ns() % 10**9))
COUNT = int(os.environ.get("MINIDL_FUZZ_COUNT", "12"))  # calls of each function

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, -1e-310, 1e300, -1e300, 0.5, -0.5, 1.5, 2.5, -2.5, 1, 0.1, -1]


class Dice:
    """What random calls are made of."""

    def __init__(self, seed):
        self.r = np.random.default_rng(seed)

    def pick(self, *things):
        return things[self.r.integers(len(things))]

    def often(self, p=0.5):
        return self.r.random() < p

    def shape(self, rank=None):
        rank = self.r.integers(0, 5) if rank is None else rank
        return tuple(int(self.pick(0, 1, 1, 2, 2, 3, 3, 4)) for _ in range(rank))

    def array(self, shape=None, kinds="ddddsb", is_tame=None):
        shape = self.shape() if shape is None else shape
        kind = self.pick(*kinds)
        if kind == "b":
            return np.asarray(self.r.random(shape) < 0.5)
        x = np.asarray(self.r.normal(size=shape) * 3)
        if is_tame is None:
            is_tame = self.often()
        if not is_tame:
            x = np.where(self.r.random(shape) < 0.4, np.asarray(self.r.choice(SPECIAL, size=shape)), x)
        with np.errstate(all="ignore"):
            return np.asarray(x, np.float32 if kind == "s" else np.float64)

    def partner(self, shape):
        """A shape that expands with another one, or nearly."""
        shape = tuple(n if self.often(0.7) else 1 for n in shape[self.pick(0, 0, 0, 1):])
        return shape if self.often(0.9) else self.shape()

    def one_axis(self, rank):
        wide = self.often(0.3)
        return int(self.r.integers(-rank - wide, max(rank + wide, 1)))

    def axis(self, rank):
        if self.often(0.25):
            return None
        if self.often(0.6):
            return self.one_axis(rank)
        return tuple(self.one_axis(rank) for _ in range(self.r.integers(0, 3)))

    def options(self, **makers):
        return {name: make() for name, make in makers.items() if self.often(0.35)}


def reduction(d, *more, kinds="ddddsb"):
    x = d.array(kinds=kinds)
    odd = {"where": lambda: d.pick(True, x > 0), "out": lambda: d.pick(None, np.zeros(x.shape))}
    odd = odd if d.often(0.15) else {}
    options = d.options(axis=lambda: d.axis(x.ndim), keepdims=lambda: d.pick(True, False), **odd)
    for name, make in more:
        if d.often(0.2):
            options[name] = make()
    return (x,), options


def typed(d):
    return ("dtype", lambda: d.pick(np.float64, np.float32, None))


def with_axis(d, **makers):
    x = d.array()
    return (x,), d.options(axis=lambda: d.pick(None, d.one_axis(x.ndim), d.one_axis(x.ndim)), **makers)


def shaped(d, *rest, x=None):
    return (d.array() if x is None else x, *rest), {}


def joined(d, with_option=True):
    x = d.array()
    others = [d.array(x.shape if d.often(0.7) else d.partner(x.shape), kinds="ds") for _ in range(d.r.integers(0, 3))]
    options = d.options(axis=lambda: d.pick(None, d.one_axis(x.ndim), d.one_axis(x.ndim))) if with_option else {}
    return ([x, *others],), options


def reshape(d):
    x = d.array()
    parts = d.pick((x.size,), (-1,), (1, x.size), x.shape[::-1], (2, -1), (), (-1, -1), x.size, -1, (-1, 0), (-2,))
    parts = d.shape(d.r.integers(0, 4)) if d.often(0.4) else parts
    return (x, parts), d.options(order=lambda: d.pick("C", "F", "A", "K"))


def matrices(d):
    a = d.array(kinds="dds", is_tame=True)
    b = d.array(kinds="dds", is_tame=True)
    if d.often(0.8) and a.ndim and b.ndim:
        shape = list(b.shape)
        shape[max(b.ndim - 2, 0)] = a.shape[-1]
        if d.often():
            shape[: max(b.ndim - 2, 0)] = (1,) * max(b.ndim - 2, 0)
        b = d.array(tuple(shape), kinds="dds", is_tame=True)
    return (a, b), {}


def inner(d):
    a, b = d.array(kinds="dds", is_tame=True), d.array(kinds="dds", is_tame=True)
    if d.often(0.8) and a.ndim and b.ndim:
        b = d.array((*b.shape[:-1], a.shape[-1]), kinds="dds", is_tame=True)
    return (a, b), {}


def tensordot(d):
    a, b = d.array(kinds="dds", is_tame=True), d.array(kinds="dds", is_tame=True)
    if d.often(0.3):
        return (a, b), {}
    if d.often():
        n = int(d.r.integers(-1, 4))
        b = d.array((*a.shape[max(a.ndim - n, 0):], 2), kinds="dds", is_tame=True) if n > 0 else b
        return (a, b, n), {}
    b = d.array(a.shape[::-1], kinds="dds", is_tame=True)
    return (a, b), {"axes": d.pick((0, -1), ([0], [-1]), ([0, 1], [-1, -2]), ([0, 0], [1, 1]), ([0], [0, 1]), (5, 0))}


def system(d):
    n = int(d.pick(1, 2, 3))
    a = d.array(d.pick((n, n), (n, n), (n, n), (n, n + 1), (2, n, n)), kinds="dds", is_tame=True)
    if d.often(0.3) and a.ndim == 2:
        a[:, 0] = 0
    return (a, d.array(d.pick((n,), (n, 2), (n + 1,), (n, 1)), kinds="dds", is_tame=True)), {}


def norm(d):
    x = d.array(d.shape(d.pick(1, 1, 2, 2, 3)) if d.often(0.9) else None, kinds="dds", is_tame=True)
    orders = (None, 1, 2, np.inf, -np.inf, -1, 0, 3, 0.5, -2, "fro", "nuc", "bad")
    options = d.options(ord=lambda: d.pick(*orders), axis=lambda: d.axis(x.ndim), keepdims=lambda: d.pick(True, False))
    return (x,), options


def clip(d):
    x = d.array(kinds="dds")
    low, high = (d.pick(None, -1.0, 0.5, np.nan, d.array(d.partner(x.shape), kinds="d")) for _ in range(2))
    return ((x, low, high), {}) if d.often(0.7) else ((x,), d.options(min=lambda: low, max=lambda: high))


def split(d):
    x = d.array()
    where = d.pick(1, 2, 3, 0, -1, [1], [1, 2], [-1], [2, 1], [-3, -1], [7], [0, 9], [])
    return (x, where), d.options(axis=lambda: d.one_axis(x.ndim))


def where(d):
    x = d.array()
    return (d.array(d.partner(x.shape), kinds="bd"), x, d.array(d.partner(x.shape)))[: d.pick(1, 3, 3, 3, 3)], {}


def median(d):
    (x,), options = reduction(d, ("overwrite_input", lambda: False))
    if not x.size and type(options.get("axis")) is tuple:
        options["axis"] = None  # NumPy's reshape of nothing fails for some
    return (x,), options


MAKE = {
    "median": lambda d: median(d),
    "var": lambda d: reduction(d, ("ddof", lambda: d.pick(0, 1, 2, 5)), ("dtype", lambda: None)),
    "std": lambda d: reduction(d, ("ddof", lambda: d.pick(0, 1, 2, 5)), ("dtype", lambda: None)),
    "argmax": lambda d: with_axis(d, keepdims=lambda: d.pick(True, False)),
    "argmin": lambda d: with_axis(d, keepdims=lambda: d.pick(True, False)),
    "cumsum": lambda d: with_axis(d, dtype=lambda: d.pick(None, np.float32)), "cumprod": with_axis,
    "sort": lambda d: with_axis(d, kind=lambda: d.pick(None, "stable", "heapsort", "bad")),
    "argsort": lambda d: (lambda args, options: (args, {**options, "stable": True}))(*with_axis(d)),
    "reshape": reshape, "ravel": lambda d: ((d.array(),), d.options(order=lambda: d.pick("C", "F", "K"))),
    "transpose": lambda d: shaped(d, *d.pick((), (None,), ((1, 0),), ((0, 0),), ((-1, 0, 1),), ((),), ((5, 0),))),
    "swapaxes": lambda d: shaped(d, d.one_axis(2), d.one_axis(3)),
    "moveaxis": lambda d: shaped(d, *d.pick((0, -1), ((0, 1), (1, 0)), ((0, 1), (0, 0)), (3, 0), ((0,), (1, 2)))),
    "squeeze": lambda d: (lambda x: ((x,), d.options(axis=lambda: d.axis(x.ndim))))(d.array()),
    "expand_dims": lambda d: (lambda x: ((x, d.pick(d.one_axis(x.ndim + 1), (0, -1), (0, 0), (0, 9))), {}))(d.array()),
    "broadcast_to": lambda d: (lambda x: ((x, d.pick((2, *x.shape), x.shape, (3,), (2, 2), 3, (-1,))), {}))(d.array()),
    "broadcast_arrays": lambda d: (lambda x: ((x, d.array(d.partner(x.shape))), {}))(d.array()),
    "flip": lambda d: (lambda x: ((x,), d.options(axis=lambda: d.axis(x.ndim))))(d.array()),
    "roll": lambda d: (lambda x: ((x, d.pick(1, -5, (1, 2), (1,))), d.options(axis=lambda: d.axis(x.ndim))))(d.array()),
    "tile": lambda d: shaped(d, d.pick(2, 0, (1, 2), (2, 1, 2), (), -1, (2, -1), 1)),
    "repeat": lambda d: (lambda x: ((x, d.pick(2, 0, -1, [2], [1, 2], [1, 0, 2], [[1]])),
                                    d.options(axis=lambda: d.pick(None, d.one_axis(x.ndim)))))(d.array()),
    "concatenate": joined, "stack": joined, "vstack": lambda d: joined(d, False), "hstack": lambda d: joined(d, False),
    "dstack": lambda d: joined(d, False), "split": split, "array_split": split, "where": where, "clip": clip,
    "round": lambda d: shaped(d, *d.pick((), (0,), (1,), (2,), (-1,), (-2,), ("a",), (0.5,))),
    "tril": lambda d: shaped(d, *d.pick((), (1,), (-1,), (9,))), "triu": lambda d: shaped(d, *d.pick((), (1,), (-2,))),
    "trace": lambda d: shaped(d, *d.pick((), (1,), (-1,)), x=d.array(d.shape(d.pick(2, 2, 2, 3, 1)), is_tame=True)),
    "diagonal": lambda d: shaped(d, *d.pick((), (1,), (-1,), (7,)), x=d.array(d.shape(d.pick(2, 2, 2, 1)))),
    "diag": lambda d: shaped(d, *d.pick((), (1,), (-1,), (7,)), x=d.array(d.shape(d.pick(2, 2, 1, 1, 3, 0)))),
    "diff": lambda d: with_axis(d, n=lambda: d.pick(0, 1, 2, 3, -1)),
    "dot": matrices, "matmul": matrices, "inner": inner, "vdot": inner, "outer": inner, "tensordot": tensordot,
    "solve": system, "norm": norm, "size": lambda d: with_axis(d), "shape": shaped, "ndim": shaped, "copy": shaped,
    "real": shaped, "imag": shaped, "atleast_1d": shaped, "atleast_2d": shaped, "atleast_3d": shaped,
    "zeros_like": lambda d: ((d.array(),), d.options(dtype=lambda: d.pick(np.float32, None, bool), shape=lambda: (2,))),
    "ones_like": lambda d: ((d.array(),), d.options(dtype=lambda: d.pick(np.float32, None, bool), order=lambda: "C")),
    "full_like": lambda d: ((d.array(), d.pick(2.5, 0, True)), d.options(dtype=lambda: d.pick(np.float32, None, bool))),
    "isclose": lambda d: (lambda x: ((x, np.where(d.array(x.shape, "b"), x, 1.0)), d.options(rtol=lambda: 1e-3,
                                     equal_nan=lambda: d.pick(True, False))))(d.array(kinds="ds")),
    "array_equal": lambda d: inner(d), "allclose": lambda d: inner(d),
    "result_type": lambda d: shaped(d), "ptp": lambda d: reduction(d, kinds="dds"),
}  # fmt: skip
MAKE["around"] = MAKE["round"]
TEXTS = ("array2string", "array_repr", "array_str", "histogram", "histogram2d", "histogram_bin_edges")
for function in FUNCTIONS:
    if function.__name__ not in MAKE and function.__name__ not in TEXTS:
        MAKE[function.__name__] = lambda d: reduction(d, typed(d))


def ufunc(d, function):
    x = d.array(is_tame=True if function is np.hypot else None)  # inf beside NaN: test_elementwise
    inputs = (x, d.array(d.partner(x.shape)) if d.often(0.8) else d.pick(2, 0.5, 0, -1.0, np.float32(3)))
    return inputs[: function.nin], d.options(where=lambda: d.pick(True, x > 0)) if d.often(0.1) else {}


def plain(y):
    if isinstance(y, (tuple, list)):
        return [plain(part) for part in y]
    return y.numpy() if isinstance(y, DLArray) else y


def attempt(function, args, options):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **options), None
        except Exception as error:  # noqa: BLE001
            return None, error


def compare(name, expected, found, given):
    if isinstance(expected, np.dtype):
        return
    if isinstance(expected, (tuple, list)):
        assert len(expected) == len(found)
        for one, other in zip(expected, found):
            compare(name, one, other, given)
        return
    expected, found = np.asarray(expected), np.asarray(found)
    assert expected.shape == found.shape
    kinds = {x.dtype for x in given if x.ndim or x.dtype.kind != "f"}
    is_single = np.dtype(np.float32) in kinds
    if expected.dtype.kind == "b" or found.dtype.kind == "b":
        assert expected.dtype.kind == "b" or np.array_equal(expected, found), (expected.dtype, found.dtype)
    tolerance = 2e-4 if is_single or found.dtype == np.float32 else 1e-10
    expected = expected.astype(np.float64)
    scale = np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0)
    loose = 0.0 if scale > 1e30 else tolerance * max(scale, 1e-3)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=tolerance, atol=loose)


def check(name, function, args, options):
    # single beside double gives single, and logical arrays count as double: that is dlarrays' rule, not NumPy's
    leaves = [x for a in args for x in (a if isinstance(a, list) else [a]) if isinstance(x, np.ndarray)]
    is_single = any(x.dtype == np.float32 for x in leaves)
    is_number = name.split(".")[0] not in OF_TRUTHS
    is_number = is_number or (name not in LOGICAL and any(x.dtype.kind == "f" for x in leaves))
    reference = args
    if function in UFUNCS or "." in name or is_single:
        def seen(x):
            if not isinstance(x, np.ndarray):
                return x
            x = x.astype(np.float64) if x.dtype.kind == "b" and is_number else x
            return x.astype(np.float32) if is_single and x.dtype == np.float64 else x

        with np.errstate(all="ignore"):
            args = reference = [[seen(x) for x in a] if isinstance(a, list) else seen(a) for a in args]
            options = {key: seen(x) for key, x in options.items()}
    expected, refusal = attempt(function, reference, options)
    wrapped = [[dlarray(x) for x in a] if type(a) is list and a and isinstance(a[0], np.ndarray)
               else dlarray(a) if isinstance(a, np.ndarray) else a for a in args]  # fmt: skip
    found, error = attempt(function, wrapped, options)
    if error is not None:
        if type(error) is TypeError and type(refusal) is TypeError and str(error) == str(refusal):
            return True  # NumPy's own complaint about an unknown option, before anybody is asked
        assert isinstance(error, MinidlError), f"no named error: {type(error).__name__}: {error}"
        assert str(error).startswith("np.") and "<lambda>" not in str(error), str(error)
        return refusal is not None
    assert refusal is None, f"NumPy refuses: {refusal}; found {found}"
    compare(name, expected, plain(found), leaves)
    return True


LOGICAL = {"logical_and", "logical_or", "logical_xor", "logical_not",
           "bitwise_and", "bitwise_or", "bitwise_xor", "invert"}  # fmt: skip
NAMED = [(f.__name__, f) for f in FUNCTIONS if f.__name__ not in TEXTS]
OF_TRUTHS = LOGICAL | {"maximum", "minimum", "fmax", "fmin", "equal", "not_equal", "less", "less_equal", "greater",
                       "greater_equal", "isnan", "isinf", "isfinite"}  # fmt: skip


@pytest.mark.parametrize("name, function", NAMED, ids=[name for name, _ in NAMED])
def test_N7_functions_follow_numpy(name, function):
    followed = 0
    for i in range(COUNT):
        d = Dice([SEED, i, sum(map(ord, name))])
        args, options = MAKE[name](d)
        try:
            followed += check(name, function, args, options)
        except AssertionError as error:
            pytest.fail(f"MINIDL_FUZZ_SEED={SEED}, call {i}: np.{name}(*{args!r}, **{options!r}): {error}")
    assert followed, f"MINIDL_FUZZ_SEED={SEED}: every call of np.{name} was refused"


UNIVERSAL = [(f.__name__, f, "__call__") for f in UFUNCS]
UNIVERSAL += [(f"{f.__name__}.reduce", f.reduce, "reduce") for f in REDUCTIONS]
UNIVERSAL += [(f"{f.__name__}.accumulate", f.accumulate, "accumulate") for f in RUNNING]
UNIVERSAL += [(f"{f.__name__}.outer", f.outer, "outer") for f in (np.add, np.multiply, np.subtract, np.maximum)]


@pytest.mark.parametrize("name, function, method", UNIVERSAL, ids=[name for name, _, _ in UNIVERSAL])
def test_N7_universal_functions_follow_numpy(name, function, method):
    followed = 0
    for i in range(COUNT):
        d = Dice([SEED, i, sum(map(ord, name))])
        if method == "__call__":
            args, options = (MAKE["matmul"](d) if name == "matmul" else ufunc(d, function))
        elif method == "outer":
            args, options = (d.array(d.shape(d.pick(0, 1, 2))), d.array(d.shape(d.pick(0, 1, 2)))), {}
        else:
            x = d.array(kinds="b" if "logical" in name else "dds")
            axis = d.axis(x.ndim) if method == "reduce" else d.one_axis(x.ndim)
            args, options = (x,), {"axis": axis} if d.often() else {}
        try:
            followed += check(name, function, args, options)
        except AssertionError as error:
            pytest.fail(f"MINIDL_FUZZ_SEED={SEED}, call {i}: np.{name}(*{args!r}, **{options!r}): {error}")
    assert followed or name in LOGICAL
