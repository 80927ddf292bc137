// wgmma (sm_90a): asynchronous products of a warpgroup (128 threads), operands in shared memory.
#pragma once
#include "lib/types.cuh"
#ifndef MC_EMULATED

// The fence orders registers before the products that use them. A group is what was issued since
// the last commit_group; after wait_group<N> all but the N newest groups are done.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Wgmma<N>::bf16(d, a, b): d [64, N] += a [64, 16] b [N, 16]^T, a and b by matrix descriptors of
// shared memory, K innermost. Thread 32w + 4g + c holds in d[4j ..] row 16w + g, columns 8j + 2c and
// 8j + 2c + 1, then the same of row 16w + g + 8.
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
#define MC_ISSUE(N, TYPE, HALF, A, B)                                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" MC_N##HALF \
                 "}, %" #A ", %" #B ", 1, 1, 1, 0, 0;"                                             \
                 : MC_D##HALF                                                                      \
                 : "l"(a), "l"(b))
#define MC_WGMMA(N, HALF, A, B)                                                       \
    template <>                                                                       \
    struct Wgmma<N> {                                                                 \
        static __device__ __forceinline__ void bf16(float (&d)[HALF], u64 a, u64 b) { \
            MC_ISSUE(N, bf16, HALF, A, B);                                            \
        }                                                                             \
        static __device__ __forceinline__ void f16(float (&d)[HALF], u64 a, u64 b) {  \
            MC_ISSUE(N, f16, HALF, A, B);                                             \
        }                                                                             \
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
