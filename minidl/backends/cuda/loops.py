"""Loops printed as CUDA C++: a thread per iteration, or, where numbers are combined, threads that share a result.

Two kinds of kernels. `map`: iterations in memory order, neighbouring threads at neighbouring places. `reduce`: a block
has COLUMNS results and LANES threads for each; every thread combines its share in order, the lanes' numbers meet in a
tree, and where there are few results but many numbers, slices of them are combined by a second kernel, `merge`.
Everything is in a fixed order that depends on sizes alone.

Texts of plain calls leave sizes and strides open, so that one module serves all sizes; those of programs have them as
constants.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.backends.loop import Access, Loop, Step, Store, Temp
from minidl.kernels.cuda import launch

THREADS = 256
UNROLL = 4  # iterations of a thread of `map`, from LARGE on
LARGE = 1 << 18
BLOCKS = 512  # with fewer blocks than about this a GPU is not full

_NUMBER = re.compile(r"(?<![\w{.])(\d+(?:\.\d+)?)(?![\w}.])")
_WORD = re.compile(r"([a-z_]\w*)\(")


class Number(int):
    """A buffer that is no array: the number of an operand that the kernel is given by value."""


@dataclasses.dataclass
class Part:
    """One kernel of a loop: text, name, launch, and its arguments, which are found in this order:

    ("array", buffer, offset)  address of an element of a buffer
    ("number", n)              a whole number
    ("value", operand)         an operand that is a number
    ("scratch", k)             address of the k-th scratch array
    """

    text: str
    name: str
    grid: tuple[int, ...]
    threads: int
    arguments: list[tuple[Any, ...]]

    def kernel(self) -> Any:
        """The compiled kernel."""
        return launch.compiled(self.text, self.name)


class Printed:
    """A loop as kernels, to be launched in order, and the scratch arrays (elements, type) that they need."""

    def __init__(self, loop: Any, *, is_fixed: bool) -> None:
        self._is_fixed = is_fixed
        self.scratch: list[tuple[int, np.dtype[Any]]] = []
        self.parts: list[Part] = []
        reduced = {id(s): tuple([k for k, n in enumerate(s.access.strides) if n == 0]) for s in loop.stores}
        plain = [s for s in loop.stores if not s.combine or not reduced[id(s)]]
        groups: dict[tuple[int, ...], list[Any]] = {}
        for store in loop.stores:
            if store.combine and reduced[id(store)]:
                groups.setdefault(reduced[id(store)], []).append(store)
        if not groups:
            self._map(loop, plain)
        for over, stores in groups.items():  # what is stored as it is goes with the first of them
            self._reduce(loop, over, stores, plain)
            plain = []

    # kernels ----------------------------------------------------------------------------------------------------
    def _map(self, loop: Any, stores: list[Any]) -> None:
        total = math.prod(loop.sizes)
        unroll = UNROLL if total >= LARGE else 1
        body = _Body(loop, stores, self._is_fixed)
        count = body.number("total", total)
        lines = body.places(range(len(loop.sizes)), "i")
        lines += body.steps() + body.plain(stores)
        text = f"""
