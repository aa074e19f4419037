"""Program: a plan bound to memory. Running it runs no Python of the user's, allocates nothing but its results."""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.backends.loop import Access
from minidl.core.apply import compute
from minidl.core.device import copied
from minidl.core.spec import Spec, Value
from minidl.core.tape import alone
from minidl.engine.blocks import Block
from minidl.engine.branches import Side
from minidl.engine.contract import Contract
from minidl.engine.fuse import Task
from minidl.engine.fused import Fused
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import memory_order
from minidl.engine.loops import Loop
from minidl.engine.plan import ALIGNMENT_BYTES, PhasedPlan, Plan

Run = Callable[[], Any]
Memory = dict[Id, np.ndarray]

SMALL_BYTES = 4096  # results up to this size are copied out: that costs less than to keep track of them
LARGE_BYTES = 1 << 16  # arguments from this size on are not copied in again if they are the same as before
MOST_FRAMES = 3  # a loop holds the results of one call while it makes the next
has_counts = getattr(sys, "_is_gil_enabled", lambda: True)()  # without the lock reference counts are estimates


def count_references(objects: Sequence[Any]) -> list[int]:
    return list(map(sys.getrefcount, objects))  # no name, no stack of the interpreter holds one of them meanwhile


_UNUSED = count_references([object()])  # the count of what nobody holds but the list


class Frame:
    """A set of output arrays and the steps that fill it. Results handed out are views of these arrays.

    Each array lies directly over memory that is no NumPy array: so every view of it, however made, holds on to it, and
    its reference count tells whether anybody can still see it. The view that is handed out is a new one in each call:
    whoever knows an array again (by `is`, or through a weak reference) knows its numbers, and one that its owner has
    reshaped or made read-only is not met again.
    """

    def __init__(self, steps: list[Run], outputs: list[np.ndarray], is_own: list[bool]) -> None:
        self.steps = steps
        self._own = [y for y, own in zip(outputs, is_own) if own]  # the only place that holds them
        self._copied: list[tuple[Any, int]] = []  # (the array to copy, _), or (None, the number of one of its own)
        count = 0
        for y, own in zip(outputs, is_own):
            self._copied.append((None, count) if own else (y, 0))
            count += own

    def is_free(self) -> bool:
        """Whether nobody holds any of the arrays."""
        return count_references(self._own) == _UNUSED * len(self._own)

    def results(self) -> list[np.ndarray]:
        """The outputs: views of its own, copies of those that lie in the arena."""
        own = self._own
        return [own[k].view() if y is None else y.copy("K") for y, k in self._copied]


