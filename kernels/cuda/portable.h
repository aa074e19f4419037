// What every kernel is written with: CUDA C++ on the device. Where no compiler for CUDA is at work, the same words
// come from cusim.h, which runs a kernel's blocks one after the other on the CPU (for tests).
#pragma once
typedef long long i64;
typedef unsigned long long u64;
#define ALL_LANES 0xffffffffu

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
// Memory of a block whose size the launch gives: SHARED_MEMORY(name) declares it as bytes.
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

// a * b + c, rounded once: what sums of products are made of. Elsewhere products and sums are rounded one by one.
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// The nearest number with 10 bits of mantissa, ties away from zero: what the tensor cores read.
DEVICE float to_tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return __uint_as_float(r);
}

// One warp: d (16 x 8) += a (16 x 8) b (8 x 8), added up in float. With g = lane / 4, t = lane % 4:
// a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]; b = B[t][g], B[t + 4][g];
// d = D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1].  Source: PTX ISA, mma.m16n8k8. Needs sm_80.
// a and b are what to_tf32 has rounded; mma_tf32 rounds them itself.
DEVICE void mma_rounded(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}
DEVICE void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  const float left[4] = {to_tf32(a[0]), to_tf32(a[1]), to_tf32(a[2]), to_tf32(a[3])};
  const float right[2] = {to_tf32(b[0]), to_tf32(b[1])};
  mma_rounded(d, left, right);
#endif
}
#else
#include "cusim.h"
#endif

DEVICE float infinity(float) { return __int_as_float(0x7f800000); }
DEVICE double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
DEVICE float not_a_number(float) { return __int_as_float(0x7fc00000); }
DEVICE double not_a_number(double) { return __longlong_as_double(0x7ff8000000000000ll); }
DEVICE bool is_nan(float x) { return x != x; }
DEVICE bool is_nan(double x) { return x != x; }
