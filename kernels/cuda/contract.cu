#include "portable.h"
#include "words.cuh"
#include "last.cuh"
// Contractions: y[i] = sum over r of a[i, r] * b[i, r], with affine subscripts, as tiles of a matrix product.
//
// Indices of y and a are rows, of y and b columns, of all three the batch, and those that y does not have are the
// terms that are added up. Where an element lies is the sum of what its row (or column) and its term say, and whether
// it lies within bounds is a matter of such sums; so no array is copied to another order, and zeros around an image
// exist nowhere. All that is known of a problem stands in structs that contract.py writes, one for each part:
//
//   Part    BATCH, M, N, K: sizes; FIRST: the place of its first sum in `sums`; FIRST_TILE: how many tiles others have;
//           FIRST_BLOCK, FIRST_GROUP: its first row of partial sums, its first group of these rows; KEPT: so many
//           neighbours of the batch have columns of their own
//   Part::A row(z, m), step(k): Where, the two parts; inside(row, step); common<W>(row, step): what goes with W
//           neighbours in other arrays, and is the same for all packs of the step (ALONG_K) or of the row; own<W>(row,
//           step): what differs; made(x, common, own, v): what becomes of the number v of them; SIZE x BK: a tile of it
//   Part::B the same for (z, n), k
//   Part::Y row(z, m), step(n); finished(x, row, step, added): what becomes of neighbouring results before they are
//           stored; stores what else is made of them, and adds to the sums of their column, whose number is the place
//           COLUMN among `read`
//
// Constants: T (element type), WHOLE and NATURAL (whole numbers that hold every place, with and without sign), THREADS,
// BM x BN: a block's part of the result, TM x TN: a thread's (or, with TENSOR, WARPS_M x WARPS_N warps), BK: terms of a
// tile, PAD: elements between a tile's lines, TOGETHER: blocks that shall fit on a multiprocessor; SLICES: of the terms,
// each with sums of its own, GROUP_SLICES: of a group of them, COUNTERS_OF_SLICES, TILES_IN_ALL; KEEPS_Y: whether y is
// stored; COLUMN_SUMS: how many sums there are of each column, SUM_COLUMNS: columns; IS_JOINED: the last block does what
// waits for all others: with sums of columns it adds up FIRST_SUMMED ... LAST_SUMMED, the rows of partial sums (all
// SUMMED_ROWS, or what ROW_GROUPS groups of GROUP_ROWS have made of them) and does what is to be done for column c
// (//@ reads, then, over the sums s[n], //@ finish), then what is //@ behind; EXTRAS and PASSED: more arrays, for
// common, own and finished, and before them `partials`, if there are such sums.
// Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), for the tiles; Chetlur et
// al., cuDNN: Efficient Primitives for Deep Learning (2014), for matrices that are never formed.

typedef WHOLE I;
typedef NATURAL U;

template <class E, int V> struct alignas(sizeof(E) * V < 16 ? sizeof(E) * V : 16) Pack { E v[V]; };

// A row's, a column's or a term's part of where an element lies: the place itself, the positions that have to be within
// bounds, and the places in the other arrays.
template <int CHECKS, int READS> struct Where {
  I at;
  I check[CHECKS > 0 ? CHECKS : 1];
  I read[READS > 0 ? READS : 1];
};

// W neighbours of another array: at one address (IS_PACK), or `beside` apart.
template <class E, int W, bool IS_PACK> DEVICE Pack<E, W> taken(const E *__restrict__ from, I beside) {
  Pack<E, W> pack;
  if (IS_PACK) pack = *reinterpret_cast<const Pack<E, W> *>(from);
  else {
#pragma unroll
    for (int v = 0; v < W; v++) pack.v[v] = from[v * beside];
  }
  return pack;
}
// The same, to store them.
template <class E, int W, bool IS_PACK> DEVICE void give(E *to, I beside, const Pack<E, W> &pack) {
  if (IS_PACK) *reinterpret_cast<Pack<E, W> *>(to) = pack;
  else {
#pragma unroll
    for (int v = 0; v < W; v++) to[v * beside] = pack.v[v];
  }
}

