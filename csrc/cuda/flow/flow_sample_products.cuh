// flow_sample: products of the weights in the ring with activations, and the phases between them.
#pragma once
#include "flow/flow_sample_ring.cuh"

namespace flow {

constexpr float EPS = 1e-6f;

__device__ __forceinline__ void load8(const bf16* from, float (&to)[8]) {  // constants
    load<8>(from, to);
}
__device__ __forceinline__ void load8_l2(const bf16* from, float (&to)[8]) {  // of other blocks
    unsigned v[4];
    load_l2(from, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(v[i] << 16);
        to[2 * i + 1] = __uint_as_float(v[i] & 0xffff0000);
    }
}
__device__ __forceinline__ float gelu_tanh(float v) {
    const float u = 0.7978845608028654f * fmaf(0.044715f * v * v, v, v);
    return v / (1 + expf(-2 * u));
}

// 8 weights as pairs.
template <class W>
__device__ __forceinline__ void pairs(const char* from, unsigned (&to)[4]) {
    if constexpr (sizeof(W) == 2) {
        widen_pairs<bf16, W>(*(const Vector16*)from, to);
    } else {
        const Vector<unsigned, 2> half = *(const Vector<unsigned, 2>*)from;
        const Vector16 v = {{half.at[0], half.at[1], 0, 0}};
        unsigned all[8];
        widen_pairs<bf16, W>(v, all);
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = all[i];
    }
}

// The sums of up to GROUP tiles of weight rows over all tokens, spread over the warps by the summed
// elements and over a warp as mma leaves them.
template <class T>
struct Sums {
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
    // The order of the summed elements is ours: a lane takes 8 successive elements of a weight row
    // and the same of its tokens, which come from L2 straight to registers, since no other lane
    // needs them. They are asked for before the pages are waited for.
    template <class W>
    __device__ __forceinline__ void add(const Shared<T>& shared, const bf16* rows, int M, int pitch,
                                        int depth, int units, const Cursor& from, int pages) {
        constexpr int STEP = 32, AHEAD = MT <= 2 ? 4 : MT <= 4 ? 2 : 1;
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
        const char* const ring = shared.ring + g * T::PITCH + c * 8 * (int)sizeof(W);
        bool waited = false;
        for (int first = warp; first * STEP < depth || !waited; first += CONSUMERS * AHEAD) {
            Vector16 x[AHEAD][MT][2];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const int k = (first + a * CONSUMERS) * STEP + c * 8;
#pragma unroll
                for (int t = 0; t < MT; ++t)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int row = 16 * t + 8 * half + g;
                        x[a][t][half] = {};
                        if (row < M && k < depth)
                            load_l2(rows + row * pitch + k, x[a][t][half].word);
                    }
            }
            if (!waited) {
                Cursor at = from;
                for (int j = 0; j < units; ++j, at.next(pages))
                    while (!barrier_done(shared.full + at.page, at.round & 1)) {
                    }
                waited = true;
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const int step = first + a * CONSUMERS;
                if (step * STEP >= depth) continue;
                int page = from.page;
#pragma unroll
                for (int j = 0; j < GROUP; ++j) {
                    if (j >= units) continue;
                    unsigned w[4];
                    pairs<W>(ring + page * T::PAGE + step * STEP * (int)sizeof(W), w);
                    page = page + 1 == pages ? 0 : page + 1;
#pragma unroll
                    for (int i = 0; i < 2; ++i)
#pragma unroll
                        for (int t = 0; t < MT; ++t) {
                            const Vector16 &low = x[a][t][0], &high = x[a][t][1];
                            mma_bf16(tile[j][t], low.word[2 * i], high.word[2 * i],
                                     low.word[2 * i + 1], high.word[2 * i + 1], w[2 * i],
                                     w[2 * i + 1]);
                        }
                }
            }
        }
        __syncwarp();
        Cursor at = from;
        for (int j = 0; j < units; ++j, at.next(pages))
            if (threadIdx.x % 32 == 0) barrier_arrive(shared.empty + at.page);
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

// Attention of one query of one head, by a warp: D / 8 lanes per key, so several keys at a time,
// each group with its own running maximum and sum; the groups meet at the end.
__device__ __forceinline__ void turn(float (&v)[8], const Params& p, const bf16* norm, int layer,
                                     int head, int position, int c, int lanes) {
    const int D = lanes * 8;
    if (norm) {
        float w[8], squares = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
        for (int x = 1; x < lanes; x *= 2) squares += __shfl_xor_sync(~0u, squares, x);
        const float inverse = 1 / sqrtf(squares / D + EPS);
        load8(norm + layer * D + c * 8, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= inverse * w[i];
    }
    if (head >= p.s.rope_heads) return;
    float cos[4], sin[4];
    load<4>(p.cos + position * (D / 2) + c * 4, cos);
    load<4>(p.sin + position * (D / 2) + c * 4, sin);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float a = v[2 * i], b = v[2 * i + 1];
        v[2 * i] = a * cos[i] - b * sin[i];
        v[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

__device__ __forceinline__ void attend(const Params& p, int layer, int unit) {
    constexpr int AHEAD = 3;  // passes whose keys and values are on their way at once
    const Shape& s = p.s;
    const int t = unit % s.T, r = unit / s.T % s.R, head = unit / (s.T * s.R);
    const int D = s.H / s.heads, lanes = D / 8, at_once = 32 / lanes;
    const int c = threadIdx.x % lanes, group = threadIdx.x % 32 / lanes;
    const bf16* const rows = p.qkv + (long long)r * s.T * 3 * s.H + head * D + c * 8;
    float q[8], sum[8] = {}, weight = 0;
    float most = -__uint_as_float(0x7f800000);
    load8_l2(rows + t * 3 * s.H, q);
    const float scale = 1 / sqrtf((float)D);
    bool turned = false;
    for (int first = 0; first < s.T; first += at_once * AHEAD) {
        float k[AHEAD][8], v[AHEAD][8];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const int key = min(first + a * at_once + group, s.T - 1);
            load8_l2(rows + key * 3 * s.H + s.H, k[a]);
            load8_l2(rows + key * 3 * s.H + 2 * s.H, v[a]);
        }
        if (!turned) turn(q, p, p.q_norm, layer, head, t, c, lanes);
        turned = true;
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const int key = first + a * at_once + group;
            turn(k[a], p, p.k_norm, layer, head, min(key, s.T - 1), c, lanes);
            float score = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) score = fmaf(q[i], k[a][i], score);
            for (int x = 1; x < lanes; x *= 2) score += __shfl_xor_sync(~0u, score, x);
            if (key >= s.T) continue;
            const float higher = fmaxf(most, score * scale);
            const float keep = expf(most - higher), one = expf(score * scale - higher);
            most = higher;
            weight = weight * keep + one;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = sum[i] * keep + one * v[a][i];
        }
    }
    for (int x = lanes; x < 32; x *= 2) {
        const float other = __shfl_xor_sync(~0u, most, x), higher = fmaxf(most, other);
        const float mine = most == higher ? 1 : expf(most - higher);  // both may be -infinity
        const float theirs = other == higher ? 1 : expf(other - higher);
        weight = weight * mine + __shfl_xor_sync(~0u, weight, x) * theirs;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            sum[i] = sum[i] * mine + __shfl_xor_sync(~0u, sum[i], x) * theirs;
        most = higher;
    }
    if (group) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] /= weight;
    store<8>(p.attended + (long long)(r * s.T + t) * s.H + head * D + c * 8, sum);
}

}  // namespace flow
