#include "portable.h"

// The number above x >= 0 is the one with the next bits. From the largest number on that is infinity.
DEVICE float next(float x) { return __int_as_float(__float_as_int(x) + 1); }
DEVICE double next(double x) { return __longlong_as_double(__double_as_longlong(x) + 1); }

// y[i] = distance from |x[i]| to the next larger number; NaN where x is infinite or NaN. x, y: [count].
// Grid: count / 256. No shared memory. Floor: x is read once, y is written once.
extern "C" __global__ void __launch_bounds__(256) spacing(T *__restrict__ y, const T *__restrict__ x, i64 count) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= count) return;
  T size = x[i] < 0 ? -x[i] : x[i] + 0; // + 0 makes -0 a 0
  y[i] = size < infinity(size) ? next(size) - size : not_a_number(size);
}
