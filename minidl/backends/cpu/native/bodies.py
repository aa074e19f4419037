"""Bodies of MAP ops as native code over flat arrays, for plain calls.

Each operation is rounded by itself, as in the loops that Numba compiles. Sizes, addresses and literals are arguments:
one function serves arrays of any size and all learning rates.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from minidl.backends.cpu.native.compiler import Code, compiled
from minidl.backends.cpu.native.emitter import Module
from minidl.backends.cpu.native.target import host
from minidl.kernels.native import nest

JOB = ["i64 %start", "i64 %stop", "ptr %table"]
PIECE = 4  # address of a job, start, stop, address of its table


def is_supported(loop: Any) -> bool:
    """Whether a loop can be said natively."""
    return nest.is_supported(loop)


def compile_body(loop: Any) -> tuple[Code, list[np.ndarray]]:
    """A loop over flat arrays as (code of a job `k`, the loop's literals).

    The job's table holds the addresses of the loop's buffers, in the order of their numbers, then of the literals.
    """
    loop, literals = _with_loaded_literals(loop)
    module = Module(host())
    f = module.function("k", JOB)

    @functools.cache
    def address(buffer: int) -> str:
        return _pointer(f, "%table", buffer)

    nest.write(f, loop, "%start", "%stop", lambda buffer, is_stored: address(buffer))
    return compiled(module.text()), literals


@functools.cache
def each() -> Code:
    """A job `each` whose indices are calls of other jobs; its table holds PIECE numbers for each of them."""
    module = Module(host())
    f = module.function("each", JOB)
    with f.loop("%start", "%stop", is_certain=False) as i:
        at = f.at("%table", f.mul(i, 8 * PIECE))
        job, table = _pointer(f, at, 0), _pointer(f, at, 3)
        start, stop = _number(f, at, 1), _number(f, at, 2)
        f.do(f"call void {job}(i64 {start}, i64 {stop}, ptr {table})")
    return compiled(module.text())


def _number(f: Any, table: str, place: int) -> str:
    return str(f.load("i64", f.at(table, 8 * place)))


def _pointer(f: Any, table: str, place: int) -> str:
    return str(f.op(f"inttoptr i64 {_number(f, table, place)} to ptr"))


def _with_loaded_literals(loop: Any) -> tuple[Any, list[np.ndarray]]:
    """The loop with its literals loaded from arrays of one element, numbered after its buffers; and these arrays."""
    temp = type(loop.stores[0].source)
    places: dict[tuple[str, str], int] = {}
    literals: list[np.ndarray] = []
    for step in loop.steps:
        for x in step.args:
            if not isinstance(x, temp) and _name(x, step) not in places:
                places[_name(x, step)] = len(literals)
                with np.errstate(all="ignore"):  # a number too large for the type is inf
                    literals.append(np.full(1, x, step.literal_dtype))
    like = next(step for step in loop.steps if step.access is not None)
    buffers = 1 + max([*loop.reads, *loop.writes])
    steps = [
        dataclasses.replace(like, dtype=x.dtype.name, access=dataclasses.replace(like.access, buffer=b, strides=(0,)))
        for b, x in enumerate(literals, buffers)
    ]
    for step in loop.steps:
        args = [x + len(literals) if isinstance(x, temp) else places[_name(x, step)] for x in step.args]
        steps.append(dataclasses.replace(step, args=tuple([temp(x) for x in args])))
    stores = [dataclasses.replace(store, source=temp(store.source + len(literals))) for store in loop.stores]
    return dataclasses.replace(loop, steps=steps, stores=stores), literals


def _name(literal: Any, step: Any) -> tuple[str, str]:
    return str(float(literal)), step.literal_dtype  # the text tells 0.0 from -0.0
