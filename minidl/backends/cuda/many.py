"""Many arrays in one launch: a MAP op on rows of them (a solver's step), copies into and out of a program's arena.

A block has a chunk of one array; a table on the device tells where it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.backends.cuda.graph import Shared
from minidl.backends.cuda.layouts import back_order, dense_strides, is_dense, memory_order
from minidl.backends.cuda.loops import bind_map, copy, flat_loop, run_map
from minidl.backends.cuda.memory import new_bytes, new_table
from minidl.backends.cuda.printed import THREADS, ctype, expression, indented
from minidl.backends.cuda.streams import begin, end
from minidl.kernels.cuda import launch

CHUNK = 2048  # elements of a block
ALIGNMENT = 64  # elements: each array of an arena begins at a multiple of 256 bytes
MOST_TABLES = 32
SPARE = 64  # numbers whose memory is allocated together
_texts: dict[Any, tuple[str, list[int]]] = {}
_tables: dict[bytes, Any] = {}


def run_each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[Any]]:
    """run_map for many (specs, arrays): rows of one type in one launch, results of a kind side by side in one arena."""
    results: list[Any] = [None] * len(rows)
    groups: dict[Any, list[int]] = {}
    for r, (specs, arrays) in enumerate(rows):
        kinds = tuple([type(x) is bool if isinstance(x, (bool, int, float)) else x.dtype for x in arrays])
        strides = [x.strides for x in arrays if hasattr(x, "strides")]
        is_flat = all(s == strides[0] for s in strides) and is_dense(arrays) and specs[0].size
        if is_flat:
            numbers = tuple([x for x in arrays if isinstance(x, (bool, int, float))])
            groups.setdefault((kinds, numbers, repr(numbers)), []).append(r)
        else:
            results[r] = run_map(op, specs, arrays, params)
    for members in groups.values():
        for r, made in zip(members, _each(op, [rows[r] for r in members], params)):
            results[r] = made
    return results


def _each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[Any]]:
    """Rows of dense arrays of one type."""
    cupy, (specs, first) = launch.cupy(), rows[0]
    key = (op.name, tuple(params.items()), repr(params), tuple([getattr(x, "dtype", type(x)) for x in first]))
    if key not in _texts:
        _texts[key] = _each_text(op, specs, first, params)
    text, operands = _texts[key]
    starts, total = [], 0
    for row_specs, _ in rows:
        starts.append(total)
        total += -(-row_specs[0].size // ALIGNMENT) * ALIGNMENT
    arenas = [cupy.empty(total, spec.dtype) for spec in specs]
    made, table = [], []
    for start, (row_specs, arrays) in zip(starts, rows):
        lead = next(x for x in arrays if hasattr(x, "strides"))
        order, size = memory_order(lead.shape, lead.strides), row_specs[0].size
        back = back_order(order)
        pieces = [arena[start : start + size].reshape(tuple([lead.shape[i] for i in order])) for arena in arenas]
        made.append(pieces if back is None else [y.transpose(back) for y in pieces])
        pointers = [(x.data.ptr, x.itemsize) for x in (*[arrays[i] for i in operands], *pieces)]
        for k in range(0, size, CHUNK):
            table.append([p + k * width for p, width in pointers] + [min(CHUNK, size - k)])
    numbers = [float(x) for x in first if isinstance(x, (bool, int, float))]
    launch.compiled(text, "each")(len(table), THREADS, (_table_of(table).data.ptr, *numbers))
    return made


class EachInPlace:
    """`run_each` for rows whose sizes, types and strides are known, into results that lie there already.

    rows : (specs, arrays), numbers among the arrays; results have the memory order of the row's first array.
    late : which operand, a number for all rows, is given at each launch.
    """

    def __init__(self, op: Any, rows: Sequence[tuple[Any, Any]], late: int) -> None:
        self._op, self._late = op, late
        self._specs = [specs for specs, _ in rows]
        self._orders = [memory_order(arrays[0].shape, arrays[0].strides) for _, arrays in rows]
        first = rows[0][1]
        self._numbers = [float(x) for x in first if isinstance(x, (bool, int, float))]
        self._late_number = sum(isinstance(x, (bool, int, float)) for x in first[:late])
        self._texts = {arrays[0].dtype: _each_text(op, specs, arrays, {}) for specs, arrays in rows}

    def new_results(self) -> tuple[list[list[Any]], Any]:
        """(results, a list per row; what they and all views of them hold on to): all side by side in one piece."""
        starts, nbytes = [], 0
        for specs in self._specs:
            for spec in specs:
                starts.append(nbytes)
                nbytes += -(-spec.nbytes // (4 * ALIGNMENT)) * 4 * ALIGNMENT
        whole = Shared(new_bytes(nbytes), 0, nbytes)
        made, places = [], iter(starts)
        for specs, order in zip(self._specs, self._orders):
            dense = dense_strides(tuple([specs[0].shape[i] for i in order]))
            back = back_order(order)
            strides = dense if back is None else tuple([dense[i] for i in back])
            made.append([whole.array(s.shape, s.dtype, next(places) // s.dtype.itemsize, strides) for s in specs])
        return made, whole.keeper

    def bound(self, arrays: Sequence[Sequence[Any]], made: Sequence[Sequence[Any]]) -> Callable[[float], None]:
        """A function of the late number: the results of rows of arrays (and numbers), in as many launches as types."""
        tables: dict[Any, list[list[int]]] = {}
        calls: list[Callable[[float], None]] = []
        for specs, row, results in zip(self._specs, arrays, made):
            if not specs[0].size:
                continue
            there = [x for x in row if hasattr(x, "strides")]
            if not is_dense(there) or any(_strides(x) != _strides(there[0]) for x in (*there, *results)):
                calls.append(bind_map(self._op, specs, row, results, self._late))
                continue
            operands = self._texts[there[0].dtype][1]
            pointers = [(int(x.data.ptr), x.itemsize) for x in (*[row[i] for i in operands], *results)]
            tables.setdefault(there[0].dtype, []).extend(
                [p + k * width for p, width in pointers] + [min(CHUNK, specs[0].size - k)]
                for k in range(0, specs[0].size, CHUNK)
            )
        for dtype, rows in tables.items():
            calls.append(self._call(self._texts[dtype][0], new_table(rows)))
        if len(calls) == 1:
            return calls[0]

        def run(number: float) -> None:
            for call in calls:
                call(number)

        return run

    def _call(self, text: str, table: Any) -> Callable[[float], None]:
        kernel, grid, block = launch.compiled(text, "each"), (len(table),), (THREADS,)
        arguments, place = [int(table.data.ptr), *self._numbers], 1 + self._late_number

        def call(number: float, table: Any = table) -> None:  # it holds the table
            arguments[place] = number
            kernel(grid, block, tuple(arguments))

        return call


def _strides(x: Any) -> list[int]:
    """Where its elements lie: strides, but for dimensions of size 1."""
    return [stride for n, stride in zip(x.shape, x.strides) if n != 1]


def _each_text(
    op: Any, specs: tuple[Any, ...], arrays: Sequence[Any], params: dict[str, Any]
) -> tuple[str, list[int]]:
    """(the text of the kernel, the operands that are arrays)."""
    loop = flat_loop(op, specs, arrays, params)
    operands = [i for i, x in enumerate(arrays) if not isinstance(x, (bool, int, float))]
    columns = {i: k for k, i in enumerate(operands)}
    columns.update({len(arrays) + k: len(operands) + k for k in range(len(specs))})
    declared, heads, lines = ["const i64 *__restrict__ table"], [], []
    for i, step in enumerate(loop.steps):
        c = ctype(step.dtype)
        if step.access is None:
            lines.append(f"{c} t{i} = {expression(step)};")
        elif step.access.buffer in columns:
            heads.append(f"const {c} *x{i} = (const {c} *)row[{columns[step.access.buffer]}];")
            lines.append(f"{c} t{i} = x{i}[i];")
        else:
            declared.append(f"double l{i}")
            lines.append(f"{c} t{i} = ({c})l{i};")
    for k, store in enumerate(loop.stores):
        c = ctype(store.dtype)
        heads.append(f"{c} *y{k} = ({c} *)row[{columns[store.access.buffer]}];")
        lines.append(f"y{k}[i] = t{int(store.source)};")
    text = f"""
