"""Element by element: arithmetic, comparisons, logic, the functions of a pocket calculator.

Each is a MAP op: labelled operands expand by label, unlabelled ones by NumPy's rule. The names are MATLAB's; `and_`,
`or_` and `not_` end in an underscore because Python keeps the bare words for itself. Arithmetic takes logical arrays
as double (as single beside a single). What other ops can say is a plain function, not an op.
"""

# mypy: disable-error-code="has-type"

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from minidl.core.dlarray import DLArray, Operand, dlarray, public
from minidl.core.errors import DTypeError, choice
from minidl.core.op import KERNEL, MAP, VIEW, case, named, op
from minidl.core.options import options
from minidl.core.origin import asked
from minidl.core.spec import DOUBLE


def is_number(x: object) -> bool:
    """Whether an operand is a plain number."""
    return isinstance(x, (int, float))


# arithmetic -----------------------------------------------------------------------------------------------------


@public
@op(MAP, text="({0} + {1})")
def plus(a, b):
    """Sum of two arrays."""


plus.vjps(lambda g, y, a, b: g, lambda g, y, a, b: g, is_singular=False)


@public
@op(MAP, text="({0} - {1})", neutral=(None, 0.0))
def minus(a, b):
    """Difference of two arrays."""


minus.vjps(lambda g, y, a, b: g, lambda g, y, a, b: -g, is_singular=False)
minus.tells(
    log=lambda a, b: asked(b, "rest"), rest=lambda a, b: asked(b, "log"), passes_on=lambda a, b: is_number(a) and a == 1
)  # fmt: skip


@op(MAP, text="({0} * {1})", neutral=(1.0, 1.0))
def times_(a, b):
    """Product, element by element."""


times_.vjps(
    lambda g, y, a, b: g * b, lambda g, y, a, b: g * a,
    is_singular=lambda a, b: not (is_number(a) and math.isfinite(a) or is_number(b) and math.isfinite(b)),
)  # fmt: skip


@public
def times(a: Operand, b: Operand) -> DLArray:
    """Product, element by element. A root or a norm times itself is computed as its `square`.

    >>> times(dlarray([1.0, 2.0]), dlarray([3.0, 4.0])).tolist()
    [3.0, 8.0]
    """
    if a is b:
        known = _known(a, "square", square_of)
        if known is not None:
            return known
    return times_(a, b)


@public
@op(MAP, text="({0} / {1})", neutral=(None, 1.0), domain=(0.5, 2.0))
def rdivide(a, b):
    """Quotient a ./ b, element by element."""


rdivide.vjps(
    lambda g, y, a, b: g / b, lambda g, y, a, b: -(g * y) / b, is_singular=lambda a, b: not (is_number(b) and b)
)


@public
def ldivide(a: Operand, b: Operand) -> DLArray:
    r"""Quotient b ./ a, element by element: MATLAB's a .\ b.

    >>> ldivide(dlarray(4.0), dlarray(2.0)).item()
    0.5
    """
    return rdivide(b, a)


@public
@op(MAP, text="(-{0})")
def uminus(x):
    """The negative."""


uminus.vjps(lambda g, y, x: -g, is_singular=False)


@public
def uplus(x: Operand) -> DLArray:
    """The array itself.

    >>> uplus(dlarray(4.0)).item()
    4.0
    """
    return dlarray(x)  # a handle of its own: assigning to it leaves x alone


@op(MAP, text="({0} * {0})")
def square_(x):
    """The square."""


square_.vjps(lambda g, y, x: g * x * 2)


@public
def square(x: Operand) -> DLArray:
    """The square. That of a root or a norm is computed from what is under the root, and so is its derivative.

    >>> square(dlarray([1.0, -3.0])).tolist()
    [1.0, 9.0]
    """
    if type(x) is not DLArray or x._value.origin is None:
        return square_(x)
    known = _known(x, "square", square_of)
    return square_(x) if known is None else known


@op(MAP, text="pow({0}, {1})", domain=(0.5, 2.0))
def pow(a, b):
    """a to the power of b; NaN for a negative a with a fractional b (MATLAB would turn complex)."""


def _pow_base_grad(g, y, a, b):
    if isinstance(b, (int, float)):
        return g * power(a, b - 1) * b if b else None
    # d/da a^0 is 0 at a = 0 too, where 0 * 0^-1 would be NaN
    return g * b * pow(a, where(and_(eq(a, 0), eq(b, 0)), 1, b - 1))


