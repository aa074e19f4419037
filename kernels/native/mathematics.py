"""Elementary functions of vectors, written as LLVM instructions for any number of lanes.

Each is a range reduction by fused multiply-adds, a polynomial, and a reconstruction by shifts of exponents; the
polynomials have the least largest relative error on their interval, their coefficients rounded one by one (Remez
algorithm, in 160 bits). Single precision is computed in single precision; only pow needs double on the way. ULPS states
the accuracy. What comes of 0, -0, infinity, NaN and subnormal numbers is as in C's library, which is called for fmod
and for sines, cosines and tangents of huge arguments.

Sources: Cody and Waite, Software Manual for the Elementary Functions (1980); Muller, Elementary Functions (2016);
Dekker, A Floating-Point Technique for Extending the Available Precision (1971), for pow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

_ELEMENTS = {
    "float32": "float", "float64": "double", "bool": "i1", "int32": "i32", "int64": "i64", "uint64": "i64",
}  # fmt: skip
_WHOLE = {"float32": "int32", "float64": "int64"}  # whole numbers with as many bits


class _Format(NamedTuple):
    """How a dtype lays out its bits."""

    fraction: int  # bits
    bias: int  # exponent of 1.0
    smallest: float  # normal number
    near: float  # sines are reduced here up to so large an argument

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.fraction

    @property
    def shifter(self) -> float:
        """Plus a number of modest size: the last bits are the whole number nearest to it."""
        return 1.5 * 2.0**self.fraction


_FORMATS = {
    "float32": _Format(23, 127, 2.0**-126, 2.0**16),
    "float64": _Format(52, 1023, 2.0**-1022, 2.0**27),
}

# Largest errors measured, in units in the last place and rounded up: float32 over every 11th bit pattern, float64 over
# 10^7 random arguments (erf: 2 10^5). Where the argument of a sine is huge, it is the error of C's library.
ULPS = {
    "exp": (1.1, 1.1), "expm1": (1.6, 1.9), "log": (1.0, 1.0), "log2": (1.2, 1.2), "log10": (1.1, 1.2),
    "log1p": (1.6, 1.6), "tanh": (1.4, 1.4), "sinh": (1.7, 1.7), "cosh": (1.5, 1.5), "asinh": (1.9, 2.0),
    "acosh": (2.0, 2.2), "atanh": (2.1, 2.2), "sin": (1.6, 1.6), "cos": (1.6, 1.6), "tan": (1.5, 1.4),
    "asin": (1.2, 1.3), "acos": (1.2, 1.2), "atan": (1.9, 1.9), "atan2": (2.0, 2.0), "erf": (1.8, 1.7),
    "erfc": (4.5, 5.2), "pow": (0.6, 1.3), "sqrt": (0.5, 0.5), "fmod": (0.0, 0.0),
}  # fmt: skip


class Vector:
    """A value in flight, with Python's operators: each rounds by itself; a number beside it stands in every lane."""

    __slots__ = ("f", "lanes", "dtype", "name", "kind")

    def __init__(self, f: Any, lanes: int, dtype: str, name: str) -> None:
        self.f, self.lanes, self.dtype, self.name = f, lanes, dtype, name
        self.kind = self._kind(dtype)

    def _kind(self, dtype: str) -> str:
        element = _ELEMENTS[dtype]
        return element if self.lanes == 1 else f"<{self.lanes} x {element}>"

    @property
    def is_float(self) -> bool:
        return self.dtype in _WHOLE

    def made(self, text: str, dtype: str | None = None) -> Vector:
        """The result of an instruction."""
        return Vector(self.f, self.lanes, dtype or self.dtype, self.f.op(text))

    def like(self, x: Any) -> Vector:
        """x, if a number in every lane, in this dtype."""
        return x if isinstance(x, Vector) else Vector(self.f, self.lanes, self.dtype, self.f.constant(self.kind, x))

    def _binary(self, name: str, a: Any, b: Any) -> Vector:
        return self.made(f"{name} {self.kind} {self.like(a).name}, {self.like(b).name}")

    def __add__(self, x: Any) -> Vector:
        return self._binary("fadd" if self.is_float else "add", self, x)

    def __radd__(self, x: Any) -> Vector:
        return self._binary("fadd" if self.is_float else "add", x, self)

    def __sub__(self, x: Any) -> Vector:
        return self._binary("fsub" if self.is_float else "sub", self, x)

    def __rsub__(self, x: Any) -> Vector:
        return self._binary("fsub" if self.is_float else "sub", x, self)

    def __mul__(self, x: Any) -> Vector:
        return self._binary("fmul" if self.is_float else "mul", self, x)

    def __rmul__(self, x: Any) -> Vector:
        return self._binary("fmul" if self.is_float else "mul", x, self)

    def __truediv__(self, x: Any) -> Vector:
        return self._binary("fdiv", self, x)

    def __rtruediv__(self, x: Any) -> Vector:
        return self._binary("fdiv", x, self)

    def __mod__(self, x: Any) -> Vector:
        return self._binary("frem", self, x)

    def __neg__(self) -> Vector:
        return self.made(f"fneg {self.kind} {self.name}") if self.is_float else self._binary("sub", 0, self)

    def __and__(self, x: Any) -> Vector:
        return self._binary("and", self, x)

    def __or__(self, x: Any) -> Vector:
        return self._binary("or", self, x)

    def __xor__(self, x: Any) -> Vector:
        return self._binary("xor", self, x)

    def __invert__(self) -> Vector:
        return self ^ (1 if self.dtype == "bool" else -1)

    def __lshift__(self, count: int) -> Vector:
        return self._binary("shl", self, count)

    def __rshift__(self, count: int) -> Vector:
        """Zeros come in from the left."""
        return self._binary("lshr", self, count)

    def compared(self, how: str, x: Any) -> Vector:
        """Whether a comparison of LLVM holds (olt: ordered and less; une: unordered or unequal)."""
        word = "fcmp" if self.is_float else "icmp"
        return self.made(f"{word} {how} {self.kind} {self.name}, {self.like(x).name}", "bool")

    def __lt__(self, x: Any) -> Vector:
        return self.compared("olt" if self.is_float else "slt", x)

    def __le__(self, x: Any) -> Vector:
        return self.compared("ole" if self.is_float else "sle", x)

    def __gt__(self, x: Any) -> Vector:
        return self.compared("ogt" if self.is_float else "sgt", x)

    def __ge__(self, x: Any) -> Vector:
        return self.compared("oge" if self.is_float else "sge", x)

    def is_nan(self) -> Vector:
        return self.compared("uno", self)

    def bits(self) -> Vector:
        """The bits of a float as a whole number."""
        whole = _WHOLE[self.dtype]
        return self.made(f"bitcast {self.kind} {self.name} to {self._kind(whole)}", whole)

    def number(self) -> Vector:
        """The float that has these bits."""
        dtype = "float32" if self.dtype == "int32" else "float64"
        return self.made(f"bitcast {self.kind} {self.name} to {self._kind(dtype)}", dtype)

    def converted(self, dtype: str) -> Vector:
        """The same number in another dtype; any number but 0 is true."""
        old, new = self.dtype, dtype
        if old == new:
            return self
        if new == "bool":
            return self.compared("une" if self.is_float else "ne", 0)
        if _ELEMENTS[old] == _ELEMENTS[new]:
            return Vector(self.f, self.lanes, new, self.name)
        target = Vector(self.f, self.lanes, new, "")
        if old == "bool":
            return where(self, target.like(1), target.like(0))
        if self.is_float:
            names = {"float32": "fptrunc", "float64": "fpext", "uint64": "fptoui"}
            name = names.get(new, "fptosi")
        elif target.is_float:
            name = "uitofp" if old == "uint64" else "sitofp"
        else:
            name = "sext" if old == "int32" else "trunc"
        return self.made(f"{name} {self.kind} {self.name} to {target.kind}", new)


