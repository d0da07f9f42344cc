// What one warp does in a matrix product: fragments of both operands from shared memory into registers, and the product
// of fragments on tensor cores. The flavours differ here and nowhere else.
//
//   FLAVOUR_BF16   mma m16n8k16, products of bf16
//   FLAVOUR_TF32   mma m16n8k8, operands rounded to TF32 (11 significant bits)
//   FLAVOUR_F32    three products m16n8k8 for one: x = big + small, both TF32, leaves 22 of 24 bits, and
//                  a b = small big + big small + big big
//
// A tensor core cuts its sums off where an f32 addition would round, so a long sum drifts towards zero. FLAVOUR_F32 lets
// it add only the 24 products of one piece of k and adds that to the running sum with the rounding of f32. The other
// flavours round their operands so coarsely that the drift does not show.
//
// Sources: PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16"; Ootomo and Yokota, "Recovering single precision
// accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance" (2022).
#pragma once

#include "common.cuh"

constexpr uint32_t PIECE = 32 / sizeof(real); // k of one mma: 16 of bf16, 8 of TF32
#ifdef FLAVOUR_F32
constexpr uint32_t PIECES_AT_ONCE = 1; // three times the products: more pieces would not fit the registers
#else
constexpr uint32_t PIECES_AT_ONCE = 2;
#endif
constexpr uint32_t CHUNK = 16 / sizeof(real); // values of one 16-byte access

// The fragment of A, 16 x PIECE, from lines of m: `from` is its first value, k runs along a line.
__device__ __forceinline__ void fragment_along_k(uint32_t (&a)[4], const real* from, uint32_t pitch) {
    // ldmatrix moves 16 bytes a row whatever they hold, and a TF32 fragment lies in its 32 bits as two bf16 would.
    const uint32_t lane = threadIdx.x % WARP;
    ldmatrix_x4(a, from + lane % 16 * pitch + lane / 16 * CHUNK);
}

// The same fragment from lines of k: m runs along a line.
__device__ __forceinline__ void fragment_across_k(uint32_t (&a)[4], const real* from, uint32_t pitch) {
    const uint32_t lane = threadIdx.x % WARP;
#ifdef FLAVOUR_BF16
    ldmatrix_x4_trans(a, from + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
#else
    const real* p = from + lane % 4 * pitch + lane / 4;
    a[0] = __float_as_uint(p[0]);
    a[1] = __float_as_uint(p[8]);
    a[2] = __float_as_uint(p[4 * pitch]);
    a[3] = __float_as_uint(p[4 * pitch + 8]);
#endif
}

// N neighbouring fragments of B, PIECE x 8 each, from lines of k.
template <uint32_t N>
__device__ __forceinline__ void fragments_of_b(uint32_t (&b)[N][2], const real* from, uint32_t pitch) {
    const uint32_t lane = threadIdx.x % WARP;
#ifdef FLAVOUR_BF16
#pragma unroll
    for (uint32_t j = 0; j + 1 < N; j += 2) {
        uint32_t pair[4];
        ldmatrix_x4_trans(pair, from + lane % 16 * pitch + lane / 16 * 8 + 8 * j);
        b[j][0] = pair[0], b[j][1] = pair[1];
        b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
    if constexpr (N % 2 == 1) ldmatrix_x2_trans(b[N - 1], from + lane % 16 * pitch + 8 * (N - 1));
#else
    const real* p = from + lane % 4 * pitch + lane / 4;
#pragma unroll
    for (uint32_t j = 0; j < N; ++j) {
        b[j][0] = __float_as_uint(p[8 * j]);
        b[j][1] = __float_as_uint(p[8 * j + 4 * pitch]);
    }
#endif
}

// The nearest TF32 of the f32 `bits`, and what is left of them when it is taken away.
__device__ __forceinline__ uint32_t big_part(uint32_t bits) { return to_tf32(__uint_as_float(bits)); }
__device__ __forceinline__ uint32_t small_part(uint32_t bits, uint32_t big) {
    return to_tf32(__uint_as_float(bits) - __uint_as_float(big));
}

// sums[i][j] += a[i] b[j].
template <uint32_t DOWN, uint32_t ACROSS>
__device__ __forceinline__ void multiply_fragments(float (&sums)[DOWN][ACROSS][4], const uint32_t (&a)[DOWN][4],
                                                   const uint32_t (&b)[ACROSS][2]) {
#if defined(FLAVOUR_BF16)
#pragma unroll
    for (uint32_t j = 0; j < ACROSS; ++j) {
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) mma_m16n8k16_bf16(sums[i][j], a[i], b[j]);
    }
#else
    uint32_t big_a[DOWN][4];
#pragma unroll
    for (uint32_t i = 0; i < DOWN; ++i) {
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) big_a[i][v] = big_part(a[i][v]);
    }
#pragma unroll
    for (uint32_t j = 0; j < ACROSS; ++j) {
        const uint32_t big_b[2] = {big_part(b[j][0]), big_part(b[j][1])};
#if defined(FLAVOUR_TF32)
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) mma_m16n8k8_tf32(sums[i][j], big_a[i], big_b);
#else
        const uint32_t small_b[2] = {small_part(b[j][0], big_b[0]), small_part(b[j][1], big_b[1])};
        float piece[DOWN][4] = {};
        // One kind of product for all rows, then the next: consecutive instructions do not wait for each other.
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) {
            uint32_t small_a[4];
#pragma unroll
            for (uint32_t v = 0; v < 4; ++v) small_a[v] = small_part(a[i][v], big_a[i][v]);
            mma_m16n8k8_tf32(piece[i], small_a, big_b);
        }
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) mma_m16n8k8_tf32(piece[i], big_a[i], small_b);
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) mma_m16n8k8_tf32(piece[i], big_a[i], big_b);
#pragma unroll
        for (uint32_t i = 0; i < DOWN; ++i) {
#pragma unroll
            for (uint32_t v = 0; v < 4; ++v) sums[i][j][v] += piece[i][v];
        }
#endif
    }
#endif
}
