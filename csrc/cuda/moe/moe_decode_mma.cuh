// moe_decode: a warp's products of copied weights and tokens, by mma.m16n8k16, for float32 by FMA.
#pragma once
#include "lib/mma.cuh"
#include "moe/moe_decode_schedule.cuh"

// A warp's accumulators of its share of K: 16 tokens by twice 8 weight rows, in mma's layout.
template <class Traits>
struct Accumulators {
    using X = typename Traits::X;
    using W = typename Traits::W;
    float tile[2][4] = {};

    // from: this lane's place in a stage; tokens: how many of the 16 are there
    __device__ void add(const Vector16* from, int tokens) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            Vector16 x[2][Traits::XV] = {};
            unsigned w[2][Traits::E / 2];
#pragma unroll
            for (int i = 0; i < Traits::XV; ++i) {
                x[0][i] = from[(4 + part * Traits::XV + i) * 32];
                if (tokens > 8) x[1][i] = from[(4 + (2 + part) * Traits::XV + i) * 32];
            }
            widen_x2<X, W>(from[part * 32], w[0]);
            widen_x2<X, W>(from[(2 + part) * 32], w[1]);
#pragma unroll
            for (int i = 0; i < Traits::E / 4; ++i) {
                const int v = i / 2, a = i % 2 * 2;
#pragma unroll
                for (int t = 0; t < 2; ++t)
                    mma_m16n8k16<X>(tile[t], x[0][v].word[a], x[1][v].word[a], x[0][v].word[a + 1],
                                    x[1][v].word[a + 1], w[t][2 * i], w[t][2 * i + 1]);
            }
        }
    }
    __device__ void store(float* to, int tokens) {  // to [TOKENS][ROWS]
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                if (g + 8 * half < tokens) {
                    float* at = to + (g + 8 * half) * ROWS + t * 8 + 2 * c;
                    at[0] = tile[t][2 * half];
                    at[1] = tile[t][2 * half + 1];
                }
    }
};
template <>
struct Accumulators<MoeDecodeTraits<float, float>> {  // FMA: row g of both, this lane's elements
    float tile[2][TOKENS] = {};

    __device__ void add(const Vector16* from, int tokens) {
        const int lane = threadIdx.x % 32, c = lane % 4;
        __syncwarp();  // x was copied by other lanes
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            float a[4], b[4], x[4];
            load<4>((const float*)(from + part * 32), a);
            load<4>((const float*)(from + (2 + part) * 32), b);
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (t >= tokens) continue;
                const int vector = (4 + t / 8 * 2 + part) * 32 + t % 8 * 4 + c;
                load<4>((const float*)(from - lane + vector), x);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    tile[0][t] = fmaf(a[i], x[i], tile[0][t]);
                    tile[1][t] = fmaf(b[i], x[i], tile[1][t]);
                }
            }
        }
        __syncwarp();  // before they copy the next x
    }
    __device__ void store(float* to, int tokens) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int i = 0; i < TOKENS; ++i) {
                float sum = tile[t][i];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (c == 0 && i < tokens) to[i * ROWS + t * 8 + g] = sum;
            }
    }
};
