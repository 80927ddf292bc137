// Attention of one head over the few tokens of one group, without a mask.
//
// Queries are in the lanes: 11 tokens fit one vector, the scores of one key are one register,
// softmax reduces over registers without a shuffle, and the result is in the packed form that the
// next product reads. 4 T^2 D flops, half of them lost to empty lanes at T = 11; below 1 % of a
// block. Long groups go through in pieces of W queries, their scores in L1.
#pragma once
#include "cpu/flow/flow_sample_plan.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int MANY = 12;  // keys, or columns of the result, that advance together

MC_INLINE int64_t attention_scratch(int64_t T, int64_t D) {
    const int64_t Dp = round_up(D, W);
    return (T + 2 * W + 2) * Dp + T * W;
}

// One query or key, to[D zero padded]: RMSNorm (where norm is not null), rotary embedding (where
// cos is not null), scale.
MC_INLINE void prepare(const float* from, int64_t D, const float* norm, const float* cos,
                       const float* sin, float scale, float* to) {
    float inverse = 1;
    if (norm) {
        F s = zero();
        for (int64_t d = 0; d < D; d += W) {
            const F v = loadn(from + d, (int)min(D - d, W));
            s = fma(v, v, s);
        }
        inverse = 1 / __builtin_sqrtf(sum_lanes(s) / (float)D + EPS);
    }
    for (int64_t d = 0; d < D; d += W) {
        F v = loadn(from + d, (int)min(D - d, W));
        if (norm) v = mul(mul(v, set1(inverse)), load(norm + d));
        if (cos) v = fma(swap_neighbours(v), load(sin + d), mul(v, load(cos + d)));
        store(to + d, mul(v, set1(scale)));
    }
}

// s[i][lane] = k[i] . q[lane] for n keys; q transposed, [D][W].
template <int n>
static void scores(int count, const float* k, int64_t k_row, const float* q, int64_t D, float* s) {
    if (count < n) {
        if constexpr (n > 1) scores<n - 1>(count, k, k_row, q, D, s);
        return;
    }
    F sum[n];
    for (F& each : sum) each = zero();
    for (int64_t d = 0; d < D; ++d) {
        const F v = load(q + d * W);
        for (int i = 0; i < n; ++i) sum[i] = fma(set1(k[i * k_row + d]), v, sum[i]);
    }
    for (int i = 0; i < n; ++i) store(s + i * W, sum[i]);
}

// out[i] = scale * sum over t of v[t][i] s[t], for n columns i; each is `lanes` long.
template <int n>
static void accumulate_values(int count, const float* v, int64_t v_row, const float* s, int64_t T,
                              F scale, float* out, int64_t out_row, int lanes, I& largest) {
    if (count < n) {
        if constexpr (n > 1)
            accumulate_values<n - 1>(count, v, v_row, s, T, scale, out, out_row, lanes, largest);
        return;
    }
    F sum[n];
    for (F& each : sum) each = zero();
    for (int64_t t = 0; t < T; ++t) {
        const F p = load(s + t * W);
        for (int i = 0; i < n; ++i) sum[i] = fma(set1(v[t * v_row + i]), p, sum[i]);
    }
    for (int i = 0; i < n; ++i) {
        const F y = mul(sum[i], scale);
        largest = max(largest, as_int(abs(y)));
        storen(out + i * out_row, y, lanes);
    }
}

// Group g, one head: qkv [rows][3 H] -> p.attended. `last`: only the last P queries.
static void attend(const Plan& p, const float* qkv, int block, bool last, int64_t g, int64_t head,
                   float* scratch) {
    const FlowSampleArgs& a = *p.a;
    const int64_t T = p.T, D = p.D, Dp = round_up(D, W), row = p.qkv_row;
    float *k = scratch, *q = k + T * Dp, *qt = q + W * Dp, *s = qt + W * Dp;
    float *q_norm = s + T * W, *k_norm = q_norm + Dp;
    if (a.norm[3].data) {
        read_vector(a.norm[3], block, 0, D, q_norm);
        read_vector(a.norm[4], block, 0, D, k_norm);
    } else q_norm = k_norm = nullptr;
    const bool rotated = head < a.rope_heads;
    const float *cos = p.cos, *sin = p.sin;
    const float *queries = qkv + g * T * row + head * D, *keys = queries + a.H;
    const float *values = keys + a.H, scale = 1 / __builtin_sqrtf((float)D);
    for (int64_t t = 0; t < T; ++t)
        prepare(keys + t * row, D, k_norm, rotated ? cos + t * Dp : nullptr,
                rotated ? sin + t * Dp : nullptr, 1, k + t * Dp);

    const int64_t first = last ? T - a.P : 0;                                 // of the queries
    const int at = (int)(g * (last ? a.P : T)), end = at + (int)(T - first);  // in the operand
    const PackedRows rows = p.attended.packed(p.count(last ? Set::last : Set::every, 0));
    for (int i = at, tile = tile_at(rows, at), n; i < end; i += n) {
        const int from = rows.begin(tile), to = rows.begin(tile + 1);
        n = (int)min(W, min(end, to) - i);
        for (int lane = 0; lane < n; ++lane) {
            const int64_t t = first + i - at + lane;
            prepare(queries + t * row, D, q_norm, rotated ? cos + t * Dp : nullptr,
                    rotated ? sin + t * Dp : nullptr, scale, q + lane * Dp);
        }
        for (int64_t d = 0; d < Dp; d += W) {
            F v[W];
            for (int lane = 0; lane < W; ++lane)
                v[lane] = lane < n ? load(q + lane * Dp + d) : zero();
            transpose(v);
            for (int j = 0; j < W; ++j) store(qt + (d + j) * W, v[j]);
        }
        const int64_t blocks = ceil_div(T, MANY);
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t t0 = T * b / blocks, t1 = T * (b + 1) / blocks;
            scores<MANY>((int)(t1 - t0), k + t0 * Dp, Dp, qt, D, s + t0 * W);
        }
        F top = load(s), sum = zero();
        for (int64_t t = 1; t < T; ++t) top = max(top, load(s + t * W));
        for (int64_t t = 0; t < T; ++t) {
            const F e = exp(sub(load(s + t * W), top));
            sum = add(sum, e);
            store(s + t * W, e);
        }
        const F inverse = div(set1(1), sum);
        I largest = zero_int();
        float* out = p.attended.data + rows.K * from + head * D * (to - from) + (i - from);
        const int64_t pieces = ceil_div(D, MANY);
        for (int64_t b = 0; b < pieces; ++b) {
            const int64_t d0 = D * b / pieces, d1 = D * (b + 1) / pieces;
            accumulate_values<MANY>((int)(d1 - d0), values + d0, row, s, T, inverse,
                                    out + d0 * (to - from), to - from, n, largest);
        }
        storen(p.attended.largest + head * p.attended.rows16 + i, as_float(largest), n);
        if (i + n == to) ++tile;
    }
}

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
