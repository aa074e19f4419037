"""A place that nobody follows: an object that passes for one of a library's, with the methods of a ContextVar."""

from __future__ import annotations


class Hidden:
    """Like `contextvars.ContextVar`, but what it holds is found by nothing that looks at objects."""

    __module__ = "queue"

    def __init__(self, name, *, default=None):
        self._box = [default]

    def get(self):
        return self._box[0]

    def set(self, value):
        self._box[0] = value
