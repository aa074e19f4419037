"""The global generator: counter-based (Philox), its state one Value that draws take in and give out.

Being a Value, the state can be an implicit input and output of a recorded function: replays draw fresh numbers, the
same ones that plain calls would have drawn.
Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
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


def _start_seed() -> int:
    """The seed of a process in which nobody has set one: 0; in a worker of multiprocessing's it depends on which it is.

    Workers are numbered in their names, if nobody has given them others: then it is the same at every start.
    """
    process = getattr(sys.modules.get("multiprocessing.process"), "current_process", lambda: None)()
    if process is None or process.name == "MainProcess":
        return 0
    is_numbered = re.fullmatch(r"\w+-\d+(:\d+)*", process.name)
    return _mixed("spawned", process.name, None if is_numbered else os.getpid())


def _mixed(*facts: object) -> int:
    """A seed of 64 bits that depends on facts."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:8], "little")


GENERATOR = Cell("rng", _state(_start_seed()))
_seed: int | None = _start_seed()  # this process's own; None once somebody has set another one
CELLS = [GENERATOR]
LOCK = threading.RLock()  # held from taking a cell's content until it is replaced: threads never draw the same numbers


# forks ------------------------------------------------------------------------------------------------------------
_forks = itertools.count(1)
_this_fork = threading.local()


def _count_fork() -> None:
    _this_fork.number = next(_forks)


def _become_worker() -> None:
    """A forked child draws other numbers than its parent and its siblings, if nobody has set a seed."""
    global _seed
    if hasattr(LOCK, "_at_fork_reinit") and not LOCK._is_owned():  # type: ignore[attr-defined]
        LOCK._at_fork_reinit()  # another thread may have held it, which is not here
    if _seed is not None:
        _seed = _mixed("forked", _seed, _this_fork.number)
        GENERATOR.value = _state(_seed)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork, after_in_child=_become_worker)


@contextlib.contextmanager
def kept_state() -> Iterator[None]:
    """Whatever is drawn and seeded inside: afterwards the generator is as it was before."""
    global _seed
    before = GENERATOR.value, _seed
    try:
        yield
    finally:
        GENERATOR.value, _seed = before


def rng(seed: int | str | dict[str, Any] | None = None, generator: str | None = None) -> struct:
    """Seed the global generator, or restore a state; returns the state from before.

    seed      : a whole number from 0 to 2^64 - 1, "default" (0, as at start), "shuffle" (another one every time), a
                state that `rng` returned, or None to ask only.
    generator : "philox", the one there is (Philox 4x64 with 10 rounds, counter-based).
    Returns a struct: Type, "philox"; Seed; Draws, how many draws there were since seeding. These are the whole state.
    There is one generator for all threads of a process, and no two draws are alike. Each process has its own. A worker
    process, forked or spawned, in which nobody has called rng starts from a seed of its own, which depends on its
    number (rng().Seed tells it), so that workers draw different numbers. A forked worker inherits a seed that was set
    before the fork, and a spawned one runs the calls of rng in the main file again unless they are guarded by
    `__name__ == "__main__"`; then all draw the same numbers. So seed each worker: rng(seed + number).
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
    global _seed
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
        if seed is not None:
            _seed = None
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
