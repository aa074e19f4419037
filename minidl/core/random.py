"""The global generator: counter-based (Philox), its state one Value that draws take in and give out.

Being a Value, the state can be an implicit input and output of a recorded function: replays draw fresh numbers, the
same ones that plain calls would have drawn.
Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import secrets
import threading
from typing import Any

import numpy as np

from minidl.core.device import host
from minidl.core.errors import OptionError
from minidl.core.spec import Spec, Value
from minidl.core.struct import struct
from minidl.core.tape import note_read

TYPE = "philox"
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


def rng(seed: int | str | dict[str, Any] | None = None, generator: str | None = None) -> struct:
    """Seed the global generator, or restore a state; returns the state from before.

    seed      : a whole number from 0 to 2^64 - 1, "default" (0, as at start), "shuffle" (another one every time), a
                state that `rng` returned, or None to ask only.
    generator : "philox", the one there is (Philox 4x64 with 10 rounds, counter-based).
    Returns a struct: Type, "philox"; Seed; Draws, how many draws there were since seeding. These are the whole state.
    Source: MathWorks, reference page "rng".

    >>> before = rng(7)
    >>> rng()
    struct with fields:
    <BLANKLINE>
         Type: 'philox'
         Seed: 7
        Draws: 0
    >>> _ = rng(before)
    """
    if generator is not None:
        _check_type(generator)
        if seed is None or isinstance(seed, dict):
            raise OptionError("rng: a generator goes with a seed, a state has its own. Write rng(seed, generator).")
    with LOCK:
        note_read(GENERATOR.value)
        data = host(GENERATOR.value.data)
        before = struct(Type=TYPE, Seed=int(data[0]), Draws=int(data[1]))
        if isinstance(seed, dict) and seed.keys() == before.keys():
            _check_type(seed["Type"])
            GENERATOR.value = _state(_whole(seed["Seed"]), _whole(seed["Draws"]))
        elif isinstance(seed, str) and seed == "shuffle":
            GENERATOR.value = _state(secrets.randbits(32))
        elif isinstance(seed, str) and seed == "default":
            GENERATOR.value = _state(0)
        elif seed is not None:
            GENERATOR.value = _state(_whole(seed))
    return before


def _whole(n: Any) -> int:
    if isinstance(n, (int, np.integer)) and not isinstance(n, bool) and 0 <= n < 2**64:
        return int(n)
    raise OptionError(
        f'rng: a seed is a whole number from 0 to 2^64 - 1, "default", "shuffle" or a state from rng(); got {n!r}.'
    )


def _check_type(name: Any) -> None:
    if not isinstance(name, str) or name.lower() != TYPE:
        raise OptionError(f'rng: the generator is "{TYPE}", there is no other; got {name!r}. Leave it out.')


def generator_of(state: np.ndarray) -> np.random.Generator:
    """NumPy's generator for one draw: the key is (seed, 0), the counter (block, 0, draw, 0).

    Words of 64 bits, lowest first. Block counts from 1, each block has four words of random bits; so a draw would have
    to be of 2^130 words before it came upon those of the next one. The op `random` takes the same words, and every
    element from a place of its own among them, so that any device draws the same bits.
    """
    return np.random.Generator(np.random.Philox(key=int(state[0]), counter=int(state[1]) << 128))


def advanced(state: np.ndarray) -> np.ndarray:
    """The state after one draw."""
    return state + np.array([0, 1], dtype=np.uint64)


def host_state() -> np.ndarray:
    """The state for one draw outside of tapes."""
    with LOCK:
        note_read(GENERATOR.value)  # what the host draws, no replay can draw anew
        state: np.ndarray = host(GENERATOR.value.data)
        GENERATOR.value = Value(STATE_SPEC, advanced(state))
    return state


def host_generator() -> np.random.Generator:
    """A generator for work outside of tapes (initial weights, shuffling); counts as one draw."""
    return generator_of(host_state())


def permutation(n: int) -> np.ndarray:
    """The numbers 0..n-1 in random order."""
    return host_generator().permutation(n)
