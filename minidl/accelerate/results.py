"""Results that are no dlarrays: which of them a replay can give as the function would, and how.

A replay runs none of the function's Python, so it gives what was there when the function was recorded: the same number,
a copy of an array. That is right for what is plain data through and through, and for objects that the signature names.
It is wrong for an object that the function makes: a generator, an object around a dlarray, a function that remembers.
"""

from __future__ import annotations

import array
import collections
import copy
import datetime
import decimal
import enum
import fractions
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minidl.accelerate.signature import Array, ById, Plain
from minidl.core.dlarray import DLArray
from minidl.core.tree import leaf_paths, rest_of

_CONSTANT = frozenset([
    int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), decimal.Decimal,
    fractions.Fraction, datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    uuid.UUID, re.Pattern, types.BuiltinFunctionType, types.ModuleType, np.ufunc,
])  # fmt: skip
_PARTS = (tuple, frozenset)  # constant if all they hold is
_COPIED = (np.ndarray, np.matrix, np.recarray, set, collections.deque, bytearray, array.array, np.void)


def unkept(outputs: Sequence[Any], structure: Any, known: Iterable[Array | Plain], function: Any) -> list[str]:
    """The results that a replay could not give as the function does, in words: where, and what.

    known : leaves of the signature. What is compared by identity is the same object at each replay, as is the function
            and the object that it is a method of.
    """
    same = {id(leaf.x) for leaf in known if isinstance(leaf, Plain) and _is_identity(leaf)}
    same |= {id(function), id(getattr(function, "__self__", None))}
    found = [
        f"{path or 'its result'} ({_described(x)})"
        for path, x in zip(leaf_paths(structure), outputs)
        if type(x) is not DLArray and id(x) not in same and not _is_plain(x)
    ]
    return found + [f"a key ({_described(key)})" for key in _keys(structure) if not _is_constant(key)]


def _described(x: Any) -> str:
    return f"{type(x).__name__} object" if not isinstance(x, types.FunctionType) else f"function {x.__qualname__}"


def _is_identity(leaf: Plain) -> bool:
    return isinstance(leaf.key, ById) or type(leaf.x).__hash__ is object.__hash__ or isinstance(leaf.x, type)


def _keys(structure: Any) -> Iterable[Any]:
    if isinstance(structure, tuple):
        if structure[1] is not None:
            yield from [key for key in structure[1] if type(key) is not str]
        for child in structure[2]:
            yield from _keys(child)
        yield from _keys(rest_of(structure))


def _is_constant(x: Any) -> bool:
    """Whether nobody can change it, and nothing but its value matters."""
    kind = type(x)
    if kind in _CONSTANT or isinstance(x, (enum.Enum, np.dtype, pathlib.PurePath)):
        return True
    if isinstance(x, np.generic):
        return kind.__module__ == "numpy" and kind is not np.void
    if kind is range or kind is slice:
        return all(map(_is_constant, (x.start, x.stop, x.step)))
    if kind is types.FunctionType:
        defaults = (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values())
        return x.__closure__ is None and all(map(_is_constant, defaults)) and not x.__dict__
    if isinstance(x, type):  # one that its module holds, not one made just now
        return _in_module(x) is x
    return (kind in _PARTS or _is_struct_sequence(kind)) and all(map(_is_constant, x))


def _in_module(kind: type) -> Any:
    found: Any = sys.modules.get(str(kind.__module__))
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def _is_struct_sequence(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "n_sequence_fields")


def _is_plain(x: Any) -> bool:
    """Whether it is constant, or a copy is as good as what the function would make."""
    kind = type(x)
    if kind not in _COPIED:
        return _is_constant(x)
    if isinstance(x, (np.ndarray, np.void)):
        return not x.dtype.hasobject
    return kind not in (set, collections.deque) or all(map(_is_constant, x))


def given_again(x: Any) -> Any:
    """A plain result, for another call."""
    if isinstance(x, np.ndarray):
        new = x.copy("K")
        new.flags.writeable = x.flags.writeable
        return new
    return copy.copy(x) if type(x) in _COPIED else x
