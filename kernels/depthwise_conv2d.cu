// Depthwise convolution, bias and activation: y = act(z), z = x * w + bias; and its gradients, from dz = dy act'(z).
//
//     dx[n, h, w, c] = sum over i, j of dz[n, (h + top - i) / stride, (w + left - j) / stride, c] w[i, j, c]
//     dw[i, j, c] = sum over n, p, q of dz[n, p, q, c] x[n, p stride + i - top, q stride + j - left, c]
//     dbias[c] = sum over n, p, q of dz[n, p, q, c]
//
// x, dx: [n, height, width, channels]; z, y, dz, dy: [n, out_height, out_width, channels]; w, dw: [kernel_height,
// kernel_width, channels]; bias, dbias: [channels].
//
// Every step has three kernels, so that each has the registers it needs and no more: `_3x3` and `_5x5` for those sizes,
// strides 1 and 2 and channels in fours; `_any` for the rest. In their templates K is 3, 5 and 0.
#include "activation.cuh"
#include "column_sum.cuh"
#include "depthwise_conv2d.cuh"

// `dy` may be null; if it is not, dz comes out instead of y.
template <uint32_t K, uint32_t V>
__device__ __forceinline__ void forward(const real* x, const float* weight, const float* bias, const real* dy, real* y,
                                        const Depthwise& d, uint32_t kind) {
    constexpr uint32_t LANES = GROUP / V, SHARES = 256 / LANES;
    const uint32_t groups = count_groups(d.channels);
    const uint32_t c = blockIdx.x % groups * GROUP + threadIdx.x % LANES * V;
    const uint32_t strip = blockIdx.x / groups * SHARES + threadIdx.x / LANES;
    if (c >= d.channels || strip >= Strip::count(d.n, d.out_height, d.out_width)) return;
    const Strip at(strip, d.out_height, d.out_width);

    const Floats<V> b = bias ? load<V>(bias + c) : Floats<V>{};
    Floats<V> z[STRIP];
#pragma unroll
    for (uint32_t s = 0; s < STRIP; s++) z[s] = b;
    const Window window = input_window(x, d, at, c);
    const int32_t step = d.channels;
    if constexpr (K == 0) convolve_any<true>(z, window.map, d, at, weight + c);
    else if (d.stride == 1) convolve<K, 1>(z, window, weight + c, step);
    else convolve<K, 2>(z, window, weight + c, step);

    const size_t first = output_offset(d, at, c);
    const uint32_t columns = min(STRIP, d.out_width - at.column);
    // The strip turns round once under the activation, whose code is then there once and not STRIP times.
    if (kind != IDENTITY) {
#pragma unroll 1
        for (uint32_t s = 0; s < STRIP; s++) {
            Floats<V> v = z[0];
#pragma unroll
            for (uint32_t k = 0; k + 1 < STRIP; k++) z[k] = z[k + 1];
            if (!dy) {
                v = zip([=](float z) { return act_value(kind, z); }, v);
            } else if (s < columns) {
                v = zip([=](float z, float dy) { return dy * act_slope(kind, z); }, v,
                        load<V>(dy + first + s * d.channels));
            }
            z[STRIP - 1] = v;
        }
    }
#pragma unroll
    for (uint32_t s = 0; s < STRIP; s++) {
        if (s < columns) store(y + first + s * d.channels, z[s]);
    }
}

// Grid: ceil(channels / 32) * ceil(n * out_height * ceil(out_width / 7) / shares) blocks; shares = 32 where
// channels % 4 == 0, else 8.
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256, 2) void depthwise_conv2d_forward_3x3(
    const real* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t n, uint32_t height, uint32_t width,
    uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top, uint32_t left,
    uint32_t out_height, uint32_t out_width, uint32_t kind) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    forward<3, 4>(x, weight, bias_or_null, dy_or_null, y, d, kind);
}

// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void depthwise_conv2d_forward_5x5(
    const real* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t n, uint32_t height, uint32_t width,
    uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top, uint32_t left,
    uint32_t out_height, uint32_t out_width, uint32_t kind) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    forward<5, 4>(x, weight, bias_or_null, dy_or_null, y, d, kind);
}

// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
// Two blocks are promised, because ptxas saves registers for a third by spilling.
extern "C" __global__ __launch_bounds__(256, 2) void depthwise_conv2d_forward_any(
    const real* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t n, uint32_t height, uint32_t width,
    uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top, uint32_t left,
    uint32_t out_height, uint32_t out_width, uint32_t kind) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    if (channels % 4 == 0) forward<0, 4>(x, weight, bias_or_null, dy_or_null, y, d, kind);
    else forward<0, 1>(x, weight, bias_or_null, dy_or_null, y, d, kind);
}

// K is 0 unless the stride is 1.
template <uint32_t K, uint32_t V>
__device__ __forceinline__ void backward_x(const real* dz, const float* weight, real* dx, const Depthwise& d) {
    constexpr uint32_t LANES = GROUP / V, SHARES = 256 / LANES;
    const uint32_t groups = count_groups(d.channels);
    const uint32_t c = blockIdx.x % groups * GROUP + threadIdx.x % LANES * V;
    const uint32_t strip = blockIdx.x / groups * SHARES + threadIdx.x / LANES;
    if (c >= d.channels || strip >= Strip::count(d.n, d.height, d.width)) return;
    const Strip at(strip, d.height, d.width);

    Floats<V> sum[STRIP] = {};
    const real* map = dz + static_cast<size_t>(at.image) * d.out_height * d.out_width * d.channels + c;
    if constexpr (K == 0) {
        convolve_any<false>(sum, map, d, at, weight + c);
    } else {
        // A convolution of dz whose taps come in the opposite order.
        const uint32_t row = at.row + d.top + 1 - K, column = at.column + d.left + 1 - K;
        const Window window = {map, d.out_height, d.out_width, d.channels, row, column};
        convolve<K, 1>(sum, window, weight + (K * K - 1) * d.channels + c, -static_cast<int32_t>(d.channels));
    }

    dx += ((static_cast<size_t>(at.image) * d.height + at.row) * d.width + at.column) * d.channels + c;
#pragma unroll
    for (uint32_t s = 0; s < STRIP; s++) {
        if (at.column + s < d.width) store(dx + s * d.channels, sum[s]);
    }
}

// Grid: ceil(channels / 32) * ceil(n * height * ceil(width / 7) / shares) blocks; shares as in forward.
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void depthwise_conv2d_backward_x_3x3(
    const real* __restrict__ dz, const float* __restrict__ weight, real* __restrict__ dx, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    backward_x<3, 4>(dz, weight, dx, d);
}

// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void depthwise_conv2d_backward_x_5x5(
    const real* __restrict__ dz, const float* __restrict__ weight, real* __restrict__ dx, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    backward_x<5, 4>(dz, weight, dx, d);
}

// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void depthwise_conv2d_backward_x_any(
    const real* __restrict__ dz, const float* __restrict__ weight, real* __restrict__ dx, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    if (channels % 4 == 0) backward_x<0, 4>(dz, weight, dx, d);
    else backward_x<0, 1>(dz, weight, dx, d);
}

// The strips of one block of backward_w and the channels of one of its threads.
template <uint32_t V> struct Part {
    static constexpr uint32_t LANES = GROUP / V, SHARES = 128 / LANES;
    uint32_t part, group, c, first, end;

    __device__ Part(const Depthwise& d, uint32_t strips) {
        const uint32_t groups = count_groups(d.channels), all = Strip::count(d.n, d.out_height, d.out_width);
        part = blockIdx.x / groups;
        group = blockIdx.x % groups * GROUP;
        c = group + threadIdx.x % LANES * V;
        first = part * strips + threadIdx.x / LANES;
        end = c < d.channels ? min(all, (part + 1) * strips) : 0;
    }
};

