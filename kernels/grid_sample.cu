// Bilinear read of a learned grid at continuous coordinates; outside the grid there is zero.
//
//   grid [rows, cols, values] f32, coord [points, 2] (horizontal first), y [points, values]
//   i = ((a + 1) R - 1) / 2 lies between the nodes floor(i) and floor(i) + 1, at the share t = i - floor(i)
//   y[m]        = sum over the four taps of weight * grid[cell]
//   dgrid[cell] = sum over the points m of weight(m, cell) * dy[m]
//   dcoord[m]   = sum over the four taps of slope * (grid[cell] . dy[m])
//
// One design serves both uses: many points with short cells (the local grid, [8, 8, C], read at every position) and few
// points with long ones (the global grid, [4, 4, H W C], read once per image). A warp always works on a span of 128
// values, and warps that need the same piece of the larger array sit side by side: all but the first find it in L1.
// No sum depends on which block ran first: what a cell receives is added in the order of the points.
#include "vector.cuh"

struct Sizes {
    uint32_t points, values, rows, cols;
};

// The node up and left of a point, and the shares (tx, ty) of the nodes right of it and below.
struct Place {
    float x, y, tx, ty;
};

// Node numbers stay in floating point, so that a coordinate far outside, or NaN, cannot wrap round to a cell.
__device__ __forceinline__ Place place(const real* coord, size_t m, const Sizes& n) {
    const float ix = ((to_float(coord[2 * m]) + 1.0f) * static_cast<float>(n.cols) - 1.0f) * 0.5f;
    const float iy = ((to_float(coord[2 * m + 1]) + 1.0f) * static_cast<float>(n.rows) - 1.0f) * 0.5f;
    const float x = floorf(ix), y = floorf(iy);
    return {x, y, ix - x, iy - y};
}

// One of the four cells that a point reads.
struct Tap {
    bool inside;
    size_t cell;
    float weight;
    // Derivatives of the weight with respect to the horizontal and the vertical coordinate.
    float slope_x, slope_y;
};

// Outside the grid a tap counts nothing, even where the point is NaN.
__device__ __forceinline__ Tap tap(const Place& p, uint32_t i, const Sizes& n) {
    const bool right = i % 2 == 1, below = i / 2 == 1;
    const float x = right ? p.x + 1.0f : p.x, y = below ? p.y + 1.0f : p.y;
    const float cols = static_cast<float>(n.cols), rows = static_cast<float>(n.rows);
    if (!(x >= 0.0f && x < cols && y >= 0.0f && y < rows)) return {false, 0, 0.0f, 0.0f, 0.0f};
    const float wx = right ? p.tx : 1.0f - p.tx, sx = right ? 0.5f * cols : -0.5f * cols;
    const float wy = below ? p.ty : 1.0f - p.ty, sy = below ? 0.5f * rows : -0.5f * rows;
    const size_t cell = static_cast<size_t>(y) * n.cols + static_cast<size_t>(x);
    return {true, cell, wx * wy, sx * wy, sy * wx};
}

// Neighbouring points that a warp reads one after the other.
constexpr uint32_t RUN = 4;

template <bool VECTOR>
__device__ __forceinline__ void read_points(const float* grid, const real* coord, real* y, const Sizes& n) {
    const uint32_t runs = (n.points + RUN - 1) / RUN;
    const uint32_t from = global_warp() / runs * SPAN, first = global_warp() % runs * RUN;
    if (from >= n.values) return;
    const uint32_t end = min(first + RUN, n.points);
    for (uint32_t m = first; m < end; m++) {
        const Place p = place(coord, m, n);
        // All four loads are on their way before the first is used.
        float weights[4];
        Floats<4> cells[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const Tap t = tap(p, i, n);
            weights[i] = t.weight;
            cells[i] = {};
            if (t.inside) cells[i] = load_span<VECTOR>(grid + t.cell * n.values, from, n.values);
        }
        Floats<4> sum = scaled(weights[0], cells[0]);
#pragma unroll
        for (uint32_t i = 1; i < 4; i++) sum = fma_all(weights[i], cells[i], sum);
        store_span<VECTOR>(y + static_cast<size_t>(m) * n.values, from, n.values, sum);
    }
}

// A warp for every span of values and run of points.
// SASS: LDG.128, STG.128 (f32), STG.64 (bf16)
extern "C" __global__ __launch_bounds__(256) void grid_sample_forward(const float* __restrict__ grid,
                                                                      const real* __restrict__ coord,
                                                                      real* __restrict__ y, uint32_t points,
                                                                      uint32_t values, uint32_t rows, uint32_t cols) {
    const Sizes n = {points, values, rows, cols};
    if (values % 4 == 0) {
        read_points<true>(grid, coord, y, n);
    } else {
        read_points<false>(grid, coord, y, n);
    }
}

// Spans of a row whose products one warp adds up for dcoord.
constexpr uint32_t SPANS = 4;

