"""The body of a MAP op as a Loop (see `backends.loop`), found by running it once on arrays without numbers."""

from __future__ import annotations

from typing import Any

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.core.apply import abstract
from minidl.core.dlarray import DLArray
from minidl.core.spec import DOUBLE, SINGLE, Spec, Value
from minidl.core.tape import Tape, alone


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
