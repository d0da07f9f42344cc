// What the lanes of a warp do together: __syncwarp, votes, shuffles. (ldmatrix and mma: matrix.h.)
//
// A collective is a meeting. Every lane puts its operands into its own slot and waits; the lane that completes the
// mask does the work for all of them, and each takes its result from its slot when it runs again. Nobody can have
// overwritten it: only the lane itself writes into its slot, at its next collective. Groups with different masks meet
// independently.
#pragma once

#include "access.h"

namespace emulator {

struct Warp {
  uint32_t waiting = 0;  // the lanes that wait in some collective
  const char* call[kWarp];
  Site site[kWarp];
  uint32_t mask[kWarp];

  uint64_t value[kWarp];  // operand, then result
  int lane[kWarp];        // of a shuffle: the other operand
  Words4 a[kWarp];        // of mma and ldmatrix
  uint64_t b[kWarp];
  Floats4 d[kWarp];
  uintptr_t row[kWarp];
};
static Warp warps[kMaxThreads / kWarp];

// Waits for the lanes of `mask` to come to the same call, for `strict` ones on the same line; the last to come calls
// work(warp) for all. `call` is a string constant.
template <class Work>
static void meet(uint32_t mask, const char* call, bool strict, Site site, Work work) {
  Fiber& me = *hot.fiber;
  Warp& warp = warps[me.warp()];
  uint32_t mine = me.lane();
  if (!(mask >> mine & 1)) fault(me, site, "the mask 0x%08x of %s lacks the calling lane %u", mask, call, mine);
  wait_in(State::in_warp_collective, call, site, mask);
  warp.waiting |= 1u << mine;
  warp.call[mine] = call;
  warp.site[mine] = site;
  warp.mask[mine] = mask;
  bool complete = (warp.waiting & mask) == mask;
  for (uint32_t i = 0; complete && i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    complete = warp.call[i] == call && warp.mask[i] == mask &&
               (!strict || same_site(warp.site[i], site));
  }
  if (!complete) return run_another();
  work(warp);
  warp.waiting &= ~mask;
  Fiber* lanes = &launch.fibers[me.warp() * kWarp];
  for (uint32_t i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) && i != mine) make_ready(lanes[i]);
  }
  me.state = State::ready;
}

void warp_barrier(uint32_t mask, Site site) {
  uint32_t warp = hot.fiber->warp();
  meet(mask, "__syncwarp", false, site, [&](Warp&) {
    if (latest_clock == kMaxClock) next_epoch();
    join_clocks(warp, mask);
  });
  restamp();
}

uint32_t warp_ballot(uint32_t mask, bool predicate, const char* name, Site site) {
  uint32_t lane = hot.fiber->lane();
  Warp& mine = warps[hot.fiber->warp()];
  mine.value[lane] = predicate;
  meet(mask, name, false, site, [&](Warp& warp) {
    uint64_t votes = 0;
    for (uint32_t i = 0; i < kWarp; ++i) votes |= (mask >> i & 1 ? warp.value[i] & 1 : 0) << i;
    for (uint32_t i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) warp.value[i] = votes;
    }
  });
  return static_cast<uint32_t>(mine.value[lane]);
}

// A lane that is read but not in the mask gives poison: NaN. (On the GPU: undefined.)
uint64_t warp_shuffle(Shuffle kind, uint32_t mask, uint64_t value, int operand, Site site) {
  static const char* const names[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync"};
  uint32_t lane = hot.fiber->lane();
  Warp& mine = warps[hot.fiber->warp()];
  mine.value[lane] = value;
  mine.lane[lane] = operand;
  meet(mask, names[static_cast<int>(kind)], false, site, [&](Warp& warp) {
    uint64_t result[kWarp];
    for (int i = 0; i < static_cast<int>(kWarp); ++i) {
      if (!(mask >> i & 1)) continue;
      int n = warp.lane[i], from = i;
      switch (kind) {
        case Shuffle::index: from = n & 31; break;
        case Shuffle::exclusive_or: from = i ^ n; break;
        case Shuffle::up: from = i - n; break;
        case Shuffle::down: from = i + n; break;
      }
      if (from < 0 || from > 31) from = i;
      result[i] = mask >> from & 1 ? warp.value[from] : UINT64_MAX;
    }
    for (uint32_t i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) warp.value[i] = result[i];
    }
  });
  return mine.value[lane];
}

}  // namespace emulator
