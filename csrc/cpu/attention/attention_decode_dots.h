// The two products of attention over a KV cache, for a few query rows at once, and the softmax
// between.
//
// Scores q k^T: the head dimension is in the lanes, R rows times N keys are R N = W accumulators.
// They become one vector of W scores by a tree reduction (sum_rows), 2 shuffles a score where a
// transpose would take 4. Each key is loaded, and widened from 16 bits, once for R rows. Values p
// v: the head dimension stays in the lanes, each value row is loaded once for R rows.
#pragma once
#include "cpu/lib/simd_int.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t BLOCK = 128;        // keys whose scores are held at once; a multiple of W
constexpr int64_t PREFETCH_KEYS = 8;  // software prefetch distance, in keys

// Query rows of one task, all in scratch. Row r sees the positions low[r] .. high[r] - 1.
struct Queries {
    int64_t n, D, Dp;  // Dp: D padded to a multiple of W
    const float* q;    // [n, Dp], times the scale, padded with zeros
    const int64_t *low, *high;
};
struct Sums {  // the online softmax's state: softmax(s) v so far is out / sum, relative to exp(top)
    float *top, *sum;  // [n]
    float* out;        // [n, Dp]
};

struct Scales {  // of 8-bit keys and values, by slot; null of others
    const float *k, *v;
    int64_t k_row, v_row;
};
// From a cache's slot on.
MC_INLINE Scales from_slot(const Scales& s, int64_t slots) {
    return s.k ? Scales{s.k + slots * s.k_row, s.v + slots * s.v_row, s.k_row, s.v_row} : s;
}

template <class T>
MC_INLINE F read(const T* p, int64_t left) {
    return left >= W ? load(p) : loadn(p, (int)left);
}

template <class T>
MC_INLINE void prefetch_row(const T* row, int64_t D) {
    for (int64_t d = 0; d < D; d += 64 / (int64_t)sizeof(T)) prefetch(row + d);
}

// s[r][j] = q[r] . k[j], for R rows and `keys` keys; the rows of s are BLOCK long. v: the values of
// these keys, to be prefetched; null where they were before. The stride between the rows of a head
// in a cache is too large for the hardware's prefetcher.
template <class T, int R>
MC_INLINE void scores(const float* q, int64_t D, int64_t Dp, const T* k, int64_t k_row, const T* v,
                      int64_t v_row, int64_t keys, float* s) {
    constexpr int N = W / R;
    for (int64_t j = 0; j < keys; j += N) {
        if (v)
            for (int64_t i = j; i < j + N; ++i) {
                prefetch_row(k + (i + PREFETCH_KEYS) * k_row, D);
                prefetch_row(v + i * v_row, D);
            }
        const T* key[N];
        for (int i = 0; i < N; ++i) key[i] = k + (j + i < keys ? j + i : keys - 1) * k_row;
        F acc[W];
        for (F& each : acc) each = zero();
        int64_t d = 0;
        for (; d + W <= D; d += W) {
            F y[N];
            for (int i = 0; i < N; ++i) y[i] = load(key[i] + d);
            for (int r = 0; r < R; ++r) {
                const F x = load(q + r * Dp + d);
                for (int i = 0; i < N; ++i) acc[r * N + i] = fma(x, y[i], acc[r * N + i]);
            }
        }
        if (d < D)
            for (int i = 0; i < N; ++i) {
                const F y = loadn(key[i] + d, (int)(D - d));
                for (int r = 0; r < R; ++r)
                    acc[r * N + i] = fma(load(q + r * Dp + d), y, acc[r * N + i]);
            }
        float lanes[W];
        store(lanes, sum_rows(acc));
        const int n = (int)(keys - j < N ? keys - j : N);
        for (int r = 0; r < R; ++r)
            if (n == N) memcpy(s + r * BLOCK + j, lanes + r * N, sizeof(float) * N);
            else memcpy(s + r * BLOCK + j, lanes + r * N, sizeof(float) * (size_t)n);
    }
}

// out[r][d..] = out[r][d..] * factor[r] + sum_j p[r][j] v[j][d..], for R rows and V vectors.
template <class T, int R, int V>
MC_INLINE void accumulate_values(const float* p, const T* v, int64_t v_row, int64_t keys,
                                 const float* factor, float* out, int64_t Dp, int64_t left) {
    F acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < V; ++i) acc[r][i] = mul(load(out + r * Dp + i * W), set1(factor[r]));
    for (int64_t j = 0; j < keys; ++j) {
        F x[V];
        for (int i = 0; i < V; ++i) x[i] = V > 1 ? load(v + i * W) : read(v, left);
        for (int r = 0; r < R; ++r) {
            const F w = set1(p[r * BLOCK + j]);
            for (int i = 0; i < V; ++i) acc[r][i] = fma(w, x[i], acc[r][i]);
        }
        v += v_row;
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < V; ++i) store(out + r * Dp + i * W, acc[r][i]);
}

