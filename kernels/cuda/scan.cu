#include "portable.h"
// T: type of x and y, PRODUCT: 0 for sums and 1 for products, INDEX: type of subscripts, LEVEL: see below.
// A row that is too long for one block or thread is cut into parts. Then the total of each part is written, the totals
// are scanned (by the same kernels, at the next level), and each part is scanned from what came before it.
// LEVEL 0 scans x; LEVEL 1 scans totals in place, from entry `from` on; the totals of a level start at entry `to`.
#define THREADS 256
#define ROUNDS 8
#define STRIP (32 * ROUNDS)               // elements of a warp
#define TILE (THREADS / 32 * STRIP)       // elements of a block
#define TOTALS 1 // what a launch does, if not everything: write the total of each part
#define REST 2   // scan each part, from the scanned totals

#if PRODUCT
// A number m 2^e with 1/4 <= |m| < 1, or 0, infinity, NaN: a product of any part of a row is as exact as one from the
// start of the row. As a double it could overflow where the running product itself does not.
struct Value { double m; i64 e; };
#define WIDTH 2 // doubles of a total
DEVICE Value neutral() { return Value{1, 0}; }
DEVICE Value combined(Value a, Value b) {
  Value c = {a.m * b.m, a.e + b.e};
  if (c.m != 0 && fabs(c.m) < 0.25) c.m *= 4, c.e -= 2;
  return c;
}
DEVICE Value value_of(double x) {
  i64 shift = 0;
  if (x != 0 && fabs(x) < 2.2250738585072014e-308) x *= 18014398509481984.0, shift = 54; // 2^54 for subnormal numbers
  i64 bits = __double_as_longlong(x), e = bits >> 52 & 0x7ff;
  if (e == 0 || e == 0x7ff) return Value{x, 0};
  return Value{__longlong_as_double((bits & ~(0x7ffll << 52)) | 1022ll << 52), e - 1022 - shift};
}
DEVICE double number_of(Value v) { return ldexp(v.m, (int)max(-4000ll, min(v.e, 4000ll))); }
DEVICE Value load_total(const double *p) { return Value{p[0], (i64)p[1]}; }
DEVICE void store_total(double *p, Value v) { p[0] = v.m, p[1] = (double)v.e; }
DEVICE Value shuffled_up(Value v, int d) {
  return Value{__shfl_up_sync(ALL_LANES, v.m, d), __shfl_up_sync(ALL_LANES, v.e, d)};
}
DEVICE Value of_last_lane(Value v) { return Value{__shfl_sync(ALL_LANES, v.m, 31), __shfl_sync(ALL_LANES, v.e, 31)}; }
#else
typedef double Value;
#define WIDTH 1
DEVICE Value neutral() { return 0; }
DEVICE Value combined(Value a, Value b) { return a + b; }
DEVICE Value value_of(double x) { return x; }
DEVICE double number_of(Value v) { return v; }
DEVICE Value load_total(const double *p) { return *p; }
DEVICE void store_total(double *p, Value v) { *p = v; }
DEVICE Value shuffled_up(Value v, int d) { return __shfl_up_sync(ALL_LANES, v, d); }
DEVICE Value of_last_lane(Value v) { return __shfl_sync(ALL_LANES, v, 31); }
#endif

#if LEVEL
DEVICE Value load(const T *, const double *totals, INDEX i) { return load_total(totals + WIDTH * i); }
DEVICE void store(T *, double *totals, INDEX i, Value v) { store_total(totals + WIDTH * i, v); }
#else
DEVICE Value load(const T *x, const double *, INDEX i) { return value_of((double)x[i]); }
DEVICE void store(T *y, double *, INDEX i, Value v) { y[i] = (T)number_of(v); }
#endif

