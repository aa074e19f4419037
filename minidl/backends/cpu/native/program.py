"""A segment bound to memory: compiled code, its table of addresses, scratch of each thread, the call that runs it."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.backends.cpu.native import driver
from minidl.backends.cpu.native.compiler import compiled
from minidl.backends.cpu.native.driver import Places, Writer
from minidl.backends.cpu.native.governor import Governor
from minidl.backends.cpu.native.target import host
from minidl.kernels.native import contract, nest

ALIGNMENT_BYTES = 64
ALONE_WORK = 16384  # elements; less is done by the calling thread alone


def is_native(work: Any) -> bool:
    """Whether a task of a schedule can be written as native code."""
    if hasattr(work, "parts"):
        return True
    return hasattr(work, "steps") and nest.is_supported(work)


def packing(dims: Any, dtype: Any) -> tuple[int, int] | None:
    """What the layout must do for a contraction with these strides: see `engine.layout.choose_layout`."""
    if any(size == 0 for size, *_ in dims):
        return None
    known = [contract.Dim(*d) for d in dims]
    if contract.form_of(known, host().lanes(dtype.itemsize)) is not None:
        return None
    found = contract.packed_dim(known)
    if found is not None:
        return found[0], 0 if found[1] else 1
    return next(((i, -1) for i, d in enumerate(known) if d.y == 1 and d.size > 1), None)


def segment(phases: list[Any], plan: Any) -> Segment:
    """A segment of a plan, compiled."""
    layout = plan.schedule.layout
    specs = layout.graph.specs
    items = [item for phase in phases for item in (*(x for g in phase.groups for x in g.items), *phase.tail)]
    used = {b for item in items for b in (*item.reads, *item.writes, *item.partial.values())}
    outputs = {layout.access[y].buffer for y in layout.graph.outputs} - set(layout.graph.inputs)
    outside = [b for b in sorted(used) if b in layout.memory or b in outputs or b in plan.bound]
    partials = {p for item in items for p in item.partial.values()}
    places = Places(
        {b: plan.offsets[b] for b in used if b in plan.offsets and b not in outside},
        {b: plan.scratch[b] for b in used if b in plan.scratch},
        {b: k for k, b in enumerate(outside)},
        {b: specs[b].dtype.itemsize for b in used},
        {p: specs[p].shape[1] * specs[p].dtype.itemsize for p in partials},
    )
    work = sum(item.work.flop / 16 if hasattr(item.work, "parts") else np.prod(item.work.sizes) for item in items)
    return Segment(phases, places, plan.scratch_bytes, work)


def usable_cpus() -> int:
    """Processors that this process may use: more threads than that would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def takes_tail(work: Any, i: int, group: Any) -> bool:
    """Whether the values of a contraction go through registers that a tail can take them from."""
    if len(work.parts) != 1 or not work.moves(work.y, i):
        return False
    size = contract.ELEMENTS[driver.ELEMENT[work.dtype]]
    for dims in driver.variants(work, i, group):
        form = contract.form_of(dims, host().lanes(size))
        if form is None or form.name == "dot" or dims[form.vector].y != 1:
            return False
    return True


class Segment:
    """The code for phases of tasks whose buffers lie at these places."""

    def __init__(self, phases: list[Any], places: Places, scratch_bytes: int, work: float) -> None:
        from minidl.kernels.cpu.threads import threads_in_use

        self.places, self.scratch_bytes = places, -(-scratch_bytes // 4096) * 4096
        writer = Writer(phases, places, host())
        self.text = writer.text()
        self.code = compiled(self.text)
        chunks = max(writer.counts, default=1)
        self.threads = min(threads_in_use(), usable_cpus(), chunks) if work > ALONE_WORK else 1
        self.control, _ = _zeros(writer.control_bytes)
        self.scratch, _ = _zeros(max(self.scratch_bytes, 64) * self.threads)
        self.governor = Governor()
        self.renew()

    def renew(self) -> None:
        """As if it had never run: for a forked child, whose parent may have been in the middle of a run."""
        self.control[:] = 0
        self.run_number = itertools.count(1)

    def bind(self, flat: Callable[[Any], Any], arena: int) -> Callable[[], None]:
        """The segment as a function without arguments; flat(buffer) is the memory of a buffer outside of the arena.

        It has an attribute `table`, and `slots`: where in the table the addresses of such buffers stand.
        """
        from minidl.kernels.cpu import threads

        table = np.zeros(driver.FIRST_SLOT + len(self.places.slots), np.int64)
        table[driver.ARENA], table[driver.CONTROL] = arena, _address(self.control)
        table[driver.SCRATCH], table[driver.SCRATCH_BYTES] = _address(self.scratch), max(self.scratch_bytes, 64)
        table[driver.THREADS], table[driver.YIELD] = self.threads, _yield_address()
        held = [flat(buffer) for buffer in self.places.slots]
        for array, slot in zip(held, self.places.slots.values()):
            if array is not None:
                table[driver.FIRST_SLOT + slot] = _address(array)
        slots = {buffer: driver.FIRST_SLOT + slot for buffer, slot in self.places.slots.items()}
        address = self.code.address("run")
        count, words, governor = self.threads, table, self.governor
        function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(address)
        pointer = _address(table)
        if count == 1:

            def run_alone() -> None:
                words[driver.RUN] = next(self.run_number)
                function(0, 1, pointer)

            return _described(run_alone, held=(held, self), table=table, slots=slots)

        def run() -> None:
            words[driver.RUN] = next(self.run_number)
            is_together = governor.wants_threads()
            start = time.perf_counter()
            if is_together:
                threads.parallel_call(address, count, 1, words)
            else:
                function(0, 1, pointer)
            governor.note(time.perf_counter() - start, is_together)

        return _described(run, held=(held, self), table=table, slots=slots)


def _described(function: Callable[[], None], **facts: Any) -> Callable[[], None]:
    """A function with attributes."""
    function.__dict__.update(facts)
    return function


def _zeros(nbytes: int) -> tuple[np.ndarray, int]:
    """Zeroed memory that starts on the border of a cache line, and its address."""
    raw = np.zeros(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -_address(raw) % ALIGNMENT_BYTES
    array = raw[start : start + nbytes]
    return array, _address(array)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@functools.cache
def _yield_address() -> int:
    """Address of the system's function that lets other threads run; 0 if it is not found."""
    try:
        if sys.platform == "win32":
            function = ctypes.windll.kernel32.SwitchToThread
        else:
            function = ctypes.CDLL(None).sched_yield
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0
