// The depthwise 3x3 convolution of a mobile bottleneck in training, stride 1, one zero around the picture, with what
// precedes and follows it:
//
//   y = h * w, h = hswish(a1 x + b1)                                and the moments of y
//   dz = a2 du + e2 y + f2
//   dt[p] = hswish'(a1 x[p] + b1) sum over taps k of dz[p - k] w[k]   and the sums of dt and dt (x - mean)
//   dw[k] = sum over p of h[p] dz[p - k]
//
// Both gradients need dz round a position and x at it, so one pass makes both. x, y, du, dt [N, H, W, C], w [9, C]. A block
// stands on 32 channels, some rows of one image, and that image: blockIdx = (channels, slab of rows, image).
#include "depthwise_conv2d.cuh"
#include "activation.cuh"
#include "parts.cuh"

// Rows of the image that a block stands on.
struct Rows {
    uint32_t first, strips, per_row;

    __device__ __forceinline__ Rows(uint32_t height, uint32_t width)
        : first(part_start(blockIdx.y, gridDim.y, height)), per_row((width + STRIP - 1) / STRIP) {
        strips = (part_start(blockIdx.y + 1, gridDim.y, height) - first) * per_row;
    }
    __device__ __forceinline__ Strip strip(uint32_t i) const {
        Strip s(0, 1, 1);
        s.image = blockIdx.z, s.row = first + i / per_row, s.column = i % per_row * STRIP;
        return s;
    }
};

// act(a x + b) where there is a pixel, zero outside.
template <uint32_t V> struct NormalisedWindow {
    Window x;
    Floats<V> a, b;
    uint32_t row, height;

    __device__ __forceinline__ NormalisedWindow(const Window& x_, Floats<V> a_, Floats<V> b_)
        : x(x_), a(a_), b(b_), row(x_.row), height(x_.height) {}
    template <uint32_t> __device__ __forceinline__ Floats<V> at(uint32_t i, uint32_t j) const {
        if (x.column + j >= x.width) return {};
        return zip([](float x, float a, float b) { return act_value<HARD_SWISH>(fmaf(x, a, b)); },
                   x.template at<V>(i, j), a, b);
    }
};

constexpr uint32_t FORWARD_THREADS = 256, BACKWARD_THREADS = 128;

