"""Loop: a nest of loops over one iteration space that loads, computes scalars and stores or accumulates.

It is what a backend prints as code. Every MAP or REDUCE node is a loop, and so is every MAP op with a body. The
dimensions of the iteration space run from the slowest to the fastest in memory; strides and offsets count elements.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minidl.core.apply import abstract
from minidl.core.dlarray import DLArray
from minidl.core.spec import DOUBLE, SINGLE, Spec, Value
from minidl.core.tape import Tape, alone


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """Subscripts into a buffer: element (i, j, ...) lies at offset + i * strides[0] + j * strides[1] + ..."""

    buffer: Any
    offset: int
    strides: tuple[int, ...]


class Temp(int):
    """Number of a scalar of a loop: one per step."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"t{int(self)}"

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One scalar of a loop: loaded from memory, or computed by a text over earlier scalars and literals."""

    text: str  # '' for a load
    args: tuple[Any, ...]  # Temps and literals
    dtype: str
    literal_dtype: str = ""
    access: Access | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Where a scalar goes; `combine` is the text that joins two along dimensions of stride 0, '' for a plain store."""

    source: Temp
    access: Access
    dtype: str
    combine: str = ""
    identity: float = 0.0


@dataclasses.dataclass
class Loop:
    """An iteration space, the scalars of one iteration, and where they go."""

    sizes: tuple[int, ...]
    steps: list[Step]
    stores: list[Store]
    where: list[str] = dataclasses.field(default_factory=list)

    @property
    def reads(self) -> set[Any]:
        return {step.access.buffer for step in self.steps if step.access is not None}

    @property
    def writes(self) -> list[Any]:
        return [store.access.buffer for store in self.stores]

    def __str__(self) -> str:
        lines = [f"loop over {list(self.sizes)}"]
        for i, step in enumerate(self.steps):
            if step.access is not None:
                a = step.access
                lines.append(f"  t{i} = load {a.buffer} from {a.offset} strides {list(a.strides)}")
            else:
                lines.append(f"  t{i} = {step.text.format(*step.args)}")
        for store in self.stores:
            how = f"combine by {store.combine}" if store.combine else "store"
            lines.append(f"  {how} {store.source} -> {store.access.buffer} strides {list(store.access.strides)}")
        return "\n".join(lines)


def loop_of_body(op: Any, dtypes: tuple[Any, ...], moves: tuple[bool, ...], params: dict[str, Any]) -> Loop:
    """A MAP op with a body as a loop over flat arrays.

    dtypes and moves tell of each input its type and whether it is an array (True) or one number for all (False).
    Buffers are numbered: inputs first, then outputs.
    """
    roots = [abstract(Spec((2,), dtype)) for dtype in dtypes]  # any size will do
    temps = {root._value: Temp(i) for i, root in enumerate(roots)}
    steps = [
        Step("", (), dtype.name, access=Access(i, 0, (1 if is_moving else 0,)))
        for i, (dtype, is_moving) in enumerate(zip(dtypes, moves))
    ]
    results = _add_steps(op, roots, params, steps, temps)
    stores = [Store(temps[y], Access(len(dtypes) + k, 0, (1,)), y.spec.dtype.name) for k, y in enumerate(results)]
    return Loop((2,), steps, stores)


def _add_steps(
    op: Any, inputs: list[Any], params: dict[str, Any], steps: list[Step], temps: dict[Value, Temp]
) -> list[Value]:
    tape = Tape(everything=True)
    with alone(tape):
        made = op.body(*inputs, **params)
    for call in tape.calls:
        if call.op.text is None:  # a composite within a composite
            inner = _add_steps(call.op, [DLArray(x) if isinstance(x, Value) else x for x in call.inputs], call.params,
                               steps, temps)  # fmt: skip
            temps.update({y: temps[z] for y, z in zip(call.outputs, inner)})
            continue
        args = tuple([temps[x] if isinstance(x, Value) else x for x in call.inputs])
        floats = [x.spec.dtype.name for x in call.inputs if isinstance(x, Value) and x.spec.dtype in (SINGLE, DOUBLE)]
        (y,) = call.outputs
        temps[y] = Temp(len(steps))
        steps.append(Step(call.op.text, args, y.spec.dtype.name, floats[0] if floats else y.spec.dtype.name))
    return [y._value for y in (made if isinstance(made, tuple) else (made,))]
