"""The global generator: counter-based (Philox), its state one Value that draws take in and give out.

Being a Value, the state can be an implicit input and output of a recorded function: replays draw fresh numbers, the
same ones that plain calls would have drawn.
"""

from __future__ import annotations

import threading

import numpy as np

from minidl.core.errors import OptionError
from minidl.core.spec import Spec, Value
from minidl.core.tape import note_read

STATE_SPEC = Spec((2,), np.dtype(np.uint64))


class Cell:
    """A named place for a Value that outlives calls. A recording takes its content in and puts the new one back."""

    def __init__(self, name: str, value: Value) -> None:
        self.name, self.value = name, value


def _state(seed: int, draws: int = 0) -> Value:
    return Value(STATE_SPEC, np.array([seed, draws], dtype=np.uint64))


GENERATOR = Cell("rng", _state(0))
CELLS = [GENERATOR]
LOCK = threading.RLock()  # held from taking a cell's content until it is replaced: threads never draw the same numbers


def rng(seed: int | str | dict[str, int] | None = None) -> dict[str, int]:
    """Seed the global generator, or restore a state; returns the state from before.

    seed : a whole number >= 0, "default" (0, as at start), a state that `rng` returned, or None to ask only.

    >>> before = rng(7)
    >>> _ = rng(before)
    """
    note_read(GENERATOR.value)
    data = GENERATOR.value.data
    before = {"Seed": int(data[0]), "Draws": int(data[1])}
    if isinstance(seed, dict) and seed.keys() == before.keys():
        GENERATOR.value = _state(seed["Seed"], seed["Draws"])
    elif seed == "default":
        GENERATOR.value = _state(0)
    elif isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= seed < 2**64:
        GENERATOR.value = _state(int(seed))
    elif seed is not None:
        raise OptionError(f'rng: a seed is a whole number >= 0, "default" or a state from rng(); got {seed!r}.')
    return before


def generator_of(state: np.ndarray) -> np.random.Generator:
    """NumPy's generator for one draw: the seed is the key, the number of the draw is part of the counter."""
    return np.random.Generator(np.random.Philox(key=int(state[0]), counter=[0, 0, int(state[1]), 0]))


def advanced(state: np.ndarray) -> np.ndarray:
    """The state after one draw."""
    return state + np.array([0, 1], dtype=np.uint64)


def host_generator() -> np.random.Generator:
    """A generator for work outside of tapes (initial weights, shuffling); counts as one draw."""
    with LOCK:
        note_read(GENERATOR.value)  # what the host draws, no replay can draw anew
        state = GENERATOR.value.data
        GENERATOR.value = Value(STATE_SPEC, advanced(state))
    return generator_of(state)


def permutation(n: int) -> np.ndarray:
    """The numbers 0..n-1 in random order."""
    return host_generator().permutation(n)


