// The squeeze-excite gate of y = hswish(t gate), t = BN(x), and its gradients. Everything here is [N, E] or smaller; x
// itself is read by the kernels of batch_norm.cu.
//
//   deviation = mean of the image - mean of its ghost group          pooled = gamma rstd deviation + beta      [N, E]
//   hidden = relu(pooled v1) [N, S]    logit = hidden v2 [N, E]      gate = hsigmoid(logit)
//   dgate = gamma rstd sum du (x - mean) + beta sum du               dlogit = dgate hsigmoid'(logit)
//   dhidden = dlogit v2' where hidden > 0        dpooled = dhidden v1'        dv1 = pooled' dhidden        dv2 = hidden' dlogit
//
// The matrix products have as few rows as a batch has images, so what counts is how soon the weights arrive: many threads
// each add a short run in f32, and the runs are added in f64, in order.
#include "normalise.cuh"

// Mean of t over image and channel i, from the mean of x there.
__device__ __forceinline__ float pooled_mean(const float* gamma, const float* beta, float var, double eps, double deviation,
                                             uint32_t channel) {
    return static_cast<float>(gamma[channel] * reciprocal_deviation(var, eps) * deviation + beta[channel]);
}

// A thread per image and channel. `partial`: the moments of the slabs, [N, slabs, 2, E].
extern "C" __global__ __launch_bounds__(256) void squeeze_excite_pool(
    const double* __restrict__ partial, const float* __restrict__ gamma, const float* __restrict__ beta,
    const float* __restrict__ mean, const float* __restrict__ var, float* __restrict__ deviation,
    float* __restrict__ pooled, double eps, uint32_t images, uint32_t groups, uint32_t slabs, uint32_t positions,
    uint32_t unit, uint32_t run, uint32_t channels) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= images * channels) return;
    const uint32_t image = i / channels, channel = i % channels;
    const uint32_t s = part_of(image, groups, images) * channels + channel;
    const double* p = partial + static_cast<size_t>(image) * slabs * 2 * channels + channel;
    const Pieces pieces = {slabs, positions, unit, run};
    double sum = 0.0;
    for (uint32_t slab = 0; slab < pieces.count(image); ++slab, p += 2 * channels) sum += p[0] * pieces.size(image, slab);
    const float d = static_cast<float>(sum / positions - mean[s]);
    deviation[i] = d;
    pooled[i] = pooled_mean(gamma, beta, var[s], eps, d, channel);
}

// The pooled means again, for the backward pass. A thread per image and channel.
extern "C" __global__ __launch_bounds__(256) void squeeze_excite_pooled(
    const float* __restrict__ deviation, const float* __restrict__ gamma, const float* __restrict__ beta,
    const float* __restrict__ var, float* __restrict__ pooled, double eps, uint32_t images, uint32_t groups,
    uint32_t channels) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= images * channels) return;
    const uint32_t channel = i % channels, s = part_of(i / channels, groups, images) * channels + channel;
    pooled[i] = pooled_mean(gamma, beta, var[s], eps, deviation[i], channel);
}

constexpr uint32_t IMAGES = 4;   // rows of x that a block of a product holds in registers

