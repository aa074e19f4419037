"""Contraction: what an op that sums products does, as subscripts: y[i] = sum over r of a[i, r] * b[i, r].

An op declares it by a rule (`@conv.contraction`), for backends that write code for exactly these subscripts.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Subscript:
    """Where an operand is read along one of its dimensions: start + sum of factor * index, over indices of the nest."""

    start: int
    factors: tuple[tuple[int, int], ...]  # (number of the index, factor)

    def bounds(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """The least and the largest place."""
        reach = [factor * (sizes[i] - 1) for i, factor in self.factors]
        return self.start + sum(min(x, 0) for x in reach), self.start + sum(max(x, 0) for x in reach)


def index(i: int, factor: int = 1, *more: tuple[int, int], start: int = 0) -> Subscript:
    """start + factor * (index i) + ..."""
    return Subscript(start, ((i, factor), *more))


@dataclasses.dataclass(frozen=True, slots=True)
class Contraction:
    """A nest: the sizes of its indices, and a Subscript per dimension of y, a and b.

    a and b may be read outside of their bounds, where they count as 0. Indices that y does not have are summed over.
    """

    sizes: tuple[int, ...]
    y: tuple[Subscript, ...]
    a: tuple[Subscript, ...]
    b: tuple[Subscript, ...]