template <uint32_t K, uint32_t STRIDE, uint32_t V>
__device__ __forceinline__ void backward_w(const real* x, const real* dz, float* out, const Depthwise& d,
                                           uint32_t strips) {
    const Part<V> part(d, strips);
    Floats<V> taps[K * K] = {}, bias[1] = {}, here[STRIP];
    for (uint32_t i = part.first; i < part.end; i += Part<V>::SHARES) {
        const Strip at(i, d.out_height, d.out_width);
        const real* from = dz + output_offset(d, at, part.c);
#pragma unroll
        for (uint32_t s = 0; s < STRIP; s++) {
            here[s] = at.column + s < d.out_width ? load<V>(from + s * d.channels) : Floats<V>{};
            add(bias[0], here[s]);
        }
        correlate<K, STRIDE>(taps, input_window(x, d, at, part.c), here);
    }
    out += part.part * (K * K + 1) * d.channels + part.group;
    write_block_sums(taps, out, part.group, d.channels);
    write_block_sums(bias, out + K * K * d.channels, part.group, d.channels);
}

// K = 0: tap after tap, and after the last one the bias.
template <uint32_t V>
__device__ __forceinline__ void backward_w_any(const real* x, const real* dz, float* out, const Depthwise& d,
                                               uint32_t strips) {
    const Part<V> part(d, strips);
    const uint32_t taps = d.kernel_height * d.kernel_width;
    out += part.part * (taps + 1) * d.channels + part.group;
    for (uint32_t t = 0; t <= taps; t++) {
        const uint32_t row = t / d.kernel_width, column = t % d.kernel_width;
        Floats<V> sum[1] = {};
        for (uint32_t i = part.first; i < part.end; i += Part<V>::SHARES) {
            const Strip at(i, d.out_height, d.out_width);
            const Window window = input_window(x, d, at, part.c);
            const real* from = dz + output_offset(d, at, part.c);
            if (t < taps && window.row + row >= d.height) continue;
#pragma unroll 1
            for (uint32_t s = 0; s < min(STRIP, d.out_width - at.column); s++) {
                const Floats<V> here = load<V>(from + s * d.channels);
                if (t < taps) multiply_add(sum[0], window.at<V>(row, s * d.stride + column), here);
                else add(sum[0], here);
            }
        }
        write_block_sums(sum, out + t * d.channels, part.group, d.channels);
    }
}

// The sums of `strips` strips by each block, to partial: [parts, kernel_height kernel_width + 1, channels]; the last
// row of a part is that of the bias. Grid: ceil(channels / 32) * parts blocks.
// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(128) void depthwise_conv2d_backward_w_3x3(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width, uint32_t strips) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    if (stride == 1) backward_w<3, 1, 4>(x, dz, partial, d, strips);
    else backward_w<3, 2, 4>(x, dz, partial, d, strips);
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(128, 2) void depthwise_conv2d_backward_w_5x5(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width, uint32_t strips) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    if (stride == 1) backward_w<5, 1, 4>(x, dz, partial, d, strips);
    else backward_w<5, 2, 4>(x, dz, partial, d, strips);
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(128, 2) void depthwise_conv2d_backward_w_any(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t n, uint32_t height,
    uint32_t width, uint32_t channels, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride, uint32_t top,
    uint32_t left, uint32_t out_height, uint32_t out_width, uint32_t strips) {
    const Depthwise d = {n,      height, width, channels,   kernel_height, kernel_width,
                         stride, top,    left,  out_height, out_width};
    if (channels % 4 == 0) backward_w_any<4>(x, dz, partial, d, strips);
    else backward_w_any<1>(x, dz, partial, d, strips);
}

// Adds the parts. Grid: ceil((taps + 1) * channels / 16) blocks.
extern "C" __global__ __launch_bounds__(256) void depthwise_conv2d_backward_w_sum(
    const float* __restrict__ partial, float* __restrict__ dw_or_null, float* __restrict__ dbias_or_null,
    uint32_t parts, uint32_t taps, uint32_t channels) {
    const uint32_t columns = (taps + 1) * channels, first = blockIdx.x * COLUMNS, i = first + threadIdx.x;
    const double sum = column_sum<1>(parts, columns, first, [=](uint32_t part, uint32_t i) {
        return load<1>(partial + part * columns + i);
    });
    if (threadIdx.x >= COLUMNS || i >= columns) return;
    if (i < taps * channels) {
        if (dw_or_null) dw_or_null[i] = static_cast<float>(sum);
    } else {
        if (dbias_or_null) dbias_or_null[i - taps * channels] = static_cast<float>(sum);
    }
}
