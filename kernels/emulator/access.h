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
uintptr_t code_offset(uintptr_t pc) { return pc - 1 - image().base; }

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

[[noreturn]] static void out_of_bounds(const Fiber& who, uintptr_t address, size_t bytes,
                                                                 Access kind, Place place) {
  char where[200];
  Text text{where, sizeof where};
  if (address - shared_base < kArenaBytes) {
    describe_shared(text, address - shared_base);
  } else {
    describe_device(text, address, bytes);
  }
  fault(who, place, "out-of-bounds %s of %zu bytes at 0x%zx, %s", verb(kind), bytes, address, where);
}

[[noreturn]] static void misaligned(const Fiber& who, uintptr_t address, size_t bytes,
                                                              Access kind, Place place) {
  fault(who, place, "misaligned %s of %zu bytes at 0x%zx", verb(kind), bytes, address);
}

[[noreturn]] static void race(const Fiber& who, Stamp then, const char* what, uintptr_t address,
                                                        Access kind, const char* reason, Place place) {
  char where[200], other[100];
  Text text{where, sizeof where}, thread{other, sizeof other};
  if (address - shared_base < kArenaBytes) {
    describe_shared(text, address - shared_base);
  } else {
    text.add("device memory at 0x%zx", address);
  }
  describe_thread(thread, then);
  fault(who, place, "race on %s: %s by %s, then %s, %s", where,
        (then & kAtomicBit) ? "atomic access" : what, other, verb(kind), reason);
}

