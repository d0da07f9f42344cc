// Kernels with one bug each, to prove that the emulator finds it (planted_*), and kernels that use the same means
// correctly, to prove that it finds nothing else (sound_*). Each comment says the launch and what must come of it:
// "Report:" quotes a part of the message that must appear.

// ---- Memory ------------------------------------------------------------------------------------------------------

// y[i] = x[i + 4], n elements each, blocks of 64 that cover n. Report: "out-of-bounds read of 4 bytes".
extern "C" __global__ __launch_bounds__(64) void planted_read_past_end(const float* __restrict__ x,
                                                                       float* __restrict__ y, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i + 4];
}

// No test of i < n, n not a multiple of 64. Report: "out-of-bounds write of 4 bytes".
extern "C" __global__ __launch_bounds__(64) void planted_write_past_end(float* y, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = static_cast<float>(n);
}

// y[0] = x[0], where the host has freed x. Report: "into an allocation of 64 bytes that was freed".
extern "C" __global__ __launch_bounds__(1) void planted_use_after_free(const float* x, float* y) { y[0] = x[0]; }

// y[0] = x[0], where x is an address of the host's. Report: "a host pointer?".
extern "C" __global__ __launch_bounds__(1) void planted_host_pointer(const float* x, float* y) { y[0] = x[0]; }

// y[0] = x[0], where x is null. Report: "a null pointer".
extern "C" __global__ __launch_bounds__(1) void planted_null_pointer(const float* x, float* y) { y[0] = x[0]; }

// Sixteen bytes at an address that is a multiple of 4. Report: "misaligned read of 16 bytes".
extern "C" __global__ __launch_bounds__(1) void planted_misaligned_load4(const float* x, float* y) {
  store4(y, load4(x + 1));
}

// A shared array of 8 x 4, written one row too far. Report: "past the end of shared 'tile'".
extern "C" __global__ __launch_bounds__(32) void planted_shared_past_end(float* y) {
  SHARED(float, tile, [8][4]);
  float* row = tile[threadIdx.x / 4 + 1];
  row[threadIdx.x % 4] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[1][0];
}

