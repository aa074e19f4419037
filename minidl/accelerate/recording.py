"""A recording: one run of a function, kept as a graph; a trace: a recording's program, ready to replay.

`function` decides when to record and when to replay; how both are done stands here.
"""

from __future__ import annotations

import functools
import os
import pickle
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backends
from minidl.accelerate.captures import find_captures, is_opaque
from minidl.accelerate.effects import Effect, Watch
from minidl.accelerate.known import KnownCalls, known_calls
from minidl.accelerate.results import given_again, unkept
from minidl.accelerate.signature import Guard, Plain, Plan, Signature, Signer, Tree, guard_of, plain_key
from minidl.backends import precision
from minidl.core.dlarray import DLArray
from minidl.core.handout import Handout
from minidl.core.labels import describe
from minidl.core.op import KERNEL, Op
from minidl.core.origin import filled_in, outline
from minidl.core.random import CELLS, LOCK, STATE_SPEC, Cell
from minidl.core.spec import TYPE_NAMES, Value
from minidl.core.tape import Call, Tape, alone, open_tapes, opened
from minidl.core.tree import builder, flatten, flatten_shared, leaf_paths, unflatten
from minidl.core.vocabulary import named
from minidl.engine.compile import compile_graph
from minidl.engine.devices import DeviceFrame
from minidl.engine.graph import Graph, Id, from_tape
from minidl.engine.layout import order_of
from minidl.engine.program import ExactProgram, Program


