"""Loops printed as Python, compiled by Numba to bare functions of addresses, kept on disk.

A loop becomes `k(start, stop, table)`: table holds sizes, strides and addresses, so one compiled function serves all
loops of the same structure, whatever their sizes. Generated files lie in the cache folder (MINIDL_CACHE_DIR, by default
minidl in the user's cache folder).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl.backends.cache import cache_folder, read, write
from minidl.backends.cpu.memory import keep_freed_memory
from minidl.backends.cpu.native import compiler
from minidl.backends.loop import Temp

CHUNKS = 8  # a large reduction is cut into this many parts, always, so that results do not depend on threads
CHUNKED_ITERATIONS = 1 << 16
GRAIN_ITERATIONS = 1 << 13  # so many iterations are worth handing to another thread

_NUMBER = re.compile(r"(?<![\w{.])(\d+(?:\.\d+)?)(?![\w}.])")


def bind_loop(loop: Any, flat: Callable[[Any], np.ndarray]) -> Callable[[], Any]:
    """The loop as a function without arguments, bound to memory: flat(buffer) is a buffer as a flat array.

    Its attribute `rebind` is a function of another `flat`: the same code and scratch, bound to that memory.
    """
    return _bound(Printed(loop), flat)


def _bound(printed: Printed, flat: Callable[[Any], np.ndarray]) -> Any:
    sizes = printed.loop.sizes or (1,)
    inner = int(np.prod(sizes[1:], dtype=np.int64))
    chunks = CHUNKS if sizes[0] * inner >= CHUNKED_ITERATIONS and sizes[0] >= CHUNKS else 1
    table, held = printed.table(sizes, chunks, flat)
    from minidl.kernels.cpu.threads import bound_call

    address = compiled(printed.text)
    run: Any
    if printed.totals:
        chunk = bound_call(address, chunks, 1, table, held)
        merge = bound_call(address, chunks + 1, chunks + 1, table, held, chunks)
        run = lambda: (chunk(), merge())  # noqa: E731
    else:
        run = bound_call(address, sizes[0], max(1, GRAIN_ITERATIONS // max(inner, 1)), table, held)
    run.rebind = functools.partial(_bound, printed)
    return run


# bodies of MAP ops, at once ---------------------------------------------------------------------------------------
def run_body(op: Any, specs: tuple[Any, ...], arrays: list[Any], params: dict[str, Any]) -> list[np.ndarray]:
    """Results of a MAP op with a body, computed at once; arrays: its operands, numbers among them."""
    kinds = tuple([(x.dtype, x.strides) if isinstance(x, np.ndarray) else type(x) is bool for x in arrays])
    rows = _rows(op, [(specs, arrays)], params, specs, kinds)
    return rows.run([(x,) for x in arrays])[0]


def run_each(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> list[list[np.ndarray]]:
    """run_body for many (specs, arrays) in one pass; here a row's arrays have the type of its first result."""
    if not rows:
        return []
    columns = list(zip(*[arrays for _, arrays in rows]))
    kinds: list[Any] = []
    for column in columns:
        types = set(map(type, column))
        if types == {np.ndarray}:
            kinds.append(tuple([x.strides for x in column]))
        elif types <= {int, float} or types == {bool}:
            kinds.append(types == {bool})
        else:  # arrays beside numbers
            return [run_body(op, specs, arrays, params) for specs, arrays in rows]
    return _rows(op, rows, params, tuple([specs[0] for specs, _ in rows]), tuple(kinds)).run(columns)


MOST_ROWS = 1024  # so many are kept
_kept_rows: dict[Any, _Rows] = {}
_kept_flats: dict[Any, _Flat] = {}


def _rows(op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any], *kinds: Any) -> _Rows:
    """What is known of rows of these kinds."""
    key = op.name, _frozen(params), _is_native(), kinds
    found = _kept_rows.get(key)
    if found is None:
        if len(_kept_rows) >= MOST_ROWS:
            _kept_rows.clear()
        found = _kept_rows[key] = _Rows(op, rows, params)
    return found


