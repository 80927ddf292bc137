// flow_sample: products of weights in the ring with activations in L2, by mma.m16n8k16.
#pragma once
#include "flow/flow_sample_ring.cuh"
#include "lib/mma.cuh"

namespace flow {

// 8 weights as packed bf16x2 operands.
template <class W>
__device__ __forceinline__ void load_x2(const char* from, unsigned (&to)[4]) {
    if constexpr (sizeof(W) == 2) {
        widen_x2<bf16, W>(*(const Vector16*)from, to);
    } else {
        const Vector<unsigned, 2> half = *(const Vector<unsigned, 2>*)from;
        const Vector16 v = {{half.at[0], half.at[1], 0, 0}};
        unsigned all[8];
        widen_x2<bf16, W>(v, all);
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = all[i];
    }
}

// A warp's accumulators, in mma's layout, of up to GROUP tiles of weight rows by all tokens. Split-K
// over the warps: each sums every eighth run of 32 elements.
template <class T>
struct Accumulators {
    static constexpr int MT = T::MT, GROUP = T::GROUP;
    float tile[GROUP][MT][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < GROUP; ++j)
#pragma unroll
            for (int t = 0; t < MT; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) tile[j][t][i] = 0;
    }

    // rows: [M, pitch] of activations, from the page's first element on; depth: weights of a row.
    // The order of the summed elements is free: a lane takes 8 successive elements of a weight row
    // and the same of its tokens, which are loaded from L2 straight to registers, since no other lane
    // needs them, and before the wait for the pages.
    template <class W>
    __device__ __forceinline__ void add(const Shared<T>& shared, const bf16* rows, int M, int pitch,
                                        int depth, int units, const Cursor& from, int pages) {
        constexpr int STEP = 32, PREFETCH = MT <= 2 ? 4 : MT <= 4 ? 2 : 1;
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
        const char* const ring = shared.ring + g * T::PITCH + c * 8 * (int)sizeof(W);
        bool waited = false;
        for (int first = warp; first * STEP < depth || !waited; first += CONSUMERS * PREFETCH) {
            Vector16 x[PREFETCH][MT][2];
#pragma unroll
            for (int a = 0; a < PREFETCH; ++a) {
                const int k = (first + a * CONSUMERS) * STEP + c * 8;
#pragma unroll
                for (int t = 0; t < MT; ++t)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int row = 16 * t + 8 * half + g;
                        x[a][t][half] = {};
                        if (row < M && k < depth) ld_cg(rows + row * pitch + k, x[a][t][half].word);
                    }
            }
            if (!waited) {
                Cursor at = from;
                for (int j = 0; j < units; ++j, at.next(pages))
                    while (!mbarrier_try_wait(shared.full + at.page, at.round & 1)) {
                    }
                waited = true;
            }
#pragma unroll
            for (int a = 0; a < PREFETCH; ++a) {
                const int step = first + a * CONSUMERS;
                if (step * STEP >= depth) continue;
                int page = from.page;
#pragma unroll
                for (int j = 0; j < GROUP; ++j) {
                    if (j >= units) continue;
                    unsigned w[4];
                    load_x2<W>(ring + page * T::PAGE + step * STEP * (int)sizeof(W), w);
                    page = page + 1 == pages ? 0 : page + 1;
#pragma unroll
                    for (int i = 0; i < 2; ++i)
#pragma unroll
                        for (int t = 0; t < MT; ++t) {
                            const Vector16 &low = x[a][t][0], &high = x[a][t][1];
                            mma_m16n8k16<bf16>(tile[j][t], low.word[2 * i], high.word[2 * i],
                                               low.word[2 * i + 1], high.word[2 * i + 1], w[2 * i],
                                               w[2 * i + 1]);
                        }
                }
            }
        }
        __syncwarp();
        Cursor at = from;
        for (int j = 0; j < units; ++j, at.next(pages))
            if (threadIdx.x % 32 == 0) mbarrier_arrive(shared.empty + at.page);
    }

    __device__ __forceinline__ void store(float* to, int j) const {  // to [ROWS][TILE]
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int t = 0; t < MT; ++t)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float* const at = to + (16 * t + 8 * half + g) * TILE + 2 * c;
                at[0] = tile[j][t][2 * half];
                at[1] = tile[j][t][2 * half + 1];
            }
    }
};

}  // namespace flow
