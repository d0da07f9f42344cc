// The memory operations with names: 8- and 16-byte accesses, asynchronous copies, atomics, the fence.
#pragma once

#include "access.h"

namespace emulator {

template <uint32_t bytes, Access kind>
static void* touch_wide(const void* p, Site site) {
  touch<bytes, kind>(reinterpret_cast<uintptr_t>(p), site);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {  // on the thread's own stack, where touch() asks nothing
    misaligned(*hot.fiber, reinterpret_cast<uintptr_t>(p), bytes, kind, site);
  }
  return const_cast<void*>(p);
}

float4 load4(const void* p, Site site) { return *static_cast<float4*>(touch_wide<16, Access::read>(p, site)); }
void store4(void* p, float4 v, Site site) { *static_cast<float4*>(touch_wide<16, Access::write>(p, site)) = v; }
uint4 load16(const void* p, Site site) { return *static_cast<uint4*>(touch_wide<16, Access::read>(p, site)); }
uint2 load8(const void* p, Site site) { return *static_cast<uint2*>(touch_wide<8, Access::read>(p, site)); }
void store8(void* p, uint2 v, Site site) { *static_cast<uint2*>(touch_wide<8, Access::write>(p, site)) = v; }
void store16(void* p, uint4 v, Site site) { *static_cast<uint4*>(touch_wide<16, Access::write>(p, site)) = v; }

// ---- cp.async ----------------------------------------------------------------------------------------------------
// The bytes arrive at the wait that covers them, as late as they may. Until then the destination is poison, and marked:
// whoever touches it has not waited.

static void mark_pending(const Copy& copy, Stamp stamp) {
  for (uint32_t i = 0; i < copy.bytes; i += 4) arena.cells[(copy.to - shared_base + i) / 4].writer = stamp | kByteBits;
}

void copy_issue(void* to, const void* from, uint32_t bytes, bool valid, Site site) {
  Fiber& me = *hot.fiber;
  Copy copy{reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from), bytes, valid, me.copy_group};
  if (copy.to - shared_base >= kArenaBytes) {
    fault(me, site, "cp.async to 0x%zx, not in shared memory", copy.to);
  }
  if (valid && copy.from - device.base >= device.size) {
    fault(me, site, "cp.async from 0x%zx, not device memory", copy.from);
  }
  if (copy.from % bytes != 0) misaligned(me, copy.from, bytes, Access::read, site);
  if (bytes == 16) {
    touch<16, Access::write>(copy.to, site);
    if (valid) touch<16, Access::read>(copy.from, site);
  } else {
    touch<4, Access::write>(copy.to, site);
    if (valid) touch<4, Access::read>(copy.from, site);
  }
  memset(to, kPoison, bytes);
  mark_pending(copy, Stamp{kPending} << kEpochShift | (hot.stamp & kThreadBits));
  me.copies.push_back(copy);
}

void copy_commit() { ++hot.fiber->copy_group; }

// Completes all committed groups but the last `pending`.
void copy_wait(uint32_t pending) {
  Fiber& me = *hot.fiber;
  size_t done = 0;
  while (done < me.copies.size() && me.copies[done].group + pending < me.copy_group) {
    const Copy& copy = me.copies[done++];
    void* to = reinterpret_cast<void*>(copy.to);
    if (copy.valid) {
      memcpy(to, reinterpret_cast<void*>(copy.from), copy.bytes);
    } else {
      memset(to, 0, copy.bytes);
    }
    mark_pending(copy, hot.stamp);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<long>(done));
}

// ---- Atomics -----------------------------------------------------------------------------------------------------
// Nothing else runs meanwhile, so the operation is a plain one. Before it, others may get their turn: a loop that waits
// for another thread's atomic ends, if it can end.

template <class T, class Change>
static T atomic(T* p, Site site, Change change) {
  spend_on_meeting(site);
  if (launch.random.below(4) == 0) yield();
  touch<sizeof(T), Access::atomic>(reinterpret_cast<uintptr_t>(p), site);
  block_has_passed.atomic = true;
  T before = *p;
  *p = change(before);
  return before;
}

template <class T>
static T atomic_add_of(T* p, T v, Site site) {
  return atomic(p, site, [&](T old) { return old + v; });
}
uint32_t atomic_add(uint32_t* p, uint32_t v, Site site) { return atomic_add_of(p, v, site); }
float atomic_add(float* p, float v, Site site) { return atomic_add_of(p, v, site); }
double atomic_add(double* p, double v, Site site) { return atomic_add_of(p, v, site); }
int atomic_add(int* p, int v, Site site) {  // wraps round, as the unsigned does
  return static_cast<int>(atomic_add(reinterpret_cast<uint32_t*>(p), static_cast<uint32_t>(v), site));
}

template <class T>
static T atomic_max_of(T* p, T v, Site site) {
  return atomic(p, site, [&](T old) { return old < v ? v : old; });
}
uint32_t atomic_max(uint32_t* p, uint32_t v, Site site) { return atomic_max_of(p, v, site); }
int atomic_max(int* p, int v, Site site) { return atomic_max_of(p, v, site); }

template <class T>
static T atomic_min_of(T* p, T v, Site site) {
  return atomic(p, site, [&](T old) { return v < old ? v : old; });
}
uint32_t atomic_min(uint32_t* p, uint32_t v, Site site) { return atomic_min_of(p, v, site); }
int atomic_min(int* p, int v, Site site) { return atomic_min_of(p, v, site); }

uint32_t atomic_exchange(uint32_t* p, uint32_t v, Site site) {
  return atomic(p, site, [&](uint32_t) { return v; });
}
uint32_t atomic_compare_exchange(uint32_t* p, uint32_t expected, uint32_t desired, Site site) {
  return atomic(p, site, [&](uint32_t old) { return old == expected ? desired : old; });
}

void thread_fence() {
  if (block_has_passed.atomic) block_has_passed.fence = true;
}

}  // namespace emulator
