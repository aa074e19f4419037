"""How arrays lie in memory: orders of dimensions, strides in elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest; those of size 1 keep their place among equals."""
    return tuple(sorted(range(len(shape)), key=lambda i: (-abs(strides[i]) if shape[i] > 1 else 0, i)))


def back_order(order: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if order == tuple(range(len(order))) else tuple([order.index(i) for i in range(len(order))])


def strides_of(x: Any) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple([n // x.itemsize for n in x.strides])


def dense_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([math.prod(sizes[k + 1 :]) for k in range(len(sizes))])


def is_dense(arrays: Sequence[Any]) -> bool:
    """Whether the arrays have no gaps, in whatever order their dimensions lie."""
    lead = next((x for x in arrays if hasattr(x, "strides")), None)
    if lead is None:
        return False
    order = memory_order(lead.shape, lead.strides)
    sizes = tuple([lead.shape[i] for i in order])
    return all(n == 1 or s == d for n, s, d in zip(sizes, [strides_of(lead)[i] for i in order], dense_strides(sizes)))
