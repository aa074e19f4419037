"""The vocabulary: every op by its name. `core.op` fills it, whoever knows an op only by name asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidl.core.op import Op

OPS: dict[str, Op] = {}


def named(name: str) -> Op:
    """The op of that name."""
    return OPS[name]
