// 1x1 convolution, bias and activation, as matrix products over all M positions: y [M, B] = act(x [M, A] w [A, B] + bias).
//
//   dz [M, B] = dy act'(z), z computed again      pointwise_conv_forward with dy
//   dx [M, A] = dz wT                             pointwise_conv_forward on dz and transposed weights
//   dw [A, B] = xT dz                             split over M into slabs: partial sums, then added in order
//   dbias [B] = sum of dz over M                  likewise
//
// Up to 8 outputs (the networks have layers with 2, for coordinates) leave most of a tensor-core tile empty. They have
// kernels of their own, bound by reading x once. Source: the definition in src/ops/pointwise_conv.rs.
#include "column_sum.cuh"
#include "gemm.cuh"

// The weights as the products read them: `rounded [rows, pitch]`, lines padded with zeros to 16 bytes.
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_lay_out_weights(const float* __restrict__ w,
                                                                                  real* __restrict__ rounded,
                                                                                  uint32_t rows, uint32_t columns,
                                                                                  uint32_t pitch) {
    const uint32_t at = blockIdx.x * 256 + threadIdx.x;
    if (at >= rows * pitch) return;
    const uint32_t r = at / pitch, c = at % pitch;
    rounded[at] = to_real(c < columns ? w[r * columns + c] : 0.0f);
}

// The same of the transpose of each of several matrices w [rows, columns]: `rounded [matrices, columns, pitch]`. One block
// per 32 x 32 values: grid (tiles of a matrix, matrices).
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_transpose_weights(const float* __restrict__ w,
                                                                                    real* __restrict__ rounded,
                                                                                    uint32_t rows, uint32_t columns,
                                                                                    uint32_t pitch) {
    SHARED(float, tile, [32][33]);
    const uint32_t across = (pitch + 31) / 32, x = threadIdx.x % 32, y = threadIdx.x / 32;
    const uint32_t r0 = blockIdx.x % across * 32, c0 = blockIdx.x / across * 32;
    w += blockIdx.y * rows * columns;
    rounded += blockIdx.y * columns * pitch;
    for (uint32_t i = y; i < 32; i += 8) {
        const bool there = r0 + i < rows && c0 + x < columns;
        tile[i][x] = there ? w[(r0 + i) * columns + c0 + x] : 0.0f;
    }
    __syncthreads();
    for (uint32_t i = y; i < 32; i += 8) {
        if (c0 + i < columns && r0 + x < pitch) rounded[(c0 + i) * pitch + r0 + x] = to_real(tile[x][i]);
    }
}

template <class T, bool VECTOR>
__device__ __forceinline__ void forward(const Matrix& x, const Matrix& w, const BiasActivation& put,
                                        unsigned char* shared) {
    const Place<T> place(put.n);
    multiply<T>(AlongK<T, VECTOR, Matrix>(x, place.row), AcrossK<T::COLUMNS, true, Matrix>(w, place.column), 0, x.columns,
                shared, place, x.rows, put.n, put);
}

// y [m, n] = act(x [m, k] w + bias + residual), or dy act'(..); w [k, pitch] as laid out above. One block a tile.
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void pointwise_conv_forward(
    const real* __restrict__ x, const real* __restrict__ w, const float* __restrict__ bias_or_null,
    const real* __restrict__ residual_or_null, const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t m,
    uint32_t n, uint32_t k, uint32_t pitch, uint32_t act, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const Matrix x_view{x, m, k, k}, w_view{w, k, pitch, pitch};
    const BiasActivation put{bias_or_null, dy_or_null, y, n, act, residual_or_null};
    if (tiling == LARGE) forward<LargeTile, true>(x_view, w_view, put, shared);
    else if (tiling == SMALL) forward<SmallTile, true>(x_view, w_view, put, shared);
    else forward<SmallTile, false>(x_view, w_view, put, shared);
}

template <class T, bool VECTOR>
__device__ __forceinline__ void weight_gradient(const Matrix& x, const Matrix& dz, uint32_t begin, float* partial,
                                                unsigned char* shared) {
    const Place<T> place(dz.columns);
    multiply<T>(AcrossK<T::ROWS, VECTOR, Matrix>(x, place.row), AcrossK<T::COLUMNS, VECTOR, Matrix>(dz, place.column),
                begin, x.rows, shared, place, x.columns, dz.columns, Plain{partial, dz.columns});
}

// partial [slab, a, b] = xT dz over the positions of each slab. Grid (tiles, slabs).
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void pointwise_conv_weight_gradient(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t m, uint32_t a,
    uint32_t b, uint32_t slab, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(m, begin + slab);
    const Matrix x_view{x, end, a, a}, dz_view{dz, end, b, b};
    partial += blockIdx.y * a * b;
    if (tiling == LARGE) weight_gradient<LargeTile, true>(x_view, dz_view, begin, partial, shared);
    else if (tiling == SMALL) weight_gradient<SmallTile, true>(x_view, dz_view, begin, partial, shared);
    else weight_gradient<SmallTile, false>(x_view, dz_view, begin, partial, shared);
}

template <uint32_t V>
__device__ __forceinline__ void bias_gradient(const real* dz, float* partial, uint32_t rows, uint32_t b) {
    const uint32_t first = blockIdx.x * COLUMNS, column = first + threadIdx.x;
    const double sum = column_sum<V>(rows, b, first, [=](uint32_t r, uint32_t c) { return load<V>(dz + r * b + c); });
    if (threadIdx.x < COLUMNS && column < b) partial[column] = static_cast<float>(sum);
}