def _pow_exponent_grad(g, y, a, b):
    if isinstance(a, (int, float)):
        return g * y * (math.log(a) if a > 0 else 0.0 if a == 0 else math.nan)
    return g * y * log(where(eq(a, 0), 1, a))  # 0^b does not change with b, and 0 * log(0) would be NaN


pow.vjps(_pow_base_grad, _pow_exponent_grad)


@public
def power(a: Operand, b: Operand) -> DLArray:
    """a to the power of b, element by element.

        y = a^b;  dy/da = b a^(b-1);  dy/db = y log(a), 0 at a = 0

    A number for b that multiplication, division or a root can say (2, 1, 0, 0.5, -1) is computed that way.
    A negative a with a fractional b gives NaN (MATLAB would turn complex).

    >>> power(dlarray([1.0, 2.0, 3.0]), 2).tolist()
    [1.0, 4.0, 9.0]
    """
    if isinstance(b, (int, float)) and isinstance(a, DLArray):
        if b == 2:
            return square(a)
        if b == 1:
            return uplus(a) if a.dtype.kind == "f" else a + 0
        if b == 0.5:
            return sqrt(a)
        if b == -1:
            return rdivide(1, a)
    return pow(a, b)


@public
def realpow(a: Operand, b: Operand) -> DLArray:
    """a to the power of b. Arrays are real here, so this is `power`; NaN where MATLAB would raise an error.

    >>> realpow(dlarray(2.0), 3).item()
    8.0
    """
    return power(a, b)


@public
@op(MAP, text="fabs({0})", samples=lambda r: [case(r.normal(size=(2, 3)))])
def abs(x):
    """Absolute value; its derivative at 0 is 0."""


abs.vjps(lambda g, y, x: g * sign(x))


@public
@op(MAP, text="sign({0})", domain=(0.1, 2.0), is_constant=True)
def sign(x):
    """-1, 0 or 1; NaN stays NaN."""


@public
@op(MAP, domain=(0.5, 2.0))
def hypot(a, b):
    """sqrt(a^2 + b^2) without overflow in between; Inf beside NaN is Inf. Its gradient at (0, 0) is 0."""
    a, b = builtins.abs(a), builtins.abs(b)  # one of them may be a plain number
    most, least = maximum(a, b), minimum(a, b)
    ratio = least / where(eq(most, 0), 1, most)
    return where(isinf(larger(a, b)), math.inf, most * sqrt(square(ratio) + 1))


hypot.vjps(
    lambda g, y, a, b: g * (a / where(eq(y, 0), 1, y)),
    lambda g, y, a, b: g * (b / where(eq(y, 0), 1, y)),
)


# exponentials ---------------------------------------------------------------------------------------------------


@public
@op(MAP, text="exp({0})")
def exp(x):
    """Exponential e^x."""


exp.vjps(lambda g, y, x: g * y)


@public
@op(MAP, text="expm1({0})")
def expm1(x):
    """e^x - 1, exact near 0."""


expm1.vjps(lambda g, y, x: g * exp(x))


@op(MAP, text="log({0})", domain=(0.1, 3.0))
def log_(x):
    """Natural logarithm; -Inf at 0, NaN below."""


log_.vjps(lambda g, y, x: g / x)


@public
def log(x: Operand) -> DLArray:
    """Natural logarithm; -Inf at 0, NaN below.

    That of what `softmax` or `sigmoid` made, or of 1 minus that, is computed from their argument, so that it is right
    where the probability rounds to 0; the derivative is, too.

    >>> log(dlarray(1.0)).item(), log(sigmoid(dlarray(-800.0))).item()
    (0.0, -800.0)
    """
    if type(x) is not DLArray or x._value.origin is None:
        return log_(x)
    known = log_known(x)
    return log_(x) if known is None else known


def log_known(x: Operand, *, least: float = 0.0) -> DLArray | None:
    """log(x) from what x was made of, if that is known. The derivative by x itself is 1/x, x not below `least`."""
    return _known(x, "log", log_of, least=least)


def log_rest_known(x: Operand, *, least: float = 0.0) -> DLArray | None:
    """log(1 - x) likewise."""
    return _known(x, "rest", log_rest_of, least=least)


def _known(x: Any, what: str, choice_of: Any, **params: float) -> DLArray | None:
    if type(x) is not DLArray or x._value.origin is None:
        return None
    found = asked(x, what)
    return None if found is None else DLArray(choice_of(found, DLArray(x._value), **params)._value, x._labels)


