// A GPU for machines that have none: runs CUDA kernels on the CPU, and finds their bugs.
//
// Blocks run one after the other, in shuffled order; the threads of a block are fibers that take turns in shuffled
// order (schedule.h) and meet in barriers and warp collectives (warp.h, matrix.h). Every load and store is seen
// (access.h): bounds, alignment, use after free (device_memory.h), races (shadow.h). Everything random follows from the
// launch's seed, which every message names: a fault can be run again.
//
// A kernel's source is compiled after cuda.h, with -O1 -g -fsanitize=thread,bounds (Clang: thread,array-bounds), and
// linked without the sanitizers' libraries: their functions are here. This file is compiled with -O2 and without those
// flags; it is one translation unit, so that a check is inlined into the function the compiler calls. Linux only.
//
//   context.h -> state.h -> device_memory.h -> shadow.h -> schedule.h -> access.h -> warp.h -> matrix.h
//                                                                                 -> memory_ops.h
//
// This file: launches, and the interface to the host language.

#include "matrix.h"
#include "memory_ops.h"

namespace emulator {

uint3 thread_index() { return hot.fiber->thread; }
uint3 block_index() { return launch.block_index; }
uint3 block_size() { return launch.block; }
uint3 grid_size() { return launch.grid; }

const void* argument(void** args, size_t i) { return args[i]; }

void* shared_variable(const void* key, const char* name, size_t bytes, Site site) {
  SharedVariable* variable = nullptr;
  for (SharedVariable& v : arena.variables) {
    if (v.key == key) variable = &v;
  }
  if (!variable) {
    if (arena.asked + bytes > kMaxShared) {
      fault(*hot.fiber, site, "%zu bytes of shared memory, of which a block has %zu", arena.asked + bytes,
            kMaxShared);
    }
    variable = &add_variable(key, name, bytes);
  }
  return arena.memory + variable->offset;
}

void* dynamic_shared() { return arena.memory + arena.variables[0].offset; }

// ---- Running -----------------------------------------------------------------------------------------------------

static void start_block(uint3 index) {
  launch.block_index = index;
  launch.left = 0;
  next_epoch();
  hot.block_epoch = hot.epoch;
  launch.started.push_back({hot.epoch, index});
  poison_arena();
  block_barrier_state = BlockBarrier{};
  block_has_passed = {};
  hot.budget = kBlockBudget;
  launch.ready.clear();
  for (uint32_t i = 0; i < launch.threads; ++i) {
    Fiber& fiber = launch.fibers[i];
    fiber.call = nullptr;
    fiber.site = {nullptr, 0};
    fiber.mask = 0;
    fiber.copies.clear();
    fiber.copy_group = 0;
    fiber.stack = nullptr;
    make_ready(fiber);
  }
  for (uint32_t w = 0; w * kWarp < launch.threads; ++w) warps[w].waiting = 0;
}

// Runs the block to its end (true) or to its first fault.
static bool run_block(uint3 index) {
  start_block(index);
  switch_to(launch.main, draw());
  return launch.left == launch.threads;
}

// What a device would refuse to launch; null when it would not.
static const char* refusal(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes) {
  uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
  if (block[0] > 1024 || block[1] > 1024 || block[2] > 64) return "a block above 1024 x 1024 x 64";
  if (threads > kMaxThreads) return "more than 1024 threads a block";
  if (threads == 0) return "an empty block";
  if (grid[0] > 0x7FFFFFFF || grid[1] > 65535 || grid[2] > 65535) return "a grid above 2147483647 x 65535 x 65535";
  if (blocks == 0) return "an empty grid";
  if (blocks > 0xFFFFFFF) return "a grid of more blocks than anyone would wait for here";
  if (shared_bytes > kMaxShared) return "more than 227 KiB of shared memory";
  return nullptr;
}

static void number_threads(uint3 block) {
  launch.threads = block.x * block.y * block.z;
  if (launch.fibers.empty()) launch.fibers.resize(kMaxThreads);
  for (uint32_t i = 0; i < launch.threads; ++i) {
    Fiber& fiber = launch.fibers[i];
    fiber.index = static_cast<uint16_t>(i);
    fiber.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
}

// Runs all blocks, in shuffled order (Fisher and Yates), until one faults.
static bool run_grid() {
  uint32_t blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) {
    uint32_t j = launch.random.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  const uint3& grid = launch.grid;
  for (uint32_t i : order) {
    if (!run_block({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y})) return false;
  }
  return true;
}

}  // namespace emulator

// ---- The interface to the host -------------------------------------------------------------------------------------
// 0 is success; else `message` says what was wrong.

using emulator::device;
using emulator::Text;

#define EMULATOR_TELL(...) \
  do { \
    Text told{message, message_size}; \
    told.add(__VA_ARGS__); \
    return 1; \
  } while (false)

extern "C" int grad_emulator_launch(const char* name, void (*kernel)(void**), void** args, const uint32_t grid[3],
                                    const uint32_t block[3], uint32_t shared_bytes, uint64_t seed, char* message,
                                    size_t message_size) {
  using namespace emulator;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  if (const char* why = refusal(grid, block, shared_bytes)) {
    EMULATOR_TELL("launch of kernel %s refused: %s (grid %ux%ux%u, block %ux%ux%u, %u bytes), seed %llu", name, why,
                  grid[0], grid[1], grid[2], block[0], block[1], block[2], shared_bytes,
                  static_cast<unsigned long long>(seed));
  }
  if (!open_device() || !open_stacks()) {
    EMULATOR_TELL("launch of kernel %s: no address space for the emulated device, seed %llu", name,
                  static_cast<unsigned long long>(seed));
  }
  if (hot.epoch > 0x80000000u) {
    forget_writers();
    forget_cells();
    hot.epoch = 0;
  }
  open_arena(shared_bytes);
  free_all_stacks();
  launch.name = name;
  launch.kernel = kernel;
  launch.args = args;
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.block = {block[0], block[1], block[2]};
  launch.seed = seed;
  // Nearby seeds give unrelated schedules; the state of xorshift is never 0.
  launch.random.state = (seed + 1) * 0x9E3779B97F4A7C15ull | 1;
  launch.started.clear();
  number_threads(launch.block);
  hot.launch_epoch = hot.epoch + 1;
  launch.running = true;
  bool sound = run_grid();
  launch.running = false;
  if (sound) return 0;
  forget_cells();  // asynchronous copies may be under way for ever
  EMULATOR_TELL("%s", launch.message);
}

extern "C" uint64_t grad_emulator_allocate(size_t bytes) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  return emulator::allocate(bytes);
}