// Rows of elements that follow each other in memory: x, y [rows][n], totals [rows][parts]. A block has a tile: as many
// whole rows as fit, or where n > TILE, one of the `parts` parts of a row. A warp scans a strip, in rounds of 32, and
// then each element takes what earlier rounds and strips know of its row.
// Grid: tiles. Shared memory: 8 totals. Floor: x is read once (twice where rows are cut), y is written once.
extern "C" __global__ void __launch_bounds__(THREADS)
scan_rows(T *y, double *totals, const T *x, i64 from, i64 to, i64 rows, i64 n, i64 parts, i64 task) {
  __shared__ double strip_totals[WIDTH * (THREADS / 32)];
  int lane = threadIdx.x % 32, strip = threadIdx.x / 32;
  bool is_cut = parts > 1;
  INDEX row = 0, part = 0, start, left;
  int length; // of a row, as far as this block sees it
  if (is_cut) {
    row = (INDEX)blockIdx.x / (INDEX)parts, part = (INDEX)blockIdx.x - row * (INDEX)parts;
    start = row * (INDEX)n + part * TILE, left = (INDEX)n - part * TILE, length = TILE;
  } else {
    int tile = TILE / (int)n * (int)n;
    start = (INDEX)blockIdx.x * tile, left = (INDEX)(rows * n) - start, length = (int)n;
  }
  int count = (int)min(left, (INDEX)(is_cut ? TILE : TILE / length * length));
  double *entries = totals + WIDTH * from, *next = totals + WIDTH * (to + row * (INDEX)parts + part);

  Value scanned[ROUNDS];
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    int s = strip * STRIP + r * 32 + lane;
    scanned[r] = s < count ? load(x, entries, start + s) : neutral();
  }
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    int before = (strip * STRIP + r * 32 + lane) % length; // how many elements of its row come before this one
    Value v = scanned[r];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      Value other = shuffled_up(v, d);
      if (lane >= d && before >= d) v = combined(other, v);
    }
    if (r) {
      Value other = of_last_lane(scanned[r - 1]);
      if (before > lane) v = combined(other, v);
    }
    scanned[r] = v;
  }
  if (lane == 31) store_total(strip_totals + WIDTH * strip, scanned[ROUNDS - 1]);
  __syncthreads();

  Value carry = neutral(); // of the row that goes on in this strip
  for (int u = 0; u < strip; u++) {
    Value total = load_total(strip_totals + WIDTH * u);
    bool began_before = (u * STRIP + STRIP - 1) % length >= STRIP;
    carry = began_before ? combined(carry, total) : total;
  }
  Value of_row = task == REST && part > 0 ? load_total(next - WIDTH) : neutral();
  for (int r = 0; r < ROUNDS; r++) {
    int s = strip * STRIP + r * 32 + lane, before = s % length;
    if (s >= count) break;
    Value v = before > r * 32 + lane ? combined(carry, scanned[r]) : scanned[r];
    if (task == TOTALS) {
      if (s == count - 1) store_total(next, v);
    } else {
      store(y, entries, start + s, task == REST && part > 0 ? combined(of_row, v) : v);
    }
  }
}

// Rows across memory: x, y [outer][n][inner], totals [outer][parts][inner]. A thread has one of the `parts` parts of a
// row, of `length` elements, one after the other; neighbours have neighbouring rows.
// Grid: outer * parts * inner / 256. No shared memory. Floor: x is read once (twice where rows are cut), y is written
// once.
#define AHEAD 8 // elements read before they are combined, so that their loads wait for memory together
extern "C" __global__ void __launch_bounds__(THREADS)
scan_columns(T *y, double *totals, const T *x, i64 from, i64 to, i64 outer, i64 n, i64 inner, i64 parts, i64 length,
             i64 task) {
  INDEX item = (INDEX)blockIdx.x * THREADS + threadIdx.x;
  if (item >= (INDEX)(outer * parts * inner)) return;
  INDEX rest = item / (INDEX)inner, c = item - rest * (INDEX)inner, o = rest / (INDEX)parts;
  INDEX part = rest - o * (INDEX)parts;
  INDEX first = part * (INDEX)length, stop = min(first + (INDEX)length, (INDEX)n), start = o * (INDEX)(n * inner) + c;
  double *entries = totals + WIDTH * from, *next = totals + WIDTH * (to + item);
  Value v = task == REST && part > 0 ? load_total(next - WIDTH * (INDEX)inner) : neutral();
  for (INDEX base = first; base < stop; base += AHEAD) {
    Value element[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
      if (base + j < stop) element[j] = load(x, entries, start + (base + j) * (INDEX)inner);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (base + j >= stop) break;
      v = combined(v, element[j]);
      if (task != TOTALS) store(y, entries, start + (base + j) * (INDEX)inner, v);
    }
  }
  if (task == TOTALS) store_total(next, v);
}