// One thread per iteration of a loop, {unroll} of them each. Blocks of {THREADS} threads over all iterations; no shared
// memory. Floor: the bytes of the arrays, each read or written once.
extern "C" __global__ void __launch_bounds__({THREADS}) map({body.parameters()}) {{
  {body.index} first = ({body.index})blockIdx.x * {THREADS * unroll} + threadIdx.x;
#pragma unroll
  for (int u = 0; u < {unroll}; u++) {{
    {body.index} i = first + u * {THREADS};
    if (i < {count}) {{
{_indented(lines, 6)}
    }}
  }}
}}
"""
        self._add(text, "map", (-(-total // (THREADS * unroll)),), body.arguments)

    def _reduce(self, loop: Any, over: tuple[int, ...], stores: list[Any], plain: list[Any]) -> None:
        kept = [k for k in range(len(loop.sizes)) if k not in over]
        outputs, length = (math.prod(loop.sizes[k] for k in dims) for dims in (kept, over))
        is_row = bool(loop.sizes) and len(loop.sizes) - 1 in over
        lanes, columns, slices = shares(outputs, length, is_row)
        body = _Body(loop, stores + plain, self._is_fixed)
        count, reach = body.number("outputs", outputs), body.number("length", length)
        share = body.number("share", -(-length // slices))
        wide = [_wide(store) for store in stores]
        before = [f"{c} v{j} = {_literal(s.identity, c)};" for j, (s, c) in enumerate(zip(stores, wide))]
        inner = body.places(over, "r") + body.steps() + body.plain(plain)
        after = []
        for j, (store, c) in enumerate(zip(stores, wide)):
            inner.append(f"v{j} = {_combined(store, f'v{j}', f'({c})t{int(store.source)}')};")
            after += [f"{c} *s{j} = ({c} *)space;", f"s{j}[threadIdx.x] = v{j};", "__syncthreads();"]
            after += [f"for (int half = {lanes // 2}; half; half /= 2) {{"]
            other = f"s{j}[threadIdx.x + half * {1 if is_row else columns}]"
            after += [f"  if (lane < half) s{j}[threadIdx.x] = {_combined(store, f's{j}[threadIdx.x]', other)};"]
            after += ["  __syncthreads();", "}"]
            if slices == 1:
                at = body.store_at(store)
                after.append(f"if (lane == 0 && at < {count}) {at} = ({_ctype(store.dtype)})s{j}[threadIdx.x];")
            else:
                self.scratch.append((slices * outputs, np.dtype(_NAMES[c])))
                body.arguments.append(("scratch", len(self.scratch) - 1))
                body.declared.append(f"{c} *__restrict__ partial{j}")
                place = f"partial{j}[({body.index})blockIdx.y * {count} + at]"
                after.append(f"if (lane == 0 && at < {count}) {place} = s{j}[threadIdx.x];")
            if j + 1 < len(stores):
                after.append("__syncthreads();")
        lane, column = f"threadIdx.x % {lanes}", f"threadIdx.x / {lanes}"
        if not is_row:
            lane, column = f"threadIdx.x / {columns}", f"threadIdx.x % {columns}"
        text = f"""
// Results along the kept dimensions, numbers combined along the others: {columns} results a block, {lanes} threads
// each, blockIdx.y counts slices. Shared memory: 8 bytes a thread. Floor: the bytes of the arrays, each read once.
extern "C" __global__ void __launch_bounds__({lanes * columns}) reduce({body.parameters()}) {{
  __shared__ double space[{lanes * columns}];
  int lane = {lane};
  {body.index} at = ({body.index})blockIdx.x * {columns} + {column};
{_indented(before, 2)}
  {body.index} begin = ({body.index})blockIdx.y * {share}, end = begin + {share} < {reach} ? begin + {share} : {reach};
  {body.index} a = at;
{_indented(body.places(kept, "a"), 2)}
  if (at < {count}) {{
    for ({body.index} q = begin + lane; q < end; q += {lanes}) {{
      {body.index} r = q;
{_indented(inner, 6)}
    }}
  }}
{_indented(after, 2)}
}}
"""
        self._add(text, "reduce", (-(-outputs // columns), slices), body.arguments, lanes * columns)
        if slices > 1:
            self._merge(loop, kept, stores, slices, outputs)

    def _merge(self, loop: Any, kept: list[int], stores: list[Any], slices: int, outputs: int) -> None:
        body = _Body(loop, [], self._is_fixed)
        count, lines = body.number("outputs", outputs), []
        many = body.number("slices", slices)
        for j, store in enumerate(stores):
            c = _wide(store)
            body.arguments.append(("scratch", len(self.scratch) - len(stores) + j))
            body.declared.append(f"const {c} *__restrict__ partial{j}")
            lines += [f"{c} v{j} = partial{j}[at];", f"for (int s = 1; s < {many}; s++)"]
            lines += [f"  v{j} = {_combined(store, f'v{j}', f'partial{j}[({body.index})s * {count} + at]')};"]
            lines += [f"{body.store_at(store)} = ({_ctype(store.dtype)})v{j};"]
        text = f"""
