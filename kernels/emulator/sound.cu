// Kernels without a bug, for the emulator's own tests: they must run without a report, whatever the seed, and give what
// their comments say. (Kernels with bugs: planted.cu.)

// ---- Reductions and exchanges --------------------------------------------------------------------------------------

// y[block] = sum of x over the block's 256 elements: shuffles within warps, shared memory across them.
extern "C" __global__ __launch_bounds__(256) void sound_reduction(const float* __restrict__ x, float* __restrict__ y,
                                                                  uint32_t n) {
  SHARED(float, of_warp, [8]);
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = i < n ? x[i] : 0.0f;
  for (uint32_t distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 8) {
    sum = of_warp[threadIdx.x];
    for (uint32_t distance = 4; distance > 0; distance /= 2) sum += __shfl_down_sync(0x000000FFu, sum, distance);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
  }
}

// y[0] = sum over all blocks, added by whichever block comes last: the CUDA guide's threadFenceReduction.
// y[1..1 + blocks] are the partial sums, count[0] starts at 0.
extern "C" __global__ __launch_bounds__(32) void sound_last_block(const float* x, float* y, uint32_t* count) {
  float sum = x[blockIdx.x * 32 + threadIdx.x];
  for (uint32_t distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  uint32_t before = 0;
  if (threadIdx.x == 0) {
    y[1 + blockIdx.x] = sum;
    __threadfence();
    before = atomicAdd(&count[0], 1u);
    __threadfence();
  }
  if (__shfl_sync(0xFFFFFFFFu, before, 0) == gridDim.x - 1 && threadIdx.x == 0) {
    float all = 0.0f;
    for (uint32_t b = 0; b < gridDim.x; ++b) all += y[1 + b];
    y[0] = all;
  }
}

// y = x with each 32 elements reversed: lanes of a warp, ordered by __syncwarp alone; twice, so that the second round
// waits for the readers of the first. Half the warps use two barriers of half a warp and two of pairs in between.
extern "C" __global__ __launch_bounds__(128) void sound_syncwarp(const float* x, float* y) {
  SHARED(float, tile, [128]);
  uint32_t lane = threadIdx.x % 32, first = threadIdx.x - lane;
  float value = x[threadIdx.x];
  for (uint32_t round = 0; round < 3; ++round) {
    tile[threadIdx.x] = value;
    if (first >= 64) {
      __syncwarp(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u);
      // Lanes 0 and 16 tell each other what their halves know; then each tells its half.
      if (lane % 16 == 0) __syncwarp(0x00010001u);
      __syncwarp(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u);
    } else {
      __syncwarp();
    }
    value = tile[first + 31 - lane];
    __syncwarp();
  }
  y[threadIdx.x] = value;
}

// y[i], i < 32: 0..7 the results of votes and shuffles, one of each per word; see the test for their values.
extern "C" __global__ __launch_bounds__(64) void sound_votes(uint32_t* y) {
  uint32_t t = threadIdx.x, lane = t % 32;
  int any = __syncthreads_or(t == 40), all = __syncthreads_and(t != 40), count = __syncthreads_count(t % 3 == 0);
  uint32_t odd = __ballot_sync(0xFFFFFFFFu, lane % 2);
  int some = __any_sync(0xFFFFFFFFu, lane == 9), every = __all_sync(0xFFFFFFFFu, lane < 32);
  uint32_t half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  int in_half = __ballot_sync(half, lane > 13) == (lane < 16 ? 0x0000C000u : 0xFFFF0000u);
  double wide = __shfl_sync(half, 1.0 / (1 + lane), lane < 16 ? 3 : 19);
  int up = __shfl_up_sync(0xFFFFFFFFu, static_cast<int>(lane), 2u);
  unsigned down = __shfl_down_sync(0xFFFFFFFFu, lane, 2u);
  if (t == 33) {
    y[0] = any != 0, y[1] = all != 0, y[2] = count, y[3] = odd, y[4] = some != 0, y[5] = every != 0, y[6] = in_half;
    y[7] = wide == 0.25;
    y[8] = up, y[9] = down;
  }
}

// Counts of x[i] % 16 in y[0..16]: atomics in shared memory, then in device memory. y starts at 0.
extern "C" __global__ __launch_bounds__(64) void sound_histogram(const uint32_t* x, uint32_t* y, uint32_t n) {
  SHARED(uint32_t, bins, [16]);
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  for (uint32_t i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) atomicAdd(&bins[x[i] % 16], 1u);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&y[threadIdx.x], bins[threadIdx.x]);
}

// y[i] = i over a grid and a block of three dimensions.
extern "C" __global__ __launch_bounds__(64) void sound_indices(uint32_t* y) {
  uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  uint32_t i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  y[i] = i;
}

