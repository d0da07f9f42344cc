// Every load and store of a kernel comes through here: __tsan_read4(address) and its siblings, which the compiler calls
// because of -fsanitize=thread and which this file defines in place of the sanitizer's own library.
//
// An address is, in order of how often each is met: on the thread's own stack; in shared memory; in device memory; in
// the program's constants (readable). Anything else is a fault. The common way through costs a few nanoseconds.
#pragma once

#include <link.h>

#include "schedule.h"

namespace emulator {

enum class Access { read, write, atomic };

static const char* verb(Access kind) {
  return kind == Access::read ? "read" : kind == Access::write ? "write" : "atomic access";
}

// Where an access was made: in the code (plain ones) or on a line (those with a name).
struct Place {
  Site site{nullptr, 0};
  const void* pc = nullptr;
};

// ---- Slow ways: something is wrong, or may be --------------------------------------------------------------------

// The binary that holds this function: its constants are the kernels', as they are linked together.
struct Image {
  uintptr_t base = 0;
  std::vector<std::pair<uintptr_t, uintptr_t>> segments;
};

static const Image& image() {
  static Image found;
  if (found.segments.empty()) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) -> int {
          Image candidate;
          candidate.base = info->dlpi_addr;
          bool ours = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            uintptr_t from = info->dlpi_addr + header.p_vaddr, to = from + header.p_memsz;
            candidate.segments.push_back({from, to});
            uintptr_t here = reinterpret_cast<uintptr_t>(&image);
            ours = ours || (here >= from && here < to);
          }
          if (ours) found = candidate;
          return ours;
        },
        nullptr);
  }
  return found;
}

// A return address, less one to be inside the call, as an offset in the binary.
uintptr_t code_offset(const void* pc) { return reinterpret_cast<uintptr_t>(pc) - 1 - image().base; }

static void describe_thread(Text& text, Stamp stamp) {
  uint3 block = launch.block_index;
  for (const auto& started : launch.started) {
    if (started.epoch <= epoch_of(stamp)) block = started.block;
  }
  const uint3& t = launch.fibers[thread_of(stamp)].thread;
  text.add("thread (%u,%u,%u)", t.x, t.y, t.z);
  const uint3& b = launch.block_index;
  if (block.x != b.x || block.y != b.y || block.z != b.z) text.add(" of block (%u,%u,%u)", block.x, block.y, block.z);
}

[[noreturn]] static __attribute__((noinline)) void out_of_bounds(const Fiber& who, uintptr_t address, size_t bytes,
                                                                 Access kind, Place place) {
  char where[200];
  Text text{where, sizeof where};
  if (address - arena.base < kArenaBytes) {
    describe_shared(text, address - arena.base);
  } else {
    describe_device(text, address, bytes);
  }
  fault(who, place.site, place.pc, "out-of-bounds %s of %zu bytes at 0x%zx, %s", verb(kind), bytes, address, where);
}

[[noreturn]] static __attribute__((noinline)) void misaligned(const Fiber& who, uintptr_t address, size_t bytes,
                                                              Access kind, Place place) {
  fault(who, place.site, place.pc, "misaligned %s of %zu bytes at 0x%zx", verb(kind), bytes, address);
}

[[noreturn]] static __attribute__((noinline)) void race(const Fiber& who, Stamp then, const char* what, uintptr_t address,
                                                        Access kind, const char* reason, Place place) {
  char where[200], other[100];
  Text text{where, sizeof where}, thread{other, sizeof other};
  if (address - arena.base < kArenaBytes) {
    describe_shared(text, address - arena.base);
  } else {
    text.add("device memory at 0x%zx", address);
  }
  describe_thread(thread, then);
  fault(who, place.site, place.pc, "race on %s: %s by %s, then %s, %s", where,
        (then & kAtomicBit) ? "atomic access" : what, other, verb(kind), reason);
}

// The writer of a shared word is of this epoch, and another thread, or a copy under way.
static __attribute__((noinline)) void suspect_shared(const Fiber& who, Stamp then, const char* what, Stamp now,
                                                     uintptr_t address, Access kind, Place place) {
  if (epoch_of(then) == kPending && (then & now & kByteBits)) {
    race(who, then, "cp.async", address, kind, "before the wait for the copy", place);
  }
  if (epoch_of(then) == epoch_of(now) && races(then, now)) {
    race(who, then, what, address, kind, "with no barrier in between", place);
  }
}

