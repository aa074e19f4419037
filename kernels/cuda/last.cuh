// What only the last of several blocks does: it goes on where the others have ended. Instead of a second kernel that
// waits for all of the first one.
#pragma once
#include "portable.h"

// Whether this block is the last of `count` that come here; it then sees what they had written when they came. The
// counter is theirs alone: 0 before the first one comes, and 0 again after the last one.
// Source: NVIDIA, CUDA C++ Programming Guide, memory fence functions: counting blocks that are done.
DEVICE bool is_last(int *counter, int count) {
  __shared__ int last;
  if (count > 1) __threadfence();
  __syncthreads();
  if (count == 1) return true;
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == count - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  const bool is_mine = last;
  if (is_mine) __threadfence();
  return is_mine;
}

// What another block of this launch has written: from the second cache, which all multiprocessors share.
template <class E> DEVICE E fresh(const E *from) {
  static_assert(sizeof(E) == 4 || sizeof(E) == 8 || sizeof(E) == 16, "one load");
  E found;
  if (sizeof(E) == 16) *reinterpret_cast<float4 *>(&found) = __ldcg(reinterpret_cast<const float4 *>(from));
  else if (sizeof(E) == 8) *reinterpret_cast<float2 *>(&found) = __ldcg(reinterpret_cast<const float2 *>(from));
  else *reinterpret_cast<float *>(&found) = __ldcg(reinterpret_cast<const float *>(from));
  return found;
}
