// Softmax along the rows of x [N, C], shifted by the row's maximum, and its derivative.
// Up to 1024 columns a row belongs to LANES threads of a warp, which hold it in registers; longer ones to a block.
// Sums are taken in double, in an order that depends on C alone.
// As in fmax, NaN does not count for the maximum; it spoils its row by exp, as an infinite maximum does.
// Constants: T, the type; C; LANES, a power of two, and EACH = ceil(C / LANES), numbers of a thread (rows kernels only).
#include "portable.h"

#define THREADS 256
#define ROWS (THREADS / LANES) // of a block
#define WARPS (THREADS / 32)

// Over the threads that share a row: every one of them gets the result.
DEVICE T rows_max(T value) {
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) value = fmax(value, __shfl_xor_sync(ALL_LANES, value, step));
  return value;
}
DEVICE double rows_sum(double value) {
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
  return value;
}

// Over the threads of a block, of which every one gets the result; shared: a number per warp.
DEVICE T block_max(T value, T *shared) {
#pragma unroll
  for (int step = 16; step; step /= 2) value = fmax(value, __shfl_xor_sync(ALL_LANES, value, step));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < WARPS; i++) value = fmax(value, shared[i]);
  return value;
}
DEVICE double block_sum(double value, double *shared) {
#pragma unroll
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < WARPS; i++) total += shared[i];
  return total;
}

// y [n, C] = exp(x) / sum(exp(x)) along the rows. Grid ceil(n / ROWS), 256 threads, no shared memory.
// Floor: reads x, writes y, 2 * n * C numbers.
extern "C" __global__ void __launch_bounds__(THREADS) softmax_rows(T *__restrict__ y, const T *__restrict__ x, i64 n) {
  int lane = threadIdx.x % LANES;
  i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / LANES, place = row * C + lane;
  int count = row < n ? C - lane : 0; // columns from the thread's first one on
  T values[EACH], top = -infinity((T)0);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    values[i] = i * LANES < count ? x[place + i * LANES] : -infinity((T)0); // of which exp makes 0
    top = fmax(top, values[i]);
  }
  top = rows_max(top);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    values[i] = exp(values[i] - top);
    sum += values[i];
  }
  T share = (T)(1 / rows_sum(sum));
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (i * LANES < count) y[place + i * LANES] = values[i] * share;
}

// The same for long rows, a block for each: grid n, 256 threads, static shared memory.
// Floor: reads x, writes y, 2 * n * C numbers; the second and third time x comes from a cache, if it fits.
// Four blocks a multiprocessor are enough; without that word exp in double would spill for more of them.
extern "C" __global__ void __launch_bounds__(THREADS, 4) softmax_long(T *__restrict__ y, const T *__restrict__ x) {
  __shared__ T tops[WARPS];
  __shared__ double sums[WARPS];
  i64 start = (i64)blockIdx.x * C;
  T top = -infinity((T)0);
#pragma unroll 4
  for (int i = threadIdx.x; i < C; i += THREADS) top = fmax(top, x[start + i]);
  top = block_max(top, tops);
  double sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < C; i += THREADS) sum += exp(x[start + i] - top);
  T share = (T)(1 / block_sum(sum, sums));
#pragma unroll 4
  for (int i = threadIdx.x; i < C; i += THREADS) y[start + i] = exp(x[start + i] - top) * share;
}

// dx [n, C] = y * (g - sum(g * y)) along the rows. Grid ceil(n / ROWS), 256 threads, no shared memory.
// Floor: reads g and y, writes dx, 3 * n * C numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_rows_grad(T *__restrict__ dx, const T *__restrict__ g, const T *__restrict__ y, i64 n) {
  int lane = threadIdx.x % LANES;
  i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / LANES, place = row * C + lane;
  int count = row < n ? C - lane : 0;
  T gradients[EACH], values[EACH];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    bool is_mine = i * LANES < count;
    gradients[i] = is_mine ? g[place + i * LANES] : 0;
    values[i] = is_mine ? y[place + i * LANES] : 0;
    sum += gradients[i] * values[i];
  }
  T total = (T)rows_sum(sum);
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (i * LANES < count) dx[place + i * LANES] = values[i] * (gradients[i] - total);
}

// The same for long rows, a block for each: grid n, 256 threads, static shared memory.
// Floor: reads g and y, writes dx, 3 * n * C numbers; the second time g and y come from a cache, if they fit.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_long_grad(T *__restrict__ dx, const T *__restrict__ g, const T *__restrict__ y) {
  __shared__ double sums[WARPS];
  i64 start = (i64)blockIdx.x * C;
  double sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < C; i += THREADS) sum += g[start + i] * y[start + i];
  T total = (T)block_sum(sum, sums);
#pragma unroll 4
  for (int i = threadIdx.x; i < C; i += THREADS) dx[start + i] = y[start + i] * (g[start + i] - total);
}