// The slices of each result of `reduce`, combined in order: a thread per result, blocks of {THREADS}; no shared memory.
// Floor: the bytes of the slices, each read once.
extern "C" __global__ void __launch_bounds__({THREADS}) merge({body.parameters()}) {{
  {body.index} at = ({body.index})blockIdx.x * {THREADS} + threadIdx.x;
  if (at < {count}) {{
    {body.index} a = at;
{_indented(body.places(kept, "a") + lines, 4)}
  }}
}}
"""
        self._add(text, "merge", (-(-outputs // THREADS),), body.arguments)

    def _add(
        self, text: str, name: str, grid: tuple[int, ...], arguments: list[Any], threads: int = THREADS
    ) -> None:
        self.parts.append(Part(launch.text_of("words.cuh") + text, name, grid, threads, list(arguments)))


def shares(outputs: int, length: int, is_row: bool) -> tuple[int, int, int]:
    """(threads for each result, results of a block, slices): how a reduction is divided, from its sizes alone."""
    if is_row:
        most = THREADS if outputs < 4 * BLOCKS else 32
        lanes = min(most, _power(max(length, 1)))
        columns = max(1, min(THREADS // lanes, _power(max(outputs, 1))))
    else:
        columns = min(32, _power(max(outputs, 1)))
        if length <= 8 and outputs >= THREADS:
            columns = THREADS
        lanes = min(THREADS // columns, _power(max(length, 1)))
    blocks = max(1, -(-outputs // columns))
    slices = max(1, min(BLOCKS // blocks, length // (lanes * 16)))
    return lanes, columns, slices


def _power(n: int) -> int:
    """The largest power of two up to n."""
    return 1 << (n.bit_length() - 1)


class _Body:
    """The lines of an iteration, and the parameters and arguments of the kernel that they are part of."""

    def __init__(self, loop: Any, stores: list[Any], is_fixed: bool) -> None:
        self._loop, self._is_fixed = loop, is_fixed
        self.declared: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._used = _needed(loop, stores)
        self.index = _index_type(loop)
        self._sizes = [self.number(f"n{k}", n) if k else "" for k, n in enumerate(loop.sizes)]
        self._at: dict[int, str] = {}

    def number(self, name: str, n: int) -> str:
        """A whole number: a constant of the text, or a parameter."""
        if self._is_fixed:
            return str(n)
        self.declared.append(f"i64 {name}_")
        self.arguments.append(("number", n))
        return f"({self.index}){name}_"

    def places(self, dims: Sequence[int], counter: str) -> list[str]:
        """The subscripts along some dimensions, from the number of an iteration, which is used up."""
        lines = []
        for k in reversed(list(dims)[1:]):
            n = self._sizes[k]
            lines += [f"{self.index} i{k} = {counter} % {n};", f"{counter} /= {n};"]
        return lines + [f"{self.index} i{k} = {counter};" for k in list(dims)[:1]]

    def steps(self) -> list[str]:
        """What an iteration loads and computes."""
        lines = []
        for i, step in enumerate(self._loop.steps):
            if i not in self._used:
                continue
            c = _ctype(step.dtype)
            if step.access is None:
                lines.append(f"{c} t{i} = {_expression(step)};")
            elif isinstance(step.access.buffer, Number):
                self.declared.append(f"double l{i}")
                self.arguments.append(("value", int(step.access.buffer)))
                lines.append(f"{c} t{i} = ({c})l{i};")
            else:
                self.declared.append(f"const {c} *__restrict__ x{i}")
                self.arguments.append(("array", step.access.buffer, step.access.offset))
                lines.append(f"{c} t{i} = x{i}[{self._subscript(f'x{i}', step.access)}];")
        return lines

    def plain(self, stores: list[Any]) -> list[str]:
        """What an iteration stores."""
        return [f"{self.store_at(store)} = t{int(store.source)};" for store in stores]

    def store_at(self, store: Any) -> str:
        """The element that a store fills."""
        name = f"y{len(self._at)}"
        self._at[id(store)] = name
        self.declared.append(f"{_ctype(store.dtype)} *__restrict__ {name}")
        self.arguments.append(("array", store.access.buffer, store.access.offset))
        return f"{name}[{self._subscript(name, store.access)}]"

    def _subscript(self, name: str, access: Any) -> str:
        terms = []
        for k, stride in enumerate(access.strides):
            if stride == 1:
                terms.append(f"i{k}")
            elif stride != 0:
                terms.append(f"i{k} * {self.number(f'{name}s{k}', stride)}")
        return " + ".join(terms) or "0"

    def parameters(self) -> str:
        return ", ".join(self.declared)


def _needed(loop: Any, stores: list[Any]) -> set[int]:
    used = {int(s.source) for s in stores}
    for i in range(len(loop.steps) - 1, -1, -1):
        if i in used:
            used.update(int(x) for x in loop.steps[i].args if type(x) is Temp)
    return used


def _index_type(loop: Any) -> str:
    accesses = [s.access for s in (*loop.steps, *loop.stores) if s.access is not None]
    reach = [sum(abs(s) * (n - 1) for s, n in zip(a.strides, loop.sizes)) for a in accesses]
    if max([math.prod(loop.sizes) + UNROLL * THREADS * 2, *reach]) >= 1 << 31:
        return "i64"
    return "int" if any(s < 0 for a in accesses for s in a.strides) else "unsigned"


# text -----------------------------------------------------------------------------------------------------------
_NAMES = {name: dtype for dtype, name in launch.CTYPES.items()}


def _ctype(dtype: str) -> str:
    return launch.CTYPES[dtype]


def _wide(store: Any) -> str:
    """The type in which a store's numbers are combined: sums and products of singles in double."""
    is_sum = store.dtype == "float32" and ("+" in store.combine or "*" in store.combine)
    return "double" if is_sum else _ctype(store.dtype)


