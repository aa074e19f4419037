"""abs, all, any, max, min, round and sum, as `from minidl import *` gives them: they hide Python's functions.

So they serve plain Python values as Python's do. Plain are numbers (NumPy's single ones too), texts and other objects
that are no arrays; flat lists and tuples of them; and what can be iterated and is no list: generators, ranges, sets,
dictionaries. Everything else is an array and has MATLAB's meaning: dlarrays, NumPy arrays, nested lists, lists that
hold arrays, two lists beside each other, and lists with a text for a dimension, `dim` or `nargout`.
"""

from __future__ import annotations

import builtins
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from minidl.core.dlarray import DLArray
from minidl.core.errors import OptionError
from minidl.ops import elementwise as e
from minidl.ops import reduction
from minidl.ops.axes import array

F = TypeVar("F", bound=Callable[..., Any])

# what is plain --------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _is_plain_type(kind: type) -> bool:
    """Whether objects of that type are values of Python's, neither arrays nor containers."""
    if issubclass(kind, (np.generic, str, bytes)):
        return True
    is_array = issubclass(kind, DLArray) or hasattr(kind, "__array__") or hasattr(kind, "__dlpack__")
    return not is_array and not hasattr(kind, "shape") and not issubclass(kind, Iterable)


def _is_flat(x: Any) -> bool:
    """Whether it is a list of plain values, or is iterated and no list."""
    kind: Any = type(x)
    if issubclass(kind, DLArray) or hasattr(kind, "__array__") or not issubclass(kind, (Iterable, Sequence)):
        return False
    if issubclass(kind, Sequence) and not issubclass(kind, (str, bytes, range)):
        kinds: set[Any] = set(map(type, x))
        return builtins.all(map(_is_plain_type, kinds))
    return not hasattr(kind, "shape") and not hasattr(kind, "__dlpack__")


def _is_number(x: Any) -> bool:
    kind: Any = type(x)
    return _is_plain_type(kind) and not isinstance(x, (str, bytes)) and x is not None


# whose call it is: Python's or minidl's? --------------------------------------------------------------------------


def _sum_is_pythons(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    if "start" in options:
        return True
    if options or not args or not _is_flat(args[0]) or len(args) > 2:
        return False
    if len(args) == 1:
        return True
    if isinstance(args[0], (list, tuple)) and not isinstance(args[1], (str, DLArray, list, tuple)):
        raise OptionError(
            f"sum: {args[1]!r} beside a plain list could be where Python's sum starts, or MATLAB's dimension. "
            "Write sum(x, start=...), or sum(x, dim=...)."
        )
    return not isinstance(args[0], (list, tuple))


def _truth_is_pythons(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    return len(args) == 1 and not options and _is_flat(args[0])


def _extreme_is_pythons(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    if "key" in options or "default" in options:
        return True
    if options or not args:
        return False
    if len(args) == 1:
        return _is_flat(args[0])
    return builtins.all(map(_is_number, args)) or builtins.all(isinstance(x, str) for x in args)


def _or_pythons(function: F, python: Callable[..., Any], is_pythons: Callable[..., bool]) -> F:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if not (args and type(args[0]) is DLArray) and is_pythons(args, options):
            return python(*args, **options)
        return function(*args, **options)

    return cast(F, call)


all = _or_pythons(reduction.all, builtins.all, _truth_is_pythons)  # noqa: A001
any = _or_pythons(reduction.any, builtins.any, _truth_is_pythons)  # noqa: A001
max = _or_pythons(reduction.max, builtins.max, _extreme_is_pythons)  # noqa: A001
min = _or_pythons(reduction.min, builtins.min, _extreme_is_pythons)  # noqa: A001
sum = _or_pythons(reduction.sum, builtins.sum, _sum_is_pythons)  # noqa: A001


def abs(x: Any) -> Any:
    """Absolute value; its derivative at 0 is 0. Of a plain number a plain number, as Python's.

    >>> abs(array([-1.0, 2.0])).tolist(), abs(-3)
    ([1.0, 2.0], 3)
    """
    return e.abs(x) if type(x) is DLArray or not _is_number(x) else builtins.abs(x)


def round(X: Any, N: int | None = None) -> Any:
    """The nearest whole number, or the nearest number with N decimals; halves go away from 0, as in MATLAB.

    N : decimals; -2 rounds to hundreds. Not given: whole numbers.
    A plain number is rounded as Python's round does: halves to the even neighbour, a whole number without N.
    Source: MathWorks, reference page "round".

    >>> round(array([2.5, -0.5])).tolist(), round(array([1.234]), 2).tolist(), round(2.567, 2), round(2.5)
    ([3.0, -1.0], [1.23], 2.57, 2)
    """
    if type(X) is not DLArray and _is_number(X):
        return builtins.round(X, N)
    try:
        places = 0 if N is None else operator.index(N)
    except TypeError:
        raise OptionError(f"round: the number of decimals N is a whole number; got {N!r}.") from None
    if not places:
        return e.round(X)
    scale = 10.0 ** builtins.abs(places)
    x = array(X)
    return e.rdivide(e.round(e.times(x, scale)), scale) if places > 0 else e.times(e.round(e.rdivide(x, scale)), scale)