class Recording:
    """One run of a function: its signature, its tape, what it returned, and why it cannot be replayed if so."""

    def __init__(self, function: Callable[..., Any], leaves: list[Any], structure: Any) -> None:
        self.tape = Tape(everything=True)
        self._is_traced, self._backend = bool(open_tapes()), backends.current()
        self._setting, self.precision = backends.setting(), precision.current()
        self.captures = find_captures(function, leaves, structure)
        self.sources = [x for x in leaves if hasattr(type(x), "__next__") or hasattr(type(x), "hasdata")]
        self.sources += self.captures.sources
        signer = Signer()
        self._arguments = Tree(structure, signer.leaves(leaves, plain_key))
        self._argument_values = list(signer.values)
        self._leaves = leaves
        sources = [*self.captures.reads, *self.captures.code]
        captured = Plan(sources).tree(leaves, signer)
        self.values, self._captured = signer.values, captured
        self.opaque = [(path, x) for path, x in zip(self.captures.names, leaves) if is_opaque(x, True)]
        found = zip(sources, captured.structure[2])
        places = zip([path for source, child in found for path in leaf_paths(child, source.path)], captured.leaves)
        self.opaque += [(path, x.x) for path, x in places if isinstance(x, Plain) and is_opaque(x.x, False)]
        self.before = [cell.value for cell in CELLS]
        for value in self.values + self.before:
            self.tape.add_root(value)
        args, kwargs = unflatten(structure, handed_on(leaves))
        host = _host_generators(leaves + self.captures.generators)
        watch = Watch(self.captures, leaves)
        try:
            with opened(self.tape), watch:
                self.result = function(*args, **kwargs)
        except BaseException:  # as if it had not been called
            self.put_back()
            raise
        self.effects: list[Effect] = watch.effects
        self.has_host_draws = host != _host_generators(leaves + self.captures.generators)
        self.changed = self._changed()
        self._after = [cell.value for cell in self.changed]
        outputs, self.structure = flatten_shared(self.result)
        self.unkept = unkept(outputs, self.structure, self._arguments.leaves + captured.leaves, function)
        self.outputs = [x if type(x) is DLArray or self.unkept else given_again(x) for x in handed_on(outputs)]
        self.result = unflatten(self.structure, self.outputs)  # handles and containers of its own, as from a replay
        self.telling: list[Value] = []  # what results were made of (see `core.origin`)
        outlines = [outline(x._value, self.tape.began, self.telling) for x in self._arrays_out()]
        self.outlines = [(k, form) for k, form in enumerate(outlines) if form is not None]
        self._look_back()

    def _look_back(self) -> None:
        """Find out what Python looked at, and arrays that came from nowhere known.

        A captured array that Python looked at is pinned: the recording is right for that very value. A look at
        anything that depends on an argument or on random numbers (`reads`) is right for this call alone.
        """
        made = {id(y): call for call in self.tape.calls for y in call.outputs}
        fixed = {id(value) for value in self._argument_values + self.before}
        captured = {id(value): value for value in self.values[len(self._argument_values) :]}
        self.reads: list[str] = []
        pinned: set[int] = set()
        for value, line in self.tape.reads:
            roots = _roots(value, made)
            if any(id(x) in fixed or (id(x) not in captured and self.tape.was_before(x)) for x in roots):
                self.reads.append(line)
            pinned.update(id(x) for x in roots if id(x) in captured)
        known = fixed | captured.keys()
        self.strangers = [
            call.where
            for call in self.tape.calls
            for x in call.inputs
            if type(x) is Value and self.tape.was_before(x) and id(x) not in known
        ]
        if any(self.tape.was_before(x._value) and id(x._value) not in known for x in self._arrays_out()):
            self.strangers.append("its result")
        sources = [*self.captures.reads, *self.captures.code]
        found, _ = flatten([source.read(self._leaves) for source in sources]) if pinned else ([], None)
        pins = [i for i, x in enumerate(found) if isinstance(x, DLArray) and id(x._value) in pinned]
        self.plan = Plan(sources, frozenset(pins))
        if pins:
            signer = Signer()
            signer.leaves(self._leaves, plain_key)
            self._captured = self.plan.tree(self._leaves, signer)
            self.values = signer.values

    @property
    def signature(self) -> Signature:
        return Signature(self._arguments, self._captured, self.plan, self._is_traced, self._setting)

    def put_back(self) -> None:
        """Give the state cells what they held before the function ran."""
        for cell in self._changed():
            cell.value = self.before[CELLS.index(cell)]

    def graph(self, values: list[Value] | None = None) -> Graph:
        """The calls as a graph. Inputs: arguments, captures, state cells.

        Outputs: results, what these were made of, changed state cells.
        values : take these for arguments and captures, as a trace has them
        """
        inputs = (self.values if values is None else values) + self.before
        outputs = [x._value for x in self._arrays_out()] + self.telling + self._after
        return from_tape(self.tape, inputs, outputs)

    def _arrays_out(self) -> list[DLArray]:
        return [x for x in self.outputs if isinstance(x, DLArray)]

    def _changed(self) -> list[Cell]:
        """The state cells that the function has changed (not those that another thread has)."""
        now = zip(CELLS, self.before)
        return [cell for cell, value in now if cell.value is not value and self.tape.knows(cell.value)]

    def is_alone(self) -> bool:
        """Whether no other thread drew random numbers between those that the function drew."""
        given = [x for call in self.tape.calls for x in call.inputs if isinstance(x, Value)]
        states = [x for x in given if x.spec[:2] == STATE_SPEC[:2]]  # on whatever device
        return not states or all(map(self.tape.knows, states + [cell.value for cell in CELLS]))


def handed_on(leaves: list[Any]) -> list[Any]:
    """What a function gets for the leaves of its arguments, and gives for those of its results: handles of its own."""
    return [DLArray(x._value, x._labels) if isinstance(x, DLArray) else x for x in leaves]


def _roots(value: Value, made: dict[int, Call]) -> list[Value]:
    """The values from which a value was computed that no recorded call has made."""
    found, seen, waiting = [], set(), [value]
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        call = made.get(id(x))
        if call is None:
            found.append(x)
        else:
            waiting += [y for y in call.inputs if type(y) is Value]
    return found


def _host_generators(given: Sequence[Any]) -> bytes:
    """The state of Python's and NumPy's global generators, and of generators among the given objects."""
    states = [_state_of(x) for x in given]
    torch: Any = sys.modules.get("torch")
    states.append(bytes(torch.get_rng_state().numpy()) if hasattr(torch, "get_rng_state") else None)
    return pickle.dumps((random.getstate(), np.random.get_state(), states))


def _state_of(x: Any) -> Any:
    """Of a random generator of the host's; None of anything else."""
    if isinstance(x, np.random.Generator):
        return x.bit_generator.state
    if isinstance(x, np.random.BitGenerator):
        return x.state
    if isinstance(x, np.random.SeedSequence):
        return x.n_children_spawned
    if isinstance(x, np.random.RandomState):
        return x.get_state()
    if isinstance(x, random.Random) and not isinstance(x, random.SystemRandom):
        return random.Random.getstate(x)
    return None


