// Dynamic shared memory, and addresses in the shared state space.
#pragma once
#ifndef MC_EMULATED

__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

#endif