constexpr int COUNT = COLUMN_SUMS > 0 ? COLUMN_SUMS : 1;
typedef double Added[COUNT]; // to the sums of a column

//@ parts

// How the threads of a block share the loading of a tile: each takes LOADS packs of V neighbours along the terms
// (ALONG_K) or along the rows. Its packs lie in ROWS different rows.
template <class O> struct Share {
  static constexpr int PACKS = O::SIZE * BK / O::V, LOADS = (PACKS + THREADS - 1) / THREADS;
  static constexpr int LINE = O::ALONG_K ? BK / O::V : O::SIZE / O::V; // packs side by side
  static constexpr int ROWS = O::ALONG_K ? LOADS : (LINE > THREADS ? LINE / THREADS : 1);
  static_assert(!O::ALONG_K || THREADS % LINE == 0, "a thread's packs belong to the same terms");
  static_assert(LOADS <= 32, "a bit for each pack");
};

template <class O> DEVICE int row_of(O, int load) {
  const int pack = threadIdx.x + load * THREADS, line = Share<O>::LINE;
  return O::ALONG_K ? pack / line : pack % line * O::V;
}

template <class O> DEVICE int term_of(O, int load) {
  const int pack = threadIdx.x + load * THREADS, line = Share<O>::LINE;
  return O::ALONG_K ? threadIdx.x % line * O::V : pack / line;
}

// A thread's part of a tile on its way: packs, a bit in `found` for each that is there, what goes with their numbers.
template <class O> struct Held {
  typename O::Place rows[Share<O>::ROWS];
  Pack<T, O::V> packs[Share<O>::LOADS];
  unsigned found;
  typename O::template Common<O::V> common[O::ALONG_K ? 1 : Share<O>::ROWS];
  typename O::template Own<O::V> own[Share<O>::LOADS];
};

// Find a thread's rows, and what goes with all numbers of a row.
template <class O> DEVICE void begin(O operand, Held<O> &held, I z, I first EXTRAS) {
#pragma unroll
  for (int r = 0; r < Share<O>::ROWS; r++) {
    const I row = first + row_of(operand, r);
    held.rows[r] = operand.row(z, row);
    if (O::HAS_COMMON && !O::ALONG_K && (O::ROWS_IN_ALL % O::SIZE == 0 || row < O::ROWS_IN_ALL))
      held.common[r] = operand.template common<O::V>(held.rows[r], operand.step(0) PASSED);
  }
}

// Read a thread's part of a tile into registers, zeros for what is not there.
template <class O> DEVICE void fetch(O operand, Held<O> &held, const T *__restrict__ x, I first, I first_k EXTRAS) {
  held.found = 0;
  const I mine = first_k + term_of(operand, 0);
  if (O::HAS_COMMON && O::ALONG_K && (O::TERMS_IN_ALL % BK == 0 || mine < O::TERMS_IN_ALL))
    held.common[0] = operand.template common<O::V>(held.rows[0], operand.step(mine) PASSED);
#pragma unroll
  for (int l = 0; l < Share<O>::LOADS; l++) {
    const I k = first_k + term_of(operand, l);
    const typename O::Place row = held.rows[l % Share<O>::ROWS], step = operand.step(k);
    bool is_there = operand.inside(row, step);
    if (O::ROWS_IN_ALL % O::SIZE) is_there = is_there && first + row_of(operand, l) < O::ROWS_IN_ALL;
    if (O::TERMS_IN_ALL % BK) is_there = is_there && k < O::TERMS_IN_ALL;
    if (Share<O>::PACKS % THREADS) is_there = is_there && (int)threadIdx.x + l * THREADS < Share<O>::PACKS;
    if (is_there) {
      held.packs[l] = *reinterpret_cast<const Pack<T, O::V> *>(x + (row.at + step.at));
      held.found |= 1u << l;
      if (O::HAS_OWN) held.own[l] = operand.template own<O::V>(row, step PASSED);
    } else {
#pragma unroll
      for (int v = 0; v < O::V; v++) held.packs[l].v[v] = 0;
    }
  }
}

