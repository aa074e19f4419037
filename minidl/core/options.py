"""Options with MATLAB's spelling: a misspelt one gets an error that names the right one.

They are given by keyword, Padding="same", or in MATLAB's older form, as pairs of a name and a value behind the other
arguments: "Padding", "same".
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from minidl.core.errors import OptionError, nearest

F = TypeVar("F", bound=Callable[..., Any])


def options(function: F) -> F:
    """Decorate a public function: its keyword-only parameters and those with a default are its options.

    Unknown ones are explained. Pairs of a name and a value are looked for only where there are more arguments than the
    function needs.
    """
    parameters = inspect.signature(function).parameters.values()
    known = frozenset(p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY and p.kind is not p.VAR_POSITIONAL)
    choosable = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = len([name for name in places if name not in choosable])
    most = math.inf if is_open else len(places)
    two_more = needed + 1
    who = function.__name__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        count = len(args)
        if count > needed and (
            count > most or (count > two_more and type(args[-2]) is str) or (is_open and type(args[-1]) is str)
        ):
            args, kwargs = _without_pairs(who, args, kwargs, choosable, places, needed, most)
        if kwargs and not known.issuperset(kwargs):
            raise unknown_option(who, next(name for name in kwargs if name not in known), choosable)
        return function(*args, **kwargs)

    return cast(F, call)


def _without_pairs(
    who: str, args: tuple[Any, ...], kwargs: dict[str, Any], choosable: list[str], places: list[str], needed: int,
    most: float,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """The arguments without the pairs of a name and a value at their end; these among the keywords."""
    count, found = len(args), dict(kwargs)
    while count >= needed + 2 and type(args[count - 2]) is str:
        name = args[count - 2]
        if name not in choosable:
            if count > most or _is_misspelt(name, choosable):
                raise unknown_option(who, name, choosable)
            break  # a text of another meaning, such as "all"
        if name in found:
            raise OptionError(f"{who}: the option {name!r} is given twice. Give it once.")
        found[name] = args[count - 1]
        count -= 2
    if count > needed and type(args[count - 1]) is str and args[count - 1] in choosable:
        raise OptionError(f"{who}: the option {args[count - 1]!r} has no value. Give pairs of a name and a value.")
    if count > most:
        raise OptionError(
            f"{who}: {count} arguments are too many; it takes {', '.join(places)}"
            + (f', and the options {", ".join(choosable)} by name.' if choosable else ".")
        )
    for name in places[:count]:
        if name in found:
            raise OptionError(f"{who}: {name!r} is given twice, by its place and by its name. Give it once.")
    return args[:count], found


def _is_misspelt(name: str, known: list[str]) -> bool:
    """Whether a text where others are allowed, too, is nearly the name of an option."""
    return len(name) > 2 and bool(difflib.get_close_matches(name.lower(), [x.lower() for x in known], 1, 0.8))


_NUMPYS = {"axis", "axes", "keepdims", "dtype", "out", "initial", "where", "ddof"}


def _listed(known: list[str]) -> str:
    return f" It knows {', '.join(known)}." if known else " It has no options."


def unknown_option(who: str, name: str, known: list[str]) -> OptionError:
    """The error for an option that does not exist, naming the one that was probably meant."""
    if name in _NUMPYS:
        here = " Here it is dim." if "dim" in known and name == "axis" else ""
        other = f" NumPy's function has it: np.{who}(X, {name}=...)." if hasattr(np, who) else ""
        return OptionError(f"{who}: there is no option {name!r}.{here}{other or _listed(known)}")
    meant = nearest(name, known)
    remedy = f"Did you mean {meant}?" if meant else f"It knows {', '.join(known)}." if known else "It has no options."
    return OptionError(f"{who}: there is no option {name!r}. {remedy}")