// One loop over the elements of many arrays. Grid: a block of {THREADS} per chunk of {CHUNK} elements, with a row of
// the table: where its chunk begins in each operand and result, and how many elements it has. No shared memory.
// Floor: the bytes of the arrays, each read or written once.
extern "C" __global__ void __launch_bounds__({THREADS}) each({", ".join(declared)}) {{
  const i64 *row = table + (i64)blockIdx.x * {len(columns) + 1};
{indented(heads, 2)}
  int count = (int)row[{len(columns)}];
  for (int i = threadIdx.x; i < count; i += {THREADS}) {{
{indented(lines, 4)}
  }}
}}
"""
    return launch.text_of("words.cuh") + text, operands


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
        if target.strides == source.strides and target.dtype == source.dtype and is_dense([target]):
            width, size = target.itemsize, target.size
            to, of = int(target.data.ptr), int(source.data.ptr)
            rows = tables.setdefault(ctype(target.dtype.name), [])
            rows += [[of + k * width, to + k * width, min(CHUNK, size - k)] for k in range(0, size, CHUNK)]
        else:
            copy(target, source)
    for c, rows in tables.items():
        text = launch.text_of("portable.h") + _COPY_EACH.replace("TYPE", c)
        launch.compiled(text, "copy_each")(len(rows), THREADS, (_table_of(rows).data.ptr,))


def bind_copies(targets: Sequence[Any], sources: Sequence[Any]) -> Callable[[], None] | None:
    """`copy_each` as a function without arguments, while the arrays lie there; None if they do not lie alike."""
    tables: dict[str, list[list[int]]] = {}
    for target, source in zip(targets, sources):
        if isinstance(source, np.ndarray) or target.dtype != source.dtype or not is_dense([target]):
            return None
        if _strides(target) != _strides(source):
            return None
        width, size, to, of = target.itemsize, target.size, int(target.data.ptr), int(source.data.ptr)
        rows = tables.setdefault(ctype(target.dtype.name), [])
        rows += [[of + k * width, to + k * width, min(CHUNK, size - k)] for k in range(0, size, CHUNK)]
    calls = []
    for c, rows in tables.items():
        table = new_table(rows)
        kernel = launch.compiled(launch.text_of("portable.h") + _COPY_EACH.replace("TYPE", c), "copy_each")
        calls.append((kernel, (len(rows),), (int(table.data.ptr),), table))

    def run() -> None:
        for kernel, grid, arguments, _ in calls:
            kernel(grid, (THREADS,), arguments)

    return run


_COPY_EACH = f"""
// Many arrays copied. Grid: a block of {THREADS} per chunk of {CHUNK} elements, with a row of the table: addresses of
// its source and its target, how many elements it has. No shared memory. Floor: twice the bytes of the arrays.
extern "C" __global__ void __launch_bounds__({THREADS}) copy_each(const i64 *__restrict__ table) {{
  const i64 *row = table + (i64)blockIdx.x * 3;
  const TYPE *source = (const TYPE *)row[0];
  TYPE *target = (TYPE *)row[1];
  int count = (int)row[2];
  for (int i = threadIdx.x; i < count; i += {THREADS}) target[i] = source[i];
}}
"""


def putter(target: Any) -> Callable[[float], None]:
    """A function of x: the one element of the target becomes x, which travels with the launch, so nothing waits."""
    text = launch.text_of("portable.h") + _PUT_NUMBER.replace("TYPE", ctype(target.dtype.name))
    kernel, address = launch.compiled(text, "put_number"), int(target.data.ptr)
    return lambda x: kernel((1,), (1,), (address, float(x)))


class Mover:
    """Called with an array of one number, it gives a copy in memory of its own, by one launch and nothing else."""

    def __init__(self) -> None:
        self._spare: dict[Any, tuple[Any, list[tuple[Any, int]]]] = {}  # by type and shape: kernel, (array, address)

    def __call__(self, x: Any) -> Any:
        key = x.dtype, x.shape
        kernel, spare = self._spare.get(key, (None, []))
        if not spare:
            kernel, spare = self._spare[key] = self._new(*key)
        made, address = spare.pop()
        begin("dlaccelerate")
        try:
            kernel((1,), (1,), (address, x.data.ptr))
        finally:
            end()
        return made

    def _new(self, dtype: Any, shape: tuple[int, ...]) -> tuple[Any, list[tuple[Any, int]]]:
        text = launch.text_of("portable.h") + _MOVE_NUMBER.replace("TYPE", ctype(dtype.name))
        kernel = launch.compiled(text, "move_number")
        block = new_bytes(SPARE * dtype.itemsize).view(dtype)
        start = int(block.data.ptr)
        return kernel, [(block[i : i + 1].reshape(shape), start + i * dtype.itemsize) for i in range(SPARE)]


_MOVE_NUMBER = """
// y[0] = x[0]. Grid: one thread. No shared memory. Floor: a launch.
extern "C" __global__ void __launch_bounds__(1) move_number(TYPE *y, const TYPE *x) {
  y[0] = x[0];
}
"""
_PUT_NUMBER = """
// y[0] = x. Grid: one thread. No shared memory. Floor: a launch.
extern "C" __global__ void __launch_bounds__(1) put_number(TYPE *y, double x) {
  y[0] = (TYPE)x;
}
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
        order = memory_order(x.shape, x.strides)
        y = arenas[x.dtype][start : start + x.size].reshape(tuple([x.shape[i] for i in order]))
        back = back_order(order)
        made.append(y if back is None else y.transpose(back))
    copy_each(made, arrays)
    return made


def _table_of(table: list[list[int]]) -> Any:
    """A table of addresses on the device; a training loop has the same few over and over."""
    data = np.array(table, np.int64)
    key = data.tobytes()
    found = _tables.get(key)
    if found is None:
        if len(_tables) >= MOST_TABLES:
            _tables.clear()
        found = _tables[key] = launch.cupy().asarray(data)
    return found


def forget() -> None:
    """Let go of everything on the device."""
    _tables.clear()
