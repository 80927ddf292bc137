// mbarrier (sm_90): barriers in shared memory that count arrivals and bytes of asynchronous copies.
#pragma once
#include "lib/shared_memory.cuh"
#include "lib/types.cuh"
#ifndef MC_EMULATED

// A phase ends when `count` arrivals and all expected bytes are there. Phases are 0, 1, 0, ...;
// waiting for the phase before the first one returns at once.
__device__ __forceinline__ void mbarrier_init(u64* b, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u64* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// An arrival that also expects `bytes` of copies.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(u64* b, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_wait(u64* b, unsigned phase) {
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
// Whether the phase has ended. The hardware may suspend the thread for a moment, never for long.
__device__ __forceinline__ bool mbarrier_try_wait(u64* b, unsigned phase) {
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

// fence.proxy.async: what this thread wrote to shared memory by ordinary stores, cp.async or
// mbarrier.init is seen by TMA and wgmma of whoever synchronises with it afterwards.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif
