// TMA (sm_90): bulk copies by tensor map, and of plain bytes. Both report to an mbarrier.
#pragma once
#include "lib/shared_memory.cuh"
#include "lib/types.cuh"

// A CUtensorMap; encoded by the driver (launch.py), passed to a kernel as a __grid_constant__.
struct alignas(64) TensorMap {
    u64 word[16];
};

#ifndef MC_EMULATED

__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The map's box at these coordinates, the innermost first; what lies outside the tensor is zeros.
// The mbarrier expects its bytes.
__device__ __forceinline__ void cp_async_bulk_tensor_4d(void* shared, const TensorMap& map,
                                                        u64* mbarrier, int c0, int c1, int c2,
                                                        int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(shared)),
        "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(shared_address(mbarrier))
        : "memory");
}
// A multiple of 16 bytes from and to addresses that are multiples of 16. TMA reads by the async
// proxy: this kernel must not have written the source, unless fence.proxy.async came between.
__device__ __forceinline__ void cp_async_bulk(void* shared, const void* global, unsigned bytes,
                                              u64* mbarrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(mbarrier))
        : "memory");
}

#endif
