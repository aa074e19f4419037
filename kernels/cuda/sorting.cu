#include "portable.h"
// X: type of what is sorted, KEY: an unsigned type as large, INDEX: type of subscripts, DESCENDING: 0 or 1.
// Numbers become whole ones of the same order (keys), so that one comparison sorts every type: merge sort, stable.
// First runs of RUN elements are sorted, then pairs of runs are merged, in as many passes as it takes.
#define RUN 2048
#define THREADS 256
#define ITEMS (RUN / THREADS)

// Of floating-point numbers: the bits, all of them turned round below zero. -0 equals 0; NaN of any bits is last.
DEVICE unsigned rising(float x) {
  unsigned bits = __float_as_uint(x + 0.0f);
  return is_nan(x) ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
}
DEVICE u64 rising(double x) {
  u64 bits = (u64)__double_as_longlong(x + 0.0);
  return is_nan(x) ? ~0ull : bits >> 63 ? ~bits : bits | 1ull << 63;
}
DEVICE KEY key_of(float x, i64) { return (KEY)(DESCENDING ? ~rising(x) : rising(x)); }
DEVICE KEY key_of(double x, i64) { return (KEY)(DESCENDING ? ~rising(x) : rising(x)); }
// Of subscripts into `size` elements: the place; behind all of them for one that is out of range.
DEVICE KEY key_of(i64 x, i64 size) {
  i64 place = x < 0 ? x + size : x;
  return (KEY)(place >= 0 && place < size ? place : size);
}

// How many of the sorted keys in [start, stop) come before one: those that are less, or also those that are equal.
DEVICE int count_before(const KEY *keys, int start, int stop, KEY key, bool with_equal) {
  int low = start, high = stop;
  while (low < high) {
    int middle = (low + high) / 2;
    bool is_before = with_equal ? keys[middle] <= key : keys[middle] < key;
    if (is_before)
      low = middle + 1;
    else
      high = middle;
  }
  return low - start;
}

// Rows of x, [outer][n][inner], are sorted along n in pieces of RUN elements. Where a row is one piece, a block has
// RUN / n rows, and y [outer][n][inner] gets, for each place in order, the place in x of what belongs there. Otherwise
// keys and places [outer inner][n] get each piece in order; places count along the row.
// Grid: pieces, or rows / (RUN / n). Shared memory: RUN keys and places, at most 24 KB.
// Floor: x is read once, y (or keys and places) is written once; 11 searches per element in shared memory.
// Three blocks at a time leave registers enough for keys of 64 bits.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
sort_runs(i64 *__restrict__ y, void *__restrict__ keys, INDEX *__restrict__ places, const X *__restrict__ x, i64 outer,
          i64 n, i64 inner, i64 size) {
  __shared__ KEY key[RUN];
  __shared__ int place[RUN];
  int t = threadIdx.x;
  bool is_whole = n <= RUN;
  INDEX pieces = is_whole ? 1 : (INDEX)((n + RUN - 1) / RUN), rows = (INDEX)(outer * inner);
  INDEX group = is_whole ? (INDEX)(RUN / n) : 1; // rows of a block
  INDEX first = (INDEX)blockIdx.x / pieces * group, offset = (INDEX)blockIdx.x % pieces * RUN;
  int height = (int)min(group, rows - first), length = (int)min((INDEX)RUN, (INDEX)n - offset);
  int count = height * length;

  // rows that lie side by side in memory are read side by side
  for (int s = t; s < count; s += THREADS) {
    int r = inner > 1 ? s % height : s / length, k = inner > 1 ? s / height : s % length;
    INDEX row = first + r, o = row / (INDEX)inner, c = row - o * (INDEX)inner;
    key[r * length + k] = key_of(x[(o * (INDEX)n + offset + k) * (INDEX)inner + c], size);
    place[r * length + k] = k;
  }
  __syncthreads();

  int base[ITEMS]; // where the row of each of this thread's elements starts
#pragma unroll
  for (int j = 0; j < ITEMS; j++) base[j] = (t + j * THREADS) / length * length;
  for (int width = 1; width < length; width *= 2) {
    KEY my_key[ITEMS];
    int my_place[ITEMS], to[ITEMS];
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      int s = t + j * THREADS;
      if (s >= count) break;
      my_key[j] = key[s], my_place[j] = place[s];
      int k = s - base[j], run = k & -width, pair = k & -2 * width;
      int start = min(run == pair ? pair + width : pair, length), stop = min(start + width, length);
      // of equal elements, those of the left run come first
      to[j] = base[j] + pair + (k - run) +
              count_before(key, base[j] + start, base[j] + stop, my_key[j], run != pair);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      if (t + j * THREADS >= count) break;
      key[to[j]] = my_key[j], place[to[j]] = my_place[j];
    }
    __syncthreads();
  }

  if (is_whole) {
    for (int s = t; s < count; s += THREADS) {
      int r = inner > 1 ? s % height : s / length, k = inner > 1 ? s / height : s % length;
      INDEX row = first + r, o = row / (INDEX)inner, c = row - o * (INDEX)inner;
      y[(o * (INDEX)n + k) * (INDEX)inner + c] = (o * (INDEX)n + place[r * length + k]) * (INDEX)inner + c;
    }
  } else {
    for (int s = t; s < count; s += THREADS) {
      INDEX to = first * (INDEX)n + offset + s;
      ((KEY *)keys)[to] = key[s];
      places[to] = offset + place[s];
    }
  }
}

