#include "portable.h"
#include "moves.cuh"
// INDEX: type of subscripts into all arrays. ELEMENT, SOURCE: what `select` writes and reads, each Word or a type.

// Where a subscript points along a dimension of this size; -1 if nowhere.
DEVICE i64 place_of(i64 subscript, i64 size) {
  i64 place = subscript < 0 ? subscript + size : subscript;
  return place >= 0 && place < size ? place : -1;
}

// y[o][k][c] = x[o][index[k]][c], `missing` for a subscript that is out of range.
// y: [outer][taken][inner], x: [outer][size][inner] words, index: [taken]. Grid: words of y / 256, one thread for each.
// No shared memory. Floor: y is written once, as much of x is read (whole sectors of 32 bytes where inner is less),
// index is read once.
extern "C" __global__ void __launch_bounds__(256)
gather(void *y, const void *__restrict__ x, const i64 *__restrict__ index, i64 outer, i64 taken, i64 size, i64 inner,
       i64 missing) {
  INDEX i = (INDEX)blockIdx.x * 256 + threadIdx.x;
  if (i >= (INDEX)(outer * taken * inner)) return;
  INDEX row = i / (INDEX)inner, column = i - row * (INDEX)inner, o = row / (INDEX)taken;
  INDEX place = (INDEX)place_of(index[row - o * (INDEX)taken], size);
  ((Word *)y)[i] = place < 0 ? word_of(missing) : ((const Word *)x)[(o * (INDEX)size + place) * (INDEX)inner + column];
}

// last[n] = the largest k with index[k] = n; it holds -1 before. last: [size], index: [taken]. Grid: taken / 256.
// A largest number is the same in any order, so the result does not depend on which thread comes first.
// No shared memory. Floor: index is read once, as many places of `last` are read and written.
extern "C" __global__ void __launch_bounds__(256)
mark(INDEX *last, const i64 *__restrict__ index, i64 taken, i64 size) {
  INDEX k = (INDEX)blockIdx.x * 256 + threadIdx.x;
  if (k >= (INDEX)taken) return;
  i64 place = place_of(index[k], size);
  if (place >= 0) atomicMax(last + place, k);
}

// y[o][n][c] = v[o][last[n]][c], or x[o][n][c] where last[n] is -1; with IS_NUMBER the number `bits` instead of v.
// x, y: [outer][size][inner], v: [outer][taken][inner], last: [size]. Grid: elements of y / 256, one thread for each.
// Each place of y asks who writes to it, so that y is written once, in order. No shared memory. Floor: y is written, v
// or x is read.
extern "C" __global__ void __launch_bounds__(256)
choose(void *y, const void *__restrict__ x, const void *__restrict__ v, const INDEX *__restrict__ last, i64 outer,
       i64 taken, i64 size, i64 inner, i64 bits) {
  INDEX i = (INDEX)blockIdx.x * 256 + threadIdx.x;
  if (i >= (INDEX)(outer * size * inner)) return;
  INDEX row = i / (INDEX)inner, column = i - row * (INDEX)inner, o = row / (INDEX)size;
  INDEX k = last[row - o * (INDEX)size];
#if IS_NUMBER
  ((Word *)y)[i] = k < 0 ? ((const Word *)x)[i] : word_of(bits);
#else
  ((ELEMENT *)y)[i] =
      k < 0 ? ((const ELEMENT *)x)[i] : (ELEMENT)((const SOURCE *)v)[(o * (INDEX)taken + k) * (INDEX)inner + column];
#endif
}
