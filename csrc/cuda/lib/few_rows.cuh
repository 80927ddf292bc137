// What spectrum_head and frame_embed share: 16 rows of W times 8 or 64 rows of x, for so few of
// them that what counts is how much of W is on its way at once.
//
// The tensor cores take 16 rows of W as the wide operand, rows of x as the one of 8. Warps have
// shares of K; a lane copies 16 successive bytes of its rows, and of x, to where only it reads them,
// 7 steps ahead (4 with 64 rows of x). Loads to registers did not stay in front of the products (40
// registers instead of the 56 that they would fill, sm_90a). Tensor cores cut what they add, so
// their chains are short: each of 4 warps sums a quarter of K.
#pragma once
#include "lib/weights.cuh"

constexpr int FEW_WARPS = 4, FEW_W = 16;  // warps of a block; rows of W

template <class X_, int TILES_>
struct FewTraits {
    using X = X_;
    static constexpr int TILES = TILES_;  // of 8 rows of x
    static constexpr int ROWS = 8 * TILES, THREADS = 32 * FEW_WARPS;
    static constexpr int E = 16 / sizeof(X), STEP = 4 * E;  // elements of a lane, of a warp
    static constexpr int STAGES = TILES == 1 ? 7 : 4;       // steps on their way
    static constexpr int STAGE = (2 + TILES) * THREADS;     // vectors: 8 rows of W, 8 more, x
};

template <class X>
__device__ __forceinline__ void mma_of(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                       unsigned a3, unsigned b0, unsigned b1) {
    if constexpr (same<X, bf16>)
        mma_bf16(d, a0, a1, a2, a3, b0, b1);
    else
        mma_f16(d, a0, a1, a2, a3, b0, b1);
}

// A warp's sums of 16 rows of W (8 of `one`, 8 of `two`) and 8 of x, spread as mma leaves them. x:
// this lane's place among the vectors of 8 rows.
template <class X>
struct FewSums {
    float d[4] = {};
    __device__ __forceinline__ void add(const Vector16& one, const Vector16& two,
                                        const Vector16* x) {
        const Vector16 v = *x;
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            mma_of<X>(d, one.word[i], two.word[i], one.word[i + 1], two.word[i + 1], v.word[i],
                      v.word[i + 1]);
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
struct FewSums<float> {  // rows g of both, all 8 of x, over this lane's elements
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
        __syncwarp();  // and they copy anew
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

// Each warp's share of the sums over K, where the result says: [FEW_WARPS][16][ROWS] in shared
// memory, for all to read. Lane 4g + c: one, two: row g of the first and of the second 8 rows of W.
// copy_x(to, tile, k, bytes) starts the copy of 16 bytes of row 8 tile + g of x from element k on;
// with bytes = 0, of zeros, and k = 0.
template <class Traits, class Copy>
__device__ __forceinline__ const float* few_products(const typename Traits::X* one,
                                                     const typename Traits::X* two, int K,
                                                     Copy copy_x) {
    constexpr int TILES = Traits::TILES, STAGES = Traits::STAGES;
    Vector16* const ring = (Vector16*)shared_memory() + threadIdx.x;  // of this lane alone
    float* const partial = (float*)shared_memory() + STAGES * Traits::STAGE * 4;
    const int warp = threadIdx.x / 32, c = threadIdx.x % 4;
    const auto copy = [&](int step, Vector16* to) {
        const int k = (step * FEW_WARPS + warp) * Traits::STEP + c * Traits::E;
        const int bytes = k < K ? 16 : 0, at = bytes ? k : 0;
        cp_async(to, one + at, bytes);
        cp_async(to + Traits::THREADS, two + at, bytes);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            copy_x(to + (2 + tile) * Traits::THREADS, tile, at, bytes);
    };
    FewSums<typename Traits::X> sums[TILES];
    const int steps = (K + FEW_WARPS * Traits::STEP - 1) / (FEW_WARPS * Traits::STEP);
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
        if (i < steps) copy(i, ring + i * Traits::STAGE);
        cp_async_commit();
    }
    for (int step = 0, stage = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 1>();
        Vector16* const at = ring + stage * Traits::STAGE;
        const Vector16 w1 = at[0], w2 = at[Traits::THREADS];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            sums[tile].add(w1, w2, at + (2 + tile) * Traits::THREADS);
        if (step + STAGES < steps) copy(step + STAGES, at);
        cp_async_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
        sums[tile].store(partial + warp * FEW_W * Traits::ROWS + 8 * tile, Traits::ROWS);
    __syncthreads();
    return partial;
}
