"""Precision: how a GPU multiplies singles in sums of products, exactly or on the tensor cores.

    "float32"  each product and sum in single precision (the default)
    "tf32"     operands rounded to 10 bits of mantissa, added up in single precision: several times as fast

It is a setting of the whole process and part of every signature of an accelerated function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

NAMES = ("float32", "tf32")
_current = NAMES[0]


def current() -> str:
    """The setting in use."""
    return _current


def choose(name: str) -> str:
    """Use this one from now on; returns the one before."""
    global _current
    before, _current = _current, name
    return before


@contextlib.contextmanager
def chosen(name: str) -> Iterator[None]:
    """Use it for the block."""
    before = choose(name)
    try:
        yield
    finally:
        choose(before)
