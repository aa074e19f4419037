"""dlfeval and dlgradient: reverse-mode automatic differentiation by reading the tape backwards.

Gradients are ordinary calls of ordinary ops, so they can be recorded, replayed and differentiated like any code.
Source: Griewank and Walther, Evaluating Derivatives (2008), chapter 3.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from minidl.core.custom import check_gradients
from minidl.core.dlarray import DLArray
from minidl.core.errors import DTypeError, TraceError
from minidl.core.labels import describe
from minidl.core.op import named
from minidl.core.options import options
from minidl.core.origin import line
from minidl.core.places import own_frame
from minidl.core.spec import Value
from minidl.core.tape import Call, Tape, going_back, open_tapes, opened, paused, within
from minidl.core.tree import flatten, flatten_whole, paths, unflatten


def dlfeval(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call fun(*args, **kwargs) with every dlarray in the arguments traced, so that it can call `dlgradient`.

    fun  : function or AcceleratedFunction
    args : anything; dlarrays inside struct, dict, list, tuple and dataclass arguments are found. The containers are
           handed on as copies: assigning to their fields inside fun does not change the caller's.
    Returns what fun returns; nothing stays traced.
    Raises TraceError where the numbers of a traced dlarray would leave it in silence: as a NumPy array (array.dot(x),
    np.array([x, y])), in array[i] = x, math.sin(x), by DLPack, pickle or another thread. extractdata(x), float(x),
    x.item() and print(x) say what they do, and are allowed.
    Source: MathWorks, reference page "dlfeval".

    >>> dlfeval(lambda x: dlgradient(x * x, x), dlarray(3.0)).item()
    6.0
    """
    if not callable(fun):
        raise DTypeError(f"dlfeval: the first argument is the function to evaluate; got {type(fun).__name__}.")
    is_nested = bool(open_tapes())
    if not is_nested and hasattr(fun, "replay_in_dlfeval"):
        replayed = fun.replay_in_dlfeval(args, kwargs, _evaluated)
        if replayed is not None:
            return replayed[0]
    return _evaluated(fun, args, kwargs, is_nested)


def _evaluated(fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_nested: bool = False) -> Any:
    """fun(*args, **kwargs) with a tape of its own, which the dlarrays among the arguments are traced by."""
    tape = Tape()
    leaves, structure = flatten_whole((args, kwargs))
    tape.given = leaves
    alias = named("alias")
    traced = []
    for leaf in leaves:
        if isinstance(leaf, DLArray):
            # a value of its own per argument; on outer tapes it is an alias of the caller's
            value = alias(leaf)._value if is_nested else Value(leaf._value.spec, leaf._value.data)
            tape.add_root(value)
            leaf = DLArray(value, leaf._labels)
        traced.append(leaf)
    args, kwargs = unflatten(structure, traced)
    with opened(tape):
        return fun(*args, **kwargs)


@options
def dlgradient(
    y: DLArray,
    *x: Any,
    RetainData: bool = False,
    EnableHigherDerivatives: bool = False,
    AllowComplex: bool = True,
) -> Any:
    """Gradients of the scalar y with respect to each x, inside a function called by `dlfeval`.

        dydx[i] = dy / dx[i]

    y : traced scalar dlarray of type single or double.
    x : traced dlarray, or struct, dict, list, tuple or dataclass of them. The gradient has the same structure, and
        each array in it the size, labels and type of its x. Zero where y does not depend on x.
    RetainData : keep the trace for another dlgradient in the same dlfeval; otherwise it is released.
    EnableHigherDerivatives : trace the gradient's own computation, so that it can be differentiated again.
    AllowComplex : accepted for MATLAB's sake; minidl's arrays are real.
    Returns one gradient per x (a tuple if there are several).
    Raises TraceError if y is not a traced real scalar, if an x is not traced (it names the field and the reason), or if
    the trace was released.
    Source: MathWorks, reference page "dlgradient"; Griewank and Walther, Evaluating Derivatives (2008).

    >>> def fun(x):
    ...     y = (x * x * x).sum("all")
    ...     g = dlgradient(y, x, EnableHigherDerivatives=True)
    ...     return g, dlgradient(g.sum("all"), x)
    >>> g, h = dlfeval(fun, dlarray([1.0, 2.0]))
    >>> g.tolist(), h.tolist()
    ([3.0, 12.0], [6.0, 12.0])
    """
    tape = _tape_of(y)
    if not x:
        raise TraceError("dlgradient: nothing to differentiate by. Give at least one traced dlarray after y.")
    leaves, structure = flatten(list(x))
    for number, leaf in enumerate(leaves):
        if not isinstance(leaf, DLArray) or not tape.knows(leaf._value):
            raise _untraced(tape, x, number, leaf)
    keep = RetainData or EnableHigherDerivatives
    one = DLArray(_ones_like(y))
    with paused([] if EnableHigherDerivatives else [tape]):
        found = pullback(tape, [(y._value, one)], [leaf._value for leaf in leaves], release=not keep)
    gradients = unflatten(structure, [_finish(g, leaf) for g, leaf in zip(found, leaves)])
    return gradients[0] if len(x) == 1 else tuple(gradients)


