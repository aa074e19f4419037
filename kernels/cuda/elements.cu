#include "portable.h"
#include "moves.cuh"

// y[i] = bits for i in [0, count): one word everywhere. Grid: count / 256. No shared memory. Floor: y is written once.
extern "C" __global__ void __launch_bounds__(256) fill(void *y, i64 count, i64 bits) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i < count) ((Word *)y)[i] = word_of(bits);
}
