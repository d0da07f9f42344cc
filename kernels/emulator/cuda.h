// The CUDA language, for a C++ compiler: what <cuda_runtime.h> and `intrinsics.cuh` give a kernel on the GPU.
//
// A kernel file is included after this header, inside an unnamed namespace, and compiled with -fsanitize=thread: that
// flag makes the compiler call __tsan_read4(address) and its siblings before every load and store, and emulator.cpp
// answers those calls with its own checks. So the source of a kernel stays as it is.
//
// What moves between threads, blocks a thread or needs a check goes to emulator.cpp, in registers: an argument passed
// by address would be a stack access, and would be instrumented. All else is here, inline.
// Semantics: CUDA C++ Programming Guide, chapter 10; PTX ISA, section 9.7 (cp.async, ldmatrix, mma, cvt).
#pragma once

// Every system header a kernel may need. Kernels include none: they are compiled inside a namespace.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// `static`: were it merely inline, the linker would keep one copy of the instrumented and the plain version.
#define EMULATED_DEVICE static inline __attribute__((always_inline))

// ---- Vector types ------------------------------------------------------------------------------------------------

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;

#define EMULATED_VECTORS(scalar, two, four) \
  struct alignas(2 * sizeof(scalar)) two { scalar x, y; }; \
  EMULATED_DEVICE two make_##two(scalar x, scalar y) { return two{x, y}; } \
  struct alignas(16) four { scalar x, y, z, w; }; \
  EMULATED_DEVICE four make_##four(scalar x, scalar y, scalar z, scalar w) { return four{x, y, z, w}; }
EMULATED_VECTORS(float, float2, float4)
EMULATED_VECTORS(unsigned, uint2, uint4)
EMULATED_VECTORS(int, int2, int4)
#undef EMULATED_VECTORS
struct alignas(16) double2 { double x, y; };
EMULATED_DEVICE double2 make_double2(double x, double y) { return double2{x, y}; }

// ---- What emulator.cpp does --------------------------------------------------------------------------------------

namespace emulator {

// A line of a kernel. As a default argument, here() is the line of the caller.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Constant while a function runs: the compiler may ask once.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_size();
__attribute__((const)) uint3 grid_size();

void* shared_variable(const void* key, const char* name, size_t bytes, Site);
void* dynamic_shared();

enum class Vote : int { any, all, count };
int block_barrier(Site);
int block_vote(Vote, int predicate, Site);
void warp_barrier(uint32_t mask, Site);
uint32_t warp_ballot(uint32_t mask, bool predicate, const char* name, Site);
enum class Shuffle : int { index, exclusive_or, up, down };
uint64_t warp_shuffle(Shuffle, uint32_t mask, uint64_t value, int lane, Site);
void thread_fence();

uint32_t atomic_add(uint32_t*, uint32_t, Site);
int atomic_add(int*, int, Site);
float atomic_add(float*, float, Site);
double atomic_add(double*, double, Site);
uint32_t atomic_max(uint32_t*, uint32_t, Site);
int atomic_max(int*, int, Site);
uint32_t atomic_min(uint32_t*, uint32_t, Site);
int atomic_min(int*, int, Site);
uint32_t atomic_exchange(uint32_t*, uint32_t, Site);
uint32_t atomic_compare_exchange(uint32_t*, uint32_t expected, uint32_t desired, Site);

float4 load4(const void*, Site);
void store4(void*, float4, Site);
uint4 load16(const void*, Site);
void store16(void*, uint4, Site);
uint2 load8(const void*, Site);
void store8(void*, uint2, Site);

void copy_issue(void* to, const void* from, uint32_t bytes, bool valid, Site);
void copy_commit();
void copy_wait(uint32_t pending);

// Sixteen bytes travel in registers; the arrays of a kernel's fragments need not exist in memory.
struct Words4 { uint32_t word[4]; };
struct Floats4 { float value[4]; };
Words4 ldmatrix(uint32_t matrices, bool transposed, const void* row, Site);
Floats4 mma_tf32(Floats4 d, Words4 a, uint64_t b, Site);
Floats4 mma_bf16(Floats4 d, Words4 a, uint64_t b, Site);

// args[i]. (A function, lest the compiler read the array in the caller, where the host's memory is out of bounds.)
const void* argument(void** args, size_t i);

// Calls a kernel with `args[i]` pointing at its argument i. These are the host's, and may be read unchecked.
template <class... A, size_t... I>
__attribute__((noinline, no_sanitize("thread"))) void call(void (*kernel)(A...), void** args,
                                                           std::index_sequence<I...>) {
  kernel(*static_cast<const A*>(argument(args, I))...);
}
template <class... A>
__attribute__((noinline, no_sanitize("thread"))) void call(void (*kernel)(A...), void** args) {
  call(kernel, args, std::index_sequence_for<A...>{});
}

// The bits of `value`, low bits first.
template <class To, class From>
EMULATED_DEVICE To bits(From value) {
  static_assert(sizeof(From) <= sizeof(To), "bits would be lost");
  To to{};
  memcpy(&to, &value, sizeof value);
  return to;
}

}  // namespace emulator