@public
@op(MAP, text="log1p({0})", domain=(-0.5, 2.0))
def log1p(x):
    """log(1 + x), exact near 0."""


log1p.vjps(lambda g, y, x: g / (x + 1))


@op(MAP, text="log2({0})", domain=(0.1, 3.0))
def log2_(x):
    """Logarithm to base 2."""


log2_.vjps(lambda g, y, x: g / (x * math.log(2)))


@public
def log2(x: Operand) -> DLArray:
    """Logarithm to base 2. See `log` for probabilities.

    >>> log2(dlarray(2.0)).item()
    1.0
    """
    known = log_known(x)
    return log2_(x) if known is None else known * (1 / math.log(2))


@op(MAP, text="log10({0})", domain=(0.1, 3.0))
def log10_(x):
    """Logarithm to base 10."""


log10_.vjps(lambda g, y, x: g / (x * math.log(10)))


@public
def log10(x: Operand) -> DLArray:
    """Logarithm to base 10. See `log` for probabilities.

    >>> log10(dlarray(10.0)).item()
    1.0
    """
    known = log_known(x)
    return log10_(x) if known is None else known * (1 / math.log(10))


@public
@op(MAP, text="sqrt({0})", domain=(0.1, 3.0))
def sqrt(x):
    """Square root; NaN below 0 (MATLAB would turn complex)."""


sqrt.vjps(lambda g, y, x: g * 0.5 / y)
sqrt.tells(square=lambda x: where(lt(x, 0), math.nan, x))


