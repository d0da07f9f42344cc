// dw [taps * k, n] = (rows of a)T dz, summed over all positions: both operands lie across k of the product, the positions.
//
//   slot   64 positions of: 64 channels of a tap for each warpgroup | 216 outputs of dz, as four boxes of 64
//
// The rows of dw are taken 64 channels of a tap at a time, the last of a tap filled up with zeros: with 432 channels and nine
// taps 63 such groups, 21 times three. The last box of dz holds 24 columns that are used; what the product reads of it
// ends there.
//
// The blocks of a cluster have the same tile and share the positions, in order. At the end each lays its sums into its shared
// memory, and each adds a part of the tile, block by block in order: the same bits every time, and no partial sums in memory.
#pragma once

#include "ring.cuh"

constexpr uint32_t DZ_BOXES = (PRODUCT_COLUMNS + 63) / 64;
template <uint32_t WARPGROUPS> using GradientRing = Ring<WARPGROUPS, (WARPGROUPS + DZ_BOXES) * BOX_BYTES, false>;

// One tile. rows(to, barrier, position, tap, channel) sends for 64 positions of 64 channels.
template <uint32_t WARPGROUPS, class Rows>
__device__ __forceinline__ void weight_gradient(unsigned char* shared, const TensorMap& dz, float* dw, uint32_t positions,
                                                uint32_t taps, uint32_t k, uint32_t n, Rows rows) {
    using Slots = GradientRing<WARPGROUPS>;
    const Slots ring(shared);
    const uint32_t across = (n + PRODUCT_COLUMNS - 1) / PRODUCT_COLUMNS, tile = blockIdx.x / ring.blocks;
    const uint32_t column = tile % across * PRODUCT_COLUMNS, first = tile / across * WARPGROUPS;
    const uint32_t parts = (k + 63) / 64, groups = taps * parts; // of 64 rows of dw
    const uint32_t rank = cluster_rank(), slots = (positions + DEPTH - 1) / DEPTH;
    const uint32_t begin = slots * rank / ring.blocks, end = slots * (rank + 1) / ring.blocks;
    float sums[SUMS];
#pragma unroll
    for (uint32_t i = 0; i < SUMS; ++i) sums[i] = 0.0f;

    uint32_t position = begin * DEPTH; // of the next slot, by thread 0
    const auto fetch = [&](uint32_t slot, uint32_t barrier) {
#pragma unroll
        for (uint32_t g = 0; g < WARPGROUPS; ++g) {
            // What lies beyond the last group is not wanted, but announced.
            const uint32_t group = min(first + g, groups - 1), tap = group / parts;
            rows(slot + g * BOX_BYTES, barrier, position, tap, static_cast<int32_t>((group - tap * parts) * 64));
        }
#pragma unroll
        for (uint32_t j = 0; j < DZ_BOXES; ++j) {
            copy_box(slot + (WARPGROUPS + j) * BOX_BYTES, dz, barrier, static_cast<int32_t>(column + 64 * j),
                     static_cast<int32_t>(position));
        }
        position += DEPTH;
    };
    const auto products = [&](uint32_t slot) {
        const uint64_t a = operand(slot + threadIdx.x / WARPGROUP * BOX_BYTES, BOX_BYTES);
        const uint64_t b = operand(slot + WARPGROUPS * BOX_BYTES, BOX_BYTES);
        multiply_group<DEPTH / PRODUCT_K, true, NEXT_ACROSS_K>(sums, a, b);
    };
    ring.run(end - begin, fetch, products);

    ring.lay_down(reinterpret_cast<float*>(shared + (ring.slots - shared_address(shared))), sums);
    cluster_sync();
    constexpr uint32_t CHUNKS = PRODUCT_COLUMNS / 4;
    const bool aligned = reinterpret_cast<uintptr_t>(dw) % 16 == 0;
    for (uint32_t i = rank * Slots::THREADS + threadIdx.x; i < Slots::ROWS * CHUNKS; i += ring.blocks * Slots::THREADS) {
        const uint32_t r = i / CHUNKS, c = i % CHUNKS * 4;
        const uint32_t group = first + r / 64, tap = group / parts, channel = (group - tap * parts) * 64 + r % 64;
        if (group >= groups || channel >= k || column + c >= n) continue;
        double total[4] = {};
        for (uint32_t block = 0; block < ring.blocks; ++block) {
            const float4 part = load4_in_cluster(address_in(ring.slots + (r * PRODUCT_COLUMNS + c) * 4, block));
            total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
        }
        float* to = dw + (tap * k + channel) * n + column + c;
        const float4 sum = make_float4(static_cast<float>(total[0]), static_cast<float>(total[1]),
                                       static_cast<float>(total[2]), static_cast<float>(total[3]));
        // A gradient is a stretch of a long list and may begin anywhere.
        if (aligned) store4(to, sum);
        else to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
    }
    __syncwarp();
    cluster_sync(); // nobody leaves while others read its shared memory
}
