#include "portable.h"

// mean[c] and var[c] (population variance) of columns whose `count` rows were described in blocks of `rows`:
// parts[block][0][c] is the mean, parts[block][1][c] the sum of squared deviations from it. All in double, in order:
// mean = sum n mean_i / count; var = sum (m2_i + n (mean_i - mean)^2) / count.
// parts [blocks][2][columns]; mean, var [columns]. Grid: a block of 8 x 32 threads for each 8 columns; the thread
// (c, i) takes the blocks i, i + 32, ... Shared memory: 2 KB. Floor: parts read once from DRAM, twice from the caches.
// Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
extern "C" __global__ void __launch_bounds__(256) merge_statistics(T *mean, T *var, const T *__restrict__ parts,
                                                                   i64 blocks, i64 columns, i64 rows, i64 count) {
  __shared__ double shared[32][8];
  const int lane = threadIdx.x % 8, first = threadIdx.x / 8;
  const i64 c = (i64)blockIdx.x * 8 + lane;
  double center = 0;
  for (int power = 1; power <= 2; power++) {
    double s = 0;
    if (c < columns)
      for (i64 i = first; i < blocks; i += 32) {
        const double n = count - i * rows < rows ? count - i * rows : rows;
        const double m = parts[i * 2 * columns + c], d = m - center;
        s += power == 1 ? n * m : parts[(i * 2 + 1) * columns + c] + n * d * d;
      }
    shared[first][lane] = s;
    __syncthreads();
    double total = 0;
    for (int i = 0; i < 32; i++) total += shared[i][lane];
    if (power == 1) center = total / count;
    if (first == 0 && c < columns) {
      if (power == 1) mean[c] = (T)center;
      else var[c] = (T)(total / count);
    }
    __syncthreads();
  }
}