// The writer of a shared word is of this epoch, and another thread, or a copy under way.
static void suspect_shared(const Fiber& who, Stamp then, const char* what, Stamp now,
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
static void suspect_device(const Fiber& who, Stamp then, Stamp now, uintptr_t address,
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
// settled() answers for nearly all accesses, calls nothing and so keeps no registers. Where it sees something to look
// at, it says false, and examine() goes through the same steps with time to ask and to report.

#define EMULATOR_HOT static inline __attribute__((always_inline))

// The bytes of a word that an access of `size` at `offset` touches.
template <size_t size>
EMULATOR_HOT Stamp bytes_of(size_t offset) {
  return size < 4 ? Stamp{(1u << size % 4) - 1} << (offset & 3) : kByteBits;
}

template <size_t size, Access kind>
EMULATOR_HOT Stamp stamp_for(Stamp thread, size_t offset) {
  return thread | bytes_of<size>(offset) | (kind == Access::atomic ? kAtomicBit : 0);
}

template <size_t size>
EMULATOR_HOT bool in_shared_variable(size_t offset) {
  return (offset & (kArenaGranule - 1)) + size <= arena.valid[offset / kArenaGranule];
}

template <size_t size>
EMULATOR_HOT bool in_allocation(size_t offset) {
  return (offset & (kGranule - 1)) + size <= device.valid[offset / kGranule];
}

EMULATOR_HOT bool other_thread(Stamp a, Stamp b) { return ((a ^ b) & kThreadBits) != 0; }
EMULATOR_HOT bool other_warp(Stamp a, Stamp b) { return ((a ^ b) & kWarpBits) != 0; }

// Has another thread written the word in this epoch, or is a copy to it under way?
EMULATOR_HOT bool writer_is_suspect(const Cell& cell, Stamp now) {
  return epoch_of(cell.writer) >= epoch_of(now) &&
         (other_thread(cell.writer, now) || epoch_of(cell.writer) == kPending);
}

EMULATOR_HOT bool reader_is_suspect(Stamp reader, Stamp now) {
  return epoch_of(reader) == epoch_of(now) && other_thread(reader, now);
}

// Has another thread written the word in this launch?
EMULATOR_HOT bool device_writer_is_suspect(Stamp writer, Stamp now) {
  return epoch_of(writer) >= hot.launch_epoch && (epoch_of(writer) < hot.block_epoch || other_thread(writer, now));
}

EMULATOR_HOT void record_write(Stamp& writer, Stamp now) {
  // Another part of the word, by the same thread: both parts, and atomic only if both are.
  bool more = ((writer ^ now) & ~(kByteBits | kAtomicBit)) == 0;
  writer = more ? (now & (writer | ~kAtomicBit)) | (writer & kByteBits) : now;
}

// Two readers are enough, if they are different threads, and of different warps where there are such: whoever writes
// is not both of them.
EMULATOR_HOT void record_read(Cell& cell, Stamp now) {
  Stamp(&r)[2] = cell.reader;
  uint32_t epoch = epoch_of(now);
  if (r[0] == now) return;
  if (epoch_of(r[0]) != epoch) {
    r[0] = now;
  } else if (!other_thread(r[0], now)) {
    r[0] = now | (r[0] & kByteBits);
  } else if (epoch_of(r[1]) != epoch) {
    r[1] = now;
  } else if (!other_thread(r[1], now)) {
    r[1] = now | (r[1] & kByteBits);
  } else if (!other_warp(r[1], now) || !other_warp(r[0], r[1])) {
    r[1] = now;
  } else if (!other_warp(r[0], now)) {
    r[0] = now;
  }
}

template <size_t size, Access kind>
EMULATOR_HOT bool settled(Stamp thread, uintptr_t stack, uintptr_t address) {
  if (--hot.budget < 0) return false;
  if (address - stack < kStackBytes) return true;
  size_t offset = address - shared_base;
  if (offset < kArenaBytes) {
    if (offset % size != 0 || !in_shared_variable<size>(offset)) return false;
    for (size_t i = 0; i < size; i += 4) {
      Cell& cell = arena.cells[(offset + i) / 4];
      Stamp now = stamp_for<size, kind>(thread, offset);
      if (writer_is_suspect(cell, now)) return false;
      if (kind == Access::read) {
        record_read(cell, now);
      } else {
        if (reader_is_suspect(cell.reader[0], now) || reader_is_suspect(cell.reader[1], now)) return false;
        record_write(cell.writer, now);
      }
    }
    return true;
  }
  offset = address - device.base;
  if (offset >= device.size || offset % size != 0 || !in_allocation<size>(offset)) return false;
  for (size_t i = 0; i < size; i += 4) {
    Stamp& writer = device.writer[(offset + i) / 4];
    Stamp now = stamp_for<size, kind>(thread, offset);
    if (device_writer_is_suspect(writer, now)) return false;
    if (kind != Access::read) record_write(writer, now);
  }
  return true;
}

static void examine_elsewhere(const Fiber& who, uintptr_t address, size_t bytes, Access kind, Place place) {
  if (kind == Access::read) {
    for (auto& segment : image().segments) {
      if (address >= segment.first && address < segment.second) return;
    }
  }
  const char* what = "not device memory (a host pointer?)";
  if (address < 4096) what = "a null pointer";
  if (address - stacks.base < stacks.size) what = "the local memory of another thread, or past a thread's stack";
  fault(who, place, "%s of %zu bytes at 0x%zx, %s", verb(kind), bytes, address, what);
}

template <size_t size, Access kind>
static __attribute__((noinline)) void examine(const Fiber& who, Stamp thread, uintptr_t address, Place place) {
  if (!launch.running) return;
  if (hot.budget < 0) endless(place);
  size_t offset = address - shared_base;
  bool shared = offset < kArenaBytes;
  if (!shared) offset = address - device.base;
  if (!shared && offset >= device.size) return examine_elsewhere(who, address, size, kind, place);
  if (offset % size != 0) misaligned(who, address, size, kind, place);
  if (shared ? !in_shared_variable<size>(offset) : !in_allocation<size>(offset)) {
    out_of_bounds(who, address, size, kind, place);
  }
  Stamp now = stamp_for<size, kind>(thread, offset);
  for (size_t i = 0; i < size; i += 4) {
    if (!shared) {
      Stamp& writer = device.writer[(offset + i) / 4];
      if (device_writer_is_suspect(writer, now)) suspect_device(who, writer, now, address + i, kind, place);
      if (kind != Access::read) record_write(writer, now);
      continue;
    }
    Cell& cell = arena.cells[(offset + i) / 4];
    if (writer_is_suspect(cell, now)) suspect_shared(who, cell.writer, "write", now, address + i, kind, place);
    if (kind == Access::read) {
      record_read(cell, now);
      continue;
    }
    for (Stamp reader : cell.reader) {
      if (reader_is_suspect(reader, now)) suspect_shared(who, reader, "read", now, address + i, kind, place);
    }
    record_write(cell.writer, now);
  }
}

// An access by fiber `who`, whose stamp and stack are given: a collective touches memory on behalf of other lanes.
template <size_t size, Access kind>
EMULATOR_HOT void touch_as(const Fiber& who, Stamp thread, uintptr_t stack, uintptr_t address, Place place) {
  if (!settled<size, kind>(thread, stack, address)) examine<size, kind>(who, thread, address, place);
}

template <size_t size, Access kind>
EMULATOR_HOT void touch(uintptr_t address, Place place) {
  touch_as<size, kind>(*hot.fiber, hot.stamp, hot.stack, address, place);
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

#define EMULATOR_PLACE emulator::Place(__builtin_return_address(0))
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

// Clang's, for arrays and structures that are copied or cleared as a whole.
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  emulator::touch_range<emulator::Access::read>(reinterpret_cast<uintptr_t>(from), bytes, EMULATOR_PLACE);
  emulator::touch_range<emulator::Access::write>(reinterpret_cast<uintptr_t>(to), bytes, EMULATOR_PLACE);
  return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, size_t bytes) {
  emulator::touch_range<emulator::Access::write>(reinterpret_cast<uintptr_t>(to), bytes, EMULATOR_PLACE);
  return memset(to, value, bytes);
}

// Kernels have no virtual functions, and their atomics are atomicAdd and its siblings: nothing else is called.
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_exit(void*) {}

// A function of the kernel begins. Recursion, or too many local arrays, would else end on the page below the stack.
extern "C" void __tsan_func_entry(void*) {
  using namespace emulator;
  uintptr_t left = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) - hot.stack;
  if (left < kStackBytes / 8 && launch.running) {
    fault(*hot.fiber, EMULATOR_PLACE, "stack overflow: a thread has %zu bytes", kStackBytes);
  }
}

// ---- What -fsanitize=bounds calls ----------------------------------------------------------------------------------
// Indices into arrays of known size: past the end of a row, or of an array in registers, no address is wrong.

struct BoundsCheck {
  emulator::Site site;  // file and line, then the column, in the compilers' layout
};

extern "C" void __ubsan_handle_out_of_bounds(const BoundsCheck* check, uintptr_t index) {
  using namespace emulator;
  if (launch.running) fault(*hot.fiber, check->site, "index %zd is out of an array's bounds", index);
}
