"""For test suites of minidl's users: is a function fit for acceleration, and does a piece of code record nothing anew.

    from minidl.testing import assert_accelerable, no_retrace
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minidl.accelerate.advice import complaints
from minidl.accelerate.audits import graph_difference
from minidl.accelerate.checks import distance
from minidl.accelerate.function import NO_RETRACE, AcceleratedFunction
from minidl.accelerate.recording import Recording
from minidl.autodiff import dlfeval, dlgradient
from minidl.core.device import gpu_array, host
from minidl.core.dlarray import DLArray
from minidl.core.errors import AccelerationWarning, DTypeError, TraceError
from minidl.core.op import named
from minidl.core.options import options
from minidl.core.random import kept_state, rng
from minidl.core.spec import DOUBLE, Spec, Value
from minidl.core.tree import flatten, flatten_call, flatten_whole, leaf_paths, unflatten

_REMEDIES = {
    "op": "; its Python depends on values.", "length": "; its Python depends on values.",
    "option": ", computed by Python from values.", "constant": ". Pass it as an argument.",
}  # fmt: skip
__all__ = ["assert_accelerable", "no_retrace"]


@contextlib.contextmanager
def no_retrace() -> Iterator[None]:
    """Inside the block, a call that an accelerated function would have to record raises a TraceError that says why.

    >>> from minidl import dlaccelerate, dlarray
    >>> double = dlaccelerate(lambda x: x * 2)
    >>> _ = double(dlarray(1.0))
    >>> with no_retrace():
    ...     double(dlarray(2.0)).item()
    4.0
    """
    token = object()
    NO_RETRACE.append(token)
    try:
        yield
    finally:
        NO_RETRACE.remove(token)


@options
def assert_accelerable(
    fun: Callable[..., Any], *args: Any, Tolerance: float = 1e-4, DoubleTolerance: float = 1e-2
) -> None:
    """Assert that fun gives the same with and without acceleration, for these arguments and for others like them.

    The function is evaluated by dlfeval with args and with values near them: as it is, recorded, replayed exactly (bit
    for bit) and replayed fast (within Tolerance), and in double precision (within DoubleTolerance, unless it draws
    random numbers); gradients of the sum of its results too, where it does not compute gradients itself. Two recordings
    for different values are compared call by call: an operation, an option or a constant that differs was computed by
    Python from the values, or comes from a state that a replay would not see.

    fun             : function or AcceleratedFunction
    args            : its arguments; dlarrays in them are varied by up to 10 %
    Tolerance       : largest difference of a fast replay, relative to the larger of 1 and a number's size
    DoubleTolerance : the same for double precision
    Raises AssertionError that names what differs, with file:line.

    >>> from minidl import dlarray, exp
    >>> assert_accelerable(lambda x: exp(x) * 2, dlarray([1.0, 2.0]))
    """
    if isinstance(fun, AcceleratedFunction):
        fun = fun.Function
    if not callable(fun):
        raise DTypeError(f"assert_accelerable: a function is wanted; got {type(fun).__name__}.")
    with kept_state(), warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        if _audit(fun, args).changed:  # random numbers of another type are other numbers
            DoubleTolerance = float("inf")
        _compare(fun, args, Tolerance, DoubleTolerance)
        if _has_gradients(fun, args):
            _compare(_with_gradients(fun), args, Tolerance, DoubleTolerance)


# the same results -----------------------------------------------------------------------------------------------
def _compare(fun: Callable[..., Any], args: Any, tolerance: float, double_tolerance: float) -> None:
    exact = AcceleratedFunction(fun, "exact", is_strict=True)
    fast = AcceleratedFunction(fun, "fast", is_strict=True)
    for k in range(3):
        inputs = _varied(args, k)
        wanted = _evaluated(fun, inputs)
        for accfun, words, limit in ((exact, "exactly", 0.0), (fast, "fast", tolerance)):
            how = "recorded" if k == 0 else f"replayed {words}"
            try:
                found = _evaluated(accfun, inputs)
            except (TraceError, AccelerationWarning) as error:
                raise AssertionError(f"assert_accelerable: {error}") from None
            _assert_near(found, wanted, 0.0 if k == 0 else limit, how)
        if k == 0:
            _assert_near(_evaluated(fun, _in_double(inputs)), wanted, double_tolerance, "in double precision", False)
    if fast.NumTraces != 1:
        why = "; ".join(str(x) for miss in fast.explain().misses for x in miss.why)
        raise AssertionError(f"assert_accelerable: calls with arrays of the same kind do not share one trace: {why}.")


def _evaluated(fun: Callable[..., Any], args: Any) -> Any:
    rng(0)
    return dlfeval(fun, *args)


def _assert_near(found: Any, wanted: Any, tolerance: float, how: str, is_same_type: bool = True) -> None:
    a, structure = flatten_whole(found)
    b, other = flatten_whole(wanted)
    if structure != other:
        raise AssertionError(f"assert_accelerable: {how}, the function returns other containers.")
    for path, x, y in zip(leaf_paths(other), a, b):
        if not is_same_type and isinstance(x, DLArray) and isinstance(y, DLArray):
            x, y = _double(x), _double(y)
        apart = distance(x, y)
        if not apart <= tolerance:
            raise AssertionError(
                f"assert_accelerable: {how}, {path or 'the result'} differs by {apart:.3g} (allowed {tolerance:.3g})."
            )


def _has_gradients(fun: Callable[..., Any], args: Any) -> bool:
    """Whether the results can be differentiated from outside; mostly not if the function has its own dlgradient."""
    try:
        _evaluated(_with_gradients(fun), args)
    except TraceError:
        return False
    return True


def _with_gradients(fun: Callable[..., Any]) -> Callable[..., Any]:
    def gradients(*args: Any) -> Any:
        total: Any = None
        for y in flatten(fun(*args))[0]:
            if isinstance(y, DLArray) and y.dtype.kind == "f":
                part = named("cast")(DLArray(y._value), dtype="float64").sum("all")
                total = part if total is None else total + part
        wanted = [x for x in flatten(args)[0] if isinstance(x, DLArray) and x.dtype.kind == "f"]
        return dlgradient(total, wanted) if wanted else None

    gradients.__name__ = f"{getattr(fun, '__name__', 'function')} (gradients)"
    return gradients


# other arguments like these -------------------------------------------------------------------------------------
def _mapped(args: Any, change: Callable[[DLArray], DLArray]) -> Any:
    leaves, structure = flatten_whole(args)
    return unflatten(structure, [change(x) if isinstance(x, DLArray) and x.dtype.kind == "f" else x for x in leaves])


def _varied(args: Any, seed: int) -> Any:
    """The arguments, times numbers between 0.9 and 1.1 (seed 0: as they are)."""
    random = np.random.default_rng(seed)

    def vary(x: DLArray) -> DLArray:
        factor = 1.0 if seed == 0 else random.uniform(0.9, 1.1, x.shape)
        return _with_data(np.asarray(host(x._value.data) * factor, x.dtype), x)

    return _mapped(args, vary)


def _in_double(args: Any) -> Any:
    return _mapped(args, _double)


def _double(x: DLArray) -> DLArray:
    data = host(x._value.data)
    return _with_data(data if x.dtype.kind != "f" else data.astype(DOUBLE), x)


def _with_data(data: np.ndarray, like: DLArray) -> DLArray:
    """Other numbers with the labels of a dlarray, on its device."""
    moved = data if like.device == "cpu" else gpu_array("dlarray", data)
    return DLArray(Value(Spec(data.shape, data.dtype, like.device), moved), like._labels)


# two recordings -------------------------------------------------------------------------------------------------
def _audit(fun: Callable[..., Any], args: Any) -> Recording:
    """Record twice, with different values, and compare the tapes. Returns one of the recordings."""
    found: list[Recording] = []

    def record(*inside: Any) -> Any:
        found.append(Recording(fun, *flatten_call(inside, {})))
        return found[-1].result

    for k in range(2):
        _evaluated(record, _varied(args, k))
    name = getattr(fun, "__name__", "the function")
    for complaint in complaints(found[1], name):
        raise AssertionError(f"assert_accelerable: {complaint}")
    for effect in found[1].effects:
        raise AssertionError(
            f"assert_accelerable: {name} does more than compute: {effect.path} at {effect.where} ({effect.kind}); that "
            "will not repeat on replay. Return what is needed, and do it outside."
        )
    difference = graph_difference(found[0].graph(), found[1].graph())
    if difference is not None:
        raise AssertionError(
            f"assert_accelerable: two recordings of {name} differ: {difference.text}{_REMEDIES[difference.kind]}"
        )
    return found[1]
