"""What can go wrong, by name. Each message says who complains, what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from minidl.backends import NoRoom


class MinidlError(Exception):
    """Base of every error that minidl raises on purpose."""


class LabelError(MinidlError, ValueError):
    """A dimension label is wrong, missing or there too often."""


class ShapeError(MinidlError, ValueError):
    """A size or a number of dimensions does not fit."""


class SubscriptError(ShapeError, IndexError):
    """A subscript is out of range, of the wrong kind, or there are too many of them."""


class SingularError(MinidlError, LinAlgError):
    """A matrix has no inverse where NumPy asks for one."""


class DeviceError(MinidlError, RuntimeError):
    """A device was asked for that is not there, or that cannot be used as it is asked to be."""


class DeviceMemoryError(DeviceError, NoRoom):
    """The GPU has no room for an array, even after everything unused was freed."""


class DTypeError(MinidlError, TypeError):
    """Data of a kind that a dlarray cannot hold, or an object of the wrong type."""


class OptionError(MinidlError, ValueError):
    """An option is unknown, or its value is not one of the accepted ones."""


class PropertyError(MinidlError, AttributeError):
    """An object has no such property, or it cannot be set."""


class TraceError(MinidlError, RuntimeError):
    """A derivative or a trace was asked for where none can be had."""


class DataError(MinidlError, ValueError):
    """A data source cannot give what was asked."""


class EmptyDataError(DataError):
    """A data source has nothing (more) to give."""


class AccelerationWarning(UserWarning):
    """About accelerated functions. By itself: their outputs differ from the underlying function's (CheckMode)."""


class TraceWarning(AccelerationWarning):
    """An accelerated function does something that a replay would not repeat, or cannot be replayed at all."""


class RetraceWarning(AccelerationWarning):
    """An accelerated function is recorded again and again where one trace could do."""


class NonFiniteWarning(AccelerationWarning):
    """A replay gave NaN or Inf (CheckFinite)."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that the user probably meant, whatever its letter case; None if nothing is near."""
    by_lower = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def choice(who: str, option: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of the `allowed` texts (letter case aside, as in MATLAB); otherwise an OptionError."""
    allowed = list(allowed)
    if isinstance(value, str):
        for known in allowed:
            if value.lower() == known.lower():
                return known
    listed = ", ".join(f'"{known}"' for known in allowed)
    raise OptionError(f"{who}: {option} is one of {listed}; got {value!r}.")


def truth(who: str, option: str, value: object) -> bool:
    """`value` if it is a truth value (or 0 or 1, as in MATLAB); otherwise an OptionError."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and value in (0, 1)):
        return bool(value)
    raise OptionError(f"{who}: {option} is True or False; got {value!r}.")


def whole(who: str, name: str, value: Any) -> int:
    """`value` as an int if it is a whole number; otherwise an OptionError."""
    try:
        return operator.index(value)
    except TypeError:
        raise OptionError(f"{who}: {name} is a whole number; got {value!r}.") from None


def number(who: str, name: str, value: object, expected: str, is_right: Callable[[float], bool]) -> float:
    """`value` as a float if it is a finite number (also a NumPy one) that `is_right`; otherwise an OptionError."""
    if getattr(value, "shape", None) == ():
        if getattr(value, "_is_traced", False):
            raise TraceError(
                f"{who}: {name} is a traced dlarray, and there is no derivative by it. Give a number, or "
                f"extractdata({name}) if no derivative is wanted."
            )
        value = value.item()  # type: ignore[attr-defined]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and -1e308 < value < 1e308 and is_right(float(value)):  # type: ignore[operator, arg-type]
        return float(value)  # type: ignore[arg-type]
    shown = repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__
    raise OptionError(f"{who}: {name} is {expected}; got {shown}.")
