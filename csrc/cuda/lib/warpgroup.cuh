// Warp specialisation: setmaxnreg and named barriers.
#pragma once
#ifndef MC_EMULATED

// setmaxnreg (sm_90a): registers of each thread of this warpgroup (128 threads) from here on. What a
// producer gives up a consumer may take.
template <int N>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// __syncthreads of the `threads` threads that name the same barrier, 1 to 15.
__device__ __forceinline__ void bar_sync(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

#endif