class Program:
    """Ready to replay: `run(arrays)` copies the inputs in, runs the bound steps and hands the results out.

    Large results are not copied: they lie in a frame, and the next run takes another one as long as anybody can see
    them. Up to MOST_FRAMES are made; if all are in use, results are copied out of the arena (frame 0).
    The steps share one arena, so one run at a time: a second thread waits.
    """

    def __init__(self, graph: Graph, plan: Plan, backend: Any) -> None:
        self.graph, self.plan, self._backend = graph, plan, backend
        layout = plan.schedule.layout
        specs = layout.graph.specs
        self._arena, self._base = self._new_arena(plan.arena_bytes)
        self._flat: Memory = {x: self._constant(data) for x, data in layout.memory.items()}
        for buffer, offset in plan.offsets.items():
            start = self._base + offset
            self._flat[buffer] = self._arena[start : start + layout.nbytes(buffer)].view(specs[buffer].dtype)
        self._lock = threading.Lock()
        _programs.add(self)
        tasks = plan.schedule.tasks
        self._is_silent = all(isinstance(task.work, Loop) for task in tasks)  # kernels may add up by NumPy
        outputs = [self._array(y, self._flat) for y in layout.graph.outputs]
        self._first: dict[int, Run] = {}  # task -> its first binding
        self.frames = [Frame(self._all_bound(), outputs, [False] * len(outputs))]
        self._own = self._owned()
        self._prepare_inputs()

    def _new_arena(self, nbytes: int) -> tuple[Any, int]:
        """(memory as bytes, where in it the arena begins)."""
        arena = np.zeros(nbytes + ALIGNMENT_BYTES, np.uint8)  # zeros around values stay zeros
        return arena, -arena.ctypes.data % ALIGNMENT_BYTES

    def _constant(self, data: np.ndarray) -> Any:
        """The flat memory of a constant."""
        return data

    def _placed(self, spec: Spec, access: Access, memory: Any) -> Any:
        """The array of that spec within flat memory."""
        return _placed(spec, access, memory)

    def _array(self, x: Id, flat: Memory) -> np.ndarray:
        layout = self.plan.schedule.layout
        return self._placed(layout.graph.specs[x], layout.access[x], flat[layout.access[x].buffer])

    def _all_bound(self) -> list[Run]:
        """All steps of a run, bound to the arena."""
        return [self._bound(k, self._flat) for k in range(len(self.plan.schedule.tasks))]

    def _rebound(self, flat: Memory, moved: set[Id]) -> list[Run]:
        """The steps, those that touch a moved buffer bound to its new memory."""
        steps = list(self.frames[0].steps)
        for k, task in enumerate(self.plan.schedule.tasks):
            if moved & {*task.reads, *task.writes}:
                steps[k] = self._bound(k, flat)
        return steps

    def _bound(self, k: int, flat: Memory) -> Run:
        """Task k, bound to memory. Bound a second time it keeps its scratch."""
        work = self.plan.schedule.tasks[k].work
        assert not isinstance(work, Contract)
        run = self._newly_bound(work, flat, self._first.get(k))
        self._first.setdefault(k, run)
        return run

    def _newly_bound(self, work: Any, flat: Memory, before: Run | None) -> Run:
        if isinstance(work, Block):
            return self._backend.bind_block(work.loops, flat.__getitem__)
        if isinstance(work, Side):
            return self._backend.bind_side_by_side(work.loops, flat.__getitem__)
        if isinstance(work, Fused):
            return self._backend.bind_fused(work, flat.__getitem__, before)
        if isinstance(work, Loop):
            bind = getattr(before, "rebind", None) or functools.partial(self._backend.bind_loop, work)
            return bind(flat.__getitem__)
        made = [self._array(y, flat) for y in work.outputs]
        read = [self._array(x, flat) if isinstance(x, Id) else x for x in work.inputs]
        if isinstance(before, functools.partial):
            return functools.partial(before.func, *made, *read, **before.keywords)
        return self._backend.bind_kernel(work.op, made, read, work.params)

    # inputs -----------------------------------------------------------------------------------------------------
    def _prepare_inputs(self) -> None:
        """Find out which inputs matter, and which are large enough to remember them."""
        layout = self.plan.schedule.layout
        needed = {buffer for task in self.plan.schedule.tasks for buffer in task.reads}
        needed |= {layout.access[y].buffer for y in layout.graph.outputs}
        self._small: list[tuple[int, np.ndarray]] = []
        self._large: list[tuple[int, np.ndarray]] = []
        for k, x in enumerate(layout.graph.inputs):
            if layout.access[x].buffer in needed and x in self._flat:
                target = self._array(x, self._flat)
                (self._large if target.nbytes >= LARGE_BYTES else self._small).append((k, target))
        self._last: dict[int, Any] = {}  # large inputs of the run before: arrays of values never change

    def _copy_in(self, arrays: Sequence[np.ndarray]) -> None:
        for k, target in self._small:
            target[...] = arrays[k]
        for k, target in self._large:
            before = self._last.pop(k, None)
            if before is None or before() is not arrays[k]:
                target[...] = arrays[k]
                before = weakref.ref(arrays[k])
            self._last[k] = before

    # outputs ----------------------------------------------------------------------------------------------------
    def _owned(self) -> list[bool]:
        """Which outputs may have memory of their own: large ones that are dense and no part of an input or constant."""
        layout = self.plan.schedule.layout
        graph = layout.graph
        fixed = {layout.access[x].buffer for x in graph.inputs} | set(layout.memory)

        def is_own(y: Id) -> bool:
            spec, access = graph.specs[y], layout.access[y]
            order = memory_order(spec.shape, access.strides)
            array = self._array(y, self._flat).transpose(order)
            is_large = layout.nbytes(access.buffer) == spec.nbytes > SMALL_BYTES
            return has_counts and is_large and access.buffer not in fixed and array.flags.c_contiguous

        return [is_own(y) for y in graph.outputs]

    def _frame(self) -> Frame:
        """A frame that nobody looks at."""
        if not any(self._own):
            return self.frames[0]
        for frame in self.frames[1:]:
            if frame.is_free():
                return frame
        if len(self.frames) > MOST_FRAMES:
            return self.frames[0]
        self.frames.append(self._new_frame())
        return self.frames[-1]

    def _new_frame(self) -> Frame:
        layout = self.plan.schedule.layout
        graph, flat, raw = layout.graph, dict(self._flat), {}
        for y, own in zip(graph.outputs, self._own):
            buffer = layout.access[y].buffer
            if own and buffer not in raw:
                spec = graph.specs[buffer]
                raw[buffer] = _aligned(spec.nbytes)
                flat[buffer] = np.frombuffer(raw[buffer], spec.dtype)
        steps = self._rebound(flat, set(raw))
        outputs = []
        for y, own in zip(graph.outputs, self._own):
            access = layout.access[y]
            memory = raw[access.buffer] if own else flat[access.buffer]
            outputs.append(_placed(graph.specs[y], access, memory))
        return Frame(steps, outputs, self._own)

    # running ----------------------------------------------------------------------------------------------------
    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results for these inputs, that no later run changes."""
        with self._lock:
            if self._is_silent:
                return self._run(arrays)
            with np.errstate(all="ignore"):  # inf and nan are results too
                return self._run(arrays)

    def _run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        frame = self._frame()
        self._copy_in(arrays)
        for step in frame.steps:
            step()
        return frame.results()

    def renew(self) -> None:
        """Make ready to run in a forked child, whatever another thread of the parent was doing."""
        self._lock = threading.Lock()
        self._last = {}

    @property
    def nbytes(self) -> int:
        """Memory held: arena, constants, frames."""
        layout = self.plan.schedule.layout
        outputs = {layout.access[y].buffer for y, own in zip(layout.graph.outputs, self._own) if own}
        frame_bytes = sum(layout.graph.specs[buffer].nbytes for buffer in outputs)
        constants = sum(data.nbytes for data in layout.memory.values())
        return self._arena.nbytes + constants + frame_bytes * (len(self.frames) - 1)

    def __str__(self) -> str:
        first, *rest = str(self.plan).splitlines()
        first += f"; {sum(self._own)} of {len(self._own)} results in memory of their own, {len(self.frames) - 1} sets"
        return "\n".join([str(self.graph), "", first, *rest])


_programs: weakref.WeakSet[Program] = weakref.WeakSet()


def _renew_all() -> None:
    for program in list(_programs):
        program.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


class NativeProgram(Program):
    """A program whose tasks run in phases, as native code; what only Python can run stands between."""

    plan: PhasedPlan

    def _all_bound(self) -> list[Run]:
        self._segments = [
            segment if isinstance(segment, Task) else self._backend.native_segment(segment, self.plan)
            for segment in self.plan.segments
        ]
        self._is_silent = not any(isinstance(segment, Task) for segment in self._segments)
        return self._native_steps(self._flat)

    def renew(self) -> None:
        super().renew()
        for segment in self._segments:
            if not isinstance(segment, Task):
                segment.renew()

    def _native_steps(self, flat: Memory) -> list[Run]:
        steps = []
        arena = self._arena.ctypes.data + self._base
        numbers = {id(task): k for k, task in enumerate(self.plan.schedule.tasks)}
        for segment in self._segments:
            if isinstance(segment, Task):
                steps.append(self._bound(numbers[id(segment)], flat))
            else:
                steps.append(segment.bind(flat.get, arena))
        return steps

    # inputs that are read where the caller has them
    def _prepare_inputs(self) -> None:
        super()._prepare_inputs()
        self._known: dict[int, tuple[Any, int]] = {}
        layout = self.plan.schedule.layout
        self._bound_inputs: list[tuple[int, Id, tuple[int, ...], tuple[int, ...]]] = []  # shape, strides
        for k, x in enumerate(layout.graph.inputs):
            if x in self.plan.bound:
                size = layout.graph.specs[x].dtype.itemsize
                strides = tuple([n * size for n in layout.access[x].strides])
                self._bound_inputs.append((k, x, layout.graph.specs[x].shape, strides))

    def _run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        frame = self._frame()
        self._copy_in(arrays)
        held = self._bind_inputs(frame, arrays)
        for step in frame.steps:
            step()
        del held
        return frame.results()

    def _address(self, array: np.ndarray) -> int:
        """Where an array lies. That of one which is all of another array is remembered: results of frames are."""
        base = array.base
        if type(base) is not np.ndarray or base.nbytes != array.nbytes:
            return int(array.__array_interface__["data"][0])
        known = self._known.get(id(base))
        if known is None or known[0]() is not base:
            if len(self._known) > 256:
                self._known.clear()
            known = self._known[id(base)] = weakref.ref(base), int(array.__array_interface__["data"][0])
        return known[1]

    def _bind_inputs(self, frame: Frame, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Put the addresses of arguments into the tables of the segments; what lies otherwise is copied first."""
        held, found = [], []
        for k, x, shape, strides in self._bound_inputs:
            array = arrays[k]
            if array.shape != shape:
                raise ValueError(f"could not broadcast input array from shape {array.shape} into shape {shape}")
            if not array.flags.aligned or (array.strides != strides and not _lies_so(array, strides)):
                array = _laid_out(array, strides)
                held.append(array)
            found.append((x, self._address(array)))
        for step in frame.steps:
            slots = getattr(step, "slots", None)
            if slots:
                table = step.table  # type: ignore[attr-defined]
                for x, address in found:
                    if x in slots:
                        table[slots[x]] = address
        return held

    def _rebound(self, flat: Memory, moved: set[Id]) -> list[Run]:
        return self._native_steps(flat)