def _intrinsic(name: str, *args: Vector) -> Vector:
    x = args[0]
    return Vector(x.f, x.lanes, x.dtype, x.f.intrinsic(name, x.kind, *[a.name for a in args]))


def where(condition: Vector, a: Vector, b: Any) -> Vector:
    """a in the lanes where the condition holds, b elsewhere."""
    b = a.like(b)
    return a.made(f"select {condition.kind} {condition.name}, {a.kind} {a.name}, {b.kind} {b.name}")


def fma(a: Vector, b: Any, c: Any) -> Vector:
    """a * b + c, rounded once."""
    return _intrinsic("fma", a, a.like(b), a.like(c))


def fabs(x: Vector) -> Vector:
    """|x|."""
    return _intrinsic("fabs", x)


def copysign(x: Vector, sign: Vector) -> Vector:
    """|x| with the sign of another number."""
    return _intrinsic("copysign", x, sign)


def trunc(x: Vector) -> Vector:
    """The whole number next to x towards 0."""
    return _intrinsic("trunc", x)


def floor(x: Vector) -> Vector:
    """The largest whole number up to x."""
    return _intrinsic("floor", x)


def ceil(x: Vector) -> Vector:
    """The smallest whole number from x."""
    return _intrinsic("ceil", x)


def sqrt(x: Vector) -> Vector:
    """The square root; NaN for x < 0."""
    return _intrinsic("sqrt", x)


