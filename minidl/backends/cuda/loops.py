"""Loops launched: those of programs, bound to memory, and those of plain calls of MAP and REDUCE ops.

What is known of a plain call from the sizes, types and strides of its operands is remembered, its printed text above
all; a call that is known costs a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.backends.cuda.layouts import back_order, dense_strides, memory_order, strides_of
from minidl.backends.cuda.printed import Number, Printed
from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.kernels.cuda import launch


class Launches:
    """What a loop launches. Arguments are numbers, or stand in a list of words: addresses, and numbers that come late.

    The words are those of the buffers, in the order of `buffers`, and after them those of the scratch arrays.
    """

    def __init__(self, printed: Printed, buffers: Sequence[Any]) -> None:
        places = {buffer: k for k, buffer in enumerate(buffers)}
        self._scratch, self._parts = printed.scratch, []
        for part in printed.parts:
            recipe: list[tuple[bool, int, int]] = []  # (whether a word is meant, number or place, bytes to add)
            for kind, what, *more in part.arguments:
                if kind == "number":
                    recipe.append((False, what, 0))
                elif kind == "scratch":
                    recipe.append((True, len(buffers) + what, 0))
                else:
                    recipe.append((True, places[what], more[0] if more else 0))
            self._parts.append((part.text, part.name, part.grid, part.threads, recipe))

    def new_scratch(self) -> list[Any]:
        """Arrays that the launches need while they run."""
        cupy = launch.cupy()
        return [cupy.empty(size, dtype) for size, dtype in self._scratch]

    def bound(self, words: list[Any]) -> list[tuple[Any, ...]]:
        """(kernel, grid, threads, arguments) of each launch."""
        return [
            (
                launch.compiled(text, name), grid, threads,
                tuple([words[x] + more if is_word else x for is_word, x, more in recipe]),
            )
            for text, name, grid, threads, recipe in self._parts
        ]  # fmt: skip

    def bound_but(self, words: list[Any], late: int) -> Callable[[float], None]:
        """A function that launches them all, given the word of that number."""
        calls = []
        for (text, name, grid, threads, recipe), (*_, arguments) in zip(self._parts, self.bound(words)):
            places = [k for k, (is_word, x, _) in enumerate(recipe) if is_word and x == late]
            calls.append((launch.compiled(text, name), grid, threads, list(arguments), places))

        def run(number: float) -> None:
            for kernel, grid, threads, arguments, places in calls:
                for k in places:
                    arguments[k] = number
                kernel(grid, threads, tuple(arguments))

        return run

    def run(self, words: list[Any]) -> None:
        """Launch them all."""
        held = self.new_scratch() if self._scratch else ()
        words += [x.data.ptr for x in held]
        for kernel, grid, threads, arguments in self.bound(words):
            kernel(grid, threads, arguments)


class Bound:
    """A loop's launches with their arguments. Called, it runs the loop; scratch is kept alive by it."""

    def __init__(self, launches: Launches, words: list[Any]) -> None:
        self._scratch = launches.new_scratch()
        self._calls = launches.bound([*words, *(x.data.ptr for x in self._scratch)])

    def __call__(self) -> None:
        for kernel, grid, threads, arguments in self._calls:
            kernel(grid, threads, arguments)


def bind_loop(loop: Any, flat: Callable[[Any], Any]) -> Callable[[], None]:
    """The loop as a function without arguments, bound to memory: flat(buffer) is a buffer as a flat array."""
    buffers = sorted({*loop.reads, *loop.writes})
    sizes = {buffer: flat(buffer).itemsize for buffer in buffers}
    launches = Launches(Printed(loop, is_fixed=True).in_bytes(sizes), buffers)
    return Bound(launches, [flat(buffer).data.ptr for buffer in buffers])


def bind_side_by_side(loops: Sequence[Any], flat: Callable[[Any], Any]) -> Callable[[], None]:
    """`bind_loop` for loops that do not need each other: one launch."""
    return _bound_together(Printed.side_by_side(loops), loops, flat)


def bind_block(loops: Sequence[Any], flat: Callable[[Any], Any]) -> Callable[[], None]:
    """`bind_loop` for small loops, one after the other: one launch of one block."""
    return _bound_together(Printed.in_one_block(loops), loops, flat)


def _bound_together(printed: Printed, loops: Sequence[Any], flat: Callable[[Any], Any]) -> Callable[[], None]:
    buffers = sorted({buffer for loop in loops for buffer in (*loop.reads, *loop.writes)})
    sizes = {buffer: flat(buffer).itemsize for buffer in buffers}
    return Bound(Launches(printed.in_bytes(sizes), buffers), [flat(buffer).data.ptr for buffer in buffers])


# plain calls ----------------------------------------------------------------------------------------------------
MOST_KINDS = 2048  # so many kinds of calls are remembered
_kinds: dict[Any, Any] = {}


