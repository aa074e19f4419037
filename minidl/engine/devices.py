"""Graphs on a GPU: compiled as if everything lay in the host's memory, run where it lies, with copies at the door."""

from __future__ import annotations

import dataclasses
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.core.device import host
from minidl.core.errors import TraceWarning
from minidl.core.spec import Spec
from minidl.engine.branches import direct, levels, needs, streams_of
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import Access
from minidl.engine.passes import drop_unused
from minidl.engine.plan import Plan
from minidl.engine.program import MOST_FRAMES, Memory, Program, Run, count_references, has_counts

HERE = "cpu"  # what passes take every device for
MOST_EXECUTABLES = 4  # of a program; each belongs to one frame and to inputs at certain addresses
PATIENCE = 8  # so many more misses than hits, and inputs are copied instead of being read where they lie
PIECE_BYTES = 256  # results of a frame begin at multiples of this


# one device -------------------------------------------------------------------------------------------------------
def is_elsewhere(graph: Graph) -> bool:
    """Whether a graph has to do with another device than the host."""
    used = {y for node in graph.nodes for y in (*node.reads, *node.outputs)} | set(graph.outputs)
    return any(graph.specs[x].device != HERE for x in used)


def on_one_device(graph: Graph) -> Graph:
    """The graph without its moves between devices, as if there were one.

    What comes in from the host is copied there by the program, what goes out to it is copied out; what is computed on
    the host in between is computed with the rest.
    """
    graph = drop_unused(graph)
    names: dict[Id, Id] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        is_removed = is_move(graph, node)
        node = node.renamed(names)
        if is_removed:
            names[node.outputs[0]] = node.reads[0]
        else:
            kept.append(_here(node))
    one = graph.with_nodes(kept, outputs=[names.get(y, y) for y in graph.outputs])
    one.specs = [spec._replace(device=HERE) for spec in one.specs]
    one.constants = {x: host(data) for x, data in one.constants.items()}
    return one


def goes_to_and_fro(graph: Graph) -> bool:
    """Whether something is computed on the host, or moves in the middle."""
    given, read = {*graph.inputs, *graph.constants}, {x for node in graph.nodes for x in node.reads}
    for node in graph.nodes:
        if is_move(graph, node):
            if node.reads[0] not in given and node.outputs[0] in read:
                return True
        elif any(graph.specs[y].device == HERE for y in node.outputs):
            return True
    return False


def is_move(graph: Graph, node: Node) -> bool:
    """Whether a node makes its one operand anew on another device."""
    if len(node.inputs) != 1 or len(node.reads) != 1 or len(node.outputs) != 1:
        return False
    before, after = graph.specs[node.reads[0]], graph.specs[node.outputs[0]]
    return before.device != after.device and before._replace(device=after.device) == after


def _here(node: Node) -> Node:
    """The node, if it says where its result is to be, with the host for it."""
    if "device" not in node.params:
        return node
    return dataclasses.replace(node, params={**node.params, "device": HERE})


# programs ---------------------------------------------------------------------------------------------------------
class DeviceFrame:
    """A set of result arrays. They are handed out as they are; counting references tells whether anybody has them."""

    def __init__(self, memory: Memory, arrays: list[Any], keepers: list[Any]) -> None:
        self.memory = memory  # buffer -> all of its memory, flat
        self.arrays, self._keepers = arrays, keepers
        self._pointers = [x.data for x in arrays]  # some views share nothing else with their array
        self.settle()

    def settle(self) -> None:
        """From now on, whoever holds a result is somebody else."""
        self._counts = self._counted()

    def _counted(self) -> list[list[int]]:
        return [count_references(self.arrays), count_references(self._pointers), count_references(self._keepers)]

    def is_free(self) -> bool:
        """Whether nobody holds any of the arrays, or a view of one."""
        return self._counted() == self._counts


class Executable:
    """A program's launches, bound to a frame and to inputs where they lie. From the second run on they are one graph.

    slots : (number of an input, its place in the arena) for the inputs that are copied there before each run
    """

    def __init__(
        self, steps: list[Run], slots: list[tuple[int, Any]], capture: Callable[[list[Run]], Any] | None
    ) -> None:
        self.steps, self.slots, self._capture = steps, slots, capture
        self.graph: Any = None
        self._has_run = False

    def run(self) -> None:
        """Launch."""
        if self.graph is None and self._has_run and self._capture is not None:
            self.graph = self._capture(self.steps)
            if self.graph is None:
                self._capture = None
        if self.graph is not None:
            self.graph.launch()
            return
        for step in self.steps:
            step()
        self._has_run = True


