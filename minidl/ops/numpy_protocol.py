"""NumPy's functions on dlarrays: np.sin(X), np.sum(X, axis=0), array + X, np.concatenate([X, Y]) ...

They follow NumPy: `axis` drops dimensions unless keepdims=True, arrays are read row by row, NaNs are handed on, halves
are rounded to even, what NumPy refuses is refused. Labels stay where the dimensions do. Of types dlarrays keep their
own rule: single beside double gives single, logical arrays count as double in arithmetic, places are double.
What is not in the tables, and options that these do not know, are errors that say what to do.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from minidl.core.dlarray import DLArray, numbers, public
from minidl.core.errors import DTypeError, MinidlError, OptionError, ShapeError, SingularError
from minidl.core.labels import describe
from minidl.core.op import named
from minidl.ops import elementwise as e
from minidl.ops import facts, linear, reduction
from minidl.ops import shape as _shape  # NumPy has parameters called shape
from minidl.ops.activation import logaddexp
from minidl.ops.axes import array, axes_of
from minidl.ops.views import broadcast, crop, labelled, reorder, view_as

# universal functions --------------------------------------------------------------------------------------------


def _rint(x: Any) -> DLArray:
    fraction = e.abs(e.minus(x, e.fix(x)))
    return e.where(e.eq(fraction, 0.5), e.round(e.rdivide(x, 2)) * 2, e.round(x))


def _float_power(a: Any, b: Any) -> DLArray:
    y = e.power(a, b)
    return e.where(e.isinf(a), math.inf, y) if isinstance(b, float) and b == 0.5 else y  # a root: (-inf)^0.5 is inf


def _is_logical(x: Any) -> bool:
    return isinstance(x, (bool, np.bool_)) or (hasattr(x, "dtype") and x.dtype.kind == "b")


def _choosing(of: Callable[..., DLArray], of_truths: Callable[..., DLArray]) -> Callable[..., DLArray]:
    """The larger or smaller of two: of truths it is a truth."""
    return lambda a, b: of_truths(a, b) if _is_logical(a) and _is_logical(b) else of(a, b)


def _logical(of: Callable[..., DLArray]) -> Callable[..., DLArray]:
    """The bitwise operators mean logic, for logical arrays alone."""

    def run(*xs: Any) -> DLArray:
        for x in xs:
            if not isinstance(x, bool) and array(x).dtype.kind != "b":
                raise DTypeError("bitwise: bits of single or double numbers mean nothing. Use logical arrays.")
        return of(*xs)

    return run


UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: e.plus, np.subtract: e.minus, np.multiply: e.times, np.divide: e.rdivide, np.power: e.power,
    np.float_power: _float_power, np.remainder: e.remainder, np.fmod: e.rem, np.negative: e.uminus,
    np.positive: e.uplus,
    np.floor_divide: e.floor_divide, np.divmod: lambda a, b: (e.floor_divide(a, b), e.remainder(a, b)),
    np.reciprocal: lambda x: e.rdivide(1, x),
    np.square: e.square, np.sqrt: e.sqrt, np.absolute: e.abs, np.fabs: e.abs, np.sign: e.sign,
    np.exp: e.exp, np.exp2: lambda x: e.power(2, x), np.expm1: e.expm1, np.log: e.log, np.log2: e.log2,
    np.log10: e.log10, np.log1p: e.log1p, np.sin: e.sin, np.cos: e.cos, np.tan: e.tan, np.arcsin: e.asin,
    np.arccos: e.acos, np.arctan: e.atan, np.arctan2: e.atan2, np.hypot: e.hypot, np.sinh: e.sinh, np.cosh: e.cosh,
    np.tanh: e.tanh, np.arcsinh: e.asinh, np.arccosh: e.acosh, np.arctanh: e.atanh, np.floor: e.floor,
    np.ceil: e.ceil, np.trunc: e.fix, np.rint: _rint, np.conjugate: e.conj,
    np.deg2rad: lambda x: e.times(x, math.pi / 180), np.rad2deg: lambda x: e.times(x, 180 / math.pi),
    np.maximum: _choosing(e.maximum, e.or_), np.minimum: _choosing(e.minimum, e.and_),
    np.fmax: _choosing(e.larger, e.or_), np.fmin: _choosing(e.smaller, e.and_),
    np.logaddexp: logaddexp,
    np.equal: e.eq, np.not_equal: e.ne, np.less: e.lt, np.less_equal: e.le, np.greater: e.gt,
    np.greater_equal: e.ge, np.logical_and: e.and_, np.logical_or: e.or_, np.logical_xor: e.xor,
    np.logical_not: e.not_, np.bitwise_and: _logical(e.and_), np.bitwise_or: _logical(e.or_),
    np.bitwise_xor: _logical(e.xor), np.invert: _logical(e.not_), np.isnan: e.isnan, np.isinf: e.isinf,
    np.isfinite: e.isfinite, np.matmul: linear.matmul_,
}  # fmt: skip


@public
def numpy_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What DLArray.__array_ufunc__ calls."""
    if method == "__call__" and not options:
        function = UFUNCS.get(ufunc)
        if function is None:
            raise _unknown(f"np.{ufunc.__name__}")
        try:
            return function(*inputs)
        except MinidlError as error:
            raise _said_by(f"np.{ufunc.__name__}", error) from None
    who = f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
    function = {"__call__": UFUNCS, "reduce": REDUCTIONS, "accumulate": RUNNING}.get(method, {}).get(ufunc)
    if function is None and method == "outer" and ufunc.nin == 2 and ufunc.nout == 1 and ufunc is not np.matmul:
        function = _outer_of(UFUNCS.get(ufunc))
    if function is None:
        raise _unknown(who)
    out = options.get("out")
    if isinstance(out, tuple) and all(x is None for x in out):
        out = None
    if out is not None and any(isinstance(x, DLArray) for x in (out if isinstance(out, tuple) else (out,))):
        raise DTypeError(f"{who}: the numbers of a dlarray never change, so it cannot be `out`. Write Y = {who}(...).")
    if out is not None:
        raise DTypeError(
            f"{who}: a plain array cannot take the result in place, it would lose its trace (array += dlarray). "
            "Write array = array + X, or np.asarray(X) for plain data."
        )
    given = {name: x for name, x in options.items() if name != "out" and not _is_usual(name, x)}
    if method == "__call__" and given:
        raise _refused_option(who, next(iter(given)))
    if method in ("reduce", "accumulate"):
        given.setdefault("axis", 0)
    return _called(who, function, inputs, given, {})


