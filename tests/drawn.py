"""Cases drawn anew in each run, where all of them would take too long: by a seed that is printed.

A failing test shows the seed among what it printed; with MINIDL_TEST_SEED=that number the same cases are drawn again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

SEED = int(os.environ.get("MINIDL_TEST_SEED", secrets.randbelow(10**6)))

Case = TypeVar("Case")


def generator() -> np.random.Generator:
    """A generator from this run's seed, which it prints."""
    print(f"MINIDL_TEST_SEED={SEED}")
    return np.random.default_rng(SEED)


def some(cases: Iterable[Case], count: int) -> Iterator[Case]:
    """So many of the cases, without repetition."""
    listed = list(cases)
    for k in generator().choice(len(listed), min(count, len(listed)), replace=False):
        print("case:", listed[k])
        yield listed[k]
