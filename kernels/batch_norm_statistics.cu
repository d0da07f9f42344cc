// Statistics of each ghost group and channel, merged from the sums that batch_norm.cu takes over slabs: partial is
// [N, slabs, 2, C] in f64, added in a fixed order.
#include "normalise.cuh"

// Mean and biased variance [G, C] from the moments of the slabs. Block (tile of 32 channels, group): each warp merges
// every eighth slab of the group, the first warp merges the warps.
extern "C" __global__ __launch_bounds__(256) void batch_norm_statistics(const double* __restrict__ partial,
                                                                        float* __restrict__ mean, float* __restrict__ var,
                                                                        uint32_t images, uint32_t slabs,
                                                                        uint32_t positions, uint32_t unit, uint32_t run,
                                                                        uint32_t channels) {
    SHARED(double, rows, [3][ROWS][WARP]);
    const uint32_t row = threadIdx.x / WARP, lane = threadIdx.x % WARP, channel = blockIdx.x * WARP + lane;
    const uint32_t first = part_start(blockIdx.y, gridDim.y, images);
    const uint32_t count = part_start(blockIdx.y + 1, gridDim.y, images) - first;
    const Pieces pieces = {slabs, positions, unit, run};
    Moments all = {0.0, 0.0, 0.0};
    if (channel < channels) {
        for (uint32_t j = row; j < count * slabs; j += ROWS) {
            const double* p = partial + (static_cast<size_t>(first) * slabs + j) * 2 * channels + channel;
            const uint32_t image = first + j / slabs, slab = j % slabs;
            if (slab >= pieces.count(image)) continue;
            all.merge({static_cast<double>(pieces.size(image, slab)), p[0], p[channels]});
        }
    }
    rows[0][row][lane] = all.count;
    rows[1][row][lane] = all.mean;
    rows[2][row][lane] = all.squares;
    __syncthreads();
    if (row > 0 || channel >= channels) return;
    for (uint32_t r = 1; r < ROWS; ++r) all.merge({rows[0][r][lane], rows[1][r][lane], rows[2][r][lane]});
    mean[blockIdx.y * channels + channel] = static_cast<float>(all.mean);
    var[blockIdx.y * channels + channel] = static_cast<float>(all.squares / all.count);
}

// From the sums of the slabs: dgamma and dbeta [C], and what flows back through mean and variance, through: [G, 2, C] (e,
// then f). Block (tile of 32 channels): each warp adds every eighth image of a group, the first warp adds the warps.
//
// With a gate, the sums are those of du = dz / gate, and each image's mean of dt has its own share, from the gate's
// gradient: dt = gate du + dpooled / P, and x is `deviation` away from mean on average.
//
// Few blocks are enough for the channels there are: each may have all the registers of a multiprocessor.
extern "C" __global__ __launch_bounds__(256, 1) void batch_norm_gradient_statistics(
    const double* __restrict__ partial, const float* __restrict__ gamma, const float* __restrict__ var,
    const float* __restrict__ logit_or_null, const float* __restrict__ dpooled_or_null,
    const float* __restrict__ deviation_or_null, float* __restrict__ dgamma_or_null, float* __restrict__ dbeta_or_null,
    float* __restrict__ through, double eps, uint32_t images, uint32_t groups, uint32_t slabs, uint32_t positions,
    uint32_t run, uint32_t channels) {
    SHARED(double, rows, [2][ROWS][WARP]);
    const Pieces pieces = {slabs, positions, 1, run};
    const uint32_t row = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * WARP + lane;
    const uint32_t channel = min(column, channels - 1);   // a lane without a channel repeats the last one
    double dgamma = 0.0, dbeta = 0.0;
    for (uint32_t g = 0; g < groups; ++g) {
        const uint32_t first = part_start(g, groups, images), end = part_start(g + 1, groups, images);
        double s = 0.0, t = 0.0;
        for (uint32_t image = first + row; image < end; image += ROWS) {
            const double* p = partial + static_cast<size_t>(image) * slabs * 2 * channels + channel;
            double image_s = 0.0, image_t = 0.0;
            for (uint32_t slab = 0; slab < pieces.count(image); ++slab, p += 2 * channels) {
                image_s += p[0];
                image_t += p[channels];
            }
            if (logit_or_null != nullptr) {
                const size_t i = static_cast<size_t>(image) * channels + channel;
                const double gate = hard_sigmoid(logit_or_null[i]), mean_dt = dpooled_or_null[i];
                image_s = gate * image_s + mean_dt;
                image_t = gate * image_t + mean_dt * deviation_or_null[i];
            }
            s += image_s;
            t += image_t;
        }
        rows[0][row][lane] = s;
        rows[1][row][lane] = t;
        __syncthreads();
        if (row == 0) {
            for (uint32_t r = 1; r < ROWS; ++r) {
                s += rows[0][r][lane];
                t += rows[1][r][lane];
            }
            const double rstd = reciprocal_deviation(var[g * channels + channel], eps);
            const double share = -gamma[channel] * rstd / (static_cast<double>(end - first) * positions);
            dbeta += s;
            dgamma += t * rstd;
            if (column < channels) {
                through[(g * 2) * channels + channel] = static_cast<float>(share * rstd * rstd * t);
                through[(g * 2 + 1) * channels + channel] = static_cast<float>(share * s);
            }
        }
        __syncthreads();
    }
    if (row > 0 || column >= channels) return;
    if (dgamma_or_null != nullptr) dgamma_or_null[channel] = static_cast<float>(dgamma);
    if (dbeta_or_null != nullptr) dbeta_or_null[channel] = static_cast<float>(dbeta);
}

