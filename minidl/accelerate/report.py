"""What an accelerated function did and why, as data that prints itself: signatures, traces, misses, captures."""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.accelerate.captures import MISSING
from minidl.accelerate.recording import Trace
from minidl.accelerate.signature import Array, ById, Plain, Signature
from minidl.core.labels import describe
from minidl.core.op import Op
from minidl.core.spec import TYPE_NAMES
from minidl.core.tree import LEAF, rest_of

_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType,
         types.CodeType, np.ufunc, Op)  # fmt: skip


# leaf by leaf ---------------------------------------------------------------------------------------------------
class Item(NamedTuple):
    """One leaf (or container) of a signature: where, what in words, the leaf itself (None for containers)."""

    path: str
    text: str
    leaf: Array | Plain | None
    is_captured: bool


def items(signature: Signature, function: Callable[..., Any]) -> dict[str, Item]:
    """Everything that a signature fixes, by path; containers too."""
    args, kwargs = signature.arguments.structure[2]
    leaves = iter(signature.arguments.leaves)
    found: list[Item] = []
    for name, child in zip(argument_names(function, len(args[2])), args[2]):
        found += _walk(child, leaves, name, False)
    for name, child in zip(kwargs[1], kwargs[2]):
        found += _walk(child, leaves, str(name), False)
    leaves = iter(signature.captured.leaves)
    for source, child in zip(signature.plan.sources, signature.captured.structure[2]):
        found += _walk(child, leaves, source.path, True)
    return {item.path: item for item in found}


def argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first positional parameters, "args[k]" where there are none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds][:count]
    return names + [f"args[{k}]" for k in range(len(names), count)]


def _walk(structure: Any, leaves: Iterator[Array | Plain], path: str, is_captured: bool) -> Iterator[Item]:
    if structure is None:
        yield Item(path, "None", None, is_captured)
        return
    if structure == LEAF:
        leaf = next(leaves)
        yield Item(path, leaf_text(leaf), leaf, is_captured)
        return
    kind, names, children = structure[:3]
    if names is None:
        names = getattr(kind, "_fields", None)
    yield Item(path, f"{kind.__name__} of {len(children)}", None, is_captured)
    for k, child in enumerate(children):
        inner = f"{path}[{k}]" if names is None else f"{path}.{names[k]}"
        if names is not None and not isinstance(names[k], str):
            inner = f"{path}[{names[k]!r}]"
        yield from _walk(child, leaves, inner, is_captured)
    rest = rest_of(structure)
    for name, child in zip(rest[1], rest[2]) if rest is not None else ():
        yield from _walk(child, leaves, f"{path}.{name}", is_captured)


def leaf_text(leaf: Array | Plain) -> str:
    """A leaf in a few words."""
    if isinstance(leaf, Array):
        kind = TYPE_NAMES.get(leaf.spec.dtype, str(leaf.spec.dtype))
        pinned = ", this very value" if leaf.pinned is not None else ""
        return f"{describe(leaf.spec.shape, leaf.labels)} {kind}{pinned}"
    x = leaf.x
    if x is MISSING:
        return "not there"
    if isinstance(x, np.ndarray):
        return f"{describe(x.shape, '')} {x.dtype} array"
    if isinstance(x, (bool, int, float, complex, str, bytes, np.generic, enum.Enum, range, slice)):
        text = repr(x)
        return text if len(text) <= 40 else f"{text[:37]}..."
    if isinstance(x, _CODE):
        return f"{type(x).__name__} {getattr(x, '__name__', '?')}"
    return f"{type(x).__name__} object"


def readable(signature: Signature, function: Callable[..., Any]) -> dict[str, str]:
    """A signature as path -> words: arguments, and captured data (functions, classes and modules left out)."""
    found = {}
    for path, item in items(signature, function).items():
        is_code = isinstance(item.leaf, Plain) and isinstance(item.leaf.x, _CODE)
        is_data = item.leaf is not None or item.text == "None" or item.text.endswith(" of 0")
        if is_data and not (item.is_captured and is_code):
            found[path] = item.text
    return found


