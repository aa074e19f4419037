"""dlaccelerate: record a function once per input signature, compile the recording, replay it.

The first call with a new signature runs the function and keeps a tape of it; further calls replay the tape's program
and run none of the function's Python.
Source: MathWorks, reference pages "dlaccelerate" and "AcceleratedFunction".
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import backends
from minidl.core.dlarray import DLArray
from minidl.core.errors import AccelerationWarning, DTypeError, OptionError, TraceWarning, choice
from minidl.core.op import KERNEL, Op, named
from minidl.core.options import options
from minidl.core.random import CELLS
from minidl.core.spec import Value
from minidl.core.tape import Call, Tape, open_tapes, opened
from minidl.core.tree import flatten, paths, unflatten
from minidl.engine.graph import Graph, Id
from minidl.engine.program import ExactProgram, Program, compile_tape


class Trace:
    """One cache entry: what was recorded for a signature, and its program once it has been needed."""

    def __init__(
        self, tape: Tape, inputs: list[Value], outputs: list[Any], structure: Any, name: str, is_exact: bool
    ) -> None:
        self.tape: Tape | None = tape
        self.inputs, self.structure, self.name, self.is_exact = inputs, structure, name, is_exact
        self.leaves = [x._labels if isinstance(x, DLArray) else _Plain(x) for x in outputs]
        self.outputs = [x._value for x in outputs if isinstance(x, DLArray)]
        self.state = [cell.value for cell in CELLS]  # as the recording left it
        self._program: Program | ExactProgram | None = None
        self._lock = threading.Lock()
        self.hits = 0

    @property
    def program(self) -> Program | ExactProgram:
        """The compiled recording; made at the first replay."""
        with self._lock:
            if self._program is None:
                assert self.tape is not None
                self._program = compile_tape(
                    self.tape, self.inputs, self.outputs + self.state, backends.current(), is_exact=self.is_exact
                )
                self.tape, self.inputs, self.outputs, self.state = None, [], [], []  # numbers of the first call
            return self._program

    def replay(self, inputs: list[Value]) -> Any:
        """Results for these inputs (the state cells included), as the recorded function returned them."""
        program = self.program
        arrays = program.run([value.data for value in inputs])
        specs = program.graph.specs
        values = [Value(specs[y], data) for y, data in zip(program.graph.outputs, arrays)]
        count = len(values) - len(CELLS)
        for cell, value in zip(CELLS, values[count:]):
            cell.value = value
        tapes = open_tapes()
        if tapes:
            call = Call(_replay_op(self), tuple(inputs), {}, tuple(values))
            for tape in tapes:
                tape.record(call)
        made = iter(values)
        return unflatten(
            self.structure, [x.value if isinstance(x, _Plain) else DLArray(next(made), x) for x in self.leaves]
        )

    def __str__(self) -> str:
        return str(self.program)


class _Plain:
    """An output that is no dlarray: part of the trace."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _replay_op(trace: Trace) -> Op:
    """A replay as an op of its own: an outer dlgradient goes through its body, the recorded calls."""
    graph: Graph = trace.program.graph

    def body(*inputs: DLArray) -> tuple[DLArray, ...]:
        values: dict[Id, DLArray] = dict(zip(graph.inputs, inputs))
        for x, data in graph.constants.items():
            values[x] = DLArray(Value(graph.specs[x], data))
        for node in graph.nodes:
            made = node.op(*[values[x] if isinstance(x, Id) else x for x in node.inputs], **node.params)
            values.update(zip(node.outputs, made if isinstance(made, tuple) else (made,)))
        return tuple(values[y] for y in graph.outputs)

    return Op(f"replay {trace.name}", KERNEL, body, doc="A recorded function, replayed.", types="a->a")


