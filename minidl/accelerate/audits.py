"""Audits: now and then a recording is made again and compared with the one that is replayed.

`captures` and `effects` look for what could make a replay lie. What they do not know, an audit finds: the function runs
once more, at calls 2, 10, 100, 1,000, ... of a trace, and if its tape is another one, the replays are over. It cannot
find what changes between two audits and changes back, nor tell of a call before it is made.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minidl.accelerate import advice
from minidl.accelerate.captures import is_user_file
from minidl.accelerate.recording import Recording, Trace
from minidl.accelerate.signature import Array, plain_key
from minidl.core.apply import compute
from minidl.core.device import host
from minidl.core.dlarray import DLArray
from minidl.core.op import Op
from minidl.core.places import place
from minidl.core.random import CELLS, Cell
from minidl.core.spec import Value
from minidl.core.tape import Mark, alone, open_tapes
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.passes import drop_unused

NEVER = sys.maxsize  # hits until an audit that will not be
MANY = 12  # numbers up to which an array is written out in a message


def audit_after(call: int) -> int:
    """The number of a trace's call that is audited next, if this is its latest call; the recording is call 1."""
    return 2 if call < 2 else 10 ** len(str(call))


class Rerun:
    """One more run of a function whose recording is replayed, for one call and from the present random state.

    difference : what it did otherwise than when it was recorded, in words; "" if nothing
    error      : what it raised
    is_certain : False if another thread drew random numbers meanwhile, or memory ran out: then nothing can be said
    is_final   : whether `result`, what the function returned, is the call's result. Otherwise a replay's is, from the
                 random state `before` (None: from the present one)
    """

    def __init__(
        self, function: Callable[..., Any], name: str, trace: Trace, values: list[Value], leaves: list[Any],
        structure: Any,
    ) -> None:  # fmt: skip
        start = time.perf_counter()
        self.difference, self.is_certain, self.is_final = "", True, True
        self.result: Any = None
        self.error: Exception | None = None
        self.before: list[Value] | None = None
        self._drawn: list[tuple[Cell, Value, Value]] = []
        mark = Mark(open_tapes())
        trace.place_cells()
        try:
            recording = Recording(function, leaves, structure)
        except MemoryError:
            self.is_certain = self.is_final = False
        except Exception as error:
            self.error = error
            self._compare_error(error, trace, values)
        except BaseException:  # an interrupt: as if there had been no audit
            mark.restore()
            raise
        else:
            self.result, self.is_certain = recording.result, recording.is_alone()
            if self.is_certain:
                self.difference = difference(trace, recording, values, name)
                self.before = recording.before
                self._drawn = [(cell, self.before[CELLS.index(cell)], cell.value) for cell in recording.changed]
                self.is_final = bool(self.difference)
        if not self.is_final:
            mark.restore()  # the outer tapes are to know of the replay only
        self.seconds = time.perf_counter() - start

    def put_back(self) -> None:
        """Have the random state of before the run, unless somebody else has drawn."""
        for cell, old, new in self._drawn:
            if cell.value is new:
                cell.value = old

    def _compare_error(self, error: Exception, trace: Trace, values: list[Value]) -> None:
        """The function's error is the truth; if a replay raises the same, the recording is as good as it was."""
        try:
            with alone():
                trace.replay(values, [cell.value for cell in CELLS])
        except Exception as other:
            if type(other) is type(error):
                return
        places = [x for x in traceback.extract_tb(error.__traceback__) if is_user_file(x.filename)]
        where = f" at {place(places[-1].filename, places[-1].lineno or 0)}" if places else ""
        self.difference = f"it raised {type(error).__name__} ({error}){where}, which a replay does not"


