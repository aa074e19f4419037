"""Properties with MATLAB's spelling: a name that is none is refused, with the one that was probably meant."""

from __future__ import annotations

from typing import Any

from minidl.core.errors import PropertyError, nearest


class Properties:
    """Base of classes whose objects have properties.

    Properties are those of the class; names that begin with an underscore are the object's own. A class of the user's
    that derives from one of minidl's may have attributes of its own.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            found = getattr(type(self), name, None)
            is_property = isinstance(found, property)
            if not (is_property and found.fset is not None) and (is_property or _is_ours(self)):  # type: ignore[union-attr]
                raise _refused(self, name, is_there=found is not None)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if not name.startswith("_") and (isinstance(getattr(type(self), name, None), property) or _is_ours(self)):
            raise PropertyError(f"{type(self).__name__}: the property {name!r} cannot be deleted. Set it.")
        object.__delattr__(self, name)


def _is_ours(x: object) -> bool:
    return type(x).__module__.startswith("minidl.")


def _refused(x: object, name: str, *, is_there: bool) -> PropertyError:
    kind = type(x)
    if is_there:
        return PropertyError(f"{kind.__name__}: {name!r} cannot be set. It can be read, or called if it is a function.")
    names = [known for known in dir(kind) if not known.startswith("_")]
    meant = nearest(name, names)
    listed = ", ".join(known for known in names if isinstance(getattr(kind, known), property))
    remedy = f"Did you mean {meant}?" if meant else f"It has {listed}."
    return PropertyError(f"{kind.__name__}: there is no property {name!r}. {remedy}")
