// What the parts of the emulator share: the launch that runs, its fibers, and how a fault ends it.
//
// One launch runs at a time, on one thread of the process, under one mutex: nothing here is atomic or thread-local.
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include <mutex>
#include <vector>

#include "context.h"
#include "cuda.h"

namespace emulator {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 * 1024;
constexpr size_t kStackBytes = 128 * 1024;
// Loads and stores of one block, some seconds' worth; an atomic or a meeting counts as kMeetingCost of them.
constexpr int64_t kBlockBudget = int64_t{1} << 30;
constexpr int64_t kMeetingCost = 32;

// A cp.async that was issued and not yet waited for.
struct Copy {
  uintptr_t to, from;
  uint32_t bytes;
  bool valid;
  uint32_t group;
};

enum class State : uint8_t { ready, in_block_barrier, in_warp_collective, left };

// One thread of the block.
struct Fiber {
  Context context;
  char* stack;  // null before it first runs, and when it has left
  uint3 thread;
  uint16_t index;
  State state;
  // The synchronising call it waits in, or came through last; for a warp's, the mask it was given.
  const char* call;
  Site site;
  uint32_t mask;
  std::vector<Copy> copies;
  uint32_t copy_group;

  uint32_t lane() const { return index % kWarp; }
  uint32_t warp() const { return index / kWarp; }
};

// xorshift64* (Vigna 2016): the schedule is a function of the launch's seed alone.
struct Random {
  uint64_t state = 1;
  uint32_t below(uint32_t n) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return static_cast<uint32_t>(((state * 0x2545F4914F6CDD1Dull >> 32) * n) >> 32);
  }
};

struct Launch {
  const char* name = "";
  void (*kernel)(void**) = nullptr;
  void** args = nullptr;
  uint3 grid{}, block{};
  uint32_t threads = 0;
  uint64_t seed = 0;
  Random random;
  bool running = false;

  // Of the block that runs.
  uint3 block_index{};
  std::vector<Fiber> fibers;  // the first `threads` of them
  std::vector<uint16_t> ready;
  std::vector<char*> free_stacks;
  uint32_t left = 0;

  // First epoch of every block run so far, in order, and which block it was: names the other party of a race.
  struct Started { uint32_t epoch; uint3 block; };
  std::vector<Started> started;

  Context main;
  char message[1024];
};

// What every access reads. Epochs number the spans between block barriers, over all blocks of all launches.
struct Hot {
  uintptr_t stack = 0;  // of the current fiber
  uint64_t stamp = 0;   // of the current fiber: see shadow.h
  uint32_t launch_epoch = 0, block_epoch = 0, epoch = 0;
  int64_t budget = 0;  // how much more this block may do before it is taken for endless
  Fiber* fiber = nullptr;
};

static std::mutex one_at_a_time;
static Launch launch;
static Hot hot;

static bool same_site(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

static const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

// Text appended piece by piece to a buffer; what does not fit is cut.
struct Text {
  char* buffer;
  size_t size;
  size_t used = 0;
  void add(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    va_list list;
    va_start(list, format);
    add_list(format, list);
    va_end(list);
  }
  void add_list(const char* format, va_list list) {
    if (used >= size) return;
    int n = vsnprintf(buffer + used, size - used, format, list);
    if (n > 0) used += static_cast<size_t>(n);
  }
};

// Ends the launch: the message is kept, the fibers stay where they are for ever, the launch goes on in its caller.
[[noreturn]] static void end_launch() {
  static Context nowhere;
  exchange(nowhere, launch.main);
  __builtin_unreachable();  // nobody enters `nowhere`
}

// What a thread was doing: on which line, for what has a name; for plain loads and stores, after which instruction.
// (Two words, so that it travels in registers through the way that every access takes.)
struct Place {
  const char* file;  // null: `where` is an address in the code
  uintptr_t where;
  Place(Site site) : file(site.file), where(static_cast<uintptr_t>(site.line)) {}
  explicit Place(const void* pc) : file(nullptr), where(reinterpret_cast<uintptr_t>(pc)) {}
  static Place unknown() { return Place(static_cast<const void*>(nullptr)); }
};

uintptr_t code_offset(uintptr_t pc);

// A fault of one thread. Of a plain access it says the offset of the code in the binary: `addr2line -e BINARY OFFSET`
// gives the line.
[[noreturn, gnu::format(printf, 3, 4)]] static void fault(const Fiber& who, Place place, const char* format, ...) {
  Text text{launch.message, sizeof launch.message};
  va_list list;
  va_start(list, format);
  text.add_list(format, list);
  va_end(list);
  const uint3 &b = launch.block_index, &t = who.thread;
  text.add(", block (%u,%u,%u) thread (%u,%u,%u) of kernel %s", b.x, b.y, b.z, t.x, t.y, t.z, launch.name);
  if (place.file) {
    text.add(", at %s:%zu", base_name(place.file), place.where);
  } else {
    if (place.where) text.add(", code offset 0x%zx", code_offset(place.where));
    if (who.site.file) text.add(", after %s of %s:%d", who.call, base_name(who.site.file), who.site.line);
  }
  text.add(", seed %llu", static_cast<unsigned long long>(launch.seed));
  end_launch();
}

[[noreturn]] static void endless(Place place) {
  fault(*hot.fiber, place, "endless loop: over %lld accesses and waits of one block",
        static_cast<long long>(kBlockBudget));
}

static void spend_on_meeting(Site site) {
  hot.budget -= kMeetingCost;
  if (hot.budget < 0) endless(site);
}

}  // namespace emulator