def _expression(step: Any) -> str:
    c = _ctype(step.dtype)
    literal = _ctype(step.literal_dtype or step.dtype)
    arguments = [f"t{int(x)}" if type(x) is Temp else _literal(x, literal) for x in step.args]
    if step.text == "cast({0})":
        return f"({c})({arguments[0]})"
    return _worded(step.text, literal).format(*arguments)


@functools.cache
def _worded(text: str, literal: str) -> str:
    """A scalar text in C: its numbers in a type, its words by their names in words.cuh."""
    return _WORD.sub(r"w_\1(", _NUMBER.sub(rf"({literal})\1", text))


def _literal(x: Any, c: str) -> str:
    if c == "bool":
        return "true" if x else "false"
    if c not in ("float", "double"):
        return f"({c}){int(x)}"
    with np.errstate(all="ignore"):  # a number too large for the type is inf
        number = float(np.float32(x)) if c == "float" else float(x)
    if number != number:
        return f"not_a_number(({c})0)"
    text = f"infinity(({c})0)" if math.isinf(number) else f"{abs(number)!r}{'f' if c == 'float' else ''}"
    return f"(-{text})" if math.copysign(1, number) < 0 else text


def _combined(store: Any, a: str, b: str) -> str:
    return _worded(store.combine, _wide(store)).format(a, b)


def _indented(lines: list[str], depth: int) -> str:
    return "\n".join(" " * depth + line for line in lines)


# loops of programs ----------------------------------------------------------------------------------------------
class Bound:
    """A loop's launches with their arguments. Called, it runs the loop; `scratch` is kept alive by it."""

    def __init__(self, printed: Printed, address: Callable[[Any, int], int], values: Sequence[Any] = ()) -> None:
        cupy = launch.cupy()
        self.scratch = [cupy.empty(size, dtype) for size, dtype in printed.scratch]
        find = {
            "array": address,
            "number": lambda n: n,
            "value": lambda operand: float(values[operand]),
            "scratch": lambda k: self.scratch[k].data.ptr,
        }
        self._calls = [
            (part.kernel(), part.grid, part.threads, tuple([find[kind](*what) for kind, *what in part.arguments]))
            for part in printed.parts
        ]

    def __call__(self) -> None:
        for kernel, grid, threads, arguments in self._calls:
            kernel(grid, threads, arguments)


def bind_loop(loop: Any, flat: Callable[[Any], Any]) -> Callable[[], None]:
    """The loop as a function without arguments, bound to memory: flat(buffer) is a buffer as a flat array."""

    def address(buffer: Any, offset: int) -> int:
        array = flat(buffer)
        return int(array.data.ptr) + offset * int(array.itemsize)

    return Bound(Printed(loop, is_fixed=True), address)


