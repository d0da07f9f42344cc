// How a depthwise convolution is shared out among threads, and the sums that its results are made of.
//
//     z[n, p, q, c] = sum over i, j of x[n, p stride + i - top, q stride + j - left, c] w[i, j, c], zero outside x
//
// A thread has V neighbouring channels of a strip: STRIP neighbouring positions of one row. Every value it reads is
// used for all positions of the strip that need it. The threads of a block lie over GROUP channels, so that memory is
// read in whole lines, and over strips that follow each other: the rows these share stay in the cache.
#pragma once

#include "vector.cuh"

// Seven divides 7, 14, 28, 56 and 112, the widths of the networks' maps.
constexpr uint32_t STRIP = 7, GROUP = 32;

// Sizes of x: [n, height, width, channels] and z: [n, out_height, out_width, channels]; zeros above and left of x.
struct Depthwise {
    uint32_t n, height, width, channels, kernel_height, kernel_width, stride, top, left, out_height, out_width;
};

__device__ __forceinline__ uint32_t count_groups(uint32_t channels) { return (channels + GROUP - 1) / GROUP; }

// Where the strip number `i` of maps of rows x columns begins.
struct Strip {
    uint32_t image, row, column;

    __device__ Strip(uint32_t i, uint32_t rows, uint32_t columns) {
        const uint32_t per_row = (columns + STRIP - 1) / STRIP;
        image = i / per_row / rows;
        row = i / per_row % rows;
        column = i % per_row * STRIP;
    }
    __device__ static uint32_t count(uint32_t n, uint32_t rows, uint32_t columns) {
        return n * rows * ((columns + STRIP - 1) / STRIP);
    }
};

// What a strip reads: the map of its image, from this thread's channels on, and where in it the first tap of the
// strip's first position lies. Indices before the first have wrapped round and are large.
struct Window {
    const real* map;
    uint32_t height, width, channels, row, column;

    template <uint32_t V> __device__ __forceinline__ Floats<V> at(uint32_t i, uint32_t j) const {
        if (column + j >= width) return {};
        return load<V>(map + ((row + i) * width + column + j) * channels);
    }
};

__device__ __forceinline__ Window input_window(const real* x, const Depthwise& d, Strip at, uint32_t c) {
    const size_t image = static_cast<size_t>(at.image) * d.height * d.width * d.channels;
    return {x + image + c, d.height, d.width, d.channels, at.row * d.stride - d.top, at.column * d.stride - d.left};
}

// Where the strip lies in y and its gradients.
__device__ __forceinline__ size_t output_offset(const Depthwise& d, Strip at, uint32_t c) {
    return ((static_cast<size_t>(at.image) * d.out_height + at.row) * d.out_width + at.column) * d.channels + c;
}

template <uint32_t V> __device__ __forceinline__ void add(Floats<V>& sum, Floats<V> a) {
    sum = zip([](float sum, float a) { return sum + a; }, sum, a);
}

template <uint32_t V> __device__ __forceinline__ void multiply_add(Floats<V>& sum, Floats<V> a, Floats<V> b) {
    sum = zip([](float sum, float a, float b) { return fmaf(a, b, sum); }, sum, a, b);
}

// sum[s] += the K x K kernel at position s of the strip. The weights of one tap and the next lie `step` values apart.
template <uint32_t K, uint32_t STRIDE, uint32_t V, class View>
__device__ __forceinline__ void convolve(Floats<V> (&sum)[STRIP], const View& x, const float* weight, int32_t step) {
#pragma unroll
    for (uint32_t i = 0; i < K; i++) {
        if (x.row + i >= x.height) continue;
        Floats<V> w[K];
#pragma unroll
        for (uint32_t j = 0; j < K; j++) w[j] = load<V>(weight + static_cast<int32_t>(i * K + j) * step);
#pragma unroll
        for (uint32_t q = 0; q < (STRIP - 1) * STRIDE + K; q++) {
            const Floats<V> value = x.template at<V>(i, q);
#pragma unroll
            for (uint32_t j = 0; j < K; j++) {
                if (q >= j && (q - j) % STRIDE == 0 && (q - j) / STRIDE < STRIP) {
                    multiply_add(sum[(q - j) / STRIDE], value, w[j]);
                }
            }
        }
    }
}

