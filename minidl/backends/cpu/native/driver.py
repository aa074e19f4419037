"""The code of a segment: a function per task, per phase and per tail, and `run`, which threads call to take part.

`run(start, stop, table)` is a job for the pool of kernels/cpu/threads.py, one index per thread that takes part. The
table holds addresses (see the numbers below). A phase is cut into chunks; a thread claims a chunk by moving its counter
from the number of the run before to that of this one, takes those first that are its own by number, then what is left,
and waits until all are done. Whoever finishes the last chunk does the tail and opens the next phase. So nobody waits
for a thread that sleeps or is interrupted between two chunks: a run is complete when its chunks are, whoever did them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from minidl.backends.cpu.native.emitter import Function, Module
from minidl.backends.cpu.native.target import Target
from minidl.kernels.native import contract, nest
from minidl.kernels.native.tail import Tail

# what a table holds, each an int64
ARENA, SCRATCH, SCRATCH_BYTES, CONTROL, RUN, THREADS, YIELD = range(7)
FIRST_SLOT = 8  # addresses of buffers outside of the arena
LINE = 64  # bytes of a cache line: what threads write stands on one of its own
PAUSES = 4000  # turns of a wait before the processor is offered to others

ELEMENT = {"float32": "float", "float64": "double"}


@dataclasses.dataclass
class Places:
    """Where buffers lie: in the arena (byte offset), in a thread's scratch (byte offset, bytes per index of the range),
    or at an address in the table (number of the slot)."""

    arena: dict[Any, int]
    scratch: dict[Any, tuple[int, int]]
    slots: dict[Any, int]
    itemsize: dict[Any, int]
    row_bytes: dict[Any, int]  # of partial results: from one chunk to the next


class _Task(NamedTuple):
    """A task's function, and what it is called with: (buffer, whether it is a chunk's partial result)."""

    name: str
    buffers: list[tuple[Any, bool]]


class Writer:
    """Writes a segment's module."""

    def __init__(self, phases: list[Any], places: Places, target: Target) -> None:
        self.places, self.target = places, target
        self.module = Module(target)
        self._tasks: dict[str, str] = {}  # text of a task's function -> its name
        self.phases = [phase for phase in phases if phase.groups or phase.tail]
        self.counts = [sum(group.chunks for group in phase.groups) or 1 for phase in self.phases]
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + (count + 2) * LINE)
        self.control = starts[:-1]  # per phase: a line per chunk, chunks done, ready
        self.control_bytes = starts[-1]
        for p, phase in enumerate(self.phases):
            self._phase(p, phase)
        self._take_part()

    def text(self) -> str:
        """The module."""
        return self.module.text()

    # tasks ----------------------------------------------------------------------------------------------------------
    def _item(self, item: Any, group: Any) -> _Task:
        """The function for the tile [lo, hi) of a chunk that begins at `first`; without a group for everything.

        Where its buffers lie is told when it is called: so layers that are alike share their code.
        """
        f = self.module.function("task", ["i64 %lo", "i64 %hi", "i64 %first"])
        address = _Buffers(item)
        self._write(f, item, group, address)
        f.params += [f"ptr %b{k}" for k in range(len(address.keys))]
        text = f.finished()
        if text in self._tasks:
            self.module.functions.remove(f)
        else:
            f.name = self._tasks[text] = f"task{len(self._tasks)}"
        return _Task(self._tasks[text], address.keys)

    def _write(self, f: Function, item: Any, group: Any, address: _Buffers) -> None:
        work = item.work
        if hasattr(work, "parts"):
            for part in work.parts:
                self._contract(f, item, group, part, address)
        elif item.range is None:
            loop = work if work.sizes else dataclasses.replace(work, sizes=(1,), steps=_one(work.steps),
                                                               stores=_one(work.stores))  # fmt: skip
            nest.write(f, loop, 0, loop.sizes[0], address)
        else:
            nest.write(f, work, "%lo", "%hi", address, "%first", item.range)

    def _contract(self, f: Function, item: Any, group: Any, part: Any, address: _Buffers) -> None:
        work, i = item.work, item.range
        element = ELEMENT[work.dtype]
        size = contract.ELEMENTS[element]
        dims = [contract.Dim(*d) for d in part.dims]
        a, b = address(work.a, False), address(work.b, False)
        pointers = [a if item.tail is not None else address(work.y, True), a, b]  # a tail stores for itself
        operands = [contract.Operand(p, offset) for p, offset in zip(pointers, part.offsets)]
        if i is None:
            contract.contract(f, element, dims, *operands)
            return
        moving, lanes = dims[i], f.lanes(size)
        keeps = None if moving.y else f.op("icmp ne i64 %lo, %first")
        names = item.names if item.tail is not None else [None] * len(dims)

        def written(dims: list[contract.Dim], names: list[Any], index: Any, keeps: str | None) -> None:
            steps = (moving.y if item.tail is None else 0, moving.a, moving.b)
            moved = [f.at(x.pointer, f.mul(index, n * size)) for x, n in zip(operands, steps)]
            here = [contract.Operand(pointer, x.offset) for pointer, x in zip(moved, operands)]
            done = None
            if item.tail is not None:
                begins = f.op(f"icmp eq i64 {index}, %first")
                done = Tail(f, item.tail, item.source, address, lanes, {0: index}, begins)
            contract.contract(f, element, dims, *here, keeps=keeps, tail=done, names=names)

        if not _is_tiled(work, i, group):
            others = [d for n, d in enumerate(dims) if n != i]
            with f.loop("%lo", "%hi") as index:
                keeps = None if moving.y else f.op(f"icmp ne i64 {index}, %first")
                written(others, [d for n, d in enumerate(names) if n != i], index, keeps)
            return
        whole, *rest = _tiled(part, i, group)
        names = [names[i], *(d for n, d in enumerate(names) if n != i)]
        if not rest:
            written(whole, names, "%lo", keeps)
            return
        with f.choice(f.op(f"icmp eq i64 {f.sub('%hi', '%lo')}, {group.tile}")) as otherwise:
            written(whole, names, "%lo", keeps)
            otherwise()
            written(rest[0], names, "%lo", keeps)

    # phases ---------------------------------------------------------------------------------------------------------
    def _phase(self, p: int, phase: Any) -> None:
        f = self.module.function(f"p{p}", ["ptr %T", "ptr %S", "i64 %c"])
        before = 0
        for group in phase.groups:
            tasks = [self._item(item, group) for item in group.items]
            here = f.sub("%c", before)
            is_here = f.op(f"icmp ult i64 {here}, {group.chunks}")
            with f.when(is_here):
                tiles = -(-group.size // group.tile)
                first = f.mul(f.div(f.mul(here, tiles), group.chunks), group.tile)
                stop = f.mul(f.div(f.mul(f.add(here, 1), tiles), group.chunks), group.tile)
                stop = f.smaller(stop, group.size)
                with f.loop(first, stop, group.tile) as lo:
                    hi = f.smaller(f.add(lo, group.tile), stop)
                    for task in tasks:
                        self._do(f, task, lo, hi, first, here)
            before += group.chunks
        f = self.module.function(f"p{p}tail", ["ptr %T", "ptr %S"])
        for item in phase.tail:
            self._do(f, self._item(item, None), 0, 0, 0, 0)

    def _do(self, f: Function, task: _Task, lo: Any, hi: Any, first: Any, chunk: Any) -> None:
        """Call a task for a tile."""
        pointers = [self._pointer(f, buffer, is_partial, lo, chunk) for buffer, is_partial in task.buffers]
        _call(f, task.name, f"i64 {lo}", f"i64 {hi}", f"i64 {first}", *[f"ptr {pointer}" for pointer in pointers])

    def _pointer(self, f: Function, buffer: Any, is_partial: bool, lo: Any, chunk: Any) -> str:
        """Where a buffer's element 0 lies, or would lie: scratch holds the indices of a tile alone."""
        places = self.places
        if buffer in places.scratch:
            offset, per_index = places.scratch[buffer]
            return f.at("%S", f.sub(offset, f.mul(lo, per_index)))
        if buffer in places.slots:
            return f.op(f"inttoptr i64 {_word(f, FIRST_SLOT + places.slots[buffer])} to ptr")
        pointer = f.at(f.op(f"inttoptr i64 {_word(f, ARENA)} to ptr"), places.arena[buffer])
        return f.at(pointer, f.mul(chunk, places.row_bytes[buffer])) if is_partial else pointer

    # threads --------------------------------------------------------------------------------------------------------
    def _take_part(self) -> None:
        f = self.module.function("take_part", ["ptr %T", "i64 %who"])
        scratch = f.op(f"inttoptr i64 {_word(f, SCRATCH)} to ptr")
        scratch = f.at(scratch, f.mul("%who", _word(f, SCRATCH_BYTES)))
        run, threads = _word(f, RUN), _word(f, THREADS)
        control = f.op(f"inttoptr i64 {_word(f, CONTROL)} to ptr")
        before = f.sub(run, 1)
        for p, count in enumerate(self.counts):
            base = f.at(control, self.control[p])
            mine = f.var("i64", "0")
            first = 0
            for chunks in [group.chunks for group in self.phases[p].groups] or [1]:
                start = f.op(f"udiv i64 {f.mul('%who', chunks)}, {threads}")
                with f.loop(0, chunks) as k:
                    chunk = f.add(f.mod(f.add(start, k), chunks), first)
                    claim = f.at(base, f.mul(chunk, LINE))
                    now = f.op(f"load atomic i64, ptr {claim} monotonic, align 8")
                    with f.when(f.op(f"icmp eq i64 {now}, {before}")):
                        pair = f.op(f"cmpxchg ptr {claim}, i64 {before}, i64 {run} acq_rel monotonic, align 8")
                        with f.when(f.op(f"extractvalue {{ i64, i1 }} {pair}, 1")):
                            _call(f, f"p{p}", "ptr %T", f"ptr {scratch}", f"i64 {chunk}")
                            f.put("i64", mine, f.add(f.get("i64", mine), 1))
                first += chunks
            done, ready = f.at(base, count * LINE), f.at(base, (count + 1) * LINE)
            made = f.get("i64", mine)
            with f.when(f.op(f"icmp ne i64 {made}, 0")):
                old = f.op(f"atomicrmw add ptr {done}, i64 {made} acq_rel")
                with f.when(f.op(f"icmp eq i64 {f.add(old, made)}, {f.mul(run, count)}")):
                    _call(f, f"p{p}tail", "ptr %T", f"ptr {scratch}")
                    f.do(f"store atomic i64 {run}, ptr {ready} release, align 8")
            self._wait(f, ready, run)
        f = self.module.function("run", ["i64 %start", "i64 %stop", "ptr %T"])
        with f.loop("%start", "%stop") as who:
            _call(f, "take_part", "ptr %T", f"i64 {who}")

    def _wait(self, f: Function, word: str, value: str) -> None:
        """Until the word has reached the value."""
        look, wait, rest, give, after = (f.name_of(prefix) for prefix in ("look", "wait", "rest", "give", "after"))
        turns = f.var("i64", "0")
        f.do(f"br label %{look}")
        f.label(look)
        now = f.op(f"load atomic i64, ptr {word} acquire, align 8")
        f.do(f"br i1 {f.op(f'icmp sge i64 {now}, {value}')}, label %{after}, label %{wait}")
        f.label(wait)
        count = f.add(f.get("i64", turns), 1)
        f.put("i64", turns, count)
        f.do(f"br i1 {f.op(f'icmp slt i64 {count}, {PAUSES}')}, label %{rest}, label %{give}")
        f.label(rest)
        self._pause(f)
        f.do(f"br label %{look}")
        f.label(give)
        function = _word(f, YIELD)
        with f.when(f.op(f"icmp ne i64 {function}, 0")):
            pointer = f.op(f"inttoptr i64 {function} to ptr")
            f.op(f"call i32 {pointer}()")
        f.do(f"br label %{look}")
        f.label(after)

    def _pause(self, f: Function) -> None:
        """Tell the processor that this is a waiting loop."""
        if self.target.is_x86:
            f.call("llvm.x86.sse2.pause", "void", types="")
        elif self.target.triple.startswith(("aarch64", "arm64")):
            f.call("llvm.aarch64.hint", "void", "i32 1", types="i32")


def _is_tiled(work: Any, i: int, group: Any) -> bool:
    """Whether a contraction takes all indices of a tile at once."""
    return bool(group.tile > 1 and (work.needs_rows(i) or work.is_row(i)))


def _tiled(part: Any, i: int, group: Any) -> list[list[contract.Dim]]:
    """The dimensions for a whole tile, and for the last one if it is smaller; the range first."""
    dims = [contract.Dim(*d) for d in part.dims]
    others = [d for n, d in enumerate(dims) if n != i]
    rest = group.size % group.tile
    return [[dims[i]._replace(size=size), *others] for size in ([group.tile, rest] if rest else [group.tile])]


def variants(work: Any, i: int, group: Any) -> list[list[contract.Dim]]:
    """The dimensions of all nests that are written for a contraction with one part."""
    (part,) = work.parts
    if _is_tiled(work, i, group):
        return _tiled(part, i, group)
    return [[contract.Dim(*d) for n, d in enumerate(part.dims) if n != i]]


class _Buffers:
    """The buffers of a task as parameters of its function, in the order in which they are asked for."""

    def __init__(self, item: Any) -> None:
        self._item = item
        self.keys: list[tuple[Any, bool]] = []  # (buffer, whether it is a chunk's partial result)

    def __call__(self, buffer: Any, is_stored: bool) -> str:
        buffer = self._item.partial.get(buffer, buffer) if is_stored else buffer
        key = buffer, is_stored and buffer in self._item.partial.values()
        if key not in self.keys:
            self.keys.append(key)
        return f"%b{self.keys.index(key)}"


def _word(f: Function, number: int) -> str:
    return f.load("i64", f.at("%T", number * 8))


def _call(f: Function, name: str, *args: str) -> None:
    f.do(f"call void @{name}({', '.join(args)})")


def _one(steps: Any) -> list[Any]:
    """Steps or stores of a loop without dimensions as those of a loop with one turn."""
    return [
        s if s.access is None else dataclasses.replace(s, access=dataclasses.replace(s.access, strides=(0,)))
        for s in steps
    ]  # fmt: skip