_USUAL = {"where": True, "casting": "same_kind", "order": "K", "subok": True, "dtype": None, "signature": None}


def _is_usual(name: str, x: Any) -> bool:
    """Whether an option of a universal function says what is done anyway."""
    return x is np._NoValue or (name in _USUAL and (x is _USUAL[name] or (isinstance(x, str) and x == _USUAL[name])))


def _outer_of(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    def run(a: Any, b: Any) -> Any:
        x, y = array(a), array(b)
        return function(view_as(x, shape=x.shape + (1,) * y.ndim), DLArray(y._value))  # type: ignore[misc]

    return run if function is not None else None


def _unknown(who: str) -> DTypeError:
    return DTypeError(
        f"{who}: not available for dlarrays. Use minidl's functions, or np.asarray(X) for plain data without a trace."
    )


def _refused_option(who: str, name: str) -> OptionError:
    return OptionError(f"{who}: the option {name!r} does not work on dlarrays. Leave it out.")


def _said_by(who: str, error: MinidlError) -> MinidlError:
    """The error with the name of the function that the user called in front."""
    text = str(error)
    if not text.startswith("np."):
        error.args = (f"{who}: {text.partition(': ')[2] or text}",)
    return error


def _called(
    who: str, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], usual: dict[str, Any]
) -> Any:
    """function(*args, **options); complaints, NumPy's too, become errors with a name. `usual` may be given."""
    try:
        return function(*args, **options)
    except MinidlError as error:
        raise _said_by(who, error) from None
    except np.linalg.LinAlgError as error:
        raise SingularError(f"{who}: {str(error).partition(': ')[2] or error}") from None
    except (ValueError, IndexError) as error:
        raise ShapeError(f"{who}: {error}. See NumPy's description of it.") from None
    except TypeError as error:
        known = inspect.signature(function).parameters
        for name, x in options.items():
            if name not in known:
                if name in usual and (x is usual[name] or (isinstance(x, (str, bool)) and x == usual[name])):
                    rest = {other: value for other, value in options.items() if other != name}
                    return _called(who, function, args, rest, usual)
                raise _refused_option(who, name) from None
        try:
            inspect.signature(function).bind(*args, **options)
        except TypeError:
            raise OptionError(
                f"{who}: on dlarrays it takes {', '.join(name.rstrip('_') for name in known)}, and not these arguments."
            ) from None
        raise DTypeError(f"{who}: {error}. See NumPy's description of it.") from None


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
    found = FUNCTIONS.get(function)
    who = f"{getattr(function, '__module__', 'numpy').replace('numpy', 'np', 1)}.{function.__name__}"
    if found is None:
        raise _unknown(who)
    return _called(who, found, args, {name: x for name, x in options.items() if x is not np._NoValue}, _usual(function))


