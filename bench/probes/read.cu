// How fast can this GPU be read? Two ways to the same bytes, each read once and nothing kept.
//   read_loads  16-byte loads, eight in flight per thread, a grid of whole waves
//   read_bulk   one thread per block feeds a ring of shared-memory stages by bulk copies (sm_90):
//               the ceiling of every kernel that streams weights through shared memory
// arch: sm_90a sm_80
// The driver is bench/probes.py. `bytes` is a multiple of 16 for read_loads, of TILE for read_bulk.
typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" __global__ void __launch_bounds__(512) read_loads(const uint4* x, u64 bytes, u32* out) {
    constexpr int UNROLL = 8;
    const u64 n = bytes / 16, stride = (u64)gridDim.x * blockDim.x;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 mix = 0;
    for (; i + (UNROLL - 1) * stride < n; i += UNROLL * stride) {
        uint4 v[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) v[u] = __ldcs(x + i + u * stride);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) mix ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    for (; i < n; i += stride) {
        const uint4 v = x[i];
        mix ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    atomicXor(out, mix);  // the xor of all words: a test knows it
}

// Dynamic shared memory: STAGES * TILE bytes, 128-byte aligned.
extern "C" __global__ void __launch_bounds__(32) read_bulk(const char* x, u64 bytes, u32* out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr u32 TILE = 16384, STAGES = 8;
    extern __shared__ __align__(128) char ring[];
    __shared__ __align__(8) u64 full[STAGES];
    if (threadIdx.x) return;
    const u32 bars = (u32)__cvta_generic_to_shared(full), data = (u32)__cvta_generic_to_shared(ring);
    for (u32 s = 0; s < STAGES; ++s)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bars + 8 * s));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    const u64 tiles = bytes / TILE;
    const u64 mine = tiles > blockIdx.x ? (tiles - blockIdx.x - 1) / gridDim.x + 1 : 0;
    u32 mix = 0;
    for (u64 k = 0; k < mine + STAGES; ++k) {
        const u32 s = k % STAGES, bar = bars + 8 * s;
        if (k >= STAGES) {  // the tile that was put here STAGES rounds ago
            const u32 parity = (k / STAGES - 1) & 1;
            u32 done = 0;
            if (k - STAGES < mine)
                while (!done)
                    asm volatile(
                        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
                        " selp.u32 %0, 1, 0, p; }"
                        : "=r"(done) : "r"(bar), "r"(parity) : "memory");
            if (k - STAGES < mine) mix ^= *(const volatile u32*)(ring + s * TILE);
        }
        if (k < mine) {
            const char* from = x + (blockIdx.x + k * gridDim.x) * (u64)TILE;
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(TILE) : "memory");
            asm volatile(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
                    "r"(data + s * TILE), "l"(from), "r"(TILE), "r"(bar) : "memory");
        }
    }
    atomicXor(out, mix);  // the xor of the first word of every tile
#endif
}
