"""What a frame is calling right now: `float(x)` says what it does, `math.sin(x)` asks for a float in silence."""

from __future__ import annotations

import array
import builtins
import dis
import functools
import types
from typing import Any

import numpy as np

_LOADS = ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
_ASSIGNMENT = ("a[i] = x",)
_IN_C = (types.BuiltinFunctionType, types.MethodWrapperType, np.ufunc)
_TAKE_FLOATS = ("math", "cmath", "array", "_operator", "numpy", "scipy", "pandas")
_STEPS = {"isnan", "isinf", "isfinite", "isclose", "floor", "ceil", "trunc", "ulp", "gcd", "lcm", "comb", "perm"}


def takes_float(frame: types.FrameType) -> str | None:
    """The name of a function in C that is being called and makes plain numbers of an argument whose derivative counts:
    "math.sin", "z.fill", "a[i] = x"; None where it is another one, or cannot be told."""
    names = _names(frame.f_code, frame.f_lasti)
    if names == _ASSIGNMENT:
        return names[0]
    found: Any = None
    for place, name in enumerate(names):
        if place == 0:
            scopes = (frame.f_locals, frame.f_globals, vars(builtins))
            found = next((scope[name] for scope in scopes if name in scope), None)
        elif isinstance(found, (types.ModuleType, np.ndarray, array.array)):
            found = getattr(found, name, None)
        else:
            return None
    if found is array.array:
        return "array.array"
    if not isinstance(found, _IN_C) or names[-1] in _STEPS:
        return None
    home = getattr(found, "__module__", None) or type(getattr(found, "__self__", None)).__module__
    return ".".join(names) if home.partition(".")[0] in _TAKE_FLOATS else None


@functools.lru_cache(4096)
def _names(code: types.CodeType, place: int) -> tuple[str, ...]:
    """Names that lead to what is called at this instruction: ("math", "sin"); ("a[i] = x",) for an assignment."""
    before = []
    for instruction in dis.get_instructions(code):
        if instruction.offset == place:
            break
        before.append(instruction)
    if instruction.opname == "STORE_SUBSCR":
        return _ASSIGNMENT
    if not instruction.opname.startswith(("CALL", "PRECALL")):
        return ()
    names: list[str] = []
    for other in _way_to_call(before, instruction):
        if other.opname.startswith(_LOADS) and isinstance(other.argval, str):
            names = [other.argval]
        elif other.opname in ("LOAD_ATTR", "LOAD_METHOD") and names:
            names.append(other.argval)
        elif other.opname.startswith("CALL"):
            names = []  # what a call gave is called, or asked for a method
    return tuple(names)


def _way_to_call(before: list[dis.Instruction], call: dis.Instruction) -> list[dis.Instruction]:
    """The instructions that load what is called, and perhaps some of those that load its arguments."""
    here = getattr(call, "positions", None)
    if here is not None:
        starts = [(x, x.positions) for x in before]  # type: ignore[attr-defined]
        return [x for x, at in starts if at and (at.lineno, at.col_offset) == (here.lineno, here.col_offset)]
    # Python 3.10 does not know columns: what is called lies below the arguments on the stack
    count = call.arg or 0
    waiting = 1 + (count & 1) if call.opname == "CALL_FUNCTION_EX" else count + (call.opname == "CALL_FUNCTION_KW")
    for end in range(len(before), 0, -1):
        if waiting == 0:
            start = end - 1
            while start > 0 and before[start].opname in ("LOAD_ATTR", "LOAD_METHOD"):
                start -= 1
            return before[start:end]
        last = before[end - 1]
        if last.opcode in dis.hasjrel or last.opcode in dis.hasjabs:
            break  # an argument with a choice in it
        waiting -= dis.stack_effect(last.opcode, last.arg)
    return []
