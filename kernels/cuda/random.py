"""Random numbers by counter: every element from its own place among the words of a draw, with the bits of the CPU.

The state is [seed, draws], the words are those of Philox 4x64-10 with key (seed, 0) and counter (block, 0, draw, 0),
block counting from 1. Uniform: element i is word i >> 11 in double; in single it is a half of word i / 2, the lower one
first, >> 8. Normal: element i is the inverse distribution function at word i (see `minidl.kernels.normal`).
"""

from __future__ import annotations

from typing import Any

from .. import normal
from . import launch

Array = Any  # of CuPy

_THREADS = 256


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(repr(x) for x in numbers)


_TABLES = {
    "NEAR": normal.NEAR, "NEAR_SQUARED": normal.NEAR_SQUARED, "MIDDLE_START": normal.MIDDLE_START,
    "FAR_START": normal.FAR_START, "LOG_2": normal.LOG_2, "ROOT_HALF": normal.ROOT_HALF,
    "LOG_SERIES": _listed(normal.LOG_SERIES),
    "CENTRE_ABOVE": _listed(normal.CENTRE[0]), "CENTRE_BELOW": _listed(normal.CENTRE[1]),
    "MIDDLE_ABOVE": _listed(normal.MIDDLE[0]), "MIDDLE_BELOW": _listed(normal.MIDDLE[1]),
    "FAR_ABOVE": _listed(normal.FAR[0]), "FAR_BELOW": _listed(normal.FAR[1]),
}  # fmt: skip


def random(y: Array, new: Array, state: Array, *, shape: tuple[int, ...], dtype: str, law: str) -> None:
    """y: numbers of the law, "uniform" in [0, 1) or "normal"; new: the state after this draw (not `state` itself)."""
    run = launch.kernel("random.cu", f"random_{law}", T=y.dtype, **_TABLES)
    each = 4 if law == "normal" else 32 // y.dtype.itemsize
    run(max(1, -(-y.size // (each * _THREADS))), _THREADS, (y, new, state, y.size))