# Coefficients, lowest power first -------------------------------------------------------------------------------
_EXP = {
    "float32": (4.9999997e-01, 1.6666539e-01, 4.1667745e-02, 8.367057e-03, 1.3839409e-03),
    "float64": (
        0.5, 0.16666666666666677, 0.041666666666666685, 0.00833333333332183, 0.0013888888888895883,
        0.00019841269885184165, 2.4801587268829963e-05, 2.755724541412583e-06, 2.75573353806304e-07,
        2.5108549582419942e-08, 2.08947130744176e-09,
    ),
}  # fmt: skip
_LOG = {
    "float32": (
        3.333333e-01, -2.5000823e-01, 2.0001261e-01, -1.662333e-01, 1.4201511e-01, -1.3164261e-01, 1.2754397e-01,
        -7.589228e-02,
    ),
}  # fmt: skip
_ATANH = {
    "float64": (
        0.6666666666666734, 0.39999999999416924, 0.28571428741936783, 0.22222198615786584, 0.1818356226490889,
        0.15314099974269976, 0.14795484247619836,
    ),
}  # fmt: skip
_SIN = {
    "float32": (-1.6666655e-01, 8.332188e-03, -1.9518095e-04),
    "float64": (
        -0.1666666666666663, 0.00833333333332184, -0.00019841269829358544, 2.755731353852453e-06,
        -2.505073439140989e-08, 1.5895433436707237e-10,
    ),
}  # fmt: skip
_COS = {
    "float32": (4.1666646e-02, -1.388731e-03, 2.4432327e-05),
    "float64": (
        0.041666666666666595, -0.0013888888888873325, 2.480158728898368e-05, -2.7557314210074794e-07,
        2.0875704271060666e-09, -1.1358683341793088e-11,
    ),
}  # fmt: skip
_TAN = {
    "float32": (3.333335e-01, 1.3332674e-01, 5.4059178e-02, 2.1284508e-02, 1.0832507e-02, 9.11544e-05, 4.3764766e-03),
    "float64": (
        0.3333333333333338, 0.13333333333325342, 0.05396825397290315, 0.021869488399321065, 0.008863237922194818,
        0.0035921008845766103, 0.0014560455160530846, 0.0005888647071040767, 0.00024375104409370216,
        8.355755459421681e-05, 6.722726393008433e-05, -2.5644294013199173e-05, 4.864784206047695e-05,
        -2.4281384235698875e-05, 9.801049964517776e-06,
    ),
}  # fmt: skip
_ATAN = {
    "float32": (-3.3333316e-01, 1.9998528e-01, -1.4244391e-01, 1.05991684e-01, -6.0900524e-02),
    "float64": (
        -0.333333333333332, 0.19999999999953666, -0.14285714280198616, 0.11111110783439514, -0.09090897755855203,
        0.07692060178677078, -0.06663103716972432, 0.05847887868298728, -0.0503930357456917, 0.0380646803498395,
        -0.017907509285527246,
    ),
}  # fmt: skip
_ASIN = {
    "float32": (1.6666752e-01, 7.4953064e-02, 4.5469776e-02, 2.418073e-02, 4.2166527e-02),
    "float64": (
        0.16666666666665403, 0.07500000000338608, 0.044642856826920777, 0.030381959198047526, 0.022371756524239172,
        0.01735972858987795, 0.013884992974880524, 0.012170846398848323, 0.006520735088916082, 0.019548513487707017,
        -0.01625666888195587, 0.03193490721696253,
    ),
}  # fmt: skip
_SINH = {
    "float32": (1.6666667e-01, 8.3333105e-03, 1.9842896e-04, 2.7822132e-06),
    "float64": (
        0.16666666666666669, 0.008333333333332912, 0.0001984126984159341, 2.7557319106756473e-06,
        2.5052130998773718e-08, 1.6056659164477053e-10, 7.776600141067518e-13,
    ),
}  # fmt: skip
_TANH = {
    "float32": (-3.3333316e-01, 1.3332544e-01, -5.3847548e-02, 2.1050714e-02, -6.2428494e-03),
    "float64": (
        -0.3333333333333231, 0.1333333333316824, -0.0539682538758509, 0.02186948596934974, -0.00886319443059352,
        0.003591719100670091, -0.0014532137791960732, 0.000579128089881317, -0.00021028765391839692,
        5.1011165569413685e-05,
    ),
}  # fmt: skip
_ERF = {
    "float32": (
        1.2837917e-01, 6.3661957e-01, 1.02776304e-01, -1.9147826e-02, -1.6948447e-04, 1.6756422e-03, -6.3733774e-04,
        1.1885262e-04, -9.3868775e-06,
    ),
    "float64": (
        0.12837916709551256, 0.6366197723675898, 0.1027726033013577, -0.019128446993818014, -0.00020919484688080927,
        0.0016962076262144296, -0.0005901322451902443, 2.59039375563438e-05, 6.442174053352495e-05,
        -2.9577845453954867e-05, 3.172568498566025e-06, 3.129938196378168e-06, -2.034688274258792e-06,
        5.689861380313166e-07, -1.0842791780604095e-08, -6.609636192195931e-08, 3.470560120207641e-08,
        -1.08049684176314e-08, 2.3669333434479256e-09, -3.7705842566612147e-10, 4.312883341282886e-11,
        -3.3729310563853166e-12, 1.6189434011342144e-13, -3.60111957612581e-15,
    ),
}  # fmt: skip
_ERFC = {
    "float32": (
        1.2769784, -9.2763916e-02, -1.660313e-01, 1.6405365e-01, -5.4205723e-02, -8.047966e-03, 8.639491e-03,
        1.2824425e-03, -1.2513748e-03, -3.7305907e-04, 2.1667789e-05,
    ),
    "float64": (
        1.2530080582697296, -0.13562110612458067, -0.047562294353446846, 0.12964515870270404, -0.11927366341550479,
        0.06830802734585574, -0.023770514914689324, 0.002529391787439232, 0.001888690316398722,
        -0.0007798320304284554, -0.00010515951430802023, 0.00012509811046590528, 4.948225243188312e-06,
        -2.0096488951806807e-05, -7.277331693189205e-07, 3.4636901087184284e-06, 3.491325343220638e-07,
        -6.045980671336693e-07, -1.3114298770307867e-07, 9.156244231434985e-08, 3.2852433981759875e-08,
        -8.405721805214884e-09, -4.1709678137948285e-09,
    ),
}  # fmt: skip
_ATANH_TAIL = (
    0.3999999999999998, 0.28571428571443835, 0.22222222217791712, 0.18181818843716374, 0.1538455844826441,
    0.13336263738496856, 0.11675795822007498, 0.11981632007187315,
)  # fmt: skip

