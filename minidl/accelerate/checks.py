"""Comparing a replay with the function itself (CheckMode), and finding what made NaN or Inf (CheckFinite)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.accelerate.recording import Recording, Trace
from minidl.accelerate.signature import plain_key
from minidl.core.apply import compute
from minidl.core.device import host
from minidl.core.dlarray import DLArray
from minidl.core.random import CELLS
from minidl.core.spec import Value
from minidl.core.tape import alone
from minidl.core.tree import flatten_shared, leaf_paths
from minidl.engine.graph import Graph, Id


def difference(
    function: Callable[..., Any], trace: Trace, result: Any, before: list[Value], leaves: list[Any], structure: Any,
    tolerance: float,
) -> str:  # fmt: skip
    """What the function itself returns otherwise, run from the state before the call, in words; '' if nothing."""
    after = [cell.value for cell in CELLS]
    for cell in trace.changed:
        cell.value = before[CELLS.index(cell)]
    trace.place_cells()
    try:
        recording = Recording(function, leaves, structure)
    finally:
        for cell, value in zip(CELLS, after):
            if cell in trace.changed:
                cell.value = value
    found, structure = flatten_shared(result)
    gaps = {"The structure": float("inf")}
    if structure == recording.structure:
        gaps = {path: distance(x, y) for path, x, y in zip(leaf_paths(structure), found, recording.outputs)}
    for path, gap in gaps.items():
        if not gap <= tolerance:
            why = _first_difference(trace.graph, recording, tolerance)
            return f"{path or 'The output'} differs by up to {gap:.3g} (CheckTolerance {tolerance:.3g}): {why}."
    return ""


def _first_difference(graph: Graph, recording: Recording, tolerance: float) -> str:
    """The first call in which the underlying function departs from the trace, in words."""
    values = {x: Value(graph.specs[x], data) for x, data in graph.constants.items()}
    values.update(zip(graph.inputs, recording.values + recording.before))
    calls = [call for call in recording.tape.calls if not call.op.is_choice]  # as `from_tape` has them
    for node, call in itertools.zip_longest(graph.nodes, calls):
        if node is None or call is None:
            what, more = ("function", call) if node is None else ("trace", node)
            return f"only the {what} goes on to {more.op.name} at {more.where}"
        if node.op is not call.op:
            return f"instead of {node.op.name} ({node.where}) the function has {call.op.name} at {call.where}"
        if node.params != call.params:
            return f"{call.op.name} at {call.where} has {call.params} instead of {node.params}"
        for x, y in zip(node.inputs, call.inputs):
            is_frozen = not isinstance(x, Id) or x in graph.constants
            if is_frozen and isinstance(y, Value) == isinstance(x, Id) and not _is_equal(values.get(x, x), y):
                return f"a constant of {call.op.name} at {call.where} has another value now"
        made = _computed(node, values)
        values.update(zip(node.outputs, made))
        if any(not distance(DLArray(x), DLArray(y)) <= tolerance for x, y in zip(made, call.outputs)):
            return f"the first op that differs is {call.op.name} at {call.where}"
    return "call by call they agree, so it is rounding in the compiled program: Numerics='exact' avoids it"


def not_finite(trace: Trace, result: Any, inputs: list[Value]) -> str:
    """If a result has NaN or Inf: the first op that gave one, found by replaying op by op, in words; '' if none has."""
    if all(np.isfinite(host(x._value.data)).all() for x in flatten_shared(result)[0] if isinstance(x, DLArray)):
        return ""
    graph = trace.graph
    values = dict(zip(graph.inputs, inputs))
    values.update({x: Value(graph.specs[x], data) for x, data in graph.constants.items()})
    for k, x in enumerate(graph.inputs):
        if not np.isfinite(host(values[x].data)).all():
            return f"its input {x} (array {k} of the arguments and captures) has them already"
    for node in graph.nodes:
        made = _computed(node, values)
        if not all(np.isfinite(host(y.data)).all() for y in made):
            way = "gradient, on the way back through" if node.is_gradient else "forward, at"
            return f"the first op that gave them is {node.op.name} ({way} {node.where})"
        values.update(zip(node.outputs, made))
    return "call by call the same inputs give finite numbers: the compiled program rounds otherwise"


def _computed(node: Any, values: dict[Any, Value]) -> tuple[Value, ...]:
    with alone():
        return compute(node.op, tuple([values[x] if isinstance(x, Id) else x for x in node.inputs]), node.params)


def _is_equal(x: Any, y: Any) -> bool:
    """Whether two operands, values or literals, are the same numbers."""
    if isinstance(x, Value) and isinstance(y, Value):
        return x.spec == y.spec and np.array_equal(host(x.data), host(y.data), equal_nan=x.spec.dtype.kind == "f")
    return plain_key(x) == plain_key(y)


def distance(found: Any, wanted: Any) -> float:
    """How far two outputs are apart, relative to the larger of 1 and their size; inf if they are no such pair."""
    if not isinstance(found, DLArray) or not isinstance(wanted, DLArray):
        return 0.0 if plain_key(found) == plain_key(wanted) else float("inf")
    if found._value.spec != wanted._value.spec or found._labels != wanted._labels:
        return float("inf")
    a, b = host(found._value.data), host(wanted._value.data)
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    with np.errstate(all="ignore"):
        apart = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    return float(np.max(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, apart), initial=0.0))