// y [N, J] = x [N, K] w [K, J], with `rectify` followed by a relu. Block (32 columns, 4 rows) of 16 warps: each
// adds a sixteenth of K. One block to a multiprocessor: registers for many reads at a time are worth more than a second one.
extern "C" __global__ __launch_bounds__(512, 1) void squeeze_excite_product(
    const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, uint32_t rectify, uint32_t images,
    uint32_t inner, uint32_t columns) {
    constexpr uint32_t PARTS = 16;
    SHARED(float, partial, [PARTS][IMAGES][WARP]);
    const uint32_t part = threadIdx.x / WARP, lane = threadIdx.x % WARP, first = blockIdx.y * IMAGES;
    const uint32_t column = min(blockIdx.x * WARP + lane, columns - 1);
    float sum[IMAGES] = {};
    const uint32_t end = part_start(part + 1, PARTS, inner);
#pragma unroll 8
    for (uint32_t k = part_start(part, PARTS, inner); k < end; ++k) {
        const float weight = w[static_cast<size_t>(k) * columns + column];
#pragma unroll
        for (uint32_t i = 0; i < IMAGES; ++i) {
            sum[i] += x[static_cast<size_t>(min(first + i, images - 1)) * inner + k] * weight;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < IMAGES; ++i) partial[part][i][lane] = sum[i];
    __syncthreads();
    // One warp per row.
    const uint32_t row = first + part;
    if (part >= IMAGES || row >= images || blockIdx.x * WARP + lane >= columns) return;
    double total = 0.0;
    for (uint32_t p = 0; p < PARTS; ++p) total += partial[p][part][lane];
    const float value = static_cast<float>(total);
    y[static_cast<size_t>(row) * columns + column] = rectify != 0 ? relu(value) : value;
}

// y [N, J] = x [N, K] w' with w [J, K]; zero where the relu output `hidden` [N, J], if given, is not positive. Block (8
// columns, 4 rows): a warp per column, its lanes take k in turn.
extern "C" __global__ __launch_bounds__(256) void squeeze_excite_product_transposed(
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ hidden_or_null,
    float* __restrict__ y, uint32_t images, uint32_t inner, uint32_t columns) {
    const uint32_t column = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t first = blockIdx.y * IMAGES;
    if (column >= columns) return;
    float sum[IMAGES] = {};
#pragma unroll 4
    for (uint32_t k = lane; k < inner; k += WARP) {
        const float weight = w[static_cast<size_t>(column) * inner + k];
#pragma unroll
        for (uint32_t i = 0; i < IMAGES; ++i) {
            sum[i] += x[static_cast<size_t>(min(first + i, images - 1)) * inner + k] * weight;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < IMAGES; ++i) {
        const double total = warp_sum(static_cast<double>(sum[i]));
        if (lane == i && first + i < images) {
            const size_t at = static_cast<size_t>(first + i) * columns + column;
            const bool open = hidden_or_null == nullptr || hidden_or_null[at] > 0.0f;
            y[at] = open ? static_cast<float>(total) : 0.0f;
        }
    }
}

// y [I, J] = a' b, the sum over the images of a [N, I] times b [N, J]. A thread per value.
extern "C" __global__ __launch_bounds__(256) void squeeze_excite_outer(const float* __restrict__ a,
                                                                       const float* __restrict__ b, float* __restrict__ y,
                                                                       uint32_t images, uint32_t rows, uint32_t columns) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * columns) return;
    const uint32_t row = i / columns, column = i % columns;
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t n = 0; n < images; ++n) {
        sum += a[static_cast<size_t>(n) * rows + row] * b[static_cast<size_t>(n) * columns + column];
    }
    y[i] = sum;
}

// `partial`: the sums of du and du (x - mean) over the slabs, [N, slabs, 2, E]. A thread per image and channel.
extern "C" __global__ __launch_bounds__(256) void squeeze_excite_gradient_logit(
    const double* __restrict__ partial, const float* __restrict__ gamma, const float* __restrict__ beta,
    const float* __restrict__ var, const float* __restrict__ logit, float* __restrict__ dlogit, double eps,
    uint32_t images, uint32_t groups, uint32_t slabs, uint32_t positions, uint32_t run, uint32_t channels) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= images * channels) return;
    const uint32_t image = i / channels, channel = i % channels;
    const double* p = partial + static_cast<size_t>(image) * slabs * 2 * channels + channel;
    const Pieces pieces = {slabs, positions, 1, run};
    double du = 0.0, centred = 0.0;
    for (uint32_t slab = 0; slab < pieces.count(image); ++slab, p += 2 * channels) {
        du += p[0];
        centred += p[channels];
    }
    const double rstd = reciprocal_deviation(var[part_of(image, groups, images) * channels + channel], eps);
    const double dgate = gamma[channel] * rstd * centred + beta[channel] * du;
    dlogit[i] = static_cast<float>(dgate) * act_slope<HARD_SIGMOID>(logit[i]);
}
