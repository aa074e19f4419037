"""Graphs on a GPU: compiled as if everything lay in the host's memory, run where it lies, with copies at the door."""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.core.device import host
from minidl.core.errors import TraceWarning
from minidl.core.handout import Handout
from minidl.core.spec import Spec
from minidl.engine.branches import direct, levels, needs, streams_of
from minidl.engine.fused import Fused
from minidl.engine.graph import Graph, Id, Node
from minidl.engine.layout import Access
from minidl.engine.loops import Loop
from minidl.engine.passes import drop_unused
from minidl.engine.plan import Plan
from minidl.engine.program import MOST_FRAMES, Memory, Program, Run, count_references, has_counts

HERE = "cpu"  # what passes take every device for
MOST_EXECUTABLES = 16  # of a program; each belongs to one frame and to inputs at certain addresses
MOST_KNOWN = 64  # arrays of an input whose addresses are remembered
MOST_COPIES = 64  # launches of copies that are kept
MOST_PLACES = 5  # an input that was at more places, with less than so many hits in between, is copied
MOST_BOUND = 4  # executables of a frame for inputs that move and are large; then one of them is changed
REDIRECT_BYTES = 1 << 22  # an input that takes longer to copy than to change what reads it
WIDEST_BYTES = 16  # that a kernel reads at once; how it reads was chosen for addresses, up to multiples of this
STEADY = 32
PATIENCE = 16  # so many more misses than hits, and inputs are copied instead of being read where they lie
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
    """A set of result arrays. They are handed out as they are; counting references tells whether anybody has them.

    memory  : buffer -> all of its memory, flat, by its address alone.
    keeper  : what all arrays, and all views of them, hold on to.
    handout : what the user gets around the arrays, if that is kept to be given again.
    """

    def __init__(self, number: int, memory: Memory, arrays: list[Any], keeper: Any) -> None:
        self.number, self.memory, self.arrays, self._keepers = number, memory, arrays, [keeper]
        self.pointers = [x.data for x in arrays]  # some views share nothing else with their array
        self.handout: Handout | None = None

    def settle(self) -> None:
        """From now on, whoever holds a result is somebody else."""
        self._kept, self._counts = count_references(self._keepers), self._counted()

    def _counted(self) -> list[list[int]]:
        return [count_references(self.arrays), count_references(self.pointers)]

    def is_free(self) -> bool:
        """Whether nobody holds any of the arrays, or a view of one, or the handout around them."""
        if count_references(self._keepers) != self._kept:
            return False
        if self.handout is not None:
            if self.handout.is_free():
                return self.handout.let_go()
            if self.handout.is_intact():
                return False
            self.handout = None  # changed by somebody who had it; now the arrays alone count
        return self._counted() == self._counts


class Executable:
    """A program's launches, bound to a frame and to inputs where they lie. From the second run on they are one graph.

    slots : (number of an input, its place in the arena, for a single number what puts it there) for the inputs that
            are copied there before each run
    addresses : of the inputs that it was bound to
    """

    def __init__(
        self, steps: list[Run], slots: list[tuple[int, Any, Any]], addresses: tuple[int, ...],
        capture: Callable[[list[Run]], Any] | None,
    ) -> None:  # fmt: skip
        self.steps, self.slots, self._capture = steps, slots, capture
        self._addresses = addresses
        self.copied = frozenset([k for k, *_ in slots])
        self.graph: Any = None
        self._arguments: Any = None  # how its kernels can be changed
        self._has_run = False

    def run(self) -> None:
        """Launch."""
        if self._is_captured():
            self.graph.launch()
            return
        for step in self.steps:
            step()
        self._has_run = True

    def _is_captured(self) -> bool:
        """Whether there is a graph; one is made if launches have shown that they run."""
        if self.graph is None and self._has_run and self._capture is not None:
            self.graph = self._capture(self.steps)
            self._capture = None
        return self.graph is not None

    def can_redirect(self, arguments_of: Callable[[Any], Any]) -> bool:
        """Whether there is a graph that can be changed to read inputs elsewhere."""
        if self._arguments is None and self._is_captured():
            self._arguments = arguments_of(self.graph)
        return self._arguments is not None and bool(self._arguments.is_possible)

    def reads_as_well(self, j: int, address: int) -> bool:
        """Whether input j could lie there: at a multiple of all that the kernels were chosen for."""
        return _alignment(address) >= _alignment(self._addresses[j])

    def redirect(self, ranges: Sequence[tuple[int, int, int]]) -> bool:
        """Read inputs elsewhere from now on, (old address, bytes, new address) for each; False if that failed, and this
        is of no use any more."""
        return bool(self._arguments.redirect(ranges))


