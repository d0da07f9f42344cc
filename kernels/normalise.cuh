// How the passes of batch_norm.cu cut a tensor [N, P, C] among blocks, and the affine map that they apply.
//
// A block of 8 warps stands on one tile of channels, one slab of positions and one image: blockIdx = (tile, slab, image).
// A lane has 4 neighbouring channels, one access of 8 or 16 bytes, or a single one when 4 does not divide C; the warps take
// the positions of the slab in turn. The cut follows from the shape alone, so that sums are the same on every device.
#pragma once

#include "activation.cuh"
#include "parts.cuh"

constexpr uint32_t ROWS = 8;                 // warps of a block
constexpr uint32_t WIDEST_TILE = 4 * WARP;   // channels

// WIDTH neighbouring values as they are stored: in bf16 they take half the registers until they are used.
template <uint32_t WIDTH> struct Lane {
    real value;

    __device__ __forceinline__ void load(const real* p) { value = *p; }
    __device__ __forceinline__ float operator[](uint32_t) const { return to_float(value); }
};

template <> struct Lane<4> {
#ifdef FLAVOUR_BF16
    uint2 pairs;

    __device__ __forceinline__ void load(const real* p) { pairs = load8(p); }
    __device__ __forceinline__ float operator[](uint32_t i) const {
        const uint32_t pair = i < 2 ? pairs.x : pairs.y;
        return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
#else
    float4 values;

    __device__ __forceinline__ void load(const real* p) { values = load4(p); }
    __device__ __forceinline__ float operator[](uint32_t i) const {
        return i == 0 ? values.x : i == 1 ? values.y : i == 2 ? values.z : values.w;
    }
#endif
};

// Positions that a thread reads ahead of their use: 32 bytes of each tensor.
constexpr uint32_t AHEAD = 8 / sizeof(real);

template <uint32_t WIDTH> __device__ __forceinline__ void store_lane(real* p, const float (&v)[WIDTH]) {
    if constexpr (WIDTH == 4) {
        store_reals4(p, make_float4(v[0], v[1], v[2], v[3]));
    } else {
        *p = to_real(v[0]);
    }
}

// Coefficients of this lane's channels, out of a tile in shared memory.
template <uint32_t WIDTH> __device__ __forceinline__ void read_lane(const float* tile, float (&v)[WIDTH]) {
    const float* p = tile + threadIdx.x % WARP * WIDTH;
    if constexpr (WIDTH == 4) {
        const float4 four = load4(p);
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
        v[0] = *p;
    }
}

// What a block stands on.
struct Slab {
    uint32_t image, count;   // positions
    uint32_t width;          // channels of a lane
    uint32_t tile;           // first channel
    size_t start;            // of the first position, from the start of the tensor

    __device__ __forceinline__ Slab(uint32_t positions, uint32_t channels)
        : image(blockIdx.z), width(channels % 4 == 0 ? 4 : 1), tile(blockIdx.x * width * WARP) {
        const uint32_t first = part_start(blockIdx.y, gridDim.y, positions);
        count = part_start(blockIdx.y + 1, gridDim.y, positions) - first;
        start = (static_cast<size_t>(image) * positions + first) * channels;
    }

    // First of this lane's channels.
    __device__ __forceinline__ uint32_t lane_channel() const { return tile + threadIdx.x % WARP * width; }

    // Where the sums of this slab and channel are, in [N, slabs, 2, C].
    __device__ __forceinline__ size_t partial(uint32_t sum, uint32_t channel, uint32_t channels) const {
        return ((static_cast<size_t>(image) * gridDim.y + blockIdx.y) * 2 + sum) * channels + channel;
    }
};

// Calls `use(at, values)` for the positions of this warp, in order, `at` being how far each is from the first position of
// the slab; `load(at, values)` is called for BATCH of them before the first is used, so that their reads overlap.
template <uint32_t BATCH, typename Values, typename Load, typename Use>
__device__ __forceinline__ void walk(uint32_t count, uint32_t channels, Load load, Use use) {
    const uint32_t step = ROWS * channels, end = count * channels;
    for (uint32_t at = threadIdx.x / WARP * channels; at < end; at += BATCH * step) {
        Values values[BATCH];
#pragma unroll
        for (uint32_t i = 0; i < BATCH; ++i) {
            if (at + i * step < end) load(at + i * step, values[i]);
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH; ++i) {
            if (at + i * step < end) use(at + i * step, values[i]);
        }
    }
}

// Two sums per channel of what the threads of a block hold, in the order of the warps: `done(channel of the tile, s, t)`.
template <uint32_t WIDTH, typename Done>
__device__ __forceinline__ void sum_rows(float (*rows)[ROWS][WIDEST_TILE], const float (&s)[WIDTH], const float (&t)[WIDTH],
                                         Done done) {
    const uint32_t row = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (uint32_t i = 0; i < WIDTH; ++i) {
        rows[0][row][lane * WIDTH + i] = s[i];
        rows[1][row][lane * WIDTH + i] = t[i];
    }
    __syncthreads();
    if (threadIdx.x < WIDTH * WARP) {
        double total[2] = {0.0, 0.0};
        for (uint32_t r = 0; r < ROWS; ++r) {
            total[0] += rows[0][r][threadIdx.x];
            total[1] += rows[1][r][threadIdx.x];
        }
        done(threadIdx.x, total[0], total[1]);
    }
}

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
    double count, mean, squares;

    // Those of both sets together (Chan, Golub & LeVeque 1979).
    __device__ __forceinline__ void merge(const Moments& other) {
        if (other.count == 0.0) return;
        const double total = count + other.count, delta = other.mean - mean, share = other.count / total;
        squares += other.squares + delta * delta * count * share;
        mean += delta * share;
        count = total;
    }
};

