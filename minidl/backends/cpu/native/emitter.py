"""LLVM functions as text. A template calls methods of a `Function`; each appends instructions and returns a value.

Values are names or literals as LLVM writes them; whole numbers may be Python ints, and arithmetic on those is done at
once. Types are LLVM's: `f.vector("float")` is "<16 x float>" on a processor with 64-byte registers. Addresses are a
pointer and an offset in bytes. Variables (`var`, `get`, `put`) are stack slots that LLVM turns into registers.

    f = Function("scale", ["ptr %y", "ptr %x", "i64 %n"], target)
    with f.loop(0, "%n", f.lanes(4)) as i:
        at = f.mul(i, 4)
        v = f.load(f.vector("float"), f.at("%x", at))
        f.store(f.vector("float"), f.fmul(f.vector("float"), v, v), f.at("%y", at))
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from minidl.backends.cpu.native.target import Target

Number = Any  # an int, or the name of an i64
LLVM_TYPES = {"float32": "float", "float64": "double", "bool": "i8", "int64": "i64", "uint64": "i64"}
SIZES = {"float": 4, "double": 8, "i8": 1, "i64": 8, "i32": 4, "i1": 1}
_VECTOR = re.compile(r"<(\d+) x (\w+)>")
_DEFINED = re.compile(r"^define [^@]*@([\w.]+)", re.MULTILINE)


def split_type(kind: str) -> tuple[int, str]:
    """(lanes, element type) of a type; a scalar has 1 lane."""
    found = _VECTOR.fullmatch(kind)
    return (int(found[1]), found[2]) if found else (1, kind)


def with_lanes(lanes: int, element: str) -> str:
    """The type of so many lanes; one lane is a scalar."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def literal(kind: str, number: float) -> str:
    """A constant of a scalar or vector type, the same in every lane."""
    lanes, element = split_type(kind)
    if element in ("float", "double"):
        if element == "float":
            try:
                number = struct.unpack("f", struct.pack("f", number))[0]
            except OverflowError:
                number = float("inf") if number > 0 else float("-inf")
        text = f"0x{struct.unpack('Q', struct.pack('d', number))[0]:016X}"
    else:
        text = str(int(number))
    if lanes == 1:
        return text
    return "<" + ", ".join([f"{element} {text}"] * lanes) + ">"


