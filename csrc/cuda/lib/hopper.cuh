// What only sm_90a has: barriers in shared memory that count bytes, copies by tensor map, products
// of a warpgroup (128 threads) from shared memory, registers moved between warps. As in
// primitives.cuh there is one function per instruction, and a test defines MC_HOPPER and the same
// functions in plain C++.
#pragma once
#include "lib/primitives.cuh"
#ifndef MC_HOPPER
#define MC_HOPPER

// A tensor that copies may name boxes of; made by the driver (launch.py), an argument of a kernel.
struct alignas(64) TensorMap {
    u64 word[16];
};

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// A barrier's phase ends when `count` arrivals and all expected bytes are there. Phases are 0, 1,
// 0, ...; waiting for the phase before the first one returns at once.
__device__ __forceinline__ void barrier_init(u64* b, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}
__device__ __forceinline__ void barrier_arrive(u64* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// an arrival that also expects bytes of copies
__device__ __forceinline__ void barrier_expect(u64* b, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(u64* b, unsigned phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(b)),
        "r"(phase)
        : "memory");
}

// What this thread wrote to shared memory, copied there or initialised is seen by tensor copies and
// by wgmma of whoever learns of it afterwards.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Copy the map's box at these coordinates, the innermost first; what lies outside is zeros. The
// barrier expects its bytes.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap& map, u64* barrier, int c0,
                                         int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(shared)),
        "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(shared_address(barrier))
        : "memory");
}

// Registers of each thread of this warpgroup from here on.
template <int N>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// __syncthreads of `threads` threads that name the same barrier, 1 to 15.
__device__ __forceinline__ void sync_some(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ __forceinline__ float fast_exp2(float v) {  // to about 2 ulp, as the next
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float fast_reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
// both rounded to 16 bits, the first in the low half
__device__ __forceinline__ unsigned pair_bf16(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ unsigned pair_f16(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// Four 8 x 8 matrices of 16-bit values, stored transposed. Lane 4g + c holds of matrix i, in v[i],
// the rows 2c and 2c + 1 of column g as they are stored; lane 8i + r the address of its row r.
__device__ __forceinline__ void store_transposed(void* row, const unsigned (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

// Products of a warpgroup: registers are ordered before them by the fence; a group is what was
// issued since the last commit; after wgmma_wait<N>() all but the N newest are done.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Wgmma<N>::bf16(d, a, b): d [64, N] += a [64, 16] b [N, 16]^T, a and b by descriptors of shared
// memory. Thread 32w + 4g + c holds in d[4j ..] row 16w + g, columns 8j + 2c and 8j + 2c + 1, then
// the same of row 16w + g + 8.
#define MC_N8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MC_N16 MC_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MC_N24 MC_N16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MC_N32 MC_N24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MC_N40 MC_N32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MC_N48 MC_N40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MC_N56 MC_N48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MC_N64 MC_N56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MC_N72 MC_N64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MC_N80 MC_N72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MC_N88 MC_N80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define MC_N96 MC_N88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MC_8(i)                                                                                 \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define MC_D8 MC_8(0)
#define MC_D16 MC_D8, MC_8(8)
#define MC_D24 MC_D16, MC_8(16)
#define MC_D32 MC_D24, MC_8(24)
#define MC_D40 MC_D32, MC_8(32)
#define MC_D48 MC_D40, MC_8(40)
#define MC_D56 MC_D48, MC_8(48)
#define MC_D64 MC_D56, MC_8(56)
#define MC_D72 MC_D64, MC_8(64)
#define MC_D80 MC_D72, MC_8(72)
#define MC_D88 MC_D80, MC_8(80)
#define MC_D96 MC_D88, MC_8(88)
#define MC_ISSUE(N, TYPE, HALF, A, B)                                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {"         \
                 MC_N##HALF "}, %" #A ", %" #B ", 1, 1, 1, 0, 0;"                               \
                 : MC_D##HALF                                                                   \
                 : "l"(a), "l"(b))
#define MC_WGMMA(N, HALF, A, B)                                                           \
    template <>                                                                           \
    struct Wgmma<N> {                                                                     \
        static __device__ __forceinline__ void bf16(float (&d)[HALF], u64 a, u64 b) {     \
            MC_ISSUE(N, bf16, HALF, A, B);                                                \
        }                                                                                 \
        static __device__ __forceinline__ void f16(float (&d)[HALF], u64 a, u64 b) {      \
            MC_ISSUE(N, f16, HALF, A, B);                                                 \
        }                                                                                 \
    };
template <int N>
struct Wgmma;
MC_WGMMA(16, 8, 8, 9)
MC_WGMMA(32, 16, 16, 17)
MC_WGMMA(48, 24, 24, 25)
MC_WGMMA(64, 32, 32, 33)
MC_WGMMA(80, 40, 40, 41)
MC_WGMMA(96, 48, 48, 49)
MC_WGMMA(112, 56, 56, 57)
MC_WGMMA(128, 64, 64, 65)
MC_WGMMA(144, 72, 72, 73)
MC_WGMMA(160, 80, 80, 81)
MC_WGMMA(176, 88, 88, 89)
MC_WGMMA(192, 96, 96, 97)

#endif