# Constants as sums: the nearest number, then what is missing.
_LN2 = {"float32": (6.931472e-01, -1.9046542e-09), "float64": (0.6931471805599453, 2.3190468138462996e-17)}
_LOG2_E = {"float32": (1.442695e00, 1.925963e-08), "float64": (1.4426950408889634, 2.0355273740931033e-17)}
_LOG10_E = {"float32": (4.342945e-01, -1.010305e-08), "float64": (0.4342944819032518, 1.098319650216765e-17)}
_LOG10_2 = {"float32": (3.0103e-01, -1.4320989e-08), "float64": (0.3010299956639812, -2.8037281277851704e-18)}
_HALF_PI = {
    "float32": (1.5707964e00, -4.371139e-08, -1.7151245e-15),
    "float64": (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591691e-33),
}
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)


# Pieces ---------------------------------------------------------------------------------------------------------
def _polynomial(x: Vector, coefficients: tuple[float, ...]) -> Vector:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    y = x.like(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y = fma(y, x, c)
    return y


def _at_most(x: Vector, limit: float) -> Vector:
    """The smaller one; NaN for NaN."""
    return where(x > limit, x.like(limit), x)


def _at_least(x: Vector, limit: float) -> Vector:
    return where(x < limit, x.like(limit), x)


def _reduced(x: Vector) -> tuple[Vector, Vector]:
    """(n, r) with x = n log 2 + r, |r| <= log(2)/2; n in the last bits of a whole number."""
    form, (ln2, ln2_rest) = _FORMATS[x.dtype], _LN2[x.dtype]
    shifted = fma(x, _LOG2_E[x.dtype][0], form.shifter)
    n = shifted - form.shifter
    return shifted.bits(), fma(n, -ln2_rest, fma(n, -ln2, x))


def _grown(r: Vector) -> Vector:
    """exp(r) - 1 for |r| <= log(2)/2."""
    return fma(_polynomial(r, _EXP[r.dtype]), r * r, r)


def _power_of_2(n: Vector, dtype: str) -> Vector:
    """2^n for n in the last bits of a whole number; for normal results."""
    form = _FORMATS[dtype]
    return ((n << form.fraction) + form.one).number()


def _scaled(n: Vector, p: Vector) -> Vector:
    """2^n (1 + p); in two steps, so that results may be subnormal or infinite."""
    half = n >> 1
    first, second = _power_of_2(half, p.dtype), _power_of_2(n - half, p.dtype)
    return fma(p, first, first) * second


def _exp_of(x: Vector, halved: int = 0) -> Vector:
    """exp(x) / 2^halved."""
    low, high = {"float32": (-104.0, 90.0), "float64": (-746.0, 711.0)}[x.dtype]
    n, r = _reduced(_at_least(_at_most(x, high), low))
    return _scaled(n - halved if halved else n, _grown(r))


def _split(x: Vector, is_normal: bool = False) -> tuple[Vector, Vector, Vector]:
    """(e, m, k) with x = 2^e m, sqrt(1/2) <= m < sqrt(2), for x > 0; k is e plus the bias, as a whole number."""
    form = _FORMATS[x.dtype]
    root = {"float32": 0x3F3504F3, "float64": 0x3FE6A09E667F3BCD}[x.dtype]  # the bits of sqrt(1/2)
    shift = 2.0**form.fraction
    bias = x.like(shift + form.bias)
    if not is_normal:
        is_tiny = x < form.smallest
        x = where(is_tiny, x * shift, x)
        bias = where(is_tiny, bias.like(shift + form.bias + form.fraction), bias)
    moved = x.bits() + (form.one - root)
    k = moved >> form.fraction
    m = ((moved & ((1 << form.fraction) - 1)) + root).number()
    return (k | bias.like(shift).bits()).number() - bias, m, k  # from whole number to float without a conversion


def _log_tail(f: Vector) -> Vector:
    """log(1 + f) - f for sqrt(1/2) <= 1 + f < sqrt(2)."""
    if f.dtype == "float32":
        square = f * f
        return square * fma(f, _polynomial(f, _LOG["float32"]), -0.5)
    s = f / (f + 2.0)
    z = s * s
    return s * (z * _polynomial(z, _ATANH["float64"]) - f)  # log(1 + f) = 2 atanh(s), and 2 s = f - s f


def _log_domain(x: Vector, y: Vector) -> Vector:
    """y where a logarithm of x has a value, what stands for one elsewhere."""
    y = where(x < math.inf, y, x)
    return where(x < 0.0, x.like(math.nan), where(x.compared("oeq", 0.0), x.like(-math.inf), y))


# Exponential and logarithm --------------------------------------------------------------------------------------
def exp(x: Vector) -> Vector:
    """2^n exp(r) with x = n log 2 + r."""
    return _exp_of(x)


def expm1(x: Vector) -> Vector:
    """2^n p + (2^n - 1) with p = exp(r) - 1."""
    low, high = {"float32": (-20.0, 89.0), "float64": (-40.0, 710.0)}[x.dtype]
    n, r = _reduced(_at_least(_at_most(x, high), low))
    half = _power_of_2(n - 1, x.dtype)  # 2^n may be beyond the largest number, half of it is not
    y = fma(half, _grown(r), half - 0.5) * 2.0
    return where(fabs(x) < _FORMATS[x.dtype].smallest, x, y)


def log(x: Vector) -> Vector:
    """e log 2 + log(m) with x = 2^e m."""
    e, m, _ = _split(x)
    return _log_domain(x, _joined(e, m - 1.0))


def _joined(e: Vector, f: Vector) -> Vector:
    """log(2^e (1 + f))."""
    ln2, ln2_rest = _LN2[f.dtype]
    return fma(e, ln2, f + fma(e, ln2_rest, _log_tail(f)))


def log2(x: Vector) -> Vector:
    """e + log(m) / log 2."""
    return _log_domain(x, _log2_of(x))


def _log2_of(x: Vector) -> Vector:
    e, m, _ = _split(x)
    f = m - 1.0
    factor, rest = _LOG2_E[x.dtype]
    return e + fma(f, factor, fma(_log_tail(f), factor, f * rest))


def log10(x: Vector) -> Vector:
    """e log10(2) + log(m) / log 10."""
    e, m, _ = _split(x)
    f = m - 1.0
    (factor, rest), (two, two_rest) = _LOG10_E[x.dtype], _LOG10_2[x.dtype]
    tail = fma(e, two_rest, fma(_log_tail(f), factor, f * rest))
    return _log_domain(x, fma(e, two, fma(f, factor, tail)))


def log1p(x: Vector) -> Vector:
    """log(2^e (1 + f)) with e from 1 + x rounded, and f = 2^-e x + (2^-e - 1), which loses nothing of x."""
    form = _FORMATS[x.dtype]
    e, m, k = _split(x + 1.0, is_normal=True)
    scale = ((2 * form.bias - k) << form.fraction).number()
    f = where(x > 2.0**60, m - 1.0, fma(x, scale, scale - 1.0))
    y = where(x < math.inf, _joined(e, f), x)
    y = where(x.compared("oeq", -1.0), x.like(-math.inf), y)
    return where(x < -1.0, x.like(math.nan), copysign(y, x))  # -0 for -0


# Hyperbolic functions -------------------------------------------------------------------------------------------
def tanh(x: Vector) -> Vector:
    """A polynomial up to 0.55, 1 - 2 / (exp(2x) + 1) beyond."""
    size = fabs(x)
    bounded = _at_most(size, {"float32": 10.0, "float64": 20.0}[x.dtype])
    n, r = _reduced(bounded + bounded)
    scale = _power_of_2(n, x.dtype)
    far = 1.0 - 2.0 / fma(_grown(r), scale, scale + 1.0)
    u = x * x
    return copysign(where(size < 0.55, fma(size * u, _polynomial(u, _TANH[x.dtype]), size), far), x)


def sinh(x: Vector) -> Vector:
    """A polynomial up to 1, exp(x)/2 - exp(-x)/2 beyond."""
    size, u = fabs(x), x * x
    grown = _exp_of(size, halved=1)
    near = fma(x * u, _polynomial(u, _SINH[x.dtype]), x)
    return where(size < 1.0, near, copysign(grown - 0.25 / grown, x))


def cosh(x: Vector) -> Vector:
    """exp(x)/2 + exp(-x)/2."""
    grown = _exp_of(fabs(x), halved=1)
    return grown + 0.25 / grown


def asinh(x: Vector) -> Vector:
    """log(|x| + sqrt(x^2 + 1)), as log1p(|x| + x^2 / (1 + sqrt(x^2 + 1))), with the sign of x."""
    size, square = fabs(x), x * x
    is_large = size > 2.0**60
    grown = where(is_large, size, size + square / (sqrt(square + 1.0) + 1.0))
    return copysign(_plus_ln2(log1p(grown), is_large), x)


def acosh(x: Vector) -> Vector:
    """log(x + sqrt(x^2 - 1)), as log1p(t + sqrt(t^2 + 2t)) with t = x - 1."""
    t = x - 1.0
    is_large = x > 2.0**60
    y = _plus_ln2(log1p(where(is_large, x, t + sqrt(fma(t, t, t + t)))), is_large)
    return where(x < 1.0, x.like(math.nan), y)


def _plus_ln2(y: Vector, condition: Vector) -> Vector:
    return where(condition, y + _LN2[y.dtype][0], y)


def atanh(x: Vector) -> Vector:
    """log((1 + x) / (1 - x)) / 2, as log1p(2x / (1 - x)) / 2."""
    size = fabs(x)
    return copysign(log1p((size + size) / (1.0 - size)) * 0.5, x)


# Trigonometric functions ----------------------------------------------------------------------------------------
def _turned(size: Vector) -> tuple[Vector, Vector, Vector]:
    """(n, k, r) with |x| = n p + r, p nearly pi/2 (_HALF_PI), |r| <= pi/4; k has n in its last bits."""
    shifter = _FORMATS[size.dtype].shifter
    shifted = fma(size, 2 / math.pi, shifter)
    n = shifted - shifter
    return n, shifted.bits(), fma(n, -_HALF_PI[size.dtype][0], size)  # exact


def _rest(n: Vector, r: Vector) -> Vector:
    """r - n times what pi/2 rounded lacks."""
    _, second, third = _HALF_PI[r.dtype]
    return fma(n, -third, fma(n, -second, r))


def _precise_rest(n: Vector, r: Vector) -> tuple[Vector, Vector]:
    """The same as the sum of two numbers."""
    _, second, third = _HALF_PI[r.dtype]
    product = n * second
    near = r - product
    lost = (r - near) - product
    return _sum(near, fma(n, -third, lost - fma(n, second, -product)))


def _is_odd(k: Vector) -> Vector:
    return (k & 1).compared("ne", 0)


def _sine(k: Vector, r: Vector) -> Vector:
    """sin(k pi/2 + r) but for the sign."""
    u = r * r
    sine = fma(r * u, _polynomial(u, _SIN[r.dtype]), r)
    cosine = fma(u, fma(u, _polynomial(u, _COS[r.dtype]), -0.5), 1.0)
    return where(_is_odd(k), cosine, sine)


def _negated(y: Vector, k: Vector) -> Vector:
    """-y in the third and fourth quadrant."""
    width = int(y.dtype[-2:])
    return (y.bits() ^ ((k << (width - 2)) & -(1 << (width - 1)))).number()


def sin(x: Vector) -> Vector:
    """Sine and cosine of what is left of multiples of pi/2; one of them, and its sign, by the multiple."""
    size = fabs(x)
    n, k, r = _turned(size)
    y = _negated(_sine(k, _rest(n, r)), k)
    return _corrected("sin", x, size, (y.bits() ^ (x.bits() ^ size.bits())).number())


def cos(x: Vector) -> Vector:
    """sin(x + pi/2)."""
    size = fabs(x)
    n, k, r = _turned(size)
    k = k + 1
    return _corrected("cos", x, size, _negated(_sine(k, _rest(n, r)), k))


def tan(x: Vector) -> Vector:
    """tan(r), or -1/tan(r) for odd multiples of pi/2."""
    size = fabs(x)
    n, k, r = _turned(size)
    r, rest = _precise_rest(n, r)
    u = r * r
    more = fma(r * u, _polynomial(u, _TAN[x.dtype]), fma(rest, u, rest))
    y = r + more
    inverse = -1.0 / y
    error = fma(inverse, more - (y - r), fma(inverse, y, 1.0))
    y = where(_is_odd(k), fma(inverse, error, inverse), y)
    return _corrected("tan", x, size, (y.bits() ^ (x.bits() ^ size.bits())).number())


def _corrected(name: str, x: Vector, size: Vector, y: Vector) -> Vector:
    """y, but where |x| is too large for the reduction, what C's library says."""
    f = x.f
    is_far = size > _FORMATS[x.dtype].near
    variable = f.var(y.kind, y.name)
    any_far = is_far.name
    if x.lanes > 1:
        any_far = f.call(f"llvm.vector.reduce.or.v{x.lanes}i1", "i1", f"{is_far.kind} {is_far.name}", types=is_far.kind)
    with f.when(any_far):
        f.put(y.kind, variable, where(is_far, _by_library(name, x), y).name)
    return Vector(f, x.lanes, x.dtype, f.get(y.kind, variable))


def asin(x: Vector) -> Vector:
    """A polynomial up to 1/2, pi/2 - 2 asin(sqrt((1 - x) / 2)) beyond."""
    is_small, s, tail = _arc(fabs(x))
    high, low, _ = _HALF_PI[x.dtype]
    part = fma(s, -2.0, high)
    rest = fma(s, -2.0, high - part)  # what rounding took away
    return copysign(where(is_small, s + tail, part + (rest - fma(tail, 2.0, -low))), x)


def acos(x: Vector) -> Vector:
    """pi/2 - asin(x); 2 asin(sqrt((1 - x) / 2)) near 1, pi minus that of -x near -1."""
    is_small, s, tail = _arc(fabs(x))
    p = s + tail
    high, low, _ = _HALF_PI[x.dtype]
    part = copysign(where(is_small, p, p + p), where(is_small, -x, x))
    is_left = x < -0.5
    base = where(is_small, x.like(high), where(is_left, x.like(2 * high), x.like(0.0)))
    rest = where(is_small, x.like(low), where(is_left, x.like(2 * low), x.like(0.0)))
    return base + (part + rest)


def _arc(size: Vector) -> tuple[Vector, Vector, Vector]:
    """(whether x <= 1/2, s, asin(s) - s) with s = x if so and sqrt((1 - x) / 2) if not, for x >= 0."""
    is_small = size <= 0.5
    u = where(is_small, size * size, (1.0 - size) * 0.5)
    s = where(is_small, size, sqrt(u))
    return is_small, s, s * u * _polynomial(u, _ASIN[size.dtype])


def atan(x: Vector) -> Vector:
    """The angle of the point (1, x)."""
    return copysign(_angle(fabs(x), x.like(1.0)), x)


def atan2(y: Vector, x: Vector) -> Vector:
    """The angle of the point (x, y)."""
    a, b = fabs(y), fabs(x)
    is_corner = (a.compared("oeq", b)) & (a.compared("oeq", 0.0) | a.compared("oeq", math.inf))
    larger = where(a > b, a, b)  # a quarter where sums might overflow, 2^64 times where products might be subnormal
    scale = where(larger > 2.0**100, a.like(0.25), where(larger < 2.0**-60, a.like(2.0**64), a.like(1.0)))
    angle = _angle(a * scale, b * scale)
    quarter = _HALF_PI[x.dtype][0] / 2
    angle = where(is_corner, where(a.compared("oeq", 0.0), a.like(0.0), a.like(quarter)), angle)
    high, low, _ = _HALF_PI[x.dtype]
    is_left = x.bits() < 0  # -0 too
    return copysign(where(is_left, 2 * high - (angle - 2 * low), angle), y)


def _angle(y: Vector, x: Vector) -> Vector:
    """atan(y / x) for x, y >= 0: turned by 0, pi/4 or pi/2, so that the tangent is at most sqrt(2) - 1."""
    high, low, _ = _HALF_PI[x.dtype]
    is_low, is_high = y < x * (math.sqrt(2) - 1), y > x * (math.sqrt(2) + 1)
    above = where(is_low, y, where(is_high, -x, y - x))
    below = where(is_low, x, where(is_high, y, y + x))
    t = above / below
    u = t * t
    zero = x.like(0.0)
    turned = where(is_low, zero, where(is_high, x.like(high), x.like(high / 2)))
    rest = where(is_low, zero, where(is_high, x.like(low), x.like(low / 2)))
    return turned + (t + fma(t * u, _polynomial(u, _ATAN[x.dtype]), rest))


# Error function and powers --------------------------------------------------------------------------------------
def erf(x: Vector) -> Vector:
    """1 - exp(-w) with w = -log(1 - erf(x)) = x + x P(x), 2^n p + (2^n - 1) as in expm1."""
    size = _at_most(fabs(x), {"float32": 3.95, "float64": 5.95}[x.dtype])
    w = fma(-size, _polynomial(size, _ERF[x.dtype]), -size)
    n, r = _reduced(w)
    p, scale = _grown(r), _power_of_2(n, x.dtype)
    return copysign(fma(-scale, p, 1.0 - scale), x)


def erfc(x: Vector) -> Vector:
    """exp(-x^2) P(t) / (1 + 2 |x|) with t = (|x| - k) / (|x| + k), x^2 in two parts; 2 minus that below 0."""
    k, most = {"float32": (2.0, 10.1), "float64": (3.0, 27.3)}[x.dtype]
    size = _at_most(fabs(x), most)
    square = size * size
    rest = fma(size, size, -square)
    y = exp(-square) * (_polynomial((size - k) / (size + k), _ERFC[x.dtype]) / (size + size + 1.0))
    y = fma(-rest, y, y)
    return where(x < 0.0, 2.0 - y, y)


def pow(x: Vector, y: Vector) -> Vector:
    """2^(y log2 |x|), the logarithm with 66 bits; float32 in float64."""
    if x.dtype == "float32":
        return _power(x.converted("float64"), y.converted("float64"), _plain_log2).converted("float32")
    return _power(x, y, _precise_log2)


def _power(x: Vector, y: Vector, log2_of: Callable[[Vector], tuple[Vector, Vector]]) -> Vector:
    form = _FORMATS["float64"]
    size = fabs(x)
    exponent = _at_least(_at_most(y, 2.0**64), -(2.0**64))  # beyond, powers of all numbers but 1 are 0 or infinite
    high, low = log2_of(size)
    high = where(size.compared("oeq", 0.0), x.like(-math.inf), where(size.compared("oeq", math.inf), size, high))
    product = exponent * high
    rest = fma(exponent, low, fma(exponent, high, -product))
    bounded = _at_least(_at_most(product, 1100.0), -1100.0)
    rest = where(fabs(product) < 1100.0, rest, 0.0)
    shifted = bounded + form.shifter
    r = bounded - (shifted - form.shifter)
    ln2, ln2_rest = _LN2["float64"]
    power = _scaled(shifted.bits(), _grown(fma(r, ln2, fma(rest, ln2, r * ln2_rest))))
    # the sign, and what has no value
    is_whole, half = floor(y).compared("oeq", y), exponent * 0.5
    is_odd = is_whole & floor(half).compared("une", half)
    is_negative = x.bits() < 0
    power = where(is_negative & is_odd, -power, power)
    power = where((x < 0.0) & ~is_whole & (size < math.inf), x.like(math.nan), power)
    power = where(x.compared("uno", y), x + y, power)
    return where(y.compared("oeq", 0.0) | x.compared("oeq", 1.0), x.like(1.0), power)


def _plain_log2(x: Vector) -> tuple[Vector, Vector]:
    return _log2_of(x), x.like(0.0)


def _precise_log2(x: Vector) -> tuple[Vector, Vector]:
    """log2(x) as the sum of two numbers, for x > 0: e + 2 atanh(s) / log 2 with s = (m - 1) / (m + 1)."""
    e, m, _ = _split(x)
    f = m - 1.0
    below = f + 2.0
    inverse = 1.0 / below
    s = f * inverse
    left = fma(-s, f - (below - 2.0), fma(-s, below, f))
    s_rest = left * inverse
    z = s * s
    z_rest = fma(s + s, s_rest, fma(s, s, -z))
    c, c_rest = _sum(_TWO_THIRDS[0], z * _polynomial(z, _ATANH_TAIL))  # 2 atanh(s) = s (2 + z c)
    q, q_rest = _product(z, z_rest, c, c_rest + _TWO_THIRDS[1])
    t, t_rest = _sum(2.0, q)
    natural, natural_rest = _product(s, s_rest, t, t_rest + q_rest)
    factor, factor_rest = _LOG2_E["float64"]
    g, g_rest = _product(natural, natural_rest, x.like(factor), x.like(factor_rest))
    high = e + g
    return high, (e - high) + g + g_rest


def _sum(a: Any, b: Vector) -> tuple[Vector, Vector]:
    """a + b for |a| >= |b|, and what rounding took away."""
    total = a + b
    return total, (a - total) + b


def _product(a: Vector, a_rest: Vector, b: Vector, b_rest: Vector) -> tuple[Vector, Vector]:
    """(a + a_rest) (b + b_rest) as the sum of two numbers."""
    product = a * b
    return product, fma(a, b_rest, fma(a_rest, b, fma(a, b, -product)))


def fmod(a: Vector, b: Vector) -> Vector:
    """a - b trunc(a / b), exactly."""
    return _by_library("fmod", a, b)


def _by_library(name: str, *xs: Vector) -> Vector:
    """Lane by lane by C's library, in a function of its own that leaves the caller's loops short."""
    x = xs[0]
    f, element, size = x.f, _ELEMENTS[x.dtype], int(x.dtype[-2:]) // 8
    called = name + ("f" if x.dtype == "float32" else "")
    if x.lanes == 1:
        types = ", ".join([element] * len(xs))
        return x.like(Vector(f, 1, x.dtype, f.call(called, element, *[f"{element} {a.name}" for a in xs], types=types)))
    full = f"far_{called}_{x.lanes}"
    pointers = [f"ptr %x{i}" for i in range(len(xs))]
    if full not in f.declared:
        g = type(f)(full, ["ptr %y", *pointers], f.target, returns="internal void")
        with g.loop(0, x.lanes) as i:
            at = g.mul(i, size)
            args = [f"{element} {g.load(element, g.at(p.split()[1], at))}" for p in pointers]
            g.store(element, g.call(called, element, *args, types=", ".join([element] * len(xs))), g.at("%y", at))
        g.do("ret void")
        f.declared.update(g.declared)
        f.declared[full] = g.finished().replace(" #0 {", " noinline cold #0 {")
    slots = [f.var(a.kind, a.name) for a in xs]
    y = f.var(x.kind)
    f.do(f"call void @{full}({', '.join(f'ptr {slot}' for slot in [y, *slots])}) cold")
    return Vector(f, x.lanes, x.dtype, f.get(x.kind, y))


FUNCTIONS: dict[str, Callable[..., Vector]] = {
    "exp": exp, "log": log, "log2": log2, "log10": log10, "log1p": log1p, "expm1": expm1, "sqrt": sqrt, "sin": sin,
    "cos": cos, "tan": tan, "sinh": sinh, "cosh": cosh, "tanh": tanh, "asin": asin, "acos": acos, "atan": atan,
    "asinh": asinh, "acosh": acosh, "atanh": atanh, "atan2": atan2, "fabs": fabs,
    "floor": floor, "ceil": ceil, "trunc": trunc, "erf": erf, "erfc": erfc, "fmod": fmod, "pow": pow,
}  # fmt: skip
