#include "portable.h"
#include "words.cuh"
// Contractions: y[i] = sum over r of a[i, r] * b[i, r], with affine subscripts, as tiles of a matrix product.
//
// Indices of y and a are rows, of y and b columns, of all three the batch, and those that y does not have are the
// terms that are added up. Where an element lies is the sum of what its row (or column) and its term say, and whether
// it lies within bounds is a matter of such sums; so no array is copied to another order, and zeros around an image
// exist nowhere. All that is known of a problem stands in structs that contract.py writes, one for each part:
//
//   Part    BATCH, M, N, K: sizes; FIRST: the place of its first sum in `sums`; FIRST_BLOCK: its first row of partial
//           sums; KEPT: so many neighbours of the batch have columns of their own
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
// tile, PAD: elements between a tile's lines, SLICES: of the terms, each with sums of its own, STATISTICS, TOGETHER:
// blocks that shall fit on a multiprocessor; KEEPS_Y: whether y is stored; COLUMN_SUMS: how many sums there are of each
// column, SUM_COLUMNS: columns; ROWS_OF_SLICES: rows of a block of `add_slices` then; EXTRAS and PASSED: more arrays,
// for common, own and finished, and before them `partials`, if there are such sums.
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
      for (int j = 0; j < TN; j++) sum.d[i][j] += left[i / HEIGHT].v[i % HEIGHT] * right[j / WIDTH].v[j % WIDTH];
  }
#endif
}

// Store a block's results in y, or as they are in a slice's sums; the numbers stored stand in `sum` afterwards. Row by
// row; but column by column where these are added up: then sums take the registers of results that are done with.
template <class P>
DEVICE void store(P, Values &sum, I slice, I z, I first_m, I first_n, Added (&added)[VALUES_N], T *y, T *sums EXTRAS) {
  typename P::Y result;
  typename P::Y::Place columns[VALUES_N];
#pragma unroll
  for (int j = 0; j < VALUES_N; j++) columns[j] = result.step(first_n + column_at(j));
  constexpr int V = SLICES > 1 ? P::SUMS_V : P::Y::V, PACKS = VALUES_N / V;
  constexpr bool IS_BY_COLUMN = COLUMN_SUMS > 0 && SLICES == 1;
#pragma unroll
  for (int p = 0; p < VALUES_M * PACKS; p++) {
    const int i = IS_BY_COLUMN ? p % VALUES_M : p / PACKS, j = (IS_BY_COLUMN ? p / VALUES_M : p % PACKS) * V;
    const I m = first_m + row_at(i), n = first_n + column_at(j);
    const typename P::Y::Place row = result.row(z, m);
    if (P::M % BM && m >= P::M) continue;
    if (P::N % BN && n >= P::N) continue;
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.v[v] = value(sum, i, j + v);
    if (SLICES == 1) result.finished(pack, row, columns[j], added + j PASSED);
#pragma unroll
    for (int v = 0; v < V; v++) value(sum, i, j + v) = pack.v[v];
    T *to = SLICES > 1 ? sums + (slice * SUMS + P::FIRST + (z * P::M + m) * P::N + n) : y + (row.at + columns[j].at);
    if (SLICES > 1 || KEEPS_Y) *reinterpret_cast<Pack<T, V> *>(to) = pack;
  }
}

#if COLUMN_SUMS
// Where a partial sum goes: that of a block of rows, and of column n of the part.
template <class P> DEVICE double *partial_of(P, I row_block, I row_blocks, I z, I n, int number, double *partials) {
  typename P::Y result;
  const typename P::Y::Place row = result.row(z, 0), column = result.step(n);
  const I block = P::FIRST_BLOCK + z / P::KEPT * row_blocks + row_block;
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
#endif

// Per column of a block's results their mean and the sum of squared deviations from it, [row block][2][column].
// Threads add up what they hold, then one for each column adds the lines, in order.
template <class P>
DEVICE void describe(P, Values &sum, I block, I z, I first_m, I first_n, T *statistics, T *space) {
  T *lines = space, *means = space + LINES * BN;
  const int count = P::M - first_m < BM ? (int)(P::M - first_m) : BM;
#pragma unroll
  for (int power = 1; power <= 2; power++) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < VALUES_N; j++) {
      T s = 0;
#pragma unroll
      for (int i = 0; i < VALUES_M; i++) {
        const T d = power == 1 ? value(sum, i, j) : value(sum, i, j) - means[column_at(j)];
        if (row_at(i) < count) s += power == 1 ? d : d * d;
      }
      lines[line_of() * BN + column_at(j)] = s;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < BN; c += THREADS) {
      T s = 0;
      for (int l = 0; l < LINES; l++) s += lines[l * BN + c];
      if (power == 1) s /= count;
      means[c] = s;
      if (first_n + c < P::N) statistics[(block * 2 + power - 1) * (P::BATCH * P::N) + z * P::N + first_n + c] = s;
    }
  }
}