class DeviceProgram(Program):
    """A program on a device: its arena lies there, results lie in frames, and its launches are captured as a graph.

    Inputs are read where they lie, so each combination of a frame and of inputs' addresses has an executable of its
    own; in a training loop that feeds results back there are two or three. Where addresses keep changing, inputs are
    copied into the arena, by one launch for all of them; if they are large and the driver can be asked, the kernels
    that read them are changed instead, for addresses that are multiples of as much as those that they were chosen for.
    """

    def __init__(self, graph: Graph, plan: Plan, backend: Any, is_at_host: Sequence[bool]) -> None:
        self._is_at_host = list(is_at_host)  # of each result, whether it goes to the host
        self._executables: dict[Any, Executable] = {}
        self._device_frames: list[DeviceFrame] = []
        self._bound_count = self._hits = self._hits_before = 0
        self.redirect_count = 0  # how often a captured graph was changed
        self._copies: dict[Any, Callable[[], None]] = {}  # by targets, and where sources lie and how
        self.move = backend.Mover()  # for single numbers among the results that the user keeps
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
        starts = {b: sum(sizes[:k]) for k, b in enumerate(self._own_buffers)}
        block = self._backend.new_memory(max(sum(sizes), 1))
        whole = self._backend.shared(block, 0, sum(sizes))
        memory = {
            b: self._backend.at(int(block.data.ptr) + start, specs[b].size, specs[b].dtype)
            for b, start in starts.items()
        }
        arrays = []
        for y in layout.graph.outputs:
            access, spec = layout.access[y], specs[y]
            if access.buffer in starts:
                offset = starts[access.buffer] // spec.dtype.itemsize + access.offset
                arrays.append(whole.array(spec.shape, spec.dtype, offset, access.strides))
        return DeviceFrame(len(self._device_frames), memory, arrays, whole.keeper)

    def _device_frame(self) -> DeviceFrame:
        """A frame that nobody looks at. The last one is never handed out: results are copied out of it."""
        frame = self.free_frame()
        if frame is not None:
            return frame
        return self._one_more_frame() if len(self._device_frames) <= MOST_FRAMES else self._device_frames[-1]

    def free_frame(self, busy: Sequence[Any] = ()) -> DeviceFrame | None:
        """One that may be handed out, if there is one; `busy` are handouts that somebody is known to have."""
        frames = self._device_frames
        for frame in frames[:MOST_FRAMES]:
            handout = frame.handout
            if handout is not None and (handout in busy or (len(frames) == 1 and handout.has_kept())):
                continue  # to go on with two frames costs less than to move results out of one
            if frame.is_free():
                return frame
        return self._one_more_frame() if len(frames) < MOST_FRAMES else None

    def _one_more_frame(self) -> DeviceFrame:
        self._device_frames.append(self._new_device_frame())
        self._device_frames[-1].settle()  # now that nothing of its making is left
        return self._device_frames[-1]

    # for those who give the same results again ------------------------------------------------------------------
    @property
    def has_own_results(self) -> bool:
        """Whether all results lie in frames, and stay on the device."""
        return all(y is None for y in self._in_arena) and not any(self._is_at_host)

    @property
    def lock(self) -> threading.Lock:
        """Held while the program runs."""
        return self._lock

    @property
    def binding_count(self) -> int:
        """How many executables were made or changed; those found before may be gone after another one was."""
        return self._bound_count + self.redirect_count

    def count_hit(self) -> None:
        """An executable was used that is known from before."""
        self._hits += 1

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
        self.targets = sorted([*self._small, *self._large], key=lambda pair: pair[0])
        self._seen: list[set[int]] = [set() for _ in self.targets]  # where each of them was
        fixed = {
            buffer for task in self.plan.schedule.tasks
            if isinstance(task.work, Node) and not self._backend.is_movable(task.work.op) for buffer in task.reads
        }  # fmt: skip
        self._is_redirected = [
            target.nbytes >= REDIRECT_BYTES and self._backend.can_redirect()
            and layout.access[layout.graph.inputs[k]].buffer not in fixed
            for k, target in self.targets
        ]  # fmt: skip  # whether kernels are changed for it, rather than the input copied
        # of each input: id -> (the array, weakly; its address, which is 0 if it does not lie as this input is to)
        self._known: list[dict[int, tuple[Any, int]]] = [{} for _ in self.targets]
        self._expected = []
        handed_on = {layout.access[y].buffer for y in layout.graph.outputs}  # if an input, it is copied
        for k, _ in self.targets:
            spec, access = layout.graph.specs[layout.graph.inputs[k]], layout.access[layout.graph.inputs[k]]
            size = spec.dtype.itemsize
            is_whole = not access.offset and access.buffer == layout.graph.inputs[k] and access.buffer not in handed_on
            self._expected.append((spec.shape, tuple([n * size for n in access.strides]) if is_whole else None))

    def _addresses(self, arrays: Sequence[Any]) -> tuple[int, ...]:
        """Where each input lies; 0 for those that have to be copied."""
        return tuple([self.address(j, arrays[k]) for j, (k, _) in enumerate(self.targets)])

    def address(self, j: int, x: Any) -> int:
        """The same for one of the inputs that matter."""
        if type(x) is np.ndarray or (len(self._seen[j]) > MOST_PLACES and not self._is_redirected[j]):
            return 0
        known = self._known[j]
        entry = known.get(id(x))
        if entry is None or entry[0]() is not x:
            if len(known) >= MOST_KNOWN:
                known.clear()
            entry = known[id(x)] = weakref.ref(x), _address(x, *self._expected[j])
        return entry[1]

    # running ----------------------------------------------------------------------------------------------------
    def _run(self, arrays: Sequence[Any]) -> list[Any]:
        frame = self._device_frame()
        self.fill(self.executable(frame, arrays), arrays)
        own = iter(frame.arrays)
        results = [next(own) if y is None else y for y in self._in_arena]
        is_last = frame in self._device_frames[MOST_FRAMES:]
        is_copied = [is_last or y is not None for y in self._in_arena]
        if any(is_copied):
            copied = iter(self._backend.copies([y for y, out in zip(results, is_copied) if out]))
            results = [next(copied) if out else y for y, out in zip(results, is_copied)]
        return [host(y) if at_host else y for y, at_host in zip(results, self._is_at_host)]

    def fill(self, executable: Executable, arrays: Sequence[Any]) -> None:
        """Copy in what is to be copied, and run. Of the arrays those that are copied must be there."""
        self._backend.begin("dlaccelerate")
        try:
            self._fill(executable, arrays)
        finally:
            self._backend.end()

    def _fill(self, executable: Executable, arrays: Sequence[Any]) -> None:
        copied = []
        for k, target, put in executable.slots:
            if put is not None and type(arrays[k]) is np.ndarray:
                put(arrays[k].item())
            else:
                copied.append((target, arrays[k]))
        if copied:
            self._copy(*zip(*copied))
        executable.run()

    def _copy(self, targets: Sequence[Any], sources: Sequence[Any]) -> None:
        """Copies into the arena; those from where some were copied before are one launch, that is kept."""
        if any(type(x) is np.ndarray for x in sources):
            self._backend.copy_each(targets, sources)
            return
        key = *map(id, targets), *[x.data.ptr for x in sources], *[x.strides for x in sources]
        copies = self._copies.get(key)
        if copies is None:
            copies = self._backend.bind_copies(targets, sources)
            if copies is None:
                self._backend.copy_each(targets, sources)
                return
            if len(self._copies) >= MOST_COPIES:
                self._copies.clear()
            self._copies[key] = copies
        copies()

    def executable(self, frame: DeviceFrame, arrays: Sequence[Any]) -> Executable:
        """That of a frame and of inputs at these addresses."""
        number, addresses = frame.number, self._addresses(arrays)
        found = self._executables.get((number, addresses))
        if found is not None:
            self._hits += 1
            return found
        if self._hits - self._hits_before > STEADY:  # what moves now has not moved all the time
            self._seen = [seen if len(seen) > MOST_PLACES else set() for seen in self._seen]
        self._hits_before = self._hits
        for seen, address in zip(self._seen, addresses):
            seen.add(address)
        addresses = tuple([
            x if is_redirected or len(seen) <= MOST_PLACES else 0
            for seen, is_redirected, x in zip(self._seen, self._is_redirected, addresses)
        ])  # fmt: skip
        found = self._executables.get((number, addresses)) or self._redirected(number, addresses)
        if found is not None:
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
        return found

    def _redirected(self, number: int, addresses: tuple[int, ...]) -> Executable | None:
        """A captured executable of a frame, changed to read large inputs at these addresses; None if none can be."""
        mine = [key for key in self._executables if key[0] == number]
        if len(mine) < MOST_BOUND or not any(self._is_redirected):
            return None
        for key in mine:
            differing = [j for j, (old, new) in enumerate(zip(key[1], addresses)) if old != new]
            if not all(self._is_redirected[j] and key[1][j] and addresses[j] for j in differing):
                continue
            if any(self._overlaps(key[1], j) for j in differing):
                continue  # an address would not say which of them is meant
            executable = self._executables[key]
            if not all(executable.reads_as_well(j, addresses[j]) for j in differing):
                continue
            if not executable.can_redirect(self._backend.Arguments):
                self._is_redirected = [False] * len(self.targets)  # they are copied like others
                return None
            self.redirect_count += 1
            del self._executables[key]
            if executable.redirect([(key[1][j], self.targets[j][1].nbytes, addresses[j]) for j in differing]):
                self._executables[number, addresses] = executable
                return executable
        return None

    def _overlaps(self, addresses: tuple[int, ...], j: int) -> bool:
        """Whether input j shares memory with another one, for inputs at these addresses."""
        begin, end = addresses[j], addresses[j] + self.targets[j][1].nbytes
        return any(
            k != j and address and address < end and begin < address + self.targets[k][1].nbytes
            for k, address in enumerate(addresses)
        )

    def _newly_bound_to(self, frame: DeviceFrame, addresses: tuple[int, ...]) -> Executable:
        layout = self.plan.schedule.layout
        flat = {**self._flat, **frame.memory}
        slots = []
        for (k, target), address in zip(self.targets, addresses):
            if address:
                spec = layout.graph.specs[layout.graph.inputs[k]]
                flat[layout.graph.inputs[k]] = self._backend.at(address, spec.size, spec.dtype)
            else:
                slots.append((k, target, self._backend.putter(target) if target.size == 1 else None))
        count = len(self.plan.schedule.tasks)
        steps = self._backend.with_room(lambda: [self._bound(k, flat) for k in range(count)], "dlaccelerate", ())
        is_captured = self._is_capturable and self._backend.is_graph_wanted()
        captured = weakref.WeakMethod(self._captured)  # an executable does not hold its program: both are freed at once
        capture = (lambda steps: captured()(steps)) if is_captured else None  # type: ignore[misc]
        return Executable(steps, slots, addresses, capture)

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
            f"bindings, {len(captured)} of them captured as graphs, {self.redirect_count} changed for inputs "
            f"elsewhere, {self.failures} captures failed; at most "
            f"{1 + max(levels(self._needed), default=-1)} of {len(self._needed)} tasks have to wait for one another"
        )
        return "\n".join([str(self.graph), "", first, *rest, *self._phases()])

    def _phases(self) -> list[str]:
        """The tasks that can run at the same time, a line for each phase."""
        level, works = levels(self._needed), [task.work for task in self.plan.schedule.tasks]
        return [
            f"phase {n}: " + ", ".join(f"{k} {_name(work)}" for k, (m, work) in enumerate(zip(level, works)) if m == n)
            for n in range(1 + max(level, default=-1))
        ]


def _name(work: Any) -> str:
    """A task in a word or two."""
    if isinstance(work, Fused):
        more = [word for word, x in (("sums", work.sums), ("and what is small", work.behind)) if x]
        return " ".join([work.name, *(["with", *more] if work.sums else more)])
    if isinstance(work, Node):
        return work.op.name
    return "loop" if isinstance(work, Loop) else f"{len(work.loops)} loops"


def _alignment(address: int) -> int:
    """The largest power of 2, up to WIDEST_BYTES, that an address is a multiple of."""
    return (address | WIDEST_BYTES) & -(address | WIDEST_BYTES)


def _address(x: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Where x lies, if it is on the device with these strides (but for dimensions of size 1); otherwise 0."""
    if isinstance(x, np.ndarray) or strides is None or not math.prod(shape):
        return 0
    is_planned = all(a == b or n == 1 for a, b, n in zip(x.strides, strides, shape))
    return int(x.data.ptr) if is_planned else 0