def pullback(
    tape: Tape, seeds: Sequence[tuple[Value, DLArray]], targets: Sequence[Value], *, release: bool = False
) -> list[DLArray | None]:
    """Read the tape backwards: from gradients of some values (`seeds`) to those of the `targets`.

    None stands for a gradient that is zero because nothing connects the two.
    """
    wanted = {id(value) for value in targets}
    relevant = wanted | tape.released  # values through which a target reaches others, or may have reached them
    calls = tape.calls
    reached = []
    lines: dict[int, set[int]] = {}  # of calls that are choices: what is wanted and lies on their second way alone
    for position, call in enumerate(calls):
        if any(id(value) in relevant for value in call.inputs) or (
            call.op.is_linked and any(id(value) in wanted for value in call.outputs)
        ):
            relevant.update(map(id, call.outputs))
            reached.append(position)
            if call.op.is_choice:
                lines[position] = wanted & {id(value) for value in line(call.inputs[1])}
    by_second = set().union(*lines.values()) if lines else set()
    if not by_second:
        found, visited = _read_back(tape, reached, relevant, seeds, wanted, dict.fromkeys(lines, 1))
    else:  # what lies on a second way has its gradient by it, all others have theirs by the first ways
        ways = {position: 0 if wanted_there else 1 for position, wanted_there in lines.items()}
        found, visited = _read_back(tape, reached, relevant, seeds, wanted, ways)
        if by_second != wanted:
            first, more = _read_back(tape, reached, relevant, seeds, wanted, dict.fromkeys(lines, 1))
            found = {number: (found if number in by_second else first).get(number) for number in wanted}
            visited = sorted({*visited, *more}, reverse=True)
    if release:
        for position in visited:  # positions fall, so deleting does not move the ones to come
            tape.released.update(map(id, calls[position].outputs))
            del calls[position]
    return [found.get(id(value)) for value in targets]


def _read_back(
    tape: Tape, reached: list[int], relevant: set[int], seeds: Sequence[tuple[Value, DLArray]], wanted: set[int],
    left_out: dict[int, int],
) -> tuple[dict[int, Any], list[int]]:  # fmt: skip
    """Gradients by the ids of values, and the calls that were visited.

    left_out : of calls that are choices (`core.origin`), by position: the operand that gets no gradient.
    """
    gradients: dict[int, DLArray] = {}
    for value, g in seeds:
        if id(value) in tape.released:
            raise _released()
        _accumulate(gradients, value, g)
    calls, visited = tape.calls, []
    with going_back() as way:
        for position in reversed(reached):
            call = calls[position]
            gs = [gradients.get(id(value)) for value in call.outputs]
            if all(g is None for g in gs):
                continue
            visited.append(position)
            way.behind = call
            needed = [id(value) in relevant for value in call.inputs]
            if left_out and position in left_out:
                needed[left_out[position]] = False
            parts: Sequence[DLArray | None]
            if call.op.is_linked and any(id(value) in wanted for value in call.outputs):
                parts, by_results = _linked_gradients(call, gs, needed, wanted)
                gradients.update(by_results)
            else:
                parts = input_gradients(call, gs, needed)
            for value, part in zip(call.inputs, parts):
                if part is not None and id(value) in relevant:
                    if id(value) in tape.released and id(value) not in wanted:
                        raise _released()
                    _accumulate(gradients, value, part)
    return gradients, visited


def input_gradients(call: Call, gs: list[DLArray | None], needed: list[bool]) -> Sequence[DLArray | None]:
    """Gradients of the inputs of one call, given those of its outputs: by its rule, or by its body's derivative."""
    op = call.op
    if op.is_constant:
        return [None] * len(needed)
    inputs = [DLArray(x) if isinstance(x, Value) else x for x in call.inputs]
    if op.vjp_rules is None and op.vjp_rule is None:
        return _through_body(call, inputs, gs, needed)
    outputs = tuple([DLArray(value) for value in call.outputs])
    g: Any = gs[0] if len(gs) == 1 else tuple(gs)
    y: Any = outputs[0] if len(outputs) == 1 else outputs
    if op.vjp_rules is not None:
        rules = op.vjp_rules
        found: Sequence[DLArray | None] = [
            rule(g, y, *inputs, **call.params) if want and (rule := rules[min(i, len(rules) - 1)]) else None
            for i, want in enumerate(needed)
        ]
    else:
        made = op.vjp_rule(g, y, *inputs, **call.params)
        found = made if isinstance(made, (tuple, list)) else (made,)
    if op.is_users:
        check_gradients(op, inputs, found)
    if op.is_singular and len(gs) == 1 and (op.is_singular is True or op.is_singular(*inputs, **call.params)):
        return [_settled(part, g) for part in found]
    return found