# plain calls ----------------------------------------------------------------------------------------------------
MOST_KINDS = 2048  # so many kinds of calls are remembered
_kinds: dict[Any, _Kind] = {}


class _Kind(NamedTuple):
    """What is known of a call from its op and the sizes, types and strides of its operands."""

    printed: Printed
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


def copy(target: Any, source: Any) -> None:
    """target[...] = source, an array of the same shape or a number; any strides."""
    is_number = isinstance(source, (bool, int, float))
    shape, strides = target.shape, _strides(target)
    key = ("copy", shape, strides, target.dtype, None if is_number else (_strides(source), source.dtype))
    printed = _kinds.get(key)
    if printed is None:
        order = _memory_order(shape, strides)
        dtype = target.dtype.name
        access = Access(Number(1), 0, ()) if is_number else Access(1, 0, tuple([_strides(source)[i] for i in order]))
        load = Step("", (), dtype if is_number else source.dtype.name, access=access)
        steps = [load, Step("cast({0})", (Temp(0),), dtype)]
        store = Store(Temp(1), Access(0, 0, tuple([strides[i] for i in order])), dtype)
        loop = _collapsed(Loop(tuple([shape[i] for i in order]), steps, [store]))
        printed = _remember(key, Printed(loop, is_fixed=False))
    held = [target, source]
    Bound(printed, lambda buffer, offset: held[buffer].data.ptr, held)()


def run_each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[Any]]:
    """run_map for many (specs, arrays): rows of one type in one launch, results of a kind side by side in one arena."""
    results: list[Any] = [None] * len(rows)
    groups: dict[Any, list[int]] = {}
    for r, (specs, arrays) in enumerate(rows):
        kinds = tuple([type(x) is bool if isinstance(x, (bool, int, float)) else x.dtype for x in arrays])
        strides = [x.strides for x in arrays if hasattr(x, "strides")]
        is_flat = all(s == strides[0] for s in strides) and _is_dense(arrays) and specs[0].size
        if is_flat:
            numbers = tuple([x for x in arrays if isinstance(x, (bool, int, float))])
            groups.setdefault((kinds, numbers, repr(numbers)), []).append(r)
        else:
            results[r] = run_map(op, specs, arrays, params)
    for members in groups.values():
        for r, made in zip(members, _each(op, [rows[r] for r in members], params)):
            results[r] = made
    return results


CHUNK = 2048  # elements of a block


