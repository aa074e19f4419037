// The words of CUDA C++ for the CPU: every thread of a block is a fiber of one thread of the processor (cusim.cpp).
// Shared memory is poisoned with NaN before each block. What a GPU would answer with wrong numbers or a hang is an
// error here: threads that wait at different barriers, or at one that others will never reach.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#pragma push_macro("T") // kernels may call their element type so
#undef T

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cusm")))
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))
#define DEVICE static inline
#define SHARED_MEMORY(name) unsigned char *name = cusim_dynamic

struct cusim_dim { unsigned x, y, z; };
typedef cusim_dim dim3;
struct cusim_fiber { cusim_dim thread; unsigned lane; };

extern "C" {
extern cusim_fiber *cusim_now;
extern cusim_dim cusim_block, cusim_block_size, cusim_grid_size;
extern unsigned char *cusim_dynamic;
void cusim_sync(int line);
void *cusim_exchange(const void *mine, size_t bytes, int line); // 32 slots of 32 bytes, one per lane of the warp
const char *cusim_launch(void (*thunk)(void **), void **args, const unsigned *shape, size_t dynamic_bytes,
                         char *shared_begin, char *shared_end);
extern char __start_cusm[] __attribute__((weak, visibility("hidden")));
extern char __stop_cusm[] __attribute__((weak, visibility("hidden")));
}

#define threadIdx (cusim_now->thread)
#define blockIdx cusim_block
#define blockDim cusim_block_size
#define gridDim cusim_grid_size
#define __syncthreads() cusim_sync(__LINE__)
#define __syncwarp(...) ((void)cusim_shuffle(0, 0, __LINE__))

template <class T> static inline T cusim_shuffle(T v, unsigned lane, int line) {
  T r;
  memcpy(&r, (char *)cusim_exchange(&v, sizeof v, line) + 32 * (lane & 31), sizeof r);
  return r;
}
#define __shfl_sync(mask, v, lane) cusim_shuffle(v, lane, __LINE__)
#define __shfl_xor_sync(mask, v, m) cusim_shuffle(v, cusim_now->lane ^ (m), __LINE__)
#define __shfl_down_sync(mask, v, d) \
  cusim_shuffle(v, cusim_now->lane + (d) < 32 ? cusim_now->lane + (d) : cusim_now->lane, __LINE__)
#define __shfl_up_sync(mask, v, d) \
  cusim_shuffle(v, cusim_now->lane >= (unsigned)(d) ? cusim_now->lane - (d) : cusim_now->lane, __LINE__)
static inline unsigned cusim_ballot(bool p, int line) {
  unsigned v = p, r = 0;
  char *s = (char *)cusim_exchange(&v, sizeof v, line);
  for (int i = 0; i < 32; i++) {
    unsigned x;
    memcpy(&x, s + 32 * i, sizeof x);
    r |= (x == 1) << i;
  }
  return r;
}
#define __ballot_sync(mask, p) cusim_ballot(p, __LINE__)
static inline int __popc(unsigned x) { return __builtin_popcount(x); }

// one fiber runs at a time and gives up only at barriers: any read and write between two of them is atomic
template <class T, class U> static inline T atomicAdd(T *p, U v) { T o = *p; *p = o + (T)v; return o; }
template <class T, class U> static inline T atomicMax(T *p, U v) { T o = *p; if ((T)v > o) *p = (T)v; return o; }
template <class T, class U> static inline T atomicMin(T *p, U v) { T o = *p; if ((T)v < o) *p = (T)v; return o; }
static inline void __threadfence() {}
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
static inline float2 make_float2(float a, float b) { return {a, b}; }
static inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static inline double2 make_double2(double a, double b) { return {a, b}; }

