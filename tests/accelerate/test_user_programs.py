"""Random programs as users write them: a call of the accelerated function is the plain call, or a warning says why not.

Twelve programs each time, from a seed that is another one each day and stands in the names of the tests. All of them:
MINIDL_PROGRAMS=300 pytest tests/accelerate/test_user_programs.py; one: MINIDL_SEED=<seed> MINIDL_PROGRAMS=1.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import linecache
import os
import sys
import types
import warnings

import numpy as np
import pytest

import minidl as m
from minidl import AccelerationWarning, RetraceWarning, TraceWarning, dlaccelerate, dlarray, dlfeval
from minidl.accelerate.checks import distance
from minidl.core.tree import flatten

from .user_programs import program

COUNT = int(os.environ.get("MINIDL_PROGRAMS", "12"))
FIRST = int(os.environ.get("MINIDL_SEED") or datetime.date.today().toordinal() * 1000)
NUMBER = itertools.count()


def module(source, seed):
    """The program, as a module that lines can be read of."""
    made = types.ModuleType(f"user_program_{seed}_{next(NUMBER)}")
    file = f"/home/user/{made.__name__}.py"
    linecache.cache[file] = len(source), None, source.splitlines(True), file
    sys.modules[made.__name__] = made  # dataclasses look there
    exec(compile(source, file, "exec"), made.__dict__)
    return made


def arguments(seed):
    random = np.random.default_rng(seed)
    return dlarray(random.normal(size=(2, 3))), {
        "a": dlarray(random.normal(size=(3, 3))), "b": dlarray(random.normal(size=3)),
    }  # fmt: skip


def outcome(function, x, p, k, is_in_dlfeval):
    """What a call gives, or the error that it raises."""
    try:
        if is_in_dlfeval:
            return dlfeval(function, x, p, k) if k != 1.0 else dlfeval(function, x, p)
        return function(x, p, k) if k != 1.0 else function(x, p)
    except Exception as error:
        return error


def is_same(found, wanted, tolerance):
    if isinstance(found, Exception) or isinstance(wanted, Exception):
        return type(found) is type(wanted) and str(found) == str(wanted)
    a, structure = flatten(found)
    b, other = flatten(wanted)
    names = [repr(x).replace("_0'", "").replace("_1'", "") for x in (structure, other)]
    if len(a) != len(b) or [len(x) for x in names] != [len(x) for x in names[::-1]]:
        return False
    return all(
        distance(x, y) <= tolerance if isinstance(x, m.DLArray) else str(x) == str(y) for x, y in zip(a, b, strict=True)
    )


class Bag:
    """Has methods that Python calls by itself."""

    def __init__(self):
        self.parts = [1.0, 2.0, 3.0]

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, k):
        return self.parts[k]

    def __iter__(self):
        return iter(self.parts)

    def __contains__(self, x):
        return x in self.parts

    def __bool__(self):
        return True

    def __mul__(self, x):
        return x * 2


CALLED_BY_PYTHON = {
    "__len__": (lambda x, bag: x * len(bag), lambda self: 1),
    "__getitem__": (lambda x, bag: x * bag[0], lambda self, k: 7.0),
    "__iter__": (lambda x, bag: x * sum(bag), lambda self: iter([5.0])),
    "__contains__": (lambda x, bag: x + (9.0 in bag), lambda self, x: True),
    "__bool__": (lambda x, bag: x if bag else -x, lambda self: False),
    "__mul__": (lambda x, bag: bag * x, lambda self, x: x * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLED_BY_PYTHON)
def test_A1_a_method_that_python_calls_by_itself_is_replaced(monkeypatch, name):
    function, replacement = CALLED_BY_PYTHON[name]
    bag = Bag()
    accfun = dlaccelerate(lambda x: function(x, bag))
    for _ in range(3):
        accfun(dlarray(2.0))
    monkeypatch.setattr(Bag, name, replacement)
    for _ in range(2):
        assert accfun(dlarray(2.0)).item() == function(dlarray(2.0), bag).item()
    assert accfun.NumTraces == 2 and accfun.HitRate == 60


@pytest.mark.only_on("cpu")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_user_programs_replayed_are_plain_or_said(seed, capsys):
    made = program(seed)
    numerics = ("fast", "exact")[seed % 3 > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, replayed = module(made.source, seed), module(made.source, seed)
        accfun = dlaccelerate(replayed.fun, Numerics=numerics)
    said = []
    for call, (events, number, k) in enumerate(zip(made.events, made.inputs, made.ks)):
        for event in events:
            for world in (plain, replayed):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RetraceWarning)
                    with contextlib.suppress(LookupError, TypeError):  # of what an earlier event has removed
                        exec(event, world.__dict__)
        x, p = arguments(number)
        m.rng(number)
        wanted = outcome(plain.fun, x, dict(p), k, made.is_in_dlfeval)
        state = m.rng(number)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = outcome(accfun, x, dict(p), k, made.is_in_dlfeval)
        said += [str(w.message) for w in caught if issubclass(w.category, TraceWarning)]
        others = [w for w in caught if not issubclass(w.category, AccelerationWarning)]
        body = made.source[made.source.index("counter = itertools.count()") :]
        where = f"seed {seed}, {numerics}, call {call + 1} after {made.events[: call + 1]}\n{body}\n{said}\n"
        where += str(accfun.explain())
        assert is_same(found, wanted, 1e-6 if numerics == "fast" else 0.0), f"{found}\n instead of {wanted}\n{where}"
        assert m.rng() == state or isinstance(found, Exception), where  # as if it had not been called
        assert not others, where
        assert not any("still holds" in text or "compiled" in text for text in said), where
    capsys.readouterr()