# why a call was not a hit ---------------------------------------------------------------------------------------
class Difference(NamedTuple):
    """What keeps a call from sharing a trace: where, what the trace has, what the call has, what to do."""

    path: str
    old: str
    new: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}" + (f" ({self.remedy})" if self.remedy else "")


def differences(old: Signature, new: Signature, function: Callable[..., Any]) -> list[Difference]:
    """All of them, the arguments' first."""
    before, after = items(old, function), items(new, function)
    found = []
    for path in [*after, *(path for path in before if path not in after)]:
        a, b = before.get(path), after.get(path)
        if a is None or b is None or _is_other(a, b):
            texts = [x.text if x is not None else "not there" for x in (a, b)]
            if texts[0] == texts[1]:
                texts[1] = f"another {texts[1]}"
            found.append(Difference(path, texts[0], texts[1], _remedy(a, b)))
    if old.is_traced != new.is_traced:
        words = {True: "inside dlfeval", False: "outside of dlfeval"}
        found.append(Difference("the call", words[old.is_traced], words[new.is_traced], ""))
    if old.backend != new.backend:
        found.append(Difference("the backend", old.backend, new.backend, ""))
    if not found and old.pattern != new.pattern:
        found.append(Difference("which arrays are the same", str(old.pattern), str(new.pattern), "pass copies"))
    return found


def _is_other(a: Item, b: Item) -> bool:
    if isinstance(a.leaf, Array) and isinstance(b.leaf, Array):
        return a.text != b.text or a.leaf.pinned != b.leaf.pinned
    return a.leaf != b.leaf or (a.leaf is None and a.text != b.text)


def _remedy(a: Item | None, b: Item | None) -> str:
    if a is None or b is None or a.leaf is None or b.leaf is None:
        return "" if "None" in (a and a.text, b and b.text) else "give the same containers each time"
    if isinstance(a.leaf, Array) and isinstance(b.leaf, Array):
        if a.leaf.pinned or b.leaf.pinned:
            return "Python looks at its numbers: keep to dlarray operations there"
        if a.leaf.spec.dtype != b.leaf.spec.dtype:
            return "convert it to one type"
        return "label it the same way" if a.leaf.labels != b.leaf.labels else "calls of one size share a trace"
    if isinstance(b.leaf, Array) or isinstance(a.leaf, Array):
        return "give a dlarray each time"
    return "wrap it: dlarray(...)" if is_numeric(b.leaf) else "pass the same object" if is_made_anew(b.leaf) else ""


def is_numeric(leaf: Any) -> bool:
    """Whether a leaf is a plain number, or an array of them, that a dlarray could take the place of."""
    x = leaf.x if isinstance(leaf, Plain) else None
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "fb"
    return isinstance(x, (int, float, np.floating, np.integer)) and not isinstance(x, (bool, enum.Enum))


def is_made_anew(leaf: Any) -> bool:
    """Whether a leaf stands for itself alone, so that an equal object made anew is another one."""
    return isinstance(leaf, Plain) and (isinstance(leaf.key, ById) or isinstance(leaf.x, types.FunctionType))


# tables ---------------------------------------------------------------------------------------------------------
class TraceRow(NamedTuple):
    """One trace: times in milliseconds, replay on average.

    state is "not yet" (it is compiled at its first replay), "compiled", "exact" (call by call, as asked for) or
    "failed: ..." (call by call, because it could not be compiled). audits counts the audits that it passed,
    audited_call is the number of the latest one's call (0: none), audit_ms what all took; audited says it in words.
    """

    trace: int
    hits: int
    record_ms: float
    compile_ms: float
    replay_ms: float
    nbytes: int
    signature: dict[str, str]
    state: str
    audits: int
    audited_call: int
    audit_ms: float
    audited: str


class MissRow(NamedTuple):
    """One call that was recorded: its number, the line it came from, the nearest trace (None: there was none), why.

    note : why it was not kept; or, of a call that was not recorded, why the replays of its trace have ended at it
    """

    call: int
    where: str
    nearest: int | None
    why: list[Difference]
    note: str


