"""Origin: what a value was made of, for functions of it that are better computed from there.

softmax(z) of a confident wrong answer is 0 in single precision, and its logarithm says nothing any more; log-softmax of
z does. So an op may say how functions of its result follow from its inputs (`Op.tells`), its result keeps these inputs,
and whoever wants such a function asks the value for it (`asked`). Ops that only move elements pass the question on.

What is found this way is recorded as a *choice* between two ways to one result: from what the value was made of, and
from the value itself. `autodiff.pullback` goes the first way, but the second one for derivatives by the value itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minidl.core.dlarray import DLArray
from minidl.core.spec import Spec, Value
from minidl.core.tape import horizon

MOST_STEPS = 16  # ops that pass the question on, one behind the other: a loop must not hold all that it made


class Origin(NamedTuple):
    """The call that made a value, without the value itself, and how many others pass a question on to it."""

    op: Any
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    steps: int


def keep_origin(op: Any, inputs: tuple[Any, ...], params: dict[str, Any], output: Value) -> None:
    """Let the result of a call know what it was made of, if its op can tell anything by that."""
    before = [x.origin for x in inputs if type(x) is Value and x.spec.dtype.kind == "f"]
    if output.spec.dtype.kind != "f":
        return
    if op.passes_on:
        if None in before or not before or op.passes_on is not True and not op.passes_on(*inputs):
            return
        steps = 1 + max([origin.steps for origin in before if origin is not None])
        if steps < MOST_STEPS:
            output.origin = Origin(op, inputs, params, steps)
    elif before == [None] * len(before):  # of what is a probability itself, no function goes to extremes
        output.origin = Origin(op, inputs, params, 0)


def asked(x: DLArray, what: str) -> DLArray | None:
    """A function of x, element by element ("log": log(x); "rest": log(1 - x); "square"), from what x was made of.

    None if x was not made of anything that tells it.
    """
    value = x._value
    origin = value.origin
    if origin is None or value.age < horizon():
        return None
    op, inputs = origin.op, [DLArray(v) if type(v) is Value else v for v in origin.inputs]
    rule = op.told.get(what)
    if rule is not None:
        found: DLArray | None = rule(*inputs, **origin.params)
        return found
    if op.passes_on is not True:
        return None
    for i, v in enumerate(inputs):
        if isinstance(v, DLArray) and v._value.spec.dtype.kind == "f":
            found = asked(v, what)
            if found is None:
                return None
            inputs[i] = found
    moved: DLArray = op(*inputs, **origin.params)
    return moved


def line(value: Value) -> Iterator[Value]:
    """The value, and those that it was moved from, back to the one whose op can tell something."""
    yield value
    origin = value.origin
    if origin is not None and origin.op.passes_on:
        for x in origin.inputs:
            if type(x) is Value:
                yield from line(x)


# origins of what is made again ----------------------------------------------------------------------------------
class Outline(NamedTuple):
    """An origin without values: each input is the place of one (Place), an Outline with a spec, or a number."""

    op: Any
    inputs: tuple[Any, ...]
    params: dict[str, Any]
    steps: int
    spec: Spec


class Place(int):
    """Where a value stands in a list of values."""


def outline(value: Value, began: int, values: list[Value]) -> Outline | None:
    """What is needed to give a value like this one an origin; the values it needs are appended to `values`.

    began : values of a lower age tell nothing.
    """
    origin = value.origin
    if origin is None or value.age < began:
        return None
    inputs: list[Any] = []
    for x in origin.inputs:
        inner = outline(x, began, values) if type(x) is Value and origin.op.passes_on else None
        if inner is None and type(x) is Value:
            inputs.append(Place(len(values)))
            values.append(x)
        else:
            inputs.append(x if inner is None else inner)
    return Outline(origin.op, tuple(inputs), origin.params, origin.steps, value.spec)


def filled_in(form: Outline, values: Sequence[Value]) -> Origin:
    """The origin that an outline describes, with these values."""
    inputs: list[Any] = []
    for x in form.inputs:
        if type(x) is Outline:
            between = Value(x.spec, None)  # only what it was made of is ever asked for
            between.origin = filled_in(x, values)
            inputs.append(between)
        else:
            inputs.append(values[x] if type(x) is Place else x)
    return Origin(form.op, tuple(inputs), form.params, form.steps)
