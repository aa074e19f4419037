"""dlaccelerate: record a function once per input signature, compile the recording, replay it.

The first call with a new signature runs the function and keeps a graph of its calls; further calls replay the graph's
program and run none of the function's Python.
Source: MathWorks, reference pages "dlaccelerate" and "AcceleratedFunction".
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import types
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from minidl import backends
from minidl.core.apply import compute
from minidl.core.dlarray import DLArray
from minidl.core.errors import AccelerationWarning, DTypeError, OptionError, TraceError, TraceWarning, choice, number
from minidl.core.options import options
from minidl.core.random import CELLS
from minidl.core.spec import Value
from minidl.core.tape import alone, open_tapes
from minidl.core.tree import flatten, paths
from minidl.engine.graph import Id
from minidl.recording import Recording, Trace


class AcceleratedFunction:
    """A function that records itself once per input signature and replays the recording; see `dlaccelerate`.

    Signature: structure of the arguments; size, labels and type of each dlarray, and which of them are the same
    array; value of everything else (NaN equals NaN).
    """

    def __init__(self, function: Callable[..., Any], numerics: str = "fast", *, is_strict: bool = False) -> None:
        self._function, self._numerics, self._is_strict = function, numerics, is_strict
        self._enabled, self._cache_size = True, 50
        self._check_mode, self._check_tolerance = "none", 1e-4
        self._traces: dict[Hashable, Trace | None] = {}  # oldest first; None: a call like this cannot be replayed
        self._calls = self._hits = 0
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        functools.update_wrapper(self, function, updated=())

    # properties -------------------------------------------------------------------------------------------------
    @property
    def Function(self) -> Callable[..., Any]:
        """The underlying function."""
        return self._function

    @property
    def Enabled(self) -> bool:
        """Whether calls are recorded and replayed; if not, they run the underlying function beside the cache."""
        return self._enabled

    @Enabled.setter
    def Enabled(self, value: bool) -> None:
        self._enabled = _truth("Enabled", value)

    @property
    def CacheSize(self) -> int:
        """Most traces kept; the oldest goes first."""
        return self._cache_size

    @CacheSize.setter
    def CacheSize(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise OptionError(f"AcceleratedFunction: CacheSize is a positive whole number; got {value!r}.")
        with self._lock:
            self._cache_size = int(value)
            self._evict()

    @property
    def HitRate(self) -> float:
        """Percentage of calls that reused a trace: 100 * hits / calls (0 before the first call)."""
        return 100.0 * self._hits / self._calls if self._calls else 0.0

    @property
    def Occupancy(self) -> float:
        """Percentage of the cache in use: 100 * traces / CacheSize."""
        return 100.0 * self._count() / self._cache_size

    @property
    def CheckMode(self) -> str:
        """'none', or 'tolerance': every replay is compared with the underlying function."""
        return self._check_mode

    @CheckMode.setter
    def CheckMode(self, value: str) -> None:
        self._check_mode = choice("AcceleratedFunction", "CheckMode", value, ["none", "tolerance"])

    @property
    def CheckTolerance(self) -> float:
        """Largest difference that CheckMode 'tolerance' lets pass, relative to the larger of 1 and a number's size."""
        return self._check_tolerance

    @CheckTolerance.setter
    def CheckTolerance(self, value: float) -> None:
        is_right = (0.0).__lt__
        self._check_tolerance = number("AcceleratedFunction", "CheckTolerance", value, "a positive number", is_right)

    @property
    def Strict(self) -> bool:
        """Whether a function that cannot be replayed is an error (TraceError) instead of a warning."""
        return self._is_strict

    @Strict.setter
    def Strict(self, value: bool) -> None:
        self._is_strict = _truth("Strict", value)

    def __repr__(self) -> str:
        rows = {
            "Function": f"@{getattr(self._function, '__name__', repr(self._function))}",
            "Enabled": int(self._enabled),
            "CacheSize": self._cache_size,
            "HitRate": f"{self.HitRate:.4f}".rstrip("0").rstrip("."),
            "Occupancy": f"{self.Occupancy:.4f}".rstrip("0").rstrip("."),
            "CheckMode": repr(self._check_mode),
            "CheckTolerance": f"{self._check_tolerance:.4e}",
        }
        body = "\n".join(f"{name:>18}: {value}" for name, value in rows.items())
        return f"AcceleratedFunction with properties:\n\n{body}"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        function, name = self._function, getattr(self, "__qualname__", "<locals>")
        if _named(getattr(self, "__module__", None), name) is self:
            return name  # a decorated function: its name leads here
        return _rebuild, (function, self._numerics, self._is_strict, self._settings())

    def __copy__(self) -> AcceleratedFunction:
        return _rebuild(self._function, self._numerics, self._is_strict, self._settings())

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedFunction:
        return self.__copy__()  # the function travels, traces do not

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("Enabled", "CacheSize", "CheckMode", "CheckTolerance")}

    # calling ----------------------------------------------------------------------------------------------------
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not self._enabled or any(tape.everything for tape in open_tapes()):
            return self._function(*args, **kwargs)  # inside another recording the calls become part of that one
        leaves, structure = flatten((args, kwargs))
        key, values = _signature(leaves, structure)
        with self._lock:
            self._calls += 1
            trace = self._traces.get(key, _MISSING)
            if isinstance(trace, Trace):
                self._hits += 1
                trace.hits += 1
        if trace is _MISSING:
            return self._record(key, leaves, structure)
        if trace is None or not self._is_compiled(key, trace):
            return self._function(*args, **kwargs)
        if self._check_mode == "none":
            return trace.replay(values)
        before = [cell.value for cell in CELLS]
        result = trace.replay(values)
        self._check(trace, result, before, leaves, structure)
        return result

    def _record(self, key: Hashable, leaves: list[Any], structure: Any) -> Any:
        try:
            recording = Recording(self._function, leaves, structure)
            complaints = self._complaints(recording)
            if complaints and self._is_strict:
                raise TraceError(complaints[0])
        except BaseException:
            with self._lock:
                self._calls -= 1  # as if it had not been called
            raise
        if recording.tape.reads or recording.sources:
            self._keep(key, None)
        elif not recording.has_host_draws and recording.is_alone():
            self._keep(key, Trace(recording, self._name(), is_exact=self._numerics == "exact"))
        self._warn(complaints)
        return recording.result

    def _complaints(self, recording: Recording) -> list[str]:
        """Why the recorded call cannot be replayed."""
        found = [
            f"dlaccelerate: {self._name()} looks at a traced number at {line}; its result is right, but calls like "
            "this one cannot be replayed. Keep to dlarray operations there, or pass the number as an argument."
            for line in dict.fromkeys(recording.tape.reads)
        ]
        if recording.sources:
            kinds = ", ".join(dict.fromkeys(type(x).__name__ for x in recording.sources))
            found.append(
                f"dlaccelerate: {self._name()} was given a source of data ({kinds}), which may give something else "
                "each time; the result is right, but the call cannot be replayed. Read the data first and pass that."
            )
        if recording.has_host_draws:
            found.append(
                f"dlaccelerate: while {self._name()} ran, Python's or NumPy's random numbers were drawn; the result is "
                "right, but the call cannot be replayed. Draw with rand(..., like=x) instead, or pass the numbers in."
            )
        return found

    def _is_compiled(self, key: Hashable, trace: Trace) -> bool:
        """Whether the trace has its program; one that cannot be compiled is given up."""
        if trace._program is not None:
            return True
        try:
            return trace.program is not None
        except Exception as error:
            with self._lock:
                self._hits -= 1
                if self._traces.get(key) is trace:
                    self._traces[key] = None
            self._warn([
                f"dlaccelerate: the recording of {self._name()} could not be compiled ({type(error).__name__}: "
                f"{error}); the function itself runs instead. Please report it; until then Numerics='exact' may help."
            ])  # fmt: skip
            return False

    def _keep(self, key: Hashable, trace: Trace | None) -> None:
        with self._lock:
            self._traces.pop(key, None)  # a new trace goes to the back
            self._traces[key] = trace
            self._evict()

    def _name(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)

    def _warn(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self._warned:
                self._warned.add(message)
                warnings.warn(message, TraceWarning, stacklevel=4)

    # checking ---------------------------------------------------------------------------------------------------
    def _check(self, trace: Trace, result: Any, before: list[Value], leaves: list[Any], structure: Any) -> None:
        """Run the underlying function too, from the state before the call, and warn if it returns something else."""
        after = [cell.value for cell in CELLS]
        for cell in trace.changed:
            cell.value = before[CELLS.index(cell)]
        try:
            recording = Recording(self._function, leaves, structure)
        finally:
            for cell, value in zip(CELLS, after):
                if cell in trace.changed:
                    cell.value = value
        found, structure = flatten(result)
        gaps = {"The structure": float("inf")}
        if structure == recording.structure:
            gaps = {path: _gap(x, y) for path, x, y in zip(paths(result), found, recording.outputs)}
        for path, gap in gaps.items():
            if not gap <= self._check_tolerance:
                why = self._first_difference(trace, recording)
                warnings.warn(
                    f"Accelerated outputs differ from underlying function outputs. {path or 'The output'} differs by "
                    f"up to {gap:.3g} (CheckTolerance {self._check_tolerance:.3g}): {why}.",
                    AccelerationWarning,
                    stacklevel=3,
                )
                return

    def _first_difference(self, trace: Trace, recording: Recording) -> str:
        """The first call in which the underlying function departs from the trace, in words."""
        graph = trace.graph
        values = {x: Value(graph.specs[x], data) for x, data in graph.constants.items()}
        values.update(zip(graph.inputs, [x._value for x in recording.arrays] + recording.before))
        for node, call in itertools.zip_longest(graph.nodes, recording.tape.calls):
            if node is None or call is None:
                what, more = ("function", call) if node is None else ("trace", node)
                return f"only the {what} goes on to {more.op.name} at {more.where}"
            if node.op is not call.op:
                return f"instead of {node.op.name} ({node.where}) the function has {call.op.name} at {call.where}"
            if node.params != call.params:
                return f"{call.op.name} at {call.where} has {call.params} instead of {node.params}"
            read = tuple([values[x] if isinstance(x, Id) else x for x in node.inputs])
            with alone():
                made = compute(node.op, read, node.params)
            values.update(zip(node.outputs, made))
            if any(not _gap(DLArray(x), DLArray(y)) <= self._check_tolerance for x, y in zip(made, call.outputs)):
                return f"the first op that differs is {call.op.name} at {call.where}"
        return "call by call they agree, so it is rounding in the compiled program: Numerics='exact' avoids it"

    # cache ------------------------------------------------------------------------------------------------------
    def clearCache(self) -> None:
        """Forget all traces; HitRate and Occupancy start again at 0."""
        with self._lock:
            self._traces.clear()
            self._warned.clear()
            self._calls = self._hits = 0

    def _count(self) -> int:
        return sum(trace is not None for trace in self._traces.values())

    def _evict(self) -> None:
        while self._count() > self._cache_size:
            del self._traces[next(key for key, trace in self._traces.items() if trace is not None)]
        while len(self._traces) > 20 * self._cache_size:
            del self._traces[next(iter(self._traces))]

    def trace(self, index: int = -1) -> Trace:
        """One of the cached traces (the latest by default); `print` it to see graph, plan and kernels."""
        traces = [trace for trace in self._traces.values() if trace is not None]
        if not -len(traces) <= index < len(traces):
            raise OptionError(
                f"trace: there are {len(traces)} traces, index {index} is none of them. Call the function first."
            )
        return traces[index]


_MISSING: Any = object()


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, (bool, int, np.bool_)) and value in (0, 1):
        return bool(value)
    raise OptionError(f"AcceleratedFunction: {name} is True or False; got {value!r}.")