// How many of the first `count` elements of two merged runs come from the first of them, a (left_count, right_count
// elements). A warp asks 32 places at a time.
DEVICE INDEX split(const KEY *a, INDEX left_count, const KEY *b, INDEX right_count, INDEX count) {
  INDEX low = max((INDEX)0, count - right_count), high = min(count, left_count);
  INDEX lane = threadIdx.x % 32;
  while (low < high) {
    INDEX step = (high - low + 31) / 32, asked = low + (lane + 1) * step - 1;
    bool is_taken = asked < high && a[asked] <= b[count - 1 - asked];
    INDEX taken = __popc(__ballot_sync(ALL_LANES, is_taken));
    high = min(high, low + (taken + 1) * step - 1);
    low += taken * step;
  }
  return low;
}

// Merges pairs of sorted runs of `width` elements (RUN times a power of two) in each row; the last run may be shorter
// or have no partner. Keys and places, [2][rows][n], go from one half to the other; in the last pass, y gets the places
// in x of what belongs to each place, as in sort_runs.
// Grid: rows * (n / RUN), a block merges RUN elements of one pair. Shared memory: RUN keys and places, at most 32 KB.
// Floor: keys and places are read once and written once.
extern "C" __global__ void __launch_bounds__(THREADS)
merge(i64 *__restrict__ y, void *keys, INDEX *places, i64 outer, i64 n, i64 inner, i64 width, i64 half, i64 is_last) {
  __shared__ KEY key[RUN];
  __shared__ INDEX place[RUN];
  __shared__ INDEX bounds[2];
  int t = threadIdx.x;
  INDEX pieces = (INDEX)((n + RUN - 1) / RUN), row = (INDEX)blockIdx.x / pieces;
  INDEX offset = (INDEX)blockIdx.x % pieces * RUN, total = (INDEX)(outer * n * inner);
  INDEX pair = offset & -2 * (INDEX)width, begin = offset - pair;
  INDEX left_count = min((INDEX)width, (INDEX)n - pair);
  INDEX right_count = min((INDEX)width, (INDEX)n - pair - left_count);
  INDEX end = min(begin + RUN, left_count + right_count);
  INDEX from = (INDEX)half * total + row * (INDEX)n + pair, to = (1 - (INDEX)half) * total + row * (INDEX)n + offset;
  const KEY *left = (const KEY *)keys + from, *right = left + left_count;

  if (t < 64) {
    INDEX found = split(left, left_count, right, right_count, t < 32 ? begin : end);
    if (t % 32 == 0) bounds[t / 32] = found;
  }
  __syncthreads();
  INDEX left_start = bounds[0], right_start = begin - left_start;
  int near = (int)(bounds[1] - left_start), count = (int)(end - begin); // `near` of the block's come from the left run

  KEY my_key[ITEMS];
  INDEX my_place[ITEMS];
  int order[ITEMS];
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    int s = t + j * THREADS;
    if (s >= count) break;
    INDEX i = s < near ? left_start + s : left_count + right_start + (s - near);
    key[s] = my_key[j] = left[i];
    my_place[j] = places[from + i];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    int s = t + j * THREADS;
    if (s >= count) break;
    order[j] = s < near ? s + count_before(key, near, count, my_key[j], false)
                        : s - near + count_before(key, 0, near, my_key[j], true);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    if (t + j * THREADS >= count) break;
    key[order[j]] = my_key[j], place[order[j]] = my_place[j];
  }
  __syncthreads();

  INDEX o = row / (INDEX)inner, c = row - o * (INDEX)inner;
  for (int s = t; s < count; s += THREADS) {
    if (is_last) {
      y[(o * (INDEX)n + offset + s) * (INDEX)inner + c] = (o * (INDEX)n + place[s]) * (INDEX)inner + c;
    } else {
      ((KEY *)keys)[to + s] = key[s];
      places[to + s] = place[s];
    }
  }
}
