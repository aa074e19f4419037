"""Scalar texts as vector instructions: "exp({0})", "({0} + {1})", "where({1} > 0, {0}, 0)".

The words and their meaning are those of kernels.cpu.scalars. Each sum and each product is rounded by itself, so that
a * b - c * d is 0 where it has to be; multiply-adds that round once are for contractions and polynomials. NaN passes
through; of 0 and -0 `maximum`, `minimum`, `fmax` and `fmin` give the second.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from .mathematics import FUNCTIONS, Vector, copysign, fabs, trunc, where

_PLACE = re.compile(r"\{(\d+)\}")
_NAMES = {"inf": math.inf, "nan": math.nan, "True": True, "False": False}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "pow"}
_COMPARED = {ast.Lt: "olt", ast.LtE: "ole", ast.Gt: "ogt", ast.GtE: "oge", ast.Eq: "oeq", ast.NotEq: "une"}
_SIGNED = {"olt": "slt", "ole": "sle", "ogt": "sgt", "oge": "sge", "oeq": "eq", "une": "ne"}

Scalar = Any  # a Vector, or a Python number: a literal, which has no dtype yet


def evaluate(f: Any, text: str, args: Sequence[Any], lanes: int, dtype: str, literal_dtype: str) -> str:
    """The value of a scalar text, in `lanes` lanes of `dtype` (a bool is an i1).

    args: for each place of the text a pair (value, dtype), or a number.
    literal_dtype: the dtype of numbers, those among args and those in the text.
    """
    values = [Vector(f, lanes, x[1], x[0]) if isinstance(x, tuple) else x for x in args]
    writer = _Writer(f, values, lanes, dtype, literal_dtype)
    return writer.converted(writer.value(_parsed(text)), dtype).name


@functools.cache
def is_supported(text: str) -> bool:
    """Whether every word of the text is known."""
    try:
        return _is_known(_parsed(text))
    except SyntaxError:
        return False


@functools.cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(_PLACE.sub(r"x\1", text), mode="eval").body


def _is_known(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float))
    if isinstance(node, ast.Name):
        return node.id in _NAMES or bool(re.fullmatch(r"x\d+", node.id))
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return len(node.args) == ARITY.get(name) and not node.keywords and all(map(_is_known, node.args))
    if isinstance(node, ast.BinOp):
        return type(node.op) in _BINARY and _is_known(node.left) and _is_known(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)) and _is_known(node.operand)
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in _COMPARED and all(map(_is_known, _sides(node)))
    return False


def _sides(node: ast.Compare) -> list[ast.expr]:
    return [node.left, *node.comparators]


class _Writer:
    """Writes one text."""

    def __init__(self, f: Any, values: list[Scalar], lanes: int, dtype: str, literal_dtype: str) -> None:
        self.f, self.values, self.lanes, self.dtype, self.literal_dtype = f, values, lanes, dtype, literal_dtype

    def value(self, node: ast.AST) -> Scalar:
        """What an expression stands for."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return _NAMES[node.id] if node.id in _NAMES else self.values[int(node.id[1:])]
        if isinstance(node, ast.UnaryOp):
            x = self.value(node.operand)
            if isinstance(node.op, ast.USub):
                return -self.numbers(x)[0] if isinstance(x, Vector) else -x
            return x if isinstance(node.op, ast.UAdd) else ~self.truth(x)
        if isinstance(node, ast.BinOp):
            a, b = self.value(node.left), self.value(node.right)
            sign = _BINARY[type(node.op)]
            return self._word("pow", [a, b]) if sign == "pow" else self._arithmetic(sign, a, b)
        if isinstance(node, ast.Compare):
            a, b = self.numbers(*map(self.value, _sides(node)))
            return _compared(_COMPARED[type(node.ops[0])], a, b)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
        return self._word(node.func.id, [self.value(x) for x in node.args])

    # types --------------------------------------------------------------------------------------------------------
    def vector(self, x: Scalar) -> Vector:
        """x as a vector; a number in the dtype of literals."""
        if isinstance(x, Vector):
            return x
        kind = Vector(self.f, self.lanes, self.literal_dtype, "").kind
        return Vector(self.f, self.lanes, self.literal_dtype, self.f.constant(kind, x))

    def converted(self, x: Scalar, dtype: str) -> Vector:
        """The same numbers in another dtype."""
        if isinstance(x, Vector):
            return x.converted(dtype)
        kind = Vector(self.f, self.lanes, dtype, "").kind
        return Vector(self.f, self.lanes, dtype, self.f.constant(kind, bool(x) if dtype == "bool" else x))

    def numbers(self, *xs: Scalar) -> list[Vector]:
        """All in one dtype in which they can be computed with; truths count as literals."""
        vectors = [self.vector(x) for x in xs]
        kinds = {self.literal_dtype if v.dtype == "bool" else v.dtype for v in vectors}
        if kinds == {"bool"}:  # truths alone, and no literal to tell of a dtype
            kinds = {self.dtype if self.dtype != "bool" else "float32"}
        dtype = kinds.pop() if len(kinds) == 1 else "float64"
        return [v.converted(dtype) for v in vectors]

    def truth(self, x: Scalar) -> Vector:
        return self.converted(x, "bool")

    def floats(self, *xs: Scalar) -> list[Vector]:
        """As `numbers`, whole numbers as float64."""
        vectors = self.numbers(*xs)
        return vectors if vectors[0].is_float else [v.converted("float64") for v in vectors]

    # words --------------------------------------------------------------------------------------------------------
    def _arithmetic(self, sign: str, a: Scalar, b: Scalar) -> Vector:
        if sign == "/":
            divisor = b
            a, b = self.floats(a, b)
            if not isinstance(divisor, Vector) and _has_exact_inverse(divisor):
                return a * (1 / divisor)
            return a / b
        a, b = self.numbers(a, b)
        return a + b if sign == "+" else a - b if sign == "-" else a * b

    def _word(self, name: str, args: list[Scalar]) -> Scalar:
        if name == "cast":
            return self.converted(args[0], self.dtype)
        if name == "where":
            condition = self.truth(args[0])
            if self.dtype == "bool":
                return where(condition, self.truth(args[1]), self.truth(args[2]))
            return where(condition, *self.numbers(*args[1:]))
        if name in _LOGICAL:
            return _LOGICAL[name](*map(self.truth, args))
        if name in _CHOICES:
            return self._larger_or_smaller(name, *args)
        if name == "pow" and not isinstance(args[1], Vector):
            found = _whole_power(self.floats(args[0])[0], float(args[1]))
            if found is not None:
                return found
        return (_ROUNDED.get(name) or FUNCTIONS[name])(*self.floats(*args))

    def _larger_or_smaller(self, name: str, a: Scalar, b: Scalar) -> Vector:
        how, is_passing = _CHOICES[name]
        is_number = [not isinstance(x, Vector) and x == x for x in (a, b)]
        a, b = self.numbers(a, b)
        if not a.is_float:
            return where(_compared(how, a, b), a, b)
        or_nan = "u" + how[1:]  # holds where one is NaN, too
        if is_passing:  # NaN comes out
            return where(_compared(how if is_number[0] else or_nan, a, b), a, b) if any(is_number) else where(
                a.is_nan(), a, where(_compared(how, a, b), a, b)
            )  # fmt: skip
        if any(is_number):  # NaN loses
            return where(_compared(or_nan if is_number[0] else how, a, b), a, b)
        return where(b.is_nan(), a, where(_compared(how, a, b), a, b))


