"""Op: one named operation, declared once. The registry `OPS` is the vocabulary of the whole house."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from minidl.core.apply import apply
from minidl.core.errors import MinidlError
from minidl.core.loop import Loop, loop_of_body
from minidl.core.spec import DOUBLE, LOGICAL, SINGLE, Spec
from minidl.core.vocabulary import OPS as OPS
from minidl.core.vocabulary import named as named

Rule = Callable[..., Any]
Case = tuple[tuple[Any, ...], dict[str, Any]]


class Kind(enum.Enum):
    """What a pass may know of an op."""

    MAP = "map"  # one scalar text per element; all arrays have one shape
    REDUCE = "reduce"  # combines elements along `axes`; reduced dimensions stay with size 1
    VIEW = "view"  # other subscripts, same memory (a copy only where strides cannot say it)
    KERNEL = "kernel"  # anything else


MAP, REDUCE, VIEW, KERNEL = Kind

class Op:
    """A named operation: kind, rules and, where other ops can say it, its body.

    text    scalar text of a MAP op over {0}, {1}, ...: valid in Python and, once printed, in CUDA C;
            of a REDUCE op, how two elements are combined
    identity the number that combining leaves alone (REDUCE)
    neutral per operand of a two-operand MAP op, the literal that makes the result the other operand
    body    the mathematics in other ops (None for a primitive)
    infer   rule: Specs (and literals) in, Spec or Specs out; every complaint about shapes is raised here
    vjp     rule: (g, y, *inputs, **params) -> a gradient per input (None for zero), when one computation gives all;
    vjps    or one such rule per input, each giving one gradient, so that only the wanted ones are computed;
            g and y are tuples when the op has several outputs, and g of an unused output is None
    types   a letter per input: f (float, brought to the common type), b (logical), a (any, left alone);
            the last one repeats; '->' and the outputs' letters (f: the common type)
    contraction rule: (*inputs, **params) -> the op as sums of products of its two inputs (see `core.contraction`)
    assembly rule: (*inputs, **params) -> for each input the slices (start, count, step) of the result where it stands;
            slices do not overlap, and the rest is 0
    domain  interval from which tests draw the inputs of a MAP op
    samples rule: random generator -> list of `case(...)`, for tests
    """

    def __init__(
        self, name: str, kind: Kind, body: Rule | None, *, doc: str, text: str | None = None, types: str = "f->f",
        domain: tuple[float, float] = (-2.0, 2.0), samples: Callable[[Any], list[Case]] | None = None,
        is_constant: bool = False, identity: float = 0.0, neutral: tuple[float | None, ...] = (),
        arity: int | None = None,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.body, self.text, self.__doc__ = name, kind, body, text, doc
        self.__name__ = name
        self.input_types, self.output_types = types.split("->")
        self.domain, self.samples, self.arity = domain, samples, arity
        self.is_map, self.kind_name = kind is MAP, kind.value
        self.is_float = set(self.input_types) == {"f"}
        self.identity, self.neutral = identity, neutral
        self.is_constant = is_constant  # piecewise constant: the derivative is zero everywhere it exists
        self.infer_rule: Rule | None = None
        self.vjp_rule: Rule | None = None
        self.vjp_rules: tuple[Rule | None, ...] | None = None
        self.contraction_rule: Rule | None = None
        self.assembly_rule: Rule | None = None

    def __call__(self, *inputs: Any, **params: Any) -> Any:
        return apply(self, inputs, params)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return named, (self.name,)

    def infer(self, rule: Rule) -> Rule:
        self.infer_rule = rule
        return rule

    def vjp(self, rule: Rule) -> Rule:
        self.vjp_rule = rule
        return rule

    def vjps(self, *rules: Rule | None) -> None:
        self.vjp_rules = rules

    def contraction(self, rule: Rule) -> Rule:
        """Declare that the op sums products: rule(*specs, **params) gives its Contractions, each a part of y."""
        self.contraction_rule = rule
        return rule

    def assembly(self, rule: Rule) -> Rule:
        """Declare that the result is its operands put in place: rule(*specs, **params) gives, for each, slices."""
        self.assembly_rule = rule
        return rule

    def input_type(self, i: int) -> str:
        return self.input_types[min(i, len(self.input_types) - 1)]

    def loop(self, dtypes: tuple[Any, ...], moves: tuple[bool, ...], params: dict[str, Any]) -> Loop:
        """The body of a MAP op as one loop (see `core.loop`), for backends."""
        return loop_of_body(self, dtypes, moves, params)

    def output_specs(self, specs: Sequence[Any], params: dict[str, Any]) -> tuple[Spec, ...]:
        """Specs of the outputs for these inputs (literals stand for themselves)."""
        if self.infer_rule is not None:
            found = self.infer_rule(*specs, **params)
            return (found,) if isinstance(found, Spec) else tuple(found)
        if self.is_map and self.is_float:
            first = next(s for s in specs if type(s) is Spec)
            return tuple([first if letter == "f" else Spec(first.shape, LOGICAL, first.device)
                          for letter in self.output_types])  # fmt: skip
        known = [s for s in specs if isinstance(s, Spec)]
        floats = [s.dtype for s in known if s.dtype in (SINGLE, DOUBLE)]
        dtype = {"f": floats[0] if floats else DOUBLE, "b": LOGICAL}
        return tuple(Spec(known[0].shape, dtype[letter], known[0].device) for letter in self.output_types)


def _empty() -> None:
    """Nothing but a docstring: what the function of a primitive op looks like."""


def op(kind: Kind, **facts: Any) -> Callable[[Rule], Op]:
    """Declare an op: the decorated function's name is its name, its docstring its meaning, its code its body."""

    def declare(function: Rule) -> Op:
        code = function.__code__
        name = function.__name__.rstrip("_")
        if name in OPS:
            raise MinidlError(f"op: {name} is declared twice. Give the second one another name.")
        if not function.__doc__:
            raise MinidlError(f"op: {name} has no docstring. Say in one sentence what it computes.")
        body = None if code.co_code == _empty.__code__.co_code else function
        variadic = bool(code.co_flags & 0x04)
        new = Op(name, kind, body, doc=function.__doc__, arity=None if variadic else code.co_argcount, **facts)
        OPS[name] = new
        return new

    return declare


def case(*inputs: Any, **params: Any) -> Case:
    """One sample call of an op, for `samples`."""
    return inputs, params