@functools.cache
def _usual(function: Any) -> dict[str, Any]:
    """What the options of a function of NumPy are if they are not given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # said in C
        return {"out": None, "dtype": None, "casting": "same_kind", "order": "C"}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _axes(x: DLArray, axis: Any, is_strict: bool = False) -> tuple[int, ...]:
    """The dimensions that NumPy's `axis` means: None for all, numbers as NumPy takes them, or labels.

    is_strict : a scalar has no axis 0; some of NumPy's functions take it for a vector then.
    """
    if axis is None:
        return tuple(range(x.ndim))
    if isinstance(axis, str):
        return axes_of("axis", axis, x.shape, x._labels)
    if isinstance(axis, (bool, np.bool_, list, DLArray)):
        raise TypeError(f"axis is a whole number or a tuple of them; got {axis!r}")
    if not x.ndim and not is_strict and not isinstance(axis, tuple) and operator.index(axis) in (0, -1):
        return ()
    return normalize_axis_tuple(axis if isinstance(axis, tuple) else operator.index(axis), x.ndim)


def _axis(x: DLArray, axis: Any) -> int:
    """The one dimension that is meant."""
    if isinstance(axis, str):
        axes = axes_of("axis", axis, x.shape, x._labels)
        if len(axes) != 1:
            raise OptionError(f"axis: one dimension is wanted; {axis!r} names {len(axes)}. Give its number.")
        return axes[0]
    if isinstance(axis, (bool, np.bool_, DLArray)):
        raise TypeError(f"axis is a whole number; got {axis!r}")
    return normalize_axis_index(operator.index(axis), x.ndim)


def _lined(a: Any, axis: Any) -> tuple[DLArray, int]:
    """(X, one dimension of it); with the axis None, X in a row."""
    x = array(a)
    return (_row(x), 0) if axis is None or (not x.ndim and axis in (0, -1)) else (x, _axis(x, axis))


def _row(x: DLArray) -> DLArray:
    return view_as(x, shape=(x.size,))


def _reducing(
    reduce: Callable[[DLArray, tuple[int, ...]], DLArray], is_strict: bool = False
) -> Callable[..., DLArray]:
    """reduce(x without labels, axes), which keeps dimensions at size 1, with NumPy's arguments."""

    def run(a: Any, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> DLArray:
        x = array(a)
        axes = _axes(x, axis, is_strict)
        y = reduce(DLArray(x._value) if dtype is None else facts.cast(DLArray(x._value), dtype), axes)
        return _kept(x, y, axes, keepdims)

    return run


def _kept(x: DLArray, y: DLArray, axes: tuple[int, ...], keepdims: Any) -> DLArray:
    """The result y of a reduction of x along `axes`, which are there with size 1: with or without them."""
    if operator.index(bool(keepdims) if isinstance(keepdims, np.bool_) else keepdims):
        return labelled(y, x._labels)
    return view_as(y, shape=tuple([n for i, n in enumerate(x.shape) if i not in axes]))


def _nan_kept(extreme: Any, of_truths: Any) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    def reduce(x: DLArray, axes: tuple[int, ...]) -> DLArray:
        _need_some(x, axes)
        if x.dtype.kind == "b":
            return of_truths(x, axes=axes)
        has_nan = reduction.reduce_any(e.isnan(x), axes=axes)
        return e.where(has_nan, math.nan, extreme(x, dim=axes))

    return reduce


def _nan_left_out(extreme: Any) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    def reduce(x: DLArray, axes: tuple[int, ...]) -> DLArray:
        _need_some(x, axes)
        return extreme(x, dim=axes)

    return reduce


def _need_some(x: DLArray, axes: tuple[int, ...]) -> None:
    if any(x.shape[i] == 0 for i in axes):
        raise ShapeError(f"np: nothing has no extreme; X is {describe(x.shape)}. Ask for its size first.")


def _ordinary(function: Any) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    return lambda x, axes: function(x, axes)


def _without_nan(function: Any, value: float) -> Callable[[DLArray, tuple[int, ...]], DLArray]:
    return lambda x, axes: function(e.where(e.isnan(x), value, x), axes)


def _nanmean(x: DLArray, axes: tuple[int, ...]) -> DLArray:
    return e.rdivide(_without_nan(reduction.sum, 0)(x, axes), reduction.sum(e.not_(e.isnan(x)), axes))


_max, _min = (_reducing(_nan_kept(*pair)) for pair in (
    (reduction.max, reduction.reduce_any), (reduction.min, reduction.reduce_all)))  # fmt: skip

FUNCTIONS.update({
    np.sum: _reducing(_ordinary(reduction.sum)), np.prod: _reducing(_ordinary(reduction.prod)),
    np.mean: _reducing(_ordinary(reduction.mean), is_strict=True), np.max: _max, np.min: _min,
    np.amax: _max, np.amin: _min,
    np.nanmax: _reducing(_nan_left_out(reduction.max)), np.nanmin: _reducing(_nan_left_out(reduction.min)),
    np.nansum: _reducing(_without_nan(reduction.sum, 0)), np.nanprod: _reducing(_without_nan(reduction.prod, 1)),
    np.nanmean: _reducing(_nanmean, is_strict=True),
    np.any: _reducing(lambda x, axes: reduction.reduce_any(x, axes=axes)), np.all: _reducing(_ordinary(reduction.all)),
})  # fmt: skip

REDUCTIONS: dict[Any, Callable[..., DLArray]] = {
    np.add: FUNCTIONS[np.sum], np.multiply: FUNCTIONS[np.prod], np.maximum: FUNCTIONS[np.max],
    np.minimum: FUNCTIONS[np.min], np.logical_or: FUNCTIONS[np.any], np.logical_and: FUNCTIONS[np.all],
}  # fmt: skip


@implements(np.median)
def _median(a: Any, axis: Any = None, *, keepdims: bool = False) -> DLArray:
    return _reducing(_ordinary(reduction.median), is_strict=True)(a, axis, keepdims=keepdims)


def _moment(is_root: bool) -> Callable[..., DLArray]:
    def run(a: Any, axis: Any = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False) -> DLArray:
        x = array(a)
        axes = _axes(x, axis, is_strict=True)
        values = DLArray(x._value) if dtype is None else facts.cast(DLArray(x._value), dtype)
        count = math.prod(x.shape[i] for i in axes)
        away = values - reduction.mean(values, axes) if count else values + 0
        if is_root and count > ddof:
            return _kept(x, reduction.norm_along(away, axes=axes, p=2.0, share=1 / (count - ddof)), axes, keepdims)
        y = e.rdivide(reduction.sum(e.square(away), axes), float(max(count - ddof, 0)))  # NaN or Inf: nothing is left
        return _kept(x, reduction.root(y) if is_root else y, axes, keepdims)

    return run


FUNCTIONS.update({np.var: _moment(False), np.std: _moment(True)})


def _running(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: int | None = None, dtype: Any = None) -> DLArray:
        x, axis = _lined(a, axis)
        return function(x if dtype is None else facts.cast(x, dtype), axis)

    return run


FUNCTIONS.update({np.cumsum: _running(reduction.cumsum), np.cumprod: _running(reduction.cumprod)})


def _accumulated(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: int = 0, dtype: Any = None) -> DLArray:
        x = array(a)
        return function(x if dtype is None else facts.cast(x, dtype), _axis(x, axis))

    return run


RUNNING = {np.add: _accumulated(reduction.cumsum), np.multiply: _accumulated(reduction.cumprod)}


def _place_of(function: Any) -> Callable[..., DLArray]:
    def run(a: Any, axis: int | None = None, *, keepdims: bool = False) -> DLArray:
        x = DLArray(array(a)._value)
        flat, dim = _lined(x, axis)
        if not flat.shape[dim]:
            raise ShapeError(f"np: nothing has no extreme; X is {describe(x.shape)}. Ask for its size first.")
        _, places = function(flat, dim=dim, nargout=2)
        is_nan = e.isnan(flat)  # the first NaN wins
        _, first = reduction.max(is_nan, dim=dim, nargout=2)
        places = e.where(reduction.reduce_any(is_nan, axes=(dim,)), first, places)
        is_flat = axis is None or not x.ndim
        kept = tuple([1 if is_flat or i == dim else n for i, n in enumerate(x.shape)])
        dropped = tuple([n for i, n in enumerate(x.shape) if not is_flat and i != dim])
        return view_as(places, shape=kept if keepdims else dropped)

    return run


FUNCTIONS.update({np.argmax: _place_of(reduction.max), np.argmin: _place_of(reduction.min)})


def _check_order(kind: Any, stable: Any) -> None:
    """All of NumPy's ways of sorting give one order of values, and a stable one is right for each of them."""
    if kind is not None and kind not in ("quicksort", "mergesort", "heapsort", "stable"):
        raise OptionError(f"kind: no way of sorting is called {kind!r}. Leave the option kind out.")
    if kind is not None and stable is not None:
        raise OptionError("kind: it and `stable` say the same. Give one of them.")


@implements(np.sort)
def _sort(a: Any, axis: int | None = -1, kind: Any = None, *, stable: Any = None) -> DLArray:
    _check_order(kind, stable)
    x = array(a)
    return reduction.sort(_row(x), 0) if axis is None else reduction.sort(x, _axis(x, axis))


@implements(np.argsort)
def _argsort(a: Any, axis: int | None = -1, kind: Any = None, *, stable: Any = None) -> DLArray:
    _check_order(kind, stable)
    return reduction.sort(*_lined(a, axis), nargout=2)[1]


# shapes


def _counts(given: Any) -> tuple[int, ...]:
    """NumPy's sizes, counts or places: a whole number, or several of them."""
    return tuple([operator.index(n) for n in given]) if np.iterable(given) else (operator.index(given),)


@implements(np.reshape)
def _reshape(a: Any, /, shape: Any, order: str = "C") -> DLArray:
    x, wanted = array(a), _counts(shape)
    if order not in ("C", "F"):
        raise OptionError(f"order: it is 'C' or 'F'; got {order!r}.")
    known = math.prod(n for n in wanted if n != -1)
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise ShapeError(f"shape: {wanted} leaves more than one size open. Give sizes from 0 on, and -1 once at most.")
    if known != x.size if -1 not in wanted else not known or x.size % known:
        raise ShapeError(
            f"shape: X has {x.size} elements ({describe(x.shape, x._labels)}), a shape of {wanted} has another number. "
            "Give sizes whose product is the number of elements."
        )
    size = tuple([x.size // known if n == -1 else n for n in wanted])
    return _shape.reshape(x, size, Order=order) if size else view_as(x, shape=())


@implements(np.ravel)
def _ravel(a: Any, order: str = "C") -> DLArray:
    return _reshape(a, -1, order)


@implements(np.transpose)
def _transpose(a: Any, axes: Any = None) -> DLArray:
    x = array(a)
    if axes is None:
        return _shape.permute(x, tuple(range(x.ndim))[::-1])
    order = normalize_axis_tuple(_counts(axes), x.ndim)
    if len(order) != x.ndim:
        raise ShapeError(f"axes: {axes} does not name each dimension of X {describe(x.shape, x._labels)}. Name all.")
    return _shape.permute(x, order)


@implements(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> DLArray:
    x = array(a)
    i, k = _axis(x, axis1), _axis(x, axis2)
    order = list(range(x.ndim))
    order[i], order[k] = order[k], order[i]
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
    target = np.broadcast_to(np.broadcast_to(np.empty(()), x.shape), shape).shape  # NumPy's own complaint
    return broadcast(x, shape=target, dims=tuple(range(len(target) - x.ndim, len(target))))


@implements(np.broadcast_arrays)
def _broadcast_arrays(*args: Any) -> tuple[Any, ...]:
    shape = np.broadcast_shapes(*[np.shape(x) for x in args])
    return tuple([(_broadcast_to if isinstance(x, DLArray) else np.broadcast_to)(x, shape) for x in args])


def _at_least(rank: int, laid: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[..., Any]:
    def run(*arys: Any) -> Any:
        xs = [array(x) for x in arys]
        ys = [x if x.ndim >= rank else view_as(x, shape=laid(x.shape)) for x in xs]
        return ys[0] if len(ys) == 1 else tuple(ys)

    return run


FUNCTIONS.update({
    np.atleast_1d: _at_least(1, lambda shape: (1,)), np.atleast_2d: _at_least(2, lambda shape: (1, *(shape or (1,)))),
    np.atleast_3d: _at_least(3, lambda shape: (*shape, 1) if len(shape) == 2 else (1, *(shape or (1,)), 1)),
})  # fmt: skip


@implements(np.flip)
def _flip(m: Any, axis: Any = None) -> DLArray:
    x = array(m)
    axes = normalize_axis_tuple(axis, x.ndim) if not x.ndim and axis is not None else _axes(x, axis)
    return _shape.flip(x, axes)


@implements(np.roll)
def _roll(a: Any, shift: Any, axis: Any = None) -> DLArray:
    x = array(a)
    if axis is None:
        return view_as(_shape.circshift(_row(x), sum(_counts(shift))), shape=x.shape)
    axes = normalize_axis_tuple(axis, x.ndim, allow_duplicate=True)
    if not x.ndim:
        raise ShapeError("axis: a scalar has no dimensions to roll along. Leave the axis out.")
    shifts = [0] * x.ndim
    for i, n in np.broadcast(axes if np.iterable(axis) else axes[0], _counts(shift) if np.iterable(shift) else shift):
        shifts[i] += operator.index(n)
    return _shape.circshift(x, shifts)


@implements(np.tile)
def _tile(A: Any, reps: Any) -> DLArray:
    x, counts = array(A), _counts(reps)
    rank = max(x.ndim, len(counts))
    y = DLArray(x._value) if rank == x.ndim else view_as(x, shape=(1,) * (rank - x.ndim) + x.shape)
    y = _shape.repmat(y, (1,) * (rank - len(counts)) + counts) if rank else y
    return DLArray(y._value, x._labels if rank == x.ndim else "")


@implements(np.repeat)
def _repeat(a: Any, repeats: Any, axis: int | None = None) -> DLArray:
    x, axis = _lined(a, axis) if axis is None else (array(a), _axis(array(a), axis))
    counts = _counts(repeats)
    if len(counts) == 1:
        return _shape.repelem(x, [counts[0] if i == axis else 1 for i in range(x.ndim)])
    places = np.repeat(np.arange(x.shape[axis]), counts)
    return x[(slice(None),) * axis + (places,)]


def _joined(arrays: list[DLArray], axis: Any) -> DLArray:
    """Arrays of equal rank and labels, joined."""
    if not arrays:
        raise ShapeError("arrays: nothing to join. Give at least one array.")
    if len({x.ndim for x in arrays}) > 1:
        ranks = " and ".join(sorted({describe(x.shape, x._labels) for x in arrays}))
        raise ShapeError(f"arrays: they have unlike numbers of dimensions: {ranks}. Use np.expand_dims, or np.stack.")
    if not arrays[0].ndim:
        raise ShapeError("arrays: scalars have no dimension to join along. Use np.stack.")
    try:
        axis = _axis(arrays[0], axis)
    except IndexError:
        raise ShapeError(f"axis: there is no dimension {axis}. Use np.stack for a new one.") from None
    labels = {x._labels for x in arrays if x._labels}
    if len(labels) > 1:
        return _shape.cat(axis, *arrays)  # for the complaint
    y = _shape.concatenate(*_shape.one_type([DLArray(x._value) for x in arrays]), axis=axis)
    return DLArray(y._value, next(iter(labels), ""))


def _several(arrays: Any) -> list[DLArray]:
    """The arrays of a list, or the rows of an array."""
    if not np.iterable(arrays):
        raise TypeError("arrays come in a list")
    return [array(x) for x in arrays]


@implements(np.concatenate)
def _concatenate(arrays: Any, axis: int | None = 0) -> DLArray:
    xs = _several(arrays)
    return _joined([_row(x) for x in xs], 0) if axis is None else _joined(xs, axis)


@implements(np.stack)
def _stack(arrays: Any, axis: int = 0) -> DLArray:
    xs = [DLArray(x._value) for x in _several(arrays)]
    if len({x.shape for x in xs}) > 1:
        sizes = " and ".join(sorted({describe(x.shape) for x in xs}))
        raise ShapeError(f"arrays: equal sizes are wanted; got {sizes}. Or use np.concatenate.")
    axis = normalize_axis_index(operator.index(axis), xs[0].ndim + 1) if xs else 0
    return _joined([view_as(x, shape=(*x.shape[:axis], 1, *x.shape[axis:])) for x in xs], axis)


def _stacked(rank: int, along: Callable[[DLArray], int]) -> Callable[..., DLArray]:
    def run(tup: Any) -> DLArray:
        xs = _several(tup)
        raised = [FUNCTIONS[(np.atleast_1d, np.atleast_2d, np.atleast_3d)[rank - 1]](x) for x in xs]
        return _joined(raised, along(raised[0]) if raised else 0)

    return run


FUNCTIONS.update({
    np.vstack: _stacked(2, lambda x: 0), np.hstack: _stacked(1, lambda x: 0 if x.ndim == 1 else 1),
    np.dstack: _stacked(3, lambda x: 2),
})  # fmt: skip


def _split_in(is_even: bool) -> Callable[..., list[DLArray]]:
    def run(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[DLArray]:
        x = array(ary)
        axis = _axis(x, axis)
        n = x.shape[axis]
        if np.iterable(indices_or_sections):
            cuts = [0, *_counts(indices_or_sections), n]
        else:
            count = operator.index(indices_or_sections)
            if count < 1:
                raise ShapeError(f"parts: their number is 1 at least; got {count}.")
            if n % count and is_even:
                raise ShapeError(f"parts: {n} elements cannot be cut into {count} equal parts. Use np.array_split.")
            cuts = [i * (n // count) + min(i, n % count) for i in range(count + 1)]
        parts = []
        for low, high in zip(cuts, cuts[1:]):
            start, stop, _ = slice(low, high).indices(n)
            slices = [(0, size, 1) for size in x.shape]
            slices[axis] = (start, max(stop - start, 0), 1)
            parts.append(DLArray(crop(x, slices=tuple(slices))._value, x._labels))
        return parts

    return run


FUNCTIONS.update({np.split: _split_in(True), np.array_split: _split_in(False)})


# others


@implements(np.where)
def _where(condition: Any, *choices: Any) -> DLArray:
    if len(choices) != 2:
        raise _unknown("np.where with one argument")
    return e.where(condition, *choices)


@implements(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> DLArray:
    if (a_min is not None or a_max is not None) and (min is not None or max is not None):
        raise OptionError("clip: limits are given as a_min and a_max or as min and max, not both.")
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    y = array(a)
    y = y if low is None else UFUNCS[np.maximum](y, low)
    return y if high is None else UFUNCS[np.minimum](y, high)


@implements(np.round, np.around)
def _round(a: Any, decimals: int = 0) -> DLArray:
    decimals = operator.index(decimals)
    if decimals and _is_logical(a):
        raise DTypeError("round: logical arrays have no decimals. Convert it first: single(X).")
    if decimals == 0:
        return _rint(a)
    scale = 10.0 ** abs(decimals)
    return _rint(e.times(a, scale)) / scale if decimals > 0 else _rint(e.rdivide(a, scale)) * scale


def _triangle(function: Any, is_lower: bool) -> Callable[..., DLArray]:
    def run(m: Any, k: int = 0) -> DLArray:
        x = array(m)
        if x.ndim == 2:
            return function(x, operator.index(k))
        if not x.ndim:
            raise ShapeError("np: a scalar has no triangle. Give a matrix.")
        rows, columns = (x.shape * 2)[-2:]
        mask = np.tri(rows, columns, k if is_lower else k - 1, dtype=bool)
        return e.where(mask, x, 0) if is_lower else e.where(mask, 0, x)

    return run


@implements(np.diagonal)
def _diagonal(a: Any, offset: int = 0) -> DLArray:
    rows, columns = linear._matrix("diagonal", a).shape
    k = operator.index(offset)
    count = max(0, min(rows, columns - k) if k >= 0 else min(rows + k, columns))
    start = (k if k >= 0 else -k * columns) if count else 0
    return crop(_row(array(a)), slices=((start, count, columns + 1),))


@implements(np.diag)
def _diag(v: Any, k: int = 0) -> DLArray:
    x = array(v)
    if x.ndim != 1:
        return _diagonal(x, k)
    return linear.diag(x, operator.index(k))


@implements(np.trace)
def _trace(a: Any, offset: int = 0) -> DLArray:
    return reduction.sum(_diagonal(a, offset), "all")


@implements(np.diff)
def _diff(a: Any, n: int = 1, axis: int = -1) -> DLArray:
    x = array(a)
    n, axis = operator.index(n), _axis(x, axis)
    if n < 0:
        raise ShapeError(f"n: a difference is taken 0 times or more; got {n}.")
    for _ in range(n):
        low, high = (x[(slice(None),) * axis + (part,)] for part in (slice(None, -1), slice(1, None)))
        x = e.ne(high, low) if x.dtype.kind == "b" else e.minus(high, low)
    return x


@implements(np.ptp)
def _ptp(a: Any, axis: Any = None, *, keepdims: bool = False) -> DLArray:
    return e.minus(_max(a, axis, keepdims=keepdims), _min(a, axis, keepdims=keepdims))


@implements(np.linalg.solve)
def _solve(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    linear._unlabelled("solve", x, y)
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ShapeError(f"solve: a square matrix is wanted; A is {describe(x.shape)}. Use mldivide for least squares.")
    if y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
        raise ShapeError(f"solve: A is {describe(x.shape)}, B is {describe(y.shape)}. Give as many rows to both.")
    found = linear.solve(x, y if y.ndim == 2 else view_as(y, shape=(y.size, 1)), is_strict=True)
    return found if y.ndim == 2 else view_as(found, shape=y.shape)


def _size(a: Any, axis: Any = None) -> int:
    return a.size if axis is None else math.prod(a.shape[i] for i in normalize_axis_tuple(axis, a.ndim))


FUNCTIONS.update({
    np.real: lambda val: e.real(val), np.imag: lambda val: e.imag(val),
    np.tril: _triangle(linear.tril, True), np.triu: _triangle(linear.triu, False),
    np.shape: lambda a: a.shape, np.ndim: lambda a: a.ndim, np.size: _size,
    np.result_type: lambda *xs: np.result_type(*[x.dtype if isinstance(x, DLArray) else x for x in xs]),
})  # fmt: skip


# products


def _summed(a: DLArray, b: DLArray, along_a: tuple[int, ...], along_b: tuple[int, ...]) -> DLArray:
    """Sums of products over pairs of dimensions, one of a and one of b; a's other dimensions, then b's."""
    linear._unlabelled("dot", a, b)
    if [a.shape[i] for i in along_a] != [b.shape[i] for i in along_b]:
        raise ShapeError(
            f"np: {describe(a.shape)} and {describe(b.shape)} do not go along dimensions {along_a} and {along_b}. "
            "Sizes must be equal there."
        )
    left = tuple([i for i in range(a.ndim) if i not in along_a])
    right = tuple([i for i in range(b.ndim) if i not in along_b])
    rows, columns = [a.shape[i] for i in left], [b.shape[i] for i in right]
    count = math.prod(a.shape[i] for i in along_a)
    x = view_as(_ordered(a, left + along_a), shape=(math.prod(rows), count))
    y = view_as(_ordered(b, along_b + right), shape=(count, math.prod(columns)))
    return view_as(linear.matmul(x, y), shape=(*rows, *columns))


def _ordered(x: DLArray, order: tuple[int, ...]) -> DLArray:
    return x if order == tuple(range(x.ndim)) else reorder(x, order=order)


@implements(np.dot)
def _dot(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    if not x.ndim or not y.ndim:
        return e.times(x, y)
    if x.ndim <= 2 and y.ndim <= 2:
        return linear.matmul_(x, y)
    return _summed(x, y, (x.ndim - 1,), (max(y.ndim - 2, 0),))


@implements(np.inner)
def _inner(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    return _summed(x, y, (x.ndim - 1,), (y.ndim - 1,)) if x.ndim and y.ndim else e.times(x, y)


@implements(np.vdot)
def _vdot(a: Any, b: Any) -> DLArray:
    return _summed(_row(array(a)), _row(array(b)), (0,), (0,))


@implements(np.tensordot)
def _tensordot(a: Any, b: Any, axes: Any = 2) -> DLArray:
    x, y = array(a), array(b)
    if np.iterable(axes):
        of_a, of_b = axes
        along = normalize_axis_tuple(of_a, x.ndim), normalize_axis_tuple(of_b, y.ndim)
    else:
        count = operator.index(axes)
        if not 0 <= count <= min(x.ndim, y.ndim):
            raise ShapeError(f"axes: {describe(x.shape)} and {describe(y.shape)} have no {count} dimensions in common.")
        along = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    if len(along[0]) != len(along[1]):
        raise ShapeError(f"axes: {axes} pairs {len(along[0])} with {len(along[1])} dimensions. Give equally many.")
    return _summed(x, y, *along)


@implements(np.outer)
def _outer(a: Any, b: Any) -> DLArray:
    x, y = array(a), array(b)
    return e.times(view_as(x, shape=(x.size, 1)), view_as(y, shape=(1, y.size)))


@implements(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> DLArray:
    a = array(x)
    if axis is None and ord is not None and a.ndim not in (1, 2):
        raise ShapeError(f"norm: {ord!r} is for vectors and matrices; X is {describe(a.shape)}. Name an axis.")
    axes = _axes(a, axis) if a.ndim or axis is None else normalize_axis_tuple(axis, 0)
    if axis is not None and len(axes) not in (1, 2):
        raise ShapeError(f"norm: one dimension has a vector norm, two a matrix norm; {axis!r} names {len(axes)}.")
    order = axes if axis is None else tuple(normalize_axis_tuple(axis, a.ndim)) if not isinstance(axis, str) else axes
    values = DLArray(a._value)
    if ord is None or (len(axes) == 2 and ord in ("fro", "f")):
        return _kept(a, reduction.vecnorm(values, 2, axes), axes, keepdims)
    y = _matrix_norm(values, ord, order) if len(axes) == 2 else _vector_norm(values, ord, axes)
    return _kept(a, y, axes, keepdims)


def _vector_norm(x: DLArray, ord: Any, axes: tuple[int, ...]) -> DLArray:
    if isinstance(ord, (str, bool)) or not isinstance(ord, (int, float, np.number)):
        raise ShapeError(f"norm: a vector has no norm of order {ord!r}. Give a number.")
    size = e.abs(x)
    if ord in (math.inf, -math.inf):
        if ord > 0 and not math.prod(x.shape[i] for i in axes):
            return reduction.vecnorm(x, 2, axes)
        return (_max if ord > 0 else _min)(size, axes, keepdims=True)
    if ord == 0:
        return reduction.sum(e.ne(x, 0), axes)
    if ord > 0:
        return reduction.vecnorm(x, float(ord), axes)
    return e.power(reduction.sum(e.power(size, float(ord)), axes), 1 / float(ord))


def _matrix_norm(x: DLArray, ord: Any, axes: tuple[int, ...]) -> DLArray:
    if isinstance(ord, (str, bool)) or abs(ord) not in (1, math.inf):
        if ord in (2, -2, "nuc") and not isinstance(ord, bool):
            raise _unknown(f"np.linalg.norm of order {ord!r} for matrices")
        raise ShapeError(f"norm: a matrix has no norm of order {ord!r}. Give 1, -1, inf, -inf or 'fro'.")
    added, other = axes if abs(ord) == 1 else axes[::-1]  # sums of columns, or of rows
    return (_max if ord > 0 else _min)(reduction.sum(e.abs(x), added), other, keepdims=True)


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


def _on_numbers(function: Any) -> Callable[..., Any]:
    """For what counts or compares numbers and has no derivative: NumPy's function of the plain data."""

    def run(*args: Any, **options: Any) -> Any:
        given = {name: np.asarray(x) if isinstance(x, DLArray) else x for name, x in options.items()}
        return function(*[np.asarray(x) if isinstance(x, DLArray) else x for x in args], **given)

    return run


FUNCTIONS.update({f: _on_numbers(f) for f in (np.histogram, np.histogram2d, np.histogram_bin_edges)})


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