def _each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[Any]]:
    """Rows of dense arrays of one type."""
    cupy, (specs, first) = launch.cupy(), rows[0]
    key = ("each", op.name, tuple(params.items()), repr(params), tuple([getattr(x, "dtype", type(x)) for x in first]))
    text, operands = _kinds.get(key) or _remember(key, _each_text(op, specs, first, params))
    starts, total = [], 0
    for row_specs, _ in rows:
        starts.append(total)
        total += -(-row_specs[0].size // ALIGNMENT) * ALIGNMENT
    arenas = [cupy.empty(total, spec.dtype) for spec in specs]
    made, table = [], []
    for start, (row_specs, arrays) in zip(starts, rows):
        lead = next(x for x in arrays if hasattr(x, "strides"))
        order, size = _memory_order(lead.shape, lead.strides), row_specs[0].size
        back = _back(order)
        pieces = [arena[start : start + size].reshape(tuple([lead.shape[i] for i in order])) for arena in arenas]
        made.append(pieces if back is None else [y.transpose(back) for y in pieces])
        pointers = [(x.data.ptr, x.itemsize) for x in (*[arrays[i] for i in operands], *pieces)]
        for begin in range(0, size, CHUNK):
            table.append([p + begin * width for p, width in pointers] + [min(CHUNK, size - begin)])
    numbers = [float(x) for x in first if isinstance(x, (bool, int, float))]
    launch.compiled(text, "each")(len(table), THREADS, (_on_device(table).data.ptr, *numbers))
    return made


ALIGNMENT = 64  # elements: each array of an arena begins at a multiple of 256 bytes
_tables: dict[bytes, Any] = {}


def forget() -> None:
    """Let go of everything on the device."""
    _kinds.clear()
    _tables.clear()


def copy_each(targets: Sequence[Any], sources: Sequence[Any]) -> None:
    """targets[k][...] = sources[k], in one launch for all of one type that lie alike; sources may be NumPy arrays."""
    cupy = launch.cupy()
    tables: dict[str, list[list[int]]] = {}
    held = []
    for target, source in zip(targets, sources):
        if isinstance(source, np.ndarray):
            source = cupy.asarray(np.asarray(source, order="C"))
            held.append(source)
        if not target.size:
            continue
        if target.strides == source.strides and target.dtype == source.dtype and _is_dense([target]):
            width, size = target.itemsize, target.size
            to, of = int(target.data.ptr), int(source.data.ptr)
            rows = tables.setdefault(_ctype(target.dtype.name), [])
            rows += [[of + k * width, to + k * width, min(CHUNK, size - k)] for k in range(0, size, CHUNK)]
        else:
            copy(target, source)
    for c, rows in tables.items():
        text = launch.text_of("portable.h") + _COPY_EACH.replace("TYPE", c)
        launch.compiled(text, "copy_each")(len(rows), THREADS, (_on_device(rows).data.ptr,))


_COPY_EACH = f"""
// Many arrays copied: a block per chunk of {CHUNK} elements, a row of the table for each: addresses of its source and
// its target, how many elements it has. Blocks of {THREADS}; no shared memory. Floor: twice the bytes of the arrays.
extern "C" __global__ void __launch_bounds__({THREADS}) copy_each(const i64 *__restrict__ table) {{
  const i64 *row = table + (i64)blockIdx.x * 3;
  const TYPE *source = (const TYPE *)row[0];
  TYPE *target = (TYPE *)row[1];
  int count = (int)row[2];
  for (int i = threadIdx.x; i < count; i += {THREADS}) target[i] = source[i];
}}
"""


def copies(arrays: Sequence[Any]) -> list[Any]:
    """A copy of each array in its memory order; those of one type lie side by side in one arena."""
    cupy = launch.cupy()
    totals: dict[Any, int] = {}
    starts = []
    for x in arrays:
        starts.append(totals.get(x.dtype, 0))
        totals[x.dtype] = starts[-1] + -(-x.size // ALIGNMENT) * ALIGNMENT
    arenas = {dtype: cupy.empty(total, dtype) for dtype, total in totals.items()}
    made = []
    for x, start in zip(arrays, starts):
        order = _memory_order(x.shape, x.strides)
        y = arenas[x.dtype][start : start + x.size].reshape(tuple([x.shape[i] for i in order]))
        back = _back(order)
        made.append(y if back is None else y.transpose(back))
    copy_each(made, arrays)
    return made


def _on_device(table: list[list[int]]) -> Any:
    """A table of addresses on the device; a training loop has the same few over and over."""
    data = np.array(table, np.int64)
    key = data.tobytes()
    found = _tables.get(key)
    if found is None:
        if len(_tables) >= 32:
            _tables.clear()
        found = _tables[key] = launch.cupy().asarray(data)
    return found


def _each_text(
    op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]
) -> tuple[str, list[int]]:
    """(the text of the kernel, the operands that are arrays)."""
    loop = _flat_loop(op, specs, arrays, params)
    operands = [i for i, x in enumerate(arrays) if not isinstance(x, (bool, int, float))]
    columns = {i: k for k, i in enumerate(operands)}
    columns.update({len(arrays) + k: len(operands) + k for k in range(len(specs))})
    declared, heads, lines = ["const i64 *__restrict__ table"], [], []
    for i, step in enumerate(loop.steps):
        c = _ctype(step.dtype)
        if step.access is None:
            lines.append(f"{c} t{i} = {_expression(step)};")
        elif step.access.buffer in columns:
            heads.append(f"const {c} *x{i} = (const {c} *)row[{columns[step.access.buffer]}];")
            lines.append(f"{c} t{i} = x{i}[i];")
        else:
            declared.append(f"double l{i}")
            lines.append(f"{c} t{i} = ({c})l{i};")
    for k, store in enumerate(loop.stores):
        c = _ctype(store.dtype)
        heads.append(f"{c} *y{k} = ({c} *)row[{columns[store.access.buffer]}];")
        lines.append(f"y{k}[i] = t{int(store.source)};")
    text = f"""
// One loop over the elements of many arrays: a block per chunk of {CHUNK}, a row of the table for each: addresses where
// its chunk begins in every operand and result, and how many elements it has. Blocks of {THREADS}; no shared memory.
// Floor: the bytes of the arrays, each read or written once.
extern "C" __global__ void __launch_bounds__({THREADS}) each({", ".join(declared)}) {{
  const i64 *row = table + (i64)blockIdx.x * {len(columns) + 1};
{_indented(heads, 2)}
  int count = (int)row[{len(columns)}];
  for (int i = threadIdx.x; i < count; i += {THREADS}) {{
{_indented(lines, 4)}
  }}
}}
"""
    return launch.text_of("words.cuh") + text, operands


def _is_dense(arrays: Sequence[Any]) -> bool:
    """Whether the arrays have no gaps, in whatever order their dimensions lie."""
    lead = next((x for x in arrays if hasattr(x, "strides")), None)
    if lead is None:
        return False
    order = _memory_order(lead.shape, lead.strides)
    sizes = tuple([lead.shape[i] for i in order])
    return all(n == 1 or s == d for n, s, d in zip(sizes, [_strides(lead)[i] for i in order], _dense(sizes)))


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
    memory = [*arrays, *made]
    Bound(kind.printed, lambda buffer, offset: memory[buffer].data.ptr, memory)()
    return made if kind.back is None else [y.transpose(kind.back) for y in made]


def _map_kind(op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]) -> _Kind:
    shape = specs[0].shape
    lead = next((x for x in arrays if hasattr(x, "shape") and any(x.strides)), None)
    order = tuple(range(len(shape))) if lead is None else _memory_order(shape, lead.strides)
    sizes = tuple([shape[i] for i in order])
    loop = _flat_loop(op, specs, arrays, params)
    dense = _dense(sizes)
    steps = []
    for step in loop.steps:
        if step.access is not None:
            x = arrays[step.access.buffer]
            if hasattr(x, "shape"):
                strides = _strides(x)
                access = Access(step.access.buffer, 0, tuple([strides[i] for i in order]))
            else:
                access = Access(Number(step.access.buffer), 0, ())
            step = dataclasses.replace(step, access=access)
        steps.append(step)
    stores = [dataclasses.replace(s, access=Access(s.access.buffer, 0, dense)) for s in loop.stores]
    printed = Printed(_collapsed(Loop(sizes, steps, stores)), is_fixed=False)
    return _Kind(printed, [(sizes, spec.dtype) for spec in specs], _back(order))