class AcceleratedFunction:
    """A function that records itself once per input signature and replays the recording; see `dlaccelerate`.

    Signature: structure of the arguments; size, labels and type of each dlarray, and which of them are the same
    array; value of everything else (NaN equals NaN).
    """

    def __init__(self, function: Callable[..., Any], numerics: str) -> None:
        self._function, self._numerics = function, numerics
        self._enabled, self._cache_size = True, 50
        self._check_mode, self._check_tolerance = "none", 1e-4
        self._traces: dict[Any, Trace | None] = {}
        self._calls = self._hits = 0
        self._lock = threading.RLock()
        functools.update_wrapper(self, function, updated=())

    # properties -------------------------------------------------------------------------------------------------
    @property
    def Function(self) -> Callable[..., Any]:
        """The underlying function."""
        return self._function

    @property
    def Enabled(self) -> bool:
        """Whether calls are recorded and replayed; if not, they run the underlying function and leave the cache alone."""
        return self._enabled

    @Enabled.setter
    def Enabled(self, value: bool) -> None:
        if value not in (True, False):
            raise OptionError(f"AcceleratedFunction: Enabled is True or False; got {value!r}.")
        self._enabled = bool(value)

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
        """Largest difference that CheckMode 'tolerance' lets pass, relative to the larger of 1 and the number's size."""
        return self._check_tolerance

    @CheckTolerance.setter
    def CheckTolerance(self, value: float) -> None:
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise OptionError(f"AcceleratedFunction: CheckTolerance is a positive number; got {value!r}.")
        self._check_tolerance = float(value)

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
        return self if instance is None else functools.partial(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._function, self._numerics, self._enabled, self._cache_size)

    # calling ----------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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
        if trace is None:  # known to be unfit for replay
            return self._function(*args, **kwargs)
        result = trace.replay(values + [cell.value for cell in CELLS])
        if self._check_mode == "tolerance":
            self._check(result, self._function(*args, **kwargs))
        return result

    def _record(self, key: Any, leaves: list[Any], structure: Any) -> Any:
        tape = Tape(everything=True)
        alias = named("alias")
        is_nested = bool(open_tapes())
        fresh: dict[int, Value] = {}
        inside = []
        for leaf in leaves:
            if isinstance(leaf, DLArray):
                value = fresh.get(id(leaf._value))
                if value is None:  # outer gradient tapes must see where the recorded input comes from
                    value = alias(DLArray(leaf._value))._value if is_nested else Value(*_parts(leaf._value))
                    fresh[id(leaf._value)] = value
                    tape.add_root(value)
                leaf = DLArray(value, leaf._labels)
            inside.append(leaf)
        before = [cell.value for cell in CELLS]
        for value in before:
            tape.add_root(value)
        args, kwargs = unflatten(structure, inside)
        with opened(tape):
            result = self._function(*args, **kwargs)
        outputs, out_structure = flatten(result)
        if tape.reads:
            self._warn(tape.reads)
            trace = None
        else:
            name = getattr(self._function, "__name__", "function")
            inputs = [*fresh.values(), *before]
            trace = Trace(tape, inputs, outputs, out_structure, name, self._numerics == "exact")
        with self._lock:
            self._traces[key] = trace
            self._evict()
        return result

    def _warn(self, reads: list[str]) -> None:
        name = getattr(self._function, "__name__", "function")
        for line in dict.fromkeys(reads):
            warnings.warn(
                f"dlaccelerate: {name} looks at a traced number at {line}; its result is right, but calls like this "
                "one cannot be replayed. Keep to dlarray operations there, or pass the number as an argument.",
                TraceWarning,
                stacklevel=4,
            )

    def _check(self, result: Any, expected: Any) -> None:
        for path, found, wanted in zip(paths(result), flatten(result)[0], flatten(expected)[0]):
            if isinstance(found, DLArray) and isinstance(wanted, DLArray):
                a, b = found._value.data, wanted._value.data
                scale = np.maximum(1.0, np.abs(b))
                with np.errstate(all="ignore"):
                    gap = np.where(np.equal(a, b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(np.subtract(
                        a, b, dtype=np.float64)) / scale)
                worst = float(np.max(gap, initial=0.0))
                if not worst <= self._check_tolerance:
                    warnings.warn(
                        "Accelerated outputs differ from underlying function outputs: "
                        f"{path or 'the output'} by up to {worst:.3g} (CheckTolerance {self._check_tolerance:.3g}).",
                        AccelerationWarning,
                        stacklevel=4,
                    )
                    return

    # cache ------------------------------------------------------------------------------------------------------
    def clearCache(self) -> None:
        """Forget all traces; HitRate and Occupancy start again at 0."""
        with self._lock:
            self._traces.clear()
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


def _parts(value: Value) -> tuple[Any, Any]:
    return value.spec, value.data


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


def _plain_key(x: Any) -> Any:
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float):
        return ("float", "nan") if x != x else ("float", x, str(x)[0] == "-")
    if isinstance(x, (bool, int, str, bytes)):
        return type(x).__name__, x
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return "array", x.shape, tuple(map(_plain_key, x.reshape(-1).tolist()))
        return "array", x.shape, x.dtype.str, x.tobytes()
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


def _rebuild(function: Callable[..., Any], numerics: str, enabled: bool, cache_size: int) -> AcceleratedFunction:
    accfun = AcceleratedFunction(function, numerics)
    accfun.Enabled, accfun.CacheSize = enabled, cache_size
    return accfun


@options
def dlaccelerate(fun: Callable[..., Any], *, Numerics: str = "fast") -> AcceleratedFunction:
    """Accelerate a function of dlarrays: record it once per kind of input, then replay the recording.

    fun      : function, or AcceleratedFunction (then a new one around the same function)
    Numerics : "fast" (loops fused and compiled; results equal up to rounding) or "exact" (the same kernels in the
               same order; results equal bit for bit)
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
    return AcceleratedFunction(fun, choice("dlaccelerate", "Numerics", Numerics, ["fast", "exact"]))


def clearCache(accfun: AcceleratedFunction) -> None:
    """Forget all traces of an accelerated function; its HitRate and Occupancy start again at 0.

    >>> clearCache(dlaccelerate(abs))
    """
    if not isinstance(accfun, AcceleratedFunction):
        raise DTypeError(f"clearCache: an AcceleratedFunction is wanted; got {type(accfun).__name__}.")
    accfun.clearCache()
