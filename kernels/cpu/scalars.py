"""What generated loops are written in: words of scalar texts, memory by address, and `loop`, which compiles them."""

import math

import numpy as np
from numba import boolean as boolean  # for generated code
from numba import float32, float64, int64, njit, types, uint8
from numba.extending import intrinsic

from minidl.kernels.cpu.kept import kept_cfunc

inf, nan = math.inf, math.nan
exp, log, log2, log10, log1p, expm1 = np.exp, np.log, np.log2, np.log10, np.log1p, np.expm1
sqrt, sin, cos, tan, sinh, cosh, tanh = np.sqrt, np.sin, np.cos, np.tan, np.sinh, np.cosh, np.tanh
asin, acos, atan, asinh, acosh, atanh, atan2 = (
    np.arcsin, np.arccos, np.arctan, np.arcsinh, np.arccosh, np.arctanh, np.arctan2
)  # fmt: skip
fabs, floor, ceil, trunc, erf, erfc = np.abs, np.floor, np.ceil, np.trunc, math.erf, math.erfc
fmod = np.fmod
isnan, isinf, isfinite = np.isnan, np.isinf, np.isfinite


@njit
def where(condition, a, b):
    """a if the condition holds, else b."""
    return a if condition else b


@njit
def maximum(a, b):
    """The larger one; nan if one is nan."""
    return a if a > b or a != a else b


@njit
def minimum(a, b):
    """The smaller one; nan if one is nan."""
    return a if a < b or a != a else b


@njit
def fmax(a, b):
    """The larger one; the other one if one is nan."""
    return a if a > b or b != b else b


@njit
def fmin(a, b):
    """The smaller one; the other one if one is nan."""
    return a if a < b or b != b else b


@njit
def sign(x):
    """-1, 0 or 1; nan for nan."""
    return np.sign(x) + type(x)(0)  # 0 for -0 too


@njit
def pow(a, b):
    """a to the power b."""
    return a**b


@njit
def round_half_away(x):
    """Nearest whole number, halves away from zero."""
    whole = np.trunc(x)  # |x| + 0.5 would round just below 0.5, and beyond 2^52
    return whole + np.copysign(type(x)(1), x) if np.abs(x - whole) >= type(x)(0.5) else whole


@njit
def logical_and(a, b):
    """Both."""
    return bool(a) and bool(b)


@njit
def logical_or(a, b):
    """One of the two, or both."""
    return bool(a) or bool(b)


@njit
def logical_xor(a, b):
    """One of the two, not both."""
    return bool(a) != bool(b)


@njit
def logical_not(a):
    """Not."""
    return not a


def _at(dtype):
    @intrinsic
    def at(typing, address):
        """Memory at an address, as a pointer to elements of one type."""

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(dtype)))

        return types.CPointer(dtype)(types.int64), generate

    return at


float32_at, float64_at, boolean_at, int64_at = _at(float32), _at(float64), _at(uint8), _at(int64)
_loop_type = types.void(types.int64, types.int64, types.CPointer(types.int64))


def loop(function):
    """Compile function(start, stop, table) for calls by address; its code is kept in a cache beside its file.

    IEEE arithmetic, each operation rounded by itself: a loop gives what its operations one by one give. x / 0 is inf
    or nan.
    """
    return kept_cfunc(_loop_type, is_generated=True, error_model="numpy")(function)


__all__ = [name for name in dir() if not name.startswith("_")]