// The live allocation that [address, address + bytes) lies in, whole and with its canaries; else tells why not.
static int locate(uint64_t address, size_t bytes, const char* what, char* message, size_t message_size) {
  size_t offset = address - device.base;
  if (offset >= device.size) EMULATOR_TELL("%s at 0x%zx: not device memory", what, static_cast<size_t>(address));
  auto next = device.live.upper_bound(offset);
  if (next != device.live.begin()) {
    auto found = std::prev(next);
    if (offset - found->first <= found->second && bytes <= found->second - (offset - found->first)) {
      long damaged = emulator::damaged_canary(found->first, found->second);
      if (damaged == 0) return 0;
      EMULATOR_TELL("%s at 0x%zx: memory was overwritten %ld bytes %s an allocation of %zu bytes", what,
                    static_cast<size_t>(address), damaged < 0 ? -damaged : damaged - 1,
                    damaged < 0 ? "before" : "past the end of", found->second);
    }
  }
  char where[200];
  Text text{where, sizeof where};
  emulator::describe_device(text, address, bytes);
  EMULATOR_TELL("%s of %zu bytes at 0x%zx: %s", what, bytes, static_cast<size_t>(address), where);
}

extern "C" int grad_emulator_free(uint64_t address, char* message, size_t message_size) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  auto found = device.live.find(address - device.base);
  if (found == device.live.end()) {
    char where[200];
    Text text{where, sizeof where};
    emulator::describe_device(text, address, 0);
    EMULATOR_TELL("free of 0x%zx, which is not the address of an allocation: %s", static_cast<size_t>(address), where);
  }
  int damaged = locate(address, 0, "free", message, message_size);
  emulator::release(found);
  return damaged;
}

extern "C" int grad_emulator_write(uint64_t to, const void* from, size_t bytes, char* message, size_t message_size) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  if (locate(to, bytes, "write", message, message_size)) return 1;
  memcpy(reinterpret_cast<void*>(to), from, bytes);
  return 0;
}

extern "C" int grad_emulator_read(void* to, uint64_t from, size_t bytes, char* message, size_t message_size) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  if (locate(from, bytes, "read", message, message_size)) return 1;
  memcpy(to, reinterpret_cast<void*>(from), bytes);
  return 0;
}

extern "C" int grad_emulator_copy(uint64_t to, uint64_t from, size_t bytes, char* message, size_t message_size) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  if (locate(from, bytes, "copy from", message, message_size)) return 1;
  if (locate(to, bytes, "copy to", message, message_size)) return 1;
  memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  return 0;
}

extern "C" int grad_emulator_fill(uint64_t to, uint8_t value, size_t bytes, char* message, size_t message_size) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  if (locate(to, bytes, "fill", message, message_size)) return 1;
  memset(reinterpret_cast<void*>(to), value, bytes);
  return 0;
}

extern "C" void grad_emulator_limit(size_t bytes) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  device.limit = bytes;
}

extern "C" size_t grad_emulator_live(void) {
  std::lock_guard<std::mutex> lock(emulator::one_at_a_time);
  return device.live_bytes;
}