def _gap(found: Any, wanted: Any) -> float:
    """How far two outputs are apart, relative to the larger of 1 and their size; inf if they are no such pair."""
    if not isinstance(found, DLArray) or not isinstance(wanted, DLArray):
        return 0.0 if _plain_key(found) == _plain_key(wanted) else float("inf")
    if found._value.spec != wanted._value.spec or found._labels != wanted._labels:
        return float("inf")
    a, b = found._value.data, wanted._value.data
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    with np.errstate(all="ignore"):
        apart = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    return float(np.max(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, apart), initial=0.0))


# the signature --------------------------------------------------------------------------------------------------
def _signature(leaves: list[Any], structure: Any) -> tuple[Any, list[Value]]:
    """(key, the distinct Values among the leaves in order of appearance)."""
    places: dict[int, int] = {}
    values: list[Value] = []
    parts: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, DLArray):
            value = leaf._value
            place = places.get(id(value))
            if place is None:
                place = places[id(value)] = len(values)
                values.append(value)
            parts.append((value.spec, leaf._labels, place))
        else:
            parts.append(_plain_key(leaf))
    is_traced = any(not tape.everything for tape in open_tapes())
    return (structure, tuple(parts), is_traced, backends.current().__name__), values


_PYTHON_TWINS = (np.float64, np.bool_, np.int64, np.str_, np.bytes_)  # behave as float, bool, int, str and bytes do