// Put what was read into shared memory, tile[term][row], changed as the problem wants it.
template <class O> DEVICE void put(O operand, Held<O> &held, T *tile) {
  constexpr int LINE = O::SIZE + PAD;
#pragma unroll
  for (int l = 0; l < Share<O>::LOADS; l++) {
    if (Share<O>::PACKS % THREADS && (int)threadIdx.x + l * THREADS >= Share<O>::PACKS) continue;
    const int row = row_of(operand, l), term = term_of(operand, l);
    Pack<T, O::V> &pack = held.packs[l];
    if (O::IS_CHANGED && (held.found >> l & 1)) {
#pragma unroll
      for (int v = 0; v < O::V; v++)
        pack.v[v] = operand.made(pack.v[v], held.common[O::ALONG_K ? 0 : l % Share<O>::ROWS], held.own[l], v);
    }
#if TENSOR
#pragma unroll
    for (int v = 0; v < O::V; v++) pack.v[v] = to_tf32(pack.v[v]);
#endif
    if (O::ALONG_K) {
#pragma unroll
      for (int v = 0; v < O::V; v++) tile[(term + v) * LINE + row] = pack.v[v];
    } else
      *reinterpret_cast<Pack<T, O::V> *>(tile + term * LINE + row) = pack;
  }
}

// What a thread has of its block's result: VALUES_M x VALUES_N numbers; in a row, pairs or fours lie side by side.
#if TENSOR
constexpr int VALUES_M = BM / WARPS_M / 8, VALUES_N = BN / WARPS_N / 4, LINES = WARPS_M * 8;
struct Values {
  float d[VALUES_M / 2][VALUES_N / 2][4];
};
DEVICE float &value(Values &x, int i, int j) { return x.d[i / 2][j / 2][i % 2 * 2 + j % 2]; }
DEVICE int line_of() { return threadIdx.x / 32 / WARPS_N * 8 + threadIdx.x % 32 / 4; }
DEVICE int row_at(int i) {
  return (int)threadIdx.x / 32 / WARPS_N * (BM / WARPS_M) + i / 2 * 16 + i % 2 * 8 + (int)threadIdx.x % 32 / 4;
}
DEVICE int column_at(int j) {
  return (int)threadIdx.x / 32 % WARPS_N * (BN / WARPS_N) + j / 2 * 8 + (int)threadIdx.x % 4 * 2 + j % 2;
}
#else
constexpr int VALUES_M = TM, VALUES_N = TN, WIDTH = TN < 4 ? TN : 4, HEIGHT = TM < 4 ? TM : 4, LINES = BM / TM;
struct Values {
  T d[TM][TN];
};
DEVICE T &value(Values &x, int i, int j) { return x.d[i][j]; }
DEVICE int line_of() { return threadIdx.x / (BN / TN); }
DEVICE int row_at(int i) { return i / HEIGHT * (BM / (TM / HEIGHT)) + line_of() * HEIGHT + i % HEIGHT; }
DEVICE int column_at(int j) {
  return j / WIDTH * (BN / (TN / WIDTH)) + (int)threadIdx.x % (BN / TN) * WIDTH + j % WIDTH;
}
#endif

// sum += the products of two tiles
DEVICE void add_products(Values &sum, const T *a, const T *b) {
#if TENSOR
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  a += row_at(0) - g;
  b += column_at(0) - 2 * q;
#pragma unroll
  for (int k = 0; k < BK; k += 8) {
    float left[VALUES_M / 2][4], right[VALUES_N / 2][2];
#pragma unroll
    for (int i = 0; i < VALUES_M / 2; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) left[i][e] = a[(k + q + e / 2 * 4) * (BM + PAD) + i * 16 + e % 2 * 8 + g];
#pragma unroll
    for (int j = 0; j < VALUES_N / 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) right[j][e] = b[(k + q + e * 4) * (BN + PAD) + j * 8 + g];
#pragma unroll
    for (int i = 0; i < VALUES_M / 2; i++)
#pragma unroll
      for (int j = 0; j < VALUES_N / 2; j++) mma_rounded(sum.d[i][j], left[i], right[j]);
  }
#else
#pragma unroll
  for (int k = 0; k < BK; k++) {
    Pack<T, HEIGHT> left[TM / HEIGHT];
    Pack<T, WIDTH> right[TN / WIDTH];
#pragma unroll
    for (int i = 0; i < TM / HEIGHT; i++)
      left[i] = *reinterpret_cast<const Pack<T, HEIGHT> *>(a + k * (BM + PAD) + row_at(i * HEIGHT));
#pragma unroll
    for (int j = 0; j < TN / WIDTH; j++)
      right[j] = *reinterpret_cast<const Pack<T, WIDTH> *>(b + k * (BN + PAD) + column_at(j * WIDTH));
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
      for (int j = 0; j < TN; j++)
        sum.d[i][j] = multiply_add(left[i / HEIGHT].v[i % HEIGHT], right[j / WIDTH].v[j % WIDTH], sum.d[i][j]);
  }
#endif
}

