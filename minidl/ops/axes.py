"""Which dimension is meant: a number, a label, several of either, "all", or MATLAB's default."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numpy as np

from minidl.core.dlarray import DLArray, Operand, dlarray, numbers
from minidl.core.errors import LabelError, OptionError, ShapeError
from minidl.core.labels import LETTERS, describe

Dim: TypeAlias = "int | str | list[int] | tuple[int, ...] | np.ndarray | None"


def array(x: Operand) -> DLArray:
    """x as a dlarray of its own: what a function returns must not change when its argument is assigned to later."""
    return DLArray(x._value, x._labels) if type(x) is DLArray else dlarray(x)


def axes_of(who: str, dim: Dim, shape: tuple[int, ...], labels: str) -> tuple[int, ...]:
    """The dimensions that `dim` names, rising: a number (negative: from the end), labels, a list of either or "all".

    None is MATLAB's default, the first dimension whose size is not 1. Raises LabelError, ShapeError or OptionError.
    """
    if type(dim) is list:
        dim = tuple(dim)
    elif isinstance(dim, (np.ndarray, DLArray)):
        found = (numbers(dim) if isinstance(dim, DLArray) else dim).tolist()
        dim = tuple(found) if isinstance(found, list) else found
    refuse_truth(who, dim)
    try:
        return _axes_of(who, dim, shape, labels)  # type: ignore[arg-type]
    except TypeError:  # not hashable
        raise _not_a_dim(who, dim) from None


def refuse_truth(who: str, dim: Any) -> None:
    """True is no dimension. To be asked before a cache is: that takes True for 1."""
    if dim is True or dim is False or (type(dim) is tuple and (True in dim or False in dim) and _has_truth(dim)):
        raise _not_a_dim(who, dim)


def _has_truth(dim: tuple[Any, ...]) -> bool:
    return any(isinstance(part, bool) for part in dim)


def axis_of(who: str, dim: Dim, shape: tuple[int, ...], labels: str) -> int:
    """Like `axes_of`, where one dimension is wanted."""
    axes = axes_of(who, dim, shape, labels)
    if len(axes) != 1:
        if not shape:
            raise ShapeError(f"{who}: X is a scalar and has no dimensions. Reshape it to 1×1 first.")
        raise OptionError(
            f"{who}: one dimension is wanted, {dim!r} names {len(axes)} of {describe(shape, labels)}. Give its number."
        )
    return axes[0]


@functools.lru_cache(maxsize=8192)
def _axes_of(who: str, dim: Any, shape: tuple[int, ...], labels: str) -> tuple[int, ...]:
    if dim is None:
        return (next((i for i, n in enumerate(shape) if n != 1), 0),) if shape else ()
    if isinstance(dim, str):
        if dim.lower() == "all":
            return tuple(range(len(shape)))
        wanted = _checked(who, dim, labels)
        return tuple(i for i, letter in enumerate(labels) if letter in wanted)
    if isinstance(dim, tuple):
        found = [axis for part in dim for axis in _axes_of(who, part, shape, labels)]
        if len(set(found)) != len(found):
            raise OptionError(f"{who}: {dim} names a dimension twice. Give each dimension once.")
        return tuple(sorted(found))
    if not isinstance(dim, (int, float, np.integer)) or dim != int(dim):
        raise _not_a_dim(who, dim)
    axis = int(dim)
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(
            f"{who}: there is no dimension {axis}: X has {len(shape)} ({describe(shape, labels)}). "
            "Dimensions count from 0."
        )
    return (axis % len(shape),)


def _checked(who: str, text: str, labels: str) -> str:
    for letter in text:
        if letter not in LETTERS:
            raise OptionError(f'{who}: a dimension is a number, labels from "SCBTU" or "all"; got {text!r}.')
        if letter not in labels:
            raise LabelError(
                f'{who}: no dimension of X has the label {letter}; its labels are "{labels}". '
                "Name one of them, or a dimension by number." if labels else
                f'{who}: "{text}" asks for labels, X is unformatted. Label it, dlarray(X, fmt), or give numbers.'
            )  # fmt: skip
    return text


def _not_a_dim(who: str, dim: Any) -> OptionError:
    return OptionError(
        f'{who}: a dimension is a whole number (from 0), labels such as "C" or "SS", a list of numbers, or "all"; '
        f"got {dim!r}."
    )