def _flat_loop(op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]) -> Any:
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
    (x,), axes, spec = arrays, params["axes"], specs[0]
    order = _memory_order(x.shape, x.strides)
    strides, sizes = _strides(x), tuple([spec.shape[i] for i in order])
    dense = [0 if i in axes else n for i, n in zip(order, _dense(sizes))]
    is_plain = not any(i in axes for i in order)
    load = Step("", (), x.dtype.name, access=Access(0, 0, tuple([strides[i] for i in order])))
    combine = "" if is_plain else op.text
    store = Store(Temp(0), Access(1, 0, tuple(dense)), spec.dtype.name, combine, op.identity)
    loop = _collapsed(Loop(tuple([x.shape[i] for i in order]), [load], [store]))
    return _Kind(Printed(loop, is_fixed=False), [(sizes, spec.dtype)], _back(order))


def _memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest; those of size 1 keep their place among equals."""
    return tuple(sorted(range(len(shape)), key=lambda i: (-abs(strides[i]) if shape[i] > 1 else 0, i)))


def _back(order: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if order == tuple(range(len(order))) else tuple([order.index(i) for i in range(len(order))])


def _strides(x: Any) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple([n // x.itemsize for n in x.strides])


def _dense(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([math.prod(sizes[k + 1 :]) for k in range(len(sizes))])


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
