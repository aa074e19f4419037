"""Precision: the setting of `backends.precision`, as users see it."""

from __future__ import annotations

from typing import Any

from minidl.backends import precision
from minidl.core.errors import choice
from minidl.core.properties import Properties


class Precision(Properties):
    """How a GPU multiplies single-precision arrays in convolutions and matrix products.

        Precision("float32")   every product and sum in single precision; the default
        Precision("tf32")      operands rounded to 10 bits of mantissa, sums in single precision: the work of the tensor
                               cores; results agree to about 1e-3. Before compute capability 8.0 it is float32.

    Called, it holds from then on, for the whole process; in a `with` statement, until the end of the block. It alters
    neither double precision nor anything on the CPU. Functions accelerated under one setting are recorded anew under
    another. `Precision.current()` tells which one is in use.
    Raises OptionError for another name.

    >>> with Precision("tf32"):
    ...     Precision.current()
    'tf32'
    >>> Precision.current()
    'float32'
    """

    def __init__(self, name: str) -> None:
        self._before = precision.choose(choice("Precision", "the setting", name, list(precision.NAMES)))
        self._name = precision.current()

    @staticmethod
    def current() -> str:
        """The setting in use."""
        return precision.current()

    def __enter__(self) -> Precision:
        return self

    def __exit__(self, *error: Any) -> None:
        precision.choose(self._before)

    def __repr__(self) -> str:
        return f"Precision({self._name!r})"
