"""Steps of a solver on a GPU: launches bound once, results given again (`core.handout`).

A training loop gives a solver what the step before returned and gradients of an accelerated function. These go round
among a few sets; for each, the launch that updates all parameters is kept, and a step is that launch.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from minidl import backends
from minidl.core.device import copied
from minidl.core.dlarray import DLArray
from minidl.core.handout import Handout, all_intact, is_suitable, known
from minidl.core.spec import Value
from minidl.core.tape import open_tapes
from minidl.engine.devices import DeviceFrame
from minidl.engine.program import MOST_FRAMES, has_counts

MOST_STEPS = 2  # of networks; each has memory for two or three times what its solver returns
MOST_SETS = 16  # of arguments

Trees = tuple[Any, ...]


class _Set:
    """Arguments that were met before.

    step : what updates them. handouts : whose parts they are. options : the numbers that the solver was called with.
    constants : the operands behind the rate. launches : by frame.
    """

    def __init__(self, step: Step, handouts: list[weakref.ref[Handout]], options: Trees, constants: Trees) -> None:
        self.step, self.handouts, self.options, self.constants = step, handouts, options, constants
        self.launches: dict[int, Callable[[float], None]] = {}


class Step:
    """One solver's step for parameters of certain sizes, types and places.

    build : from the leaves of a tree to the tree.
    """

    def __init__(self, op: Any, rows: list[list[Any]], labels: list[str], build: Callable[..., Any], late: int) -> None:
        self._build, self._labels = build, labels
        self._specs = [row[0].spec for row in rows]
        self._count = len(op.output_types)
        work = [((spec,) * self._count, _datas(row)) for spec, row in zip(self._specs, rows)]
        self._each = backends.gpu().EachInPlace(op, work, late)
        self._frames: list[tuple[DeviceFrame, list[list[Any]]]] = []
        self.lock = threading.Lock()

    def free_frame(self, busy: Sequence[Any] = ()) -> tuple[DeviceFrame, list[list[Any]]] | None:
        """(a frame that nobody sees, its arrays row by row)."""
        for found in self._frames:
            if (found[0].handout is None or found[0].handout not in busy) and found[0].is_free():
                return found
        if len(self._frames) == MOST_FRAMES:
            return None
        self._frames.append(self._new_frame())
        self._frames[-1][0].settle()
        return self._frames[-1]

    def _new_frame(self) -> tuple[DeviceFrame, list[list[Any]]]:
        made, keeper = self._each.new_results()
        arrays = [row[k] for k in range(self._count) for row in made]
        return DeviceFrame(len(self._frames), {}, arrays, keeper), made

    def launch(self, rows: list[list[Any]], made: list[list[Any]]) -> Callable[[float], None]:
        """A function of the rate: one step from these values to a frame's arrays."""
        bound: Callable[[float], None] = self._each.bound(list(map(_datas, rows)), made)
        return bound

    def given(self, frame: DeviceFrame) -> Any:
        """The trees of a frame that has just been filled."""
        if frame.handout is None:
            values = list(map(Value, self._specs * self._count, frame.arrays))
            frame.handout = Handout(self._trees(values), values, frame.pointers, copied)
            frame.handout.settle()
        return frame.handout.give()

    def _trees(self, values: list[Value]) -> Trees:
        n = len(self._labels)
        return tuple([
            self._build(list(map(DLArray, values[k * n : (k + 1) * n], self._labels))) for k in range(self._count)
        ])  # fmt: skip


def _run(launch: Callable[[float], None], rate: float) -> None:
    """Launch, after all that was launched before."""
    gpu = backends.gpu()
    gpu.begin("solver")
    try:
        launch(rate)
    finally:
        gpu.end()


def _datas(row: list[Any]) -> list[Any]:
    return [x.data if type(x) is Value else x for x in row]


_steps: dict[Any, Step] = {}  # by what it is for, the latest last
_sets: dict[tuple[Any, ...], _Set] = {}  # by op and the ids of the trees
_lock = threading.Lock()


