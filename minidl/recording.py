"""A recording: one run of a function, kept as a graph; a trace: a recording's program, ready to replay.

`accelerate` decides when to record and when to replay; how both are done stands here.
"""

from __future__ import annotations

import functools
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import backends
from minidl.core.dlarray import DLArray
from minidl.core.labels import describe
from minidl.core.op import KERNEL, Op, named
from minidl.core.random import CELLS, LOCK, STATE_SPEC, Cell
from minidl.core.spec import TYPE_NAMES, Value
from minidl.core.tape import Call, Tape, open_tapes, opened
from minidl.core.tree import flatten, unflatten
from minidl.engine.graph import Graph, Id, from_tape
from minidl.engine.layout import order_of
from minidl.engine.program import ExactProgram, Program, compile_graph


class Recording:
    """One run of a function: its tape, the distinct values among its arguments, what it returned."""

    def __init__(self, function: Callable[..., Any], leaves: list[Any], structure: Any) -> None:
        self.tape = Tape(everything=True)
        self.plain = [x for x in leaves if isinstance(x, np.ndarray)]
        self.sources = [x for x in leaves if hasattr(type(x), "__next__") or hasattr(type(x), "hasdata")]
        is_nested = bool(open_tapes())
        fresh: dict[int, DLArray] = {}
        inside = []
        for leaf in leaves:
            if isinstance(leaf, DLArray):
                value = leaf._value
                if id(value) not in fresh:  # outer gradient tapes must see where the recorded input comes from
                    one = named("alias")(DLArray(value)) if is_nested else DLArray(Value(value.spec, value.data))
                    fresh[id(value)] = DLArray(one._value, leaf._labels)
                    self.tape.add_root(one._value)
                leaf = DLArray(fresh[id(value)]._value, leaf._labels)
            inside.append(leaf)
        self.arrays = list(fresh.values())
        self.before = [cell.value for cell in CELLS]
        for value in self.before:
            self.tape.add_root(value)
        host = _host_generators(leaves)
        args, kwargs = unflatten(structure, inside)
        try:
            with opened(self.tape):
                self.result = function(*args, **kwargs)
        except BaseException:  # as if it had not been called
            for cell in self._changed():
                cell.value = self.before[CELLS.index(cell)]
            raise
        self.has_host_draws = host != _host_generators(leaves)
        self.changed = self._changed()
        self.outputs, self.structure = flatten(self.result)

    def graph(self) -> Graph:
        """The calls as a graph: inputs are the arguments and the state cells, outputs the results and changed cells."""
        inputs = [x._value for x in self.arrays] + self.before
        outputs = [x._value for x in self.outputs if isinstance(x, DLArray)] + [cell.value for cell in self.changed]
        graph = from_tape(self.tape, inputs, outputs)
        for x, data in graph.constants.items():
            if any(np.may_share_memory(data, array) for array in self.plain):  # the caller may change it, the key stays
                graph.constants[x] = data.copy()
        return graph

    def _changed(self) -> list[Cell]:
        """The state cells that the function has changed (not those that another thread has)."""
        now = zip(CELLS, self.before)
        return [cell for cell, value in now if cell.value is not value and self.tape.knows(cell.value)]

    def is_alone(self) -> bool:
        """Whether no other thread drew random numbers between those that the function drew."""
        states = [x for call in self.tape.calls for x in call.inputs if isinstance(x, Value) and x.spec == STATE_SPEC]
        return not states or all(map(self.tape.knows, states + [cell.value for cell in CELLS]))


def _host_generators(leaves: list[Any]) -> bytes:
    """The state of Python's and NumPy's global generators, and of generators among the arguments."""
    given = [x.bit_generator.state for x in leaves if isinstance(x, np.random.Generator)]
    given += [x.get_state() for x in leaves if isinstance(x, np.random.RandomState)]
    return pickle.dumps((random.getstate(), np.random.get_state(), given))


class Trace:
    """One cache entry: the graph recorded for a signature, and its program once it has been needed."""

    def __init__(self, recording: Recording, name: str, *, is_exact: bool) -> None:
        self.graph, self.name, self.is_exact, self.hits = recording.graph(), name, is_exact, 0
        self.structure, self.changed = recording.structure, recording.changed
        self.leaves = [x._labels if isinstance(x, DLArray) else _Plain(x) for x in recording.outputs]
        self.labels = [x._labels for x in recording.arrays]
        self._orders = [order_of(x._value.data) for x in recording.arrays] + [(0,)] * len(CELLS)
        self._program: Program | ExactProgram | None = None
        self._lock = threading.Lock()

    @property
    def program(self) -> Program | ExactProgram:
        """The compiled recording; made at the first replay."""
        if self._program is None:
            with self._lock:
                if self._program is None:
                    self._program = compile_graph(self.graph, self._orders, backends.current(), is_exact=self.is_exact)
        return self._program

    @functools.cached_property
    def op(self) -> Op:
        """A replay as an op, for the tapes that are open around it."""
        return _replay_op(self)

    def replay(self, inputs: list[Value]) -> Any:
        """Results for these inputs, as the recorded function returned them; state cells change as it changed them."""
        if self.changed:
            with LOCK:
                inputs = inputs + [cell.value for cell in CELLS]
                values = self._run(inputs)
                for cell, value in zip(self.changed, values[len(values) - len(self.changed) :]):
                    cell.value = value
        else:
            inputs = inputs + [cell.value for cell in CELLS]
            values = self._run(inputs)
        tapes = open_tapes()
        if tapes:
            call = Call(self.op, tuple(inputs), {}, tuple(values))
            for tape in tapes:
                tape.record(call)
        made = iter(values)
        leaves = [x.value() if isinstance(x, _Plain) else DLArray(next(made), x) for x in self.leaves]
        return unflatten(self.structure, leaves)

    def _run(self, inputs: list[Value]) -> list[Value]:
        program = self.program
        graph, specs = program.graph, program.graph.specs
        arrays = program.run([value.data for value in inputs])
        return [Value(specs[y], data) for y, data in zip(graph.outputs, arrays)]

    def __str__(self) -> str:
        graph = self.program.graph
        labels = [labels for labels in self.leaves if not isinstance(labels, _Plain)]
        shown = [("argument", *pair) for pair in zip(graph.inputs, self.labels)]
        shown += [("result", *pair) for pair in zip(graph.outputs, labels)]
        lines = [f"trace of {self.name} ({'exact' if self.is_exact else 'fast'}), hits: {self.hits}"]
        for what, x, fmt in shown:
            spec = graph.specs[x]
            kind = TYPE_NAMES.get(spec.dtype, str(spec.dtype))
            lines.append(f"{what:>10} {x}: {describe(spec.shape, fmt)} {kind}, {spec.nbytes:,} bytes")
        return "\n".join([*lines, "", str(self.program)])


class _Plain:
    """An output that is no dlarray: part of the trace."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept.copy() if isinstance(kept, np.ndarray) else kept

    def value(self) -> Any:
        return self._kept.copy() if isinstance(self._kept, np.ndarray) else self._kept


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