// partial [slab, b] = sum of dz [m, b] over the positions of each slab. Grid (columns / 16, slabs).
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_bias_gradient(const real* __restrict__ dz,
                                                                               float* __restrict__ partial, uint32_t m,
                                                                               uint32_t b, uint32_t slab) {
    const uint32_t begin = blockIdx.y * slab, rows = min(m - begin, slab);
    dz += begin * b;
    partial += blockIdx.y * b;
    if (b % 4 == 0) bias_gradient<4>(dz, partial, rows, b);
    else bias_gradient<1>(dz, partial, rows, b);
}

// total [n] = sum of partial [slabs, n] over the slabs: eighths in order, then their sums in order. Grid (n / 32).
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_add_slabs(const float* __restrict__ partial,
                                                                           float* __restrict__ total, uint32_t slabs,
                                                                           uint32_t n) {
    SHARED(double, sums, [8][32]);
    const uint32_t x = threadIdx.x % 32, y = threadIdx.x / 32, at = blockIdx.x * 32 + x;
    double sum = 0.0;
    if (at < n) {
        for (uint32_t i = y; i < slabs; i += 8) sum += partial[i * n + at];
    }
    sums[y][x] = sum;
    __syncthreads();
    if (y != 0 || at >= n) return;
    for (uint32_t i = 1; i < 8; ++i) sum += sums[i][x];
    total[at] = static_cast<float>(sum);
}

constexpr uint32_t NARROW = 8; // outputs
constexpr uint32_t ROWS = 4;   // positions of a warp: a weight is read once for all of them

template <uint32_t V>
__device__ __forceinline__ void narrow_products(float (&sums)[ROWS][NARROW], const real* x, const float* w, uint32_t first,
                                                uint32_t m, uint32_t a, uint32_t b) {
    for (uint32_t c = threadIdx.x % WARP * V; c < a; c += WARP * V) {
        Floats<V> values[ROWS] = {};
#pragma unroll
        for (uint32_t r = 0; r < ROWS; ++r) {
            if (first + r < m) values[r] = load<V>(x + (first + r) * a + c);
        }
#pragma unroll
        for (uint32_t i = 0; i < V; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < NARROW; ++j) {
                if (j >= b) break;
                const float weight = w[(c + i) * b + j];
#pragma unroll
                for (uint32_t r = 0; r < ROWS; ++r) sums[r][j] += values[r].at[i] * weight;
            }
        }
    }
}

// pointwise_conv_forward for b <= 8, w [a, b] as stored. A warp takes 4 positions, its lanes share the channels.
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_narrow_forward(
    const real* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias_or_null,
    const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t m, uint32_t a, uint32_t b, uint32_t act) {
    const uint32_t lane = threadIdx.x % WARP, first = (blockIdx.x * 8 + threadIdx.x / WARP) * ROWS;
    float sums[ROWS][NARROW] = {};
    if (a % 4 == 0) narrow_products<4>(sums, x, w, first, m, a, b);
    else narrow_products<1>(sums, x, w, first, m, a, b);
    // Lane 8 r + j finishes output j of position r.
    Floats<1> z = {};
#pragma unroll
    for (uint32_t r = 0; r < ROWS; ++r) {
#pragma unroll
        for (uint32_t j = 0; j < NARROW; ++j) {
            if (j >= b) break;
            const float total = warp_sum(sums[r][j]);
            if (lane == r * NARROW + j) z.at[0] = total;
        }
    }
    const uint32_t row = first + lane / NARROW, column = lane % NARROW;
    if (row < m && column < b) BiasActivation{bias_or_null, dy_or_null, y, b, act}(row, column, z);
}

template <uint32_t V>
__device__ __forceinline__ void narrow_gradient(const real* dz, const float* w, real* dx, uint32_t m, uint32_t a,
                                                uint32_t b) {
    const uint32_t at = (blockIdx.x * 256 + threadIdx.x) * V, row = at / a, column = at % a;
    if (row >= m) return;
    Floats<V> sums = {};
    for (uint32_t j = 0; j < b; ++j) {
        const float d = to_float(dz[row * b + j]);
#pragma unroll
        for (uint32_t i = 0; i < V; ++i) sums.at[i] += d * w[(column + i) * b + j];
    }
    store<V>(dx + at, sums);
}

// dx [m, a] = dz [m, b] wT for b <= 8, w [a, b] as stored. A thread for 4 values, or for 1.
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_narrow_input_gradient(
    const real* __restrict__ dz, const float* __restrict__ w, real* __restrict__ dx, uint32_t m, uint32_t a, uint32_t b) {
    if (a % 4 == 0) narrow_gradient<4>(dz, w, dx, m, a, b);
    else narrow_gradient<1>(dz, w, dx, m, a, b);
}

// pointwise_conv_weight_gradient for b <= 8. A thread for a channel; grid (channels / 256, slabs).
extern "C" __global__ __launch_bounds__(256) void pointwise_conv_narrow_weight_gradient(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t m, uint32_t a,
    uint32_t b, uint32_t slab) {
    const uint32_t channel = blockIdx.x * 256 + threadIdx.x, end = min(m, (blockIdx.y + 1) * slab);
    if (channel >= a) return;
    float sums[NARROW] = {};
#pragma unroll 4
    for (uint32_t i = blockIdx.y * slab; i < end; ++i) {
        const float value = to_float(x[i * a + channel]);
#pragma unroll
        for (uint32_t j = 0; j < NARROW; ++j) {
            if (j < b) sums[j] += value * to_float(dz[i * b + j]);
        }
    }
    partial += (blockIdx.y * a + channel) * b;
#pragma unroll
    for (uint32_t j = 0; j < NARROW; ++j) {
        if (j < b) partial[j] = sums[j];
    }
}