def _aligned(nbytes: int) -> memoryview:
    """Memory that is no NumPy array, on the border of a cache line."""
    raw = bytearray(nbytes + ALIGNMENT_BYTES)
    start = -np.frombuffer(raw, np.uint8).ctypes.data % ALIGNMENT_BYTES
    return memoryview(raw)[start : start + nbytes]


def _lies_so(array: np.ndarray, strides: tuple[int, ...]) -> bool:
    """Whether an array has these strides, but for dimensions of size 1."""
    return all(a == b or n == 1 for a, b, n in zip(array.strides, strides, array.shape))


def _laid_out(array: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """A copy with these strides, those of an array without gaps."""
    order = memory_order(array.shape, strides)
    copy = np.ascontiguousarray(array.transpose(order))
    return copy.transpose(np.argsort(order))


def _placed(spec: Spec, access: Access, memory: Any) -> np.ndarray:
    """The array of that spec within flat memory."""
    size = spec.dtype.itemsize
    return np.ndarray(spec.shape, spec.dtype, memory, access.offset * size, tuple(n * size for n in access.strides))


def _holders(value: Value) -> list[int]:
    """How many hold the array of a value, and how many the array of which it is a view."""
    return count_references((value.data, value.data.base))


_ALONE = _holders(Value(Spec((1,)), np.empty(1)[:]))  # the value holds a view, the view its array, nobody else any


def _for_good(value: Value, is_once: bool) -> np.ndarray:
    """The array of a value that will be dropped: itself if nobody else can see its memory, otherwise a copy."""
    if not isinstance(value.data, np.ndarray):
        return copied(value.data)
    own, below = _holders(value)
    data = value.data
    if not (is_once and has_counts and own == _ALONE[0] and data.nbytes > SMALL_BYTES and data.flags.writeable):
        return data.copy("K")
    whole, order = data.base, memory_order(data.shape, data.strides)
    is_whole = type(whole) is np.ndarray and whole.flags.owndata and whole.nbytes == data.nbytes and below == _ALONE[1]
    is_dense = data.transpose(order).flags.c_contiguous
    return data if is_dense and (is_whole or data.flags.owndata) else data.copy("K")


class ExactProgram:
    """The recorded calls once more: same kernels, same order, same bits. Only Python's part is left out."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        kept = set(graph.outputs)
        last_reader = {x: i for i, node in enumerate(graph.nodes) for x in node.reads if x not in kept}
        self._is_once = [graph.outputs.count(y) == 1 for y in graph.outputs]
        self._done: list[list[Id]] = [[] for _ in graph.nodes]  # what no later node reads
        for x, i in last_reader.items():
            self._done[i].append(x)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results for these inputs, as arrays of their own."""
        graph = self.graph
        known = {**dict(zip(graph.inputs, arrays)), **graph.constants}
        values = {x: Value(graph.specs[x], data) for x, data in known.items()}
        with alone():
            for node, done in zip(graph.nodes, self._done):
                values.update(zip(node.outputs, self._made(node, values)))
                for x in done:
                    del values[x]
        return [_for_good(values[y], once) for y, once in zip(graph.outputs, self._is_once)]

    @staticmethod
    def _made(node: Node, values: dict[Id, Value]) -> tuple[Value, ...]:
        read = tuple([values[x] if isinstance(x, Id) else x for x in node.inputs])  # gone when the node is done
        return compute(node.op, read, node.params)

    @property
    def nbytes(self) -> int:
        """Memory held: the constants."""
        return sum(data.nbytes for data in self.graph.constants.values())

    def __str__(self) -> str:
        return str(self.graph)
