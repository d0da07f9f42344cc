// ldmatrix and mma.sync: eight by eight matrices of 16-bit elements out of shared memory, and products of fragments.
// Where an element lies: PTX ISA, "Warp-level matrix instructions", the figures of mma.m16n8k8 (.tf32), mma.m16n8k16
// (.bf16) and ldmatrix. With g = lane / 4 and t = lane % 4:
//
//   ldmatrix   lane 8i + j holds the address of row j of matrix i; lane gets, of each, elements (g, 2t) and (g, 2t + 1)
//   tf32   A 16x8   a0 (g, t)        a1 (g + 8, t)        a2 (g, t + 4)        a3 (g + 8, t + 4)
//          B  8x8   b0 (t, g)        b1 (t + 4, g)
//   bf16   A 16x16  a0 (g, 2t..+1)   a1 (g + 8, 2t..+1)   a2 (g, 2t + 8..+9)   a3 (g + 8, 2t + 8..+9)
//          B 16x8   b0 (2t..+1, g)   b1 (2t + 8..+9, g)
//   both   D 16x8   d0 (g, 2t)       d1 (g, 2t + 1)       d2 (g + 8, 2t)       d3 (g + 8, 2t + 1)
#pragma once

#include "warp.h"

namespace emulator {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

Words4 ldmatrix(uint32_t matrices, bool transposed, const void* row, Site site) {
  static const char* const names[] = {"ldmatrix_x2", "ldmatrix_x2_trans", "ldmatrix_x4", "ldmatrix_x4_trans"};
  Fiber& me = *hot.fiber;
  uint32_t lane = me.lane();
  Warp& mine = warps[me.warp()];
  uintptr_t address = reinterpret_cast<uintptr_t>(row);
  if (lane < 8 * matrices) {
    if (address - shared_base >= kArenaBytes) {
      fault(me, site, "ldmatrix of a row at 0x%zx, not in shared memory", address);
    }
    if (address % 16 != 0) misaligned(me, address, 16, Access::read, site);
  }
  mine.row[lane] = address;
  meet(kAllLanes, names[(matrices == 4) * 2 + transposed], true, site, [&](Warp& warp) {
    Fiber* lanes = &launch.fibers[me.warp() * kWarp];
    Stamp stamps[kWarp];
    for (uint32_t i = 0; i < kWarp; ++i) stamps[i] = stamp_of(lanes[i]);
    for (uint32_t m = 0; m < matrices; ++m) {
      uint16_t element[8][8];
      for (uint32_t j = 0; j < 8; ++j) {
        uintptr_t from = warp.row[8 * m + j];
        // Four lanes read a row, a word each; not the lane that gave the address, unless it is one of them.
        for (uint32_t word = 0; word < 4; ++word) {
          uint32_t reader = 4 * j + word;
          touch_as<4, Access::read>(lanes[reader], stamps[reader], 0, from + 4 * word, site);
        }
        memcpy(element[j], reinterpret_cast<void*>(from), 16);
      }
      for (uint32_t i = 0; i < kWarp; ++i) {
        uint32_t g = i / 4, t = i % 4;
        uint32_t low = transposed ? element[2 * t][g] : element[g][2 * t];
        uint32_t high = transposed ? element[2 * t + 1][g] : element[g][2 * t + 1];
        warp.a[i].word[m] = low | high << 16;
      }
    }
  });
  return mine.a[lane];
}

static float as_float(uint32_t bits_of_float) { return bits<float>(bits_of_float); }

// D += A B. Products of tf32 or bf16 numbers are exact in f32; they are added one after the other, k upwards.
template <int K>
static void multiply_add(float (&d)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < K; ++k) {
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
}

// Meets the warp; spread() puts the operands of lane 4 g + t where they belong in A and B.
template <int K, class Spread>
static Floats4 mma(const char* call, Floats4 d, Words4 a, uint64_t b, Site site, Spread spread) {
  uint32_t lane = hot.fiber->lane();
  Warp& mine = warps[hot.fiber->warp()];
  mine.a[lane] = a;
  mine.b[lane] = b;
  mine.d[lane] = d;
  meet(kAllLanes, call, true, site, [&](Warp& warp) {
    float A[16][K], B[K][8], D[16][8];
    for (uint32_t i = 0; i < kWarp; ++i) {
      uint32_t g = i / 4, t = i % 4;
      spread(A, B, g, t, warp.a[i].word, static_cast<uint32_t>(warp.b[i]), static_cast<uint32_t>(warp.b[i] >> 32));
      for (uint32_t e = 0; e < 4; ++e) D[g + 8 * (e / 2)][2 * t + e % 2] = warp.d[i].value[e];
    }
    multiply_add<K>(D, A, B);
    for (uint32_t i = 0; i < kWarp; ++i) {
      uint32_t g = i / 4, t = i % 4;
      for (uint32_t e = 0; e < 4; ++e) warp.d[i].value[e] = D[g + 8 * (e / 2)][2 * t + e % 2];
    }
  });
  return mine.d[lane];
}

Floats4 mma_tf32(Floats4 d, Words4 a, uint64_t b, Site site) {
  auto spread = [](float(&A)[16][8], float(&B)[8][8], uint32_t g, uint32_t t, const uint32_t* word, uint32_t b0,
                   uint32_t b1) {
    auto tf32 = [](uint32_t w) { return as_float(w & ~0x1FFFu); };
    for (uint32_t e = 0; e < 4; ++e) A[g + 8 * (e % 2)][t + 4 * (e / 2)] = tf32(word[e]);
    B[t][g] = tf32(b0);
    B[t + 4][g] = tf32(b1);
  };
  return mma<8>("mma_m16n8k8_tf32", d, a, b, site, spread);
}

Floats4 mma_bf16(Floats4 d, Words4 a, uint64_t b, Site site) {
  auto spread = [](float(&A)[16][16], float(&B)[16][8], uint32_t g, uint32_t t, const uint32_t* word, uint32_t b0,
                   uint32_t b1) {
    auto half = [](uint32_t w, uint32_t h) { return as_float(h ? w & 0xFFFF0000u : w << 16); };
    for (uint32_t h = 0; h < 2; ++h) {
      for (uint32_t e = 0; e < 4; ++e) A[g + 8 * (e % 2)][2 * t + 8 * (e / 2) + h] = half(word[e], h);
      B[2 * t + h][g] = half(b0, h);
      B[2 * t + 8 + h][g] = half(b1, h);
    }
  };
  return mma<16>("mma_m16n8k16_bf16", d, a, b, site, spread);
}

}  // namespace emulator