def _has_exact_inverse(x: float) -> bool:
    """Whether multiplying by 1 / x is dividing by x: for powers of 2 whose inverses are normal numbers."""
    return abs(math.frexp(x)[0]) == 0.5 and 2.0**-120 <= abs(x) <= 2.0**120


def _compared(how: str, a: Vector, b: Vector) -> Vector:
    if not a.is_float:
        how = _SIGNED[how]
        how = "u" + how[1:] if a.dtype == "uint64" and how[0] == "s" else how
    return a.compared(how, b)


def _whole_power(x: Vector, power: float) -> Vector | None:
    """Powers that a few instructions give; None for others."""
    if power == 0.0:
        return x.like(1.0)
    if power == 1.0:
        return x
    if power == 2.0:
        return x * x
    if power == 3.0:
        return x * x * x
    return 1.0 / x if power == -1.0 else None


def _sign(x: Vector) -> Vector:
    return where(x > 0.0, x.like(1.0), where(x < 0.0, x.like(-1.0), x + 0.0))  # 0 for -0, NaN for NaN


def _round_half_away(x: Vector) -> Vector:
    whole = trunc(x)  # |x| + 0.5 would round just below 0.5, and beyond 2^52
    return where(fabs(x - whole) >= 0.5, whole + copysign(x.like(1.0), x), whole)


_LOGICAL: dict[str, Callable[..., Vector]] = {
    "logical_and": lambda a, b: a & b,
    "logical_or": lambda a, b: a | b,
    "logical_xor": lambda a, b: a ^ b,
    "logical_not": lambda a: ~a,
}
_CHOICES = {"maximum": ("ogt", True), "minimum": ("olt", True), "fmax": ("ogt", False), "fmin": ("olt", False)}
_ROUNDED: dict[str, Callable[..., Vector]] = {
    "sign": _sign,
    "round_half_away": _round_half_away,
    "isnan": lambda x: x.is_nan(),
    "isinf": lambda x: fabs(x).compared("oeq", math.inf),
    "isfinite": lambda x: fabs(x) < math.inf,
}
_TWO = {"atan2", "pow", "fmod", "logical_and", "logical_or", "logical_xor", *_CHOICES}
ARITY = {name: 2 if name in _TWO else 1 for name in [*FUNCTIONS, *_ROUNDED, *_LOGICAL, *_CHOICES, "cast"]}
ARITY["where"] = 3
