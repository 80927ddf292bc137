// What does it cost blocks to wait for each other inside one kernel? Each probe makes `rounds`
// exchanges; the difference to 0 rounds, divided, is the cost of one.
//   nothing          an empty kernel: its cost inside a graph is the cost of a launch
//   barrier_counter  grid barrier: one atomic counter, thread 0 of every block spins on it
//   barrier_flags    grid barrier: every block sets its own flag, its threads watch all the others
//   flag_pair        two blocks pass one flag back and forth: two one-way trips per round
//   flag_fan         block 0 sets a flag that all others watch, then a counter brings them back
//   barrier_cluster  hardware barrier of 8 blocks of a cluster (sm_90)
//   flag_cluster     two blocks of a cluster pass a flag through distributed shared memory (sm_90)
// All blocks must be resident at once: at most one per multiprocessor. `words` is zeroed before
// each launch. A wait that takes too long sets words[ABORT] and everyone leaves: nothing can hang.
// arch: sm_90a sm_80
typedef unsigned int u32;

constexpr u32 ABORT = 0, COUNTER = 32, FLAGS = 64;  // places in `words`, a line apart
constexpr u32 TIMEOUT_SPINS = 1u << 22;

__device__ __forceinline__ u32 ld_acquire(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void st_release(u32* p, u32 v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void count(u32* p) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}
__device__ __forceinline__ bool wait_for(u32* words, const u32* p, u32 at_least) {
    for (u32 spins = 0; ld_acquire(p) < at_least; ++spins)
        if (spins > TIMEOUT_SPINS || ld_acquire(words + ABORT)) {
            st_release(words + ABORT, 1);
            return false;
        }
    return true;
}

extern "C" __global__ void nothing() {}

extern "C" __global__ void __launch_bounds__(256) barrier_counter(u32* words, u32 rounds) {
    __shared__ bool on;
    if (!threadIdx.x) on = true;
    __syncthreads();
    for (u32 r = 1; r <= rounds && on; ++r) {
        __syncthreads();
        if (!threadIdx.x) {
            count(words + COUNTER);
            on = wait_for(words, words + COUNTER, r * gridDim.x);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256) barrier_flags(u32* words, u32 rounds) {
    __shared__ bool on;
    if (!threadIdx.x) on = true;
    __syncthreads();
    for (u32 r = 1; r <= rounds; ++r) {
        __syncthreads();
        if (!on) return;
        if (!threadIdx.x) st_release(words + FLAGS + blockIdx.x, r);
        for (u32 b = threadIdx.x; b < gridDim.x; b += blockDim.x)
            if (!wait_for(words, words + FLAGS + b, r)) on = false;
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(32) flag_pair(u32* words, u32 rounds) {
    if (threadIdx.x) return;
    u32* mine = words + FLAGS + 32 * blockIdx.x;
    u32* other = words + FLAGS + 32 * (1 - blockIdx.x);
    for (u32 r = 1; r <= rounds; ++r) {
        if (blockIdx.x == 0) st_release(mine, r);
        if (!wait_for(words, other, r)) return;
        if (blockIdx.x == 1) st_release(mine, r);
    }
}

extern "C" __global__ void __launch_bounds__(32) flag_fan(u32* words, u32 rounds) {
    if (threadIdx.x) return;
    for (u32 r = 1; r <= rounds; ++r) {
        if (blockIdx.x == 0) {
            st_release(words + FLAGS, r);
            if (!wait_for(words, words + COUNTER, r * (gridDim.x - 1))) return;
        } else {
            if (!wait_for(words, words + FLAGS, r)) return;
            count(words + COUNTER);
        }
    }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(256)
    barrier_cluster(u32* words, u32 rounds) {
    for (u32 r = 0; r < rounds; ++r) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(32)
    flag_cluster(u32* words, u32 rounds) {
    __shared__ u32 flag;
    if (!threadIdx.x) flag = 0;
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    u32 rank, remote;
    const u32 here = (u32)__cvta_generic_to_shared(&flag);
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(here), "r"(1 - rank));
    bool on = !threadIdx.x;
    for (u32 r = 1; r <= rounds && on; ++r) {
        if (rank == 0)
            asm volatile("st.release.cluster.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(r) : "memory");
        u32 seen = 0, spins = 0;
        while (seen < r && on) {
            asm volatile("ld.acquire.cluster.shared::cta.u32 %0, [%1];" : "=r"(seen) : "r"(here) : "memory");
            if (++spins > TIMEOUT_SPINS) {
                st_release(words + ABORT, 1);
                on = false;
            }
        }
        if (rank == 1)
            asm volatile("st.release.cluster.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(r) : "memory");
    }
    // neither block may leave while the other can still write to its flag
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

#endif