def difference(trace: Trace, recording: Recording, values: list[Value], name: str) -> str:
    """What a new recording has otherwise than the one that is replayed, in words; '' if nothing that could matter.

    values : what a replay reads now, in the trace's order
    """
    pinned = {id(x.pinned.x) for x in _pinned(trace)}
    if any(id(x.pinned.x) not in pinned for x in _pinned(recording)):
        return f"{name} looks at the numbers of a captured array now"
    looks = [line for line in dict.fromkeys(recording.reads)]
    if looks:
        return f"{name} looks at a traced number at {looks[0]} now"
    if [cell.name for cell in recording.changed] != [cell.name for cell in trace.changed]:
        now, then = ("draws", "drew none") if recording.changed else ("draws no", "drew some")
        return f"{name} {now} random numbers now, and {then} when it was recorded"
    old, new = trace.graph, recording.graph(values)
    if not is_equal(old, new):
        found = graph_difference(drop_unused(old), drop_unused(new))
        if found is not None:
            return found.text
    if recording.structure != trace.structure:
        return f"{name} returns other containers"
    for kept, found_now in zip(trace.leaves, recording.outputs):
        if isinstance(found_now, DLArray) or isinstance(kept, str):
            if kept != getattr(found_now, "_labels", None):
                return f"{name} returns an array with other labels, or something else than an array"
        elif not _is_same(kept.value(), found_now):
            return f"{name} returns {_short(found_now)} where a replay returns {_short(kept.value())}"
    return _told(recording, name)


def _told(recording: Recording, name: str) -> str:
    """What the new recording would be refused or commented for; the one that is replayed was not.

    Arrays from places that cannot be followed, and numbers of the host's random generators (of which other threads may
    have drawn), have been compared with the others: they are as they were.
    """
    recording.strangers, recording.has_host_draws = [], False
    found = advice.complaints(recording, name) + advice.notes(recording, name)
    return found[0].removeprefix("dlaccelerate: ").partition(";")[0] + " now" if found else ""


def _pinned(x: Trace | Recording) -> list[Any]:
    return [leaf for leaf in x.signature.captured.leaves if type(leaf) is Array and leaf.pinned is not None]


# graphs ---------------------------------------------------------------------------------------------------------
class GraphDifference(NamedTuple):
    """Where two graphs depart from each other. kind: "op", "option", "constant" or "length"."""

    kind: str
    text: str


def is_equal(old: Graph, new: Graph) -> bool:
    """Whether two graphs are the same, node by node, number by number."""
    return (
        len(old.nodes) == len(new.nodes)
        and old.inputs == new.inputs
        and old.outputs == new.outputs
        and old.constants.keys() == new.constants.keys()
        and all(
            _is_same_op(a.op, b.op) and _is_same(a.params, b.params) and _are_same_operands(a, b)
            for a, b in zip(old.nodes, new.nodes)
        )
        and all(is_same_array(x, new.constants[k]) for k, x in old.constants.items())
    )


def _are_same_operands(a: Node, b: Node) -> bool:
    return len(a.inputs) == len(b.inputs) and all(
        type(x) is type(y) and (x == y if isinstance(x, Id) else _is_same(x, y)) for x, y in zip(a.inputs, b.inputs)
    )


def graph_difference(old: Graph, new: Graph) -> GraphDifference | None:
    """Where two recordings of one function depart from each other, if they do.

    What depends on constants alone is a constant: how it came about does not matter. So a function that computes a
    table when it runs for the first time, and keeps it, is the same function as before.
    """
    a, b = _Side(old), _Side(new)
    names = dict(zip(old.inputs, new.inputs))
    for one, other in itertools.zip_longest(a.nodes, b.nodes):
        if one is None or other is None:
            more = other if one is None else one
            return GraphDifference("length", f"only one of them goes on to {more.op.name} at {more.where}")
        if not _is_same_op(one.op, other.op):
            became = f"{one.op.name} at {one.where} became {other.op.name} at {other.where}"
            return GraphDifference("op", became)
        if not _is_same(one.params, other.params):
            was = f"{_short(one.params)} and then {_short(other.params)}"
            return GraphDifference("option", f"{other.op.name} at {other.where} had {was}")
        for x, y in itertools.zip_longest(one.inputs, other.inputs):
            shown = _changed(a, x, b, y, names)
            if shown is not None:
                return GraphDifference("constant", f"a constant of {other.op.name} at {other.where} changed{shown}")
        names.update(zip(one.outputs, other.outputs))
    if len(old.outputs) != len(new.outputs):
        return GraphDifference("length", "it returns another number of arrays")
    for x, y in zip(old.outputs, new.outputs):
        shown = _changed(a, x, b, y, names)
        if shown is not None:
            return GraphDifference("constant", f"a result changed{shown}")
    return None