class Trace:
    """One cache entry: the graph recorded for a signature, and its program once it has been needed."""

    def __init__(self, recording: Recording, name: str, record_seconds: float, *, is_exact: bool) -> None:
        self.graph, self.name, self.is_exact, self.hits = recording.graph(), name, is_exact, 0
        self._specs = [self.graph.specs[y] for y in self.graph.outputs]
        self.structure, self.changed = recording.structure, recording.changed
        self.signature, self.backend = recording.signature, recording._backend
        self._precision = recording.precision
        self.leaves = [x._labels if isinstance(x, DLArray) else _Plain(x) for x in recording.outputs]
        self.record_seconds, self.compile_seconds, self.replay_seconds = record_seconds, 0.0, 0.0
        self._orders = [order_of(value.data) for value in recording.values] + [(0,)] * len(CELLS)
        self.outlines, self._count = recording.outlines, len(recording._arrays_out())
        self.failure = ""  # why it could not be compiled
        self.why_not_linked = (
            "something in it was computed from logits, past the probabilities"
            if any(call.op.is_choice for call in recording.tape.calls) else ""
        )  # fmt: skip
        self.audit_at, self.why_not_audited = 0, ""  # hits after which the recording is made again
        self.audits, self.audited_call, self.audit_seconds = 0, 0, 0.0
        self.has_handles_alone = not any(isinstance(x, _Plain) for x in self.leaves)
        self._builder = builder(self.structure)
        self._program: Program | ExactProgram | None = None
        self.known: KnownCalls | None = None  # from the first replay on, if results can be given again
        self._lock = threading.Lock()
        pattern = self.signature.pattern
        self.is_distinct = len(set(pattern)) == len(pattern)
        self._pattern = pattern
        self._first = [pattern.index(place) for place in range(len(set(pattern)))]
        self._arguments = sum(isinstance(x, DLArray) for x in recording._leaves)
        self.captured_count = len(pattern) - self._arguments

    @property
    def program(self) -> Program | ExactProgram:
        """The compiled recording, made at the first replay; if that fails, one that computes call by call."""
        if self._program is None:
            with self._lock:
                if self._program is None:
                    start = time.perf_counter()
                    with precision.chosen(self._precision):
                        program = self._compiled()
                    self.known = known_calls(self, program)
                    self.compile_seconds, self._program = time.perf_counter() - start, program
        return self._program

    def _compiled(self) -> Program | ExactProgram:
        try:
            return compile_graph(self.graph, self._orders, self.backend, is_exact=self.is_exact)
        except Exception as error:
            if self.is_exact:
                raise
            self.failure = in_words(error)
        return compile_graph(self.graph, self._orders, self.backend, is_exact=True)

    @property
    def state(self) -> str:
        """What there is to replay, in words."""
        if self.failure:
            return f"failed: {self.failure}"
        return "not yet" if self._program is None else "exact" if self.is_exact else "compiled"

    @property
    def nbytes(self) -> int:
        """Memory that the trace holds: constants, and once it is compiled its arena and outputs."""
        if self._program is not None:
            return self._program.nbytes
        return sum(data.nbytes for data in self.graph.constants.values())

    @functools.cached_property
    def op(self) -> Op:
        """A replay as an op, for the tapes that are open around it."""
        return _replay_op(self)

    @functools.cached_property
    def guard(self) -> Guard:
        """The compiled check of a call against the signature."""
        return guard_of(self.signature)

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any], is_renewed: bool = False) -> list[Value] | None:
        """The distinct values that a replay reads, if the call has this trace's signature.

        is_renewed: the arguments stand for arrays of their own each, as dlfeval makes them.
        """
        values = self.guard(args, kwargs)
        if values is None:
            return None
        if self.is_distinct:
            compared = values[self._arguments :] if is_renewed else values
            return values if len(compared) < 2 or len(set(map(id, compared))) == len(compared) else None
        if is_renewed:
            return None
        places: dict[int, int] = {}
        if tuple([places.setdefault(id(value), len(places)) for value in values]) != self._pattern:
            return None
        return [values[i] for i in self._first]

    def replay(self, inputs: list[Value], states: list[Value] | None = None) -> Any:
        """Results for these inputs, as the recorded function returned them; state cells change as it changed them.

        states : take these for what the state cells hold, and leave the cells alone
        """
        program = self._program or self.program  # compiled, if it was not yet
        if self.known is not None and not open_tapes():
            found = self.known.replay_values(inputs)
            if found is not None:
                return found[0]
        if states is not None:
            inputs = inputs + states
            values = self._run(program, inputs)
        elif self.changed:
            with LOCK:
                inputs = inputs + [cell.value for cell in CELLS]
                values = self._run(program, inputs)
                for cell, value in zip(self.changed, values[len(values) - len(self.changed) :]):
                    cell.value = value
        else:
            inputs = inputs + [cell.value for cell in CELLS]
            values = self._run(program, inputs)
        tapes = open_tapes()
        if tapes:
            call = Call(self.op, tuple(inputs), {}, tuple(values))
            for tape in tapes:
                tape.record(call)
        return self._build(values)

    def place_cells(self) -> None:
        """Have the state cells lie where they lay when this was recorded: another run then moves them as that did."""
        specs = [self.graph.specs[x] for x in self.graph.inputs[-len(CELLS) :]]
        with LOCK, alone():
            for cell, spec in zip(CELLS, specs):
                if cell.value.spec.device != spec.device:
                    cell.value = named("transfer")(DLArray(cell.value), device=spec.device)._value

    def _run(self, program: Program | ExactProgram, inputs: list[Value]) -> list[Value]:
        return list(map(Value, self._specs, program.run([value.data for value in inputs])))

    def given(self, frame: DeviceFrame) -> Any:
        """The results in a frame that has just been filled."""
        if frame.handout is None:
            values = list(map(Value, self._specs, frame.arrays))
            tree = self._build(values)
            del values[self._count :]
            frame.handout = Handout(tree, values, frame.pointers, self._program.move)  # type: ignore
            del tree  # from now on references are counted
            frame.handout.settle()
        return frame.handout.give()

    def _build(self, values: list[Value]) -> Any:
        """The results as the function returned them: containers, labels, plain objects."""
        for k, form in self.outlines:
            values[k].origin = filled_in(form, values[self._count :])
        if self.has_handles_alone:
            return self._builder(list(map(DLArray, values, self.leaves)))  # type: ignore[arg-type]
        made = iter(values)
        return self._builder([x.value() if isinstance(x, _Plain) else DLArray(next(made), x) for x in self.leaves])

    def __str__(self) -> str:
        graph = self.program.graph
        labels = [labels for labels in self.leaves if not isinstance(labels, _Plain)]
        leaves = [*self.signature.arguments.leaves, *self.signature.captured.leaves]
        places = {x.place: x.labels for x in reversed(leaves) if hasattr(x, "place") and x.pinned is None}
        names = ["argument" if k < self._distinct_arguments else "captured" for k in range(len(places))]
        shown = [(names[k], graph.inputs[k], labels) for k, labels in sorted(places.items())]
        shown += [("result", *pair) for pair in zip(graph.outputs, labels)]
        lines = [f"trace of {self.name} ({'exact' if self.is_exact else 'fast'}), hits: {self.hits}"]
        for what, x, fmt in shown:
            spec = graph.specs[x]
            kind = TYPE_NAMES.get(spec.dtype, str(spec.dtype))
            lines.append(f"{what:>10} {x}: {describe(spec.shape, fmt)} {kind}, {spec.nbytes:,} bytes")
        return "\n".join([*lines, "", str(self.program)])

    @property
    def _distinct_arguments(self) -> int:
        return len(set(self._pattern[: self._arguments]))


def in_words(error: Exception) -> str:
    """An error inside of minidl, as it should be reported: its kind, where it was raised, its text."""
    places = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{where}" + (f": {error}" if str(error) else "")


class _Plain:
    """An output that is no dlarray: part of the trace."""

    def __init__(self, kept: Any) -> None:
        self._kept = given_again(kept)

    def value(self) -> Any:
        return given_again(self._kept)


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

    op = Op(f"replay {trace.name}", KERNEL, body, doc="A recorded function, replayed.", types="a->a")
    op.is_linked, op.why_not_linked = True, trace.why_not_linked
    return op
