// Runs the blocks of a kernel on the CPU, one after the other or some of them in turns; threads are fibers.
#include "cusim.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <ucontext.h>
#endif

namespace {
constexpr size_t STACK = 256 << 10; // reserved; only what is touched is used

struct Fiber : cusim_fiber {
  void *place; // where it stands: its stack pointer, or its context
  char *stack;
  bool done;
  const unsigned *wait; // it goes on when this differs from `seen`
  unsigned seen, phase, warp;
};
struct Warp { unsigned arrived[2], generation[2]; int line; unsigned char slots[2][32][32]; };

// A block that has begun. Shared memory is that of the block whose turn it is; the others' waits in `shared`.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared, dynamic;
  cusim_dim number;
  unsigned arrived, generation, gone, next; // next: whose turn it is among its threads
  int barrier_line;
  bool is_there = false;
};

constexpr unsigned INTERLEAVED = 3, TOGETHER = 4, PACE = 16; // from which seed on; so many blocks; a change in so many turns
std::vector<Block> alive;
Block *here;
std::vector<char *> stacks;
unsigned count;
int order_seed;
bool is_flushed;
uint64_t chance;
char *shared_memory;
size_t shared_bytes;
bool failed;
char message[256];
void (*kernel)(void **);
void **arguments;

#if defined(__x86_64__)
void *main_place;
extern "C" void cusim_switch(void **save, void *load);
asm(R"(.text
.globl cusim_switch
.type cusim_switch,@function
cusim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cusim_switch,.-cusim_switch
)");
void to_main(Fiber *f) { cusim_switch(&f->place, main_place); }
void to_fiber(Fiber *f) { cusim_switch(&main_place, f->place); }
#else
ucontext_t main_context;
void to_main(Fiber *f) { swapcontext((ucontext_t *)f->place, &main_context); }
void to_fiber(Fiber *f) { swapcontext(&main_context, (ucontext_t *)f->place); }
#endif

Fiber *now() { return static_cast<Fiber *>(cusim_now); }

void fail(const char *what, int a, int b) {
  failed = true;
  int n = snprintf(message, sizeof message, "block (%u, %u, %u), thread (%u, %u, %u): ", cusim_block.x, cusim_block.y,
                   cusim_block.z, cusim_now->thread.x, cusim_now->thread.y, cusim_now->thread.z);
  snprintf(message + n, sizeof message - n, what, a, b);
  for (;;) to_main(now());
}

void wait_for(const unsigned *word, unsigned seen) {
  Fiber *f = now();
  f->wait = word;
  f->seen = seen;
  while (*word == seen) to_main(f);
  f->wait = nullptr;
}

void entry() {
  kernel(arguments);
  Fiber *f = now();
  f->done = true;
  here->gone++;
  if (here->arrived) fail("ends while others wait at the barrier of line %d", here->barrier_line, 0);
  for (;;) to_main(f);
}

void start(Fiber &f) {
#if defined(__x86_64__)
  void **sp = (void **)((uintptr_t)(f.stack + STACK) & ~uintptr_t(15));
  *--sp = nullptr;
  *--sp = (void *)entry;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  f.place = sp;
#else
  ucontext_t *c = (ucontext_t *)f.stack; // at the foot of its own stack
  getcontext(c);
  c->uc_stack.ss_sp = f.stack + 4096;
  c->uc_stack.ss_size = STACK - 4096;
  c->uc_link = &main_context;
  makecontext(c, entry, 0);
  f.place = c;
#endif
}

// In which order the threads of a block, and the blocks, have their turn: as numbered, backwards, or shuffled; from
// INTERLEAVED on blocks are shuffled, TOGETHER of them have begun at a time, and change in the middle of anything.
std::vector<unsigned> turns(unsigned n, unsigned salt) {
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; i++) order[i] = order_seed == 1 ? n - 1 - i : i;
  uint64_t state = 88172645463325252ull + 7919ull * order_seed + salt;
  for (unsigned i = n; order_seed > 1 && i > 1; i--) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    unsigned k = state % i, t = order[i - 1];
    order[i - 1] = order[k], order[k] = t;
  }
  return order;
}

unsigned drawn(unsigned n) {
  chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
  return chance % n;
}

// It is this block's turn: its shared memory is the shared memory.
void enter(Block &b) {
  if (here == &b) return;
  if (here && here->is_there) memcpy(here->shared.data(), shared_memory, shared_bytes);
  if (shared_bytes) memcpy(shared_memory, b.shared.data(), shared_bytes);
  here = &b;
  cusim_block = b.number;
  cusim_dynamic = b.dynamic.data();
}