// A block that made an atomic access and then passed a fence may rely on what the blocks before it wrote: so the CUDA
// guide's "last block" sum is sound, as long as it has both.
static struct { bool atomic, fence; } block_has_passed;

// The writer of a device word is of this launch, and another thread.
static __attribute__((noinline)) void suspect_device(const Fiber& who, Stamp then, Stamp now, uintptr_t address,
                                                     Access kind, Place place) {
  if (epoch_of(then) >= hot.block_epoch) {
    if (epoch_of(then) == epoch_of(now) && races(then, now)) {
      race(who, then, "write", address, kind, "with no barrier in between", place);
    }
  } else if ((then & now & kByteBits) && !(then & now & kAtomicBit) && !block_has_passed.fence) {
    race(who, then, "write", address, kind, "and blocks of a launch have no order", place);
  }
}

// ---- The common way ----------------------------------------------------------------------------------------------

#define EMULATOR_HOT inline __attribute__((always_inline))

// For an access of 4, 8 or 16 bytes this is called per word, for a smaller one with the bytes it touches.
template <Access kind>
static EMULATOR_HOT void touch_shared_word(const Fiber& who, Stamp stamp, size_t offset, Stamp byte_bits, Place place) {
  Cell& cell = arena.cells[offset / 4];
  Stamp now = stamp | byte_bits | (kind == Access::atomic ? kAtomicBit : 0);
  uint32_t epoch = epoch_of(now);
  uintptr_t address = arena.base + offset;
  Stamp w = cell.writer;
  if (epoch_of(w) >= epoch && (((w ^ now) & kThreadBits) || epoch_of(w) == kPending)) {
    suspect_shared(who, w, "write", now, address, kind, place);
  }
  if (kind != Access::read) {
    for (Stamp r : cell.reader) {
      if (epoch_of(r) == epoch && ((r ^ now) & kThreadBits)) suspect_shared(who, r, "read", now, address, kind, place);
    }
    bool more = ((w ^ now) & ~(kByteBits | kAtomicBit)) == 0;  // another part of the word, by the same thread
    cell.writer = more ? (w | byte_bits) & ~(kind == Access::atomic ? 0 : kAtomicBit) : now;
  } else {
    // Two readers are enough, if they are different threads, and of different warps where there are such: whoever
    // writes is not both of them.
    Stamp(&r)[2] = cell.reader;
    if (r[0] == now) return;
    auto same_thread = [&](Stamp s) { return epoch_of(s) == epoch && !((s ^ now) & kThreadBits); };
    auto same_warp = [&](Stamp s) { return !((s ^ now) & (kThreadBits & ~(Stamp{31} << kThreadShift))); };
    if (epoch_of(r[0]) != epoch) {
      r[0] = now;
    } else if (same_thread(r[0])) {
      r[0] = now | (r[0] & kByteBits);
    } else if (epoch_of(r[1]) != epoch) {
      r[1] = now;
    } else if (same_thread(r[1])) {
      r[1] = now | (r[1] & kByteBits);
    } else if (same_warp(r[1]) || !((r[0] ^ r[1]) & (kThreadBits & ~(Stamp{31} << kThreadShift)))) {
      r[1] = now;
    } else if (same_warp(r[0])) {
      r[0] = now;
    }
  }
}

template <Access kind>
static EMULATOR_HOT void touch_device_word(const Fiber& who, Stamp stamp, size_t offset, Stamp byte_bits, Place place) {
  Stamp& w = device.writer[offset / 4];
  Stamp now = stamp | byte_bits | (kind == Access::atomic ? kAtomicBit : 0);
  if (epoch_of(w) >= hot.launch_epoch && (epoch_of(w) < hot.block_epoch || ((w ^ now) & kThreadBits))) {
    suspect_device(who, w, now, device.base + offset, kind, place);
  }
  if (kind != Access::read) w = now;
}

template <size_t size, Access kind, class Word>
static EMULATOR_HOT void touch_words(size_t offset, Word word) {
  if (size < 4) {
    word(offset, Stamp{(1u << size) - 1} << (offset & 3));
  } else {
    for (size_t i = 0; i < size; i += 4) word(offset + i, kByteBits);
  }
}

static __attribute__((noinline)) void touch_elsewhere(const Fiber& who, uintptr_t address, size_t bytes, Access kind,
                                                      Place place);

