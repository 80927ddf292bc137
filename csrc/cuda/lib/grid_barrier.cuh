// A barrier of all blocks of a launch, which must all be resident (a cooperative launch).
#pragma once
#include "lib/ld_st.cuh"

// Spinning for longer than this means that a block is lost. It sets an abort word instead of a
// trap, which would take the process and its other requests with it.
constexpr u64 TIMEOUT_NS = 4000000000ull;

constexpr int BARRIER_ARRIVED = 0, BARRIER_ABORTED = 8;  // words, a cache line apart

// By one thread of each block, behind a barrier of the block. The word of arrivals is never reset: a
// launch adds gridDim.x to it, and the ticket tells which launch this is, so that a CUDA graph replays
// without a memset. wait: this block needs what the others wrote. alive: 0 after a timeout anywhere.
__device__ __forceinline__ void grid_barrier(u64* words, bool wait, int* alive) {
    const u64 blocks = gridDim.x;
    const u64 all = (atom_add_acq_rel(words + BARRIER_ARRIVED, 1) / blocks + 1) * blocks;
    const u64 since = globaltimer_ns();
    for (unsigned spins = 1; wait && ld_acquire(words + BARRIER_ARRIVED) < all; ++spins) {
        if (spins % 256) continue;
        if (globaltimer_ns() - since > TIMEOUT_NS) st_release(words + BARRIER_ABORTED, 1);
        if (ld_acquire(words + BARRIER_ABORTED)) {
            *alive = 0;
            break;
        }
    }
}