// act(i, j, e) for each pack of a thread's values, of which the first one is the sum e of a slice.
template <class P, class Act> DEVICE void for_each_pack(P, I z, I first_m, I first_n, Act act) {
#pragma unroll
  for (int i = 0; i < VALUES_M; i++)
#pragma unroll
    for (int j = 0; j < VALUES_N; j += P::SUMS_V) {
      const I m = first_m + row_at(i), n = first_n + column_at(j);
      if (P::M % BM && m >= P::M) continue;
      if (P::N % BN && n >= P::N) continue;
      act(i, j, P::FIRST + (z * P::M + m) * P::N + n);
    }
}

// Of the blocks that have put down sums of one tile, a slice each, the last one goes on, with the sums of all slices:
// the last of a group adds up that group, the last of these the groups, always in the same order. add(first, count,
// apart, is_all): the sums of `count` slices from `first` on, `apart` from each other; all of them, or into the first.
template <class Add> DEVICE bool is_added(I tile, I slice, int *counters, Add add) {
  constexpr int GROUPS = (SLICES + GROUP_SLICES - 1) / GROUP_SLICES;
  const int group = slice / GROUP_SLICES, first = group * GROUP_SLICES;
  const int count = SLICES - first < GROUP_SLICES ? SLICES - first : GROUP_SLICES;
  int *mine = counters + tile * (GROUPS + 1);
  if (!is_last(mine + group, count)) return false;
  add(first, count, 1, GROUPS == 1);
  if (GROUPS == 1) return true;
  if (!is_last(mine + GROUPS, GROUPS)) return false;
  add(0, GROUPS, GROUP_SLICES, true);
  return true;
}

// Put down a block's sums of one slice; true for the block that has them all.
template <class P>
DEVICE bool gather(P part, Values &sum, I tile, I slice, I z, I first_m, I first_n, T *sums, int *counters) {
  constexpr int V = P::SUMS_V;
  for_each_pack(part, z, first_m, first_n, [&](int i, int j, I e) {
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.v[v] = value(sum, i, j + v);
    *reinterpret_cast<Pack<T, V> *>(sums + (slice * SUMS + e)) = pack;
  });
  return is_added(tile, slice, counters, [&](int first, int count, int apart, bool is_all) {
    for_each_pack(part, z, first_m, first_n, [&](int i, int j, I e) {
      double totals[V] = {};
#pragma unroll 4
      for (int s = 0; s < count; s++) {
        const Pack<T, V> one = fresh(reinterpret_cast<const Pack<T, V> *>(sums + ((I)(first + s * apart) * SUMS + e)));
#pragma unroll
        for (int v = 0; v < V; v++) totals[v] += one.v[v];
      }
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; v++) pack.v[v] = (T)totals[v];
      if (is_all) {
#pragma unroll
        for (int v = 0; v < V; v++) value(sum, i, j + v) = pack.v[v];
      } else
        *reinterpret_cast<Pack<T, V> *>(sums + ((I)first * SUMS + e)) = pack;
    });
  });
}

