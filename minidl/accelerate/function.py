"""dlaccelerate: record a function once per input signature, compile the recording, replay it.

The first call with a new signature runs the function and keeps a graph of its calls; further calls replay the graph's
program and run none of the function's Python.
Source: MathWorks, reference pages "dlaccelerate" and "AcceleratedFunction".
"""

from __future__ import annotations

import collections
import functools
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import backends
from minidl.accelerate import advice, checks, report
from minidl.accelerate.audits import NEVER, Rerun, audit_after
from minidl.accelerate.cache import MISSING, Cache
from minidl.accelerate.recording import Recording, Trace, handed_on, in_words
from minidl.accelerate.report import Captures, Explanation, MissRow, TraceRow
from minidl.accelerate.signature import Signature, Signer, Tree, plain_key
from minidl.core.errors import (
    AccelerationWarning,
    DTypeError,
    NonFiniteWarning,
    OptionError,
    RetraceWarning,
    TraceError,
    TraceWarning,
    choice,
    number,
)
from minidl.core.options import options
from minidl.core.places import user_frame, user_line
from minidl.core.properties import Properties
from minidl.core.random import CELLS
from minidl.core.spec import Value
from minidl.core.tape import open_tapes
from minidl.core.tree import flatten_call, unflatten

MISSES = 100  # calls that explain() remembers