template <uint32_t V>
__device__ __forceinline__ void forward(const real* x, const float* table, const float* weight, real* y, double* partial,
                                        const Depthwise& d, uint32_t tables) {
    constexpr uint32_t LANES = GROUP / V, SHARES = FORWARD_THREADS / LANES, WARPS = FORWARD_THREADS / WARP;
    SHARED(float, pivots, [GROUP]);
    SHARED(float, sums, [2][WARPS][GROUP]);
    const uint32_t lane = threadIdx.x % LANES * V, share = threadIdx.x / LANES, c = blockIdx.x * GROUP + lane;
    const bool there = c < d.channels;
    const Rows rows(d.height, d.width);
    Floats<V> a = {}, b = {}, pivot = {}, s = {}, t = {};
    if (there) {
        const float* k = table + part_of(blockIdx.z, tables, d.n) * 2 * d.channels + c;
        a = load<V>(k), b = load<V>(k + d.channels);
    }
    for (uint32_t base = 0; base < rows.strips; base += SHARES) {
        const bool mine = there && base + share < rows.strips;
        const Strip at = rows.strip(mine ? base + share : 0);
        const uint32_t columns = mine ? min(STRIP, d.width - at.column) : 0;
        Floats<V> z[STRIP] = {};
        if (mine) {
            convolve<3, 1>(z, NormalisedWindow<V>(input_window(x, d, at, c), a, b), weight + c,
                           static_cast<int32_t>(d.channels));
            const size_t first = output_offset(d, at, c);
#pragma unroll
            for (uint32_t i = 0; i < STRIP; i++) {
                if (i < columns) store(y + first + i * d.channels, z[i]);
            }
        }
        // Deviations are taken from the first value of the block, so that a mean far from zero costs no digits.
        if (base == 0) {
            if (share == 0) store<V>(pivots + lane, z[0]);
            __syncthreads();
            pivot = load<V>(pivots + lane);
        }
#pragma unroll
        for (uint32_t i = 0; i < STRIP; i++) {
            if (i >= columns) continue;
            const Floats<V> far = zip([](float z, float pivot) { return z - pivot; }, z[i], pivot);
            add(s, far);
            multiply_add(t, far, far);
        }
    }
    const uint32_t warp = threadIdx.x / WARP;
#pragma unroll
    for (uint32_t k = 0; k < V; k++) {
        for (uint32_t step = LANES; step < WARP; step *= 2) {
            s.at[k] += __shfl_xor_sync(ALL_LANES, s.at[k], step);
            t.at[k] += __shfl_xor_sync(ALL_LANES, t.at[k], step);
        }
        if (threadIdx.x % WARP < LANES) {
            sums[0][warp][lane + k] = s.at[k];
            sums[1][warp][lane + k] = t.at[k];
        }
    }
    __syncthreads();
    const uint32_t channel = blockIdx.x * GROUP + threadIdx.x;
    if (threadIdx.x >= GROUP || channel >= d.channels) return;
    double total[2] = {};
    for (uint32_t w = 0; w < WARPS; w++) {
        total[0] += sums[0][w][threadIdx.x];
        total[1] += sums[1][w][threadIdx.x];
    }
    const double count = (part_start(blockIdx.y + 1, gridDim.y, d.height) - rows.first) * d.width;
    const double squares = total[1] - total[0] * total[0] / count;
    partial += (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * 2 * d.channels + channel;
    partial[0] = pivots[threadIdx.x] + total[0] / count;
    partial[d.channels] = squares < 0.0 ? 0.0 : squares; // written so that a NaN stays one
}

// y and its moments, partial [N, slabs, 2, C]; table [tables, 2, C] of a1 and b1.
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void mobile_bottleneck_depthwise_forward(
    const real* __restrict__ x, const float* __restrict__ table, const float* __restrict__ weight, real* __restrict__ y,
    double* __restrict__ partial, uint32_t n, uint32_t height, uint32_t width, uint32_t channels, uint32_t tables) {
    const Depthwise d = {n, height, width, channels, 3, 3, 1, 1, 1, height, width};
    if (channels % 4 == 0) forward<4>(x, table, weight, y, partial, d, tables);
    else forward<1>(x, table, weight, y, partial, d, tables);
}

template <uint32_t V>
__device__ __forceinline__ void backward(const real* du, const real* y, const float* gradient, const real* x,
                                         const float* table, const float* mean, const float* weight, real* dt,
                                         double* partial, float* dw, const Depthwise& d, uint32_t tables) {
    constexpr uint32_t LANES = GROUP / V, SHARES = BACKWARD_THREADS / LANES;
    const uint32_t c = blockIdx.x * GROUP + threadIdx.x % LANES * V, share = threadIdx.x / LANES;
    const Rows rows(d.height, d.width);
    Floats<V> taps[9] = {}, sums[2] = {};
    if (c < d.channels) {
        const uint32_t group = part_of(blockIdx.z, tables, d.n);
        const float* k = gradient + blockIdx.z * 3 * d.channels + c;
        const Floats<V> a = load<V>(k), e = load<V>(k + d.channels), f = load<V>(k + 2 * d.channels);
        k = table + group * 2 * d.channels + c;
        const Floats<V> x_a = load<V>(k), x_b = load<V>(k + d.channels), x_mean = load<V>(mean + group * d.channels + c);
#pragma unroll 1
        for (uint32_t i = share; i < rows.strips; i += SHARES) {
            const Strip at = rows.strip(i);
            const uint32_t columns = min(STRIP, d.width - at.column);
            const size_t first = output_offset(d, at, c);
            const auto normal = [](float x, float a, float b) { return fmaf(x, a, b); };
            Floats<V> h[STRIP] = {}, sum[STRIP] = {};
#pragma unroll
            for (uint32_t s = 0; s < STRIP; s++) {
                if (s < columns) h[s] = zip(normal, load<V>(x + first + s * d.channels), x_a, x_b);
                h[s] = zip([](float z) { return act_value<HARD_SWISH>(z); }, h[s]);
            }
            // A convolution of dz whose taps come in the opposite order.
            const Window window = input_window(du, d, at, c), beside = input_window(y, d, at, c);
#pragma unroll
            for (uint32_t row = 0; row < 3; row++) {
                if (window.row + row >= d.height) continue;
                Floats<V> w[3];
#pragma unroll
                for (uint32_t j = 0; j < 3; j++) w[j] = load<V>(weight + c + (8 - row * 3 - j) * d.channels);
#pragma unroll
                for (uint32_t q = 0; q < STRIP + 2; q++) {
                    if (window.column + q >= d.width) continue;
                    const Floats<V> dz =
                        zip([](float du, float y, float a, float e, float f) { return fmaf(a, du, fmaf(e, y, f)); },
                            window.at<V>(row, q), beside.at<V>(row, q), a, e, f);
#pragma unroll
                    for (uint32_t j = 0; j < 3; j++) {
                        if (q < j || q - j >= STRIP) continue;
                        multiply_add(sum[q - j], dz, w[j]);
                        multiply_add(taps[8 - row * 3 - j], dz, h[q - j]);
                    }
                }
            }
#pragma unroll
            for (uint32_t s = 0; s < STRIP; s++) {
                if (s >= columns) continue;
                const Floats<V> value = load<V>(x + first + s * d.channels);
                sum[s] = zip([](float dh, float z) { return dh * act_slope<HARD_SWISH>(z); }, sum[s],
                             zip(normal, value, x_a, x_b));
                store(dt + first + s * d.channels, sum[s]);
                add(sums[0], sum[s]);
                multiply_add(sums[1], sum[s], zip([](float x, float mean) { return x - mean; }, value, x_mean));
            }
        }
    }
    const size_t part = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const uint32_t group = blockIdx.x * GROUP;
    write_block_sums(taps, dw + part * 9 * d.channels + group, group, d.channels);
    write_block_sums(sums, partial + part * 2 * d.channels + group, group, d.channels);
}

// dt, its sums in partial [N, slabs, 2, C], and dw [N slabs, 9, C] still in parts. gradient [N, 3, C] of a2, e2 and f2, table
// [tables, 2, C] of a1 and b1, mean [tables, C].
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(128) void mobile_bottleneck_depthwise_backward(
    const real* __restrict__ du, const real* __restrict__ y, const float* __restrict__ gradient,
    const real* __restrict__ x, const float* __restrict__ table, const float* __restrict__ mean,
    const float* __restrict__ weight, real* __restrict__ dt, double* __restrict__ partial, float* __restrict__ dw,
    uint32_t n, uint32_t height, uint32_t width, uint32_t channels, uint32_t tables) {
    const Depthwise d = {n, height, width, channels, 3, 3, 1, 1, 1, height, width};
    if (channels % 4 == 0) backward<4>(du, y, gradient, x, table, mean, weight, dt, partial, dw, d, tables);
    else backward<1>(du, y, gradient, x, table, mean, weight, dt, partial, dw, d, tables);
}
