// BatchNorm with what follows it, over [N, P, C] (P = H W), and its gradients:
//
//   y = act((x - mean) a + b [+ r]),   a = gamma rstd, b = beta   [both times the gate of the image: squeeze-excite]
//   dz = dy act'(z),   dbeta = sum dz,   dgamma = rstd sum dz (x - mean)
//   dx = a dz + e (x - mean) + f,   e = -a rstd dgamma / M,   f = -a dbeta / M   over the M positions of a ghost group
//
// mean and var are [G, C], those of ghost group g over images g N / G .. (g + 1) N / G. Sums run in f32 over the few
// positions of a thread and in f64 from there on, always in the same order. Forward reads x twice, backward x and dy twice.
#include "normalise.cuh"

// Mean and squared deviations of each slab, partial: [N, slabs, 2, C]. One pass: deviations are taken from the first
// position of the slab, so that a mean far from zero costs no digits.
template <uint32_t WIDTH>
__device__ __forceinline__ void slab_moments(const real* __restrict__ x, double* __restrict__ partial,
                                             float (*rows)[ROWS][WIDEST_TILE], const Slab& slab, uint32_t channels) {
    using Values = Lane<WIDTH>;
    float s[WIDTH] = {}, q[WIDTH] = {};
    if (slab.lane_channel() < channels) {
        const real* from = x + slab.start + slab.lane_channel();
        Values pivot;
        pivot.load(from);
        walk<2 * AHEAD, Values>(
            slab.count, channels, [&](uint32_t at, Values& v) { v.load(from + at); },
            [&](uint32_t, const Values& v) {
#pragma unroll
                for (uint32_t i = 0; i < WIDTH; ++i) {
                    const float d = v[i] - pivot[i];
                    s[i] += d;
                    q[i] += d * d;
                }
            });
    }
    sum_rows(rows, s, q, [&](uint32_t column, double sum, double square) {
        const uint32_t channel = slab.tile + column;
        if (channel >= channels) return;
        const double squares = square - sum * sum / slab.count;
        partial[slab.partial(0, channel, channels)] = to_float(x[slab.start + channel]) + sum / slab.count;
        // Written so that a NaN stays one.
        partial[slab.partial(1, channel, channels)] = squares < 0.0 ? 0.0 : squares;
    });
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void batch_norm_moments(const real* __restrict__ x,
                                                                     double* __restrict__ partial, uint32_t positions,
                                                                     uint32_t channels) {
    SHARED(float, rows, [2][ROWS][WIDEST_TILE]);
    const Slab slab(positions, channels);
    if (slab.width == 4) {
        slab_moments<4>(x, partial, rows, slab, channels);
    } else {
        slab_moments<1>(x, partial, rows, slab, channels);
    }
}

template <uint32_t WIDTH, uint32_t KIND>
__device__ __forceinline__ void apply(const real* __restrict__ x, const real* __restrict__ residual, real* __restrict__ y,
                                      const float (*tile)[WIDEST_TILE], const Slab& slab, uint32_t channels) {
    struct Values {
        Lane<WIDTH> x, r;
    };
    if (slab.lane_channel() >= channels) return;
    const LaneAffine<WIDTH> k(tile);
    const size_t offset = slab.start + slab.lane_channel();
    x += offset, y += offset;
    if (residual != nullptr) residual += offset;
    walk<AHEAD, Values>(
        slab.count, channels,
        [&](uint32_t at, Values& v) {
            v.x.load(x + at);
            if (residual != nullptr) v.r.load(residual + at);
        },
        [&](uint32_t at, const Values& v) {
            float out[WIDTH];
#pragma unroll
            for (uint32_t i = 0; i < WIDTH; ++i) {
                const float z = (v.x[i] - k.mean[i]) * k.a[i] + k.b[i];
                out[i] = act_value<KIND>(residual != nullptr ? z + v.r[i] : z);
            }
            store_lane(y + at, out);
        });
}

// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void batch_norm_apply(
    const real* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    const float* __restrict__ mean, const float* __restrict__ var, const float* __restrict__ logit_or_null,
    const real* __restrict__ residual_or_null, real* __restrict__ y, double eps, uint32_t kind, uint32_t groups,
    uint32_t positions, uint32_t channels) {
    SHARED(float, tile, [3][WIDEST_TILE]);
    const Affine affine = {gamma, beta, mean, var, logit_or_null, eps, groups};
    const Slab slab(positions, channels);
    affine.stage(tile, slab, channels);
    __syncthreads();
    if (slab.width == 4) {
        WITH_KIND(kind, apply<4, KIND>(x, residual_or_null, y, tile, slab, channels))
    } else {
        WITH_KIND(kind, apply<1, KIND>(x, residual_or_null, y, tile, slab, channels))
    }
}