// What the values from .. from + SPANS * SPAN of point m add to dcoord[m], the same in every lane.
template <bool VECTOR>
__device__ __forceinline__ double2 slope_at(const float* grid, const real* coord, const real* dy, uint32_t m,
                                            uint32_t from, const Sizes& n) {
    const Place p = place(coord, m, n);
    double along_x = 0.0, along_y = 0.0;
    Floats<4> d[SPANS];
#pragma unroll
    for (uint32_t k = 0; k < SPANS; k++) {
        d[k] = load_span<VECTOR>(dy + static_cast<size_t>(m) * n.values, from + k * SPAN, n.values);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const Tap t = tap(p, i, n);
        if (!t.inside) continue;
        float dot = 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < SPANS; k++) {
            dot = dot_product(load_span<VECTOR>(grid + t.cell * n.values, from + k * SPAN, n.values), d[k], dot);
        }
        along_x += static_cast<double>(dot) * t.slope_x;
        along_y += static_cast<double>(dot) * t.slope_y;
    }
    return make_double2(warp_sum(along_x), warp_sum(along_y));
}

__device__ __forceinline__ double2 slope(const float* grid, const real* coord, const real* dy, uint32_t m,
                                         uint32_t from, const Sizes& n) {
    return n.values % 4 == 0 ? slope_at<true>(grid, coord, dy, m, from, n)
                             : slope_at<false>(grid, coord, dy, m, from, n);
}

// dcoord of cells of at most SPANS * SPAN values: a warp for every point.
// SASS: LDG.128
extern "C" __global__ __launch_bounds__(256) void grid_sample_backward_coord(
    const float* __restrict__ grid, const real* __restrict__ coord, const real* __restrict__ dy,
    real* __restrict__ dcoord, uint32_t points, uint32_t values, uint32_t rows, uint32_t cols) {
    const uint32_t m = global_warp();
    if (m >= points) return;
    const double2 sum = slope(grid, coord, dy, m, 0, {points, values, rows, cols});
    if (lane_index() < 2) {
        dcoord[2 * static_cast<size_t>(m) + lane_index()] =
            to_real(static_cast<float>(lane_index() == 0 ? sum.x : sum.y));
    }
}

// Longer cells: a warp for every part of SPANS * SPAN values and point; sums [parts, points, 2].
// SASS: LDG.128
extern "C" __global__ __launch_bounds__(256) void grid_sample_backward_coord_parts(
    const float* __restrict__ grid, const real* __restrict__ coord, const real* __restrict__ dy,
    double* __restrict__ sums, uint32_t points, uint32_t values, uint32_t rows, uint32_t cols) {
    const uint32_t from = global_warp() / points * SPANS * SPAN, m = global_warp() % points;
    if (from >= values) return;
    const double2 sum = slope(grid, coord, dy, m, from, {points, values, rows, cols});
    if (lane_index() < 2) {
        sums[2 * static_cast<size_t>(global_warp()) + lane_index()] = lane_index() == 0 ? sum.x : sum.y;
    }
}

// Adds up those parts: a warp for every point.
extern "C" __global__ __launch_bounds__(256) void grid_sample_backward_coord_sum(const double* __restrict__ sums,
                                                                                 real* __restrict__ dcoord,
                                                                                 uint32_t parts, uint32_t points) {
    const uint32_t m = global_warp();
    if (m >= points) return;
    double along_x = 0.0, along_y = 0.0;
    for (uint32_t part = lane_index(); part < parts; part += WARP) {
        const size_t i = 2 * (static_cast<size_t>(part) * points + m);
        along_x += sums[i];
        along_y += sums[i + 1];
    }
    along_x = warp_sum(along_x);
    along_y = warp_sum(along_y);
    if (lane_index() < 2) {
        dcoord[2 * static_cast<size_t>(m) + lane_index()] =
            to_real(static_cast<float>(lane_index() == 0 ? along_x : along_y));
    }
}

// The gradient of the grid: a block takes one span of values, a few cells and one segment of the points, so that a cell
// that every point reads is still shared out evenly. It places STAGE points in shared memory; a warp then finds the
// readers of its cell among them by a vote, 32 at a time, and adds their rows of dy in order.
constexpr uint32_t STAGE = 256;
constexpr uint32_t CELLS_PER_WARP = 2;
constexpr uint32_t CELLS_PER_BLOCK = CELLS_PER_WARP * STAGE / WARP;
// Rows whose loads are on their way together.
constexpr uint32_t ROWS = 4;

// The share of a node `offset` cells away from the one before the point; -1 where the point does not read it.
__device__ __forceinline__ float share(float offset, float t) {
    return offset == 0.0f ? 1.0f - t : offset == 1.0f ? t : -1.0f;
}