def _frozen(params: dict[str, Any]) -> Any:
    return (tuple(params.items()), repr(params)) if params else ()  # the text tells 0.0 from -0.0, and 1 from True


def _is_native() -> bool:
    return compiler.unavailable() is None


class _Flat(NamedTuple):
    """A loop over flat arrays as a job for threads, and what its table holds.

    entries : 0 for the number of elements, 1 + b for the address of buffer b; then, counting on, those of the literals.
    """

    address: int
    entries: list[int]
    literals: list[np.ndarray]
    code: Any = None  # without it the job is gone


def _flat(op: Any, dtypes: tuple[Any, ...], moves: tuple[bool, ...], params: dict[str, Any]) -> _Flat:
    """The body of an op; moves: of each input, whether it is an array (True) or one number for all (False)."""
    key = op.name, _frozen(params), _is_native(), dtypes, moves
    if key not in _kept_flats:
        loop = op.loop(dtypes, moves, params)
        _kept_flats[key] = (_native_flat(loop) if _is_native() else None) or Printed(loop).flat()
    return _kept_flats[key]


def _native_flat(loop: Any) -> _Flat | None:
    from minidl.backends.cpu.native import bodies

    if not bodies.is_supported(loop):
        return None
    code, literals = bodies.compile_body(loop)
    return _Flat(code.address("k"), list(range(1, 1 + _buffers(loop) + len(literals))), literals, code)


def _buffers(loop: Any) -> int:
    return 1 + max([*loop.reads, *loop.writes])


class _Table(NamedTuple):
    """What a run over rows fills in: while it lasts, nobody else has it."""

    words: np.ndarray  # the tables of all rows, one after the other
    numbers: list[tuple[int, np.ndarray]]  # (operand, a number per row)
    job: Callable[[], Any]