#define EMULATED_SITE emulator::Site site = emulator::Site::here()

// ---- Where a thread is -------------------------------------------------------------------------------------------

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
static constexpr int warpSize = 32;

// ---- Shared memory: one variable per declaration (and per instance of a template), as on the GPU -------------------

#define SHARED(T, name, dims) \
  static char name##_key; \
  using name##_type = T dims; \
  name##_type& name = *static_cast<name##_type*>( \
      emulator::shared_variable(&name##_key, #name, sizeof(name##_type), emulator::Site::here()))
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(emulator::dynamic_shared())

// ---- Barriers, votes, shuffles -----------------------------------------------------------------------------------

static constexpr uint32_t kEmulatedFullMask = 0xFFFFFFFFu;

EMULATED_DEVICE void __syncthreads(EMULATED_SITE) { emulator::block_barrier(site); }
EMULATED_DEVICE int __syncthreads_or(int predicate, EMULATED_SITE) {
  return emulator::block_vote(emulator::Vote::any, predicate, site);
}
EMULATED_DEVICE int __syncthreads_and(int predicate, EMULATED_SITE) {
  return emulator::block_vote(emulator::Vote::all, predicate, site);
}
EMULATED_DEVICE int __syncthreads_count(int predicate, EMULATED_SITE) {
  return emulator::block_vote(emulator::Vote::count, predicate, site);
}
EMULATED_DEVICE void __syncwarp(uint32_t mask = kEmulatedFullMask, EMULATED_SITE) {
  emulator::warp_barrier(mask, site);
}

EMULATED_DEVICE uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATED_SITE) {
  return emulator::warp_ballot(mask, predicate != 0, "__ballot_sync", site);
}
EMULATED_DEVICE int __any_sync(uint32_t mask, int predicate, EMULATED_SITE) {
  return emulator::warp_ballot(mask, predicate != 0, "__any_sync", site) != 0;
}
EMULATED_DEVICE int __all_sync(uint32_t mask, int predicate, EMULATED_SITE) {
  return emulator::warp_ballot(mask, predicate != 0, "__all_sync", site) == mask;
}