template <bool VECTOR>
__device__ __forceinline__ void gather_rows(const float4* places, uint32_t count, uint32_t cell, const real* dy,
                                            uint32_t from, const Sizes& n, Floats<4>& sum) {
    const float x = static_cast<float>(cell % n.cols), y = static_cast<float>(cell / n.cols);
    for (uint32_t first = 0; first < count; first += WARP) {
        float weight = 0.0f;
        bool reads = false;
        if (first + lane_index() < count) {
            const float4 p = places[first + lane_index()];
            const float offset_x = x - p.x, offset_y = y - p.y;
            reads = (offset_x == 0.0f || offset_x == 1.0f) && (offset_y == 0.0f || offset_y == 1.0f);
            weight = share(offset_x, p.z) * share(offset_y, p.w);
        }
        uint32_t readers = __ballot_sync(ALL_LANES, reads);
        while (readers != 0) {
            Floats<4> row[ROWS];
            float weights[ROWS];
            const uint32_t ready = min(static_cast<uint32_t>(__popc(readers)), ROWS);
#pragma unroll
            for (uint32_t k = 0; k < ROWS; k++) {
                if (k >= ready) continue;
                const uint32_t reader = __ffs(readers) - 1;
                readers &= readers - 1;
                weights[k] = __shfl_sync(ALL_LANES, weight, reader);
                row[k] = load_span<VECTOR>(dy + static_cast<size_t>(first + reader) * n.values, from, n.values);
            }
#pragma unroll
            for (uint32_t k = 0; k < ROWS; k++) {
                if (k < ready) sum = fma_all(weights[k], row[k], sum);
            }
        }
    }
}

template <bool VECTOR>
__device__ __forceinline__ void gather_segment(float4* places, const real* coord, const real* dy, float* sums,
                                               const Sizes& n, uint32_t segment) {
    const uint32_t cells = n.rows * n.cols;
    const uint32_t groups = (cells + CELLS_PER_BLOCK - 1) / CELLS_PER_BLOCK, tiles = (n.values + SPAN - 1) / SPAN;
    const uint32_t index = blockIdx.x / groups / tiles, from = blockIdx.x / groups % tiles * SPAN;
    const uint32_t cell = blockIdx.x % groups * CELLS_PER_BLOCK + threadIdx.x / WARP * CELLS_PER_WARP;
    const uint32_t end = min((index + 1) * segment, n.points);
    Floats<4> sum[CELLS_PER_WARP];
#pragma unroll
    for (uint32_t c = 0; c < CELLS_PER_WARP; c++) sum[c] = {};
    for (uint32_t first = index * segment; first < end; first += STAGE) {
        const uint32_t count = min(STAGE, end - first);
        __syncthreads(); // everyone is done with the points before these
        if (threadIdx.x < count) {
            const Place p = place(coord, first + threadIdx.x, n);
            places[threadIdx.x] = make_float4(p.x, p.y, p.tx, p.ty);
        }
        __syncthreads();
        const real* first_row = dy + static_cast<size_t>(first) * n.values;
#pragma unroll
        for (uint32_t c = 0; c < CELLS_PER_WARP; c++) {
            if (cell + c < cells) gather_rows<VECTOR>(places, count, cell + c, first_row, from, n, sum[c]);
        }
    }
#pragma unroll
    for (uint32_t c = 0; c < CELLS_PER_WARP; c++) {
        if (cell + c >= cells) continue;
        store_span<VECTOR>(sums + (static_cast<size_t>(index) * cells + cell + c) * n.values, from, n.values, sum[c]);
    }
}

// sums [segments, rows, cols, values]: a block for every segment of points, span of values and CELLS_PER_BLOCK cells.
// `segment` is a multiple of STAGE; with one segment the sums are dgrid.
// SASS: LDG.128 (f32), LDG.64 (bf16), STG.128
extern "C" __global__ __launch_bounds__(256) void grid_sample_backward_grid(const real* __restrict__ coord,
                                                                            const real* __restrict__ dy,
                                                                            float* __restrict__ sums, uint32_t points,
                                                                            uint32_t values, uint32_t rows,
                                                                            uint32_t cols, uint32_t segment) {
    SHARED(float4, places, [STAGE]);
    const Sizes n = {points, values, rows, cols};
    if (values % 4 == 0) {
        gather_segment<true>(places, coord, dy, sums, n, segment);
    } else {
        gather_segment<false>(places, coord, dy, sums, n, segment);
    }
}

// dgrid[i] = sum over the segments of sums[segment][i]: 32 values a block, its warps share out the segments.
extern "C" __global__ __launch_bounds__(256) void grid_sample_backward_grid_sum(const float* __restrict__ sums,
                                                                                float* __restrict__ dgrid,
                                                                                uint32_t segments, uint32_t n) {
    constexpr uint32_t WARPS = 8;
    SHARED(double, shared, [WARPS][WARP]);
    const uint32_t warp = threadIdx.x / WARP, i = blockIdx.x * WARP + lane_index();
    double sum = 0.0;
    if (i < n) {
#pragma unroll 4
        for (uint32_t s = warp; s < segments; s += WARPS) {
            sum += static_cast<double>(sums[static_cast<size_t>(s) * n + i]);
        }
    }
    shared[warp][lane_index()] = sum;
    __syncthreads();
    if (warp != 0 || i >= n) return;
    for (uint32_t w = 1; w < WARPS; w++) sum += shared[w][lane_index()];
    dgrid[i] = static_cast<float>(sum);
}
