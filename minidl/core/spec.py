"""Spec, what is known of an array without its numbers; Value, a spec with its numbers."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

SINGLE, DOUBLE, LOGICAL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_)
INDEX, COUNTER = np.dtype(np.int64), np.dtype(np.uint64)  # only inside minidl: subscripts, random counters
TYPE_NAMES = {SINGLE: "single", DOUBLE: "double", LOGICAL: "logical", INDEX: "int64", COUNTER: "uint64"}


class Spec(NamedTuple):
    """Shape, dtype and device of an array. Rules (`infer`) take Specs and give Specs."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = SINGLE
    device: str = "cpu"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{TYPE_NAMES.get(self.dtype, str(self.dtype))}{list(self.shape)}"


next_age = itertools.count().__next__


class Value:
    """One array on a tape: a spec and its data. Never changed once made; its identity is its name on the tape.

    data is None for an abstract value, as used when a body is run for its structure alone. age numbers the values in
    the order in which they were made: a recording tells by it what was there before. origin, if it is not
    None, tells what the value was made of (see `core.origin`).
    """

    __slots__ = ("spec", "data", "age", "origin", "__weakref__")

    def __init__(self, spec: Spec, data: Any) -> None:
        self.spec = spec
        self.data = data
        self.age = next_age()
        self.origin: Any = None

    def __repr__(self) -> str:
        return f"<Value {self.spec}>"


def common_type(dtypes: list[np.dtype[Any]]) -> np.dtype[Any]:
    """MATLAB's rule: single if any is single, otherwise double (logical counts as double)."""
    return SINGLE if SINGLE in dtypes else DOUBLE