class _Rows:
    """Rows of operands of a MAP op with a body: everything that depends on their shapes, types and strides alone.

    Each row is a flat loop. Arrays of another memory order than the row's first are copied, and what is the same
    everywhere is read as one number. A run is left with finding addresses, filling a table, and one job for all rows.
    Arrays are numbered column by column: the first operand of each row, the second of each, ..., then the results.
    """

    def __init__(self, op: Any, rows: list[tuple[Any, Any]], params: dict[str, Any]) -> None:
        keep_freed_memory()
        operands = rows[0][1]
        self._count, self._inputs, self._outputs = len(rows), len(operands), len(rows[0][0])
        self._arrays = [j for j, x in enumerate(operands) if isinstance(x, np.ndarray)]
        self._numbers = [j for j, x in enumerate(operands) if not isinstance(x, np.ndarray)]
        self._sizes = [specs[0].size for specs, _ in rows]
        self._orders: list[Any] = []  # of each row: its dimensions as they lie in memory; None is C order
        self._types: list[list[np.dtype[Any]]] = []  # of each row: those of its numbers
        self._copied: list[tuple[int, Any]] = []  # (array, order)
        self._flats = [self._flat(op, r, *row, params) for r, row in enumerate(rows)]
        self._starts = [0, *itertools.accumulate(len(flat.entries) for flat in self._flats)]
        results = [(k, r) for k in range(self._outputs) for r in range(self._count)]
        self._made = [(_permuted(rows[r][0][k].shape, self._orders[r]), rows[r][0][k].dtype) for k, r in results]
        self._turned = [(i, np.argsort(self._orders[r])) for i, (_, r) in enumerate(results) if self._orders[r]]
        buffers = [*self._arrays, *range(self._inputs, self._inputs + self._outputs)]
        places = [
            start + flat.entries.index(1 + b) for b in buffers for start, flat in zip(self._starts, self._flats)
        ]  # fmt: skip
        self._places = np.array(places, np.intp)  # of the arrays' addresses in the words of a table
        self._tables: list[_Table] = []  # those that nobody has

    def _flat(self, op: Any, r: int, specs: Any, operands: Any, params: dict[str, Any]) -> _Flat:
        """The compiled loop of a row."""
        arrays = [operands[j] for j in self._arrays]
        lead = next((x for x in arrays if any(x.strides)), None)
        order = None
        if lead is not None and not lead.flags.c_contiguous:
            order = sorted(range(lead.ndim), key=lambda i: -lead.strides[i])
        number = next((x.dtype for x in arrays if x.dtype.kind == "f"), specs[0].dtype)
        types = [getattr(x, "dtype", np.dtype(bool) if isinstance(x, bool) else number) for x in operands]
        moves = [False] * len(operands)
        for k, j in enumerate(self._arrays):
            x = operands[j] if order is None else operands[j].transpose(order)
            is_dense = x.flags.c_contiguous
            moves[j] = is_dense or any(stride and n > 1 for stride, n in zip(x.strides, x.shape))
            if moves[j] and not is_dense:
                self._copied.append((k * self._count + r, order))
        self._orders.append(order)
        self._types.append([types[j] for j in self._numbers])
        return _flat(op, tuple(types), tuple(moves), params)

    def run(self, columns: list[tuple[Any, ...]]) -> list[list[np.ndarray]]:
        """The results of each row; columns: for each operand, that of each row."""
        arrays = [x for j in self._arrays for x in columns[j]]
        for k, order in self._copied:
            arrays[k] = np.ascontiguousarray(arrays[k] if order is None else arrays[k].transpose(order))
        made = [np.empty(shape, dtype) for shape, dtype in self._made]
        try:
            table = self._tables.pop()
        except IndexError:
            table = self._table()
        for j, numbers in table.numbers:
            numbers[:] = columns[j]
        table.words[self._places] = addresses_of(arrays + made)
        table.job()
        self._tables.append(table)
        for i, order in self._turned:
            made[i] = made[i].transpose(order)
        return [made[r :: self._count] for r in range(self._count)]

    def _table(self) -> _Table:
        """A new table, filled in but for the arrays' addresses and the numbers."""
        words = np.zeros(self._starts[-1], np.int64)
        numbers: dict[tuple[int, Any], np.ndarray] = {}
        for r, flat in enumerate(self._flats):
            known = {0: self._sizes[r]}
            for j, dtype in zip(self._numbers, self._types[r]):
                if (j, dtype) not in numbers:
                    numbers[j, dtype] = np.empty(self._count, dtype)
                known[1 + j] = _address(numbers[j, dtype][r:])
            for entry, literal in enumerate(flat.literals, 1 + self._inputs + self._outputs):
                known[entry] = _address(literal)
            for place, entry in enumerate(flat.entries, self._starts[r]):
                words[place] = known.get(entry, 0)
        return _Table(words, [(j, array) for (j, _), array in numbers.items()], self._job(words))

    def _job(self, words: np.ndarray) -> Callable[[], Any]:
        """The call that does all rows."""
        if self._count == 1 and self._sizes[0] <= GRAIN_ITERATIONS:
            return functools.partial(_JOB(self._flats[0].address), 0, self._sizes[0], _address(words))
        from minidl.kernels.cpu.threads import parallel_call

        if self._count == 1:
            return functools.partial(parallel_call, self._flats[0].address, self._sizes[0], GRAIN_ITERATIONS, words)
        tables = [words[start:] for start in self._starts[:-1]]
        if not _is_native():
            return functools.partial(_each_in_turn, self._flats, self._sizes, tables)
        from minidl.backends.cpu.native import bodies

        pieces = [
            (flat.address, start, min(start + GRAIN_ITERATIONS, size), _address(table))
            for flat, size, table in zip(self._flats, self._sizes, tables)
            for start in range(0, size, GRAIN_ITERATIONS)
        ]
        grain = 1 if sum(self._sizes) > GRAIN_ITERATIONS else max(1, len(pieces))
        each = bodies.each().address("each")
        return functools.partial(parallel_call, each, len(pieces), grain, np.array(pieces, np.int64))