def _settled(part: Any, g: DLArray) -> Any:
    """A gradient that the rule of a MAP op made from g: 0 where g is 0 and it is NaN."""
    if not isinstance(part, DLArray) or part is g or part._value.spec.shape != g._value.spec.shape:
        return part
    data = part._value.data
    if type(data) is np.ndarray and all([tape.is_paused for tape in open_tapes()]):
        squares = np.vdot(data, data)  # nothing is recorded: a look, of which only NaN makes a NaN, saves a call
        if squares == squares:
            return part
    return named("settle")(part, part, g)


def _linked_gradients(
    call: Call, gs: list[DLArray | None], needed: list[bool], wanted: set[int]
) -> tuple[list[DLArray | None], dict[int, DLArray]]:
    """Of a replay whose results are wanted: gradients of its inputs, and of those results by ids, which other results
    may depend on."""
    places = [k for k, value in enumerate(call.outputs) if id(value) in wanted]
    if call.op.why_not_linked and any(g is not None and k not in places for k, g in enumerate(gs)):
        raise TraceError(
            f"dlgradient: {call.op.name}: the derivative of one of its results by another is not known: "
            f"{call.op.why_not_linked}. Call dlgradient inside the accelerated function."
        )
    inputs = [DLArray(x) if isinstance(x, Value) else x for x in call.inputs]
    found = _through_body(call, inputs, gs, needed, places)
    by_results = zip(places, found[len(inputs) :])
    return found[: len(inputs)], {id(call.outputs[k]): g for k, g in by_results if g is not None}


def _through_body(
    call: Call, inputs: list[Any], gs: list[DLArray | None], needed: list[bool], places: Sequence[int] = ()
) -> list[DLArray | None]:
    """Gradients of the inputs, and of the results at these places, by the derivative of the body."""
    op = call.op
    if op.body is None:
        remedy = f"Give it one: @{op.name}.vjp." if op.is_users else "Use another function between x and y."
        raise TraceError(f"dlgradient: {op.name} has no derivative. {remedy}")
    tape = Tape()
    seen: set[int] = set()
    for i, (value, want) in enumerate(zip(call.inputs, needed)):
        if id(value) in seen:  # the same array in two places: each place has a gradient of its own
            inputs[i] = named("alias")(inputs[i])
        seen.add(id(value))
        if want or places and isinstance(value, Value):
            tape.add_root(inputs[i]._value)
    with opened(tape), within():
        result = op.body(*inputs, **call.params)
    results = result if isinstance(result, tuple) else (result,)
    seeds = [(y._value, g) for y, g in zip(results, gs) if g is not None and tape.knows(y._value)]
    with paused([tape]):
        targets = [x._value if isinstance(x, DLArray) else Value(call.outputs[0].spec, None) for x in inputs]
        return pullback(tape, seeds, targets + [results[k]._value for k in places])


def _accumulate(gradients: dict[int, DLArray], value: Value, g: DLArray) -> None:
    before = gradients.get(id(value))
    gradients[id(value)] = g if before is None else before + g


def _ones_like(y: DLArray) -> Value:
    return named("full")(shape=y.shape, value=1.0, dtype=y.dtype.name, device=y.device)._value


def _finish(g: DLArray | None, x: DLArray) -> DLArray:
    if g is None:
        return DLArray(named("full")(shape=x.shape, value=0.0, dtype=x.dtype.name, device=x.device)._value, x._labels)
    return DLArray(g._value, x._labels)


