"""The one door: every computation in minidl is `apply(op, inputs, params)`.

It brings the operands to one type and (MAP ops) one shape, asks the op's rule for the result's spec, has the current
backend compute it, and writes the call on every open tape. Values on tapes have no labels: labels stay with the
DLArray handles, so rules, tapes and the engine never hear of them.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from minidl import backends
from minidl.core import custom
from minidl.core import dlarray as handles
from minidl.core.device import device_of
from minidl.core.errors import DeviceError, TraceError
from minidl.core.labels import match
from minidl.core.origin import keep_origin
from minidl.core.spec import LOGICAL, Spec, Value, common_type
from minidl.core.tape import Call, alone, following, is_watched, note_use_elsewhere, open_tapes, unwatched
from minidl.core.vocabulary import named

if TYPE_CHECKING:
    from minidl.core.op import Op



def apply(op: Op, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """Apply `op`: DLArrays, arrays or numbers in; a DLArray, or a tuple of them if the op has several outputs, out.

    A MAP op keeps labels and expands by label; other ops are about positions and give unlabelled results.
    """
    operands = [x if type(x) in _READY else handles.operand(op.name, x, is_kept=_keeps(op)) for x in inputs]
    labels = ""
    if op.is_map:
        first = _uniform(operands) if op.is_float else None
        if first is not None:  # the usual case: nothing to expand, nothing to cast
            labels = first._labels
        else:
            operands, labels = _expand(op, _on_one_device(operands))
            _unify(op, operands)
    else:
        operands = _on_one_device(operands)
        _unify(op, operands)
    outputs = compute(op, tuple([x._value if type(x) is handles.DLArray else x for x in operands]), params)
    if len(outputs) == 1:
        return handles.DLArray(outputs[0], labels)
    return tuple([handles.DLArray(value, labels) for value in outputs])


def apply_each(op: Op, operands: tuple[Any, ...]) -> list[list[Any]]:
    """`apply` for many rows of operands: one pass over all of them where nothing is recorded and the backend can.

    op       : a MAP op of floats with a body, such as a solver's step.
    operands : for each operand a list of dlarrays, one per row, or a number for all rows.
    Returns for each output of the op a list of dlarrays, one per row.
    """
    columns = [x for x in operands if type(x) is list]
    specs, labels = [x._value.spec for x in columns[0]], [x._labels for x in columns[0]]
    run_each = getattr(backends.of(specs[0].device), "run_each", None) if specs else None
    has_plain_results = op.infer_rule is None and op.output_types.strip("f") == ""
    if (
        run_each is None or open_tapes() or not has_plain_results or any(spec.dtype.kind != "f" for spec in specs)
        or any([x._value.spec for x in column] != specs or [x._labels for x in column] != labels for column in columns)
    ):  # fmt: skip
        results = [apply(op, row, {}) for row in zip(*[x if type(x) is list else repeat(x) for x in operands])]
        return [list(column) for column in zip(*results)] or [[] for _ in op.output_types]
    work = zip(*[[y._value.data for y in x] if type(x) is list else repeat(x) for x in operands])
    count = len(op.output_types)
    with np.errstate(all="ignore"):
        made = run_each(op, list(zip([(spec,) * count for spec in specs], work)), {})
    found = [list(map(handles.DLArray, map(Value, specs, datas), labels)) for datas in zip(*made)]
    return found or [[] for _ in range(count)]


_READY = (handles.DLArray, float, int, bool)


def _keeps(op: Op) -> bool:
    """Whether an operand may be read after the call. A scalar text without a tape makes new arrays, and that is all."""
    return op.text is None or not op.is_map or bool(open_tapes())


def _uniform(operands: list[Any]) -> Any:
    """The first array, if all arrays have its spec and labels and it is a float; otherwise None."""
    first = None
    for x in operands:
        if type(x) is handles.DLArray:
            if first is None:
                first, spec, labels = x, x._value.spec, x._labels
                if spec.dtype.kind != "f":
                    return None
            elif x._value.spec is not spec and x._value.spec != spec or x._labels != labels:
                return None
    return first


def compute(op: Op, values: tuple[Any, ...], params: dict[str, Any]) -> tuple[Value, ...]:
    """`apply` behind the labels: Values and literals in, Values out, the call written on the open tapes."""
    output_specs = op.output_specs([x.spec if type(x) is Value else x for x in values], params)
    datas = [x.data if type(x) is Value else x for x in values]
    tapes = open_tapes()
    if any([data is None for data in datas]):
        outputs = tuple([Value(spec, None) for spec in output_specs])  # abstract: structure without numbers
    else:
        if following and not tapes:
            _check_thread(op, values)
        if following and is_watched():  # also within the body of an op, which hides the tapes
            with unwatched(), np.errstate(all="ignore"):
                results = backends.run(op, output_specs, datas, params)
        elif tapes:  # whoever opened them has silenced NumPy's warnings about inf and nan already
            results = backends.run(op, output_specs, datas, params)
        else:
            with np.errstate(all="ignore"):
                results = backends.run(op, output_specs, datas, params)
        if results is None:  # no kernel on this backend: the body is the meaning
            results = _run_body(op, values, params, output_specs)
        outputs = tuple([Value(spec, data) for spec, data in zip(output_specs, results)])
    if op.keeps_origin:
        first = values[0]
        if not op.passes_on or type(first) is not Value or first.origin is not None:
            keep_origin(op, values, params, outputs[0])
    if tapes:
        call = Call(op, values, params, outputs)
        for tape in tapes:
            tape.record(call)
    return outputs


def _check_thread(op: Op, values: tuple[Any, ...]) -> None:
    """Raise TraceError if an operand is traced in another thread: tapes do not see what is computed in this one."""
    if any([type(x) is Value and note_use_elsewhere(x) for x in values]):
        raise TraceError(
            f"{op.name}: an operand is traced by dlfeval in another thread, which does not see what this thread "
            "computes: it would have no derivative. Compute it in the thread of dlfeval, call dlfeval in this one, or "
            "give it extractdata(X)."
        )


def _on_one_device(operands: list[Any]) -> list[Any]:
    """The operands, those in the host's memory brought to the GPU if there is one there already."""
    if not backends.has_used_gpu():
        return operands
    devices = [x._value.spec.device for x in operands if type(x) is handles.DLArray]
    if len(set(devices)) < 2:
        return operands
    transfer = named("transfer")
    return [
        handles.DLArray(transfer(x, device="gpu")._value, x._labels)
        if type(x) is handles.DLArray and x._value.spec.device != "gpu" else x
        for x in operands
    ]  # fmt: skip


