// The matrix products of a basic block in training, x [M, C] to y [M, C] over patches of 3 x 3 (M counts the pixels of all
// images). Only raw outputs of convolutions y1, y2 [M, C] are kept; h1 is made on load.
//
//   y1 = patches of x w1                              and its moments        basic_block_product
//   y2 = patches of h1 w2, h1 = relu(a1 y1 + b1)      and its moments        basic_block_product
//   y  = relu(BN(y2) + x)                                                    batch_norm.cu
//
//   dz2, dy' = dy (y > 0)                                                    batch_norm.cu
//   dw2 = (patches of h1)T dz2                                               basic_block_weight_gradient
//   dt  = patches' of dz2 w2T relu'(a1 y1 + b1)       and what BN 1 needs    basic_block_hidden_gradient
//   dz1                                                                      batch_norm.cu
//   dw1 = (patches of x)T dz1                                                basic_block_weight_gradient
//   dx  = patches' of dz1 w1T + dy'                                          basic_block_input_gradient
//
// Source: the definition in src/ops/basic_block.rs; tables of coefficients by batch_norm_statistics.cu.
#include "conv_patches.cuh"
#include "gemm_tilings.cuh"
#include "normalise_on_load.cuh"

// 3 x 3 patches of stride 1 with one zero around the picture; direction as in conv_patches.cuh.
__device__ __forceinline__ Geometry three_by_three(uint32_t height, uint32_t width, uint32_t channels, int32_t direction) {
    return {height, width, channels, height, width, 9, 3, 1, 1, direction, -direction, -direction};
}

// Patches of relu(a x + b) with a table [tables, 2, channels]; without a table, of x. Around the picture there are zeros,
// whatever b is.
struct NormalisedPatches : Patches<false> {
    static constexpr bool CHANGES = true;
    static constexpr uint32_t MORE = 0;
    const float* table;
    uint32_t images, tables;
    Divisor image; // by the values of one

    struct Column : Patches<false>::Column {
        uint32_t channel;
    };
    struct Held {
        uint32_t table = 0xffffffffu;
        Floats<CHUNK> a, b;
    };

    __device__ NormalisedPatches(const real* x, const float* table_or_null, uint32_t positions, const Geometry& geometry,
                                 uint32_t images_, uint32_t tables_)
        : Patches<false>(x, positions, geometry), table(table_or_null), images(images_), tables(tables_),
          image(geometry.height * geometry.width * geometry.channels) {}

    // Where the coefficients of a row begin. Found again each time: kept, they would cost a register for each row of a thread.
    __device__ __forceinline__ uint32_t table_of(const Row& r) const {
        if (tables == 1) return 0;
        return part_of(image.quotient(r.offset - pixel(g.top, g.left)), tables, images) * 2 * g.channels;
    }
    __device__ __forceinline__ Column column(uint32_t c) const {
        return {Patches<false>::column(c), c - tap.quotient(c) * tap.d};
    }
    static __device__ __forceinline__ float of(float x, float a, float b) { return act_value<RELU>(fmaf(x, a, b)); }

    __device__ __forceinline__ void change(real* to, const real*, const Row& r, const Column& c, Held& held) const {
        if (table == nullptr || !at(r, c).there) return;
        if (const uint32_t t = table_of(r); held.table != t) {
            held.table = t;
            held.a = load_coefficients(table + t + c.channel);
            held.b = load_coefficients(table + t + g.channels + c.channel);
        }
        Floats<CHUNK> v = load_chunk(to);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK; ++i) v.at[i] = of(v.at[i], held.a.at[i], held.b.at[i]);
        store_chunk(to, v);
    }
    __device__ __forceinline__ float value(const Row& r, const Column& c) const {
        const float x = to_float(data[at(r, c).offset]);
        if (table == nullptr) return x;
        const float* k = table + table_of(r) + c.channel;
        return of(x, k[0], k[g.channels]);
    }
};