// x, dy and, where the slope of the activation needs it, the residual at one position.
template <uint32_t WIDTH> struct GradientValues {
    Lane<WIDTH> x, dy, r;

    __device__ __forceinline__ void load(const real* x_at, const real* dy_at, const real* residual_at) {
        x.load(x_at);
        dy.load(dy_at);
        if (residual_at != nullptr) r.load(residual_at);
    }

    // dz of value i; `has_residual` says whether r holds anything.
    template <uint32_t KIND>
    __device__ __forceinline__ float dz(uint32_t i, const LaneAffine<WIDTH>& k, bool has_residual) const {
        if constexpr (KIND == IDENTITY) return dy[i];
        const float z = (x[i] - k.mean[i]) * k.a[i] + k.b[i];
        return dy[i] * act_slope<KIND>(has_residual ? z + r[i] : z);
    }
};

// Sums of dz and of dz (x - mean) over each slab, partial: [N, slabs, 2, C].
template <uint32_t WIDTH, uint32_t KIND>
__device__ __forceinline__ void gradient_sums(const real* __restrict__ x, const real* __restrict__ dy,
                                              const real* __restrict__ residual, double* __restrict__ partial,
                                              const float (*tile)[WIDEST_TILE], float (*rows)[ROWS][WIDEST_TILE],
                                              const Slab& slab, uint32_t channels) {
    using Values = GradientValues<WIDTH>;
    float s[WIDTH] = {}, t[WIDTH] = {};
    if (slab.lane_channel() < channels) {
        const LaneAffine<WIDTH> k(tile);
        const size_t offset = slab.start + slab.lane_channel();
        x += offset, dy += offset;
        if (residual != nullptr) residual += offset;
        walk<AHEAD, Values>(
            slab.count, channels,
            [&](uint32_t at, Values& v) {
                v.load(x + at, dy + at, residual == nullptr ? nullptr : residual + at);
            },
            [&](uint32_t, const Values& v) {
#pragma unroll
                for (uint32_t i = 0; i < WIDTH; ++i) {
                    const float dz = v.template dz<KIND>(i, k, residual != nullptr);
                    s[i] += dz;
                    t[i] += dz * (v.x[i] - k.mean[i]);
                }
            });
    }
    sum_rows(rows, s, t, [&](uint32_t column, double sum, double centred) {
        const uint32_t channel = slab.tile + column;
        if (channel >= channels) return;
        partial[slab.partial(0, channel, channels)] = sum;
        partial[slab.partial(1, channel, channels)] = centred;
    });
}

// SASS: LDG.128 (f32), LDG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void batch_norm_gradient_sums(
    const real* __restrict__ x, const real* __restrict__ dy, const float* __restrict__ gamma,
    const float* __restrict__ beta, const float* __restrict__ mean, const float* __restrict__ var,
    const float* __restrict__ logit_or_null, const real* __restrict__ residual_or_null, double* __restrict__ partial,
    double eps, uint32_t kind, uint32_t groups, uint32_t positions, uint32_t channels) {
    SHARED(float, tile, [3][WIDEST_TILE]);
    SHARED(float, rows, [2][ROWS][WIDEST_TILE]);
    const Affine affine = {gamma, beta, mean, var, logit_or_null, eps, groups};
    const Slab slab(positions, channels);
    affine.stage(tile, slab, channels);
    __syncthreads();
    if (slab.width == 4) {
        WITH_KIND(kind, gradient_sums<4, KIND>(x, dy, residual_or_null, partial, tile, rows, slab, channels))
    } else {
        WITH_KIND(kind, gradient_sums<1, KIND>(x, dy, residual_or_null, partial, tile, rows, slab, channels))
    }
}

