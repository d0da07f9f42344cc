// From raw anomaly maps to smoothed maps and scores, as src/score/filter.rs defines it:
//
//   raw [N, h, w] -> enlarged to [side, side], corners aligned, rounded to f32 -> mean over window x window, zeros outside,
//   divisor window^2 -> map [N, side, side];   peak = largest of the map
//   score = largest mean of all pool x pool windows inside the map
//
// A block has a band of rows. Columns are summed first, each by one thread that moves down its column; then windows are sums
// of column sums. Both in f64 and in one order, whatever the device. A NaN makes score and peak NaN.
#include "common.cuh"

// Rows of the band of this block: [first, first + count) of `rows`.
struct Band {
    uint32_t first, count;

    __device__ Band(uint32_t rows, uint32_t band)
        : first(blockIdx.x * band), count(min(band, rows - blockIdx.x * band)) {}
};

#define LOWEST static_cast<double>(-CUDART_INF_F)

__device__ __forceinline__ double larger(double a, double b) { return b > a || isnan(b) ? b : a; }

// The largest of all threads of a block of 256, NaN if there is one; in thread 0.
__device__ __forceinline__ double block_largest(double v) {
    SHARED(double, warps, [8]);
    for (uint32_t step = WARP / 2; step > 0; step /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, step));
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = v;
    __syncthreads();
    for (uint32_t i = 0; i < 8; ++i) v = larger(v, warps[i]);
    return v;
}

// Where output i of an axis lies, corners aligned: between source `low` and the next, at `t` of the way.
struct Axis {
    uint32_t in, span;

    __device__ Axis(uint32_t in, uint32_t out) : in(in), span(out > 1 ? out - 1 : 1) {}
    __device__ uint32_t low(uint32_t i) const { return i * (in - 1) / span; }
    __device__ uint32_t high(uint32_t i) const { return min(low(i) + 1, in - 1); }
    __device__ double t(uint32_t i) const { return static_cast<double>(i * (in - 1) % span) / span; }
};

__device__ __forceinline__ double between(double a, double b, double t) { return a + t * (b - a); }

// Grid (bands, N), shared memory for (band * side + band + window) doubles. peaks [N, bands].
extern "C" __global__ __launch_bounds__(256) void smooth_maps(const float* __restrict__ raw, float* __restrict__ map,
                                                              float* __restrict__ peaks, uint32_t h, uint32_t w,
                                                              uint32_t side, uint32_t window, uint32_t band) {
    DYNAMIC_SHARED(double, sums);
    double* weights = sums + band * side; // of the rows from `top` on
    const Band rows(side, band);
    const uint32_t reach = window / 2, top = rows.first > reach ? rows.first - reach : 0;
    const uint32_t end = min(rows.first + rows.count + reach, side);
    const Axis down(h, side), across(w, side);
    for (uint32_t i = threadIdx.x; i < end - top; i += 256) weights[i] = down.t(top + i);
    __syncthreads();
    raw += blockIdx.y * h * w;
    for (uint32_t x = threadIdx.x; x < side; x += 256) {
        const uint32_t left = across.low(x), right = across.high(x);
        const double t = across.t(x);
        // The enlarged map at row y of this column.
        const auto enlarged = [&](uint32_t y) {
            const float *a = raw + down.low(y) * w, *b = raw + down.high(y) * w;
            const double s = weights[y - top];
            return static_cast<float>(between(between(a[left], b[left], s), between(a[right], b[right], s), t));
        };
        double sum = 0.0;
        for (uint32_t y = rows.first, entering = top; y < rows.first + rows.count; ++y) {
            for (const uint32_t past = min(y + reach + 1, side); entering < past; ++entering) sum += enlarged(entering);
            if (y > rows.first && y > reach) sum -= enlarged(y - reach - 1);
            sums[(y - rows.first) * side + x] = sum;
        }
    }
    __syncthreads();
    double peak = LOWEST;
    map += (blockIdx.y * side + rows.first) * side;
    for (uint32_t i = threadIdx.x; i < rows.count * side; i += 256) {
        const uint32_t x = i % side, from = x > reach ? x - reach : 0, to = min(x + reach + 1, side);
        const double* line = sums + i / side * side;
        double sum = 0.0;
        for (uint32_t c = from; c < to; ++c) sum += line[c];
        map[i] = static_cast<float>(sum / (window * window));
        peak = larger(peak, map[i]);
    }
    peak = block_largest(peak);
    if (threadIdx.x == 0) peaks[blockIdx.y * gridDim.x + blockIdx.x] = static_cast<float>(peak);
}

// Grid (bands of rows of windows, N), shared memory for band * side doubles. largest [N, bands]: sums of windows.
extern "C" __global__ __launch_bounds__(256) void largest_windows(const float* __restrict__ map,
                                                                  double* __restrict__ largest, uint32_t side,
                                                                  uint32_t pool, uint32_t band) {
    DYNAMIC_SHARED(double, sums);
    const uint32_t places = side - pool + 1;
    const Band rows(places, band);
    map += blockIdx.y * side * side;
    for (uint32_t x = threadIdx.x; x < side; x += 256) {
        double sum = 0.0;
        for (uint32_t y = 0; y < pool; ++y) sum += map[(rows.first + y) * side + x];
        sums[x] = sum;
        for (uint32_t i = 1; i < rows.count; ++i) {
            sum += map[(rows.first + i + pool - 1) * side + x];
            sum -= map[(rows.first + i - 1) * side + x];
            sums[i * side + x] = sum;
        }
    }
    __syncthreads();
    double best = LOWEST;
    for (uint32_t i = threadIdx.x; i < rows.count * places; i += 256) {
        const double* line = sums + i / places * side + i % places;
        double sum = 0.0;
        for (uint32_t c = 0; c < pool; ++c) sum += line[c];
        best = larger(best, sum);
    }
    best = block_largest(best);
    if (threadIdx.x == 0) largest[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// found [N, 2]: score and peak of every picture, from the parts of the bands. A thread for every picture.
extern "C" __global__ __launch_bounds__(32) void image_scores(const double* __restrict__ largest,
                                                              const float* __restrict__ peaks,
                                                              float* __restrict__ found, uint32_t images,
                                                              uint32_t window_bands, uint32_t map_bands,
                                                              uint32_t pool) {
    const uint32_t n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= images) return;
    double sum = LOWEST, peak = LOWEST;
    for (uint32_t i = 0; i < window_bands; ++i) sum = larger(sum, largest[n * window_bands + i]);
    for (uint32_t i = 0; i < map_bands; ++i) peak = larger(peak, peaks[n * map_bands + i]);
    found[2 * n] = static_cast<float>(sum / (pool * pool));
    found[2 * n + 1] = static_cast<float>(peak);
}