#define EMULATED_SHUFFLE(name, kind, offset) \
  template <class T> \
  EMULATED_DEVICE T name(uint32_t mask, T value, offset lane, EMULATED_SITE) { \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes"); \
    uint64_t raw = emulator::bits<uint64_t>(value); \
    raw = emulator::warp_shuffle(emulator::Shuffle::kind, mask, raw, static_cast<int>(lane), site); \
    memcpy(&value, &raw, sizeof value); \
    return value; \
  }
EMULATED_SHUFFLE(__shfl_sync, index, int)
EMULATED_SHUFFLE(__shfl_xor_sync, exclusive_or, int)
EMULATED_SHUFFLE(__shfl_up_sync, up, unsigned)
EMULATED_SHUFFLE(__shfl_down_sync, down, unsigned)
#undef EMULATED_SHUFFLE

// ---- Atomics and fences ------------------------------------------------------------------------------------------

EMULATED_DEVICE uint32_t atomicAdd(uint32_t* p, uint32_t v, EMULATED_SITE) { return emulator::atomic_add(p, v, site); }
EMULATED_DEVICE int atomicAdd(int* p, int v, EMULATED_SITE) { return emulator::atomic_add(p, v, site); }
EMULATED_DEVICE float atomicAdd(float* p, float v, EMULATED_SITE) { return emulator::atomic_add(p, v, site); }
EMULATED_DEVICE double atomicAdd(double* p, double v, EMULATED_SITE) { return emulator::atomic_add(p, v, site); }
EMULATED_DEVICE uint32_t atomicMax(uint32_t* p, uint32_t v, EMULATED_SITE) { return emulator::atomic_max(p, v, site); }
EMULATED_DEVICE int atomicMax(int* p, int v, EMULATED_SITE) { return emulator::atomic_max(p, v, site); }
EMULATED_DEVICE uint32_t atomicMin(uint32_t* p, uint32_t v, EMULATED_SITE) { return emulator::atomic_min(p, v, site); }
EMULATED_DEVICE int atomicMin(int* p, int v, EMULATED_SITE) { return emulator::atomic_min(p, v, site); }
EMULATED_DEVICE uint32_t atomicExch(uint32_t* p, uint32_t v, EMULATED_SITE) {
  return emulator::atomic_exchange(p, v, site);
}
EMULATED_DEVICE int atomicExch(int* p, int v, EMULATED_SITE) {
  return static_cast<int>(emulator::atomic_exchange(reinterpret_cast<uint32_t*>(p), static_cast<uint32_t>(v), site));
}
EMULATED_DEVICE uint32_t atomicCAS(uint32_t* p, uint32_t expected, uint32_t desired, EMULATED_SITE) {
  return emulator::atomic_compare_exchange(p, expected, desired, site);
}
EMULATED_DEVICE int atomicCAS(int* p, int expected, int desired, EMULATED_SITE) {
  return static_cast<int>(emulator::atomic_compare_exchange(reinterpret_cast<uint32_t*>(p),
                                                            static_cast<uint32_t>(expected),
                                                            static_cast<uint32_t>(desired), site));
}
EMULATED_DEVICE void __threadfence() { emulator::thread_fence(); }
EMULATED_DEVICE void __threadfence_block() {}

// ---- Accesses of 16 and 8 bytes ----------------------------------------------------------------------------------------

EMULATED_DEVICE float4 load4(const float* p, EMULATED_SITE) { return emulator::load4(p, site); }
EMULATED_DEVICE void store4(float* p, float4 v, EMULATED_SITE) { emulator::store4(p, v, site); }
EMULATED_DEVICE uint4 load16(const void* p, EMULATED_SITE) { return emulator::load16(p, site); }
EMULATED_DEVICE void store16(void* p, uint4 v, EMULATED_SITE) { emulator::store16(p, v, site); }
EMULATED_DEVICE uint2 load8(const void* p, EMULATED_SITE) { return emulator::load8(p, site); }
EMULATED_DEVICE void store8(void* p, uint2 v, EMULATED_SITE) { emulator::store8(p, v, site); }
template <class T>
EMULATED_DEVICE T __ldg(const T* p) {
  return *p;
}

// ---- Asynchronous copies, global to shared -------------------------------------------------------------------------

EMULATED_DEVICE void cp_async16(void* to, const void* from, EMULATED_SITE) {
  emulator::copy_issue(to, from, 16, true, site);
}
EMULATED_DEVICE void cp_async16_zfill(void* to, const void* from, bool valid, EMULATED_SITE) {
  emulator::copy_issue(to, from, 16, valid, site);
}
EMULATED_DEVICE void cp_async4(void* to, const void* from, EMULATED_SITE) {
  emulator::copy_issue(to, from, 4, true, site);
}
EMULATED_DEVICE void cp_async4_zfill(void* to, const void* from, bool valid, EMULATED_SITE) {
  emulator::copy_issue(to, from, 4, valid, site);
}
EMULATED_DEVICE void cp_async_commit() { emulator::copy_commit(); }
template <int N>
EMULATED_DEVICE void cp_async_wait() {
  emulator::copy_wait(N);
}

// ---- Matrix fragments --------------------------------------------------------------------------------------------

#define EMULATED_LDMATRIX(name, count, transposed) \
  EMULATED_DEVICE void name(uint32_t (&r)[count], const void* row, EMULATED_SITE) { \
    emulator::Words4 words = emulator::ldmatrix(count, transposed, row, site); \
    for (int i = 0; i < count; ++i) r[i] = words.word[i]; \
  }
EMULATED_LDMATRIX(ldmatrix_x2, 2, false)
EMULATED_LDMATRIX(ldmatrix_x2_trans, 2, true)
EMULATED_LDMATRIX(ldmatrix_x4, 4, false)
EMULATED_LDMATRIX(ldmatrix_x4_trans, 4, true)
#undef EMULATED_LDMATRIX

#define EMULATED_MMA(name, function) \
  EMULATED_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATED_SITE) { \
    emulator::Floats4 sum = emulator::function({{d[0], d[1], d[2], d[3]}}, {{a[0], a[1], a[2], a[3]}}, \
                                               b[0] | static_cast<uint64_t>(b[1]) << 32, site); \
    d[0] = sum.value[0], d[1] = sum.value[1], d[2] = sum.value[2], d[3] = sum.value[3]; \
  }