def _plain_key(x: Any) -> Hashable:
    """What stands for an argument that is no dlarray: its value where it is plain data, otherwise the object itself."""
    if isinstance(x, np.ndarray) and x.ndim == 0 and type(x) is np.ndarray:
        x = x[()]
    if isinstance(x, _PYTHON_TWINS):
        x = x.item()
    if isinstance(x, float):
        return (type(x), "nan") if x != x else (type(x), x, str(x)[0] == "-")
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return type(x), x.shape, tuple(map(_plain_key, x.reshape(-1).tolist()))
        return type(x), x.shape, x.dtype, x.tobytes()
    if isinstance(x, np.generic):
        return type(x), x.dtype, x.tobytes()
    if isinstance(x, set):
        return type(x), frozenset(map(_plain_key, x))
    if isinstance(x, slice):
        return type(x), tuple(map(_plain_key, (x.start, x.stop, x.step)))
    if isinstance(x, bytearray):
        return type(x), bytes(x)
    try:
        hash(x)
        return type(x), x
    except TypeError:
        return "object", _ById(x)


class _ById:
    """An unhashable argument: the same object, and no other, is equal to it. Held, so that its id stays its own."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __hash__(self) -> int:
        return id(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.x is self.x


def _named(module: Any, qualified_name: str) -> Any:
    """What stands under that name in a module; None if nothing does."""
    found = sys.modules.get(module)
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found


def _rebuild(
    function: Callable[..., Any], numerics: str, is_strict: bool, settings: dict[str, Any]
) -> AcceleratedFunction:
    accfun = AcceleratedFunction(function, numerics, is_strict=is_strict)
    for name, value in settings.items():
        setattr(accfun, name, value)
    return accfun


@options
def dlaccelerate(fun: Callable[..., Any], *, Numerics: str = "fast", Strict: bool = False) -> AcceleratedFunction:
    """Accelerate a function of dlarrays: record it once per kind of input, then replay the recording.

    fun      : function, or AcceleratedFunction (then a new one around the same function)
    Numerics : "fast" (loops fused and compiled; results equal up to rounding) or "exact" (the same kernels in the
               same order; results equal bit for bit)
    Strict   : raise TraceError where otherwise a TraceWarning says that a call cannot be replayed
    Returns an AcceleratedFunction, called like fun, also inside dlfeval. Also a decorator: `@dlaccelerate`.
    A call whose Python looks at traced numbers (`if x > 0`, `float(x)`) gives the right result, is not kept, and
    warns with the line.
    Raises DTypeError if fun cannot be called.
    Source: MathWorks, reference page "dlaccelerate".

    >>> from minidl.core.dlarray import dlarray
    >>> double = dlaccelerate(lambda x: x + x)
    >>> [double(dlarray(number)).item() for number in (1.0, 2.0, 3.0)]
    [2.0, 4.0, 6.0]
    >>> round(double.HitRate, 2), double.Occupancy
    (66.67, 2.0)
    """
    if isinstance(fun, AcceleratedFunction):
        fun = fun.Function
    if not callable(fun):
        raise DTypeError(f"dlaccelerate: a function is wanted; got {type(fun).__name__}.")
    numerics = choice("dlaccelerate", "Numerics", Numerics, ["fast", "exact"])
    return AcceleratedFunction(fun, numerics, is_strict=_truth("Strict", Strict))


def clearCache(accfun: AcceleratedFunction) -> None:
    """Forget all traces of an accelerated function; its HitRate and Occupancy start again at 0.

    >>> clearCache(dlaccelerate(abs))
    """
    accfun = getattr(accfun, "__func__", accfun)  # of a method
    if not isinstance(accfun, AcceleratedFunction):
        raise DTypeError(f"clearCache: an AcceleratedFunction is wanted; got {type(accfun).__name__}.")
    accfun.clearCache()
