#include "portable.h"
// T: type of the elements, SUM: type of sums, INDEX: type of subscripts into all arrays.
// A list of entries, each with a key and a value per column, in which equal keys stand together (a run). It is cut into
// chunks, one per thread and column. A run that lies in one chunk is a sum and goes to y. One that is cut gives its
// chunks' sums to the next list, which has two entries per chunk: what was going on at its start, what goes on at its
// end. A list of one chunk has no runs that are cut.
#define CHUNK 32
#define AHEAD 8 // entries read before they are added, so that their loads wait for memory together
#define NOBODY (-1) // the key of what is added nowhere

// Entries of the first list: the elements that `order` names.
struct Elements {
  const T *g;
  const i64 *index, *order;
  INDEX taken, size, inner, start; // start: where the column of this thread starts in g
  __device__ i64 key(INDEX i) const {
    i64 k = index[order[i]], place = k < 0 ? k + size : k;
    return place >= 0 && place < size ? place : NOBODY;
  }
  __device__ SUM value(INDEX i) const { return (SUM)g[start + (INDEX)order[i] * inner]; }
};

// Entries of the lists after it.
struct Partials {
  const i64 *keys;
  const SUM *sums;
  INDEX columns, column;
  __device__ i64 key(INDEX i) const { return keys[i]; }
  __device__ SUM value(INDEX i) const { return keys[i] == NOBODY ? (SUM)0 : sums[i * columns + column]; }
};

// One chunk of a list of `count` entries, for one column. y: where the column starts; keys, sums: the next list.
template <class List>
DEVICE void add_up(const List &list, INDEX count, INDEX chunk, T *y, INDEX inner, i64 *keys, SUM *sums, INDEX columns,
                   INDEX column) {
  INDEX first = chunk * CHUNK, stop = min(first + CHUNK, count);
  i64 now = list.key(first), head = NOBODY, tail = NOBODY;
  SUM total = 0, head_sum = 0, tail_sum = 0;
  bool is_cut = first > 0 && list.key(first - 1) == now;
  for (INDEX base = first; base < stop; base += AHEAD) {
    i64 key[AHEAD];
    SUM value[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      INDEX i = min(base + (INDEX)j, stop - 1);
      key[j] = list.key(i);
      value[j] = list.value(i);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (base + j >= stop) break;
      if (key[j] != now) {
        if (is_cut)
          head = now, head_sum = total;
        else if (now != NOBODY)
          y[(INDEX)now * inner] = (T)total;
        is_cut = false, now = key[j], total = 0;
      }
      total = total + value[j];
    }
  }
  bool goes_on = stop < count && list.key(stop) == now;
  if (is_cut)
    head = now, head_sum = total;
  else if (goes_on)
    tail = now, tail_sum = total;
  else if (now != NOBODY)
    y[(INDEX)now * inner] = (T)total;
  if (count <= CHUNK) return;
  if (head == NOBODY) head = tail, head_sum = 0; // an entry that is not needed adds 0 to its neighbour
  if (tail == NOBODY) tail = head, tail_sum = 0;
  INDEX to = 2 * chunk;
  if (column == 0) keys[to] = head, keys[to + 1] = tail;
  if (head == NOBODY) return;
  sums[to * columns + column] = head_sum;
  sums[(to + 1) * columns + column] = tail_sum;
}

// y[o][index[k]][c] += g[o][k][c] in the order of k, where y holds zeros: the first list, and its cut runs to the next.
// y: [outer][size][inner], g: [outer][taken][inner], index, order: [taken], order: the stable order of the subscripts;
// keys: [2 chunks], sums: [2 chunks][outer inner]. Grid: chunks * columns / 256.
// No shared memory. Floor: g, index and order are read once, as many elements of y are written. Two blocks at a time
// leave registers enough for what is read ahead, with 64-bit subscripts too.
extern "C" __global__ void __launch_bounds__(256, 2)
add_elements(T *y, i64 *keys, SUM *sums, const T *__restrict__ g, const i64 *__restrict__ index,
             const i64 *__restrict__ order, i64 outer, i64 taken, i64 size, i64 inner) {
  INDEX i = (INDEX)blockIdx.x * 256 + threadIdx.x, columns = (INDEX)(outer * inner), chunk = i / columns;
  if (chunk * CHUNK >= (INDEX)taken) return;
  INDEX column = i - chunk * columns, o = column / (INDEX)inner, c = column - o * (INDEX)inner;
  Elements list = {g, index, order, (INDEX)taken, (INDEX)size, (INDEX)inner, o * (INDEX)(taken * inner) + c};
  add_up(list, (INDEX)taken, chunk, y + o * (INDEX)(size * inner) + c, (INDEX)inner, keys, sums, columns, column);
}

// The same for a later list: its `count` entries start at entry `from` of keys and sums, those of the next one at `to`.
// Grid: chunks * columns / 256. No shared memory. Floor: the entries are read once.
extern "C" __global__ void __launch_bounds__(256, 2)
add_partials(T *y, i64 *keys, SUM *sums, i64 from, i64 to, i64 count, i64 outer, i64 size, i64 inner) {
  INDEX i = (INDEX)blockIdx.x * 256 + threadIdx.x, columns = (INDEX)(outer * inner), chunk = i / columns;
  if (chunk * CHUNK >= (INDEX)count) return;
  INDEX column = i - chunk * columns, o = column / (INDEX)inner, c = column - o * (INDEX)inner;
  Partials list = {keys + from, sums + from * columns, columns, column};
  add_up(list, (INDEX)count, chunk, y + o * (INDEX)(size * inner) + c, (INDEX)inner, keys + to, sums + to * columns,
         columns, column);
}
