// Random numbers by counter: a block of four words of 64 bits is a function of (seed, draw, block) alone.
// Constants: T, the type of the numbers; the tables of kernels/normal.py.
#include "portable.h"

#define ROUNDS 10
#define WIDTH (16 / (int)sizeof(T)) // numbers of a store
struct __align__(16) Pack { T numbers[WIDTH]; };

// The words of block `block` (from 1 on) of a draw: Philox 4x64, key (seed, 0), counter (block, 0, draw, 0).
// Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (2011), section 4.
DEVICE void philox(u64 (&words)[4], u64 seed, u64 draw, u64 block) {
  u64 a = block, b = 0, c = draw, d = 0, key_a = seed, key_c = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    u64 high_a = __umul64hi(a, 0xD2E7470EE14C6C93ull), low_a = a * 0xD2E7470EE14C6C93ull;
    u64 high_c = __umul64hi(c, 0xCA5A826395121157ull), low_c = c * 0xCA5A826395121157ull;
    a = high_c ^ b ^ key_a, b = low_c;
    c = high_a ^ d ^ key_c, d = low_a;
    key_a += 0x9E3779B97F4A7C15ull, key_c += 0xBB67AE8584CAA73Bull;
  }
  words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// The state after the draw, written by one thread: (seed, draw + 1).
DEVICE void count_on(u64 *next, const u64 *state) {
  if (blockIdx.x == 0 && threadIdx.x == 0) next[0] = state[0], next[1] = state[1] + 1;
}

// y[0 .. min(COUNT, left)): 16 bytes at once where y permits.
template <int COUNT> DEVICE void put(T *y, const T (&numbers)[COUNT], i64 left) {
  if (left >= COUNT && (u64)y % 16 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += WIDTH) {
      Pack pack;
#pragma unroll
      for (int k = 0; k < WIDTH; k++) pack.numbers[k] = numbers[i + k];
      *(Pack *)(y + i) = pack;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (i < left) y[i] = numbers[i];
  }
}

// The words of a block as numbers in [0, 1): 53 bits of a word, or 24 bits of its halves, the lower one first.
DEVICE void uniform(double (&numbers)[4], const u64 (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) numbers[i] = (double)(words[i] >> 11) * 0x1p-53;
}
DEVICE void uniform(float (&numbers)[8], const u64 (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 8; i++) numbers[i] = (float)((unsigned)(words[i / 2] >> i % 2 * 32) >> 8) * 0x1p-24f;
}

// y [n], uniform in [0, 1), and the next state. One thread per block of words: 8 single or 4 double numbers.
// Grid ceil(n / (256 * numbers of a thread)), at least 1; 256 threads; no shared memory.
// Floor: writes n numbers; about 250 whole-number instructions per block of words cost as much on an H100.
extern "C" __global__ void __launch_bounds__(256) random_uniform(T *y, u64 *next, const u64 *state, i64 n) {
  const int count = 32 / (int)sizeof(T);
  i64 block = (i64)blockIdx.x * 256 + threadIdx.x, first = block * count;
  count_on(next, state);
  if (first >= n) return;
  u64 words[4];
  T numbers[count];
  philox(words, state[0], state[1], block + 1);
  uniform(numbers, words);
  put(y + first, numbers, n - first);
}

// The operations of the inverse are rounded one by one, so that no two become a multiply-add: the CPU's bits.
DEVICE double times_plus(double a, double b, double c) { return __dadd_rn(__dmul_rn(a, b), c); }

template <int TERMS> DEVICE double horner(const double (&coefficients)[TERMS], double x) {
  double y = coefficients[TERMS - 1];
#pragma unroll
  for (int i = TERMS - 2; i >= 0; i--) y = times_plus(y, x, coefficients[i]);
  return y;
}

DEVICE double quotient(double factor, const double (&above)[8], const double (&below)[8], double x) {
  return __ddiv_rn(__dmul_rn(factor, horner(above, x)), horner(below, x));
}

// -log(count / 2^54) of a whole number from 1 to 2^53.
DEVICE double minus_log(i64 count) {
  const double series[] = {LOG_SERIES};
  i64 bits = __double_as_longlong((double)count);
  int exponent = (int)(bits >> 52) - 1022; // count = m 2^exponent, 1/2 <= m < 1
  double m = __longlong_as_double((bits & 0xfffffffffffffll) | 0x3fe0000000000000ll);
  if (m < ROOT_HALF) m = __dmul_rn(m, 2), exponent--;
  double z = __ddiv_rn(__dsub_rn(m, 1), __dadd_rn(m, 1));
  return __dsub_rn(__dmul_rn(54 - exponent, LOG_2), __dmul_rn(z, horner(series, __dmul_rn(z, z))));
}

// The normal number of a word: the inverse distribution function at (k + 1/2) / 2^53, k the word's top 53 bits.
DEVICE double normal(u64 word) {
  const double centre_above[] = {CENTRE_ABOVE}, centre_below[] = {CENTRE_BELOW};
  const double middle_above[] = {MIDDLE_ABOVE}, middle_below[] = {MIDDLE_BELOW};
  const double far_above[] = {FAR_ABOVE}, far_below[] = {FAR_BELOW};
  i64 odd = (i64)(word >> 11) * 2 - 0x1fffffffffffffll;
  double q = __dmul_rn((double)odd, 0x1p-54); // the probability less 1/2, exactly
  if (fabs(q) <= NEAR) return quotient(q, centre_above, centre_below, __dsub_rn(NEAR_SQUARED, __dmul_rn(q, q)));
  double r = __dsqrt_rn(minus_log(0x20000000000000ll - (odd < 0 ? -odd : odd)));
  double size = r <= FAR_START ? quotient(1, middle_above, middle_below, __dsub_rn(r, MIDDLE_START))
                               : quotient(1, far_above, far_below, __dsub_rn(r, FAR_START));
  return odd < 0 ? -size : size;
}

// y [n], normal with mean 0 and variance 1, each from the word of its own place, rounded once to T; and the next state.
// One thread per block of words: 4 numbers. Grid ceil(n / 1024), at least 1; 256 threads; no shared memory.
// Floor: writes n numbers; about 80 instructions in double each, 130 in the tails, to which some lane of each warp goes.
extern "C" __global__ void __launch_bounds__(256) random_normal(T *y, u64 *next, const u64 *state, i64 n) {
  i64 block = (i64)blockIdx.x * 256 + threadIdx.x, first = block * 4;
  count_on(next, state);
  if (first >= n) return;
  u64 words[4];
  T numbers[4];
  philox(words, state[0], state[1], block + 1);
#pragma unroll
  for (int i = 0; i < 4; i++) numbers[i] = (T)normal(words[i]);
  put(y + first, numbers, n - first);
}