def met_before(op: Any, trees: Trees, options: Trees) -> _Set | None:
    """What is known of these arguments, if they were met before.

    trees : parameters, gradients and averages. options : numbers, that were checked when they were met.
    """
    found = _sets.get((op, *map(id, trees)))
    if found is None or found.options != options or open_tapes():
        return None
    return found


def again(found: _Set, trees: Trees, rate: float) -> Any:
    """The solver's results for these trees; None if some were changed, or all results of before are still in use."""
    handouts = all_intact(found.handouts)
    if handouts is None:
        return None
    step = found.step
    with step.lock:
        free = step.free_frame(handouts)
        if free is None:
            return None
        frame, made = free
        launch = found.launches.get(frame.number)
        if launch is None:
            parts = [known(tree) for tree in trees]
            if None in parts:
                return None
            columns: list[list[Any]] = [handout.values_of(child) for handout, child in parts]  # type: ignore[misc]
            rows = [[*row, rate, *found.constants] for row in zip(*columns)]
            launch = found.launches[frame.number] = step.launch(rows, made)
        _run(launch, rate)
        return step.given(frame)


def first(
    op: Any, trees: Trees, columns: Sequence[list[DLArray]], structure: Any, build: Callable[..., Any], rate: float,
    options: Trees, constants: Trees,
) -> Any:  # fmt: skip
    """The results for arguments that are not known yet, or None if they are not all on a GPU and alike.

    columns : the arrays of the trees. They are known from now on, if they are parts of handouts.
    structure, build : of the parameters, as a tree. constants : the operands of the op behind the rate.
    """
    specs = [x._value.spec for x in columns[0]]
    labels = [x._labels for x in columns[0]]
    is_right = (
        has_counts and specs and all(spec.device == "gpu" and spec.dtype.kind == "f" for spec in specs)
        and type(structure) is tuple and is_suitable(structure) and not open_tapes()
        and all([x._value.spec for x in column] == specs for column in columns)
        and all([x._labels for x in column] == labels for column in columns)
        and hasattr(backends.gpu(), "EachInPlace")
    )  # fmt: skip
    if not is_right:
        return None
    rows = [[*[x._value for x in row], rate, *constants] for row in zip(*columns)]
    step = _step(op, structure, rows, labels, build, constants)
    with step.lock:
        free = step.free_frame()
        if free is None:
            return None
        frame, made = free
        _run(step.launch(rows, made), rate)
        results = step.given(frame)
    _remember(op, trees, step, options, constants)
    return results


def _step(
    op: Any, structure: Any, rows: list[list[Any]], labels: list[str], build: Callable[..., Any], constants: Trees
) -> Step:
    leads = [row[0] for row in rows]
    places = tuple([(x.spec, x.data.strides) for x in leads])
    key = op.name, structure, places, tuple(labels), constants, type(leads[0].data)
    with _lock:
        step = _steps.pop(key, None)
        if step is None:
            late = len(rows[0]) - len(constants) - 1
            backends.gpu().releasing(release)
            step = Step(op, rows, labels, build, late)
        _steps[key] = step
        while len(_steps) > MOST_STEPS:
            gone = _steps.pop(next(iter(_steps)))
            for ids in [ids for ids, one in list(_sets.items()) if one.step is gone]:
                _sets.pop(ids, None)
    return step


def _remember(op: Any, trees: Trees, step: Step, options: Trees, constants: Trees) -> None:
    parts = [known(tree) for tree in trees]
    if not all(part is not None and part[0].is_intact() for part in parts):
        return
    key = (op, *map(id, trees))
    forget = functools.partial(_forget, _sets, key)
    handouts = list(dict.fromkeys([part[0] for part in parts if part is not None]))
    with _lock:
        while len(_sets) >= MOST_SETS:
            _sets.pop(next(iter(_sets)), None)
        _sets[key] = _Set(step, [weakref.ref(one, forget) for one in handouts], options, constants)


def _forget(sets: dict[Any, _Set], key: Any, gone: Any) -> None:  # when Python ends, modules have no names any more
    sets.pop(key, None)


def release() -> None:
    """Let go of all memory."""
    with _lock:
        _steps.clear()
        _sets.clear()