__device__ __forceinline__ double reciprocal_deviation(float var, double eps) {
    return 1.0 / sqrt(static_cast<double>(var) + eps);
}

// z = (x - mean) a + b, per image and channel: a = gamma rstd, b = beta, both times the gate where there is one.
struct Affine {
    const float* gamma;
    const float* beta;
    const float* mean;    // [G, C]
    const float* var;     // [G, C]
    const float* logit;   // [N, C], or null: the gate is hsigmoid of it
    double eps;
    uint32_t groups;

    // Fills `tile[0..3]` with mean, a and b of a block's channels.
    __device__ __forceinline__ void stage(float (*tile)[WIDEST_TILE], const Slab& slab, uint32_t channels) const {
        const uint32_t channel = slab.tile + threadIdx.x;
        if (threadIdx.x >= slab.width * WARP || channel >= channels) return;
        const size_t s = static_cast<size_t>(part_of(slab.image, groups, gridDim.z)) * channels + channel;
        double a = gamma[channel] * reciprocal_deviation(var[s], eps), b = beta[channel];
        if (logit != nullptr) {
            const double gate = hard_sigmoid(logit[static_cast<size_t>(slab.image) * channels + channel]);
            a *= gate, b *= gate;
        }
        tile[0][threadIdx.x] = mean[s];
        tile[1][threadIdx.x] = static_cast<float>(a);
        tile[2][threadIdx.x] = static_cast<float>(b);
    }
};

// What a lane holds of it.
template <uint32_t WIDTH> struct LaneAffine {
    float mean[WIDTH], a[WIDTH], b[WIDTH];

    __device__ __forceinline__ explicit LaneAffine(const float (*tile)[WIDEST_TILE]) {
        read_lane(tile[0], mean);
        read_lane(tile[1], a);
        read_lane(tile[2], b);
    }
};

// Runs the statement with KIND, a constant, equal to `kind`: the choice is made once per block and not once per value.
#define WITH_KIND(kind, ...)                                              \
    switch (kind) {                                                       \
        WITH_KIND_CASE(IDENTITY, __VA_ARGS__)                             \
        WITH_KIND_CASE(RELU, __VA_ARGS__)                                 \
        WITH_KIND_CASE(RELU6, __VA_ARGS__)                                \
        WITH_KIND_CASE(HARD_SIGMOID, __VA_ARGS__)                         \
        WITH_KIND_CASE(HARD_SWISH, __VA_ARGS__)                           \
        WITH_KIND_CASE(SIGMOID, __VA_ARGS__)                              \
        WITH_KIND_CASE(SWISH, __VA_ARGS__)                                \
        WITH_KIND_CASE(TANH, __VA_ARGS__)                                 \
    }
#define WITH_KIND_CASE(name, ...)       \
    case name: {                        \
        constexpr uint32_t KIND = name; \
        __VA_ARGS__;                    \
        break;                          \
    }
