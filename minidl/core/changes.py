"""Changes: a mark that is another one whenever a struct or a dlarray was changed in place, wherever that was.

Who has looked at structs and dlarrays and kept the mark of that moment knows, as long as it is the same, that they are
as they were. Changes in place are rare: a training loop makes new ones. What goes round a struct's own methods
(`dict.__setitem__(s, ...)`) is not noticed.
"""

from __future__ import annotations


class _Changes:
    """`last` is made anew by each change, after it has been made: compare it by `is`."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = object()


changes = _Changes()


def note_change() -> None:
    """Something was changed."""
    changes.last = object()
