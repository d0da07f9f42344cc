// The scheduler of a block: who runs next, and what it means when nobody can.
//
// A fiber runs until it must wait; then a ready one is drawn at random and entered directly. When none is ready and not
// all have left, the threads of the block wait for each other for ever: on a GPU a hang, or worse, not one. Here it is
// a report of who waits where.
#pragma once

#include "shadow.h"

namespace emulator {

// The fibers' stacks, each over a page that nobody may touch.
struct Stacks {
  uintptr_t base = 0;
  size_t size = 0;
};
static Stacks stacks;

static bool open_stacks() {
  if (stacks.base) return true;
  size_t size = kMaxThreads * (kStackBytes + page);
  char* p = reserve(size);
  if (!p) return false;
  for (size_t i = 0; i < kMaxThreads; ++i) mprotect(p + i * (kStackBytes + page), page, PROT_NONE);
  stacks.base = reinterpret_cast<uintptr_t>(p);
  stacks.size = size;
  return true;
}

static void free_all_stacks() {
  launch.free_stacks.clear();
  for (size_t i = kMaxThreads; i-- > 0;) {
    launch.free_stacks.push_back(reinterpret_cast<char*>(stacks.base + i * (kStackBytes + page) + page));
  }
}

// `fiber` is the running one from here on: its stack is the one in use, or about to be.
static void enter(Fiber& fiber) {
  hot.fiber = &fiber;
  hot.stack = reinterpret_cast<uintptr_t>(fiber.stack);
  hot.stamp = stamp_of(fiber);
}

// The clock or the epoch of the running fiber moved on.
static void restamp() { hot.stamp = stamp_of(*hot.fiber); }

static void make_ready(Fiber& fiber) {
  fiber.state = State::ready;
  launch.ready.push_back(fiber.index);
}

// ---- Nobody is ready ---------------------------------------------------------------------------------------------

static bool waits_alike(const Fiber& a, const Fiber& b) {
  if (a.state != b.state) return false;
  if (a.state == State::left) return true;
  return same_site(a.site, b.site) && a.call == b.call && a.mask == b.mask;
}

static const char* plural(size_t n) { return n == 1 ? "1 thread" : "threads"; }

// Groups the fibers by what they wait in, in the order of each group's first thread.
[[noreturn]] static void report_deadlock() {
  const Fiber* shown[8];
  size_t counts[8] = {}, groups = 0, others = 0;
  bool block_barrier = false;
  for (uint32_t i = 0; i < launch.threads; ++i) {
    const Fiber& fiber = launch.fibers[i];
    block_barrier = block_barrier || fiber.state == State::in_block_barrier;
    size_t g = 0;
    while (g < groups && !waits_alike(*shown[g], fiber)) ++g;
    if (g == 8) {
      ++others;
      continue;
    }
    if (g == groups) shown[groups++] = &fiber;
    ++counts[g];
  }
  Text text{launch.message, sizeof launch.message};
  text.add(block_barrier ? "divergent barrier: " : "a warp collective that not all lanes of its mask reach: ");
  for (size_t g = 0; g < groups; ++g) {
    const Fiber& fiber = *shown[g];
    if (g > 0) text.add("; ");
    if (counts[g] != 1) text.add("%zu ", counts[g]);
    text.add("%s (first: (%u,%u,%u)) ", plural(counts[g]), fiber.thread.x, fiber.thread.y, fiber.thread.z);
    if (fiber.state == State::left) {
      text.add("left the kernel");
      continue;
    }
    text.add(counts[g] == 1 ? "waits in %s" : "wait in %s", fiber.call);
    if (fiber.state == State::in_warp_collective) text.add(" with mask 0x%08x", fiber.mask);
    text.add(" of %s:%d", base_name(fiber.site.file), fiber.site.line);
  }
  if (others) text.add("; %zu more elsewhere", others);
  const uint3& b = launch.block_index;
  text.add(", block (%u,%u,%u) of kernel %s, seed %llu", b.x, b.y, b.z, launch.name,
           static_cast<unsigned long long>(launch.seed));
  end_launch();
}

// ---- Switching ---------------------------------------------------------------------------------------------------

// The next fiber to run, out of those that can.
static Fiber& draw() {
  if (launch.ready.empty()) report_deadlock();
  uint32_t drawn = launch.random.below(static_cast<uint32_t>(launch.ready.size()));
  Fiber& fiber = launch.fibers[launch.ready[drawn]];
  launch.ready[drawn] = launch.ready.back();
  launch.ready.pop_back();
  return fiber;
}

static void run_threads();

// Goes on in `to`, at its first instruction or where it paused; `from` is where the running one pauses.
static void switch_to(Context& from, Fiber& to) {
  if (!to.stack) {
    to.stack = launch.free_stacks.back();
    launch.free_stacks.pop_back();
    // Tops of stacks at the same place in every page would all fall into the same few cache lines.
    prepare(to.context, to.stack, kStackBytes - to.index % 16 * 192, run_threads);
  }
  enter(to);
  exchange(from, to.context);
}

// Leaves the running fiber, which waits or is ready, for another. Returns when it is entered again.
static void run_another() {
  Fiber& from = *hot.fiber;
  Fiber& to = draw();
  if (&to != &from) switch_to(from.context, to);
}

// What runs on a fiber's stack: a thread from its first instruction to its last; and then on the same stack, which is
// still in the cache, the next, if the one drawn has yet to begin. A kernel without barriers needs no other stack.
static void run_threads() {
  for (;;) {
    Fiber& me = *hot.fiber;
    launch.kernel(launch.args);
    if (!me.copies.empty()) {
      fault(me, Place::unknown(), "%zu cp.async not waited for at the end of the kernel", me.copies.size());
    }
    me.state = State::left;
    launch.free_stacks.push_back(me.stack);
    me.stack = nullptr;
    if (++launch.left == launch.threads) exchange(me.context, launch.main);
    Fiber& next = draw();
    if (next.stack) switch_to(me.context, next);
    next.stack = launch.free_stacks.back();
    launch.free_stacks.pop_back();
    enter(next);
  }
}

// Lets others run first. Atomics do so: else a thread that waits for another's would wait for ever.
static void yield() {
  make_ready(*hot.fiber);
  run_another();
}

static void wait_in(State state, const char* call, Site site, uint32_t mask) {
  Fiber& me = *hot.fiber;
  spend_on_meeting(site);
  me.state = state;
  me.call = call;
  me.site = site;
  me.mask = mask;
}

// ---- __syncthreads and its votes -----------------------------------------------------------------------------------

struct BlockBarrier {
  uint32_t arrived = 0;
  bool mixed = false;  // not all arrived at the same line
  Site site{nullptr, 0};
  const char* call = nullptr;
  int any = 0, all = 1, count = 0;
  int result = 0;
};
static BlockBarrier block_barrier_state;

static int meet_block(const char* call, Vote vote, int predicate, Site site) {
  BlockBarrier& barrier = block_barrier_state;
  if (barrier.arrived == 0) {
    int unread = barrier.result;  // some of the others may still have to return from the barrier before
    barrier = BlockBarrier{};
    barrier.result = unread;
    barrier.site = site;
    barrier.call = call;
  }
  if (!same_site(site, barrier.site) || call != barrier.call) barrier.mixed = true;
  barrier.any |= predicate != 0;
  barrier.all &= predicate != 0;
  barrier.count += predicate != 0;
  wait_in(State::in_block_barrier, call, site, 0);
  if (++barrier.arrived < launch.threads || barrier.mixed) {
    run_another();
    return barrier.result;
  }
  barrier.result = vote == Vote::any ? barrier.any : vote == Vote::all ? barrier.all : barrier.count;
  barrier.arrived = 0;
  next_epoch();
  for (uint32_t i = 0; i < launch.threads; ++i) {
    if (&launch.fibers[i] != hot.fiber) make_ready(launch.fibers[i]);
  }
  hot.fiber->state = State::ready;
  restamp();
  return barrier.result;
}

int block_barrier(Site site) { return meet_block("__syncthreads", Vote::any, 0, site); }

int block_vote(Vote vote, int predicate, Site site) {
  static const char* const names[] = {"__syncthreads_or", "__syncthreads_and", "__syncthreads_count"};
  return meet_block(names[static_cast<int>(vote)], vote, predicate, site);
}

}  // namespace emulator