EMULATED_MMA(mma_m16n8k8_tf32, mma_tf32)
EMULATED_MMA(mma_m16n8k16_bf16, mma_bf16)
#undef EMULATED_MMA

// ---- Numbers -----------------------------------------------------------------------------------------------------

#define CUDART_INF_F __builtin_inff()

EMULATED_DEVICE uint32_t __float_as_uint(float x) { return emulator::bits<uint32_t>(x); }
EMULATED_DEVICE int __float_as_int(float x) { return emulator::bits<int>(x); }
EMULATED_DEVICE float __uint_as_float(uint32_t x) { return emulator::bits<float>(x); }
EMULATED_DEVICE float __int_as_float(int x) { return emulator::bits<float>(x); }

struct __nv_bfloat16 { uint16_t bits; };

EMULATED_DEVICE float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
// To nearest, ties to even: half a unit less one, plus the last bit that stays, carries exactly when it should.
EMULATED_DEVICE __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t u = __float_as_uint(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return __nv_bfloat16{0x7FFF};
  return __nv_bfloat16{static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1)) >> 16)};
}
EMULATED_DEVICE uint32_t bf16_bits(float x) { return __float2bfloat16_rn(x).bits; }
// cvt.rna.tf32.f32: to nearest, ties away from zero, 10 bits of mantissa left.
EMULATED_DEVICE uint32_t to_tf32(float x) {
  uint32_t u = __float_as_uint(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu & ~0x1FFFu;
  return (u + 0x1000u) & ~0x1FFFu;
}

EMULATED_DEVICE float __fdividef(float x, float y) { return x / y; }
EMULATED_DEVICE float __frcp_rn(float x) { return 1.0f / x; }
// Macros, for glibc declares both names (rsqrtf since 2.42, __expf to itself), and need not define them.
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)

EMULATED_DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
EMULATED_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
EMULATED_DEVICE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
EMULATED_DEVICE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

// Both arguments of one type: what CUDA converts silently (int with unsigned) does not compile here.
template <class T>
EMULATED_DEVICE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
EMULATED_DEVICE T max(T a, T b) {
  return a < b ? b : a;
}
EMULATED_DEVICE float min(float a, float b) { return fminf(a, b); }
// To [0, 1]; a NaN becomes 0, as the hardware has it.
EMULATED_DEVICE float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }
EMULATED_DEVICE float max(float a, float b) { return fmaxf(a, b); }
EMULATED_DEVICE double min(double a, double b) { return fmin(a, b); }
EMULATED_DEVICE double max(double a, double b) { return fmax(a, b); }
