#include "portable.h"
#include "words.cuh"

// Sums of columns from the partial sums of BLOCKS blocks of rows, added in a fixed order, and what becomes of them.
// contract.py writes what one thread reads (//@ reads) and does (//@ finish) for column c, over the sums s0, s1, ...
// Constants: T, the type of the contraction; COLUMN_SUMS: sums of each column; COLUMNS; BLOCKS; WARPS of a block here;
// EXTRAS: the other arrays of the contraction.
// partials [BLOCKS][COLUMN_SUMS][COLUMNS]. Grid: a block of WARPS x 4 x 8 threads for each 8 columns; the thread (i, c)
// adds the blocks i, i + 4 WARPS, ..., then warps add across, then one thread for each column adds the warps.
// Shared memory: 64 bytes for each warp and sum. Floor: partials read once.
extern "C" __global__ void __launch_bounds__(WARPS * 32) add_rows(const double *__restrict__ partials EXTRAS) {
  __shared__ double shared[WARPS][COLUMN_SUMS][8];
  const int lane = threadIdx.x % 8, first = threadIdx.x / 8, warp = threadIdx.x / 32;
  const i64 c = (i64)blockIdx.x * 8 + lane;
  const bool is_mine = first == 0 && c < COLUMNS;
  double s[COLUMN_SUMS];
#pragma unroll
  for (int n = 0; n < COLUMN_SUMS; n++) s[n] = 0;
  if (c < COLUMNS) {
#pragma unroll 4
    for (i64 i = first; i < BLOCKS; i += 4 * WARPS)
#pragma unroll
      for (int n = 0; n < COLUMN_SUMS; n++) s[n] += partials[(i * COLUMN_SUMS + n) * COLUMNS + c];
  }
#pragma unroll
  for (int n = 0; n < COLUMN_SUMS; n++) {
    s[n] += __shfl_xor_sync(ALL_LANES, s[n], 8);
    s[n] += __shfl_xor_sync(ALL_LANES, s[n], 16);
    if (threadIdx.x % 32 < 8) shared[warp][n][lane] = s[n];
  }
  __syncthreads();
  if (is_mine) {
#pragma unroll
    for (int n = 0; n < COLUMN_SUMS; n++) {
      s[n] = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) s[n] += shared[w][n][lane];
    }
//@ reads
//@ finish
  }
}
