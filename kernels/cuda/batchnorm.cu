// Batch normalization of x [N, C], channels last, by the statistics of its columns, and the derivative.
// A block has COLUMNS columns and ROWS rows of threads, so that a warp reads neighbours in memory for any C; it goes
// over a chunk of rows. Stage 1 sums up each chunk. In stage 2 each block first merges the sums of all chunks for its
// columns, which costs less than a launch in between, and then works on its chunk, which the cache may still hold.
// Sums are taken in double: a conversion and at most three operations per number read.
// Constants: T, the type; C; COLUMNS, ROWS; HALF, the largest power of two below ROWS (0 for ROWS = 1).
// Grid of all kernels: chunks x ceil(C / COLUMNS); COLUMNS * ROWS <= 512 threads; static shared memory, 8 bytes each.
#include "portable.h"

#define THREADS (COLUMNS * ROWS)

// A thread's place: its column among all C, the first of its rows, and where the chunk's rows end.
struct Place { int column, row; bool is_live; i64 begin, end; };

DEVICE Place place_of(i64 rows, i64 row_count) {
  Place p;
  p.column = blockIdx.y * COLUMNS + threadIdx.x % COLUMNS;
  p.row = threadIdx.x / COLUMNS;
  p.is_live = p.column < C;
  p.begin = (i64)blockIdx.x * rows + p.row;
  p.end = p.is_live ? min(((i64)blockIdx.x + 1) * rows, row_count) : 0;
  return p;
}

// The sum of `value` over the threads of a column, halves upon halves; every thread gets it. shared: THREADS doubles.
DEVICE double column_sum(double value, double *shared) {
  int row = threadIdx.x / COLUMNS, me = threadIdx.x;
  __syncthreads(); // the sum before has been read
  shared[me] = value;
  __syncthreads();
  for (int half = HALF; half; half /= 2) {
    if (row < half && row + half < ROWS) shared[me] += shared[me + half * COLUMNS];
    __syncthreads();
  }
  return shared[me % COLUMNS];
}

// sums [chunks, 2, C]: the mean of each chunk of rows less x's first row, and the sum of squared deviations from it.
// They come from sums of x - shift, where shift is the chunk's first row: near the numbers, so that no digits are lost
// far from zero.
// Grid: chunks x ceil(C / COLUMNS) blocks of THREADS. Shared memory: 8 bytes a thread. Floor: reads x, N * C numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_moments(double *__restrict__ sums, const T *__restrict__ x, i64 rows, i64 row_count) {
  __shared__ double shared[THREADS];
  Place p = place_of(rows, row_count);
  bool is_any = p.begin - p.row < p.end;
  double shift = is_any ? x[(p.begin - p.row) * C + p.column] : 0, first = is_any ? x[p.column] : 0;
  double total = 0, squares = 0;
#pragma unroll 8
  for (i64 row = p.begin; row < p.end; row += ROWS) {
    double deviation = (double)x[row * C + p.column] - shift;
    total += deviation;
    squares += deviation * deviation;
  }
  total = column_sum(total, shared);
  squares = column_sum(squares, shared);
  if (p.row || !p.is_live) return;
  double mean = total / (double)(p.end - p.begin);
  double *to = sums + (i64)blockIdx.x * 2 * C + p.column;
  to[0] = shift - first + mean;
  to[C] = squares - total * mean;
}

