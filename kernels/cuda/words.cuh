// The words of scalar texts (see minidl/core/op.py), each for float and for double.
#pragma once
#include "portable.h"

#define WORD1(word, single, twice)                          \
  DEVICE float w_##word(float x) { return single(x); }      \
  DEVICE double w_##word(double x) { return twice(x); }
#define WORD2(word, single, twice)                                    \
  DEVICE float w_##word(float a, float b) { return single(a, b); }    \
  DEVICE double w_##word(double a, double b) { return twice(a, b); }

WORD1(exp, expf, exp)
WORD1(log, logf, log)
WORD1(log2, log2f, log2)
WORD1(log10, log10f, log10)
WORD1(log1p, log1pf, log1p)
WORD1(expm1, expm1f, expm1)
WORD1(sqrt, sqrtf, sqrt)
WORD1(sin, sinf, sin)
WORD1(cos, cosf, cos)
WORD1(tan, tanf, tan)
WORD1(asin, asinf, asin)
WORD1(acos, acosf, acos)
WORD1(atan, atanf, atan)
WORD1(sinh, sinhf, sinh)
WORD1(cosh, coshf, cosh)
WORD1(tanh, tanhf, tanh)
WORD1(asinh, asinhf, asinh)
WORD1(acosh, acoshf, acosh)
WORD1(atanh, atanhf, atanh)
WORD1(fabs, fabsf, fabs)
WORD1(floor, floorf, floor)
WORD1(ceil, ceilf, ceil)
WORD1(trunc, truncf, trunc)
WORD1(round_half_away, roundf, round)
WORD1(erf, erff, erf)
WORD1(erfc, erfcf, erfc)
WORD2(atan2, atan2f, atan2)
WORD2(pow, powf, pow)
WORD2(fmod, fmodf, fmod)

// Sums and products, each rounded by itself: the compiler would join `a * b + c` to a multiply-add that rounds once, so
// that a * b - c * d were not 0 where it has to be. Operands of two types meet in the one that C adds them in.
#define SIGN(word, sign, single, twice)                                        \
  DEVICE float word##_of(float a, float b) { return single(a, b); }            \
  DEVICE double word##_of(double a, double b) { return twice(a, b); }          \
  template <class E> DEVICE E word##_of(E a, E b) { return a sign b; }         \
  template <class A, class B> DEVICE auto w_##word(A a, B b) -> decltype(a sign b) { \
    using E = decltype(a sign b);                                              \
    return word##_of((E)a, (E)b);                                              \
  }

SIGN(plus, +, __fadd_rn, __dadd_rn)
SIGN(minus, -, __fsub_rn, __dsub_rn)
SIGN(times, *, __fmul_rn, __dmul_rn)

// What has no type of its own: `where`, comparisons and logic take any. (T is a macro of some kernels.)
template <class E> DEVICE E w_where(bool condition, E a, E b) { return condition ? a : b; }
template <class E> DEVICE E w_maximum(E a, E b) { return a > b || a != a ? a : b; } // NaN if one is NaN
template <class E> DEVICE E w_minimum(E a, E b) { return a < b || a != a ? a : b; }
template <class E> DEVICE E w_fmax(E a, E b) { return a > b || b != b ? a : b; } // the other one if one is NaN
template <class E> DEVICE E w_fmin(E a, E b) { return a < b || b != b ? a : b; }
template <class E> DEVICE E w_sign(E x) { return x > 0 ? E(1) : x < 0 ? E(-1) : x == 0 ? E(0) : x; }
template <class E> DEVICE bool w_isnan(E x) { return x != x; }
template <class E> DEVICE bool w_isinf(E x) { return x - x != x - x && x == x; }
template <class E> DEVICE bool w_isfinite(E x) { return x - x == E(0); }
DEVICE bool w_logical_and(bool a, bool b) { return a && b; }
DEVICE bool w_logical_or(bool a, bool b) { return a || b; }
DEVICE bool w_logical_xor(bool a, bool b) { return a != b; }
DEVICE bool w_logical_not(bool a) { return !a; }