// `tile`: mean, a, b, e and f of the channels.
template <uint32_t WIDTH, uint32_t KIND>
__device__ __forceinline__ void gradient_x(const real* __restrict__ x, const real* __restrict__ dy,
                                           const real* __restrict__ residual, real* __restrict__ dx,
                                           real* __restrict__ dresidual, const float (*tile)[WIDEST_TILE],
                                           const Slab& slab, uint32_t channels) {
    using Values = GradientValues<WIDTH>;
    if (slab.lane_channel() >= channels) return;
    const LaneAffine<WIDTH> k(tile);
    float e[WIDTH], f[WIDTH];
    read_lane(tile[3], e);
    read_lane(tile[4], f);
    const size_t offset = slab.start + slab.lane_channel();
    x += offset, dy += offset;
    if (residual != nullptr) residual += offset;
    if (dx != nullptr) dx += offset;
    if (dresidual != nullptr) dresidual += offset;
    walk<AHEAD, Values>(
        slab.count, channels,
        [&](uint32_t at, Values& v) { v.load(x + at, dy + at, residual == nullptr ? nullptr : residual + at); },
        [&](uint32_t at, const Values& v) {
            float dz[WIDTH], out[WIDTH];
#pragma unroll
            for (uint32_t i = 0; i < WIDTH; ++i) {
                dz[i] = v.template dz<KIND>(i, k, residual != nullptr);
                out[i] = k.a[i] * dz[i] + e[i] * (v.x[i] - k.mean[i]) + f[i];
            }
            if (dx != nullptr) store_lane(dx + at, out);
            if (dresidual != nullptr) store_lane(dresidual + at, dz);
        });
}

// `through` is null where mean and variance are constants.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void batch_norm_gradient_x(
    const real* __restrict__ x, const real* __restrict__ dy, const float* __restrict__ gamma,
    const float* __restrict__ beta, const float* __restrict__ mean, const float* __restrict__ var,
    const float* __restrict__ logit_or_null, const float* __restrict__ dpooled_or_null,
    const real* __restrict__ residual_or_null, const float* __restrict__ through_or_null, real* __restrict__ dx_or_null,
    real* __restrict__ dresidual_or_null, double eps, uint32_t kind, uint32_t groups, uint32_t positions,
    uint32_t channels) {
    SHARED(float, tile, [5][WIDEST_TILE]);
    const Slab slab(positions, channels);
    const Affine affine = {gamma, beta, mean, var, logit_or_null, eps, groups};
    affine.stage(tile, slab, channels);
    const uint32_t channel = slab.tile + threadIdx.x;
    if (threadIdx.x < slab.width * WARP && channel < channels) {
        const uint32_t g = part_of(slab.image, groups, gridDim.z);
        float e = 0.0f, f = 0.0f;
        if (through_or_null != nullptr) {
            e = through_or_null[(g * 2) * channels + channel];
            f = through_or_null[(g * 2 + 1) * channels + channel];
        }
        if (dpooled_or_null != nullptr) {
            const double a = gamma[channel] * reciprocal_deviation(var[g * channels + channel], eps);
            f += static_cast<float>(a * dpooled_or_null[static_cast<size_t>(slab.image) * channels + channel] / positions);
        }
        tile[3][threadIdx.x] = e;
        tile[4][threadIdx.x] = f;
    }
    __syncthreads();
    if (slab.width == 4) {
        WITH_KIND(kind, gradient_x<4, KIND>(x, dy, residual_or_null, dx_or_null, dresidual_or_null, tile, slab, channels))
    } else {
        WITH_KIND(kind, gradient_x<1, KIND>(x, dy, residual_or_null, dx_or_null, dresidual_or_null, tile, slab, channels))
    }
}
