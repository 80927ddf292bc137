// hopper.cuh, continued for kernels whose blocks talk to each other while weights stream in: bulk
// copies of plain bytes, a look at a barrier without waiting, loads and stores that other blocks, or
// the host, take part in. A test defines MC_BULK and the same in plain C++.
#pragma once
#include "lib/hopper.cuh"
#ifndef MC_BULK
#define MC_BULK

// Has the phase of this barrier ended? May take a moment, never for long.
__device__ __forceinline__ bool barrier_done(u64* b, unsigned phase) {
    unsigned done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(b)), "r"(phase)
        : "memory");
    return done;
}

// Copy bytes, a multiple of 16 from and to multiples of 16; the barrier expects them. What is copied
// must not have been written by this kernel, unless fence.proxy.async came between.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, unsigned bytes,
                                          u64* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// Loads of what other blocks wrote, past L1. In the order of the program among themselves and after
// waits.
__device__ __forceinline__ void load_l2(const void* p, unsigned (&v)[4]) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "l"(p));
}
__device__ __forceinline__ float load_l2(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}

// a word that the host reads
__device__ __forceinline__ void tell_host(u64* p, u64 v) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

#endif