// One block's tile of the result of a part. While tiles in one half of shared memory are multiplied, the next ones are
// on their way through registers to the other half.
template <class P>
DEVICE void multiply(P part, I block, T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums, T *statistics,
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
  Added added[VALUES_N] = {};
  store(part, sum, slice, z, first_m, first_n, added, y, sums PASSED);
#if COLUMN_SUMS && SLICES == 1
  add_up(part, added, row_block, ROW_BLOCKS, z, first_n, partials, (double *)tiles);
#endif
#if STATISTICS
  describe(part, sum, row_block, z, first_m, first_n, statistics, tiles);
#endif
}

#define RUN_TILES(PART, BEGIN, END) \
  if (block >= BEGIN && block < END) multiply(PART(), block - BEGIN, y, a, b, sums, statistics, tiles PASSED);

// y = a * b, summed; with SLICES > 1: sums[slice][element] instead; with STATISTICS or COLUMN_SUMS: these per block of
// rows, too. y, a, b: arrays of any strides; sums [SLICES][SUMS]; statistics [row blocks][2][columns]; partials [row
// blocks][COLUMN_SUMS][SUM_COLUMNS].
// Grid: a block of THREADS for each BM x BN tile of the result, each slice and each part; 2 BK (BM + BN + 2 PAD) T's of
// shared memory. Floor: 2 BATCH M N K FLOP, and a, b and y moved once.
extern "C" __global__ void __launch_bounds__(THREADS, TOGETHER)
    contract(T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums, T *statistics EXTRAS) {
#if IS_TILED
  __shared__ __align__(16) T tiles[2 * BK * (BM + PAD + BN + PAD)];
  static_assert(!STATISTICS || (LINES + 1) * BN <= 2 * BK * (BM + PAD + BN + PAD), "describe has room");
  static_assert(!COLUMN_SUMS || LINES * BN * 8 <= (int)sizeof(tiles), "add_up has room");
  const I block = blockIdx.x;
  EACH_TILED(RUN_TILES)
#endif
}

// What becomes of one number that was read.
template <class O>
DEVICE T changed(O operand, T x, const typename O::Place &row, const typename O::Place &step EXTRAS) {
  return operand.made(x, operand.template common<1>(row, step PASSED), operand.template own<1>(row, step PASSED), 0);
}

// One element of a part's result, by one thread: its number is z, there are no rows and no columns.
template <class P>
DEVICE void add_terms(P, I slice, I z, T *y, const T *__restrict__ a, const T *__restrict__ b, T *sums EXTRAS) {
  typename P::A left;
  typename P::B right;
  typename P::Y result;
  const I start = SLICES > 1 ? (I)((i64)slice * P::K / SLICES) : 0;
  const I stop = SLICES > 1 ? (I)((i64)(slice + 1) * P::K / SLICES) : P::K;
  T sum = 0;
  if (P::K > 0) {
    const typename P::A::Place a_row = left.row(z, 0);
    const typename P::B::Place b_row = right.row(z, 0);
#pragma unroll 4
    for (I k = start; k < stop; k++) {
      const typename P::A::Place a_step = left.step(k);
      const typename P::B::Place b_step = right.step(k);
      if (left.inside(a_row, a_step) && right.inside(b_row, b_step))
        sum += changed(left, a[a_row.at + a_step.at], a_row, a_step PASSED) *
               changed(right, b[b_row.at + b_step.at], b_row, b_step PASSED);
    }
  }
  if (SLICES > 1) {
    sums[slice * SUMS + P::FIRST + z] = sum;
    return;
  }
  const typename P::Y::Place row = result.row(z, 0), column = result.step(0);
  Pack<T, 1> found = {{sum}};
  result.finished(found, row, column, nullptr PASSED);
  if (KEEPS_Y) y[row.at + column.at] = found.v[0];
}

#define RUN_EACH(PART, BEGIN, END)                                                                                  \
  if (block >= BEGIN && block < END) {                                                                              \
    constexpr I BLOCKS = (PART::BATCH + THREADS - 1) / THREADS;                                                     \
    const I z = (block - BEGIN) % BLOCKS * THREADS + threadIdx.x;                                                   \
    if (z < PART::BATCH) add_terms(PART(), (block - BEGIN) / BLOCKS, z, y, a, b, sums PASSED);                      \
  }