// Store a block's results in y, row by row; but column by column where these are added up: then sums take the registers
// of results that are done with.
template <class P>
DEVICE void store(P, Values &sum, I z, I first_m, I first_n, Added (&added)[VALUES_N], T *y EXTRAS) {
  typename P::Y result;
  typename P::Y::Place columns[VALUES_N];
#pragma unroll
  for (int j = 0; j < VALUES_N; j++) columns[j] = result.step(first_n + column_at(j));
  constexpr int V = P::Y::V, PACKS = VALUES_N / V;
#pragma unroll
  for (int p = 0; p < VALUES_M * PACKS; p++) {
    const int i = COLUMN_SUMS ? p % VALUES_M : p / PACKS, j = (COLUMN_SUMS ? p / VALUES_M : p % PACKS) * V;
    const I m = first_m + row_at(i), n = first_n + column_at(j);
    const typename P::Y::Place row = result.row(z, m);
    if (P::M % BM && m >= P::M) continue;
    if (P::N % BN && n >= P::N) continue;
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.v[v] = value(sum, i, j + v);
    result.finished(pack, row, columns[j], added + j PASSED);
    if (KEEPS_Y) *reinterpret_cast<Pack<T, V> *>(y + (row.at + columns[j].at)) = pack;
  }
}

#if COLUMN_SUMS
// Where a partial sum goes: that of a block of rows, and of column n of the part.
template <class P> DEVICE double *partial_of(P, I row_block, I row_blocks, I z, I n, int number, double *partials) {
  typename P::Y result;
  const typename P::Y::Place row = result.row(z, 0), column = result.step(n);
  const I block = P::FIRST_BLOCK + z / P::KEPT * row_blocks + row_block; // of rows
  constexpr int C = P::Y::COLUMN;
  return partials + ((block * COLUMN_SUMS + number) * SUM_COLUMNS + row.read[C] + column.read[C]);
}

// Partial sums of a block's columns: threads put down what they have added up, then one for each column adds the lines,
// in order.
template <class P>
DEVICE void add_up(P part, Added (&added)[VALUES_N], I row_block, I row_blocks, I z, I first_n, double *partials,
                   double *lines) {
#pragma unroll
  for (int number = 0; number < COLUMN_SUMS; number++) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < VALUES_N; j++) lines[line_of() * BN + column_at(j)] = added[j][number];
    __syncthreads();
    for (int c = threadIdx.x; c < BN; c += THREADS) {
      double total = 0;
#pragma unroll 8
      for (int l = 0; l < LINES; l++) total += lines[l * BN + c];
      if (first_n + c < P::N) *partial_of(part, row_block, row_blocks, z, first_n + c, number, partials) = total;
    }
  }
}

// Whether this block is the last of all that have put down partial sums of a block of rows; if these are many, the last
// of a group has added up that group's.
template <class P> DEVICE bool is_summed(P, I row, double *partials, int *counters) {
  if (ROW_GROUPS == 1) return is_last(counters, TILES_IN_ALL);
  constexpr int ROWS = P::BATCH / P::KEPT * ((P::M + BM - 1) / BM), ARRIVALS = P::KEPT * ((P::N + BN - 1) / BN);
  const int group = row / GROUP_ROWS, first = group * GROUP_ROWS;
  const int count = ROWS - first < GROUP_ROWS ? ROWS - first : GROUP_ROWS;
  if (!is_last(counters + P::FIRST_GROUP + group, count * ARRIVALS)) return false;
  constexpr I WIDTH = (I)COLUMN_SUMS * SUM_COLUMNS;
  for (I i = threadIdx.x; i < WIDTH; i += THREADS) {
    double total = 0;
#pragma unroll 8
    for (int r = 0; r < count; r++) total += fresh(partials + (P::FIRST_BLOCK + first + r) * WIDTH + i);
    partials[(SUMMED_ROWS + P::FIRST_GROUP + group) * WIDTH + i] = total;
  }
  return is_last(counters + ROW_GROUPS, ROW_GROUPS);
}
#endif

