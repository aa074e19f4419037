"""Generated functions, called five times while the world around them changes: a replay is the plain function."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from engine.programs import Program, assert_same, numbers, programs, values

from minidl import RetraceWarning, dlaccelerate, dlarray, struct

CALLS = 5


class World(NamedTuple):
    """A program, which of its inputs are captured, how it is nested, and what happens before each call."""

    program: Program
    specs: list[Any]
    is_captured: list[bool]
    is_nested: bool
    events: list[list[int]]


@st.composite
def worlds(draw: Any) -> World:
    program, specs = draw(programs(most_steps=6, orders=(0, 0, 0, 1)))
    is_captured = [draw(st.booleans()) for _ in specs]
    events = [draw(st.lists(st.integers(0, 6), max_size=2, unique=True)) for _ in range(CALLS)]
    return World(program, specs, is_captured, draw(st.booleans()), events)


class Model:
    """Half of what is captured lies in attributes."""

    def __init__(self, arrays):
        self.arrays, self.scale = arrays, 1.5


def functions(world, numerics):
    """(plain, accelerated, what they capture)."""
    program, is_captured = world.program, world.is_captured
    arrays = [values(spec, 0) if captured else None for spec, captured in zip(world.specs, is_captured)]
    model, box = Model(arrays), struct(shift=0.5, table=np.float32([0.25, 2.0]))
    factor = dlarray(np.float32(2.0))

    def captured_factor():
        return factor

    def change_factor():
        nonlocal factor
        factor = dlarray(np.float32(factor.item() * -1.25))

    def around(inner):
        def function(*args):
            given = iter(args)
            inputs = [x if captured else next(given) for x, captured in zip(model.arrays, is_captured)]
            outputs = inner(*inputs)
            found = [y * model.scale + box.shift if y.dtype.kind == "f" else y for y in outputs]
            more = [y * captured_factor() * box.table for y in found[:1] if y.shape in ((), (1, 2))]
            return {"all": found, "more": more}

        return function

    accelerated = dlaccelerate(program, Numerics=numerics) if world.is_nested else program
    return around(program), dlaccelerate(around(accelerated), Numerics=numerics), (model, box, change_factor)


def happen(event, call, world, captured, args, results):
    """Something changes between two calls: captures replaced or changed in place, arguments aliased or fed back."""
    model, box, change_factor = captured
    places = [i for i, is_captured in enumerate(world.is_captured) if is_captured]
    if event == 0:
        model.scale = (1.5, -0.5)[call % 2]
    elif event == 1:
        for i in places:
            model.arrays[i] = values(world.specs[i], call + 1, call)
    elif event == 2:
        for i in places:  # the same handle names other numbers
            model.arrays[i][...] = values(world.specs[i], call + 10)
    elif event == 3:
        box.table[call % 2] += 1.0
    elif event == 4:
        change_factor()
    elif event == 5:  # one array in several places
        for i, x in enumerate(args):
            same = [y for y in [*args[:i], *(model.arrays[k] for k in places)] if is_alike(x, y)]
            args[i] = same[0] if same else x
    elif event == 6 and results:  # results of the call before are arguments of this one
        for i, x in enumerate(args):
            same = [y for y in results[-1]["all"] if is_alike(x, y) and np.all(np.isfinite(numbers(y)[0]))]
            args[i] = same[0] if same else x


def is_alike(x, y):
    return x.shape == y.shape and x.dtype == y.dtype and x.dims() == y.dims()


def flat(result):
    return [*result["all"], *result["more"]]


def assert_near(found, expected):
    """Within 1e-6, measured by the largest number of each array (or 1)."""
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype.kind != "f":
            assert np.array_equal(a, b)
            continue
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@hypothesis.settings(max_examples=200, derandomize=True)
@hypothesis.given(world=worlds())
def test_eager_equals_replay_while_the_world_changes(world, numerics):
    check = assert_same if numerics == "exact" else assert_near
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RetraceWarning)
        plain, accfun, captured = functions(world, numerics)
        args = [values(spec, 1) for spec, is_captured in zip(world.specs, world.is_captured) if not is_captured]
        results, kept = [], []
        for call in range(CALLS):
            for event in world.events[call]:
                happen(event, call, world, captured, args, results)
            for _ in range(2):  # the second time it is a replay for certain
                results.append(accfun(*args))
                expected = plain(*args)
                check(flat(results[-1]), flat(expected))
                kept.append([np.array(x) for x in numbers(flat(results[-1]))])
        for result, copies in zip(results, kept):
            assert_same(flat(result), copies)  # no later call has touched an earlier result
        assert accfun.HitRate >= 50