// Dynamic shared memory of 128 bytes, of which 132 are used. Report: "past the end of shared 'dynamic shared memory'".
extern "C" __global__ __launch_bounds__(33) void planted_dynamic_past_end(float* y) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// Shared memory starts as nothing in particular. Nothing to report: y is NaN.
extern "C" __global__ __launch_bounds__(32) void planted_uninitialised_shared(float* y) {
  SHARED(float, tile, [32]);
  if (threadIdx.x != 7) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// The local array of one thread, read by another. Report: "the local memory of another thread".
extern "C" __global__ __launch_bounds__(32) void planted_local_of_another(float* y) {
  SHARED(const volatile float*, address, [1]);
  volatile float local[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  if (threadIdx.x == 0) address[0] = local;
  __syncthreads();
  y[threadIdx.x] = address[0][threadIdx.x % 4];
  __syncthreads();
}

// One column too far in a row that is not the last: the address is another element's. Report: "index 8 is out of".
extern "C" __global__ __launch_bounds__(32) void planted_row_past_end(float* y) {
  SHARED(float, tile, [9][8]);
  tile[threadIdx.x / 4][threadIdx.x % 4 * 2 + 2] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[0][threadIdx.x % 4 * 2 + 2];
}

// A local array of 4 sums of which n are used, n = 6. Report: "index 4 is out of".
extern "C" __global__ __launch_bounds__(1) void planted_local_past_end(const float* x, float* y, uint32_t n) {
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (uint32_t i = 0; i < n; ++i) sum[i] += x[i];
  y[0] = sum[0] + sum[1] + sum[2] + sum[3];
}

// A function that calls itself n times, n = 100000. Report: "stack overflow".
static __device__ float descend(const float* x, uint32_t n) {
  float local[16];
  if (n == 0) return x[0];
  for (uint32_t i = 0; i < 16; ++i) local[i] = x[i];
  return descend(local, n - 1) + local[n % 16];
}
extern "C" __global__ __launch_bounds__(1) void planted_deep_recursion(const float* x, float* y, uint32_t n) {
  y[0] = descend(x, n);
}

// A loop that does not move on when step is 0, as it is here. Report: "endless loop".
extern "C" __global__ __launch_bounds__(1) void planted_endless_loop(const float* x, float* y, uint32_t step) {
  float sum = 0.0f;
  for (uint32_t i = 0; i < 4; i += step) sum += x[i], y[0] = sum;
}

// ---- Races -------------------------------------------------------------------------------------------------------

// Reversal through shared memory, no barrier, two warps. Report: "race on byte".
extern "C" __global__ __launch_bounds__(64) void planted_shared_race(const float* x, float* y) {
  SHARED(float, tile, [64]);
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

// The same within one warp: on a GPU since Volta no lane waits for another unasked. Report: "race on byte".
extern "C" __global__ __launch_bounds__(32) void planted_missing_syncwarp(const float* x, float* y) {
  SHARED(float, tile, [32]);
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = tile[31 - threadIdx.x];
}

// A shuffle makes lanes meet, but orders no memory. Report: "race on byte".
extern "C" __global__ __launch_bounds__(32) void planted_shuffle_is_no_barrier(const float* x, float* y) {
  SHARED(float, tile, [32]);
  tile[threadIdx.x] = x[threadIdx.x];
  float left = __shfl_up_sync(0xFFFFFFFFu, x[threadIdx.x], 1);
  y[threadIdx.x] = left + tile[31 - threadIdx.x];
}

// Barriers of half a warp order nothing between the halves. Report: "race on byte".
extern "C" __global__ __launch_bounds__(32) void planted_half_syncwarp(const float* x, float* y) {
  SHARED(float, tile, [32]);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncwarp(threadIdx.x < 16 ? 0x0000FFFFu : 0xFFFF0000u);
  y[threadIdx.x] = tile[31 - threadIdx.x];
}

// The second round overwrites what slower threads still read in the first. Report: "race on byte".
extern "C" __global__ __launch_bounds__(64) void planted_missing_second_barrier(const float* x, float* y) {
  SHARED(float, tile, [64]);
  float sum = 0.0f;
  for (uint32_t round = 0; round < 4; ++round) {
    tile[threadIdx.x] = x[round * 64 + threadIdx.x];
    __syncthreads();
    sum += tile[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

// Every block writes y[0]. Report: "blocks of a launch have no order".
extern "C" __global__ __launch_bounds__(1) void planted_blocks_write_one_word(float* y) {
  y[0] = static_cast<float>(blockIdx.x);
}

// In place, each block reads its neighbour's element. Report: "blocks of a launch have no order".
extern "C" __global__ __launch_bounds__(1) void planted_blocks_read_each_other(float* y, uint32_t n) {
  float right = y[(blockIdx.x + 1) % n];
  y[blockIdx.x] = right;
}

// A thread reads from device memory what its neighbour has written, no barrier. Report: "race on device memory".
extern "C" __global__ __launch_bounds__(64) void planted_device_race(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  float right = y[(threadIdx.x + 32) % 64];
  __syncthreads();
  y[threadIdx.x] = right;
}

// A sum by atomics, set to 0 by a plain store. Report: "race on device memory".
extern "C" __global__ __launch_bounds__(64) void planted_atomic_and_plain(uint32_t* y) {
  if (threadIdx.x == 0) y[0] = 0;
  atomicAdd(&y[0], 1u);
}

// ---- Barriers and collectives --------------------------------------------------------------------------------------

// Threads from n on return before the barrier. Report: "divergent barrier" and "left the kernel".
extern "C" __global__ __launch_bounds__(64) void planted_early_return(const float* x, float* y, uint32_t n) {
  SHARED(float, tile, [64]);
  if (threadIdx.x >= n) return;
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

// The warps wait at two different barriers. Report: "divergent barrier".
extern "C" __global__ __launch_bounds__(64) void planted_two_barriers(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
    y[threadIdx.x] = 1.0f;
  } else {
    __syncthreads();
    y[threadIdx.x] = 2.0f;
  }
}

// Lane 5 does not come to the shuffle. Report: "a warp collective that not all lanes of its mask reach".
extern "C" __global__ __launch_bounds__(32) void planted_lane_missing(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x != 5) value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  y[threadIdx.x] = value;
}

// A block of 48: the second warp has no lanes 16 to 31. Report: "a warp collective that not all lanes".
extern "C" __global__ __launch_bounds__(48) void planted_partial_warp(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, x[threadIdx.x], 1);
}

// The upper lanes give the mask of the lower. Report: "lacks the calling lane".
extern "C" __global__ __launch_bounds__(32) void planted_mask_lacks_caller(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x0000FFFFu, x[threadIdx.x], 1);
}

// A lock that is taken and never given back. Report: "endless loop".
extern "C" __global__ __launch_bounds__(2) void planted_endless_wait(uint32_t* y) {
  while (atomicCAS(&y[0], 0u, 1u) != 0u) {
  }
}

// ---- Asynchronous copies and matrix fragments ----------------------------------------------------------------------

// Reads where a copy is to arrive, and waits afterwards. Report: "before the wait for the copy".
extern "C" __global__ __launch_bounds__(32) void planted_read_before_wait(const float* x, float* y) {
  SHARED(float, tile, [32]);
  cp_async4(&tile[threadIdx.x], &x[threadIdx.x]);
  cp_async_commit();
  y[threadIdx.x] = tile[threadIdx.x];
  cp_async_wait<0>();
}

// Waits for one group of two, and reads the younger. Report: "before the wait for the copy".
extern "C" __global__ __launch_bounds__(32) void planted_wait_too_short(const float* x, float* y) {
  SHARED(float, tile, [2][32]);
  for (uint32_t stage = 0; stage < 2; ++stage) {
    cp_async4(&tile[stage][threadIdx.x], &x[stage * 32 + threadIdx.x]);
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncthreads();
  y[threadIdx.x] = tile[1][threadIdx.x];
  cp_async_wait<0>();
}

// Waits for its own copies, then reads another thread's, with no barrier. Report: "race on byte".
extern "C" __global__ __launch_bounds__(64) void planted_wait_is_no_barrier(const float* x, float* y) {
  SHARED(float, tile, [64]);
  cp_async4(&tile[threadIdx.x], &x[threadIdx.x]);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

// Ends with a copy under way. Report: "not waited for".
extern "C" __global__ __launch_bounds__(32) void planted_no_wait(const float* x, float* y) {
  SHARED(float, tile, [32]);
  cp_async4(&tile[threadIdx.x], &x[threadIdx.x]);
  cp_async_commit();
  y[threadIdx.x] = 0.0f;
}

// Sixteen bytes from a multiple of 4. Report: "misaligned read of 16 bytes".
extern "C" __global__ __launch_bounds__(1) void planted_misaligned_copy(const float* x, float* y) {
  SHARED(float, tile, [4]);
  cp_async16(tile, x + 1);
  cp_async_commit();
  cp_async_wait<0>();
  y[0] = tile[0];
}

// Rows of nine words: of two, one is not at a multiple of 16. Report: "misaligned read of 16 bytes".
extern "C" __global__ __launch_bounds__(32) void planted_misaligned_ldmatrix(uint32_t* y) {
  SHARED(uint32_t, tile, [32][9]);
  for (uint32_t i = 0; i < 9; ++i) tile[threadIdx.x][i] = i;
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4(r, tile[threadIdx.x]);
  y[threadIdx.x] = r[0];
}

// ldmatrix of rows that other lanes wrote, no barrier. Report: "race on byte".
extern "C" __global__ __launch_bounds__(32) void planted_ldmatrix_race(uint32_t* y) {
  SHARED(uint32_t, tile, [32][4]);
  for (uint32_t i = 0; i < 4; ++i) tile[threadIdx.x][i] = i;
  uint32_t r[4];
  ldmatrix_x4(r, tile[threadIdx.x]);
  y[threadIdx.x] = r[0];
}

// Half a warp multiplies. Report: "a warp collective that not all lanes of its mask reach".
extern "C" __global__ __launch_bounds__(32) void planted_half_mma(float* y) {
  uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (threadIdx.x < 16) mma_m16n8k8_tf32(d, a, b);
  y[threadIdx.x] = d[0];
}