@public
@op(MAP, text="erf({0})")
def erf(x):
    """Error function 2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""


erf.vjps(lambda g, y, x: g * exp(-square(x)) * (2 / math.sqrt(math.pi)))


@op(MAP, text="erfc({0})")
def erfc(x):
    """1 - erf(x), with all its digits where that is near 0."""


erfc.vjps(lambda g, y, x: g * exp(-square(x)) * (-2 / math.sqrt(math.pi)))


# trigonometry, in radians ---------------------------------------------------------------------------------------


@public
@op(MAP, text="sin({0})")
def sin(x):
    """Sine."""


sin.vjps(lambda g, y, x: g * cos(x))


@public
@op(MAP, text="cos({0})")
def cos(x):
    """Cosine."""


cos.vjps(lambda g, y, x: -(g * sin(x)))


@public
@op(MAP, text="tan({0})", domain=(-1.2, 1.2))
def tan(x):
    """Tangent."""


tan.vjps(lambda g, y, x: g * (square(y) + 1))


@public
def sec(x: Operand) -> DLArray:
    """Secant, 1 / cos(x).

    >>> sec(dlarray(0.0)).item()
    1.0
    """
    return rdivide(1, cos(x))


@public
def csc(x: Operand) -> DLArray:
    """Cosecant, 1 / sin(x).

    >>> csc(dlarray(0.0)).item()
    inf
    """
    return rdivide(1, sin(x))


@public
def cot(x: Operand) -> DLArray:
    """Cotangent, 1 / tan(x).

    >>> cot(dlarray(0.0)).item()
    inf
    """
    return rdivide(1, tan(x))


@public
@op(MAP, text="asin({0})", domain=(-0.9, 0.9))
def asin(x):
    """Inverse sine; NaN outside of [-1, 1] (MATLAB would turn complex)."""


asin.vjps(lambda g, y, x: g / sqrt((1 - x) * (x + 1)))


@public
@op(MAP, text="acos({0})", domain=(-0.9, 0.9))
def acos(x):
    """Inverse cosine; NaN outside of [-1, 1] (MATLAB would turn complex)."""


acos.vjps(lambda g, y, x: -g / sqrt((1 - x) * (x + 1)))


@public
@op(MAP, text="atan({0})")
def atan(x):
    """Inverse tangent."""


atan.vjps(lambda g, y, x: g / (square(x) + 1))


@public
@op(MAP, text="atan2({0}, {1})", domain=(0.5, 2.0))
def atan2(a, b):
    """Angle of the point (b, a) in (-pi, pi]."""


atan2.vjps(
    lambda g, y, a, b: g * (b / hypot(a, b)) / hypot(a, b),
    lambda g, y, a, b: -(g * (a / hypot(a, b)) / hypot(a, b)),
)


@public
@op(MAP, text="sinh({0})")
def sinh(x):
    """Hyperbolic sine."""


sinh.vjps(lambda g, y, x: g * cosh(x))


@public
@op(MAP, text="cosh({0})")
def cosh(x):
    """Hyperbolic cosine."""


cosh.vjps(lambda g, y, x: g * sinh(x))


@public
@op(MAP, text="tanh({0})")
def tanh(x):
    """Hyperbolic tangent."""


tanh.vjps(lambda g, y, x: g * tanh_slope(x))


@op(MAP)
def tanh_slope(x):
    """The derivative of tanh, 1 / cosh(x)^2, with all its digits where tanh rounds to 1 or -1."""
    e = exp(-abs(x))
    return square(2 * e / (square(e) + 1))


tanh_slope.vjps(lambda h, d, x: h * d * tanh(x) * -2)


@public
@op(MAP, text="asinh({0})")
def asinh(x):
    """Inverse hyperbolic sine."""


asinh.vjps(lambda g, y, x: g / hypot(x, 1))


@public
@op(MAP, text="acosh({0})", domain=(1.1, 3.0))
def acosh(x):
    """Inverse hyperbolic cosine; NaN below 1 (MATLAB would turn complex)."""


acosh.vjps(lambda g, y, x: g / (sqrt(x - 1) * sqrt(x + 1)))


@public
@op(MAP, text="atanh({0})", domain=(-0.9, 0.9))
def atanh(x):
    """Inverse hyperbolic tangent; NaN outside of [-1, 1] (MATLAB would turn complex)."""


atanh.vjps(lambda g, y, x: g / ((1 - x) * (x + 1)))


# whole numbers --------------------------------------------------------------------------------------------------


@public
@op(MAP, text="floor({0})", domain=(0.1, 0.9), is_constant=True)
def floor(x):
    """The next whole number towards -Inf."""


@public
@op(MAP, text="ceil({0})", domain=(0.1, 0.9), is_constant=True)
def ceil(x):
    """The next whole number towards +Inf."""


@public
@op(MAP, text="trunc({0})", domain=(0.1, 0.9), is_constant=True)
def fix(x):
    """The next whole number towards 0."""


@public
@op(MAP, text="round_half_away({0})", domain=(0.6, 1.4), is_constant=True)
def round(x):
    """The nearest whole number; halves go away from 0, as in MATLAB (NumPy's go to the even neighbour)."""


@public
@op(MAP, text="fmod({0}, {1})", samples=lambda r: [case(r.uniform(2.1, 2.9, (2, 3)), r.uniform(0.95, 1.05, (2, 3)))])
def rem(x, y):
    """Remainder x - fix(x ./ y) .* y, exact; it has the sign of x. rem(x, 0) is NaN."""


rem.vjps(lambda g, r, x, y: g, lambda g, r, x, y: -(g * fix(x / y)))


def _shifted_pair(r):
    return [case(r.uniform(-2.9, -2.1, (2, 3)), r.uniform(0.95, 1.05, (2, 3)))]


def _along_divisor(r, y):
    """A remainder with the sign of x as the one with the sign of y, 0 too."""
    r = where(and_(ne(r, 0), xor(lt(r, 0), y < 0)), r + y, r)
    zero = rdivide(0, y) if isinstance(y, DLArray) else math.copysign(0.0, y)
    return where(eq(r, 0), zero, r)


@public
@op(MAP, samples=_shifted_pair)
def mod(x, y):
    """Remainder x - floor(x ./ y) .* y, exact; it has the sign of y. mod(x, 0) is x."""
    return where(y == 0, x, _along_divisor(rem(x, y), y))


mod.vjps(lambda g, r, x, y: g, lambda g, r, x, y: -(g * where(eq(y, 0), 0, floor_divide(x, y))))


@public
@op(MAP, samples=_shifted_pair)
def remainder(x, y):
    """Remainder of floor division, as Python's and NumPy's % has it: `mod`, but NaN where y is 0."""
    return where(y == 0, math.nan, _along_divisor(rem(x, y), y))


remainder.vjps(lambda g, r, x, y: g, lambda g, r, x, y: -(g * floor_divide(x, y)))


@public
@op(MAP, samples=_shifted_pair, is_constant=True)
def floor_divide(x, y):
    """The whole number q with x = q y + remainder(x, y), as Python's and NumPy's // has it; x / y where y is 0.

    Not floor(x / y): 1 / 0.1 rounds up to 10, but 1 // 0.1 is 9.
    """
    r = rem(x, y)
    q = (x - r) / y if isinstance(y, DLArray) or y != 0 else r
    q = where(and_(ne(r, 0), xor(lt(r, 0), y < 0)), q - 1, q)
    whole = floor(q)
    whole = where(gt(q - whole, 0.5), whole + 1, whole)  # q is whole but for rounding
    quotient = rdivide(x, y)
    return where(y == 0, quotient, where(eq(q, 0), fix(quotient), whole))  # of a 0 the quotient knows the sign


# comparisons and logic: no derivatives --------------------------------------------------------------------------


@public
@op(MAP, text="({0} == {1})", types="f->b", is_constant=True)
def eq(a, b):
    """Whether a and b are equal."""


@public
@op(MAP, text="({0} != {1})", types="f->b", is_constant=True)
def ne(a, b):
    """Whether a and b differ."""


@public
@op(MAP, text="({0} < {1})", types="f->b", is_constant=True)
def lt(a, b):
    """Whether a is less than b."""


@public
@op(MAP, text="({0} <= {1})", types="f->b", is_constant=True)
def le(a, b):
    """Whether a is less than b or equal to it."""


@public
@op(MAP, text="({0} > {1})", types="f->b", is_constant=True)
def gt(a, b):
    """Whether a is greater than b."""


@public
@op(MAP, text="({0} >= {1})", types="f->b", is_constant=True)
def ge(a, b):
    """Whether a is greater than b or equal to it."""


@public
@op(MAP, text="logical_and({0}, {1})", types="b->b", is_constant=True)
def and_(a, b):
    """Whether both are true (not 0)."""


@public
@op(MAP, text="logical_or({0}, {1})", types="b->b", is_constant=True)
def or_(a, b):
    """Whether at least one is true (not 0)."""


@public
@op(MAP, text="logical_xor({0}, {1})", types="b->b", is_constant=True)
def xor(a, b):
    """Whether exactly one is true (not 0)."""


@public
@op(MAP, text="logical_not({0})", types="b->b", is_constant=True)
def not_(x):
    """Whether x is false (0)."""


@public
@op(MAP, text="isnan({0})", types="f->b", is_constant=True)
def isnan(x):
    """Whether x is not a number."""


@public
@op(MAP, text="isinf({0})", types="f->b", is_constant=True)
def isinf(x):
    """Whether x is Inf or -Inf."""


@public
@op(MAP, text="isfinite({0})", types="f->b", is_constant=True)
def isfinite(x):
    """Whether x is neither infinite nor NaN."""


# two ways to one result -----------------------------------------------------------------------------------------
# The first operand is the result, computed from what the second was made of; derivatives go by one of the two
# (`core.origin`). They are views: a result costs nothing.


def _two_ways(r):
    x = r.uniform(0.1, 0.9, size=(2, 3))
    return [case(x, x, least=0.0)]


@op(VIEW, types="f->f", samples=_two_ways)
def log_of(log_y, y, *, least):
    """log(y), which is known."""
    return log_y


@op(VIEW, types="f->f", samples=_two_ways)
def log_rest_of(log_rest, y, *, least):
    """log(1 - y), which is known."""
    return log_rest


@op(VIEW, types="f->f", samples=lambda r: [case(*r.normal(size=(2, 2, 3)))])
def square_of(squared, y):
    """y * y, which is known."""
    return squared


def _at_least(y, least):
    return where(lt(y, least), least, y) if least else y


log_of.vjps(lambda g, c, log_y, y, least: g, lambda g, c, log_y, y, least: g / _at_least(y, least))
log_rest_of.vjps(lambda g, c, log_rest, y, least: g, lambda g, c, log_rest, y, least: -g / _at_least(1 - y, least))
square_of.vjps(lambda g, c, squared, y: g, lambda g, c, squared, y: g * y * 2)
for _way in (log_of, log_rest_of, square_of):
    _way.is_choice = True
    _way.keeps_origin = False

# choice ---------------------------------------------------------------------------------------------------------


@public
@op(MAP, text="where({0}, {1}, {2})", types="bf->f")
def where(condition, a, b):
    """a where the condition holds, b elsewhere."""


where.vjps(None, lambda g, y, c, a, b: where(c, g, 0), lambda g, y, c, a, b: where(c, 0, g), is_singular=False)


@op(MAP, text="where(logical_and({2} == 0, isnan({1})), 0, {0})", neutral=(None, None, lambda g: g != 0))
def settle(h, part, g):
    """h, but 0 where g is 0 and `part` is NaN: what 0 times infinity is for a gradient `part` made from g.

    A branch that was not taken has g = 0, and no share in the gradient, however steep it is. Where `part` is a number
    nothing is altered, nor are derivatives: g may be 0 at a minimum, where the second derivative counts.
    """


settle.vjps(lambda k, y, h, part, g: settle(k, part, g), None, None, is_singular=False)


def settled(part, g):
    """A gradient made from g, 0 where g is 0 and it is NaN."""
    return settle(part, part, g)


def _normal_pair(r):
    return [case(r.normal(size=(2, 3)), r.normal(size=(2, 3)))]


@op(MAP, text="fmax({0}, {1})", samples=_normal_pair)
def larger(a, b):
    """The larger of two; of a NaN and a number the number, as MATLAB's max. Equal ones: the gradient goes to a."""


def _is_first_larger(a, b):
    return or_(ge(a, b), isnan(b) if isinstance(b, DLArray) else math.isnan(b))


larger.vjps(
    lambda g, y, a, b: where(_is_first_larger(a, b), g, 0),
    lambda g, y, a, b: where(_is_first_larger(a, b), 0, g),
    is_singular=False,
)


@op(MAP, text="fmin({0}, {1})", samples=_normal_pair)
def smaller(a, b):
    """The smaller of two; of a NaN and a number the number, as MATLAB's min. Equal ones: the gradient goes to a."""


def _is_first_smaller(a, b):
    return or_(le(a, b), isnan(b) if isinstance(b, DLArray) else math.isnan(b))


smaller.vjps(
    lambda g, y, a, b: where(_is_first_smaller(a, b), g, 0),
    lambda g, y, a, b: where(_is_first_smaller(a, b), 0, g),
    is_singular=False,
)


@op(MAP, text="maximum({0}, {1})", samples=_normal_pair)
def maximum(a, b):
    """The larger of two; NaN if one is NaN, as NumPy has it. Equal ones: the gradient goes to a."""


maximum.vjps(
    lambda g, y, a, b: where(_is_first_larger(a, b), g, 0),
    lambda g, y, a, b: where(_is_first_larger(a, b), 0, g),
    is_singular=False,
)


@op(MAP, text="minimum({0}, {1})", samples=_normal_pair)
def minimum(a, b):
    """The smaller of two; NaN if one is NaN, as NumPy has it. Equal ones: the gradient goes to a."""


minimum.vjps(
    lambda g, y, a, b: where(_is_first_smaller(a, b), g, 0),
    lambda g, y, a, b: where(_is_first_smaller(a, b), 0, g),
    is_singular=False,
)


# complex numbers: dlarrays are real -----------------------------------------------------------------------------


@public
def real(x: Operand) -> DLArray:
    """The real part, which is x itself.

    >>> real(dlarray(2.0)).item()
    2.0
    """
    return uplus(x)


@public
def imag(x: Operand) -> DLArray:
    """The imaginary part, which is 0 everywhere.

    >>> imag(dlarray([1.0, 2.0])).tolist()
    [0.0, 0.0]
    """
    x = uplus(x)
    dtype = x.dtype if x.dtype.kind == "f" else DOUBLE
    return DLArray(named("full")(shape=x.shape, value=0.0, dtype=dtype.name, device=x.device)._value, x._labels)


@public
def conj(x: Operand) -> DLArray:
    """The complex conjugate, which is x itself.

    >>> conj(dlarray(2.0)).item()
    2.0
    """
    return uplus(x)


# precision ------------------------------------------------------------------------------------------------------


@op(KERNEL, samples=lambda r: [case(r.normal(size=(2, 3)))], is_constant=True)
def spacing(x):
    """Distance from |x| to the next larger number of the same type."""


@public
@options
def eps(x: Operand | str = "double") -> DLArray | float:
    """Floating-point spacing: of the type "single" or "double" at 1, or of an array, element by element.

    x : "single", "double", or an array. NaN where x is infinite or NaN.
    Returns a number for a type, a dlarray with the labels of x for an array. It has no derivative.
    Source: MathWorks, reference page "eps".

    >>> eps() == 2.0**-52, eps("single") == 2.0**-23, eps(dlarray(4.0)).item() == 2.0**-50
    (True, True, True)
    """
    if isinstance(x, str):
        kind = choice("eps", "the type", x, ["single", "double"])
        return float(np.finfo(np.float32 if kind == "single" else np.float64).eps)
    x = uplus(x)
    if x.dtype.kind != "f":
        raise DTypeError("eps: a single or double array is wanted, got a logical one. Convert it first: single(x).")
    return DLArray(spacing(x)._value, x._labels)
