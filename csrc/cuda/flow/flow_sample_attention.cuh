// flow_sample: attention over the few tokens of one patch.
#pragma once
#include "flow/flow_sample_ring.cuh"

namespace flow {

constexpr float EPS = 1e-6f;

__device__ __forceinline__ void load8(const bf16* from, float (&to)[8]) { load<8>(from, to); }
// Of what other blocks wrote: past L1.
__device__ __forceinline__ void load8_cg(const bf16* from, float (&to)[8]) {
    unsigned v[4];
    ld_cg(from, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(v[i] << 16);
        to[2 * i + 1] = __uint_as_float(v[i] & 0xffff0000);
    }
}
// RMSNorm (q_norm, k_norm) and RoPE of a query or key, 8 elements per lane.
__device__ __forceinline__ void norm_and_rotate(float (&v)[8], const Params& p, const bf16* norm,
                                                int layer, int head, int position, int c,
                                                int lanes) {
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

// Attention of one query of one head, by a warp: online softmax with D / 8 lanes per key, several keys
// at a time, each group of lanes with its own running maximum and sum; merged at the end.
__device__ __forceinline__ void attention(const Params& p, int layer, int unit) {
    constexpr int PREFETCH = 3;  // passes whose keys and values are in flight at once
    const Shape& s = p.s;
    const int t = unit % s.T, r = unit / s.T % s.R, head = unit / (s.T * s.R);
    const int D = s.H / s.heads, lanes = D / 8, at_once = 32 / lanes;
    const int c = threadIdx.x % lanes, group = threadIdx.x % 32 / lanes;
    const bf16* const rows = p.qkv + (long long)r * s.T * 3 * s.H + head * D + c * 8;
    float q[8], sum[8] = {}, weight = 0;
    float running_max = -__uint_as_float(0x7f800000);
    load8_cg(rows + t * 3 * s.H, q);
    const float scale = 1 / sqrtf((float)D);
    bool rotated = false;
    for (int first = 0; first < s.T; first += at_once * PREFETCH) {
        float k[PREFETCH][8], v[PREFETCH][8];
#pragma unroll
        for (int a = 0; a < PREFETCH; ++a) {
            const int key = min(first + a * at_once + group, s.T - 1);
            load8_cg(rows + key * 3 * s.H + s.H, k[a]);
            load8_cg(rows + key * 3 * s.H + 2 * s.H, v[a]);
        }
        if (!rotated) norm_and_rotate(q, p, p.q_norm, layer, head, t, c, lanes);
        rotated = true;
#pragma unroll
        for (int a = 0; a < PREFETCH; ++a) {
            const int key = first + a * at_once + group;
            norm_and_rotate(k[a], p, p.k_norm, layer, head, min(key, s.T - 1), c, lanes);
            float score = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) score = fmaf(q[i], k[a][i], score);
            for (int x = 1; x < lanes; x *= 2) score += __shfl_xor_sync(~0u, score, x);
            if (key >= s.T) continue;
            const float new_max = fmaxf(running_max, score * scale);
            const float rescale = expf(running_max - new_max), prob = expf(score * scale - new_max);
            running_max = new_max;
            weight = weight * rescale + prob;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = sum[i] * rescale + prob * v[a][i];
        }
    }
    for (int x = lanes; x < 32; x *= 2) {
        const float other = __shfl_xor_sync(~0u, running_max, x),
                    new_max = fmaxf(running_max, other);
        const float mine =
            running_max == new_max ? 1 : expf(running_max - new_max);  // both may be -infinity
        const float theirs = other == new_max ? 1 : expf(other - new_max);
        weight = weight * mine + __shfl_xor_sync(~0u, weight, x) * theirs;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            sum[i] = sum[i] * mine + __shfl_xor_sync(~0u, sum[i], x) * theirs;
        running_max = new_max;
    }
    if (group) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] /= weight;
    store<8>(p.attended + (long long)(r * s.T + t) * s.H + head * D + c * 8, sum);
}

}  // namespace flow