// An access by fiber `who`, whose stamp and stack are given: a collective touches memory on behalf of other lanes.
template <size_t size, Access kind>
static EMULATOR_HOT void touch_as(const Fiber& who, Stamp stamp, uintptr_t stack, uintptr_t address, Place place) {
  if (address - stack < kStackBytes) return;
  size_t offset = address - arena.base;
  if (offset < kArenaBytes) {
    if ((offset & (size - 1)) != 0) misaligned(who, address, size, kind, place);
    if ((offset & (kArenaGranule - 1)) + size > arena.valid[offset / kArenaGranule]) {
      out_of_bounds(who, address, size, kind, place);
    }
    touch_words<size, kind>(
        offset, [&](size_t at, Stamp bytes) { touch_shared_word<kind>(who, stamp, at, bytes, place); });
    return;
  }
  offset = address - device.base;
  if (offset < device.size) {
    if ((offset & (size - 1)) != 0) misaligned(who, address, size, kind, place);
    if ((offset & (kGranule - 1)) + size > device.valid[offset / kGranule]) {
      out_of_bounds(who, address, size, kind, place);
    }
    touch_words<size, kind>(
        offset, [&](size_t at, Stamp bytes) { touch_device_word<kind>(who, stamp, at, bytes, place); });
    return;
  }
  touch_elsewhere(who, address, size, kind, place);
}

template <size_t size, Access kind>
static EMULATOR_HOT void touch(uintptr_t address, Place place) {
  touch_as<size, kind>(*hot.fiber, hot.stamp, hot.stack, address, place);
}

static void touch_elsewhere(const Fiber& who, uintptr_t address, size_t bytes, Access kind, Place place) {
  if (!launch.running) return;
  if (kind == Access::read) {
    for (auto& segment : image().segments) {
      if (address >= segment.first && address < segment.second) return;
    }
  }
  const char* what = "not device memory (a host pointer?)";
  if (address < 4096) what = "a null pointer";
  if (address - stacks.base < stacks.size) what = "the local memory of another thread, or past a thread's stack";
  fault(who, place.site, place.pc, "%s of %zu bytes at 0x%zx, %s", verb(kind), bytes, address, what);
}

// A stretch of memory, at any alignment.
template <Access kind>
static void touch_range(uintptr_t address, size_t bytes, Place place) {
  while (bytes > 0 && address % 4 != 0) touch<1, kind>(address, place), ++address, --bytes;
  for (; bytes >= 4; bytes -= 4, address += 4) touch<4, kind>(address, place);
  for (; bytes > 0; --bytes, ++address) touch<1, kind>(address, place);
}

}  // namespace emulator

// ---- What -fsanitize=thread calls ----------------------------------------------------------------------------------

#define EMULATOR_PLACE emulator::Place{{nullptr, 0}, __builtin_return_address(0)}
#define EMULATOR_TOUCH(verb, size) \
  extern "C" void __tsan_##verb##size(void* address) { \
    emulator::touch<size, emulator::Access::verb>(reinterpret_cast<uintptr_t>(address), EMULATOR_PLACE); \
  }
#define EMULATOR_TOUCH_UNALIGNED(verb, size) \
  extern "C" void __tsan_unaligned_##verb##size(void* address) { \
    emulator::touch_range<emulator::Access::verb>(reinterpret_cast<uintptr_t>(address), size, EMULATOR_PLACE); \
  }
#define EMULATOR_TOUCH_ALL(verb) \
  EMULATOR_TOUCH(verb, 1) \
  EMULATOR_TOUCH(verb, 2) \
  EMULATOR_TOUCH(verb, 4) \
  EMULATOR_TOUCH(verb, 8) \
  EMULATOR_TOUCH(verb, 16) \
  EMULATOR_TOUCH_UNALIGNED(verb, 2) \
  EMULATOR_TOUCH_UNALIGNED(verb, 4) \
  EMULATOR_TOUCH_UNALIGNED(verb, 8) \
  EMULATOR_TOUCH_UNALIGNED(verb, 16) \
  extern "C" void __tsan_##verb##_range(void* address, size_t bytes) { \
    emulator::touch_range<emulator::Access::verb>(reinterpret_cast<uintptr_t>(address), bytes, EMULATOR_PLACE); \
  }
EMULATOR_TOUCH_ALL(read)
EMULATOR_TOUCH_ALL(write)

// Kernels have no virtual functions, and their atomics are atomicAdd and its siblings: nothing else is called.
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
