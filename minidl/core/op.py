"""Op: one named operation, declared once. The registry `OPS` is the vocabulary of the whole house."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from minidl.backends.loop import Loop
from minidl.core import custom
from minidl.core.apply import apply
from minidl.core.errors import DTypeError, MinidlError, OptionError, PropertyError, choice, nearest
from minidl.core.loop import loop_of_body
from minidl.core.options import options, unknown_option
from minidl.core.spec import DOUBLE, LOGICAL, SINGLE, Spec
from minidl.core.vocabulary import OPS as OPS
from minidl.core.vocabulary import named as named

Rule = Callable[..., Any]
Case = tuple[tuple[Any, ...], dict[str, Any]]


class Kind(enum.Enum):
    """What a pass may know of an op: MAP, REDUCE, VIEW or KERNEL. See `op`, which takes MAP and KERNEL from users.

    >>> from minidl import KERNEL, MAP
    >>> MAP.value, KERNEL.value
    ('map', 'kernel')
    """

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
    neutral per operand of a MAP op, the literal that makes the result the other operand (the one as far from the other
            end), or a rule that says whether a literal does
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
    sums    rule: (y, *inputs, **params) -> for each result what adding it up over all dimensions but the last gives
            (a number for each position along that), or None where nobody knows better than by adding; y: the results
    domain  interval from which tests draw the inputs of a MAP op
    samples rule: random generator -> list of `case(...)`, for tests
    """

    def __init__(
        self, name: str, kind: Kind, body: Rule | None, *, doc: str, text: str | None = None, types: str = "f->f",
        domain: tuple[float, float] = (-2.0, 2.0), samples: Callable[[Any], list[Case]] | None = None,
        is_constant: bool = False, identity: float = 0.0, neutral: tuple[float | Rule | None, ...] = (),
        arity: int | None = None, takes_no_params: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.body, self.text, self.__doc__ = name, kind, body, text, doc
        self.__name__ = name
        self.input_types, self.output_types = types.split("->")
        self.domain, self.samples, self.arity = domain, samples, arity
        self.takes_no_params = takes_no_params
        self.is_map, self.kind_name = kind is MAP, kind.value
        self.is_float = set(self.input_types) == {"f"}
        self.identity, self.neutral = identity, neutral
        self.is_constant = is_constant  # piecewise constant: the derivative is zero everywhere it exists
        self.infer_rule: Rule | None = None
        self.vjp_rule: Rule | None = None
        self.vjp_rules: tuple[Rule | None, ...] | None = None
        self.is_singular: bool | Rule = kind is MAP  # whether a rule can give NaN where the result's gradient is 0
        self.contraction_rule: Rule | None = None
        self.assembly_rule: Rule | None = None
        self.sums_rule: Rule | None = None
        self.told: dict[str, Rule] = {}  # functions of the result, from the inputs
        self.passes_on: bool | Rule = kind is VIEW  # whether f(result) is the op of f(inputs), for any function f
        self.keeps_origin = kind is VIEW
        self.is_choice = False  # two ways to one result: see `core.origin`
        self.is_linked = False  # results may depend on one another, as the body says: that of a replay
        self.why_not_linked = ""  # why the body does not say it, though they may
        self.kernels: dict[str, Rule] = {}  # a user's kernel for a device
        self.is_users = False  # declared outside of minidl
        self.home = ""  # module and name of the function that declared it
        self._is_made = True  # from here on there are no other attributes

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.__dict__ and self.__dict__.get("_is_made"):
            if hasattr(Op, name):
                raise PropertyError(f"{self.name}: its {name} is given by a call or a decorator, @{self.name}.{name}.")
            meant = nearest(name, {*self.__dict__, "vjp", "vjps", "infer", "kernel"})
            hint = f" Did you mean {meant}?" if meant else ""
            raise PropertyError(f"{self.name}: an op has no attribute {name!r}.{hint}")
        object.__setattr__(self, name, value)

    def __call__(self, *inputs: Any, **params: Any) -> Any:
        if len(inputs) != self.arity is not None:
            count = f"{self.arity} array{'s' * (self.arity != 1)}"
            raise OptionError(f"{self.name}: it takes {count}; got {len(inputs)}. Give as many.")
        if params and self.takes_no_params and not self.is_users:
            raise unknown_option(self.name, next(iter(params)), [])
        return apply(self, inputs, params)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return named, (self.name,)

    def infer(self, rule: Rule) -> Rule:
        """Decorate rule(*inputs, **params): Specs (and numbers) in, the result's Spec out, or a tuple of them.

        Complaints about sizes are raised here. Without it the results are like the first input.
        """
        self.infer_rule = rule
        return rule

    def vjp(self, rule: Rule) -> Rule:
        """Decorate rule(g, y, *inputs, **params): the gradient of each input, None for zero.

        g is the gradient of the result y. With several results both are tuples, and g has None where a result is not
        used. Said in dlarrays, so that it can be differentiated again. Of a MAP op with one result it may be singular:
        where g is 0 and the rule gives NaN (0 times infinity), the gradient is 0.
        """
        self.vjp_rule = rule
        return rule

    def vjps(self, *rules: Rule | None, is_singular: bool | Rule = True) -> None:
        """Give one such rule for each input, each for one gradient: only those that are wanted are computed.

        is_singular : of a MAP op, False if no rule gives NaN for a g of 0, or a rule of the inputs that says whether
                      one can.
        """
        self.vjp_rules = rules
        self.is_singular = self.is_map and is_singular

    def kernel(self, device: str) -> Callable[[Rule], Rule]:
        """Decorate a function that computes the op on a device, "cpu" or "gpu", in the place of its body.

            kernel(*outputs, *inputs, **params)

        It fills the outputs, which have the sizes and types that `infer` says, and returns nothing. Arrays are dense,
        last dimension fastest: NumPy's on the CPU, CuPy's on the GPU, where it launches on CuPy's current stream and
        does not wait. Numbers among the inputs stay numbers. Inputs must not be written to. Where all outputs are empty
        it is not called. An op without a kernel for a device is computed there by its body.
        Raises OptionError for another device, MinidlError for an op that is no KERNEL op.

        >>> from minidl import KERNEL, dlarray, op
        >>> @op(KERNEL)
        ... def twice(x):
        ...     "Two times x."
        ...     return x + x
        >>> @twice.kernel("cpu")
        ... def _(y, x):
        ...     y[...] = 2 * x
        >>> twice(dlarray([1.0, 2.0])).tolist()
        [2.0, 4.0]
        """
        device = choice(f"{self.name}.kernel", "the device", device, ["cpu", "gpu"])
        if self.kind is not KERNEL:
            raise MinidlError(
                f"{self.name}.kernel: a {self.kind_name.upper()} op is fused with its neighbours and has no kernel of "
                "its own. Declare it with @op(KERNEL)."
            )

        def put(kernel: Rule) -> Rule:
            if not callable(kernel):
                raise DTypeError(f"{self.name}.kernel: a function is wanted; got {type(kernel).__name__}.")
            self.kernels[device] = custom.Kernel(self, device, kernel)
            return kernel

        return put

    def contraction(self, rule: Rule) -> Rule:
        """Declare that the op sums products: rule(*specs, **params) gives its Contractions, each a part of y."""
        self.contraction_rule = rule
        return rule

    def assembly(self, rule: Rule) -> Rule:
        """Declare that the result is its operands put in place: rule(*specs, **params) gives, for each, slices."""
        self.assembly_rule = rule
        return rule

    def sums(self, rule: Rule) -> Rule:
        """Declare what sums of results are: rule(y, *inputs, **params) gives one for each result, None if unknown."""
        self.sums_rule = rule
        return rule

    def tells(self, *, passes_on: bool | Rule = False, **rules: Rule) -> None:
        """Say what functions of the result are, from the inputs, where the result is too coarse for them.

        rules     : rule(*inputs, **params) gives log(y) ("log"), log(1 - y) ("rest") or y^2 ("square") of the result y,
                    or None where it is not known. See `core.origin`.
        passes_on : whether the op only moves elements, so that f(y) is the op of f(inputs) for any function f; or a
                    rule of the inputs that says whether the op can ask these.
        """
        self.told, self.passes_on, self.keeps_origin = rules, passes_on, True

    def input_type(self, i: int) -> str:
        return self.input_types[min(i, len(self.input_types) - 1)]

    def loop(self, dtypes: tuple[Any, ...], moves: tuple[bool, ...], params: dict[str, Any]) -> Loop:
        """The body of a MAP op as one loop (see `backends.loop`), for backends."""
        return loop_of_body(self, dtypes, moves, params)

    def output_specs(self, specs: Sequence[Any], params: dict[str, Any]) -> tuple[Spec, ...]:
        """Specs of the outputs for these inputs (literals stand for themselves)."""
        if self.is_users:
            custom.check_params(self, params)
        if self.infer_rule is not None:
            found = self.infer_rule(*specs, **params)
            if self.is_users:
                return custom.placed(self, found, specs)
            return (found,) if isinstance(found, Spec) else tuple(found)
        if self.is_map and self.is_float:
            first = next(s for s in specs if type(s) is Spec)
            return tuple([first if letter == "f" else Spec(first.shape, LOGICAL, first.device)
                          for letter in self.output_types])  # fmt: skip
        known = [s for s in specs if isinstance(s, Spec)]
        if not known:
            raise DTypeError(f"{self.name}: an array is wanted; got numbers alone. Wrap one of them: dlarray(x).")
        floats = [s.dtype for s in known if s.dtype in (SINGLE, DOUBLE)]
        dtype = {"f": floats[0] if floats else DOUBLE, "b": LOGICAL}
        return tuple(Spec(known[0].shape, dtype[letter], known[0].device) for letter in self.output_types)


def _empty() -> None:
    """Nothing but a docstring: what the function of a primitive op looks like."""


@options
def op(
    kind: Kind, *, text: str | None = None, types: str = "f->f", domain: tuple[float, float] = (-2.0, 2.0),
    samples: Callable[[Any], list[Case]] | None = None, is_constant: bool = False, identity: float = 0.0,
    neutral: tuple[float | Rule | None, ...] = (),
) -> Callable[[Rule], Op]:  # fmt: skip
    """Declare an operation: the decorated function's name is its name, its docstring its meaning, its code its body.

    kind  : MAP: one number at a time; operands expand by label. Said by `text`, or by a body of other MAP ops.
            KERNEL: anything else, by a body in other operations, by kernels of your own (`Op.kernel`), or both.
    text  : of a MAP op without a body: the number for the operands {0}, {1} ..., such as "exp(-{0} * {0})". It may use
            + - * /, comparisons, where(a, b, c), pow(a, b) and the usual functions.
    types : a letter per input: f real, b logical, a any; the last one repeats. Behind "->" one per result.
    is_constant : the derivative is zero wherever there is one.
    domain, samples, identity, neutral : for minidl's own ops and their tests.
    Inputs are arrays, by position; everything else is given by keyword and is a number, text or tuple. A body, `infer`
    and `vjp` see arrays without labels, and may depend on nothing but their arguments. A MAP op's result has labels; a
    KERNEL op's has none: put them back with dlarray(Y, dims(X)). A body without `vjp` is differentiated itself.
    Returns an Op: call it like a function; `.vjp`, `.vjps`, `.infer` and `.kernel` give it its rules.
    Raises MinidlError for a name that is taken or a missing docstring, OptionError for a text that cannot be read.

    >>> from minidl import MAP, dlarray, dlfeval, dlgradient
    >>> @op(MAP, text="({0} * {0} * {0})")
    ... def cubed(x):
    ...     "x * x * x."
    >>> @cubed.vjp
    ... def _(g, y, x):
    ...     return (g * 3 * x * x,)
    >>> dlfeval(lambda x: dlgradient(cubed(x), x), dlarray(2.0)).item()
    12.0
    """
    if not isinstance(kind, Kind):
        raise OptionError("op: the first argument is the kind. Write @op(MAP, text=...) or @op(KERNEL).")

    def declare(function: Rule) -> Op:
        code = function.__code__
        name = function.__name__.rstrip("_")
        is_users = not str(function.__module__).startswith("minidl.")
        home = f"{function.__module__}.{function.__qualname__}"
        if name in OPS and not (is_users and OPS[name].home == home):  # a cell of a notebook may be run again
            raise MinidlError(f"op: {name} is declared twice. Give the second one another name.")
        if not function.__doc__:
            raise MinidlError(f"op: {name} has no docstring. Say in one sentence what it computes.")
        body = None if code.co_code == _empty.__code__.co_code else function
        variadic = bool(code.co_flags & 0x04)
        new = Op(
            name, kind, body, doc=function.__doc__, text=text, types=types, domain=domain, samples=samples,
            is_constant=is_constant, identity=identity, neutral=neutral, arity=None if variadic else code.co_argcount,
            takes_no_params=not code.co_kwonlyargcount and not code.co_flags & 0x08,
        )  # fmt: skip
        new.is_users, new.home = is_users, home
        if is_users:
            custom.check_declared(new)
        OPS[name] = new
        return new

    return declare


def case(*inputs: Any, **params: Any) -> Case:
    """One sample call of an op, for `samples`."""
    return inputs, params