class AcceleratedFunction(Properties):
    """A function that records itself once per input signature and replays the recording; see `dlaccelerate`.

    Signature: structure of the arguments; size, labels and type of each dlarray, and which of them are the same
    array; value of everything else (NaN equals NaN). Likewise for what the function captures: variables of enclosing
    functions, globals, default arguments, attributes of objects. Captured dlarrays are read afresh at each call.
    Containers among the arguments are handed on as copies, as in MATLAB.
    """

    def __init__(
        self, function: Callable[..., Any], numerics: str = "fast", *, is_strict: bool = False, is_audited: bool = True
    ) -> None:
        self._function, self._numerics, self._is_strict, self._is_audited = function, numerics, is_strict, is_audited
        self._enabled, self._check_finite = True, False
        self._check_mode, self._check_tolerance = "none", 1e-4
        self._cache = Cache(size=50)
        self._misses: collections.deque[MissRow] = collections.deque(maxlen=MISSES)
        self._retraces = advice.Retraces(function, self._name())
        self._warned: set[str] = set()
        self._place = _Place()  # where it was made, if dlaccelerate made it
        self._is_counted = False  # there
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
        return self._cache.size

    @CacheSize.setter
    def CacheSize(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise OptionError(f"AcceleratedFunction: CacheSize is a positive whole number; got {value!r}.")
        self._cache.size = int(value)
        self._cache.evict()

    @property
    def HitRate(self) -> float:
        """Percentage of calls that reused a trace: 100 * hits / calls (0 before the first call)."""
        return 100.0 * self._cache.hits / self._cache.calls if self._cache.calls else 0.0

    @property
    def Occupancy(self) -> float:
        """Percentage of the cache in use: 100 * traces / CacheSize."""
        return 100.0 * len(self._cache) / self._cache.size

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
    def CheckFinite(self) -> bool:
        """Whether each replay is searched for NaN and Inf; a NonFiniteWarning then names the first op that made one."""
        return self._check_finite

    @CheckFinite.setter
    def CheckFinite(self, value: bool) -> None:
        self._check_finite = _truth("CheckFinite", value)

    @property
    def NumTraces(self) -> int:
        """Number of traces in the cache."""
        return len(self._cache)

    @property
    def signatures(self) -> list[dict[str, str]]:
        """For each trace, oldest first, what its calls have in common: path -> size, labels and type, or value."""
        return [report.readable(trace.signature, self._function) for trace in self._cache.kept()]

    @property
    def Strict(self) -> bool:
        """Whether a function that cannot be replayed is an error (TraceError) instead of a warning."""
        return self._is_strict

    @Strict.setter
    def Strict(self, value: bool) -> None:
        self._is_strict = _truth("Strict", value)

    @property
    def Audit(self) -> bool:
        """Whether recordings are made again at calls 2, 10, 100, ... of each trace, to see if they still hold."""
        return self._is_audited

    @Audit.setter
    def Audit(self, value: bool) -> None:
        self._is_audited = _truth("Audit", value)
        with self._cache.lock:
            for trace in self._cache.kept():
                self._schedule_audit(trace)

    def __repr__(self) -> str:
        rows = {
            "Function": f"@{getattr(self._function, '__name__', repr(self._function))}",
            "Enabled": int(self._enabled),
            "CacheSize": self._cache.size,
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
        return {name: getattr(self, name) for name in _SETTINGS}

    # calling ----------------------------------------------------------------------------------------------------
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        tapes = open_tapes()
        if not self._enabled or any([tape.everything for tape in tapes]):
            return self._plainly(args, kwargs)  # inside another recording the calls become part of that one
        is_checking = self._check_finite or self._check_mode != "none"
        if not tapes and not is_checking:
            found = self._replay_known(args, kwargs, False)
            if found is not None:
                return found[0]
        look = None if is_checking else self._cache.recall(args, kwargs, bool(tapes))
        if look is not None and look.trace.hits < look.trace.audit_at and self._is_compiled(look.trace):
            return self._replay(look.trace, look.values, args)
        leaves, structure = flatten_call(args, kwargs)
        trace, values = look or self._cache.look_up(leaves, structure, bool(tapes))
        if trace is MISSING:
            return self._record(leaves, structure)
        is_due = trace is not None and trace.hits >= trace.audit_at
        if trace is None or not (is_due or self._is_compiled(trace)):
            if self._is_strict:
                raise TraceError(f"dlaccelerate: {self._name()} cannot replay calls like this one; explain() says why.")
            with self._cache.lock:
                self._cache.calls += 1
            return self._plainly(args, kwargs)
        self._cache.make_recent(trace)
        before = [cell.value for cell in CELLS]
        rerun = self._audit(trace, values, leaves, structure) if is_due else None
        if rerun is not None and rerun.is_final:
            return rerun.result
        if not self._is_compiled(trace):
            return self._plainly(args, kwargs) if rerun is None else rerun.result
        result = self._replay(trace, values, args, rerun)
        if is_checking:
            self._check(trace, result, values, before, leaves, structure)
        return result

    def replay_in_dlfeval(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], evaluate: Callable[..., Any]
    ) -> tuple[Any] | None:
        """What dlfeval(self, *args, **kwargs) returns, in a tuple, if a recent trace fits; otherwise None.

        A replay needs no tape of dlfeval's: what it returns is not traced any more. An audit does:
        evaluate(function, args, kwargs) is what dlfeval does otherwise.
        """
        if not self._enabled or self._check_finite or self._check_mode != "none":
            return None
        found = self._replay_known(args, kwargs, True)
        if found is not None:
            return found
        look = self._cache.recall(args, kwargs, True, is_renewed=True)
        if look is None:
            return None
        trace, rerun = look.trace, None
        if trace.hits >= trace.audit_at:
            rerun = evaluate(functools.partial(self._audit_traced, trace), args, kwargs)
            if rerun is not None and rerun.is_final:
                return (rerun.result,)
            found = self._replay_known(args, kwargs, True)
            if found is not None:
                return found
        if not self._is_compiled(trace):
            return None if rerun is None else (rerun.result,)
        return (self._replay(trace, look.values, args, rerun),)

    def _audit_traced(self, trace: Trace, /, *args: Any, **kwargs: Any) -> Rerun | None:
        """`_audit` of a call whose arguments dlfeval has traced."""
        values = trace.inputs(args, kwargs)
        return None if values is None else self._audit(trace, values, *flatten_call(args, kwargs))

    def _replay_known(self, args: tuple[Any, ...], kwargs: dict[str, Any], is_in_dlfeval: bool) -> tuple[Any] | None:
        """The results, in a tuple, if the arguments are results of earlier calls that a recent trace has met before."""
        setting = backends.setting()
        for trace in self._cache.recent(is_in_dlfeval):
            if trace.known is not None and trace.signature.backend == setting and trace.hits < trace.audit_at:
                start = time.perf_counter()
                found = trace.known.replay(args, kwargs, is_in_dlfeval)
                if found is not None:
                    self._count_hit(trace, time.perf_counter() - start)
                    return found
        return None

    def _plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function itself, on copies of the containers: as it is called when it is recorded."""
        leaves, structure = flatten_call(args, kwargs)
        args, kwargs = unflatten(structure, handed_on(leaves))
        return self._function(*args, **kwargs)

    def _replay(
        self, trace: Trace, values: list[Value], args: tuple[Any, ...], rerun: Rerun | None = None
    ) -> Any:
        start = time.perf_counter()
        if rerun is None:
            result = trace.replay(values)
        else:  # the function has just drawn the call's random numbers
            try:
                result = trace.replay(values, rerun.before)
            except BaseException:
                rerun.put_back()
                raise
        self._count_hit(trace, time.perf_counter() - start)
        if trace.known is not None:
            trace.known.remember(args)
        return result

    def _count_hit(self, trace: Trace, seconds: float) -> None:
        cache = self._cache
        with cache.lock:
            cache.calls += 1
            cache.hits += 1
            trace.hits += 1
            trace.replay_seconds += seconds

    def _audit(self, trace: Trace, values: list[Value], leaves: list[Any], structure: Any) -> Rerun | None:
        """The recording of a call is made again; None if another thread is at it. Ends the replays if it differs."""
        where, cache = user_line(), self._cache
        with cache.lock:
            due, call = trace.audit_at, trace.hits + 2
            if trace.hits < due:
                return None
            trace.audit_at = NEVER
        try:
            rerun = Rerun(self._function, self._name(), trace, values, leaves, structure)
        except BaseException:
            trace.audit_at = due
            raise
        if rerun.difference:
            self._end(trace, rerun, call, where)
            return rerun
        with cache.lock:
            trace.audit_seconds += rerun.seconds
            if rerun.is_certain and rerun.error is None:
                trace.audits, trace.audited_call = trace.audits + 1, call
                self._schedule_audit(trace, call)
            else:  # nothing was found out; not at each call from now on, which would cost more than no replays
                trace.audit_at = 2 * trace.hits + 1
        if rerun.error is not None:
            raise rerun.error
        if rerun.is_final:
            self._count_hit(trace, 0.0)
        return rerun

    def _schedule_audit(self, trace: Trace, call: int | None = None) -> None:
        """Set when the trace is audited next; `call` is the number of its latest call."""
        call = trace.hits + 1 if call is None else call
        is_audited = self._is_audited and not trace.why_not_audited
        trace.audit_at = audit_after(call) - 2 if is_audited else NEVER

    def _end(self, trace: Trace, rerun: Rerun, call: int, where: str) -> None:
        """The recording does not hold: forget it, and tell."""
        cache, first = self._cache, max(trace.audited_call, 1) + 1
        maybe = "no other call was replayed" if call == 2 else (
            f"of these calls, number {first} may have been wrong" if first == call - 1 else
            f"of these calls, numbers {first:,} to {call - 1:,} may have been wrong"
        )  # fmt: skip
        with cache.lock:
            cache.give_up(trace)
            cache.calls += 1
            note = f"replays ended by the audit at call {call:,} of its trace: {rerun.difference}"
            self._misses.append(MissRow(cache.calls, where, None, [], note))
        message = (
            f"dlaccelerate: {self._name()} was run again to see whether its recording still holds (call {call:,} of "
            f"one kind), and it does not: {rerun.difference}. This call's result is the function's own, and calls like "
            f"it are not replayed any more; {maybe}. Pass what changes as an argument."
        )
        if self._is_strict:
            raise TraceError(message) from rerun.error
        self._warn([message], TraceWarning)
        if rerun.error is not None:
            raise rerun.error

    def _record(self, leaves: list[Any], structure: Any) -> Any:
        """Run the function and keep the recording. All that is remembered of it changes at the end, in one step."""
        where = user_line()
        if NO_RETRACE:
            raise TraceError(self._refusal(leaves, structure))
        start = time.perf_counter()
        recording = Recording(self._function, leaves, structure)
        complaints = advice.complaints(recording, self._name())
        if complaints and self._is_strict:
            raise TraceError(complaints[0])
        signature, trace, cache = recording.signature, None, self._cache
        if not complaints and recording.is_alone():
            seconds = time.perf_counter() - start
            trace = Trace(recording, self._name(), seconds, is_exact=self._numerics == "exact")
            if recording.effects:  # an audit would do again what a replay does not
                trace.why_not_audited = advice.side_effect(recording.effects[0])
            self._schedule_audit(trace)
        why, nearest = advice.nearest(cache.kept(), signature, self._function)
        with cache.lock:
            cache.calls += 1
            self._misses.append(MissRow(cache.calls, where, nearest, why, "cannot be replayed" if complaints else ""))
            retraces = self._retraces.of_values(signature, why)
            if complaints or trace is not None:
                cache.keep(signature, trace)
                if trace is not None:
                    cache.make_recent(trace)
                if cache.evict():
                    retraces += self._retraces.of_a_full_cache(cache.size, self._misses)
        if trace is not None and not cache.hits:
            self._note_fruit(False)
        self._warn(complaints + advice.notes(recording, self._name()), TraceWarning)
        self._warn(retraces, RetraceWarning)
        return recording.result

    def _check(
        self, trace: Trace, result: Any, values: list[Value], before: list[Value], leaves: list[Any], structure: Any
    ) -> None:
        """What CheckFinite and CheckMode ask for, after a replay."""
        if self._check_finite:
            found = checks.not_finite(trace, result, values + before)
            if found:
                message = f"dlaccelerate: {self._name()} returned NaN or Inf; {found}."
                warnings.warn(message, NonFiniteWarning, stacklevel=3)
        if self._check_mode != "none":
            found = checks.difference(
                self._function, trace, result, before, leaves, structure, self._check_tolerance
            )
            if found:
                message = f"Accelerated outputs differ from underlying function outputs. {found}"
                warnings.warn(message, AccelerationWarning, stacklevel=3)

    def _is_compiled(self, trace: Trace) -> bool:
        """Whether the trace has its program. One that cannot be compiled is replayed call by call, or else given up."""
        if trace._program is not None:
            return True
        self._note_fruit(True)
        try:
            _ = trace.program
            if not trace.failure:
                return True
            instead, is_there = "it is replayed call by call instead, which is right but slower", True
        except Exception as error:
            trace.failure = in_words(error)
            with self._cache.lock:
                self._cache.give_up(trace)
                note = f"could not be compiled: {trace.failure}"
                self._misses.append(MissRow(self._cache.calls + 1, user_line(), None, [], note))
            instead, is_there = "the function itself runs instead", False
        message = f"dlaccelerate: the recording of {self._name()} could not be compiled ({trace.failure}); {instead}."
        self._warn([f"{message} Please report it."], TraceWarning)
        return is_there

    def _note_fruit(self, is_hit: bool) -> None:
        """A first recording, or a first replay: functions made at one place over and over, and never replayed, cost."""
        if is_hit:
            self._place.fruitless = 0
        elif not self._is_counted:
            self._place.fruitless += 1
        self._is_counted = True

    def _name(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)

    def _warn(self, messages: list[str], kind: type[Warning]) -> None:
        for message in messages:
            if message not in self._warned:
                warnings.warn(message, kind, stacklevel=_level_of_user())
                self._warned.add(message)

    def clearCache(self) -> None:
        """Forget all traces; HitRate and Occupancy start again at 0."""
        with self._cache.lock:
            self._cache.clear()
            self._misses.clear()
            self._retraces.clear()
            self._warned.clear()

    # seeing -----------------------------------------------------------------------------------------------------
    def trace(self, index: int = -1) -> Trace:
        """One of the cached traces (the latest by default); `print` it to see graph, plan and kernels."""
        traces = self._cache.kept()
        if not -len(traces) <= index < len(traces):
            raise OptionError(
                f"trace: there are {len(traces)} traces, index {index} is none of them. Call the function first."
            )
        return traces[index]

    def captures(self, index: int = -1) -> Captures:
        """What a trace (the latest by default) has besides its arguments: path, file:line, role and bytes, as a list
        that prints as a table. Functions, classes and modules are compared too, but not listed.
        """
        return report.captures_of(self.trace(index))

    def explain(self) -> Explanation:
        """What the cache did, as data that prints as tables: for each trace its hits, times and memory; for each call
        that was recorded (the last 100), the nearest trace, what was new, and what would have let it share.
        """
        with self._cache.lock:
            traces = [
                TraceRow(
                    index, x.hits, x.record_seconds * 1e3, x.compile_seconds * 1e3,
                    x.replay_seconds / x.hits * 1e3 if x.hits else 0.0, x.nbytes,
                    report.readable(x.signature, self._function), x.state, x.audits, x.audited_call,
                    x.audit_seconds * 1e3, self._when_audited(x),
                )
                for index, x in enumerate(self._cache.kept())
            ]  # fmt: skip
            return Explanation(self._name(), self._cache.calls, self._cache.hits, traces, list(self._misses))

    def _when_audited(self, trace: Trace) -> str:
        """In words, for explain()."""
        if not self._is_audited:
            return "off"
        if trace.why_not_audited:
            return f"never: {trace.why_not_audited}"
        return f"at call {trace.audited_call:,} ({trace.audits})" if trace.audits else "not yet"

    def _refusal(self, leaves: list[Any], structure: Any) -> str:
        """The text of no_retrace's error."""
        kept, why = self._cache.kept(), ""
        if kept:
            last, signer = kept[-1].signature, Signer()
            arguments = Tree(structure, signer.leaves(leaves, plain_key))
            captured = last.plan.tree(leaves, signer)
            new = Signature(arguments, captured, last.plan, bool(open_tapes()), backends.setting())
            why = "; ".join(map(str, report.differences(last, new, self._function)[:3]))
        return (
            f"no_retrace: {self._name()} would be recorded anew: {why or 'it has no trace yet'}. "
            "Call it this way once before the block, or let the call share a trace."
        )



_SETTINGS = ("Enabled", "CacheSize", "CheckMode", "CheckTolerance", "CheckFinite", "Audit")
NO_RETRACE: list[object] = []  # not empty inside `testing.no_retrace`: a recording is an error


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, (bool, int, np.bool_)) and value in (0, 1):
        return bool(value)
    raise OptionError(f"AcceleratedFunction: {name} is True or False; got {value!r}.")