// One block's tile of the result of a part. While tiles in one half of shared memory are multiplied, the next ones are
// on their way through registers to the other half. True for a block that has more to do, for others as well.
template <class P>
DEVICE bool multiply(P part, I block, T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums, int *counters,
                     T *tiles EXTRAS) {
  typedef typename P::A A;
  typedef typename P::B B;
  A left;
  B right;
  constexpr I COLUMN_BLOCKS = (P::N + BN - 1) / BN, ROW_BLOCKS = (P::M + BM - 1) / BM, TILES = (P::K + BK - 1) / BK;
  const I row_block = block / COLUMN_BLOCKS % ROW_BLOCKS;
  const I first_m = row_block * BM, first_n = block % COLUMN_BLOCKS * BN;
  const I rest = block / (COLUMN_BLOCKS * ROW_BLOCKS), z = rest % P::BATCH, slice = rest / P::BATCH;
  const I start = SLICES > 1 ? (I)((i64)slice * TILES / SLICES) : 0;
  const I stop = SLICES > 1 ? (I)((i64)(slice + 1) * TILES / SLICES) : TILES;
  Values sum;
#pragma unroll
  for (int i = 0; i < VALUES_M; i++)
#pragma unroll
    for (int j = 0; j < VALUES_N; j++) value(sum, i, j) = 0;
  if (TILES > 0) {
    Held<A> a_held;
    Held<B> b_held;
    begin(left, a_held, z, first_m PASSED);
    begin(right, b_held, z, first_n PASSED);
    constexpr int HALF = BK * (BM + PAD + BN + PAD), B_TILE = BK * (BM + PAD);
    if (start < stop) {
      fetch(left, a_held, a, first_m, start * BK PASSED);
      fetch(right, b_held, b, first_n, start * BK PASSED);
      put(left, a_held, tiles);
      put(right, b_held, tiles + B_TILE);
    }
    __syncthreads();
    for (I i = start; i < stop; i++) {
      T *now = tiles + ((i - start) & 1) * HALF, *next = tiles + ((i - start + 1) & 1) * HALF;
      if (i + 1 < stop) {
        fetch(left, a_held, a, first_m, (i + 1) * BK PASSED);
        fetch(right, b_held, b, first_n, (i + 1) * BK PASSED);
      }
      add_products(sum, now, now + B_TILE);
      if (i + 1 < stop) {
        put(left, a_held, next);
        put(right, b_held, next + B_TILE);
      }
      __syncthreads();
    }
  }
#if SLICES > 1
  const I tile = P::FIRST_TILE + block % (P::BATCH * ROW_BLOCKS * COLUMN_BLOCKS);
  if (!gather(part, sum, tile, slice, z, first_m, first_n, sums, counters)) return false;
  counters += COUNTERS_OF_SLICES;
#endif
  Added added[VALUES_N] = {};
  store(part, sum, z, first_m, first_n, added, y PASSED);
#if COLUMN_SUMS
  add_up(part, added, row_block, ROW_BLOCKS, z, first_n, partials, (double *)tiles);
  if (IS_JOINED) return is_summed(part, z / P::KEPT * ROW_BLOCKS + row_block, partials, counters);
#elif IS_JOINED
  return is_last(counters, TILES_IN_ALL);
#endif
  return false;
}

#define RUN_TILES(PART, BEGIN, END) \
  if (block >= BEGIN && block < END && !multiply(PART(), block - BEGIN, y, a, b, sums, counters, tiles PASSED)) return;

// y = a * b, summed; with COLUMN_SUMS these too, per block of rows, and if IS_JOINED all that is made of them, and what
// is behind. y, a, b: arrays of any strides; sums [SLICES][SUMS]; partials [blocks of rows, groups of them][COLUMN_SUMS]
// [SUM_COLUMNS]; counters: zeros, and zeros again afterwards.
// Grid: a block of THREADS for each BM x BN tile of the result, each slice and each part; 2 BK (BM + BN + 2 PAD) T's of
// shared memory. Floor: 2 BATCH M N K FLOP, and a, b and y moved once.
extern "C" __global__ void __launch_bounds__(THREADS, TOGETHER)
    contract(T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums, int *counters EXTRAS) {
#if IS_TILED
  __shared__ __align__(16) T tiles[2 * BK * (BM + PAD + BN + PAD)];
  static_assert(!COLUMN_SUMS || LINES * BN * 8 <= (int)sizeof(tiles), "add_up has room");
  const I block = blockIdx.x;
  EACH_TILED(RUN_TILES)
#if IS_JOINED
  // the last block of all
#if COLUMN_SUMS
  for (I c = threadIdx.x; c < SUM_COLUMNS; c += THREADS) {
//@ reads
    double s[COLUMN_SUMS] = {};
#pragma unroll 8
    for (int r = FIRST_SUMMED; r < LAST_SUMMED; r++)
#pragma unroll
      for (int n = 0; n < COLUMN_SUMS; n++) s[n] += fresh(partials + ((I)(r * COLUMN_SUMS + n) * SUM_COLUMNS + c));
//@ finish
  }
#endif
//@ behind
#endif
#endif
}