class DeviceProgram(Program):
    """A program on a device: its arena lies there, results lie in frames, and its launches are captured as a graph.

    Inputs are read where they lie, so each combination of a frame and of inputs' addresses has an executable of its
    own; in a training loop that feeds results back there are two or three. Where addresses keep changing, inputs are
    copied into the arena, by one launch for all of them.
    """

    def __init__(self, graph: Graph, plan: Plan, backend: Any, is_at_host: Sequence[bool]) -> None:
        self._is_at_host = list(is_at_host)  # of each result, whether it goes to the host
        self._executables: dict[Any, Executable] = {}
        self._device_frames: list[DeviceFrame] = []
        self._bound_count = self._hits = 0
        self.failures = 0  # captures that failed
        super().__init__(graph, plan, backend)
        self._own_buffers = self._buffers_of_results()
        layout = plan.schedule.layout
        self._needed = direct(needs(plan.schedule.tasks, self._place))
        self._streams = streams_of(self._needed)
        self._is_capturable = all(
            backend.is_capturable(task.work.op) for task in plan.schedule.tasks if isinstance(task.work, Node)
        )
        self._in_arena = [
            None if layout.access[y].buffer in self._own_buffers else self._array(y, self._flat)
            for y in layout.graph.outputs
        ]

    # memory -----------------------------------------------------------------------------------------------------
    def _new_arena(self, nbytes: int) -> tuple[Any, int]:
        return self._backend.new_memory(nbytes), 0

    def _constant(self, data: np.ndarray) -> Any:
        return self._backend.as_array(data)

    def _placed(self, spec: Spec, access: Access, memory: Any) -> Any:
        return self._backend.placed(memory, spec.shape, access.offset, access.strides)

    def _all_bound(self) -> list[Run]:
        return []  # executables are bound at the first call that needs them

    def _owned(self) -> list[bool]:
        return [False] * len(self._is_at_host)

    def _buffers_of_results(self) -> list[Id]:
        """Buffers of results that are neither inputs nor constants: each frame has memory of its own for them."""
        layout = self.plan.schedule.layout
        fixed = {layout.access[x].buffer for x in layout.graph.inputs} | set(layout.memory)
        found = dict.fromkeys(layout.access[y].buffer for y in layout.graph.outputs)
        return [buffer for buffer in found if buffer not in fixed and has_counts]

    def _place(self, buffer: Id) -> tuple[Any, int, int]:
        """Where a buffer lies: the arena and from where to where, or memory of its own."""
        offset = self.plan.offsets.get(buffer)
        if offset is None or buffer in self._own_buffers:
            return buffer, 0, 1
        return None, offset, offset + max(self.plan.schedule.layout.nbytes(buffer), 1)

    def _new_device_frame(self) -> DeviceFrame:
        layout = self.plan.schedule.layout
        specs = layout.graph.specs
        sizes = [-(-max(specs[b].nbytes, 1) // PIECE_BYTES) * PIECE_BYTES for b in self._own_buffers]
        block = self._backend.new_memory(sum(sizes)) if sizes else None
        pieces = {b: self._backend.shared(block, sum(sizes[:k]), sizes[k]) for k, b in enumerate(self._own_buffers)}
        memory = {b: piece.array((specs[b].size,), specs[b].dtype) for b, piece in pieces.items()}
        arrays = []
        for y in layout.graph.outputs:
            access = layout.access[y]
            if access.buffer in pieces:
                spec = specs[y]
                arrays.append(pieces[access.buffer].array(spec.shape, spec.dtype, access.offset, access.strides))
        return DeviceFrame(memory, arrays, [piece.keeper for piece in pieces.values()])

    def _device_frame(self) -> DeviceFrame:
        """A frame that nobody looks at. The last one is never handed out: results are copied out of it."""
        frames = self._device_frames
        for frame in frames[:MOST_FRAMES]:
            if frame.is_free():
                return frame
        if len(frames) <= MOST_FRAMES:
            frames.append(self._new_device_frame())
        return frames[-1]

    @property
    def nbytes(self) -> int:
        """Memory held: arena, constants, frames."""
        specs = self.plan.schedule.layout.graph.specs
        frame_bytes = sum(specs[b].nbytes for b in self._own_buffers)
        constants = sum(data.nbytes for data in self.plan.schedule.layout.memory.values())
        return int(self._arena.nbytes) + constants + frame_bytes * len(self._device_frames)

    # inputs -----------------------------------------------------------------------------------------------------
    def _prepare_inputs(self) -> None:
        super()._prepare_inputs()
        layout = self.plan.schedule.layout
        self._targets = sorted([*self._small, *self._large], key=lambda pair: pair[0])
        self._known: dict[int, tuple[Any, int]] = {}  # id -> (the array, weakly; its address)
        self._expected = []
        handed_on = {layout.access[y].buffer for y in layout.graph.outputs}  # if an input, it is copied
        for k, _ in self._targets:
            spec, access = layout.graph.specs[layout.graph.inputs[k]], layout.access[layout.graph.inputs[k]]
            size = spec.dtype.itemsize
            is_whole = not access.offset and access.buffer == layout.graph.inputs[k] and access.buffer not in handed_on
            self._expected.append((spec.shape, tuple([n * size for n in access.strides]) if is_whole else None))

    def _addresses(self, arrays: Sequence[Any]) -> tuple[int, ...]:
        """Where each input lies; 0 for those that have to be copied."""
        known, found = self._known, []
        for (k, _), (shape, strides) in zip(self._targets, self._expected):
            x = arrays[k]
            entry = known.get(id(x))
            if entry is None or entry[0]() is not x:
                if len(known) > 1024:
                    known.clear()
                entry = known[id(x)] = weakref.ref(x), _address(x, shape, strides)
            found.append(entry[1])
        return tuple(found)

    # running ----------------------------------------------------------------------------------------------------
    def _run(self, arrays: Sequence[Any]) -> list[Any]:
        frame = self._device_frame()
        executable = self._executable(frame, arrays)
        if executable.slots:
            self._backend.copy_each([to for _, to in executable.slots], [arrays[k] for k, _ in executable.slots])
        executable.run()
        own = iter(frame.arrays)
        results = [next(own) if y is None else y for y in self._in_arena]
        is_last = frame in self._device_frames[MOST_FRAMES:]
        is_copied = [is_last or y is not None for y in self._in_arena]
        if any(is_copied):
            copied = iter(self._backend.copies([y for y, out in zip(results, is_copied) if out]))
            results = [next(copied) if out else y for y, out in zip(results, is_copied)]
        return [host(y) if at_host else y for y, at_host in zip(results, self._is_at_host)]

    def _executable(self, frame: DeviceFrame, arrays: Sequence[Any]) -> Executable:
        """That of a frame and of inputs at these addresses."""
        number = self._device_frames.index(frame)
        addresses = self._addresses(arrays)
        found = self._executables.get((number, addresses))
        if found is not None:
            self._hits += 1
            return found
        if self._bound_count - self._hits > PATIENCE:
            addresses = (0,) * len(addresses)
            found = self._executables.get((number, addresses))
            if found is not None:
                return found
        self._bound_count += 1
        while len(self._executables) >= MOST_EXECUTABLES:
            del self._executables[next(iter(self._executables))]
        found = self._executables[number, addresses] = self._newly_bound_to(frame, addresses)
        frame.settle()
        return found

    def _newly_bound_to(self, frame: DeviceFrame, addresses: tuple[int, ...]) -> Executable:
        layout = self.plan.schedule.layout
        flat = {**self._flat, **frame.memory}
        slots = []
        for (k, target), address in zip(self._targets, addresses):
            if address:
                spec = layout.graph.specs[layout.graph.inputs[k]]
                flat[layout.graph.inputs[k]] = self._backend.at(address, spec.size, spec.dtype)
            else:
                slots.append((k, target))
        self._first = {}
        steps = [self._bound(k, flat) for k in range(len(self.plan.schedule.tasks))]
        is_captured = self._is_capturable and self._backend.is_graph_wanted()
        return Executable(steps, slots, self._captured if is_captured else None)

    def _captured(self, steps: list[Run]) -> Any:
        """The launches of all steps as a graph; None, and once a warning, if they cannot be captured."""
        try:
            return self._backend.capture(steps, self._streams, self._needed)
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                warnings.warn(
                    "dlaccelerate: the launches of a trace could not be captured as a CUDA graph "
                    f"({type(error).__name__}: {error}); they are made one by one. A kernel of yours that allocates, "
                    "copies to the host or waits cannot be captured.",
                    TraceWarning,
                    stacklevel=2,
                )
            return None

    def __str__(self) -> str:
        captured = [x.graph for x in self._executables.values() if x.graph is not None]
        first, *rest = str(self.plan).splitlines()
        first += (
            f"; {len(self._own_buffers)} results in {len(self._device_frames)} frames; {len(self._executables)} "
            f"bindings, {len(captured)} of them captured as graphs, {self.failures} captures failed; at most "
            f"{1 + max(levels(self._needed), default=-1)} of {len(self._needed)} tasks have to wait for one another"
        )
        return "\n".join([str(self.graph), "", first, *rest])


def _address(x: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Where x lies, if it is on the device with these strides (but for dimensions of size 1); otherwise 0."""
    if isinstance(x, np.ndarray) or strides is None or not math.prod(shape):
        return 0
    is_planned = all(a == b or n == 1 for a, b, n in zip(x.strides, strides, shape))
    return int(x.data.ptr) if is_planned else 0