def _tape_of(y: Any) -> Tape:
    """The innermost gradient tape on which y was computed."""
    need = "It must be a traced real dlarray scalar."
    if not isinstance(y, DLArray):
        raise TraceError(
            f"dlgradient: Value to differentiate is a {type(y).__name__}, not a dlarray. {need} "
            "What extractdata, float and item give is not traced."
        )
    if y.size != 1:
        raise TraceError(
            f"dlgradient: Value to differentiate is non-scalar ({describe(y.shape, y._labels)}). {need} "
            "Reduce it first, for example sum(y, 'all')."
        )
    if y.dtype.kind != "f":
        raise TraceError(
            f"dlgradient: Value to differentiate is logical. {need} Differentiate what it was compared from."
        )
    tapes = [tape for tape in reversed(open_tapes()) if not tape.everything]
    for tape in tapes:
        if tape.knows(y._value):
            return tape
    if not tapes:
        why = "Use dlgradient inside a function called by dlfeval to trace the variables"
    elif not any(isinstance(given, DLArray) for given in tapes[0].given):
        why = "There is no dlarray among the arguments of dlfeval, so nothing is traced: wrap them with dlarray"
    elif tapes[0].was_before(y._value):
        why = "It was there before dlfeval was called: compute it inside the function, from the function's arguments"
    else:
        why = (
            "It depends on no dlarray among the arguments of dlfeval. What extractdata takes out is not traced, and "
            "what dlgradient returns is traced with EnableHigherDerivatives=True only"
        )
    raise TraceError(f"dlgradient: Value to differentiate is not traced. {need} {why}.")


def _untraced(tape: Tape, x: tuple[Any, ...], number: int, leaf: Any) -> TraceError:
    """The complaint about a leaf of x by which nothing can be differentiated: which one it is, why, what to do."""
    name = _name_of(x, number, leaf)
    if not isinstance(leaf, DLArray):
        kind = type(leaf).__name__
        if isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
            return TraceError(
                f"dlgradient: {name} is of type {kind}, not a dlarray, and dlfeval traces dlarrays alone. Wrap it with "
                "dlarray before dlfeval is called, and leave extractdata out."
            )
        return TraceError(
            f"dlgradient: {name} is of type {kind}, not a dlarray. dlfeval and dlgradient look into struct, dict, "
            "list, tuple and dataclass, nothing else: make it one of them, or give its dlarrays in one."
        )
    value = leaf._value
    if any(not other.everything and other.knows(value) for other in open_tapes()):
        why = "it belongs to another dlfeval than y, one outside or inside of it. Pass it to the inner dlfeval too"
    elif any(isinstance(given, DLArray) and given._value is value for given in tape.given):
        why = "it is the array from outside of the function. What is traced is the function's own argument: use that"
    elif tape.was_before(value):
        holder = next((type(given).__name__ for given in tape.given if _holds(given, value)), None)
        if holder is not None:
            why = (
                f"it belongs to an object of type {holder}, and dlfeval looks into struct, dict, list, tuple and "
                "dataclass, nothing else. Make it one of these, or pass its dlarrays in one"
            )
        else:
            why = (
                "it was there before and is not among the arguments of dlfeval (a global variable, one of an enclosing "
                "function, an attribute). Pass it to dlfeval as an argument (inside a struct or list if you like)"
            )
    else:
        why = "it was made inside the function, of nothing that is traced. Pass it to dlfeval as an argument"
    return TraceError(f"dlgradient: {name} is not traced: {why}.")


def _holds(given: Any, value: Value) -> bool:
    """Whether an object, which trees do not look into, has the value among its attributes or elements."""
    if isinstance(given, Mapping):
        inside = list(given.values())
    elif isinstance(given, (deque, Set)) or (isinstance(given, np.ndarray) and given.dtype.kind == "O"):
        inside = list(given)
    else:
        inside = list(getattr(given, "__dict__", {}).values())
    return any(isinstance(x, DLArray) and x._value is value for x in flatten(inside)[0])


def _name_of(x: tuple[Any, ...], number: int, leaf: Any) -> str:
    """What the caller calls a leaf of x: "parameters.conv1.Weights"; a description if it has no name there."""
    found = paths(list(x))[number]  # "[0].conv1.Weights"
    place, _, rest = found[1:].partition("]")
    frame = own_frame()
    scopes = [] if frame is None else [frame.f_locals, frame.f_globals]
    for scope in scopes:
        for y, end in ((x[int(place)], rest), (leaf, "")):
            name = _named(scope, y)
            if name:
                return name + end
    which = "the variable" if len(x) == 1 else f"variable {int(place) + 1}"
    return f"{which} to differentiate by" + (f" (field {rest.lstrip('.')})" if rest else "")


def _named(scope: dict[str, Any], y: Any) -> str:
    """The name of an object, or of whose field it is: "w", "net.w"; "" if there is none."""
    if isinstance(y, (int, float, str)):  # equal ones may be one object
        return ""
    for name, x in scope.items():
        if x is y:
            return name
    for name, x in scope.items():
        fields = x if isinstance(x, dict) else getattr(x, "__dict__", None)
        if isinstance(fields, dict) and not isinstance(x, (type, types.ModuleType)):
            for field, z in fields.items():
                if z is y:
                    return f"{name}.{field}"
    return ""


def _released() -> TraceError:
    return TraceError(
        "dlgradient: an earlier dlgradient released the trace it used. Call the earlier one with RetainData=True."
    )