def _level_of_user() -> int:
    """The caller's stacklevel for warnings that are to name the user's line, whichever way the call came."""
    user, frame, level = user_frame(), sys._getframe(1), 1
    while frame is not user and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level


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
def dlaccelerate(
    fun: Callable[..., Any], *, Numerics: str = "fast", Strict: bool = False, Audit: bool = True
) -> AcceleratedFunction:
    """Accelerate a function of dlarrays: record it once per kind of input, then replay the recording.

    fun      : function, or AcceleratedFunction (then a new one around the same function)
    Numerics : "fast" (loops fused and compiled; results equal up to rounding) or "exact" (the same kernels in the
               same order; results equal bit for bit)
    Strict   : raise TraceError where otherwise a TraceWarning says that a call cannot be replayed
    Audit    : run fun itself once more at calls 2, 10, 100, 1,000, ... of each trace, and compare what it does with the
               recording: the same operations, options, constants and effects, the same form of result. If it is the
               same, the call gives the replay's result and has but taken longer. If not, the call gives fun's own
               result, calls like it are not replayed any more, and a TraceWarning says what differs, where, and which
               calls may have been wrong. Recordings with side effects are not audited.
    Returns an AcceleratedFunction, called like fun, also inside dlfeval. Also a decorator: `@dlaccelerate`.
    A call whose Python looks at traced numbers (`if x > 0`, `float(x)`) gives the right result, is not kept, and
    warns with the line.
    What fun captures (closures, globals, attributes) may change between calls: dlarrays are read afresh, another plain
    value makes a new trace. `captures()` lists it; `explain()` says why calls were recorded.
    Where Python hides what fun depends on (`globals()[name]`, state inside of a library), it is frozen until an audit
    finds it: at call 2 what changes each time; what changes later at the next audit only, after wrong replays, and
    never what has changed back by then.
    Make it once, outside of the loop: functions made of the same code at the same line over and over, and never
    replayed, get a RetraceWarning.
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
    accfun = AcceleratedFunction(fun, numerics, is_strict=_truth("Strict", Strict), is_audited=_truth("Audit", Audit))
    _note_place(fun, accfun)
    return accfun


FRUITLESS = 2  # functions made at one place, recorded and never replayed, after which the next one gets a warning


class _Place:
    """A line that makes accelerated functions of one code. fruitless: how many have recorded since one was replayed."""

    def __init__(self, caller: types.CodeType | None = None) -> None:
        self.caller, self.fruitless, self.is_told = caller, 0, False  # held, so that its id stays its own


PLACES: dict[tuple[Any, int, int], _Place] = {}  # (code, caller's code by id, line): a cell run again is another caller


def _note_place(fun: Callable[..., Any], accfun: AcceleratedFunction) -> None:
    """Warn of functions accelerated over and over, each time without a trace, and none of them replayed."""
    while isinstance(fun, (functools.partial, types.MethodType)):
        fun = fun.func if isinstance(fun, functools.partial) else fun.__func__
    code = getattr(fun, "__code__", None)
    frame = user_frame()
    if code is None or frame is None:
        return
    key = code, id(frame.f_code), frame.f_lineno
    accfun._place = PLACES[key] = PLACES.pop(key) if key in PLACES else _Place(frame.f_code)
    if len(PLACES) > 1000:
        del PLACES[next(iter(PLACES))]
    if accfun._place.fruitless >= FRUITLESS and not accfun._place.is_told:
        accfun._place.is_told = True
        warnings.warn(
            f"dlaccelerate: {code.co_name} is accelerated once more at {user_line()}; each accelerated function starts "
            "without traces, and those before were never replayed. Make it once, outside of the loop, and call that.",
            RetraceWarning,
            stacklevel=4,
        )


def clearCache(accfun: AcceleratedFunction) -> None:
    """Forget all traces of an accelerated function; its HitRate and Occupancy start again at 0.

    >>> clearCache(dlaccelerate(abs))
    """
    accfun = getattr(accfun, "__func__", accfun)  # of a method
    if not isinstance(accfun, AcceleratedFunction):
        raise DTypeError(f"clearCache: an AcceleratedFunction is wanted; got {type(accfun).__name__}.")
    accfun.clearCache()
