"""Options with MATLAB's spelling: a misspelt one gets an error that names the right one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from minidl.core.errors import OptionError, nearest

F = TypeVar("F", bound=Callable[..., Any])


def options(function: F) -> F:
    """Decorate a public function: its keyword-only parameters and those with a default are its options.

    Unknown ones are explained.
    """
    parameters = inspect.signature(function).parameters.values()
    known = frozenset(p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY and p.kind is not p.VAR_POSITIONAL)
    choosable = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    who = function.__name__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs and not known.issuperset(kwargs):
            raise unknown_option(who, next(name for name in kwargs if name not in known), choosable)
        return function(*args, **kwargs)

    return cast(F, call)


def unknown_option(who: str, name: str, known: list[str]) -> OptionError:
    """The error for an option that does not exist, naming the one that was probably meant."""
    meant = nearest(name, known)
    remedy = f"Did you mean {meant}?" if meant else f"It knows {', '.join(known)}." if known else "It has no options."
    return OptionError(f"{who}: there is no option {name!r}. {remedy}")
