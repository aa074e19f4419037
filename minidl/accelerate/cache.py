"""The cache of an accelerated function: traces by signature, the oldest of them first; counts of calls and hits."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from minidl import backends
from minidl.accelerate.recording import Trace
from minidl.accelerate.signature import Plan, Signature, Signer, Tree, plain_key
from minidl.core.spec import Value

RECENT = 4  # traces that are tried first, by their compiled check
MISSING: Any = object()


class Look(NamedTuple):
    """What is there for a call: its trace (None: such a call cannot be replayed; MISSING), the values it reads."""

    trace: Any
    values: list[Value]


class Cache:
    """Signature -> trace. Found in two ways: by the compiled checks of the latest traces, then by key, in O(1).

    What the function captures is part of a signature, but which captures there are is known from a recording only: for
    each kind of arguments the `plans` of its recordings are kept, and the keys are made of what these find now.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = self.hits = 0
        self.lock = threading.RLock()
        self.traces: dict[Signature, Trace | None] = {}  # oldest first; None: a call like this cannot be replayed
        self.plans: dict[Any, list[Plan]] = {}
        self._recent: dict[bool, tuple[Trace, ...]] = {False: (), True: ()}  # inside dlfeval or not; latest first

    def __len__(self) -> int:
        return len(self.kept())

    def kept(self) -> list[Trace]:
        """The traces, oldest first."""
        with self.lock:
            return [trace for trace in self.traces.values() if trace is not None]

    def recall(self, args: Any, kwargs: Any, is_traced: bool, *, is_renewed: bool = False) -> Look | None:
        """The fast way: one of the latest traces, if it has the call's signature."""
        setting = backends.setting()
        for trace in self._recent[is_traced]:
            if trace.signature.backend == setting:
                values = trace.inputs(args, kwargs, is_renewed)
                if values is not None:
                    return Look(trace, values)
        return None

    def look_up(self, leaves: list[Any], structure: Any, is_traced: bool) -> Look:
        """The sure way: by keys."""
        arguments = Tree(structure, Signer().leaves(leaves, plain_key))
        backend = backends.setting()
        with self.lock:
            plans = list(self.plans.get((arguments, is_traced, backend), ()))
        for plan in plans:
            signer = Signer()
            signer.leaves(leaves, plain_key)
            key = Signature(arguments, plan.tree(leaves, signer), plan, is_traced, backend)
            trace = self.traces.get(key, MISSING)
            if trace is not MISSING:
                return Look(trace, signer.values)
        return Look(MISSING, [])

    def recent(self, is_traced: bool) -> tuple[Trace, ...]:
        """The latest traces, the latest first."""
        return self._recent[is_traced]

    def make_recent(self, trace: Trace) -> None:
        """Have the trace tried first."""
        is_traced = trace.signature.is_traced
        with self.lock:
            others = [x for x in self._recent[is_traced] if x is not trace]
            self._recent[is_traced] = (trace, *others[: RECENT - 1])

    def keep(self, signature: Signature, trace: Trace | None) -> None:
        """Put a trace at the back."""
        with self.lock:
            plans = self.plans.setdefault(signature.place, [])
            if signature.plan in plans:
                plans.remove(signature.plan)
            plans.insert(0, signature.plan)
            self.traces.pop(signature, None)
            self.traces[signature] = trace

    def give_up(self, trace: Trace) -> None:
        """The trace has turned out to be of no use."""
        with self.lock:
            if self.traces.get(trace.signature) is trace:
                self.traces[trace.signature] = None
            self._forget_recent(trace)

    def evict(self) -> bool:
        """Forget the oldest traces if there are too many; whether there were."""
        with self.lock:
            if len(self.traces) <= self.size:
                return False
            used = [key for key, trace in self.traces.items() if trace is not None]
            others = [key for key, trace in self.traces.items() if trace is None]
            gone = used[: max(0, len(used) - self.size)]
            for key in gone + others[: max(0, len(others) - 20 * self.size)]:
                trace = self.traces.pop(key)
                if trace is not None:
                    self._forget_recent(trace)
                self._forget_plan(key)
            return bool(gone)

    def _forget_recent(self, trace: Trace) -> None:
        is_traced = trace.signature.is_traced
        self._recent[is_traced] = tuple([x for x in self._recent[is_traced] if x is not trace])

    def _forget_plan(self, key: Signature) -> None:
        if any(other.plan == key.plan and other.place == key.place for other in self.traces):
            return
        plans = self.plans.get(key.place, [])
        if key.plan in plans:
            plans.remove(key.plan)
        if not plans:
            self.plans.pop(key.place, None)

    def clear(self) -> None:
        """Forget all."""
        with self.lock:
            self.traces.clear()
            self.plans.clear()
            self._recent = {False: (), True: ()}
            self.calls = self.hits = 0