static inline float __int_as_float(int x) { float r; memcpy(&r, &x, 4); return r; }
static inline int __float_as_int(float x) { int r; memcpy(&r, &x, 4); return r; }
static inline float __uint_as_float(unsigned x) { float r; memcpy(&r, &x, 4); return r; }
static inline unsigned __float_as_uint(float x) { unsigned r; memcpy(&r, &x, 4); return r; }
static inline double __longlong_as_double(long long x) { double r; memcpy(&r, &x, 8); return r; }
static inline long long __double_as_longlong(double x) { long long r; memcpy(&r, &x, 8); return r; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
// rounded once each, never joined to a multiply-add (the shim compiles with -ffp-contract=off)
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// rounded twice here: a processor's own multiply-add is not asked for, since not all have one
static inline float multiply_add(float a, float b, float c) { return a * b + c; }
static inline double multiply_add(double a, double b, double c) { return a * b + c; }
static inline float __double2float_rn(double a) { return (float)a; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }

static inline float to_tf32(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0x1000u) & ~0x1fffu;
  memcpy(&x, &u, 4);
  return x;
}
static inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  float v[6] = {to_tf32(a[0]), to_tf32(a[1]), to_tf32(a[2]), to_tf32(a[3]), to_tf32(b[0]), to_tf32(b[1])};
  char *slots = (char *)cusim_exchange(v, sizeof v, __LINE__);
  unsigned g = cusim_now->lane >> 2, t = cusim_now->lane & 3;
  auto at = [&](unsigned lane, unsigned i) { float x; memcpy(&x, slots + 32 * lane + 4 * i, 4); return x; };
  for (unsigned i = 0; i < 4; i++) {
    unsigned r = g + 8 * (i >> 1), c = 2 * t + (i & 1);
    for (unsigned k = 0; k < 8; k++)
      d[i] += at((r & 7) * 4 + (k & 3), (r >> 3) + 2 * (k >> 2)) * at(c * 4 + (k & 3), 4 + (k >> 2));
  }
}
static inline void mma_rounded(float (&d)[4], const float (&a)[4], const float (&b)[2]) { mma_tf32(d, a, b); }

// a kernel as a function of a table of arguments, like cuLaunchKernel
template <class T> struct cusim_plain { typedef T type; };
template <class T> struct cusim_plain<const T> { typedef T type; };
template <size_t... I> struct cusim_places {};
template <auto K> struct cusim_thunk;
template <class... A, void (*K)(A...)> struct cusim_thunk<K> {
  template <size_t... I> static void call(void **p, cusim_places<I...>) {
    K(*reinterpret_cast<typename cusim_plain<A>::type *>(p[I])...);
  }
  static void run(void **p) { call(p, cusim_places<__integer_pack(sizeof...(A))...>{}); }
};
// what each argument is: a small letter for a number, a capital one for a pointer, '?' for any other type
template <class T> struct cusim_type { static constexpr char letter = '?'; };
template <> struct cusim_type<float> { static constexpr char letter = 'f'; };
template <> struct cusim_type<double> { static constexpr char letter = 'd'; };
template <> struct cusim_type<int> { static constexpr char letter = 'i'; };
template <> struct cusim_type<unsigned> { static constexpr char letter = 'i'; };
template <> struct cusim_type<long long> { static constexpr char letter = 'l'; };
template <> struct cusim_type<unsigned long long> { static constexpr char letter = 'l'; };
template <> struct cusim_type<bool> { static constexpr char letter = 'b'; };
template <class T> struct cusim_type<T *> {
  static constexpr char inner = cusim_type<typename cusim_plain<T>::type>::letter;
  static constexpr char letter = inner == '?' ? 'P' : inner - 'a' + 'A';
};
template <class... A> static const char *cusim_letters(void (*)(A...)) {
  static const char letters[] = {cusim_type<typename cusim_plain<A>::type>::letter..., 0};
  return letters;
}
#define CUSIM_EXPORT(k, bound)                                                                            \
  extern "C" const char *cusim_run_##k(void **args, const unsigned *shape, size_t dynamic_bytes) {        \
    return cusim_launch(&cusim_thunk<&k>::run, args, shape, dynamic_bytes, __start_cusm, __stop_cusm);    \
  }                                                                                                       \
  extern "C" const char *cusim_letters_##k() { return cusim_letters(&k); }                                \
  extern "C" unsigned cusim_bound_##k() { return bound; }
#pragma pop_macro("T")
