"""What an accelerated function tells its user: why a call is not replayed, what a replay leaves out, what costs traces.

Each text says who, what, where and what to do instead.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from minidl.accelerate import report
from minidl.accelerate.captures import MOST_OBJECTS
from minidl.accelerate.effects import Effect
from minidl.accelerate.recording import Recording, Trace
from minidl.accelerate.signature import Signature

MANY = 3  # values at one place after which a warning explains how to share one trace


_ASKING = {  # what a function may ask that says something else each time
    "clock": "asks {0.path} at {0.where}, which says something else each time; BUT Ask before, and pass the number.",
    "chance": "draws random numbers of the operating system ({0.path}) at {0.where}, others each time; BUT "
              "Draw with rand(..., like=x) instead, or pass the numbers in.",
    "outside": "asks for something outside of the program ({0.path}) at {0.where}, which may change; BUT "
               "Ask before, and pass what was found.",
    "threads": "has another thread work for it ({0.path}) at {0.where}, which is not recorded; BUT "
               "Do that work in the function itself.",
    "frames": "looks at who calls it ({0.path}) at {0.where}, which a replay cannot know; BUT Pass what it needs.",
    "fill": "fills its argument {0.path} at {0.where}, which a replay would not do; BUT Return a new one instead.",
}  # fmt: skip


def complaints(recording: Recording, name: str) -> list[str]:
    """Why the recorded call cannot be replayed."""
    but = "the result is right, but the call cannot be replayed."
    found = [
        f"{name} looks at a traced number at {line}; its result is right, but calls like this one cannot be replayed. "
        "Keep to dlarray operations there, or pass the number as an argument."
        for line in dict.fromkeys(recording.reads)
    ]
    found += [
        f"{name} uses a dlarray at {line} that it got neither as an argument nor from a variable or attribute that can "
        f"be followed; {but} Pass it as an argument."
        for line in dict.fromkeys(recording.strangers)
    ]
    found += [
        f"{name} returns {what} that it made itself, which a replay could not make again; {but} "
        "Return dlarrays, numbers, texts, NumPy arrays, and lists, dicts, structs, dataclasses or tuples of these."
        for what in recording.unkept
    ]
    if recording.sources:
        kinds = ", ".join(dict.fromkeys(type(x).__name__ for x in recording.sources))
        found.append(
            f"{name} was given a source of data ({kinds}), which may give something else each time; {but} "
            "Read the data first and pass that."
        )
    found += [
        f"{name} looks up what it needs by a name that is made at run time ({what}) at {line}, which cannot be "
        f"followed; {but} Pass it as an argument."
        for what, line in recording.captures.hidden
    ]
    found += [
        f"{name} uses {path}, an object of a library ({type(x).__name__}) that may be changed without a trace; {but} "
        "Pass its numbers as a dlarray or a NumPy array."
        for path, x in recording.opaque
    ]
    if not recording.captures.is_whole:
        found.append(
            f"{name} reaches more than {MOST_OBJECTS:,} objects besides its arguments, too many to compare; {but} "
            "Pass what it needs as arguments."
        )
    if recording.has_host_draws:
        found.append(
            f"while {name} ran, Python's or NumPy's random numbers were drawn; {but} "
            "Draw with rand(..., like=x) instead, or pass the numbers in."
        )
    for effect in recording.effects:
        if effect.kind in _ASKING:
            found.append(f"{name} {_ASKING[effect.kind].format(effect)}".replace("BUT", but))
        elif effect.kind == "change" and effect.is_read:
            found.append(
                f"{name} reads {effect.path} and changes it at {effect.where}, which will not repeat on replay; {but} "
                "Pass it in and return the new one."
            )
    return [f"dlaccelerate: {text}" for text in found]


def side_effect(effect: Effect) -> str:
    """What the function did besides computing, in words."""
    words = {"output": f"writes ({effect.path})", "change": f"changes {effect.path}"}
    return f"{words.get(effect.kind, effect.path)} at {effect.where}"


def notes(recording: Recording, name: str) -> list[str]:
    """What the function did besides computing; a replay does not do it again."""
    return [
        f"dlaccelerate: {name} {side_effect(effect)}; that will not repeat on replay. "
        "Return what is needed, and do it outside."
        for effect in recording.effects
        if effect.kind == "output" or (effect.kind == "change" and not effect.is_read)
    ]


def nearest(kept: list[Trace], signature: Signature, function: Callable[..., Any]) -> tuple[list[Any], int | None]:
    """(what is new in this signature, number of the trace nearest to it), looking at the latest traces."""
    best, why = None, []
    for index in range(len(kept) - 1, max(-1, len(kept) - 1 - 20), -1):
        found = report.differences(kept[index].signature, signature, function)
        if best is None or len(found) < len(why):
            best, why = index, found
    return why, best


class Retraces:
    """Remembers which plain values came, to tell, once for each place, how one trace could serve them all."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name = function, name
        self._met: dict[str, set[Hashable]] = {}
        self._told: set[str] = set()

    def clear(self) -> None:
        self._met.clear()
        self._told.clear()

    def of_values(self, signature: Signature, why: list[report.Difference]) -> list[str]:
        """For places where plain values keep changing."""
        new = {x.path for x in why}
        found = []
        for path, item in report.items(signature, self._function).items():
            is_number = report.is_numeric(item.leaf)
            if item.leaf is None or not (is_number or report.is_made_anew(item.leaf)):
                continue
            met = self._met.setdefault(path, set())
            if len(met) < MANY:
                met.add(item.leaf.key)  # type: ignore[union-attr]
            if path not in new or len(met) < MANY or path in self._told:
                continue
            self._told.add(path)
            where = "the captured" if item.is_captured else "the argument"
            remedy = (
                f"If it keeps changing, make it a dlarray, {path} = dlarray(...): all its values then share one trace."
                if is_number
                else "Make it once, outside of the loop, and use that same object each time."
            )
            found.append(
                f"dlaccelerate: {self._name} is recorded anew for each value of {where} {path}, now {item.text}. "
                f"{remedy}"
            )
        return found

    def of_a_full_cache(self, size: int, misses: Iterable[report.MissRow]) -> list[str]:
        """The first time that a trace had to go."""
        if "" in self._told:
            return []
        self._told.add("")
        counts = collections.Counter(x.path for miss in misses for x in miss.why)
        often = f" What most often was new: {counts.most_common(1)[0][0]}." if counts else ""
        return [
            f"dlaccelerate: the cache of {self._name} is full ({size} traces), the oldest one is forgotten.{often} "
            "See explain(); fewer kinds of calls or a larger CacheSize would save recording them again."
        ]
