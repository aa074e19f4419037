"""Loops printed as CUDA C++: a thread per iteration, or, where numbers are combined, threads that share a result.

Two kinds of kernels. `map`: iterations in memory order, neighbouring threads at neighbouring places. `reduce`: a block
has COLUMNS results and LANES threads for each; every thread combines its share in order, the lanes' numbers meet in a
tree, and where there are few results but many numbers, slices of them are combined by a second kernel, `merge`.
Everything is in a fixed order that depends on sizes alone.

Texts of plain calls leave sizes and strides open, so that one module serves all sizes; those of programs have them as
constants.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.backends.loop import Loop, Temp
from minidl.kernels.cuda import launch

THREADS = 256
UNROLL = 4  # iterations of a thread of `map`, from LARGE on
LARGE = 1 << 18
BLOCK_THREADS = 512  # of a kernel of one block
BLOCKS = 512  # with fewer blocks than about this a GPU is not full

_PLACE = re.compile(r"\{(\d+)\}")
_CONSTANTS = {"inf": math.inf, "nan": math.nan}
_WORDS = {ast.Add: "plus", ast.Sub: "minus", ast.Mult: "times", ast.Pow: "pow"}  # division is never joined to others
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


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
        plain, groups = _sorted_stores(loop)
        if not groups:
            self._map(loop, plain)
        for over, stores in groups.items():  # what is stored as it is goes with the first of them
            self._reduce(loop, over, stores, plain)
            plain = []

    def in_bytes(self, sizes: dict[Any, int]) -> Printed:
        """This, with offsets into buffers in bytes; sizes: those of a buffer's elements."""
        for part in self.parts:
            part.arguments = [
                (kind, what, more[0] * sizes[what]) if kind == "array" else (kind, what, *more)
                for kind, what, *more in part.arguments
            ]
        return self

    # kernels ----------------------------------------------------------------------------------------------------
    @classmethod
    def side_by_side(cls, loops: Sequence[Any]) -> Printed:
        """Loops that do not need each other and combine nothing, as one kernel: each has a range of blocks."""
        made = cls(Loop((0,), [], []), is_fixed=True)
        bodies, lines, begin = [], [], 0
        for k, loop in enumerate(loops):
            total = math.prod(loop.sizes)
            body = _Body(loop, loop.stores, True, f"b{k}")
            inner = body.places(range(len(loop.sizes)), "i") + body.steps() + body.plain(loop.stores)
            blocks = -(-total // THREADS)
            lines += [f"if (blockIdx.x >= {begin} && blockIdx.x < {begin + blocks}) {{"]
            lines += [f"  {body.index} i = ({body.index})(blockIdx.x - {begin}) * {THREADS} + threadIdx.x;"]
            lines += [f"  if (i < {total}) {{", *["    " + line for line in inner], "  }", "}"]
            bodies.append(body)
            begin += blocks
        parameters = ", ".join(declared for body in bodies for declared in body.declared)
        text = f"""
// Several loops side by side, a thread per iteration. Grid: blocks of {THREADS} threads, a range of them for each loop.
// No shared memory. Floor: the bytes of the arrays, each read or written once.
extern "C" __global__ void __launch_bounds__({THREADS}) maps({parameters}) {{
{indented(lines, 2)}
}}
"""
        made.parts = []
        made._add(text, "maps", (begin,), [a for body in bodies for a in body.arguments])
        return made

    @classmethod
    def in_one_block(cls, loops: Sequence[Any]) -> Printed:
        """Small loops as one kernel of one block, one after the other: a warp for each number that combines others."""
        made = cls(Loop((0,), [], []), is_fixed=True)
        bodies, lines = in_turn(loops, str(BLOCK_THREADS))
        parameters = ", ".join(declared for body in bodies for declared in body.declared)
        text = f"""
// Small loops, one after the other. Grid: one block of {BLOCK_THREADS} threads; a thread per iteration, or a warp per
// result. No shared memory: what a loop stores, the next one reads after a barrier. Floor: the barriers.
extern "C" __global__ void __launch_bounds__({BLOCK_THREADS}) block({parameters}) {{
{indented(lines, 2)}
}}
"""
        made.parts = []
        made._add(text, "block", (1,), [a for body in bodies for a in body.arguments], BLOCK_THREADS)
        return made

    def _map(self, loop: Any, stores: list[Any]) -> None:
        total = math.prod(loop.sizes)
        unroll = UNROLL if total >= LARGE else 1
        body = _Body(loop, stores, self._is_fixed)
        count = body.number("total", total)
        lines = body.places(range(len(loop.sizes)), "i")
        lines += body.steps() + body.plain(stores)
        text = f"""
// One thread per iteration of a loop, {unroll} of them each. Grid: blocks of {THREADS} threads over all iterations. No
// shared memory. Floor: the bytes of the arrays, each read or written once.
extern "C" __global__ void __launch_bounds__({THREADS}) map({body.parameters()}) {{
  {body.index} first = ({body.index})blockIdx.x * {THREADS * unroll} + threadIdx.x;
#pragma unroll
  for (int u = 0; u < {unroll}; u++) {{
    {body.index} i = first + u * {THREADS};
    if (i < {count}) {{
{indented(lines, 6)}
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
                after.append(f"if (lane == 0 && at < {count}) {at} = ({ctype(store.dtype)})s{j}[threadIdx.x];")
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
// Results along the kept dimensions, numbers combined along the others. Grid: results / {columns} x slices, {lanes}
// threads for each result. Shared memory: 8 bytes a thread. Floor: the bytes of the arrays, each read once.
extern "C" __global__ void __launch_bounds__({lanes * columns}) reduce({body.parameters()}) {{
  __shared__ double space[{lanes * columns}];
  int lane = {lane};
  {body.index} at = ({body.index})blockIdx.x * {columns} + {column};
{indented(before, 2)}
  {body.index} begin = ({body.index})blockIdx.y * {share}, end = begin + {share} < {reach} ? begin + {share} : {reach};
  {body.index} a = at;
{indented(body.places(kept, "a"), 2)}
  if (at < {count}) {{
    for ({body.index} q = begin + lane; q < end; q += {lanes}) {{
      {body.index} r = q;
{indented(inner, 6)}
    }}
  }}
{indented(after, 2)}
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
            lines += [f"{body.store_at(store)} = ({ctype(store.dtype)})v{j};"]
        text = f"""
// The slices of each result of `reduce`, combined in order. Grid: results / {THREADS}, a thread for each. No shared
// memory. Floor: the bytes of the slices, each read once.
extern "C" __global__ void __launch_bounds__({THREADS}) merge({body.parameters()}) {{
  {body.index} at = ({body.index})blockIdx.x * {THREADS} + threadIdx.x;
  if (at < {count}) {{
    {body.index} a = at;
{indented(body.places(kept, "a") + lines, 4)}
  }}
}}
"""
        self._add(text, "merge", (-(-outputs // THREADS),), body.arguments)

    def _add(
        self, text: str, name: str, grid: tuple[int, ...], arguments: list[Any], threads: int = THREADS
    ) -> None:
        self.parts.append(Part(launch.text_of("words.cuh") + text, name, grid, threads, list(arguments)))


def in_turn(loops: Sequence[Any], threads: str) -> tuple[list[_Body], list[str]]:
    """Loops one after the other by the threads of one block, of which there are so many: (bodies, lines of C)."""
    bodies, lines = [], []
    for k, loop in enumerate(loops):
        plain, groups = _sorted_stores(loop)
        for n, (over, stores) in enumerate(list(groups.items()) or [((), [])]):
            body = _Body(loop, stores + plain, True, f"b{k}_{n}", is_shared=True)
            inner = body.alone(over, stores, plain, threads)
            lines += ["{", *indented(inner, 2).splitlines(), "}", "__syncthreads();"]
            bodies.append(body)
            plain = []
    return bodies, lines[:-1]


def _sorted_stores(loop: Any) -> tuple[list[Any], dict[tuple[int, ...], list[Any]]]:
    """(stores as they are, those that combine: by the dimensions along which they do)."""
    plain: list[Any] = []
    groups: dict[tuple[int, ...], list[Any]] = {}
    for store in loop.stores:
        over = tuple([k for k, n in enumerate(store.access.strides) if n == 0])
        if store.combine and over:
            groups.setdefault(over, []).append(store)
        else:
            plain.append(store)
    return plain, groups


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

    def __init__(
        self, loop: Any, stores: list[Any], is_fixed: bool, prefix: str = "", *, is_shared: bool = False
    ) -> None:
        self._loop, self._is_fixed, self._prefix = loop, is_fixed, prefix
        self._restrict = "" if is_shared else "__restrict__ "  # whether others may write what is read here
        self.declared: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._used = _needed(loop, stores)
        self.index = index_type(loop)
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
            c = ctype(step.dtype)
            if step.access is None:
                lines.append(f"{c} t{i} = {expression(step)};")
            elif isinstance(step.access.buffer, Number):
                self.declared.append(f"double l{i}")
                self.arguments.append(("value", int(step.access.buffer)))
                lines.append(f"{c} t{i} = ({c})l{i};")
            else:
                name = f"{self._prefix}x{i}"
                self.declared.append(f"const {c} *{self._restrict}{name}")
                self.arguments.append(("array", step.access.buffer, step.access.offset))
                lines.append(f"{c} t{i} = {name}[{self._subscript(name, step.access)}];")
        return lines

    def plain(self, stores: list[Any]) -> list[str]:
        """What an iteration stores."""
        return [f"{self.store_at(store)} = t{int(store.source)};" for store in stores]

    def store_at(self, store: Any) -> str:
        """The element that a store fills."""
        name = f"{self._prefix}y{len(self._at)}"
        self._at[id(store)] = name
        self.declared.append(f"{ctype(store.dtype)} *{self._restrict}{name}")
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

    def alone(self, over: tuple[int, ...], stores: list[Any], plain: list[Any], threads: str) -> list[str]:
        """The loop by one block of so many threads: `over` are the dimensions along which the stores combine."""
        sizes = self._loop.sizes
        if not stores:
            head = f"for (int i = threadIdx.x; i < {math.prod(sizes)}; i += {threads}) {{"
            inner = self.places(range(len(sizes)), "j") + self.steps() + self.plain(plain)
            return [head, f"  {self.index} j = i;", *indented(inner, 2).splitlines(), "}"]
        kept = [k for k in range(len(sizes)) if k not in over]
        outputs, length = (math.prod(sizes[k] for k in dims) for dims in (kept, over))
        wide = [_wide(store) for store in stores]
        lines = [f"for (int at = threadIdx.x / 32; at < {outputs}; at += {threads} / 32) {{"]
        lines += [f"  {c} v{j} = {_literal(s.identity, c)};" for j, (s, c) in enumerate(zip(stores, wide))]
        lines += [f"  {self.index} a = at;", *indented(self.places(kept, "a"), 2).splitlines()]
        lines += [f"  for (int q = threadIdx.x % 32; q < {length}; q += 32) {{", f"    {self.index} r = q;"]
        inner = self.places(over, "r") + self.steps() + self.plain(plain)
        inner += [
            f"v{j} = {_combined(s, f'v{j}', f'({c})t{int(s.source)}')};" for j, (s, c) in enumerate(zip(stores, wide))
        ]
        lines += [*indented(inner, 4).splitlines(), "  }", "  for (int half = 16; half; half /= 2) {"]
        for j, (store, c) in enumerate(zip(stores, wide)):
            other = f"({c})__shfl_xor_sync(ALL_LANES, {'(int)' if c == 'bool' else ''}v{j}, half)"
            lines.append(f"    v{j} = {_combined(store, f'v{j}', other)};")
        lines += ["  }", "  if (threadIdx.x % 32 == 0) {"]
        for j, store in enumerate(stores):
            lines.append(f"    {self.store_at(store)} = ({ctype(store.dtype)})v{j};")
        return [*lines, "  }", "}"]

    def parameters(self) -> str:
        return ", ".join(self.declared)


def _needed(loop: Any, stores: list[Any]) -> set[int]:
    used = {int(s.source) for s in stores}
    for i in range(len(loop.steps) - 1, -1, -1):
        if i in used:
            used.update(int(x) for x in loop.steps[i].args if type(x) is Temp)
    return used


def index_type(loop: Any) -> str:
    accesses = [s.access for s in (*loop.steps, *loop.stores) if s.access is not None]
    reach = [sum(abs(s) * (n - 1) for s, n in zip(a.strides, loop.sizes)) for a in accesses]
    if max([math.prod(loop.sizes) + UNROLL * THREADS * 2, *reach]) >= 1 << 31:
        return "i64"
    return "int" if any(s < 0 for a in accesses for s in a.strides) else "unsigned"


# text -----------------------------------------------------------------------------------------------------------
_NAMES = {name: dtype for dtype, name in launch.CTYPES.items()}


def ctype(dtype: str) -> str:
    return launch.CTYPES[dtype]


def _wide(store: Any) -> str:
    """The type in which a store's numbers are combined: sums and products of singles in double."""
    is_sum = store.dtype == "float32" and ("+" in store.combine or "*" in store.combine)
    return "double" if is_sum else ctype(store.dtype)


def expression(step: Any) -> str:
    c = ctype(step.dtype)
    literal = ctype(step.literal_dtype or step.dtype)
    arguments = [f"t{int(x)}" if type(x) is Temp else _literal(x, literal) for x in step.args]
    if step.text == "cast({0})":
        return f"({c})({arguments[0]})"
    return _worded(step.text, literal).format(*arguments)


@functools.cache
def _worded(text: str, literal: str) -> str:
    """A scalar text in C: its numbers in a type, its words by their names in words.cuh, its places as they were."""
    return _spelt(ast.parse(_PLACE.sub(r"x\1", text), mode="eval").body, literal)


def _spelt(node: Any, literal: str) -> str:
    def inner(*nodes: Any) -> list[str]:
        return [_spelt(x, literal) for x in nodes]

    if isinstance(node, ast.Constant):
        return _literal(node.value, literal)
    if isinstance(node, ast.Name):
        return _literal(_CONSTANTS[node.id], literal) if node.id in _CONSTANTS else f"{{{node.id[1:]}}}"
    if isinstance(node, ast.UnaryOp):
        sign = "-" if isinstance(node.op, ast.USub) else "+" if isinstance(node.op, ast.UAdd) else "!"
        return f"({sign}{inner(node.operand)[0]})"
    if isinstance(node, ast.Compare):
        a, b = inner(node.left, *node.comparators)
        return f"({a} {_COMPARED[type(node.ops[0])]} {b})"
    if isinstance(node, ast.BinOp):
        a, b = inner(node.left, node.right)
        return f"({a} / {b})" if isinstance(node.op, ast.Div) else f"w_{_WORDS[type(node.op)]}({a}, {b})"
    return f"w_{node.func.id}({', '.join(inner(*node.args))})"


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


def indented(lines: list[str], depth: int) -> str:
    return "\n".join(" " * depth + line for line in lines)