class _Kind(NamedTuple):
    """What is known of a call from its op and the sizes, types and strides of its operands."""

    launches: Launches
    made: list[tuple[tuple[int, ...], np.dtype[Any]]]  # results as they lie in memory
    back: tuple[int, ...] | None  # their dimensions in the order of the op


def run_map(op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Results of a MAP op; arrays: arrays of one shape, numbers among them."""
    kind = _kind("map", op, specs, arrays, params, _map_kind)
    return _run(kind, arrays)


def run_reduce(op: Any, specs: tuple[Any, ...], x: Any, axes: tuple[int, ...]) -> list[Any]:
    """The result of a REDUCE op."""
    kind = _kind("reduce", op, specs, [x], {"axes": axes}, _reduce_kind)
    return _run(kind, [x])


def bind_call(op: Any, outputs: Sequence[Any], inputs: Sequence[Any], params: dict[str, Any]) -> Callable[[], None]:
    """A plain call of a MAP or REDUCE op as a function without arguments, its results in given arrays.

    The same arithmetic in the same order as `run_map` and `run_reduce`, wherever the results are to lie.
    """
    if op.kind_name == "map":
        printed = _map_printed(op, outputs, inputs, params, [strides_of(y) for y in outputs])
    else:
        printed = _reduce_printed(op, outputs, inputs, params, [strides_of(y) for y in outputs])
    arrays = [*inputs, *outputs]
    words = [x.data.ptr if hasattr(x, "data") else float(x) for x in arrays]
    return Bound(Launches(printed, range(len(arrays))), words)


def copy(target: Any, source: Any) -> None:
    """target[...] = source, an array of the same shape or a number; any strides."""
    is_number = isinstance(source, (bool, int, float))
    shape, strides = target.shape, strides_of(target)
    key = ("copy", shape, strides, target.dtype, None if is_number else (strides_of(source), source.dtype))
    launches: Any = _kinds.get(key)
    if launches is None:
        order = memory_order(shape, strides)
        dtype = target.dtype.name
        access = Access(Number(1), 0, ()) if is_number else Access(1, 0, tuple([strides_of(source)[i] for i in order]))
        load = Step("", (), dtype if is_number else source.dtype.name, access=access)
        steps = [load, Step("cast({0})", (Temp(0),), dtype)]
        store = Store(Temp(1), Access(0, 0, tuple([strides[i] for i in order])), dtype)
        loop = _collapsed(Loop(tuple([shape[i] for i in order]), steps, [store]))
        launches = _remember(key, Launches(Printed(loop, is_fixed=False), [0, Number(1) if is_number else 1]))
    launches.run([target.data.ptr, float(source) if is_number else source.data.ptr])


def _kind(what: str, op: Any, specs: Any, arrays: Sequence[Any], params: dict[str, Any], make: Any) -> _Kind:
    operands = tuple([
        type(x) is bool if isinstance(x, (bool, int, float)) else (x.dtype, x.shape, x.strides) for x in arrays
    ])  # fmt: skip
    frozen = (tuple(params.items()), repr(params)) if params else ()  # the text tells 0.0 from -0.0, and 1 from True
    key = what, op.name, operands, frozen, specs[0].dtype
    found = _kinds.get(key)
    return _remember(key, make(op, specs, arrays, params)) if found is None else found


def _remember(key: Any, found: Any) -> Any:
    if len(_kinds) >= MOST_KINDS:
        _kinds.clear()
    _kinds[key] = found
    return found


def _run(kind: _Kind, arrays: Sequence[Any]) -> list[Any]:
    cupy = launch.cupy()
    made = [cupy.empty(shape, dtype) for shape, dtype in kind.made]
    kind.launches.run([x.data.ptr if hasattr(x, "data") else float(x) for x in (*arrays, *made)])
    return made if kind.back is None else [y.transpose(kind.back) for y in made]


def _map_kind(op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]) -> _Kind:
    sizes, order = _lead_order(specs[0].shape, arrays)
    dense = _in_place(dense_strides(sizes), order)
    printed = _map_printed(op, specs, arrays, params, [dense] * len(specs))
    launches = Launches(printed, range(len(arrays) + len(specs)))
    return _Kind(launches, [(sizes, spec.dtype) for spec in specs], back_order(order))


def _lead_order(shape: tuple[int, ...], arrays: Sequence[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sizes in memory order, that order) of the first operand that is no single number."""
    lead = next((x for x in arrays if hasattr(x, "shape") and any(x.strides)), None)
    order = tuple(range(len(shape))) if lead is None else memory_order(shape, lead.strides)
    return tuple([shape[i] for i in order]), order


def _in_place(strides: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Strides given in memory order, in the order of the dimensions."""
    found = [0] * len(order)
    for i, stride in zip(order, strides):
        found[i] = stride
    return tuple(found)


def _map_printed(
    op: Any, specs: Sequence[Any], arrays: Sequence[Any], params: dict[str, Any], strides: Sequence[tuple[int, ...]]
) -> Printed:
    """A MAP op on these operands, printed; strides: those of the results."""
    sizes, order = _lead_order(specs[0].shape, arrays)
    loop = flat_loop(op, specs, arrays, params)
    steps = []
    for step in loop.steps:
        if step.access is not None:
            x = arrays[step.access.buffer]
            if hasattr(x, "shape"):
                own = strides_of(x)
                access = Access(step.access.buffer, 0, tuple([own[i] for i in order]))
            else:
                access = Access(Number(step.access.buffer), 0, ())
            step = dataclasses.replace(step, access=access)
        steps.append(step)
    stores = [
        dataclasses.replace(s, access=Access(s.access.buffer, 0, tuple([own[i] for i in order])))
        for s, own in zip(loop.stores, strides)
    ]
    return Printed(_collapsed(Loop(sizes, steps, stores)), is_fixed=False)


def bind_map(
    op: Any, specs: Sequence[Any], arrays: Sequence[Any], made: Sequence[Any], late: int
) -> Callable[[float], None]:
    """A MAP op bound to its operands and results: a function of the operand `late`, a number."""
    printed = _map_printed(op, specs, arrays, {}, [strides_of(y) for y in made])
    words = [x.data.ptr if hasattr(x, "data") else float(x) for x in (*arrays, *made)]
    return Launches(printed, range(len(words))).bound_but(words, late)


def flat_loop(op: Any, specs: Sequence[Any], arrays: Sequence[Any], params: dict[str, Any]) -> Any:
    """The op as a loop over flat arrays; buffers are numbered, operands first, then results."""
    number = next((x.dtype for x in arrays if hasattr(x, "dtype") and x.dtype.kind == "f"), specs[0].dtype)
    truth = np.dtype(bool)
    dtypes = [getattr(x, "dtype", truth if op.input_type(i) == "b" else number) for i, x in enumerate(arrays)]
    if op.text is None:
        return op.loop(tuple(dtypes), (True,) * len(arrays), params)
    loads = [Step("", (), dtype.name, access=Access(i, 0, (1,))) for i, dtype in enumerate(dtypes)]
    made = specs[0].dtype.name
    step = Step(op.text, tuple(map(Temp, range(len(loads)))), made, number.name)
    return Loop((2,), [*loads, step], [Store(Temp(len(loads)), Access(len(loads), 0, (1,)), made)])


def _reduce_kind(op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]) -> _Kind:
    (x,), spec = arrays, specs[0]
    order = memory_order(x.shape, x.strides)
    sizes = tuple([spec.shape[i] for i in order])
    printed = _reduce_printed(op, specs, arrays, params, [_in_place(dense_strides(sizes), order)])
    return _Kind(Launches(printed, range(2)), [(sizes, spec.dtype)], back_order(order))


def _reduce_printed(
    op: Any, specs: Sequence[Any], arrays: Sequence[Any], params: dict[str, Any], strides: Sequence[tuple[int, ...]]
) -> Printed:
    """A REDUCE op on its operand, printed; strides: those of the result."""
    (x,), axes = arrays, params["axes"]
    order = memory_order(x.shape, x.strides)
    own = strides_of(x)
    kept = tuple([0 if i in axes else strides[0][i] for i in order])
    load = Step("", (), x.dtype.name, access=Access(0, 0, tuple([own[i] for i in order])))
    combine = op.text if any(i in axes for i in order) else ""
    store = Store(Temp(0), Access(1, 0, kept), specs[0].dtype.name, combine, op.identity)
    return Printed(_collapsed(Loop(tuple([x.shape[i] for i in order]), [load], [store])), is_fixed=False)


def _collapsed(loop: Any) -> Any:
    """The loop over the fewest dimensions: those of size 1 left out, neighbours joined where all accesses allow it."""
    accesses = [s.access for s in (*loop.steps, *loop.stores) if s.access is not None and s.access.strides]
    columns = [(n, [a.strides[k] for a in accesses]) for k, n in enumerate(loop.sizes) if n != 1]
    joined: list[tuple[int, list[int]]] = []
    for n, inner in columns:
        if 0 not in loop.sizes and joined and all(outer == n * stride for outer, stride in zip(joined[-1][1], inner)):
            joined[-1] = (joined[-1][0] * n, inner)
        else:
            joined.append((n, inner))
    strides = {id(a): tuple([row[i] for _, row in joined]) for i, a in enumerate(accesses)}

    def changed(s: Any) -> Any:
        if s.access is None or id(s.access) not in strides:
            return s
        return dataclasses.replace(s, access=Access(s.access.buffer, s.access.offset, strides[id(s.access)]))

    return Loop(tuple([n for n, _ in joined]), list(map(changed, loop.steps)), list(map(changed, loop.stores)))


def forget() -> None:
    """Forget all calls."""
    _kinds.clear()