class _Side:
    """A graph, divided: nodes that depend on its inputs, and values that do not."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.nodes = graph, list[Node]()
        self.moving, self._frozen = set(graph.inputs), list[Node]()
        for node in graph.nodes:
            if any(x in self.moving for x in node.reads):
                self.nodes.append(node)
                self.moving.update(node.outputs)
            else:
                self._frozen.append(node)
        self._values: dict[Id, Value] = {}

    def value(self, x: Any) -> Any:
        """A literal or a value that depends on constants alone."""
        if not isinstance(x, Id):
            return x
        if not self._values:
            self._values = {k: Value(self._graph.specs[k], data) for k, data in self._graph.constants.items()}
            with alone():
                for node in self._frozen:
                    inputs = tuple([self._values[k] if isinstance(k, Id) else k for k in node.inputs])
                    self._values.update(zip(node.outputs, compute(node.op, inputs, node.params)))
        return self._values[x]


def _changed(a: _Side, x: Any, b: _Side, y: Any, names: dict[Id, Id]) -> str | None:
    """How operand y is another one than x, in words; None if it is the same."""
    is_moving = isinstance(x, Id) and x in a.moving
    if is_moving or (isinstance(y, Id) and y in b.moving):
        return None if is_moving and names.get(x) == y and isinstance(y, Id) else " (another value altogether)"
    one, other = a.value(x), b.value(y)
    if isinstance(one, Value) and isinstance(other, Value):
        if one.spec == other.spec and is_same_array(one.data, other.data):
            return None
        shown = [_numbers(value) for value in (one, other)]
        return f" ({shown[0]}, then {shown[1]})" if all(shown) and shown[0] != shown[1] else ""
    return None if _is_same(one, other) else f" ({_short(one)}, then {_short(other)})"


def _numbers(value: Value) -> str:
    data = host(value.data)
    return str(data.tolist()) if data.size <= MANY else ""


def is_same_array(a: Any, b: Any) -> bool:
    """Whether two arrays have the same bits."""
    if a is b:
        return True
    a, b = (np.ascontiguousarray(host(x)) for x in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and bool(
        np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))
    )


def _is_same_op(a: Op, b: Op) -> bool:
    """Whether two ops are one; a user's op may be declared again, by a function that declares it."""
    if a is b:
        return True
    codes = [getattr(op.body, "__code__", None) for op in (a, b)]
    return a.is_users and b.is_users and (a.home, a.text, codes[0]) == (b.home, b.text, codes[1])


def _is_same(a: Any, b: Any) -> bool:
    """Whether two options or literals are the same: by value, functions by their code and what they close over."""
    if a is b:
        return True
    if type(a) is types.FunctionType and type(b) is types.FunctionType:
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b)]
        return a.__code__ == b.__code__ and _is_same([cells[0], a.__defaults__], [cells[1], b.__defaults__])
    if type(a) is dict and type(b) is dict:
        return list(a) == list(b) and all(_is_same(a[name], b[name]) for name in a)
    if type(a) is type(b) and type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, Value) and isinstance(b, Value):
        return a.spec == b.spec and is_same_array(a.data, b.data)
    if isinstance(a, DLArray) and isinstance(b, DLArray):
        return a._labels == b._labels and _is_same(a._value, b._value)
    return bool(plain_key(a) == plain_key(b))


def _short(x: Any, most: int = 80) -> str:
    text = repr(x)
    return text if len(text) <= most else text[: most - 3] + "..."
