"""struct: named fields, by attribute or by item, as in MATLAB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidl.core.errors import MinidlError, nearest


class struct(dict[str, Any]):
    """A MATLAB struct: `s.conv1.Weights` and `s["conv1"]["Weights"]` are the same field.

    Missing fields raise an error that names the nearest one. `s.copy()` copies nested containers too, so that the
    copy can be changed freely (MATLAB copies on assignment, Python does not).

    >>> s = struct(Bias=1.5)
    >>> s.Scale = 2
    >>> s
    struct with fields:
    <BLANKLINE>
         Bias: 1.5
        Scale: 2
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise _missing(name, self) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise _missing(name, self)
        del self[name]

    def __dir__(self) -> Iterator[str]:
        yield from (name for name in self if isinstance(name, str))
        yield from dict.__dir__(self)

    def __repr__(self) -> str:
        return "struct with fields:\n\n" + "\n".join(_lines(self)) if self else "struct with no fields"

    def copy(self) -> struct:
        """A copy that shares no container with the original."""
        return _copy(self)


def _copy(x: Any) -> Any:
    if isinstance(x, dict):
        return type(x)((name, _copy(field)) for name, field in x.items())
    return [_copy(field) for field in x] if type(x) is list else x


def _lines(s: dict[str, Any], indent: str = "    ") -> Iterator[str]:
    width = max(len(name) for name in s)
    for name, field in s.items():
        lead = f"{indent}{name:>{width}}: "
        if isinstance(field, struct):
            yield f"{lead}[1×1 struct]"
            if field:
                yield from _lines(field, indent + " " * (width + 2))
        elif hasattr(field, "shape") and getattr(field, "size", 1) != 1:
            yield f"{lead}[{repr(field).splitlines()[0] if hasattr(field, 'dims') else _array(field)}]"
        else:
            yield f"{lead}{field!r}" if not hasattr(field, "item") else f"{lead}{field.item()}"


def _array(field: Any) -> str:
    return f"{'×'.join(map(str, field.shape))} {field.dtype}"


class FieldError(MinidlError, AttributeError):
    """A struct has no such field."""


def _missing(name: str, s: dict[str, Any]) -> FieldError:
    meant = nearest(name, map(str, s))
    remedy = f"Did you mean {meant!r}?" if meant else f"It has {', '.join(map(repr, s))}." if s else "It is empty."
    return FieldError(f"struct: there is no field {name!r}. {remedy}")
