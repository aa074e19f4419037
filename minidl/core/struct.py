"""struct: named fields, by attribute or by item, as in MATLAB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidl.core.changes import note_change
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

    # what changes it tells so (see `core.changes`)
    def __setitem__(self, name: str, value: Any) -> None:
        dict.__setitem__(self, name, value)
        note_change()

    def __delitem__(self, name: str) -> None:
        dict.__delitem__(self, name)
        note_change()

    def __ior__(self, other: Any) -> struct:  # type: ignore[misc,override]
        try:
            return dict.__ior__(self, other)
        finally:
            note_change()

    def update(self, *others: Any, **fields: Any) -> None:
        """Take over the fields of another struct or dict, and those given by name."""
        try:
            dict.update(self, *others, **fields)
        finally:  # some of them, if there was an error
            note_change()

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The field; if it is not there, it is made first."""
        found = dict.setdefault(self, name, default)
        note_change()
        return found

    def pop(self, *args: Any) -> Any:
        """Take a field out: pop(name), or pop(name, default) for one that may be missing."""
        found = dict.pop(self, *args)
        note_change()
        return found

    def popitem(self) -> tuple[str, Any]:
        """Take the last field out: (name, field)."""
        found = dict.popitem(self)
        note_change()
        return found

    def clear(self) -> None:
        """Take all fields out."""
        dict.clear(self)
        note_change()

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
            yield f"{lead}[{field._head() if hasattr(field, '_head') else _array(field)}]"
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