_JOB = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def _each_in_turn(flats: list[_Flat], sizes: list[int], tables: list[np.ndarray]) -> None:
    """All rows, those of one structure together."""
    from minidl.kernels.cpu.threads import parallel_each

    for address in {flat.address: None for flat in flats}:
        rows = [r for r, flat in enumerate(flats) if flat.address == address]
        parallel_each(address, GRAIN_ITERATIONS, [sizes[r] for r in rows], [tables[r] for r in rows])


def _permuted(shape: tuple[int, ...], order: Any) -> tuple[int, ...]:
    return shape if order is None else tuple([shape[i] for i in order])


class Printed:
    """A loop as the text of `k(start, stop, table)`, and what its table holds.

    Reductions along the last dimension alone (`rows`) are a scalar per row, stored at once. Others that keep the first
    dimension (`slabs`) add up in totals of their own for each of its iterations. The rest add up in `totals`, a set of
    them per chunk of rows; the call for the chunk after the last one merges the chunks' totals in order.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.rank = len(loop.sizes) or 1
        self._slots: list[tuple[Any, ...]] = []
        self._head: list[str] = []
        self._literals: dict[tuple[str, str], str] = {}
        self._scratch: dict[int, np.ndarray] = {}
        strides = {id(s): s.access.strides or (0,) for s in loop.stores}
        reduced = {id(s): [k for k, stride in enumerate(strides[id(s)]) if stride == 0] for s in loop.stores}
        combining = [s for s in loop.stores if s.combine and reduced[id(s)]]
        self.plain = [s for s in loop.stores if s not in combining]
        self.rows = [s for s in combining if self.rank > 1 and reduced[id(s)] == [self.rank - 1]]
        self.slabs = [s for s in combining if s not in self.rows and 0 not in reduced[id(s)]]
        self.totals = [s for s in combining if s not in self.rows and s not in self.slabs]
        self.text = self._print()

    # the table --------------------------------------------------------------------------------------------------
    def table(self, sizes: tuple[int, ...], chunks: int, flat: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, Any]:
        """(the table for these sizes and this memory, what must be kept alive for it)."""
        held: list[Any] = []
        numbers = []
        for kind, what, *more in self._slots:
            if kind == "size":
                numbers.append(sizes[what])
            elif kind == "chunks":
                numbers.append(chunks)
            elif kind == "stride":
                numbers.append(what.strides[more[0]])
            elif kind == "address":
                array = flat(what.buffer)
                held.append(array)
                numbers.append(_address(array) + what.offset * array.itemsize)
            elif kind == "literal":
                with np.errstate(all="ignore"):  # a number too large for the type is inf
                    array = np.full(1, what, more[0])
                held.append(array)
                numbers.append(_address(array))
            elif kind == "slab":
                numbers.append(_address(self._scratch_of(what, 1, sizes)))
            else:  # totals of a reduction: "kept" numbers per chunk, "total" where, "total_bytes" from chunk to chunk
                array = self._scratch_of(what, chunks, sizes)
                facts = {"kept": array.shape[1], "total": _address(array), "total_bytes": array.strides[0]}
                numbers.append(facts[kind])
        return np.array(numbers, np.int64), [held, self._scratch]

    def _scratch_of(self, store: Any, chunks: int, sizes: tuple[int, ...]) -> np.ndarray:
        """Where a reduction adds up; made for the first table, and the same for all."""
        if id(store) not in self._scratch:
            self._scratch[id(store)] = np.empty((chunks, self._kept(store, sizes)), _wide(store.dtype))
        return self._scratch[id(store)]

    def flat(self) -> _Flat:
        """The loop, without reductions and over flat arrays, compiled."""
        literals: list[np.ndarray] = []
        entries = []
        for kind, what, *more in self._slots:
            if kind == "literal":
                entries.append(1 + _buffers(self.loop) + len(literals))
                with np.errstate(all="ignore"):  # a number too large for the type is inf
                    literals.append(np.full(1, what, more[0]))
            else:
                entries.append(0 if kind == "size" else 1 + what.buffer)
        return _Flat(compiled(self.text), entries, literals, None)

    def _kept(self, store: Any, sizes: tuple[int, ...]) -> int:
        return int(np.prod([sizes[k] for k, s in enumerate(store.access.strides) if s != 0], dtype=np.int64))

    def _slot(self, name: str, *what: Any, convert: str = "") -> str:
        """Put something into the table and give it a name at the head of the function."""
        value = f"table[{len(self._slots)}]"
        self._slots.append(what)
        self._head.append(f"    {name} = {convert}({value})" if convert else f"    {name} = {value}")
        return name

    # the text ---------------------------------------------------------------------------------------------------
    def _index(self, name: str, access: Any) -> str:
        """Subscript of an access from the loop variables; strides other than 1 come from the table."""
        terms = []
        for k, stride in enumerate(access.strides):
            if stride == 1:
                terms.append(f"i{k}")
            elif stride != 0:
                terms.append(f"i{k} * {self._slot(f'{name}s{k}', 'stride', access, k)}")
        return " + ".join(terms) or "0"

    def _print(self) -> str:
        loop, last = self.loop, self.rank - 1
        for k in range(self.rank):
            self._slot(f"n{k}", "size", k)
        if self.totals:
            self._slot("chunks", "chunks", None)
        at: dict[int, list[str]] = {k: [] for k in range(-1, self.rank)}  # lines inside so many loops
        depths: list[int] = []
        for i, step in enumerate(loop.steps):
            if step.access is not None:
                self._slot(f"a{i}", "address", step.access, convert=f"{_type(step.dtype)}_at")
                depths.append(max((k for k, stride in enumerate(step.access.strides) if stride != 0), default=-1))
                truth = " != 0" if step.dtype == "bool" else ""  # truths lie in memory as bytes
                at[depths[i]].append(f"t{i} = a{i}[{self._index(f'a{i}', step.access)}]{truth}")
            else:
                depths.append(max([depths[x] for x in step.args if type(x) is Temp], default=-1))
                at[depths[i]].append(f"t{i} = {self._expression(step)}")
        for j, store in enumerate(self.plain):
            self._slot(f"y{j}", "address", store.access, convert=f"{_type(store.dtype)}_at")
            at[last].append(f"y{j}[{self._index(f'y{j}', store.access)}] = t{int(store.source)}")
        after_row: list[str] = []
        before_row: list[str] = []
        for j, store in enumerate(self.rows):
            self._slot(f"r{j}", "address", store.access, convert=f"{_type(store.dtype)}_at")
            before_row.append(f"v{j} = {_identity(store, _wide(store.dtype))}")
            at[last].append(f"v{j} = {_combined(store, f'v{j}', f't{int(store.source)}')}")
            after_row.append(f"r{j}[{self._index(f'r{j}', store.access)}] = {_type(store.dtype)}(v{j})")
        after_slab: list[str] = []
        for j, store in enumerate(self.slabs):
            kept = [k for k, stride in enumerate(store.access.strides) if stride != 0]
            cells = " * ".join(f"n{k}" for k in kept[1:]) or "1"
            self._slot(f"x{j}", "slab", store, convert=f"{_type(_wide(store.dtype))}_at")
            identity = f"x{j}[i0 * {cells} + j] = {_identity(store, _wide(store.dtype))}"
            at[0][:0] = [f"for j in range({cells}):", f"    {identity}"]
            cell = f"x{j}[{_flat_index(kept)}]"
            _add_up(store, cell, f"h{j}", at[last], before_row, after_row)
            self._slot(f"g{j}", "address", store.access, convert=f"{_type(store.dtype)}_at")
            after_slab += _over(kept[1:], f"g{j}[{self._index(f'g{j}', store.access)}] = {_type(store.dtype)}({cell})")
        lines = ["    " + line for line in at[-1]]
        if self.totals:
            lines += self._with_totals(at, before_row, after_row, after_slab)
        else:
            lines += self._nest("    ", "start, stop", at, before_row, after_row, after_slab)
        return "\n".join(["def k(start, stop, table):", *self._head, *lines]) + "\n"

    def _nest(
        self, pad: str, rows: str, at: Any, before_row: list[str], after_row: list[str], after_slab: list[str]
    ) -> list[str]:
        """The loops themselves."""
        lines = []
        outer = pad + "    "
        last = self.rank - 1
        for k in range(self.rank):
            if k == last:
                lines += [pad + line for line in before_row]
            lines.append(f"{pad}for i{k} in range({rows if k == 0 else f'n{k}'}):")
            pad += "    "
            lines += [pad + line for line in at[k]]
            if not at[k] and k == last:
                lines.append(f"{pad}pass")
        return lines + [pad[:-4] + line for line in after_row] + [outer + line for line in after_slab]

    def _with_totals(
        self, at: Any, before_row: list[str], after_row: list[str], after_slab: list[str]
    ) -> list[str]:
        last = self.rank - 1
        before_chunk, merge = [], []
        for j, store in enumerate(self.totals):
            wide = _wide(store.dtype)
            strides = store.access.strides or (0,)
            kept = [k for k, stride in enumerate(strides) if stride != 0]
            m = self._slot(f"m{j}", "kept", store)
            self._slot(f"w{j}", "total", store)
            self._slot(f"wb{j}", "total_bytes", store)
            before_chunk += [
                f"w = {_type(wide)}_at(w{j} + p * wb{j})", f"for j in range({m}):",
                f"    w[j] = {_identity(store, wide)}", f"c{j} = w",
            ]  # fmt: skip
            index = _flat_index(kept)
            _add_up(store, f"c{j}[{index}]", f"u{j}", at[last], before_row, after_row)
            self._slot(f"z{j}", "address", store.access, convert=f"{_type(store.dtype)}_at")
            merge += self._merge(j, store, kept, index)
        lines = ["    for p in range(start, stop):", "        if p == chunks:"]
        lines += ["            " + line for line in [*merge, "continue"]]
        lines += ["        " + line for line in before_chunk]
        lines.append("        low, high = p * n0 // chunks, (p + 1) * n0 // chunks")
        return lines + self._nest("        ", "low, high", at, before_row, after_row, after_slab)

    def _merge(self, j: int, store: Any, kept: list[int], index: str) -> list[str]:
        """The totals of all chunks, combined in order, go to the result."""
        wide = _type(_wide(store.dtype))
        return _over(
            kept,
            f"v = {wide}({wide}_at(w{j})[{index}])",
            "for q in range(1, chunks):",
            f"    v = {_combined(store, 'v', f'{wide}_at(w{j} + q * wb{j})[{index}]')}",
            f"z{j}[{self._index(f'z{j}', store.access)}] = {_type(store.dtype)}(v)",
        )

    def _expression(self, step: Any) -> str:
        literal = _type(step.literal_dtype)
        text = _NUMBER.sub(lambda m: f"{literal}({m[1]})", step.text)
        args = [f"t{int(x)}" if type(x) is Temp else self._literal(x, step.literal_dtype) for x in step.args]
        return text.format(*args).replace("cast(", f"{_type(step.dtype)}(")

    def _literal(self, number: Any, dtype: str) -> str:
        key = (str(float(number)), dtype)  # the text tells 0.0 from -0.0
        if key not in self._literals:
            name = f"s{len(self._literals)}"
            self._slot(name, "literal", number, dtype, convert=f"{_type(dtype)}_at")
            self._head[-1] += "[0]"
            self._literals[key] = name
        return self._literals[key]


def _over(dims: list[int], *lines: str) -> list[str]:
    """The lines inside loops over these dimensions."""
    heads = [f"{'    ' * depth}for i{k} in range(n{k}):" for depth, k in enumerate(dims)]
    return heads + ["    " * len(dims) + line for line in lines]


def _flat_index(kept: list[int]) -> str:
    """The number of an iteration among those of the kept dimensions."""
    return " + ".join("".join([f"i{k}", *[f" * n{inner}" for inner in kept if inner > k]]) for k in kept) or "0"


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


_HEADER_BYTES = object.__basicsize__  # of every object; an array's goes on with the address of its data (NumPy's C API)
_word_at = ctypes.c_ssize_t.from_address


def addresses_of(arrays: list[np.ndarray]) -> list[int]:
    """Where the data of many arrays begins: `_address`, ten times as fast."""
    if _is_laid_out_as_known():
        return [_word_at(id(x) + _HEADER_BYTES).value for x in arrays]
    return [_address(x) for x in arrays]


@functools.cache
def _is_laid_out_as_known() -> bool:
    array = np.empty(8)
    return sys.implementation.name == "cpython" and all(
        [_word_at(id(x) + _HEADER_BYTES).value == _address(x) for x in (array, array[3:])]
    )


def _type(dtype: str) -> str:
    return "boolean" if dtype == "bool" else dtype


def _wide(dtype: str) -> str:
    """The type in which elements of a type are added up over many rows."""
    return "float64" if dtype == "float32" else dtype


def _combined(store: Any, a: str, b: str) -> str:
    return str(store.combine.format(a, b))


def _add_up(store: Any, cell: str, scalar: str, inner: list[str], before: list[str], after: list[str]) -> None:
    """Lines that combine a store's source into a cell; along the last dimension first in a scalar, a register."""
    source = f"t{int(store.source)}"
    if (store.access.strides or (0,))[-1] != 0:
        inner.append(f"{cell} = {_combined(store, cell, source)}")
        return
    before.append(f"{scalar} = {_identity(store, _wide(store.dtype))}")
    inner.append(f"{scalar} = {_combined(store, scalar, source)}")
    after.append(f"{cell} = {_combined(store, cell, scalar)}")


