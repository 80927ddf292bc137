// Packing of the products' operands, 32 columns at a time, with the partial reductions over rows
// that RMSNorm and quantisation need; and their quantisation to VNNI-4.
#pragma once
#include "cpu/flow/flow_sample_plan.h"

namespace mingcore {
namespace MC_ISA {
namespace {

// Packs the columns col.. (at most 32) of members i0..i1 of an operand, from 32 floats at source(i)
// each.
template <class Source>
MC_INLINE void pack_operand(const Operand& o, int count, int64_t i0, int64_t i1, int64_t col,
                            const float* norm, Source source) {
    if (i0 >= i1) return;
    const PackedRows rows = o.packed(count);
    const int columns = (int)min(o.K - col, PANEL);
    int tile = tile_at(rows, i0), n;
    for (int64_t i = i0; i < i1; i += n) {
        const int from = rows.begin(tile), to = rows.begin(tile + 1), height = to - from;
        n = (int)min(W, min(i1, to) - i);
        float* out = o.data + o.K * from + col * height + (i - from);
        F squares = zero();
        I largest = zero_int();
        for (int j = 0; j < columns; j += W) {
            F v[W];
            for (int r = 0; r < W; ++r) v[r] = r < n ? load(source(i + r) + j) : zero();
            transpose(v);
            for (int k = 0; k < W && j + k < columns; ++k) {
                const F y = norm ? mul(v[k], set1(norm[j + k])) : v[k];
                squares = fma(v[k], v[k], squares);
                largest = max(largest, as_int(abs(y)));
                storen(out + (j + k) * height, y, n);
            }
        }
        const int64_t at = col / PANEL * o.rows16 + i;
        if (o.normed) storen(o.squares + at, squares, n);
        storen(o.largest + at, as_float(largest), n);
        if (i + n == to) ++tile;
    }
}

// The same of the residual stream's columns, times a norm's weights.
void pack_stream(const Plan& p, Set set, int e, int64_t i0, int64_t i1, int64_t panel,
                 const FlowVector& weights, int layer) {
    const float* x = p.x + panel * p.rows * PANEL;
    const int64_t col = panel * PANEL;
    float norm[PANEL] = {0};
    read_vector(weights, layer, col, min(weights.n - col, PANEL), norm);
    const int count = p.count(set, e);
    if (set == Set::every)
        pack_operand(p.every, count, i0, i1, col, norm, [=](int64_t i) { return x + i * PANEL; });
    else if (set == Set::last)
        pack_operand(p.last, count, i0, i1, col, norm,
                     [=, &p](int64_t i) { return x + p.last_row(i) * PANEL; });
    else
        pack_operand(p.unique, count, i0, i1, col, norm,
                     [=, &p](int64_t i) { return x + p.copy[i] * PANEL; });
}

// 1 / rms(x) of the members i.. of a normed operand, at most W of them; else 1.
MC_INLINE F inverse_rms(const Operand& o, int64_t i, int n) {
    if (!o.normed) return set1(1);
    F s = zero();
    for (int64_t part = 0; part < o.pieces; ++part)
        s = add(s, loadn(o.squares + part * o.rows16 + i, n));
    return div(set1(1), sqrt(add(div(s, set1((float)o.K)), set1(EPS))));
}

// Quantises the tile `tile` of an operand to VNNI-4, columns from chunk * CHUNK on:
// q = round_to_even(y (127 / a)) for a = max|y| of the row, as quantise_row() does it.
void quantise(const Operand& o, int count, int tile, int64_t chunk) {
    const PackedRows rows = o.packed(count);
    const int from = rows.begin(tile), height = rows.begin(tile + 1) - from;
    const int64_t k0 = chunk * CHUNK, k1 = min(k0 + CHUNK, o.K);
    for (int r = 0; r < height; r += W) {
        const int n = (int)min(height - r, W);
        const int64_t i = from + r;
        const F norm = inverse_rms(o, i, n);
        I largest = zero_int();  // as bits, which order as the numbers do, NaN above all
        for (int64_t piece = 0; piece < o.pieces; ++piece)
            largest = max(largest, as_int(loadn(o.largest + piece * o.rows16 + i, n)));
        const F a = mul(as_float(largest), norm);
        if (chunk == 0) storen(o.scale + i, div(a, set1(127)), n);
        const F by = select(less(zero(), a), div(set1(127), a), zero());
        const float* x = o.data + o.K * from + r;
        float* out = o.vnni4_data + vnni4_words(o.K) * from + r;
        I sum = zero_int();
        for (int64_t k = k0; k < k1; k += 4) {
            I q[4];
            for (int j = 0; j < 4; ++j) {
                q[j] = zero_int();
                if (k + j >= k1) continue;
                const F y = mul(mul(loadn(x + (k + j) * height, n), norm), by);
                q[j] = to_int(select(less(abs(y), set1(128)), y, zero()));
                sum = add(sum, q[j]);
            }
            storen(out + k / 4 * height, as_float(pack_bytes(q[0], q[1], q[2], q[3])), n);
        }
        storen((float*)o.sums + chunk * o.rows16 + i, as_float(sum), n);
    }
}

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