// As `contract`, with a thread for each element of the result: where hardly anything that is read serves two of them,
// as in channel-wise convolutions. Grid: per part and slice, a block for THREADS elements.
// No shared memory. Floor: a, b and y moved once.
extern "C" __global__ void __launch_bounds__(THREADS) contract_each(T *y, const T *__restrict__ a,
                                                                    const T *__restrict__ b, T *sums EXTRAS) {
#if IS_EACH
  const I block = blockIdx.x;
  EACH_ELEMENT(RUN_EACH)
#endif
}

// The sum of all slices of element e is total; store what becomes of it.
template <class P> DEVICE void finish(P, I e, double total, T *y, Added *added EXTRAS) {
  typename P::Y result;
  const I n = e % P::N, m = e / P::N % P::M;
  const typename P::Y::Place row = result.row(e / (P::N * P::M), m), column = result.step(n);
  Pack<T, 1> found = {{(T)total}};
  result.finished(found, row, column, added PASSED);
  if (KEEPS_Y) y[row.at + column.at] = found.v[0];
}

#define FINISH(PART) \
  if (e >= PART::FIRST && e < PART::FIRST + PART::BATCH * PART::M * PART::N) \
    finish(PART(), e - PART::FIRST, total, y, nullptr PASSED);

#if COLUMN_SUMS
// 32 columns of ROWS_OF_SLICES rows of a part: each warp takes every eighth row, a thread for each column.
template <class P>
DEVICE void finish_rows(P part, I block, T *y, const T *__restrict__ sums, double (*space)[COLUMN_SUMS][32] EXTRAS) {
  constexpr I COLUMN_BLOCKS = (P::N + 31) / 32, ROW_BLOCKS = (P::M + ROWS_OF_SLICES - 1) / ROWS_OF_SLICES;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const I first_n = block % COLUMN_BLOCKS * 32, row_block = block / COLUMN_BLOCKS % ROW_BLOCKS;
  const I z = block / (COLUMN_BLOCKS * ROW_BLOCKS), n = first_n + lane;
  Added added = {};
  for (int r = warp; r < ROWS_OF_SLICES; r += 8) {
    const I m = row_block * ROWS_OF_SLICES + r;
    if (m >= P::M || n >= P::N) continue;
    const I e = (z * P::M + m) * P::N + n;
    double total = 0;
#pragma unroll 8
    for (int s = 0; s < SLICES; s++) total += sums[(I)s * SUMS + P::FIRST + e];
    finish(part, e, total, y, &added PASSED);
  }
#pragma unroll
  for (int number = 0; number < COLUMN_SUMS; number++) space[warp][number][lane] = added[number];
  __syncthreads();
  for (int i = threadIdx.x; i < COLUMN_SUMS * 32; i += 256) {
    const int number = i / 32, c = i % 32;
    double total = 0;
    for (int w = 0; w < 8; w++) total += space[w][number][c];
    if (first_n + c < P::N) *partial_of(part, row_block, ROW_BLOCKS, z, first_n + c, number, partials) = total;
  }
}

#define FINISH_ROWS(PART, BEGIN, END) \
  if (block >= BEGIN && block < END) finish_rows(PART(), block - BEGIN, y, sums, space PASSED);
#endif

// y = the slices' sums, added in order, in double. sums [SLICES][SUMS]. Grid: a block of 32 x 8 threads for each 32
// elements; the thread (e, s) adds the slices s, s + 8, ... With COLUMN_SUMS: a block for each 32 columns of
// ROWS_OF_SLICES rows, which are added up as well. Shared memory: 2 KB; with COLUMN_SUMS, 2 KB for each. Floor: sums
// read once, y written once.
extern "C" __global__ void __launch_bounds__(256) add_slices(T *y, const T *__restrict__ sums EXTRAS) {
#if SLICES > 1 && COLUMN_SUMS
  __shared__ double space[8][COLUMN_SUMS][32];
  const I block = blockIdx.x;
  EACH_BLOCK(FINISH_ROWS)
#elif SLICES > 1
  __shared__ double shared[8][32];
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32;
  const I e = (I)blockIdx.x * 32 + lane;
  double mine = 0;
  if (e < SUMS) {
#pragma unroll 4
    for (int s = first; s < SLICES; s += 8) mine += sums[(I)s * SUMS + e];
  }
  shared[first][lane] = mine;
  __syncthreads();
  if (first == 0 && e < SUMS) {
    double total = 0;
    for (int s = 0; s < 8; s++) total += shared[s][lane];
    EACH_PART(FINISH)
  }
#endif
}
