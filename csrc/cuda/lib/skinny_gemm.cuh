// Skinny GEMM: 16 rows of W times 8 or 64 rows of x, for spectrum_head and frame_embed. With so few
// rows of x memory latency is the limit: what counts is how much of W is in flight at once.
//
// mma.m16n8k16 with 16 rows of W as the wide operand and 8 rows of x as the narrow one, split-K over
// the warps. The order of the summed elements is free, so a lane's operands are 16 successive bytes
// of its rows, which it copies itself by cp.async: a private ring per lane, 7 steps ahead (4 with 64
// rows of x), and no barrier between copy and use. Loads to registers were not kept ahead of the
// products by the compiler (40 registers instead of the 56 that they would fill, sm_90a). Tensor
// cores truncate what they add, so chains of sums are short: each of 4 warps sums a quarter of K.
#pragma once
#include "lib/cp_async.cuh"
#include "lib/mma.cuh"
#include "lib/vector.cuh"

constexpr int GEMM_WARPS = 4, GEMM_M = 16;  // warps of a block; rows of W

template <class X_, int TILES_>
struct SkinnyGemmTraits {
    using X = X_;
    static constexpr int TILES = TILES_;  // of 8 rows of x
    static constexpr int ROWS = 8 * TILES, THREADS = 32 * GEMM_WARPS;
    static constexpr int E = 16 / sizeof(X), STEP = 4 * E;  // elements of a lane, of a warp
    static constexpr int STAGES = TILES == 1 ? 7 : 4;       // steps in flight
    static constexpr int STAGE = (2 + TILES) * THREADS;     // vectors: 8 rows of W, 8 more, x
};

// A warp's accumulators of 16 rows of W (8 of `one`, 8 of `two`) by 8 rows of x, in mma's layout. x:
// this lane's vector of the 8 rows.
template <class X>
struct SkinnyAccumulators {
    float d[4] = {};
    __device__ __forceinline__ void add(const Vector16& one, const Vector16& two,
                                        const Vector16* x) {
        const Vector16 v = *x;
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            mma_m16n8k16<X>(d, one.word[i], two.word[i], one.word[i + 1], two.word[i + 1],
                            v.word[i], v.word[i + 1]);
    }
    __device__ __forceinline__ void store(float* to, int row) {  // to [16][row]
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            to[(g + 8 * half) * row + 2 * c] = d[2 * half];
            to[(g + 8 * half) * row + 2 * c + 1] = d[2 * half + 1];
        }
    }
};
template <>
struct SkinnyAccumulators<float> {  // FMA: rows g of both by all 8 of x, over this lane's elements
    float d[2][8] = {};
    __device__ __forceinline__ void add(const Vector16& one, const Vector16& two,
                                        const Vector16* x) {
        const int g = threadIdx.x % 32 / 4;
        __syncwarp();  // x was copied by other lanes
#pragma unroll
        for (int f = 0; f < 8; ++f) {
            const Vector16 v = x[(f - g) * 4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                d[0][f] = fmaf(__uint_as_float(one.word[i]), __uint_as_float(v.word[i]), d[0][f]);
                d[1][f] = fmaf(__uint_as_float(two.word[i]), __uint_as_float(v.word[i]), d[1][f]);
            }
        }
        __syncwarp();  // before they copy the next x
    }
    __device__ __forceinline__ void store(float* to, int row) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int f = 0; f < 8; ++f) {
                float sum = d[half][f];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (c == 0) to[(g + 8 * half) * row + f] = sum;
            }
    }
};

// Returns the warps' partial sums over K, [GEMM_WARPS][16][ROWS] in shared memory, behind a barrier.
// one, two: row g of the first and of the second 8 rows of W, for lane 4g + c. copy_x(to, tile, k,
// bytes) issues cp.async of 16 bytes of row 8 tile + g of x from element k on; bytes = 0: zeros, and
// k is 0.
template <class Traits, class Copy>
__device__ __forceinline__ const float* skinny_gemm(const typename Traits::X* one,
                                                    const typename Traits::X* two, int K,
                                                    Copy copy_x) {
    constexpr int TILES = Traits::TILES, STAGES = Traits::STAGES;
    Vector16* const ring = (Vector16*)shared_memory() + threadIdx.x;  // private to this lane
    float* const partial = (float*)shared_memory() + STAGES * Traits::STAGE * 4;
    const int warp = threadIdx.x / 32, c = threadIdx.x % 4;
    const auto copy = [&](int step, Vector16* to) {
        const int k = (step * GEMM_WARPS + warp) * Traits::STEP + c * Traits::E;
        const int bytes = k < K ? 16 : 0, at = bytes ? k : 0;
        cp_async(to, one + at, bytes);
        cp_async(to + Traits::THREADS, two + at, bytes);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            copy_x(to + (2 + tile) * Traits::THREADS, tile, at, bytes);
    };
    SkinnyAccumulators<typename Traits::X> sums[TILES];
    const int steps = (K + GEMM_WARPS * Traits::STEP - 1) / (GEMM_WARPS * Traits::STEP);
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
        if (i < steps) copy(i, ring + i * Traits::STAGE);
        cp_async_commit_group();
    }
    for (int step = 0, stage = 0; step < steps; ++step) {
        cp_async_wait_group<STAGES - 1>();
        Vector16* const at = ring + stage * Traits::STAGE;
        const Vector16 w1 = at[0], w2 = at[Traits::THREADS];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            sums[tile].add(w1, w2, at + (2 + tile) * Traits::THREADS);
        if (step + STAGES < steps) copy(step + STAGES, at);
        cp_async_commit_group();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
        sums[tile].store(partial + warp * GEMM_M * Traits::ROWS + 8 * tile, Traits::ROWS);
    __syncthreads();
    return partial;
}