// y [N, C] = (x - mean) / sqrt(variance + epsilon) * scale + offset; mu, var [C], written by the first chunk's blocks.
// The merge takes two passes over the chunks: their mean, then the squares about it. share = 1 / N.
// Grid: chunks x ceil(C / COLUMNS) blocks of THREADS. Shared memory: 8 bytes a thread. Floor: reads x, writes y, 2 * N
// * C numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_normalize(T *__restrict__ y, T *__restrict__ mu, T *__restrict__ var, const T *__restrict__ x,
                    const T *__restrict__ offset, const T *__restrict__ scale, const double *__restrict__ sums,
                    i64 rows, i64 row_count, double share, double epsilon) {
  __shared__ double shared[THREADS];
  Place p = place_of(rows, row_count);
  const double *means = sums + p.column, *squares = means + C;
  int chunks = p.is_live ? gridDim.x : 0;
  double total = 0;
  for (int i = p.row; i < chunks; i += ROWS) total += means[(i64)i * 2 * C] * (double)(min(rows, row_count - i * rows));
  double mean = column_sum(total, shared) * share; // less x's first row, as above
  total = 0;
  for (int i = p.row; i < chunks; i += ROWS) {
    double step = means[(i64)i * 2 * C] - mean;
    total += squares[(i64)i * 2 * C] + step * step * (double)(min(rows, row_count - i * rows));
  }
  double variance = column_sum(total, shared) * share;
  if (variance < 0) variance = 0;
  if (!p.is_live) return;
  // In T from here on. The mean is taken away in two parts: rounded to T alone, it would shift y far from zero.
  double first = row_count ? x[p.column] : 0;
  T high = (T)(first + mean), low = (T)(first - (double)high + mean);
  T factor = scale[p.column] / sqrt((T)variance + (T)epsilon), level = offset[p.column];
  if (blockIdx.x == 0 && p.row == 0) mu[p.column] = high, var[p.column] = (T)variance;
#pragma unroll 8
  for (i64 row = p.begin; row < p.end; row += ROWS) {
    i64 i = row * C + p.column;
    y[i] = (x[i] - high - low) * factor + level;
  }
}

// sums [chunks, 2, C]: for each chunk of rows, the sums of g and of g * (x - mu).
// Grid: chunks x ceil(C / COLUMNS) blocks of THREADS. Shared memory: 8 bytes a thread. Floor: reads g and x, 2 * N * C
// numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_grad_sums(double *__restrict__ sums, const T *__restrict__ g, const T *__restrict__ x,
                    const T *__restrict__ mu, i64 rows, i64 row_count) {
  __shared__ double shared[THREADS];
  Place p = place_of(rows, row_count);
  double total = 0, product = 0;
  T mean = p.is_live ? mu[p.column] : (T)0;
#pragma unroll 8
  for (i64 row = p.begin; row < p.end; row += ROWS) {
    i64 i = row * C + p.column;
    double gradient = g[i];
    total += gradient;
    product += gradient * (double)(x[i] - mean);
  }
  total = column_sum(total, shared);
  product = column_sum(product, shared);
  if (p.row || !p.is_live) return;
  double *to = sums + (i64)blockIdx.x * 2 * C + p.column;
  to[0] = total;
  to[C] = product;
}

// dx [N, C] = scale / deviation * (g - doffset / N - xhat * dscale / N); doffset, dscale [C]: sums over the rows of g and
// of g * xhat, xhat = (x - mu) / deviation, deviation = sqrt(var + epsilon). share = 1 / N.
// Grid: chunks x ceil(C / COLUMNS) blocks of THREADS. Shared memory: 8 bytes a thread. Floor: reads g and x, writes
// dx, 3 * N * C numbers.
extern "C" __global__ void __launch_bounds__(THREADS)
batchnorm_normalize_grad(T *__restrict__ dx, T *__restrict__ doffset, T *__restrict__ dscale, const T *__restrict__ g,
                         const T *__restrict__ x, const T *__restrict__ mu, const T *__restrict__ var,
                         const T *__restrict__ scale, const double *__restrict__ sums, i64 rows, i64 row_count,
                         double share, double epsilon) {
  __shared__ double shared[THREADS];
  Place p = place_of(rows, row_count);
  int chunks = p.is_live ? gridDim.x : 0;
  double total = 0, product = 0;
  for (int i = p.row; i < chunks; i += ROWS) {
    total += sums[(i64)i * 2 * C + p.column];
    product += sums[(i64)i * 2 * C + C + p.column];
  }
  total = column_sum(total, shared);
  product = column_sum(product, shared);
  if (!p.is_live) return;
  T inverse = 1 / sqrt(var[p.column] + (T)epsilon), mean = mu[p.column], factor = scale[p.column] * inverse;
  T slope = (T)product * inverse; // dscale
  if (blockIdx.x == 0 && p.row == 0) doffset[p.column] = (T)total, dscale[p.column] = slope;
  T level = (T)(total * share);
  slope *= inverse * (T)share;
#pragma unroll 8
  for (i64 row = p.begin; row < p.end; row += ROWS) {
    i64 i = row * C + p.column;
    dx[i] = (g[i] - level - (x[i] - mean) * slope) * factor;
  }
}
