// Whole entries of a table: y[m] = values[index[m]]; zero where the index, rounded down, is none.
//
//   values, dvalues [entries, n], index [rows], y, dy [rows, n]
//
// dvalues[k] = sum of dy[m] over the m that read entry k: f64, in order within a slab of rows, then the slabs in order
// (pointwise_conv_add_slabs). Source: the definition in src/ops/entry_read.rs.
#include "common.cuh"
#include "quad.cuh"

// Whether an index means entry k.
__device__ __forceinline__ bool means(float index, uint32_t k) { return floorf(index) == static_cast<float>(k); }

template <bool VECTOR>
__device__ __forceinline__ void read_span(const float* entry, real* y, uint32_t from, uint32_t n) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (entry != nullptr) v = load_quad<VECTOR>(entry, from, n);
    store_quad<VECTOR>(y, from, n, v);
}

// A warp for every 128 values of a row.
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void entry_read_forward(const float* __restrict__ values,
                                                                     const float* __restrict__ index,
                                                                     real* __restrict__ y, uint32_t rows,
                                                                     uint32_t entries, uint32_t n) {
    const uint32_t spans = (n + SPAN - 1) / SPAN;
    const uint32_t m = global_warp() / spans, from = global_warp() % spans * SPAN;
    if (m >= rows) return;
    const float i = floorf(index[m]);
    const bool there = i >= 0.0f && i < static_cast<float>(entries);
    const float* entry = there ? values + static_cast<size_t>(i) * n : nullptr;
    real* to = y + static_cast<size_t>(m) * n;
    if (n % 4 == 0) read_span<true>(entry, to, from, n);
    else read_span<false>(entry, to, from, n);
}

// partial [slab, entries, n]: a thread for a value of an entry. Grid (entries * n / 256, slabs).
extern "C" __global__ __launch_bounds__(256) void entry_read_backward_values(const float* __restrict__ index,
                                                                             const real* __restrict__ dy,
                                                                             float* __restrict__ partial, uint32_t rows,
                                                                             uint32_t entries, uint32_t n,
                                                                             uint32_t slab) {
    const uint32_t across = (n + 255) / 256, k = blockIdx.x / across;
    const uint32_t column = blockIdx.x % across * 256 + threadIdx.x;
    if (column >= n) return;
    const uint32_t end = min(rows, (blockIdx.y + 1) * slab);
    double sum = 0.0;
    for (uint32_t m = blockIdx.y * slab; m < end; ++m) {
        if (means(index[m], k)) sum += static_cast<double>(widen(dy[static_cast<size_t>(m) * n + column]));
    }
    partial[(static_cast<size_t>(blockIdx.y) * entries + k) * n + column] = static_cast<float>(sum);
}