// ---- Shared memory -------------------------------------------------------------------------------------------------

// A variable of its own in each instance of a template; 16-bit words of one 32-bit word belong to different threads.
template <int Instance>
__device__ float through_shared(float value) {
  SHARED(__nv_bfloat16, tile, [64]);
  tile[threadIdx.x] = __float2bfloat16_rn(value);
  __syncthreads();
  return __bfloat162float(tile[63 - threadIdx.x]) + Instance;
}

// y[i] = bfloat16(x[63 - i]) + 1, y[64 + i] = that of x reversed + 2, y[128 + i] = x[63 - i].
// Dynamic shared memory: 256 bytes.
extern "C" __global__ __launch_bounds__(64) void sound_shared(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = through_shared<1>(x[threadIdx.x]);
  y[64 + threadIdx.x] = through_shared<2>(x[63 - threadIdx.x]);
  y[128 + threadIdx.x] = tile[63 - threadIdx.x];
}

// y[i] = sum over the tiles of 128 elements of x[tile][127 - i], zero past n: three stages of cp.async in flight.
extern "C" __global__ __launch_bounds__(128) void sound_pipeline(const float* __restrict__ x, float* __restrict__ y,
                                                                 uint32_t n) {
  SHARED(float, tile, [3][128]);
  uint32_t tiles = (n + 127) / 128;
  auto fetch = [&](uint32_t t) {
    // The first warp copies, 16 bytes a lane; n is a multiple of 4.
    if (threadIdx.x < 32 && t < tiles) {
      uint32_t i = t * 128 + threadIdx.x * 4;
      cp_async16_zfill(&tile[t % 3][threadIdx.x * 4], &x[i < n ? i : 0], i < n);
    }
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  float sum = 0.0f;
  for (uint32_t t = 0; t < tiles; ++t) {
    cp_async_wait<1>();
    __syncthreads();
    fetch(t + 2);
    sum += tile[t % 3][127 - threadIdx.x];
  }
  cp_async_wait<0>();
  y[threadIdx.x] = sum;
}

// ---- Matrix fragments ----------------------------------------------------------------------------------------------

// y[16][8] = x[16][k] w[k][8], k a multiple of 8, products of tf32 numbers; fragments straight from device memory.
extern "C" __global__ __launch_bounds__(32) void sound_mma_tf32(const float* x, const float* w, float* y, uint32_t k) {
  uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4;
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (uint32_t i = 0; i < k; i += 8) {
    uint32_t a[4] = {to_tf32(x[g * k + i + t]), to_tf32(x[(g + 8) * k + i + t]), to_tf32(x[g * k + i + t + 4]),
                     to_tf32(x[(g + 8) * k + i + t + 4])};
    uint32_t b[2] = {to_tf32(w[(i + t) * 8 + g]), to_tf32(w[(i + t + 4) * 8 + g])};
    mma_m16n8k8_tf32(d, a, b);
  }
  y[g * 8 + 2 * t] = d[0];
  y[g * 8 + 2 * t + 1] = d[1];
  y[(g + 8) * 8 + 2 * t] = d[2];
  y[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// The same in bfloat16, k a multiple of 16: operands in shared memory as they lie, x by rows with ldmatrix, w by rows
// too, hence with its transposed form.
extern "C" __global__ __launch_bounds__(32) void sound_mma_bf16(const float* x, const float* w, float* y, uint32_t k) {
  SHARED(__nv_bfloat16, a_tile, [16][24]);
  SHARED(__nv_bfloat16, b_tile, [16][8]);
  uint32_t lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (uint32_t i = 0; i < k; i += 16) {
    for (uint32_t e = lane; e < 256; e += 32) a_tile[e / 16][e % 16] = __float2bfloat16_rn(x[e / 16 * k + i + e % 16]);
    for (uint32_t e = lane; e < 128; e += 32) b_tile[e / 8][e % 8] = __float2bfloat16_rn(w[(i + e / 8) * 8 + e % 8]);
    __syncwarp();
    uint32_t a[4], b[2];
    // Matrices 0 to 3 of a: upper left, lower left, upper right, lower right, as a0 to a3 want them.
    ldmatrix_x4(a, &a_tile[lane % 16][lane / 16 * 8]);
    ldmatrix_x2_trans(b, b_tile[lane % 16]);
    mma_m16n8k16_bf16(d, a, b);
    __syncwarp();
  }
  y[g * 8 + 2 * t] = d[0];
  y[g * 8 + 2 * t + 1] = d[1];
  y[(g + 8) * 8 + 2 * t] = d[2];
  y[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// x: four 8 x 8 matrices of 16-bit elements, by rows, in 128 words. y[12][32]: the registers of ldmatrix_x4, then of
// ldmatrix_x4_trans, of ldmatrix_x2, of ldmatrix_x2_trans, by lanes.
extern "C" __global__ __launch_bounds__(32) void sound_ldmatrix(const uint32_t* x, uint32_t* y) {
  SHARED(uint32_t, tile, [32][4]);
  uint32_t lane = threadIdx.x;
  for (uint32_t i = 0; i < 4; ++i) tile[lane][i] = x[lane * 4 + i];
  __syncwarp();
  uint32_t r[4], s[4], u[2], v[2];
  ldmatrix_x4(r, tile[lane]);
  ldmatrix_x4_trans(s, tile[lane]);
  ldmatrix_x2(u, tile[lane % 16]);
  ldmatrix_x2_trans(v, tile[lane % 16]);
  for (uint32_t i = 0; i < 4; ++i) y[i * 32 + lane] = r[i], y[(4 + i) * 32 + lane] = s[i];
  for (uint32_t i = 0; i < 2; ++i) y[(8 + i) * 32 + lane] = u[i], y[(10 + i) * 32 + lane] = v[i];
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

__constant__ float quarters[4] = {0.0f, 0.25f, 0.5f, 0.75f};

// One word per function of the language. x: 1 + 2^-8 and 1 + 3 * 2^-8 (ties in bfloat16), 1 + 2^-11 (a tie in tf32),
// 1 + 2^-11 - 2^-20, NaN, infinity, 16. y: see the test.
extern "C" __global__ __launch_bounds__(1) void sound_numbers(const float* x, uint32_t* y) {
  uint32_t n = 0;
  auto put = [&](uint32_t value) { y[n++] = value; };
  auto put_float = [&](float value) { y[n++] = __float_as_uint(value); };
  // 0: roundings.
  put_float(__bfloat162float(__float2bfloat16_rn(x[0])));
  put_float(__bfloat162float(__float2bfloat16_rn(x[1])));
  put(to_tf32(x[2]));
  put(to_tf32(-x[2]));
  put(to_tf32(x[3]));
  put(isnan(__bfloat162float(__float2bfloat16_rn(x[4]))));
  put(isnan(__uint_as_float(to_tf32(x[4]))));
  put(to_tf32(x[5]));
  put_float(__bfloat162float(__float2bfloat16_rn(-x[5])));
  // 9: functions of floats.
  put_float(rsqrtf(x[6]));
  put_float(fmaf(x[6], x[6], -1.0f));
  put_float(__fdividef(x[6], 4.0f));
  put_float(__frcp_rn(x[6]));
  put(isfinite(x[5]) || !isfinite(x[6]) || CUDART_INF_F != x[5]);
  put_float(min(x[4], 2.0f));
  put_float(max(1.0f, x[4]));
  put_float(fminf(rintf(2.5f), floorf(3.9f)) + fabsf(-sqrtf(x[6])));
  put(fabsf(__expf(1.0f) - expf(1.0f)) <= 1e-5f && fabsf(tanhf(0.5f) - 0.46211716f) <= 1e-6f);
  put_float(__ldg(&x[6]) + quarters[n % 4]);
  // 19: of doubles and integers.
  double sine, cosine;
  sincos(0.5, &sine, &cosine);
  put(fabs(sine * sine + cosine * cosine - 1.0) <= 1e-15 && sqrt(4.0) == 2.0 && log(1.0) == 0.0);
  put(__popc(0xF0F0u) + 100 * __ffs(0x50) + 10000 * __clz(1));
  put(__clz(0) + 100 * __ffs(0));
  put(__umulhi(0x80000000u, 6u));
  put(min(3, -4) + 10);
  put(max(3u, 4u));
  put(__float_as_int(__int_as_float(77)));
  // 26: vectors.
  float4 v = load4(x);
  store16(&y[28], make_uint4(1, 2, 3, __float_as_uint(v.w)));
  uint4 w = load16(&y[28]);
  put(w.x + w.y + w.z);
  put(make_int2(3, 4).y + make_float2(5.0f, 6.0f).x + make_double2(7.0, 8.0).y);
  // 32: atomics, what each returned and left behind.
  n = 32;
  y[60] = 5;
  put(atomicExch(&y[60], 9u));
  put(atomicCAS(&y[60], 8u, 1u));
  put(atomicCAS(&y[60], 9u, 4u));
  put(atomicMax(&y[60], 6u));
  put(atomicMin(&y[60], 2u));
  put(atomicAdd(&y[60], 40u));
  put(y[60]);
}
