// Device memory: one big reserved range of addresses, handed out so that every mistake shows.
//
//   reserved range  [ ... |canary 256| data, filled with 0xFF |canary 64..|   |canary| data |canary| ... ]
//   valid[]         for every 256 bytes of the range, how many of them, from the first on, belong to live data
//   writer[]        for every word of the range, the stamp of its last writer (shadow.h)
//
// Data starts at a multiple of 256, so "does this access lie inside one live allocation" is one load and one compare.
// Free space is found by walking on from the last allocation, and round again at the end of the range: memory is
// reused after 64 GiB of allocations, and an access to what was freed is known for what it is. Pages are given back to
// the system when the last allocation on them goes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <map>

#include "state.h"

namespace emulator {

constexpr size_t kGranule = 256;
constexpr size_t kCanary = 64;
constexpr uint8_t kCanaryByte = 0xCA;
constexpr uint8_t kPoison = 0xFF;  // as float, bfloat16 or double: NaN
static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));

struct Freed { size_t offset, bytes; };

struct Device {
  uintptr_t base = 0;
  size_t size = 0;
  uint16_t* valid = nullptr;
  uint64_t* writer = nullptr;

  std::map<size_t, size_t> live;  // offset of the data -> its bytes
  std::deque<Freed> freed;        // the last of them, for messages
  size_t cursor = 0;
  size_t limit = size_t{8} << 30;
  size_t live_bytes = 0;
};
static Device device;

static char* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

// Reserves the range and its two tables: as much as the system lets us have, 64 GiB if possible.
static bool open_device() {
  if (device.base) return true;
  for (size_t size = size_t{64} << 30; size >= size_t{1} << 30; size /= 2) {
    size_t table = size / kGranule * sizeof(uint16_t);
    char* p = reserve(size + table + 2 * size + kGranule);
    if (!p) continue;
    device.base = (reinterpret_cast<uintptr_t>(p) + kGranule - 1) & ~(kGranule - 1);
    device.size = size;
    device.valid = reinterpret_cast<uint16_t*>(device.base + size);
    device.writer = reinterpret_cast<uint64_t*>(device.base + size + table);
    return true;
  }
  return false;
}

// The bytes an allocation takes up, from its first canary to the end of its last.
static size_t footprint(size_t bytes) { return kGranule + ((bytes + kCanary + kGranule - 1) & ~(kGranule - 1)); }

static uint8_t* at(size_t offset) { return reinterpret_cast<uint8_t*>(device.base + offset); }

static void set_valid(size_t offset, size_t bytes, bool valid) {
  for (size_t done = 0; done < bytes; done += kGranule) {
    size_t here = bytes - done < kGranule ? bytes - done : kGranule;
    device.valid[(offset + done) / kGranule] = valid ? static_cast<uint16_t>(here) : 0;
  }
}

static void fill_canaries(size_t offset, size_t bytes) {
  memset(at(offset - kCanary), kCanaryByte, kCanary);
  memset(at(offset + bytes), kCanaryByte, kCanary);
}

// How far off the data the first damaged canary byte is (negative: before it); 0 when all are whole.
static long damaged_canary(size_t offset, size_t bytes) {
  for (size_t i = 0; i < kCanary; ++i) {
    if (at(offset)[-1 - static_cast<long>(i)] != kCanaryByte) return -1 - static_cast<long>(i);
    if (at(offset)[bytes + i] != kCanaryByte) return static_cast<long>(1 + i);
  }
  return 0;
}

// Where `bytes` fit: the first gap at or after the cursor, else from the start. SIZE_MAX when there is none.
static size_t find_gap(size_t bytes) {
  size_t need = footprint(bytes);
  for (int round = 0; round < 2; ++round) {
    size_t start = round == 0 ? device.cursor : 0;
    // The allocation that the cursor may stand in ends before the gap.
    auto next = device.live.upper_bound(start);
    if (next != device.live.begin()) {
      auto previous = std::prev(next);
      size_t end = previous->first - kGranule + footprint(previous->second);
      if (end > start) start = end;
    }
    for (; next != device.live.end(); ++next) {
      if (start + need <= next->first - kGranule) return start + kGranule;
      start = next->first - kGranule + footprint(next->second);
    }
    if (start + need <= device.size) return start + kGranule;
  }
  return SIZE_MAX;
}

