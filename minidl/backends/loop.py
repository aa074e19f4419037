"""Loop: a nest of loops over one iteration space that loads, computes scalars and stores or accumulates.

It is what a backend prints as code. Every MAP or REDUCE node is a loop, and so is every MAP op with a body. The
dimensions of the iteration space run from the slowest to the fastest in memory; strides and offsets count elements.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """Subscripts into a buffer: element (i, j, ...) lies at offset + i * strides[0] + j * strides[1] + ..."""

    buffer: Any
    offset: int
    strides: tuple[int, ...]


class Temp(int):
    """Number of a scalar of a loop: one per step."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"t{int(self)}"

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One scalar of a loop: loaded from memory, or computed by a text over earlier scalars and literals."""

    text: str  # '' for a load
    args: tuple[Any, ...]  # Temps and literals
    dtype: str
    literal_dtype: str = ""
    access: Access | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Where a scalar goes; `combine` is the text that joins two along dimensions of stride 0, '' for a plain store."""

    source: Temp
    access: Access
    dtype: str
    combine: str = ""
    identity: float = 0.0


@dataclasses.dataclass
class Loop:
    """An iteration space, the scalars of one iteration, and where they go."""

    sizes: tuple[int, ...]
    steps: list[Step]
    stores: list[Store]
    where: list[str] = dataclasses.field(default_factory=list)

    @property
    def reads(self) -> set[Any]:
        return {step.access.buffer for step in self.steps if step.access is not None}

    @property
    def writes(self) -> list[Any]:
        return [store.access.buffer for store in self.stores]

    def __str__(self) -> str:
        lines = [f"loop over {list(self.sizes)}"]
        for i, step in enumerate(self.steps):
            if step.access is not None:
                a = step.access
                lines.append(f"  t{i} = load {a.buffer} from {a.offset} strides {list(a.strides)}")
            else:
                lines.append(f"  t{i} = {step.text.format(*step.args)}")
        for store in self.stores:
            how = f"combine by {store.combine}" if store.combine else "store"
            lines.append(f"  {how} {store.source} -> {store.access.buffer} strides {list(store.access.strides)}")
        return "\n".join(lines)
