#include "portable.h"
// T: type of x, INDEX: type of subscripts, LANES: threads of a row (1, 32 or 256), KEPT, REDUCED: how many dimensions
// stay, and are reduced. Dimensions come in the order of memory, as arguments (PARAMETERS) and as an array (TABLE):
// size and stride of each one that stays; size, stride and rank of each reduced one. The rank of an element of a row is
// the sum of its subscripts times these ranks: of equal elements the one of the lowest rank is wanted.
#define THREADS 256

// An element of a row. NaN is worse than any number; the first candidate is a NaN of rank 0.
struct Candidate {
  T value;
  INDEX rank;
  __device__ void meet(T other, INDEX other_rank) {
    bool is_better = other > value || (is_nan(value) && !is_nan(other)) || (other == value && other_rank < rank);
    if (is_better) value = other, rank = other_rank;
  }
};

// Where a row starts in x.
DEVICE INDEX start_of(const INDEX *table, INDEX row) {
  INDEX start = 0;
#pragma unroll
  for (int d = KEPT - 1; d >= 0; d--) {
    start += row % table[2 * d] * table[2 * d + 1];
    row /= table[2 * d];
  }
  return start;
}

// Where the element of this rank is, from the start of its row.
DEVICE INDEX offset_of(const INDEX *table, INDEX rank) {
  const INDEX *reduced = table + 2 * KEPT;
  INDEX offset = 0;
#pragma unroll
  for (int d = 0; d < REDUCED; d++) offset += rank / reduced[3 * d + 2] % reduced[3 * d] * reduced[3 * d + 1];
  return offset;
}

// The best of the 32 candidates of a warp, in every lane. The order in which they meet does not matter.
DEVICE Candidate best_of_warp(Candidate best) {
#pragma unroll
  for (int d = 16; d; d /= 2) {
    T value = __shfl_xor_sync(ALL_LANES, best.value, d);
    INDEX rank = __shfl_xor_sync(ALL_LANES, best.rank, d);
    best.meet(value, rank);
  }
  return best;
}

// y[row] = place in x of the largest element of a row of `count` elements; NaNs count only where there is nothing else.
// Rows are cut into `parts`; where there are several, values and ranks [parts][rows] get the best of each instead.
// LANES threads read a row together, so that neighbours read neighbours: 1 if rows lie side by side in memory.
// Grid: parts * rows / (THREADS / LANES). Shared memory: 8 candidates. Floor: x is read once.
extern "C" __global__ void __launch_bounds__(THREADS)
argmax(i64 *__restrict__ y, void *__restrict__ values, i64 *__restrict__ ranks, const T *__restrict__ x, i64 rows,
       i64 count, i64 parts, PARAMETERS) {
  const INDEX table[] = {TABLE};
  const INDEX *reduced = table + 2 * KEPT;
  int lane = threadIdx.x % LANES;
  INDEX item = (INDEX)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
  bool is_row = item < (INDEX)(rows * parts);
  INDEX part = is_row ? item / (INDEX)rows : 0, row = is_row ? item - part * (INDEX)rows : 0;
  INDEX length = (INDEX)((count + parts - 1) / parts), stop = is_row ? min((part + 1) * length, (INDEX)count) : 0;
  INDEX start = start_of(table, row);
  Candidate best = {not_a_number((T)0), 0};
#pragma unroll 4
  for (INDEX j = part * length + lane; j < stop; j += LANES) {
    INDEX rest = j, offset = 0, rank = 0;
#pragma unroll
    for (int d = REDUCED - 1; d >= 0; d--) {
      INDEX subscript = d ? rest % reduced[3 * d] : rest;
      if (d) rest /= reduced[3 * d];
      offset += subscript * reduced[3 * d + 1];
      rank += subscript * reduced[3 * d + 2];
    }
    best.meet(x[start + offset], rank);
  }
#if LANES > 1
  best = best_of_warp(best);
#endif
#if LANES > 32
  __shared__ T warp_value[THREADS / 32];
  __shared__ INDEX warp_rank[THREADS / 32];
  if (threadIdx.x % 32 == 0) warp_value[threadIdx.x / 32] = best.value, warp_rank[threadIdx.x / 32] = best.rank;
  __syncthreads();
  for (int w = 0; w < THREADS / 32; w++) best.meet(warp_value[w], warp_rank[w]);
#endif
  if (!is_row || lane) return;
  if (parts == 1)
    y[row] = start + offset_of(table, best.rank);
  else
    ((T *)values)[item] = best.value, ranks[item] = best.rank;
}

// y[row] from the best of each part, [parts][rows]; a warp takes a row. Grid: rows / 8. No shared memory. Floor: these
// are read once.
extern "C" __global__ void __launch_bounds__(THREADS)
argmax_parts(i64 *__restrict__ y, const void *__restrict__ values, const i64 *__restrict__ ranks, i64 rows, i64 parts,
             PARAMETERS) {
  const INDEX table[] = {TABLE};
  INDEX row = (INDEX)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  bool is_row = row < (INDEX)rows;
  Candidate best = {not_a_number((T)0), 0};
  for (INDEX part = threadIdx.x % 32; is_row && part < (INDEX)parts; part += 32)
    best.meet(((const T *)values)[part * (INDEX)rows + row], (INDEX)ranks[part * (INDEX)rows + row]);
  best = best_of_warp(best);
  if (is_row && threadIdx.x % 32 == 0) y[row] = start_of(table, row) + offset_of(table, best.rank);
}
