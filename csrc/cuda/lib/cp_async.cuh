// cp.async: 16 bytes from device to shared memory, past L1 and registers.
#pragma once
#include "lib/shared_memory.cuh"
#ifndef MC_EMULATED

// The first `bytes` (0 to 16) are read, the rest is zeros. A group is what a thread issued since its
// last commit_group; after wait_group<N> all but its N newest groups have arrived, for this thread
// alone until a barrier.
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes) {
    asm volatile(
        "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
        "l"(global), "r"(bytes)
        : "memory");
}
__device__ __forceinline__ void cp_async_commit_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