def _run_body(op: Op, values: tuple[Any, ...], params: dict[str, Any], specs: tuple[Spec, ...]) -> list[Any]:
    if op.body is None:
        device = specs[0].device
        other, there = ("cpu", "gather(X)") if device == "gpu" else ("gpu", "gpuArray(X)")
        remedy = f'@{op.name}.kernel("{device}"), or a body'
        if other in op.kernels:
            remedy += f", or bring the data to where it has one: {there}"
        raise DeviceError(f"{op.name}: the data are on the {device}, where it has no kernel, and it has no body. "
                          f"Give it {remedy}.")  # fmt: skip
    with alone():
        result = op.body(*[handles.DLArray(x, "") if isinstance(x, Value) else x for x in values], **params)
    made = [y._value if isinstance(y, handles.DLArray) else y for y in (result if type(result) is tuple else (result,))]
    if op.is_users:
        custom.check_made(op, made, specs)
    return [y.data for y in made]




def _expand(op: Op, operands: list[Any]) -> tuple[list[Any], str]:
    """Bring the arrays to one shape by inserting `broadcast` calls: (operands, the result's labels)."""
    arrays = [x for x in operands if isinstance(x, handles.DLArray)]
    if not arrays:  # numbers alone: the first one becomes an array
        arrays = operands[:1] = [handles.dlarray(operands[0])]
    first = arrays[0]
    if len(arrays) == 1:
        return operands, first._labels
    shape, labels = first._value.spec.shape, first._labels
    if all(x._value.spec.shape == shape and x._labels == labels for x in arrays):
        return operands, labels
    shapes = tuple([x._value.spec.shape for x in arrays])
    shape, labels, dims = match(op.name, shapes, tuple([x._labels for x in arrays]))
    broadcast = named("broadcast")
    where = iter(dims)
    expanded = []
    for x in operands:
        if isinstance(x, handles.DLArray):
            dim = next(where)
            if len(dim) < len(x._value.spec.shape):  # its last dimensions, of size 1, are not there in the result
                x = named("view_as")(x, shape=x._value.spec.shape[: len(dim)])
            if x._value.spec.shape != shape:
                x = broadcast(x, shape=shape, dims=dim)
        expanded.append(x)
    return expanded, labels


def _unify(op: Op, operands: list[Any]) -> None:
    """Insert `cast` calls so that every float operand has the common type, and every logical one is logical."""
    types = op.input_types
    last = len(types) - 1
    dtypes: list[Any] = []
    fits = True
    for i, x in enumerate(operands):
        if isinstance(x, handles.DLArray):
            letter = types[i if i < last else last]
            dtype = x._value.spec.dtype
            if letter == "f":
                fits = fits and dtype.kind == "f" and (not dtypes or dtype == dtypes[0])
                dtypes.append(dtype)
            elif letter == "b":
                fits = fits and dtype == LOGICAL
    if fits:
        return
    wanted = {"f": common_type(dtypes), "b": LOGICAL}
    for i, x in enumerate(operands):
        if isinstance(x, handles.DLArray):
            dtype = wanted.get(types[i if i < last else last], x._value.spec.dtype)
            if x._value.spec.dtype != dtype:
                operands[i] = named("cast")(x, dtype=dtype.name)


def abstract(spec: Spec) -> Any:
    """A DLArray without numbers, for running a body for its structure alone."""
    return handles.DLArray(Value(spec, None), "")


def constant(data: np.ndarray) -> Value:
    """A Value around plain data."""
    return Value(Spec(data.shape, data.dtype, device_of(data)), data)