// What becomes of one number that was read.
template <class O>
DEVICE T changed(O operand, T x, const typename O::Place &row, const typename O::Place &step EXTRAS) {
  return operand.made(x, operand.template common<1>(row, step PASSED), operand.template own<1>(row, step PASSED), 0);
}

// One element of a part's result, by one thread: its number is z, there are no rows and no columns.
template <class P>
DEVICE void add_terms(P, I tile, I slice, I z, T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums,
                      int *counters EXTRAS) {
  typename P::A left;
  typename P::B right;
  typename P::Y result;
  const I start = SLICES > 1 ? (I)((i64)slice * P::K / SLICES) : 0;
  const I stop = SLICES > 1 ? (I)((i64)(slice + 1) * P::K / SLICES) : P::K;
  T sum = 0;
  const bool is_there = z < P::BATCH;
  if (P::K > 0 && is_there) {
    const typename P::A::Place a_row = left.row(z, 0);
    const typename P::B::Place b_row = right.row(z, 0);
#pragma unroll 4
    for (I k = start; k < stop; k++) {
      const typename P::A::Place a_step = left.step(k);
      const typename P::B::Place b_step = right.step(k);
      if (left.inside(a_row, a_step) && right.inside(b_row, b_step))
        sum = multiply_add(changed(left, a[a_row.at + a_step.at], a_row, a_step PASSED),
                           changed(right, b[b_row.at + b_step.at], b_row, b_step PASSED), sum);
    }
  }
#if SLICES > 1
  T *mine = sums + P::FIRST + z;
  if (is_there) mine[slice * SUMS] = sum;
  const bool is_whole = is_added(tile, slice, counters, [&](int first, int count, int apart, bool is_all) {
    if (!is_there) return;
    double total = 0;
#pragma unroll 4
    for (int s = 0; s < count; s++) total += fresh(mine + (I)(first + s * apart) * SUMS);
    if (is_all) sum = (T)total;
    else mine[(I)first * SUMS] = (T)total;
  });
  if (!is_whole) return;
#endif
  if (!is_there) return;
  const typename P::Y::Place row = result.row(z, 0), column = result.step(0);
  Pack<T, 1> found = {{sum}};
  result.finished(found, row, column, nullptr PASSED);
  if (KEEPS_Y) y[row.at + column.at] = found.v[0];
}

#define RUN_EACH(PART, BEGIN, END)                                                                                  \
  if (block >= BEGIN && block < END) {                                                                              \
    constexpr I BLOCKS = (PART::BATCH + THREADS - 1) / THREADS;                                                     \
    const I tile = (block - BEGIN) % BLOCKS;                                                                        \
    add_terms(PART(), PART::FIRST_TILE + tile, (block - BEGIN) / BLOCKS, tile * THREADS + threadIdx.x, y, a, b, sums, \
              counters PASSED);                                                                                     \
  }

// As `contract`, with a thread for each element of the result: where hardly anything that is read serves two of them,
// as in channel-wise convolutions. Grid: per part and slice, a block for THREADS elements.
// No shared memory. Floor: a, b and y moved once.
extern "C" __global__ void __launch_bounds__(THREADS) contract_each(T *y, const T *__restrict__ a,
                                                                    const T *__restrict__ b, T *sums,
                                                                    int *counters EXTRAS) {
#if IS_EACH
  const I block = blockIdx.x;
  EACH_ELEMENT(RUN_EACH)
#endif
}
