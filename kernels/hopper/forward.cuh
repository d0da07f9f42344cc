// y [m, n] = act(a [m, taps * k] b + bias) by tiles of 192 x 216, or dy act'(..): both operands lie along k.
//
//   slot   a: 192 rows of 64 channels of one tap     b: 216 outputs of the same 64 channels, weights [taps, n, k]
//
// 216 divides the channels of the networks, 432 and 864, and 12544 x 432 values are 132 tiles: one for each multiprocessor.
// Where k is no multiple of 64, the last slot of a tap is filled up with zeros, and products of zeros alone are left out.
// Blocks of a cluster have the same rows and neighbouring columns; each sends its share of the rows to all.
#pragma once

#include "activation.cuh"
#include "vector.cuh"
#include "ring.cuh"

constexpr uint32_t FORWARD_ROWS = 192;
using ForwardRing = Ring<3, (FORWARD_ROWS + PRODUCT_COLUMNS) * ROW_BYTES, true>;
static_assert(ForwardRing::ROWS == FORWARD_ROWS && ForwardRing::THREADS == 384);

struct ForwardTile {
    uint32_t row, column, share; // rows that this block sends for
    __device__ __forceinline__ explicit ForwardTile(uint32_t n) : share(FORWARD_ROWS / cluster_size()) {
        const uint32_t across = (n + PRODUCT_COLUMNS - 1) / PRODUCT_COLUMNS;
        row = blockIdx.x / across * FORWARD_ROWS;
        column = blockIdx.x % across * PRODUCT_COLUMNS;
    }
};

struct ForwardEnd {
    const float* bias_or_null;
    const real* dy_or_null;
    real* y;
    uint32_t m, n, act;
};

// Eight neighbours of a row in one access.
__device__ __forceinline__ Floats<8> load_reals8(const real* p) {
    const uint4 raw = load16(p);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    Floats<8> v;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        v.at[2 * i] = __uint_as_float(words[i] << 16);
        v.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return v;
}
__device__ __forceinline__ void store_reals8(real* p, const Floats<8>& v) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) words[i] = bf16_bits(v.at[2 * i]) | bf16_bits(v.at[2 * i + 1]) << 16;
    store16(p, make_uint4(words[0], words[1], words[2], words[3]));
}

// Bias, activation, and rows of 16 bytes to memory; n is a multiple of 8.
__device__ __forceinline__ void finish(const float* tile, const ForwardTile& place, const ForwardEnd& end) {
    constexpr uint32_t CHUNKS = PRODUCT_COLUMNS / 8;
    with_kind(end.act, [&](auto kind) {
        constexpr uint32_t KIND = decltype(kind)::kind;
        for (uint32_t i = threadIdx.x; i < FORWARD_ROWS * CHUNKS; i += ForwardRing::THREADS) {
            const uint32_t r = i / CHUNKS, c = i % CHUNKS * 8, row = place.row + r, column = place.column + c;
            if (row >= end.m || column >= end.n) continue;
            const float4 first = load4(tile + r * PRODUCT_COLUMNS + c), second = load4(tile + r * PRODUCT_COLUMNS + c + 4);
            Floats<8> z = {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
            if (end.bias_or_null != nullptr) {
#pragma unroll
                for (uint32_t j = 0; j < 8; ++j) z.at[j] += end.bias_or_null[column + j];
            }
            const uint32_t at = row * end.n + column;
            if (end.dy_or_null != nullptr) {
                z = zip([](float v, float dy) { return dy * act_slope<KIND>(v); }, z, load_reals8(end.dy_or_null + at));
            } else {
                z = zip([](float v) { return act_value<KIND>(v); }, z);
            }
            store_reals8(end.y + at, z);
        }
    });
}

// One tile. rows(to, barrier, channel, tap) sends for this block's share of the rows of `a`, or for all of them.
template <class Rows>
__device__ __forceinline__ void forward(unsigned char* shared, const ForwardTile& place, const TensorMap& weights,
                                        uint32_t taps, uint32_t k, const ForwardEnd& end, Rows rows) {
    const ForwardRing ring(shared);
    const uint32_t slots = (k + DEPTH - 1) / DEPTH, last = (k - (slots - 1) * DEPTH + PRODUCT_K - 1) / PRODUCT_K;
    const uint32_t group = threadIdx.x / WARPGROUP;
    float sums[SUMS];
#pragma unroll
    for (uint32_t i = 0; i < SUMS; ++i) sums[i] = 0.0f;

    uint32_t to_fetch = 0, tap = 0; // slots of this tap, by thread 0
    const auto fetch = [&](uint32_t slot, uint32_t barrier) {
        const int32_t channel = static_cast<int32_t>(to_fetch * DEPTH);
        rows(slot, barrier, channel, tap);
        copy_box(slot + FORWARD_ROWS * ROW_BYTES, weights, barrier, channel, static_cast<int32_t>(place.column),
                 static_cast<int32_t>(tap));
        if (++to_fetch == slots) to_fetch = 0, ++tap;
    };
    uint32_t multiplied = 0; // slots of this tap
    const auto products = [&](uint32_t slot) {
        const uint64_t a = operand(slot + group * PRODUCT_ROWS * ROW_BYTES, 16);
        const uint64_t b = operand(slot + FORWARD_ROWS * ROW_BYTES, 16);
        multiplied = multiplied == slots ? 1 : multiplied + 1;
        switch (multiplied == slots ? last : DEPTH / PRODUCT_K) {
        case 1: multiply_group<1, false, NEXT_ALONG_K>(sums, a, b); break;
        case 2: multiply_group<2, false, NEXT_ALONG_K>(sums, a, b); break;
        case 3: multiply_group<3, false, NEXT_ALONG_K>(sums, a, b); break;
        default: multiply_group<4, false, NEXT_ALONG_K>(sums, a, b);
        }
    };
    ring.run(taps * slots, fetch, products);

    float* tile = reinterpret_cast<float*>(shared + (ring.slots - shared_address(shared)));
    ring.lay_down(tile, sums);
    __syncthreads();
    finish(tile, place, end);
}