// BatchNorm as z = a x + b, for kernels that apply it to what they read: table [T, 2, C], of a and b, with T the images where
// there is a gate and the ghost groups elsewhere. A thread per value of a.
extern "C" __global__ __launch_bounds__(256) void batch_norm_coefficients(
    const float* __restrict__ gamma, const float* __restrict__ beta, const float* __restrict__ mean,
    const float* __restrict__ var, const float* __restrict__ logit_or_null, float* __restrict__ table, double eps,
    uint32_t images, uint32_t groups, uint32_t channels) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, row = i / channels, channel = i % channels;
    if (row >= (logit_or_null != nullptr ? images : groups)) return;
    const uint32_t s = (logit_or_null != nullptr ? part_of(row, groups, images) : row) * channels + channel;
    double a = gamma[channel] * reciprocal_deviation(var[s], eps), b = beta[channel] - mean[s] * a;
    if (logit_or_null != nullptr) {
        const double gate = hard_sigmoid(logit_or_null[i]);
        a *= gate, b *= gate;
    }
    table[row * 2 * channels + channel] = static_cast<float>(a);
    table[(row * 2 + 1) * channels + channel] = static_cast<float>(b);
}

// Its gradient as dx = a dz + e x + f, table [T, 3, C]; with a gate dz is du, and f has the image's share of dpooled.
extern "C" __global__ __launch_bounds__(256) void batch_norm_gradient_coefficients(
    const float* __restrict__ gamma, const float* __restrict__ mean, const float* __restrict__ var,
    const float* __restrict__ logit_or_null, const float* __restrict__ dpooled_or_null,
    const float* __restrict__ through, float* __restrict__ table, double eps, uint32_t images, uint32_t groups,
    uint32_t positions, uint32_t channels) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, row = i / channels, channel = i % channels;
    if (row >= (logit_or_null != nullptr ? images : groups)) return;
    const uint32_t g = logit_or_null != nullptr ? part_of(row, groups, images) : row, s = g * channels + channel;
    const double e = through[g * 2 * channels + channel];
    double a = gamma[channel] * reciprocal_deviation(var[s], eps);
    double f = through[(g * 2 + 1) * channels + channel] - e * mean[s];
    if (dpooled_or_null != nullptr) f += a * dpooled_or_null[i] / positions;
    if (logit_or_null != nullptr) a *= hard_sigmoid(logit_or_null[i]);
    table[row * 3 * channels + channel] = static_cast<float>(a);
    table[(row * 3 + 1) * channels + channel] = static_cast<float>(e);
    table[(row * 3 + 2) * channels + channel] = static_cast<float>(f);
}
