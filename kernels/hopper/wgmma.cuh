// Hopper's own instructions (sm_90a), as functions: barriers that count bytes, the copy engine, products of a warpgroup.
//
//   copy engine (TMA)   One thread names a box of a tensor that a map describes; the engine writes it to shared memory and
//                       counts its bytes at a barrier. What lies outside the tensor arrives as zeros, and is counted too.
//   mbarrier            A phase ends when all arrivals and all bytes that were announced are there. A wait names the parity
//                       of the phase: 0 for the first, then 1, 0, ..
//   wgmma               Four warps multiply two tiles of shared memory into their registers, asynchronously: fence, products,
//                       commit, wait. Both operands are named by 64-bit descriptors.
//   cluster             Neighbouring blocks that run at once and reach each other's shared memory.
//
// Barriers and tiles are named by their addresses in the shared window, as the instructions take them. Stores of threads
// and the engine's accesses are ordered by different rules ("proxies"); here the two never meet but through a barrier.
//
// Sources: PTX ISA, chapters on mbarrier, cp.async.bulk.tensor, tensors (im2col mode, swizzling), wgmma, barrier.cluster.
#pragma once

#include "common.cuh"

// A tensor map of the driver, opaque, as a kernel takes it: `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

constexpr uint32_t WARPGROUP = 4 * WARP;
// A row of a box: 64 bf16 values. Eight rows are the period of the swizzle, and where a box begins.
constexpr uint32_t ROW_BYTES = 128, SWIZZLE_BYTES = 8 * ROW_BYTES;
// Values of k of one product.
constexpr uint32_t PRODUCT_K = 16;

// ------------------------------------------------------------------------------------------------------------- cluster

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ uint32_t cluster_size() {
    uint32_t size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// Waits for all threads of the cluster; what they wrote before, to shared memory too, is seen after. A launch without
// clusters has clusters of one block.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The address, in the window of the cluster, of what lies at `address` in block `rank`.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}
__device__ __forceinline__ float4 load4_in_cluster(uint32_t address) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// ------------------------------------------------------------------------------------------------------------ barriers

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes new barriers known to the other blocks of the cluster and to the copy engine; then comes a cluster_sync.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and announces so many bytes of the copy engine for this phase. Some may have come already.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the barrier that lies there in block `rank`. A release at the scope of the block, which costs no fence of the
// whole device: what it follows are products that have been waited for, which leave nothing to be made visible.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier, uint32_t rank) {
    const uint32_t there = address_in(barrier, rank);
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
// Waits until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t ended;
    do {
        asm volatile("{\n\t"
                     ".reg .pred ended;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, ended;\n\t"
                     "}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (ended == 0);
}

// --------------------------------------------------------------------------------------------------------- copy engine

__device__ __forceinline__ void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The box that begins at (inner, middle), of a map with 2 dimensions.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t inner,
                                         int32_t middle) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(inner), "r"(middle)
                 : "memory");
}
// The same for 3 dimensions.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t inner,
                                         int32_t middle, int32_t outer) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(inner), "r"(middle), "r"(outer)
                 : "memory");
}
// To the same place in every block whose bit is set in `blocks`, counted at the barrier that lies there in each.
__device__ __forceinline__ void copy_box_to_all(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t inner,
                                                int32_t middle, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(inner), "r"(middle), "h"(blocks)
                 : "memory");
}

// Where a column of pixels begins, and how far from each base pixel it reads. A map in im2col mode walks over base pixels,
// along x, then y, then the pictures, inside the corners that it was made with; values beyond the picture are zeros.
struct Pixels {
    int32_t x, y, picture;  // the first base pixel
    uint16_t right, down;   // from each base pixel to the pixel that is read
};
__device__ __forceinline__ void copy_pixels(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t channel,
                                            const Pixels& from) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(channel), "r"(from.x), "r"(from.y), "r"(from.picture),
                 "h"(from.right), "h"(from.down)
                 : "memory");
}
__device__ __forceinline__ void copy_pixels_to_all(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t channel,
                                                   const Pixels& from, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;"
                 ::"r"(to), "l"(&map), "r"(barrier), "r"(channel), "r"(from.x), "r"(from.y), "r"(from.picture),
                 "h"(from.right), "h"(from.down), "h"(blocks)
                 : "memory");
}

// ------------------------------------------------------------------------------------------------------------ products

// Descriptor of an operand that boxes of 64 values to a row, 128-byte swizzle, have brought. In units of 16 bytes: where it
// begins (bits 0 to 13), the leading offset (16 to 29), the stride offset (32 to 45); bits 62 and 63: the swizzle.
//   along k    a row is 64 values of k of one m or n. Stride: from 8 rows to the next 8. 16 further values of k begin 32 bytes
//              on, inside the swizzle: the hardware swizzles addresses, so that is right for all four.
//   across k   a row is 64 values of m or n of one k. Stride: from 8 rows to the next 8. Leading: from 64 values of m or n to
//              the next 64, which is another box. 16 further values of k begin 16 rows on.
__device__ constexpr uint64_t operand(uint32_t begin, uint32_t leading_bytes) {
    constexpr uint64_t SWIZZLE_128 = 1;
    return SWIZZLE_128 << 62 | static_cast<uint64_t>(SWIZZLE_BYTES >> 4) << 32 |
           static_cast<uint64_t>(leading_bytes >> 4 & 0x3fff) << 16 | (begin >> 4 & 0x3fff);
}
static_assert(operand(1024, 8192) == 0x4000004002000040, "as the model in src/device/cuda/wgmma/tests.rs has it");
constexpr uint32_t NEXT_ALONG_K = PRODUCT_K * 2 >> 4, NEXT_ACROSS_K = PRODUCT_K * ROW_BYTES >> 4;
static_assert(NEXT_ALONG_K == 2 && NEXT_ACROSS_K == 128, "likewise");

// Before the first product, and after registers of the sums were touched.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N groups of products are still on their way.
template <int N> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

constexpr uint32_t PRODUCT_ROWS = 64, PRODUCT_COLUMNS = 216, SUMS = PRODUCT_COLUMNS / 2;

// d [64, 216] += a [64, 16] b [16, 216]. ACROSS: both operands lie across k, else along it. Thread t of the warpgroup holds
// columns 8 j + t % 4 * 2 and the next, of rows t / 32 * 16 + t % 32 / 4 and 8 more, in d[4 j .. 4 j + 4].
template <bool ACROSS> __device__ __forceinline__ void multiply(float (&d)[SUMS], uint64_t a, uint64_t b) {
    asm volatile("{\n\t"
                 ".reg .pred accumulate;\n\t"
                 "setp.eq.u32 accumulate, 0, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n216k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
                 "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "
                 "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, "
                 "%72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "
                 "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107}, "
                 "%108, %109, accumulate, 1, 1, %110, %110;\n\t"
                 "}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                 "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                 "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                 "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                 "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                 "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                 "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                 "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                 "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                 "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                 "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]),
                 "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
                 "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]),
                 "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
                 "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]),
                 "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
                 "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]),
                 "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
                 : "l"(a), "l"(b), "n"(ACROSS ? 1 : 0));
}

// A group of N products, further k each time. Fence, products and commit must be one straight line of code: where two lines
// meet before the commit, the compiler makes a second, empty group, and waiting for all groups but one waits for everything.
template <uint32_t N, bool ACROSS, uint32_t NEXT>
__device__ __forceinline__ void multiply_group(float (&d)[SUMS], uint64_t a, uint64_t b) {
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < N; ++i) multiply<ACROSS>(d, a + i * NEXT, b + i * NEXT);
    products_commit();
}