// y [m, n] = patches of h w, where h [m, channels] is x, or relu(a x + b) with a table [groups, 2, channels];
// w [9 channels, pitch] as laid out by pointwise_conv.cu. partial [N, slabs, 2, n]: the moments of y. One block a tile.
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void basic_block_product(
    const real* __restrict__ x, const float* __restrict__ table_or_null, const real* __restrict__ w, real* __restrict__ y,
    double* __restrict__ partial, uint32_t m, uint32_t n, uint32_t channels, uint32_t pitch, uint32_t height,
    uint32_t width, uint32_t groups, uint32_t slabs, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t positions = height * width;
    const Geometry geometry = three_by_three(height, width, channels, 1);
    product(NormalisedPatches(x, table_or_null, m, geometry, m / positions, groups), Matrix{w, 9 * channels, pitch, pitch},
            StoredMoments{y, partial, n, positions, slabs}, tiling, shared);
}

// dt [m, n] = patches' of dz w relu'(a x + b), with dz [m, channels], w [9 channels, pitch] the transposed weights, x [m, n];
// and its sums, partial [N, slabs, 2, n]. x_table [groups, 2, n], x_mean [groups, n].
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void basic_block_hidden_gradient(
    const real* __restrict__ dz, const real* __restrict__ w, const real* __restrict__ x, const float* __restrict__ x_table,
    const float* __restrict__ x_mean, real* __restrict__ dt, double* __restrict__ partial, uint32_t m, uint32_t n,
    uint32_t channels, uint32_t pitch, uint32_t height, uint32_t width, uint32_t groups, uint32_t slabs, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t positions = height * width;
    product(Patches<false>(dz, m, three_by_three(height, width, channels, -1)), Matrix{w, 9 * channels, pitch, pitch},
            SlopeSums<RELU>{x, x_table, x_mean, dt, partial, n, positions, slabs, m / positions, groups, groups}, tiling,
            shared);
}

// dx [m, n] = patches' of dz w + dy, with dz [m, channels] and w [9 channels, pitch] the transposed weights.
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void basic_block_input_gradient(
    const real* __restrict__ dz, const real* __restrict__ w, const real* __restrict__ dy, real* __restrict__ dx, uint32_t m,
    uint32_t n, uint32_t channels, uint32_t pitch, uint32_t height, uint32_t width, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    product(Patches<false>(dz, m, three_by_three(height, width, channels, -1)), Matrix{w, 9 * channels, pitch, pitch},
            Added{dy, dx, n}, tiling, shared);
}

template <class T, bool VECTOR>
__device__ __forceinline__ void weight_gradient(const NormalisedPatches& x, const Matrix& dz, uint32_t begin, float* partial,
                                                unsigned char* shared) {
    const Place<T> place(dz.columns);
    multiply<T>(AcrossK<T::ROWS, VECTOR, NormalisedPatches>(x, place.row), AcrossK<T::COLUMNS, VECTOR, Matrix>(dz, place.column),
                begin, x.rows, shared, place, x.columns, dz.columns, Plain{partial, dz.columns});
}

// partial [slab, 9 channels, n] = (patches of h)T dz over the positions of each slab; h [m, channels] as in
// basic_block_product, dz [m, n]. Grid (tiles, slabs).
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void basic_block_weight_gradient(
    const real* __restrict__ x, const float* __restrict__ table_or_null, const real* __restrict__ dz,
    float* __restrict__ partial, uint32_t m, uint32_t n, uint32_t channels, uint32_t height, uint32_t width,
    uint32_t groups, uint32_t slab, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(m, begin + slab), images = m / (height * width);
    const NormalisedPatches x_view(x, table_or_null, end, three_by_three(height, width, channels, 1), images, groups);
    const Matrix dz_view{dz, end, n, n};
    partial += blockIdx.y * x_view.columns * n;
    if (tiling == LARGE) weight_gradient<LargeTile, true>(x_view, dz_view, begin, partial, shared);
    else if (tiling == SMALL) weight_gradient<SmallTile, true>(x_view, dz_view, begin, partial, shared);
    else weight_gradient<SmallTile, false>(x_view, dz_view, begin, partial, shared);
}