// A block of the online softmax: s[j] = exp(s[j] - top) for positions from + j that the row sees,
// else 0. Updates the row's running maximum and sum; returns the factor that rescales what was
// summed before.
MC_INLINE float online_softmax(float* s, int64_t keys, int64_t from, int64_t low, int64_t high,
                               float& top, float& sum) {
    const int64_t padded = (keys + W - 1) / W * W;
    const int64_t first = low > from ? low - from : 0;
    const int64_t last = high - from < keys ? high - from : keys;
    if (first >= last) {
        for (int64_t j = 0; j < keys; ++j) s[j] = 0;
        return 1;
    }
    for (int64_t j = 0; j < first; ++j) s[j] = -__builtin_inff();
    for (int64_t j = last; j < padded; ++j) s[j] = -__builtin_inff();
    F largest = load(s);
    for (int64_t j = W; j < padded; j += W) largest = max(largest, load(s + j));
    const float block = max_lanes(largest), before = top;
    if (block > before) top = block;
    const F t = set1(top);
    F all = zero();
    for (int64_t j = 0; j < padded; j += W) {
        const F e = exp(sub(load(s + j), t));
        all = add(all, e);
        store(s + j, e);
    }
    const float factor = before == top ? 1 : first_lane(exp(set1(before - top)));
    sum = sum * factor + sum_lanes(all);
    return factor;
}

// s[j] *= scale[j]
MC_INLINE void rescale(float* s, const float* scale, int64_t row, int64_t keys) {
    for (int64_t j = 0; j < keys; ++j) s[j] *= scale[j * row];
}

// R rows from row r on over one block of keys, at positions from, from + 1, ... Dequantisation is
// fused: a key's scale is applied to its score, a value's to its weight.
template <class T, int R>
static void attend(const Queries& q, const Sums& to, int64_t r, const T* k, int64_t k_row,
                   const T* v, int64_t v_row, const Scales& by, int64_t keys, int64_t from,
                   float* s) {
    scores<T, R>(q.q + r * q.Dp, q.D, q.Dp, k, k_row, r ? nullptr : v, v_row, keys, s);
    float factor[R];
    for (int i = 0; i < R; ++i) {
        if (by.k) rescale(s + i * BLOCK, by.k, by.k_row, keys);
        factor[i] = online_softmax(s + i * BLOCK, keys, from, q.low[r + i], q.high[r + i],
                                   to.top[r + i], to.sum[r + i]);
        if (by.v) rescale(s + i * BLOCK, by.v, by.v_row, keys);
    }
    constexpr int V = W >= 16 ? 4 : 2;
    float* out = to.out + r * q.Dp;
    int64_t d = 0;
    for (; d + V * W <= q.D; d += V * W)
        accumulate_values<T, R, V>(s, v + d, v_row, keys, factor, out + d, q.Dp, q.D - d);
    for (; d < q.D; d += W)
        accumulate_values<T, R, 1>(s, v + d, v_row, keys, factor, out + d, q.Dp, q.D - d);
}

// Row blocking: how many of `left` rows go together, in groups of like size, none of one where
// avoidable.
constexpr int MAX_GROUP = W >= 8 ? 5 : 4;
MC_INLINE int rows_together(int64_t left) {
    if (W < 8) return left >= 4 ? 4 : (int)left;
    return left > 7 ? 4 : left > 5 ? (int)(left + 1) / 2 : (int)left;
}

template <class T>
MC_INLINE void attend_all(const Queries& q, const Sums& to, const T* k, int64_t k_row, const T* v,
                          int64_t v_row, const Scales& by, int64_t keys, int64_t from, float* s) {
    for (int64_t r = 0; r < q.n;) {
        const int n = rows_together(q.n - r);
        (n == 1   ? attend<T, 1>
         : n == 2 ? attend<T, 2>
         : n == 3 ? attend<T, 3>
         : n == 4 ? attend<T, 4>
                  : attend<T, MAX_GROUP>)(q, to, r, k, k_row, v, v_row, by, keys, from, s);
        r += n;
    }
}

// Split-K merge: adds the state of another chunk of keys.
MC_INLINE void merge(const Queries& q, const Sums& to, const Sums& more) {
    for (int64_t r = 0; r < q.n; ++r) {
        if (!(more.sum[r] != 0)) continue;  // it saw none of those keys
        const float top = more.top[r] > to.top[r] ? more.top[r] : to.top[r];
        const F a = to.sum[r] != 0 ? exp(set1(to.top[r] - top)) : zero();
        const F b = exp(set1(more.top[r] - top));
        to.sum[r] = first_lane(a) * to.sum[r] + first_lane(b) * more.sum[r];
        to.top[r] = top;
        float* out = to.out + r * q.Dp;
        for (int64_t d = 0; d < q.Dp; d += W)
            store(out + d, fma(b, load(more.out + r * q.Dp + d), mul(a, load(out + d))));
    }
}

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
