"""NumPy's functions on dlarrays: np.sin(X), np.sum(X, axis=0), array + X, np.concatenate([X, Y]) ...

They follow NumPy: `axis` drops dimensions unless keepdims=True, arrays are read row by row, NaNs are handed on, halves
are rounded to even. Labels stay where the dimensions do. What is not in the tables is an error that says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, numbers, public
from minidl.core.errors import DTypeError, OptionError, ShapeError
from minidl.core.labels import describe
from minidl.core.op import named
from minidl.ops import elementwise as e
from minidl.ops import facts, linear, reduction
from minidl.ops import shape as _shape  # NumPy has parameters called shape
from minidl.ops.axes import array, axes_of
from minidl.ops.views import broadcast, labelled, part, view_as

# universal functions --------------------------------------------------------------------------------------------


def _remainder(a: Any, b: Any) -> DLArray:
    return e.where(e.eq(b, 0), math.nan, e.mod(a, b))  # MATLAB's mod(a, 0) is a


def _rint(x: Any) -> DLArray:
    fraction = e.abs(e.minus(x, e.fix(x)))
    return e.where(e.eq(fraction, 0.5), e.round(e.rdivide(x, 2)) * 2, e.round(x))


def _logical(of: Callable[..., DLArray]) -> Callable[..., DLArray]:
    """The bitwise operators mean logic, for logical arrays alone."""

    def run(*xs: Any) -> DLArray:
        for x in xs:
            if not isinstance(x, bool) and array(x).dtype.kind != "b":
                raise DTypeError("np.bitwise_*: bits of single or double numbers mean nothing. Use logical arrays.")
        return of(*xs)

    return run


UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: e.plus, np.subtract: e.minus, np.multiply: e.times, np.divide: e.rdivide, np.power: e.power,
    np.float_power: e.power, np.remainder: _remainder, np.fmod: e.rem, np.negative: e.uminus, np.positive: e.uplus,
    np.floor_divide: lambda a, b: e.floor(e.rdivide(a, b)), np.reciprocal: lambda x: e.rdivide(1, x),
    np.square: e.square, np.sqrt: e.sqrt, np.absolute: e.abs, np.fabs: e.abs, np.sign: e.sign,
    np.exp: e.exp, np.exp2: lambda x: e.power(2, x), np.expm1: e.expm1, np.log: e.log, np.log2: e.log2,
    np.log10: e.log10, np.log1p: e.log1p, np.sin: e.sin, np.cos: e.cos, np.tan: e.tan, np.arcsin: e.asin,
    np.arccos: e.acos, np.arctan: e.atan, np.arctan2: e.atan2, np.hypot: e.hypot, np.sinh: e.sinh, np.cosh: e.cosh,
    np.tanh: e.tanh, np.arcsinh: e.asinh, np.arccosh: e.acosh, np.arctanh: e.atanh, np.floor: e.floor,
    np.ceil: e.ceil, np.trunc: e.fix, np.rint: _rint, np.conjugate: e.conj,
    np.deg2rad: lambda x: e.times(x, math.pi / 180), np.rad2deg: lambda x: e.times(x, 180 / math.pi),
    np.maximum: e.maximum, np.minimum: e.minimum, np.fmax: e.larger,
    np.fmin: e.smaller, np.equal: e.eq, np.not_equal: e.ne, np.less: e.lt, np.less_equal: e.le, np.greater: e.gt,
    np.greater_equal: e.ge, np.logical_and: e.and_, np.logical_or: e.or_, np.logical_xor: e.xor,
    np.logical_not: e.not_, np.bitwise_and: _logical(e.and_), np.bitwise_or: _logical(e.or_),
    np.bitwise_xor: _logical(e.xor), np.invert: _logical(e.not_), np.isnan: e.isnan, np.isinf: e.isinf,
    np.isfinite: e.isfinite, np.matmul: linear.matmul_,
}  # fmt: skip


@public
def numpy_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What DLArray.__array_ufunc__ calls."""
    if method == "reduce" and ufunc in REDUCTIONS and options.get("out") in (None, (None,)):
        kept = {name: value for name, value in options.items() if name != "out"}
        return REDUCTIONS[ufunc](*inputs, **{"axis": 0, **kept})
    function = UFUNCS.get(ufunc)
    who = f"np.{ufunc.__name__}"
    if function is None or method != "__call__":
        raise _unknown(who if method == "__call__" else f"{who}.{method}")
    out = options.get("out")
    if out is not None and any(isinstance(x, DLArray) for x in out):
        raise DTypeError(f"{who}: the numbers of a dlarray never change, so it cannot be `out`. Write Y = {who}(...).")
    if out is not None:
        raise DTypeError(
            f"{who}: a plain array cannot take the result in place, it would lose its trace (array += dlarray). "
            "Write array = array + X, or np.asarray(X) for plain data."
        )
    if options:
        raise OptionError(f"{who}: the option {next(iter(options))!r} does not work on dlarrays. Leave it out.")
    return function(*inputs)