// The index that tap `k` reads for result `at` of one axis; false where there is none.
// FORWARD: a result is an output and reads an input. Otherwise it is an input and reads an output.
template <bool FORWARD>
__device__ __forceinline__ bool tap(uint32_t at, uint32_t k, uint32_t stride, uint32_t pad, uint32_t size,
                                    uint32_t& from) {
    if constexpr (FORWARD) {
        from = at * stride + k - pad;
        return from < size;
    } else {
        from = (at + pad - k) / stride;
        return k <= at + pad && (at + pad - k) % stride == 0 && from < size;
    }
}

// The same sums for kernels and strides of any size, tap by tap; `map` is that of the strip's image.
template <bool FORWARD, uint32_t V>
__device__ __forceinline__ void convolve_any(Floats<V> (&sum)[STRIP], const real* map, const Depthwise& d, Strip at,
                                             const float* weight) {
    const uint32_t height = FORWARD ? d.height : d.out_height, width = FORWARD ? d.width : d.out_width;
    for (uint32_t i = 0; i < d.kernel_height; i++) {
        uint32_t row, column;
        if (!tap<FORWARD>(at.row, i, d.stride, d.top, height, row)) continue;
        for (uint32_t j = 0; j < d.kernel_width; j++) {
            const Floats<V> w = load<V>(weight + (i * d.kernel_width + j) * d.channels);
#pragma unroll
            for (uint32_t s = 0; s < STRIP; s++) {
                if (tap<FORWARD>(at.column + s, j, d.stride, d.left, width, column)) {
                    multiply_add(sum[s], load<V>(map + (row * width + column) * d.channels), w);
                }
            }
        }
    }
}

// sum[i K + j] += dz at the strip times what tap (i, j) read there.
template <uint32_t K, uint32_t STRIDE, uint32_t TAPS, uint32_t V>
__device__ __forceinline__ void correlate(Floats<V> (&sum)[TAPS], Window x, const Floats<V> (&dz)[STRIP]) {
#pragma unroll
    for (uint32_t i = 0; i < K; i++) {
        if (x.row + i >= x.height) continue;
#pragma unroll
        for (uint32_t q = 0; q < (STRIP - 1) * STRIDE + K; q++) {
            const Floats<V> value = x.template at<V>(i, q);
#pragma unroll
            for (uint32_t j = 0; j < K; j++) {
                if (q >= j && (q - j) % STRIDE == 0 && (q - j) / STRIDE < STRIP) {
                    multiply_add(sum[i * K + j], value, dz[(q - j) / STRIDE]);
                }
            }
        }
    }
}

// Adds the sums of all threads of a block of 128 that have the same channels; the totals of channel `group` + k and of
// tap t go to out[t channels + k]. Called by all threads.
template <uint32_t TAPS, uint32_t V, typename Sum>
__device__ __forceinline__ void write_block_sums(const Floats<V> (&sum)[TAPS], Sum* out, uint32_t group,
                                                 uint32_t channels) {
    constexpr uint32_t LANES = GROUP / V, WARPS = 128 / WARP;
    SHARED(float, warps, [WARPS][TAPS][GROUP]);
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (uint32_t t = 0; t < TAPS; t++) {
#pragma unroll
        for (uint32_t k = 0; k < V; k++) {
            float v = sum[t].at[k];
            for (uint32_t step = LANES; step < WARP; step *= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
            if (lane < LANES) warps[warp][t][lane * V + k] = v;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < TAPS * GROUP; i += 128) {
        const uint32_t t = i / GROUP, k = i % GROUP;
        float total = warps[0][t][k];
        for (uint32_t w = 1; w < WARPS; w++) total += warps[w][t][k];
        if (group + k < channels) out[t * channels + k] = total;
    }
    __syncthreads();
}
