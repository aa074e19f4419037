// Runs the blocks of a kernel on the CPU, one after the other; within a block the threads are fibers.
#include "cusim.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
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

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<char *> stacks;
unsigned count, arrived, generation, gone;
int barrier_line, order_seed;
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
  gone++;
  if (arrived) fail("ends while others wait at the barrier of line %d", barrier_line, 0);
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

// In which order the threads of a block, and the blocks, have their turn: as numbered, backwards, or shuffled.
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
} // namespace

extern "C" {
cusim_fiber *cusim_now;
cusim_dim cusim_block, cusim_block_size, cusim_grid_size;
unsigned char *cusim_dynamic;

void cusim_order(int seed) { order_seed = seed; }

void cusim_sync(int line) {
  if (gone) fail("waits at the barrier of line %d, which %d threads have passed by", line, (int)gone);
  if (arrived && line != barrier_line) fail("waits at line %d, others at line %d", line, barrier_line);
  barrier_line = line;
  unsigned seen = generation;
  if (++arrived == count) {
    arrived = 0;
    generation++;
  } else
    wait_for(&generation, seen);
}

void *cusim_exchange(const void *mine, size_t bytes, int line) {
  Fiber *f = now();
  Warp &w = warps[f->warp];
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
  while (stacks.size() < count)
    stacks.push_back((char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  fibers.resize(count);
  warps.resize((count + 31) / 32);
  void *raw = nullptr;
  if (posix_memalign(&raw, 16, dynamic_bytes ? dynamic_bytes : 1)) return "no memory";
  cusim_dynamic = (unsigned char *)raw;
  std::vector<unsigned> block_order = turns(blocks, 1), thread_order = turns(count, 2);
  for (unsigned b = 0; b < blocks && !failed; b++) {
    unsigned id = block_order[b];
    cusim_block = {id % shape[0], id / shape[0] % shape[1], id / (shape[0] * shape[1])};
    arrived = generation = gone = 0;
    if (shared_begin) memset(shared_begin, 0xff, shared_end - shared_begin);
    memset(cusim_dynamic, 0xff, dynamic_bytes);
    memset(warps.data(), 0, warps.size() * sizeof(Warp));
    for (unsigned i = 0; i < count; i++) {
      Fiber &f = fibers[i];
      f.thread = {i % shape[3], i / shape[3] % shape[4], i / (shape[3] * shape[4])};
      f.lane = i & 31, f.warp = i >> 5, f.stack = stacks[i], f.done = false, f.wait = nullptr, f.phase = 0;
      start(f);
    }
    while (gone < count && !failed) {
      bool moved = false;
      for (unsigned i = 0; i < count && !failed; i++) {
        Fiber &f = fibers[thread_order[i]];
        if (f.done || (f.wait && *f.wait == f.seen)) continue;
        moved = true;
        cusim_now = &f;
        to_fiber(&f);
      }
      if (!moved && gone < count) {
        failed = true;
        snprintf(message, sizeof message, "block (%u, %u, %u): some threads wait for others that have ended",
                 cusim_block.x, cusim_block.y, cusim_block.z);
      }
    }
  }
  free(raw);
  return failed ? message : nullptr;
}
}