def _unknown(who: str) -> DTypeError:
    return DTypeError(
        f"{who}: not available for dlarrays. Use minidl's functions, or np.asarray(X) for plain data without a trace."
    )


# functions ------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[Any, Callable[..., Any]] = {}


def implements(*functions: Any) -> Callable[[Any], Any]:
    """Decorate what stands for the given functions of NumPy; options it does not name are refused."""

    def put(function: Any) -> Any:
        for f in functions:
            FUNCTIONS[f] = function
        return function

    return put


@public
def numpy_function(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What DLArray.__array_function__ calls."""
    who = f"np.{getattr(function, '__name__', function)}"
    found = FUNCTIONS.get(function)
    if found is None:
        raise _unknown(who)
    options = {name: x for name, x in options.items() if x is not np._NoValue}
    if options.get("out") is None:
        options.pop("out", None)
    try:
        return found(*args, **options)
    except TypeError as error:
        if isinstance(error, DTypeError) or "argument" not in str(error):
            raise
        raise OptionError(f"{who}: on dlarrays, {str(error).split('() ')[-1]}. Leave the option out.") from None


def _axes(x: DLArray, axis: Any) -> tuple[int, ...]:
    return axes_of("axis", "all" if axis is None else axis, x.shape, x._labels)


def _reducing(reduce: Callable[[DLArray, tuple[int, ...]], DLArray]) -> Callable[..., DLArray]:
    """reduce(x without labels, axes), which keeps dimensions at size 1, with NumPy's arguments."""

    def run(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> DLArray:
        x = array(a)
        axes = _axes(x, axis)
        y = reduce(DLArray(x._value) if dtype is None else facts.cast(DLArray(x._value), dtype), axes)
        if keepdims:
            return labelled(y, x._labels)
        return view_as(y, shape=tuple([n for i, n in enumerate(x.shape) if i not in axes]))

    return run


def _nan_kept(extreme: Any) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    def reduce(x: DLArray, axes: tuple[int, ...]) -> DLArray:
        if any(x.shape[i] == 0 for i in axes):
            raise ShapeError(f"np.{extreme.__name__}: nothing has no extreme; X is {describe(x.shape)}.")
        has_nan = reduction.reduce_any(e.isnan(x), axes=axes)
        return e.where(has_nan, math.nan, extreme(x, dim=axes))

    return reduce


def _ordinary(function: Any) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    return lambda x, axes: function(x, axes)


FUNCTIONS.update({
    np.sum: _reducing(_ordinary(reduction.sum)), np.prod: _reducing(_ordinary(reduction.prod)),
    np.mean: _reducing(_ordinary(reduction.mean)), np.median: _reducing(_ordinary(reduction.median)),
    np.max: _reducing(_nan_kept(reduction.max)), np.min: _reducing(_nan_kept(reduction.min)),
    np.amax: _reducing(_nan_kept(reduction.max)), np.amin: _reducing(_nan_kept(reduction.min)),
    np.nanmax: _reducing(lambda x, axes: reduction.max(x, dim=axes)),
    np.nanmin: _reducing(lambda x, axes: reduction.min(x, dim=axes)),
    np.any: _reducing(lambda x, axes: reduction.reduce_any(x, axes=axes)), np.all: _reducing(_ordinary(reduction.all)),
})  # fmt: skip

REDUCTIONS: dict[Any, Callable[..., DLArray]] = {
    np.add: FUNCTIONS[np.sum], np.multiply: FUNCTIONS[np.prod], np.maximum: FUNCTIONS[np.max],
    np.minimum: FUNCTIONS[np.min], np.logical_or: FUNCTIONS[np.any], np.logical_and: FUNCTIONS[np.all],
}  # fmt: skip


def _moment(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> DLArray:
        if ddof not in (0, 1):
            raise OptionError(f"np.{function.__name__}: ddof is 0 or 1 on dlarrays; got {ddof!r}.")
        return _reducing(lambda x, axes: function(x, 1 - ddof, axes))(a, axis, keepdims=keepdims)

    return run


FUNCTIONS.update({np.var: _moment(reduction.var), np.std: _moment(reduction.std)})


def _running(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: int | None = None) -> DLArray:
        x = array(a)
        return function(view_as(x, shape=(x.size,)), 0) if axis is None else function(x, axis)

    return run


FUNCTIONS.update({np.cumsum: _running(reduction.cumsum), np.cumprod: _running(reduction.cumprod)})


def _place_of(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: int | None = None, keepdims: bool = False) -> DLArray:
        x = DLArray(array(a)._value)
        flat = view_as(x, shape=(x.size,)) if axis is None else x
        _, places = function(flat, dim=0 if axis is None else axis, nargout=2)
        kept = tuple([1 if axis is None or i == axis % x.ndim else n for i, n in enumerate(x.shape)])
        dropped = tuple([n for i, n in enumerate(x.shape) if axis is not None and i != axis % x.ndim])
        return view_as(places, shape=kept if keepdims else dropped)

    return run


FUNCTIONS.update({np.argmax: _place_of(reduction.max), np.argmin: _place_of(reduction.min)})


@implements(np.sort)
def _sort(a: Any, axis: int | None = -1) -> DLArray:
    x = array(a)
    return reduction.sort(view_as(x, shape=(x.size,)), 0) if axis is None else reduction.sort(x, axis)


@implements(np.argsort)
def _argsort(a: Any, axis: int | None = -1) -> DLArray:
    x = array(a)
    x, axis = (view_as(x, shape=(x.size,)), 0) if axis is None else (x, axis)
    return reduction.sort(x, axis, nargout=2)[1]


# shapes


@implements(np.reshape)
def _reshape(a: Any, /, shape_: Any = None, order: str = "C", *, shape: Any = None, newshape: Any = None) -> DLArray:
    wanted = next(given for given in (shape_, shape, newshape, ()) if given is not None)
    return _shape.reshape(a, wanted, Order=order)



@implements(np.ravel)
def _ravel(a: Any, order: str = "C") -> DLArray:
    return _shape.reshape(a, (-1,), Order=order)


@implements(np.transpose)
def _transpose(a: Any, axes: Any = None) -> DLArray:
    x = array(a)
    return _shape.permute(x, tuple(range(x.ndim))[::-1] if axes is None else [i % x.ndim for i in axes])


@implements(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> DLArray:
    x = array(a)
    order = list(range(x.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return _shape.permute(x, order)


@implements(np.moveaxis)
def _moveaxis(a: Any, source: Any, destination: Any) -> DLArray:
    x = array(a)
    marked = np.broadcast_to(np.empty(()), tuple(range(x.ndim)))  # NumPy moves sizes 0, 1, 2 ...: they are the order
    return _shape.permute(x, np.moveaxis(marked, source, destination).shape)


@implements(np.squeeze)
def _squeeze(a: Any, axis: Any = None) -> DLArray:
    x = array(a)
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axis is None else _axes(x, axis)
    if any(x.shape[i] != 1 for i in axes):
        raise ShapeError(f"np.squeeze: only dimensions of size 1 go away; X is {describe(x.shape, x._labels)}.")
    kept = [i for i in range(x.ndim) if i not in axes]
    y = view_as(x, shape=tuple([x.shape[i] for i in kept]))
    return labelled(y, "".join([x._labels[i] for i in kept])) if x._labels and len(kept) > 1 else y


@implements(np.expand_dims)
def _expand_dims(a: Any, axis: Any) -> DLArray:
    x = array(a)
    return view_as(x, shape=np.expand_dims(np.broadcast_to(np.empty(()), x.shape), axis).shape)


@implements(np.broadcast_to)
def _broadcast_to(array_: Any, shape: Any) -> DLArray:
    x = array(array_)
    target = (shape,) if isinstance(shape, int) else tuple(shape)
    np.broadcast_to(np.broadcast_to(np.empty(()), x.shape), target)  # NumPy's own complaint
    return broadcast(x, shape=target, dims=tuple(range(len(target) - x.ndim, len(target))))


@implements(np.flip)
def _flip(m: Any, axis: Any = None) -> DLArray:
    return _shape.flip(m, "all" if axis is None else axis)


@implements(np.roll)
def _roll(a: Any, shift: Any, axis: Any = None) -> DLArray:
    x = array(a)
    if axis is None:
        return view_as(_shape.circshift(view_as(x, shape=(x.size,)), shift), shape=x.shape)
    axes = axis if isinstance(axis, (tuple, list)) else [axis]
    return _shape.circshift(x, [shift] * len(axes) if isinstance(shift, int) else list(shift), list(axes))


@implements(np.tile)
def _tile(A: Any, reps: Any) -> DLArray:
    x = array(A)
    counts = (reps,) if isinstance(reps, int) else tuple(reps)
    rank = max(x.ndim, len(counts))
    labels = x._labels if rank == x.ndim else ""
    y = x if rank == x.ndim else view_as(x, shape=(1,) * (rank - x.ndim) + x.shape)
    return DLArray(_shape.repmat(DLArray(y._value), (1,) * (rank - len(counts)) + counts)._value, labels)


@implements(np.repeat)
def _repeat(a: Any, repeats: int, axis: int | None = None) -> DLArray:
    x = array(a)
    x, axis = (view_as(x, shape=(x.size,)), 0) if axis is None else (x, axis % x.ndim)
    return _shape.repelem(x, [repeats if i == axis else 1 for i in range(x.ndim)])


@implements(np.concatenate)
def _concatenate(arrays: Any, axis: int | None = 0) -> DLArray:
    xs = [array(x) for x in arrays]
    if axis is None:
        xs, axis = [view_as(x, shape=(x.size,)) for x in xs], 0
    if axis >= max((x.ndim for x in xs), default=0):
        raise ShapeError(f"np.concatenate: there is no dimension {axis}. Use np.stack for a new one.")
    return _shape.cat(axis, *xs)


@implements(np.stack)
def _stack(arrays: Any, axis: int = 0) -> DLArray:
    xs = [DLArray(array(x)._value) for x in arrays]
    rank = xs[0].ndim + 1
    axis = axis + rank if axis < 0 else axis
    return _shape.cat(axis, *[view_as(x, shape=(*x.shape[:axis], 1, *x.shape[axis:])) for x in xs])


@implements(np.vstack)
def _vstack(tup: Any) -> DLArray:
    xs = [array(x) for x in tup]
    return _shape.cat(0, *[x if x.ndim > 1 else view_as(x, shape=(1, x.size)) for x in xs])


@implements(np.hstack)
def _hstack(tup: Any) -> DLArray:
    xs = [array(x) for x in tup]
    xs = [x if x.ndim else view_as(x, shape=(1,)) for x in xs]
    return _shape.cat(0 if xs[0].ndim == 1 else 1, *xs)


@implements(np.split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[DLArray]:
    x = array(ary)
    n, axis = x.shape[axis], axis % x.ndim
    if isinstance(indices_or_sections, int):
        if n % indices_or_sections:
            raise ShapeError(f"np.split: {n} elements cannot be cut into {indices_or_sections} equal parts.")
        step = n // indices_or_sections
        cuts = list(range(0, n + 1, step))
    else:
        cuts = [0, *[min(cut, n) for cut in indices_or_sections], n]
    return [DLArray(part(x, axis, low, max(high - low, 0))._value, x._labels) for low, high in zip(cuts, cuts[1:])]


# others


@implements(np.where)
def _where(condition: Any, *choices: Any) -> DLArray:
    if len(choices) != 2:
        raise _unknown("np.where with one argument")
    return e.where(condition, *choices)


@implements(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> DLArray:
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    y = array(a)
    y = y if low is None else e.maximum(y, low)
    return y if high is None else e.minimum(y, high)


@implements(np.round, np.around)
def _round(a: Any, decimals: int = 0) -> DLArray:
    return _rint(a) if decimals == 0 else _rint(e.times(a, 10.0**decimals)) / 10.0**decimals


FUNCTIONS.update({
    np.real: lambda val: e.real(val), np.imag: lambda val: e.imag(val), np.trace: lambda a: linear.trace(a),
    np.tril: lambda m, k=0: linear.tril(m, k), np.triu: lambda m, k=0: linear.triu(m, k),
    np.linalg.solve: lambda a, b: linear.mldivide(a, b), np.shape: lambda a: a.shape, np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
    np.result_type: lambda *xs: np.result_type(*[x.dtype if isinstance(x, DLArray) else x for x in xs]),
})  # fmt: skip


@implements(np.dot)
def _dot(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    return e.times(x, y) if not x.ndim or not y.ndim else linear.matmul_(x, y)


@implements(np.outer)
def _outer(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    return e.times(view_as(x, shape=(x.size, 1)), view_as(y, shape=(1, y.size)))


@implements(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> DLArray:
    if ord not in (None, 1, 2, math.inf) or (ord is not None and axis is None and array(x).ndim > 1):
        raise _unknown(f"np.linalg.norm of order {ord!r} for these dimensions")
    return _reducing(lambda a, axes: reduction.vecnorm(a, 2 if ord is None else ord, axes))(x, axis, keepdims=keepdims)


def _filled_like(a: Any, value: Any, dtype: Any) -> DLArray:
    x = array(a)
    name = x.dtype.name if dtype is None else facts._dtype(dtype).name
    return DLArray(named("full")(shape=x.shape, value=value, dtype=name, device=x.device)._value, x._labels)


@implements(np.zeros_like)
def _zeros_like(a: Any, dtype: Any = None) -> DLArray:
    return _filled_like(a, 0.0, dtype)


@implements(np.ones_like)
def _ones_like(a: Any, dtype: Any = None) -> DLArray:
    return _filled_like(a, 1.0, dtype)


@implements(np.full_like)
def _full_like(a: Any, fill_value: Any, dtype: Any = None) -> DLArray:
    if not isinstance(fill_value, DLArray):
        return _filled_like(a, float(fill_value), dtype)
    y = e.plus(_filled_like(a, 0.0, "float64"), facts.cast(fill_value, "float64"))
    return facts.cast(y, array(a).dtype if dtype is None else dtype)


def _plain(x: Any) -> Any:
    return numbers(x) if isinstance(x, DLArray) else x


@implements(np.array_equal)
def _array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    return bool(np.array_equal(_plain(a1), _plain(a2), equal_nan))


@implements(np.allclose)
def _allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    return bool(np.allclose(_plain(a), _plain(b), rtol, atol, equal_nan))


@implements(np.isclose)
def _isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> DLArray:
    close = e.le(e.abs(e.minus(a, b)), e.plus(e.times(e.abs(b), rtol), atol))
    return e.or_(e.eq(a, b), e.and_(close, e.isfinite(b)))


@implements(np.copy)
def _copy(a: Any) -> DLArray:
    return a.copy()


@implements(np.array2string, np.array_repr, np.array_str)
def _text(a: Any, *args: Any, **options: Any) -> str:
    return np.array2string(numbers(a), *args, **options)