class Function:
    """One function under construction. Each operation is rounded by itself; only `fma` rounds a * b + c once."""

    def __init__(self, name: str, params: Sequence[str], target: Target, *, returns: str = "void") -> None:
        self.name, self.params, self.target, self.returns = name, list(params), target, returns
        self.declared: dict[str, str] = {}
        self._head: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"

    # text ---------------------------------------------------------------------------------------------------------
    def name_of(self, prefix: str = "t") -> str:
        """A name that is not in use."""
        self._count += 1
        return f"{prefix}{self._count}"

    def op(self, text: str) -> str:
        """Append an instruction that has a value; the value."""
        result = "%" + self.name_of()
        self._lines.append(f"  {result} = {text}")
        return result

    def do(self, text: str) -> None:
        """Append an instruction without a value."""
        self._lines.append("  " + text)

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self._lines.append(f"{name}:")
        self._block = name

    def finished(self) -> str:
        """The function's text."""
        head = f"define {self.returns} @{self.name}({', '.join(self.params)}) #0 {{\nentry:"
        tail = ["  ret void\n}"] if self.returns == "void" else ["}"]
        return "\n".join([head, *self._head, *self._lines, *tail]) + "\n"

    # types --------------------------------------------------------------------------------------------------------
    def lanes(self, itemsize: int = 4) -> int:
        """Elements of so many bytes in one register."""
        return self.target.lanes(itemsize)

    def vector(self, element: str) -> str:
        """The type of one register of these elements."""
        return with_lanes(self.lanes(SIZES[element]), element)

    # whole numbers and addresses ------------------------------------------------------------------------------------
    def add(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0:
            return b
        return a if b == 0 else self.op(f"add i64 {a}, {b}")

    def sub(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.op(f"sub i64 {a}, {b}")

    def mul(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1:
            return b
        return a if b == 1 else self.op(f"mul i64 {a}, {b}")

    def div(self, a: Number, b: int) -> Number:
        """a / b for a >= 0, rounded down."""
        if isinstance(a, int):
            return a // b
        return a if b == 1 else self.op(f"udiv i64 {a}, {b}")

    def mod(self, a: Number, b: int) -> Number:
        """a mod b for a >= 0."""
        if isinstance(a, int):
            return a % b
        return 0 if b == 1 else self.op(f"urem i64 {a}, {b}")

    def smaller(self, a: Number, b: Number) -> Number:
        """The smaller of two whole numbers."""
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.op(f"select i1 {self.less(a, b)}, i64 {a}, i64 {b}")

    def less(self, a: Number, b: Number) -> str:
        """Whether a < b, signed."""
        return self.op(f"icmp slt i64 {a}, {b}")

    def at(self, pointer: str, offset: Number) -> str:
        """The address so many bytes further on."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.op(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    # memory ---------------------------------------------------------------------------------------------------------
    def load(self, kind: str, address: str) -> str:
        return self.op(f"load {kind}, ptr {address}, align {SIZES[split_type(kind)[1]]}")

    def store(self, kind: str, value: str, address: str) -> None:
        self.do(f"store {kind} {value}, ptr {address}, align {SIZES[split_type(kind)[1]]}")

    def mask(self, lanes: int, count: Number) -> str:
        """A mask whose lanes below `count` are true."""
        if isinstance(count, int):
            return "<" + ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes)) + ">"
        numbers = "<" + ", ".join(f"i32 {i}" for i in range(lanes)) + ">"
        few = self.op(f"trunc i64 {self.smaller(count, lanes)} to i32")  # half the registers of an i64 per lane
        return self.op(f"icmp slt <{lanes} x i32> {numbers}, {self.splat(f'<{lanes} x i32>', few)}")

    def masked_load(self, kind: str, address: str, mask: str) -> str:
        """A vector whose lanes outside the mask are 0 and not read."""
        lanes, element = split_type(kind)
        name = f"llvm.masked.load.v{lanes}{_short(element)}.p0"
        return self._masked(name, kind, "ptr", address, SIZES[element], lanes, mask, after=kind)

    def masked_store(self, kind: str, value: str, address: str, mask: str) -> None:
        """Store the lanes inside the mask."""
        lanes, element = split_type(kind)
        name = f"llvm.masked.store.v{lanes}{_short(element)}.p0"
        self._masked(name, "void", "ptr", address, SIZES[element], lanes, mask, before=f"{kind} {value}")

    @property
    def is_new(self) -> bool:
        """Whether LLVM writes the alignment of masked accesses on the pointer (since version 22)."""
        return _llvm_version() >= 22

    def gather(self, kind: str, address: str, step: int, mask: str | None = None) -> str:
        """A vector of elements that lie `step` bytes apart; lanes outside the mask are 0 and not read."""
        lanes, element = split_type(kind)
        name = f"llvm.masked.gather.v{lanes}{_short(element)}.v{lanes}p0"
        where, mask = self._spread(lanes, address, step), mask or self.mask(lanes, lanes)
        return self._masked(name, kind, f"<{lanes} x ptr>", where, SIZES[element], lanes, mask, after=kind)

    def scatter(self, kind: str, value: str, address: str, step: int, mask: str | None = None) -> None:
        """Store the lanes of a vector `step` bytes apart."""
        lanes, element = split_type(kind)
        name = f"llvm.masked.scatter.v{lanes}{_short(element)}.v{lanes}p0"
        where, mask = self._spread(lanes, address, step), mask or self.mask(lanes, lanes)
        self._masked(name, "void", f"<{lanes} x ptr>", where, SIZES[element], lanes, mask, before=f"{kind} {value}")

    def _spread(self, lanes: int, address: str, step: int) -> str:
        """Addresses that lie `step` bytes apart."""
        offsets = "<" + ", ".join(f"i64 {i * step}" for i in range(lanes)) + ">"
        return self.op(f"getelementptr i8, ptr {address}, <{lanes} x i64> {offsets}")

    def _masked(
        self, name: str, returns: str, pointer: str, address: str, align: int, lanes: int, mask: str, *,
        before: str = "", after: str = "",
    ) -> str:  # fmt: skip
        """Call an intrinsic with a mask; since LLVM 22 the alignment stands on the pointer."""
        args, types = ([before], [before[: before.index(">") + 1]]) if before else ([], [])
        if self.is_new:
            args.append(f"{pointer} align {align} {address}")
            types.append(pointer)
        else:
            args += [f"{pointer} {address}", f"i32 {align}"]
            types += [pointer, "i32"]
        args.append(f"<{lanes} x i1> {mask}")
        types.append(f"<{lanes} x i1>")
        if after:
            args.append(f"{after} zeroinitializer")
            types.append(after)
        return self.call(name, returns, *args, types=", ".join(types))

    def part(self, kind: str, value: str, start: int, lanes: int) -> str:
        """Some lanes of a vector, as a vector or, if it is one, a scalar."""
        if lanes == 1:
            return self.op(f"extractelement {kind} {value}, i64 {start}")
        picked = "<" + ", ".join(f"i32 {i}" for i in range(start, start + lanes)) + ">"
        return self.op(f"shufflevector {kind} {value}, {kind} poison, <{lanes} x i32> {picked}")

    # arithmetic -----------------------------------------------------------------------------------------------------
    def binary(self, name: str, kind: str, a: str, b: str) -> str:
        return self.op(f"{name} {kind} {a}, {b}")

    def fadd(self, kind: str, a: str, b: str) -> str:
        return self.op(f"fadd {kind} {a}, {b}")

    def fsub(self, kind: str, a: str, b: str) -> str:
        return self.op(f"fsub {kind} {a}, {b}")

    def fmul(self, kind: str, a: str, b: str) -> str:
        return self.op(f"fmul {kind} {a}, {b}")

    def fdiv(self, kind: str, a: str, b: str) -> str:
        return self.op(f"fdiv {kind} {a}, {b}")

    def fneg(self, kind: str, a: str) -> str:
        return self.op(f"fneg {kind} {a}")

    def fma(self, kind: str, a: str, b: str, c: str) -> str:
        """a * b + c, rounded once."""
        return self.intrinsic("fma", kind, a, b, c)

    def sqrt(self, kind: str, a: str) -> str:
        return self.intrinsic("sqrt", kind, a)

    def compare(self, how: str, kind: str, a: str, b: str) -> str:
        """fcmp; the result has one i1 per lane."""
        return self.op(f"fcmp {how} {kind} {a}, {b}")

    def select(self, kind: str, condition: str, a: str, b: str) -> str:
        """a in the lanes where the condition holds, b elsewhere."""
        truth = with_lanes(split_type(kind)[0], "i1")
        return self.op(f"select {truth} {condition}, {kind} {a}, {kind} {b}")

    def splat(self, kind: str, value: Any) -> str:
        """A scalar in every lane."""
        lanes, element = split_type(kind)
        if lanes == 1:
            return str(value)
        first = self.op(f"insertelement {kind} poison, {element} {value}, i32 0")
        return self.op(f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def convert(self, value: str, old: str, new: str) -> str:
        """The same numbers in another type of as many lanes; i1 is a truth, i8 a truth in memory."""
        if old == new:
            return value
        a, b = split_type(old)[1], split_type(new)[1]
        floats = ("float", "double")
        if b == "i1":
            if a in floats:
                return self.op(f"fcmp une {old} {value}, zeroinitializer") if "<" in old else self.op(
                    f"fcmp une {old} {value}, 0.0"
                )
            return self.op(f"icmp ne {old} {value}, {'zeroinitializer' if '<' in old else 0}")
        if b == "i8" and a != "i1":
            truth = with_lanes(split_type(old)[0], "i1")
            return self.convert(self.convert(value, old, truth), truth, new)
        if a in floats and b in floats:
            return self.op(f"{'fpext' if a == 'float' else 'fptrunc'} {old} {value} to {new}")
        if b in floats:
            return self.op(f"{'uitofp' if a in ('i1', 'i8') else 'sitofp'} {old} {value} to {new}")
        if a in floats:
            return self.op(f"fptosi {old} {value} to {new}")
        how = "zext" if a in ("i1", "i8") else "sext" if SIZES[a] < SIZES[b] else "trunc"
        return self.op(f"{how} {old} {value} to {new}")

    def intrinsic(self, name: str, kind: str, *args: str) -> str:
        """An LLVM intrinsic whose operands and result have one type."""
        lanes, element = split_type(kind)
        full = f"llvm.{name}.{'' if lanes == 1 else f'v{lanes}'}{_short(element)}"
        return self.call(full, kind, *[f"{kind} {x}" for x in args], types=", ".join([kind] * len(args)))

    def call(self, name: str, returns: str, *args: str, types: str) -> str:
        """Call a function that is declared elsewhere; args with their types."""
        self.declared[name] = f"declare {returns} @{name}({types})"
        text = f"call {returns} @{name}({', '.join(args)})"
        if returns == "void":
            self.do(text)
            return ""
        return self.op(text)

    def total(self, kind: str, value: str) -> str:
        """Sum of all lanes."""
        lanes, element = split_type(kind)
        if lanes == 1:
            return value
        name = f"llvm.vector.reduce.fadd.v{lanes}{_short(element)}"
        self.declared[name] = f"declare {element} @{name}({element}, {kind})"
        return self.op(f"call reassoc {element} @{name}({element} -0.0, {kind} {value})")

    def lane(self, kind: str, value: str, i: Number) -> str:
        """One element of a vector."""
        return value if split_type(kind)[0] == 1 else self.op(f"extractelement {kind} {value}, i64 {i}")

    # variables ------------------------------------------------------------------------------------------------------
    def var(self, kind: str, value: str | None = None) -> str:
        """A variable; `value` is put into it here."""
        name = "%" + self.name_of("v")
        self._head.append(f"  {name} = alloca {kind}, align 64")
        if value is not None:
            self.put(kind, name, value)
        return name

    def get(self, kind: str, variable: str) -> str:
        return self.op(f"load {kind}, ptr {variable}, align 64")

    def put(self, kind: str, variable: str, value: str) -> None:
        self.do(f"store {kind} {value}, ptr {variable}, align 64")

    # control --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def loop(self, start: Number, stop: Number, step: int = 1, *, is_certain: bool = True) -> Iterator[Any]:
        """i = start, start + step, ... below stop; at least once unless it `is_certain` is False.

        A loop of one turn, known as such, is no loop: its index is a number.
        """
        if isinstance(start, int) and isinstance(stop, int) and start + step >= stop:
            if start < stop:
                yield start
            else:  # never: the body is written where nothing leads
                dead, after = self.name_of("N"), self.name_of("X")
                self.do(f"br label %{after}")
                self.label(dead)
                yield start
                self.do(f"br label %{after}")
                self.label(after)
            return
        head, turn, after = self.name_of("H"), self.name_of("B"), self.name_of("X")
        index, following, before = "%" + self.name_of("i"), "%" + self.name_of("n"), self._block
        if not is_certain and not (isinstance(start, int) and isinstance(stop, int)):
            self.do(f"br i1 {self.less(start, stop)}, label %{head}, label %{after}")
        else:
            self.do(f"br label %{head}")
        self.label(head)
        slot = len(self._lines)
        self._lines.append("")
        yield index
        self.do(f"br label %{turn}")
        self.label(turn)
        self._lines[slot] = f"  {index} = phi i64 [ {start}, %{before} ], [ {following}, %{turn} ]"
        self.do(f"{following} = add nsw i64 {index}, {step}")
        self.do(f"br i1 {self.less(following, stop)}, label %{head}, label %{after}")
        self.label(after)

    @contextlib.contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """The body runs only if the condition (an i1) holds."""
        then, after = self.name_of("T"), self.name_of("X")
        self.do(f"br i1 {condition}, label %{then}, label %{after}")
        self.label(then)
        yield
        self.do(f"br label %{after}")
        self.label(after)

    @contextlib.contextmanager
    def choice(self, condition: str) -> Iterator[Any]:
        """`with f.choice(c) as otherwise: ...; otherwise(); ...`: one of two bodies."""
        then, other, after = self.name_of("T"), self.name_of("E"), self.name_of("X")
        self.do(f"br i1 {condition}, label %{then}, label %{other}")
        self.label(then)

        def otherwise() -> None:
            self.do(f"br label %{after}")
            self.label(other)

        yield otherwise
        self.do(f"br label %{after}")
        self.label(after)

    def constant(self, kind: str, number: float) -> str:
        """A constant of a scalar or vector type, the same in every lane."""
        return literal(kind, number)


def _short(element: str) -> str:
    return {"float": "f32", "double": "f64"}.get(element, element)


def _llvm_version() -> int:
    import llvmlite.binding as llvm

    return int(llvm.llvm_version_info[0])


class Module:
    """Functions that are compiled together."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.functions: list[Function] = []
        self.texts: list[str] = []  # definitions written by hand

    def function(self, name: str, params: Sequence[str], *, returns: str = "void") -> Function:
        """A new function of this module."""
        f = Function(name, params, self.target, returns=returns)
        self.functions.append(f)
        return f

    def text(self) -> str:
        """The whole module."""
        made = {f.name for f in self.functions} | {x for text in self.texts for x in _DEFINED.findall(text)}
        declared = {name: line for f in self.functions for name, line in f.declared.items() if name not in made}
        width = self.target.vector_bytes * 8
        flags = f'attributes #0 = {{ nounwind "prefer-vector-width"="{width}" "no-trapping-math"="true" }}\n'
        body = [f.finished() for f in self.functions] + self.texts
        return "\n".join([*declared.values(), *body, flags])
