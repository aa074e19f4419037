"""The reference backend: every primitive op in plain NumPy. Slow and clear; the other backends are tested against it.

Tables by op name: SCALAR (what the words of a MAP op's text mean), VIEWS, REDUCTIONS, KERNELS. Functions in KERNELS
fill given arrays: outputs first, then inputs, params by keyword.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.kernels import normal

Array = np.ndarray


def run(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> list[Array] | None:
    """Results of a primitive op; None for an op that is said in other ops."""
    kind = op.kind_name
    if kind == "map":
        if op.text is None:
            return None
        y = scalar_function(op.text)(*arrays, **params)
        dtype = specs[0].dtype
        is_made = type(y) is Array and y.dtype == dtype and y is not arrays[0]
        return [y if is_made else np.array(y, dtype=dtype)]
    if kind == "view":
        return [VIEWS[op.name](arrays[0], **params)]
    if kind == "reduce":
        return [np.asarray(REDUCTIONS[op.name](arrays[0], **params))]
    fill = KERNELS.get(op.name)
    if fill is None and op.body is None:
        fill = op.kernels.get("cpu")
    if fill is None:
        return None
    outputs = [np.empty(spec.shape, spec.dtype) for spec in specs]
    fill(*outputs, *arrays, **params)
    return outputs


# MAP: the words that scalar texts may use -----------------------------------------------------------------------
# Rational approximations P/Q on three intervals, coefficients with the leading one last; 2 units in the last place.
# Source: Cody, Rational Chebyshev approximations for the error function, Mathematics of Computation 23 (1969).
_ERF_SMALL = (
    (3209.37758913846947, 377.485237685302021, 113.864154151050156, 3.16112374387056560, 0.185777706184603153),
    (2844.23683343917062, 1282.61652607737228, 244.024637934444173, 23.6012909523441209, 1.0),
)
_ERF_MIDDLE = (
    (1230.33935479799725, 2051.07837782607147, 1712.04761263407058, 881.952221241769090, 298.635138197400131,
     66.1191906371416295, 8.88314979438837594, 0.564188496988670089, 2.15311535474403846e-8),
    (1230.33935480374942, 3439.36767414372164, 4362.61909014324716, 3290.79923573345963, 1621.38957456669019,
     537.181101862009858, 117.693950891312499, 15.7449261107098347, 1.0),
)  # fmt: skip
_ERF_LARGE = (
    (6.58749161529837803e-4, 1.60837851487422766e-2, 0.125781726111229246, 0.360344899949804439, 0.305326634961232344,
     1.63153871373020978e-2),
    (2.33520497626869185e-3, 6.05183413124413191e-2, 0.527905102951428412, 1.87295284992346725, 2.56852019228982242,
     1.0),
)  # fmt: skip


def _ratio(coefficients: tuple[tuple[float, ...], ...], x: Array) -> Array:
    above, below = (np.polynomial.polynomial.polyval(x, c) for c in coefficients)
    return above / below


def _erf(x: Any) -> Any:
    if isinstance(x, float):
        return math.erf(x)
    z = np.asarray(x, np.float64).reshape(-1)
    size = np.abs(z)
    y = np.sign(z)  # 1 beyond 6, and nan for nan
    near = size <= 0.46875
    y[near] = z[near] * _ratio(_ERF_SMALL, np.square(z[near]))
    far = (size > 0.46875) & (size < 6)
    y[far] *= 1 - _erf_tail(size[far])
    return y.astype(x.dtype).reshape(x.shape)


def _erfc(x: Any) -> Any:
    if isinstance(x, float):
        return math.erfc(x)
    z = np.asarray(x, np.float64).reshape(-1)
    size = np.abs(z)
    y = 1 - np.sign(z)  # 0 or 2 beyond 28, and nan for nan
    near = size <= 0.46875
    y[near] = 1 - z[near] * _ratio(_ERF_SMALL, np.square(z[near]))
    far = (size > 0.46875) & (size < 28)
    tail = _erf_tail(size[far])
    y[far] = np.where(z[far] < 0, 2 - tail, tail)
    return y.astype(x.dtype).reshape(x.shape)


def _erf_tail(s: Array) -> Array:
    """1 - erf(s) for s from 0.46875 on."""
    inverse = 1 / np.square(s)
    tail = np.where(
        s <= 4,
        _ratio(_ERF_MIDDLE, s),
        (1 / math.sqrt(math.pi) - inverse * _ratio(_ERF_LARGE, inverse)) / s,
    )
    coarse = np.trunc(s * 16) / 16  # its square is exact, so exp(-s^2) loses no digits
    return tail * (np.exp(-np.square(coarse)) * np.exp(-(s - coarse) * (s + coarse)))


def _round_half_away(x: Any) -> Any:
    # MATLAB rounds halves away from zero; NumPy rounds them to even
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def _cast(x: Any, *, dtype: str) -> Any:
    return np.asarray(x).astype(dtype)


SCALAR: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "expm1": np.expm1,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "atan2": np.arctan2, "fabs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "round_half_away": _round_half_away, "erf": _erf, "erfc": _erfc, "pow": np.power,
    "fmod": np.fmod, "maximum": np.maximum, "minimum": np.minimum, "fmax": np.fmax, "fmin": np.fmin, "where": np.where,
    "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_xor": np.logical_xor, "logical_not": np.logical_not, "cast": _cast,
}  # fmt: skip

_functions: dict[str, Callable[..., Any]] = {}
_WHOLE = re.compile(r"(\w+)\(\{0\}(, \{1\})?\)")


def scalar_function(text: str) -> Callable[..., Any]:
    """The text of a MAP op as a function of NumPy arrays (and literals)."""
    function = _functions.get(text)
    if function is None:
        whole = _WHOLE.fullmatch(text)
        if whole:
            function = SCALAR[whole[1]]
        else:
            count = 1 + max(int(n) for n in re.findall(r"\{(\d+)\}", text))
            names = [f"x{i}" for i in range(count)]
            function = eval(f"lambda {', '.join(names)}: {text.format(*names)}", dict(SCALAR))
        _functions[text] = function
    return function


# VIEW -----------------------------------------------------------------------------------------------------------
def _broadcast(x: Array, *, shape: tuple[int, ...], dims: tuple[int, ...]) -> Array:
    placed = [1] * len(shape)
    strides = [0] * len(shape)
    for size, stride, dim in zip(x.shape, x.strides, dims):
        placed[dim] = size
        strides[dim] = stride if size == shape[dim] else 0
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


def _reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def _reorder(x: Array, *, order: tuple[int, ...]) -> Array:
    return x.transpose(order)


def _crop(x: Array, *, slices: tuple[tuple[int, int, int], ...]) -> Array:
    return x[as_slices(slices) + (...,)]  # with the dots a scalar stays an array


def _alias(x: Array, **params: float) -> Array:
    return x.view()


def as_slices(slices: tuple[tuple[int, int, int], ...]) -> tuple[slice, ...]:
    """(start, count, step) per dimension as Python slices; step may be negative."""
    return tuple(
        slice(start, stop if (stop := start + count * step) >= 0 else None, step) for start, count, step in slices
    )


VIEWS: dict[str, Callable[..., Array]] = {
    "broadcast": _broadcast, "view_as": _reshape, "reorder": _reorder, "crop": _crop, "alias": _alias,
    "stopgradient": _alias, "log_of": _alias, "log_rest_of": _alias, "square_of": _alias,
}  # fmt: skip


# REDUCE ---------------------------------------------------------------------------------------------------------
def _sum(x: Array, *, axes: tuple[int, ...]) -> Array:
    # NumPy adds along other axes than the last one by one: in double, long single sums keep their digits
    if x.dtype == np.float32:
        return np.add.reduce(x, axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    return np.add.reduce(x, axis=axes, keepdims=True)


def _prod(x: Array, *, axes: tuple[int, ...]) -> Array:
    return np.multiply.reduce(x, axis=axes, keepdims=True)


def _max(x: Array, *, axes: tuple[int, ...]) -> Array:
    return np.fmax.reduce(x, axis=axes, keepdims=True)  # NaNs count only where there is nothing else


def _min(x: Array, *, axes: tuple[int, ...]) -> Array:
    return np.fmin.reduce(x, axis=axes, keepdims=True)


def _any(x: Array, *, axes: tuple[int, ...]) -> Array:
    return np.logical_or.reduce(x, axis=axes, keepdims=True)


def _all(x: Array, *, axes: tuple[int, ...]) -> Array:
    return np.logical_and.reduce(x, axis=axes, keepdims=True)


REDUCTIONS: dict[str, Callable[..., Array]] = {
    "reduce_sum": _sum, "reduce_prod": _prod, "reduce_max": _max, "reduce_min": _min, "reduce_any": _any,
    "reduce_all": _all,
}  # fmt: skip


# KERNEL ---------------------------------------------------------------------------------------------------------
def _matmul(y: Array, a: Array, b: Array) -> None:
    np.matmul(_for_blas(a), _for_blas(b), out=y)


def _for_blas(x: Array) -> Array:
    """x, copied if neither its rows nor its columns are contiguous: NumPy would multiply it without BLAS."""
    rows, columns = x.strides[-2:]
    size = x.itemsize
    if (columns == size and rows >= size * x.shape[-1]) or (rows == size and columns >= size * x.shape[-2]):
        return x
    return np.ascontiguousarray(x)


def _solve(y: Array, a: Array, b: Array, *, is_strict: bool = False) -> None:
    try:
        y[...] = np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        if is_strict:
            raise np.linalg.LinAlgError("solve: the matrix is singular. Use mldivide, which gives Inf.") from None
        warnings.warn("mldivide: the matrix is singular to working precision; the result is Inf.", stacklevel=2)
        y[...] = np.inf


def _lstsq(y: Array, a: Array, b: Array) -> None:
    y[...] = np.linalg.lstsq(a, b, rcond=None)[0]


def _place(y: Array, x: Array, *, shape: tuple[int, ...], slices: tuple[tuple[int, int, int], ...]) -> None:
    y[...] = 0
    y[as_slices(slices)] = x


def _assign(y: Array, x: Array, v: Array, *, slices: tuple[tuple[int, int, int], ...]) -> None:
    y[...] = x
    y[as_slices(slices)] = v


def _gather(y: Array, x: Array, index: Array, *, axis: int | None = None) -> None:
    # subscripts count through all elements, last dimension fastest, or along `axis`; negative ones from the end
    y[...] = np.take(x, index, axis=axis)


def _scatter_add(y: Array, g: Array, index: Array, *, shape: tuple[int, ...], axis: int | None = None) -> None:
    if axis is None or y.ndim == 1:
        flat = np.zeros(y.size, y.dtype)
        np.add.at(flat, index.reshape(-1), g.reshape(-1))
        y[...] = flat.reshape(y.shape)
        return
    y[...] = 0
    rows, into = _rows(g, index, axis), np.moveaxis(y, axis, 0)
    for i, row in zip(index.reshape(-1).tolist(), rows):
        into[i] += row


def _scatter(y: Array, x: Array, v: Any, index: Array, *, axis: int | None = None) -> None:
    # of equal subscripts the last one wins
    if axis is None:
        flat = x.reshape(-1).copy()
        flat[index.reshape(-1)] = v.reshape(-1) if isinstance(v, Array) else v
        y[...] = flat.reshape(y.shape)
        return
    y[...] = x
    into = np.moveaxis(y, axis, 0)
    if isinstance(v, Array):
        for i, row in zip(index.reshape(-1).tolist(), _rows(v, index, axis)):
            into[i] = row
    else:
        into[index] = v


def _rows(v: Array, index: Array, axis: int) -> Array:
    """What goes to each subscript: the dimensions of `index`, which stand at `axis`, as one dimension in front."""
    moved = np.moveaxis(v, range(axis, axis + index.ndim), range(index.ndim))
    return moved.reshape(index.size, *moved.shape[index.ndim :])


def _concatenate(y: Array, *xs: Array, axis: int) -> None:
    np.concatenate(xs, axis=axis, out=y)


def _cumsum(y: Array, x: Array, *, axis: int) -> None:
    y[...] = np.cumsum(x, axis=axis, dtype=np.float64)


def _cumprod(y: Array, x: Array, *, axis: int) -> None:
    np.cumprod(x, axis=axis, out=y)


def _argmax(y: Array, x: Array, *, axes: tuple[int, ...]) -> None:
    # the first of `axes` is to run fastest, NumPy's last one does
    order = (*(i for i in range(x.ndim) if i not in axes), *reversed(axes))
    count = math.prod(x.shape[i] for i in axes)
    places = np.arange(x.size).reshape(x.shape).transpose(order).reshape(y.size, count)
    rows = x.transpose(order).reshape(places.shape)
    first = np.argmax(rows == np.fmax.reduce(rows, axis=1, keepdims=True), axis=1)
    y[...] = places[np.arange(y.size), first].reshape(y.shape)


def _argsort(y: Array, x: Array, *, axis: int, descending: bool) -> None:
    # stable in both directions; NaN last ascending and first descending, as MATLAB sorts
    if descending:
        places = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        places = np.argsort(x, axis=axis, kind="stable")
    y[...] = np.take_along_axis(np.arange(x.size).reshape(x.shape), places, axis)


def _spacing(y: Array, x: Array) -> None:
    np.spacing(np.abs(x), out=y)


def _full(y: Array, *, shape: tuple[int, ...], value: float, dtype: str, device: str = "cpu") -> None:
    y[...] = value


def _transfer(y: Array, x: Any, *, device: str) -> None:
    y[...] = x if isinstance(x, Array) else importlib.import_module("minidl.backends.cuda").fetched(x)


_WORDS = 8192  # random words that are turned into normal numbers at once: they stay in the cache


def _random(y: Array, new: Array, state: Array, *, shape: tuple[int, ...], dtype: str, law: str) -> None:
    # every element comes from its own place among the draw's words, so that devices can draw it apart from the others
    new[...] = state
    new[1] += np.uint64(1)
    words = np.random.Philox(key=int(state[0]), counter=int(state[1]) << 128)
    if law == "uniform":
        y[...] = np.random.Generator(words).random(y.shape, dtype=y.dtype)
        return
    flat = np.empty(y.size, y.dtype)
    for start in range(0, y.size, _WORDS):
        part = flat[start : start + _WORDS]
        part[...] = _normal(words.random_raw(part.size))
    y[...] = flat.reshape(y.shape)


def _normal(words: Array) -> Array:
    """A normal number of each word of 64 bits: the inverse distribution function at (k + 1/2) / 2^53, k its top bits.

    In double, by the operations that `minidl.kernels.normal` lists and no others: every device gives the same bits.
    """
    odd = (words >> np.uint64(11)).view(np.int64) * 2 - (2**53 - 1)
    q = odd * 2.0**-54  # the probability less 1/2, exactly; never 0
    y = np.empty(q.shape)
    is_near = np.abs(q) <= normal.NEAR
    near = q[is_near]
    y[is_near] = _quotient(near, normal.CENTRE, normal.NEAR_SQUARED - near * near)
    tail = odd[~is_near]
    r = np.sqrt(_minus_log(2**53 - np.abs(tail)))
    size = _quotient(1.0, normal.MIDDLE, r - normal.MIDDLE_START)
    is_far = r > normal.FAR_START
    if is_far.any():
        size[is_far] = _quotient(1.0, normal.FAR, r[is_far] - normal.FAR_START)
    y[~is_near] = np.where(tail < 0, -size, size)
    return y


def _minus_log(count: Array) -> Array:
    """-log(count / 2^54) of whole numbers from 1 to 2^53."""
    m, e = np.frexp(count.astype(np.float64))
    is_low = m < normal.ROOT_HALF
    m, e = np.where(is_low, m * 2, m), e - is_low
    z = (m - 1) / (m + 1)
    return (54 - e) * normal.LOG_2 - z * _horner(normal.LOG_SERIES, z * z)


def _quotient(factor: Any, coefficients: tuple[tuple[float, ...], ...], x: Array) -> Array:
    """factor * polynomial / polynomial at x."""
    above, below = (_horner(c, x) for c in coefficients)
    return factor * above / below


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    y = np.full(x.shape, coefficients[-1])
    for c in coefficients[-2::-1]:
        y *= x
        y += c
    return y


KERNELS: dict[str, Callable[..., None]] = {
    "matmul": _matmul, "solve": _solve, "lstsq": _lstsq, "place": _place, "assign": _assign, "gather": _gather,
    "scatter_add": _scatter_add, "scatter": _scatter, "concatenate": _concatenate, "cumsum_along": _cumsum,
    "cumprod_along": _cumprod, "argmax": _argmax, "argsort": _argsort, "spacing": _spacing,
    "full": _full, "random": _random, "transfer": _transfer,
}  # fmt: skip