class Explanation(NamedTuple):
    """What `accfun.explain()` gives: data, printed as two tables."""

    name: str
    calls: int
    hits: int
    traces: list[TraceRow]
    misses: list[MissRow]

    def __str__(self) -> str:
        rate = 100.0 * self.hits / self.calls if self.calls else 0.0
        lines = [f"{self.name}: {self.calls} calls, {self.hits} hits ({rate:.4g} %), {len(self.traces)} traces", ""]
        rows = [
            [
                str(t.trace), str(t.hits), *(f"{ms:.3g}" for ms in t[2:5]), f"{t.nbytes:,}", t.state, t.audited,
                _short(t.signature),
            ]
            for t in self.traces
        ]  # fmt: skip
        head = ["trace", "hits", "record ms", "compile ms", "replay ms", "bytes", "program", "audited", "signature"]
        lines += table(head, rows)
        rows = [
            [str(x.call), "-" if x.nearest is None else str(x.nearest), _why(x), x.where] for x in self.misses
        ]
        return "\n".join([*lines, "", *table(["call", "nearest", "recorded because", "at"], rows)])


def _short(signature: dict[str, str], most: int = 3) -> str:
    shown = [f"{path}: {text}" for path, text in list(signature.items())[:most]]
    return "; ".join(shown + ([f"and {len(signature) - most} more"] if len(signature) > most else []))


def _why(miss: MissRow) -> str:
    shown = [str(x) for x in miss.why[:3]] + ([f"and {len(miss.why) - 3} more"] if len(miss.why) > 3 else [])
    return "; ".join(filter(None, [*shown, miss.note])) or "first call"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in plain text; numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    is_number = [all(row[k][:1].isdigit() or row[k] == "-" for row in rows) for k in range(len(head))]
    return [
        "  ".join(x.rjust(n) if right else x.ljust(n) for x, n, right in zip(row, widths, is_number)).rstrip()
        for row in [head, *rows]
    ]


class Capture(NamedTuple):
    """Something that a trace has besides its arguments.

    role: "input" (a dlarray, read afresh at each call), "compared" (must be as it was, else the call is recorded anew)
    or "constant" (made by the function while it was recorded, the same at each replay).
    """

    path: str
    where: str
    role: str
    text: str
    nbytes: int


class Captures(list[Capture]):
    """What `accfun.captures()` gives: a list that prints as a table."""

    def __str__(self) -> str:
        rows = [[x.path, x.role, x.text, f"{x.nbytes:,}", x.where] for x in self]
        return "\n".join(table(["what", "role", "is", "bytes", "at"], rows))

    __repr__ = __str__


def captures_of(trace: Trace) -> Captures:
    """Data only: functions, classes and modules are compared as well, but not listed."""
    found = Captures()
    signature = trace.signature
    leaves = iter(signature.captured.leaves)
    for source, child in zip(signature.plan.sources, signature.captured.structure[2]):
        for item in _walk(child, leaves, source.path, True):
            leaf = item.leaf
            if leaf is None or (isinstance(leaf, Plain) and (isinstance(leaf.x, _CODE) or leaf.x is MISSING)):
                continue
            is_input = isinstance(leaf, Array) and leaf.pinned is None
            nbytes = leaf.spec.nbytes if isinstance(leaf, Array) else getattr(leaf.x, "nbytes", 0)
            found.append(Capture(item.path, source.where, "input" if is_input else "compared", item.text, nbytes))
    pinned = {id(x.pinned.x.data) for x in signature.captured.leaves if isinstance(x, Array) and x.pinned is not None}
    readers = {x: node.where for node in reversed(trace.graph.nodes) for x in node.reads}
    for x, data in trace.graph.constants.items():
        if id(data) in pinned:
            continue  # is there already, as compared
        spec = trace.graph.specs[x]
        text = f"{describe(spec.shape, '')} {TYPE_NAMES.get(spec.dtype, str(spec.dtype))}"
        found.append(Capture(str(x), readers.get(x, "?"), "constant", text, data.nbytes))
    return found
