// Convolution, bias and activation as matrix products over patches that are gathered on their way to shared memory:
//
//   y [positions of y, B] = act(patches of x [.., taps A] w [taps A, B] + bias)
//   dz = dy act'(z), z computed again          conv2d_forward with dy
//   dx [positions of x, A] = patches of dz [.., taps B] wT [taps B, A]          conv2d_forward, other geometry
//   dw [taps A, B] = (patches of x)T dz        split over positions into slabs, then added in order
//
// x [N, H, W, A], w [KH, KW, A, B], y [N, H', W', B]. Weights are laid out, and slabs added, by the kernels of
// pointwise_conv.cu. Source: the definition in src/ops/conv2d.rs.
#include "conv_patches.cuh"
#include "gemm.cuh"

template <class T, bool VECTOR, class View>
__device__ __forceinline__ void forward(const View& x, const Matrix& w, const BiasActivation& put,
                                        unsigned char* shared) {
    const Place<T> place(put.n);
    multiply<T>(AlongK<T, VECTOR, View>(x, place.row), AcrossK<T::COLUMNS, true, Matrix>(w, place.column), 0, x.columns,
                shared, place, x.rows, put.n, put);
}

// y [m, n] = act(patches of x times w [taps * channels, pitch] + bias + residual), or dy act'(..); m counts the pixels of all
// images.
// Sizes as in conv_patches.cuh; `apart` may be more than 1 with ONE_BY_ONE only. One block a tile.
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void conv2d_forward(
    const real* __restrict__ x, const real* __restrict__ w, const float* __restrict__ bias_or_null,
    const real* __restrict__ residual_or_null, const real* __restrict__ dy_or_null, real* __restrict__ y, uint32_t m,
    uint32_t n, uint32_t pitch, uint32_t height, uint32_t width, uint32_t channels, uint32_t out_height,
    uint32_t out_width, uint32_t taps, uint32_t taps_across, uint32_t stride, uint32_t apart, int32_t direction,
    int32_t top, int32_t left, uint32_t act, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const Geometry geometry{height, width,  channels, out_height, out_width, taps,
                            taps_across, stride, apart,    direction,  top,       left};
    const Matrix w_view{w, taps * channels, pitch, pitch};
    const BiasActivation put{bias_or_null, dy_or_null, y, n, act, residual_or_null};
    if (tiling == LARGE) forward<LargeTile, true>(Patches<false>(x, m, geometry), w_view, put, shared);
    else if (tiling == SMALL) forward<SmallTile, true>(Patches<false>(x, m, geometry), w_view, put, shared);
    else forward<SmallTile, false>(Patches<true>(x, m, geometry), w_view, put, shared);
}

template <class T, bool VECTOR>
__device__ __forceinline__ void weight_gradient(const Patches<false>& x, const Matrix& dz, uint32_t begin, float* partial,
                                                unsigned char* shared) {
    const Place<T> place(dz.columns);
    multiply<T>(AcrossK<T::ROWS, VECTOR, Patches<false>>(x, place.row), AcrossK<T::COLUMNS, VECTOR, Matrix>(dz, place.column),
                begin, x.rows, shared, place, x.columns, dz.columns, Plain{partial, dz.columns});
}

// partial [slab, taps * channels, n] = (patches of x)T dz over the positions of each slab of y. Grid (tiles, slabs).
// SASS: HMMA, LDGSTS
extern "C" __global__ __launch_bounds__(128) void conv2d_weight_gradient(
    const real* __restrict__ x, const real* __restrict__ dz, float* __restrict__ partial, uint32_t m, uint32_t n,
    uint32_t height, uint32_t width, uint32_t channels, uint32_t out_height, uint32_t out_width, uint32_t taps,
    uint32_t taps_across, uint32_t stride, int32_t top, int32_t left, uint32_t slab, uint32_t tiling) {
    DYNAMIC_SHARED(unsigned char, shared);
    const uint32_t begin = blockIdx.y * slab, end = min(m, begin + slab);
    const Geometry geometry{height, width, channels, out_height, out_width, taps, taps_across, stride, 1, 1, top, left};
    const Patches<false> x_view(x, end, geometry);
    const Matrix dz_view{dz, end, n, n};
    partial += blockIdx.y * x_view.columns * n;
    if (tiling == LARGE) weight_gradient<LargeTile, true>(x_view, dz_view, begin, partial, shared);
    else if (tiling == SMALL) weight_gradient<SmallTile, true>(x_view, dz_view, begin, partial, shared);
    else weight_gradient<SmallTile, false>(x_view, dz_view, begin, partial, shared);
}
