// Who touched a word last, and was there a barrier since? Race detection by stamps.
//
// An access is stamped with  epoch | thread | clock | atomic | bytes of the word  in 64 bits. The epoch counts block
// barriers: it grows at the start of every block and at every __syncthreads, and never falls, so a stamp of an earlier
// block or launch needs no clearing away. Within an epoch, threads of different warps are not ordered at all, and
// those of one warp are ordered by __syncwarp, with any mask, which a small vector clock follows: known[u][t] is the
// last barrier of lane t that lane u knows of, at first or second hand.
// (Shuffles, votes and mma make lanes meet, but order no memory: CUDA guide, "Warp Shuffle Functions".)
//
// Two accesses of different threads race if one of them writes, they share a byte, they are not both atomic and nothing
// orders them. Shared memory keeps per word the last writer and two readers; device memory keeps the last writer.
#pragma once

#include "device_memory.h"

namespace emulator {

typedef uint64_t Stamp;
constexpr int kEpochShift = 32, kThreadShift = 22, kClockShift = 5;
constexpr Stamp kThreadBits = Stamp{0x3FF} << kThreadShift;
constexpr Stamp kWarpBits = Stamp{0x3E0} << kThreadShift;
constexpr Stamp kAtomicBit = 1 << 4;
constexpr Stamp kByteBits = 15;
constexpr uint32_t kMaxClock = (1u << (kThreadShift - kClockShift)) - 1;
// The epoch of a word that a cp.async will fill at some time: later than all others, so every check looks closer.
constexpr uint32_t kPending = 0xFFFFFFFFu;

static uint32_t epoch_of(Stamp s) { return static_cast<uint32_t>(s >> kEpochShift); }
static uint32_t thread_of(Stamp s) { return static_cast<uint32_t>((s & kThreadBits) >> kThreadShift); }
static uint32_t clock_of(Stamp s) { return static_cast<uint32_t>(s >> kClockShift) & kMaxClock; }

// What the lanes of a warp know of each other's barriers.
struct Clocks {
  uint32_t known[kWarp][kWarp];
};
static Clocks clocks[kMaxThreads / kWarp];
static uint32_t latest_clock;  // of any lane in this block

static Stamp stamp_of(const Fiber& fiber) {
  return Stamp{hot.epoch} << kEpochShift | Stamp{fiber.index} << kThreadShift |
         Stamp{clocks[fiber.warp()].known[fiber.lane()][fiber.lane()]} << kClockShift;
}

static void forget_clocks() {
  if (latest_clock) memset(clocks, 0, sizeof clocks);
  latest_clock = 0;
}

// A new span: all that was accessed before is ordered before all that will be.
static void next_epoch() {
  ++hot.epoch;
  forget_clocks();
}

// __syncwarp of the lanes in `mask`: each learns all that any of them knows.
static void join_clocks(uint32_t warp, uint32_t mask) {
  auto& known = clocks[warp].known;
  uint32_t joined[kWarp] = {};
  for (uint32_t u = 0; u < kWarp; ++u) {
    if (!(mask >> u & 1)) continue;
    uint32_t mine = ++known[u][u];
    if (mine > latest_clock) latest_clock = mine;
    for (uint32_t t = 0; t < kWarp; ++t) joined[t] = known[u][t] > joined[t] ? known[u][t] : joined[t];
  }
  for (uint32_t u = 0; u < kWarp; ++u) {
    if (mask >> u & 1) memcpy(known[u], joined, sizeof joined);
  }
}

// Of two accesses in one epoch, at least one of them a write: does nothing order them?
static bool races(Stamp then, Stamp now) {
  uint32_t t = thread_of(then), u = thread_of(now);
  if (t == u || !(then & now & kByteBits) || (then & now & kAtomicBit)) return false;
  return t / kWarp != u / kWarp || clocks[u / kWarp].known[u % kWarp][t % kWarp] <= clock_of(then);
}

// ---- Shared memory -----------------------------------------------------------------------------------------------

constexpr size_t kArenaBytes = 512 * 1024;
constexpr size_t kArenaGranule = 16;
constexpr size_t kGuard = 64;

struct Cell {
  Stamp writer, reader[2];
};

struct SharedVariable {
  const void* key;
  const char* name;
  size_t offset, bytes;
};

// The arena of the block that runs: guard, dynamic shared memory, guard, variable, guard, variable, ... in the order in
// which threads first reach the declarations. The places hold for a whole launch.
struct Arena {
  alignas(128) char memory[kArenaBytes];
  uint8_t valid[kArenaBytes / kArenaGranule];  // as Device::valid, for every 16 bytes
  Cell cells[kArenaBytes / 4];
  std::vector<SharedVariable> variables;
  size_t used = 0;   // bytes of the arena, guards included
  size_t asked = 0;  // bytes the kernel asked for
};
static Arena arena;
static const uintptr_t shared_base = reinterpret_cast<uintptr_t>(arena.memory);

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static SharedVariable& add_variable(const void* key, const char* name, size_t bytes) {
  size_t offset = arena.used;
  for (size_t done = 0; done < bytes; done += kArenaGranule) {
    arena.valid[(offset + done) / kArenaGranule] =
        static_cast<uint8_t>(bytes - done < kArenaGranule ? bytes - done : kArenaGranule);
  }
  memset(arena.memory + offset, kPoison, bytes);
  arena.used = round_up(offset + bytes, kArenaGranule) + kGuard;
  arena.asked += bytes;
  arena.variables.push_back({key, name, offset, bytes});
  return arena.variables.back();
}

// Before a launch: no variables but the dynamic one.
static void open_arena(size_t dynamic_bytes) {
  memset(arena.valid, 0, arena.used / kArenaGranule + 1);
  arena.variables.clear();
  arena.used = kGuard;
  arena.asked = 0;
  add_variable(nullptr, "dynamic shared memory", dynamic_bytes);
}

static void forget_cells() { memset(arena.cells, 0, sizeof arena.cells); }

// Before a block: nothing in shared memory is initialised.
static void poison_arena() { memset(arena.memory, kPoison, arena.used); }

static void describe_shared(Text& text, size_t offset) {
  const SharedVariable* nearest = nullptr;
  for (const SharedVariable& v : arena.variables) {
    if (offset + kGuard >= v.offset && (!nearest || v.offset <= offset)) nearest = &v;
  }
  if (!nearest) return text.add("where no shared variable is");
  const char* name = nearest->name;
  if (offset < nearest->offset) {
    text.add("%zu bytes before shared '%s'", nearest->offset - offset, name);
  } else if (offset < nearest->offset + nearest->bytes) {
    text.add("byte %zu of shared '%s'", offset - nearest->offset, name);
  } else {
    text.add("%zu bytes past the end of shared '%s' (%zu bytes)", offset - nearest->offset - nearest->bytes, name,
             nearest->bytes);
  }
}

}  // namespace emulator