static uint64_t allocate(size_t bytes) {
  if (!open_device()) return 0;
  if (bytes > device.limit || device.live_bytes > device.limit - bytes) return 0;
  size_t offset = find_gap(bytes);
  if (offset == SIZE_MAX) return 0;
  memset(at(offset), kPoison, bytes);
  fill_canaries(offset, bytes);
  set_valid(offset, bytes, true);
  device.live.emplace(offset, bytes);
  device.live_bytes += bytes;
  device.cursor = offset - kGranule + footprint(bytes);
  return device.base + offset;
}

// Gives back the pages between `from` and `to` that nothing lies on.
static void release_pages(uintptr_t from, uintptr_t to) {
  from = (from + page - 1) & ~(page - 1);
  to &= ~(page - 1);
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

static void release(std::map<size_t, size_t>::iterator allocation) {
  size_t offset = allocation->first, bytes = allocation->second;
  set_valid(offset, bytes, false);
  auto next = device.live.erase(allocation);
  device.live_bytes -= bytes;
  device.freed.push_back({offset, bytes});
  if (device.freed.size() > 4096) device.freed.pop_front();

  // Its first and last page may be shared with neighbours: up to a page more on either side, if that is free. A table
  // with `up` bytes for `down` bytes of memory has pages that stand for more memory, or less.
  size_t begin = offset - kGranule, end = begin + footprint(bytes);
  size_t before = 0, after = device.size;
  if (next != device.live.end()) after = next->first - kGranule;
  if (next != device.live.begin()) {
    auto previous = std::prev(next);
    before = previous->first - kGranule + footprint(previous->second);
  }
  auto release_table = [&](const void* table, size_t up, size_t down) {
    size_t margin = page * down / up;
    size_t from = begin - before > margin ? begin - margin : before;
    size_t to = after - end > margin ? end + margin : after;
    uintptr_t start = reinterpret_cast<uintptr_t>(table);
    release_pages(start + from * up / down, start + to * up / down);
  };
  release_table(at(0), 1, 1);
  release_table(device.writer, sizeof(uint64_t), 4);
  release_table(device.valid, sizeof(uint16_t), kGranule);
}

// Forgets all writers, so that epochs can be counted from 1 again.
static void forget_writers() {
  if (device.base) madvise(device.writer, 2 * device.size, MADV_DONTNEED);
}

// Says what lies at a device address that is not inside a live allocation.
static void describe_device(Text& text, uintptr_t address, size_t bytes) {
  size_t offset = address - device.base;
  for (auto freed = device.freed.rbegin(); freed != device.freed.rend(); ++freed) {
    if (offset >= freed->offset && offset < freed->offset + (freed->bytes ? freed->bytes : 1)) {
      return text.add("%zu bytes into an allocation of %zu bytes that was freed", offset - freed->offset, freed->bytes);
    }
  }
  auto next = device.live.upper_bound(offset);
  size_t past = SIZE_MAX, before = SIZE_MAX, previous_bytes = 0;
  if (next != device.live.end()) before = next->first - offset;
  if (next != device.live.begin()) {
    auto previous = std::prev(next);
    previous_bytes = previous->second;
    if (offset < previous->first + previous_bytes) {
      return text.add("the last %zu of them past the end of an allocation of %zu bytes",
                      offset + bytes - previous->first - previous_bytes, previous_bytes);
    }
    past = offset - previous->first - previous_bytes;
  }
  if (past == SIZE_MAX && before == SIZE_MAX) return text.add("where nothing is allocated");
  if (past <= before) return text.add("%zu bytes past the end of an allocation of %zu bytes", past, previous_bytes);
  text.add("%zu bytes before an allocation of %zu bytes", before, next->second);
}

}  // namespace emulator