def _identity(store: Any, dtype: str) -> str:
    number = store.identity
    if dtype == "bool":
        return str(bool(number))
    text = "nan" if number != number else repr(float(number))  # inf and -inf have their names in scalars
    return f"{_type(dtype)}({text})"


# compiled code --------------------------------------------------------------------------------------------------
_addresses: dict[str, int] = {}
_kept: list[Any] = []  # compiled functions, so that their addresses stay good
_HEADER = '''"""Generated by minidl: one loop. Safe to delete."""
from minidl.kernels.cpu.scalars import *


@loop
'''


def compiled(text: str) -> int:
    """Address of the function that the text defines: from memory, from disk, or compiled now."""
    address = _addresses.get(text)
    if address is None:
        name = "k_" + hashlib.sha256((_words() + _HEADER + text).encode()).hexdigest()[:20]
        source = _HEADER + text.replace("def k(", f"def {name}(")
        function = getattr(_module(name, source), name)
        _kept.append(function)
        address = _addresses[text] = int(function.address)
    return address


@functools.cache
def _words() -> str:
    """What generated code is said in, as text: with another meaning of a word it is other code."""
    import minidl.kernels.cpu.scalars as scalars

    return Path(scalars.__file__).read_text()


def _module(name: str, source: str) -> Any:
    """The module that the text says. In the cache folder it has a file, beside which Numba keeps its code; Python's own
    compiled form is neither written nor read."""
    path = _kept_at(name, source)
    if path is not None:
        module = types.ModuleType(f"minidl_generated.{name}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, module.__file__, "exec"), module.__dict__)
            return module
        except Exception:  # a damaged file of Numba's: compile in memory only
            del sys.modules[module.__name__]
    space: dict[str, Any] = {"__name__": f"minidl_generated.{name}"}
    exec(compile(source, f"<{name}>", "exec"), space)
    return type("module", (), {name: staticmethod(space[name])})


def _kept_at(name: str, source: str) -> Path | None:
    """Where the text lies in the cache folder, written if need be; None if it or Numba's code cannot lie there."""
    folder = cache_folder("__pycache__") and cache_folder()
    if folder is None:
        return None
    path = folder / f"{name}.py"
    is_there = read(path) == source.encode() or write(path, source.encode())
    return path if is_there else None