void begin(Block &b, unsigned id, const unsigned *shape, size_t dynamic_bytes, char *const *own_stacks) {
  b.number = {id % shape[0], id / shape[0] % shape[1], id / (shape[0] * shape[1])};
  b.arrived = b.generation = b.gone = b.next = 0;
  b.shared.assign(shared_bytes, 0xff);
  b.dynamic.assign(dynamic_bytes ? dynamic_bytes : 1, 0xff);
  b.fibers.resize(count);
  b.warps.resize((count + 31) / 32);
  memset(b.warps.data(), 0, b.warps.size() * sizeof(Warp));
  b.is_there = true;
  if (here == &b) here = nullptr;
  for (unsigned i = 0; i < count; i++) {
    Fiber &f = b.fibers[i];
    f.thread = {i % shape[3], i / shape[3] % shape[4], i / (shape[3] * shape[4])};
    f.lane = i & 31, f.warp = i >> 5, f.stack = own_stacks[i], f.done = false, f.wait = nullptr, f.phase = 0;
    start(f);
  }
}

// Turns of a block's threads, until another block shall have its turn.
void advance(Block &b, const std::vector<unsigned> &thread_order, bool is_alone) {
  enter(b);
  bool moved = false;
  for (unsigned n = 0; n < count && !failed && b.gone < count; n++) {
    Fiber &f = b.fibers[thread_order[b.next]];
    b.next = (b.next + 1) % count;
    if (f.done || (f.wait && *f.wait == f.seen)) continue;
    moved = true;
    cusim_now = &f;
    to_fiber(&f);
    if (!is_alone && drawn(PACE) == 0) return;
  }
  if (!moved && b.gone < count) {
    failed = true;
    snprintf(message, sizeof message, "block (%u, %u, %u): some threads wait for others that have ended",
             cusim_block.x, cusim_block.y, cusim_block.z);
  }
}
} // namespace

extern "C" {
cusim_fiber *cusim_now;
cusim_dim cusim_block, cusim_block_size, cusim_grid_size;
unsigned char *cusim_dynamic;

void cusim_order(int seed) { order_seed = seed; }

// From now on launches take numbers below the normal ones for zero, as kernels do that are compiled with -ftz=true.
void cusim_flush(int is_wanted) { is_flushed = is_wanted; }

void cusim_sync(int line) {
  Block &b = *here;
  if (b.gone) fail("waits at the barrier of line %d, which %d threads have passed by", line, (int)b.gone);
  if (b.arrived && line != b.barrier_line) fail("waits at line %d, others at line %d", line, b.barrier_line);
  b.barrier_line = line;
  unsigned seen = b.generation;
  if (++b.arrived == count) {
    b.arrived = 0;
    b.generation++;
  } else
    wait_for(&b.generation, seen);
}

void *cusim_exchange(const void *mine, size_t bytes, int line) {
  Fiber *f = now();
  Warp &w = here->warps[f->warp];
  unsigned p = f->phase++ & 1, seen = w.generation[p], lanes = count - f->warp * 32 < 32 ? count - f->warp * 32 : 32;
  if (w.arrived[p] && w.line != line) fail("exchanges within its warp at line %d, others at line %d", line, w.line);
  w.line = line;
  memcpy(w.slots[p][f->lane], mine, bytes);
  if (++w.arrived[p] == lanes) {
    w.arrived[p] = 0;
    w.generation[p]++;
  } else
    wait_for(&w.generation[p], seen);
  return w.slots[p];
}

const char *cusim_launch(void (*thunk)(void **), void **args, const unsigned *shape, size_t dynamic_bytes,
                         char *shared_begin, char *shared_end) {
  kernel = thunk, arguments = args, failed = false;
  cusim_grid_size = {shape[0], shape[1], shape[2]};
  cusim_block_size = {shape[3], shape[4], shape[5]};
  count = shape[3] * shape[4] * shape[5];
  unsigned blocks = shape[0] * shape[1] * shape[2];
  const unsigned together = order_seed >= (int)INTERLEAVED && blocks > 1 ? TOGETHER : 1;
  while (stacks.size() < count * together)
    stacks.push_back((char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  shared_memory = shared_begin, shared_bytes = shared_begin ? shared_end - shared_begin : 0;
  chance = 88172645463325252ull + 104729ull * order_seed;
  here = nullptr;
  alive.resize(TOGETHER);
  for (Block &b : alive) b.is_there = false;
#if defined(__x86_64__)
  const unsigned usual = _mm_getcsr();
  if (is_flushed) _mm_setcsr(usual | 0x8040); // flush to zero, denormals are zero
#endif
  std::vector<unsigned> block_order = turns(blocks, 1), thread_order = turns(count, 2);
  for (unsigned begun = 0, ended = 0; ended < blocks && !failed;) {
    unsigned k = together > 1 ? drawn(together) : 0;
    Block &b = alive[k];
    if (!b.is_there && begun < blocks) begin(b, block_order[begun++], shape, dynamic_bytes, &stacks[k * count]);
    if (!b.is_there) continue;
    advance(b, thread_order, together == 1);
    if (b.gone == count) b.is_there = false, ended++;
  }
#if defined(__x86_64__)
  _mm_setcsr(usual);
#endif
  return failed ? message : nullptr;
}
}
