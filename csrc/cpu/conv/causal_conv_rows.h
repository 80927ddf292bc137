// The rows of a stream's batch: where each one's padded inputs begin and end, how inputs are staged
// as float32 behind their context, and how sums become outputs (bias, activation, residual).
#pragma once
#include "cpu/conv/causal_conv.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/convert.h"
#include "cpu/lib/trig.h"

namespace mingcore {
namespace MC_ISA {

// One row of the batch: inputs before this call and in it; where its outputs begin in its padded
// inputs (context, then x), where those end, how many outputs there are, and at how many times.
struct Row {
    int64_t seen, fresh, begin, end, count, times;
    bool done;
};

MC_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Outputs of a stream after so many inputs; once it is over, until every input is covered.
static int64_t outputs_after(const CausalConvArgs& a, int64_t span, int64_t inputs, bool over) {
    if (over) {
        if (inputs == 0) return 0;
        return max(-floor_div(-(inputs + a.left_pad - max(span + 1 - a.stride, 0)), a.stride), 0);
    }
    return max(floor_div(inputs + a.left_pad - span - 1, a.stride) + 1, 0);
}

static void count_rows(const CausalConvArgs& a, int64_t span, Row* rows) {
    for (int64_t b = 0; b < a.B; ++b) {
        Row& r = rows[b];
        r.seen = a.rows.lengths ? a.rows.lengths[b] : 0;
        r.fresh = a.rows.valid ? a.rows.valid[b] : a.L;
        r.done = a.rows.ended ? a.rows.ended[b] : a.rows.last;
        r.end = span + r.fresh;
        if (a.up > 1 || a.flush > 0) {
            r.begin = 0;
            r.count = r.fresh * a.up + (r.done && r.seen + r.fresh > 0 ? a.flush : 0);
        } else {
            const int64_t before = outputs_after(a, span, r.seen, false);
            r.begin = span + before * a.stride - a.left_pad - r.seen;
            r.count = outputs_after(a, span, r.seen + r.fresh, r.done) - before;
        }
        r.count = min(r.count, a.T);
        r.times = ceil_div(r.count, a.up);
    }
}

MC_INLINE F apply(ConvAct act, F v, F alpha, F gain) {
    switch (act) {
        case ConvAct::silu: return silu(v);
        case ConvAct::elu: return elu(v);
        case ConvAct::gelu: return gelu(v);
        case ConvAct::gelu_tanh: return gelu_tanh(v);
        case ConvAct::tanh: return tanh(v);
        case ConvAct::snake: return snake(v, alpha, gain);
        default: return v;
    }
}

MC_INLINE void widen(Dtype dtype, const char* base, int64_t at, int64_t n, float* to) {
    if (n <= 0) return;
    if (dtype == Dtype::f32) convert_row((const float*)base + at, n, to);
    else if (dtype == Dtype::bf16) convert_row((const bf16*)base + at, n, to);
    else convert_row((const f16*)base + at, n, to);
}
MC_INLINE float load_one(Dtype dtype, const void* base, int64_t at) {
    if (dtype == Dtype::f32) return ((const float*)base)[at];
    return dtype == Dtype::bf16 ? load_one((const bf16*)base + at)
                                : load_one((const f16*)base + at);
}
MC_INLINE void fill(float* to, int64_t n, float value) {
    for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// Stages inputs: to[i] = before(padded input p + i of channel c of row b): context, chunk, then
// padding.
static void gather(const CausalConvArgs& a, const Row& row, int64_t span, int64_t b, int64_t c,
                   int64_t p, int64_t n, float* to) {
    const int64_t at = b * a.x.batch + c * a.x.channel;
    float* const out = to;
    const int64_t all = n;
    if (p < span) {
        const int64_t m = min(span - p, n);
        if (row.seen > 0) widen(a.x.dtype, (const char*)a.context, (b * a.C + c) * span + p, m, to);
        else fill(to, m, a.replicate && row.fresh > 0 ? load_one(a.x.dtype, a.x.data, at) : 0.0f);
        p += m, n -= m, to += m;
    }
    if (n > 0 && p < row.end) {
        const int64_t m = min(row.end - p, n);
        widen(a.x.dtype, a.x.data, at + (p - span), m, to);
        p += m, n -= m, to += m;
    }
    if (n > 0) {
        float last = 0.0f;
        if (a.replicate && row.fresh > 0) last = load_one(a.x.dtype, a.x.data, at + row.fresh - 1);
        else if (a.replicate && row.seen > 0 && span > 0)
            last = load_one(a.x.dtype, a.context, (b * a.C + c + 1) * span - 1);
        fill(to, n, last);
    }
    if (a.before.act == ConvAct::none) return;
    const bool is_snake = a.before.act == ConvAct::snake;
    const F alpha = is_snake ? set1(a.before.alpha[c]) : zero();
    const F gain = is_snake ? set1(a.before.gain[c]) : zero();
    int64_t i = 0;
    for (; i + W <= all; i += W) store(out + i, apply(a.before.act, load(out + i), alpha, gain));
    if (i < all) {
        const int m = (int)(all - i);
        storen(out + i, apply(a.before.act, loadn(out + i, m), alpha, gain), m);
    }
}

// Stages the inputs of the times [t0, t1) of channel c for contiguous loads: phase by phase of the
// stride.
static void stage(const CausalConvArgs& a, const Row& row, int64_t span, int64_t b, int64_t c,
                  int64_t t0, int64_t t1, int64_t phase_ld, float* line, float* to) {
    const int64_t n = (t1 - t0 - 1) * a.stride + span + 1;
    const int64_t p = row.begin + t0 * a.stride;
    if (a.stride == 1) return gather(a, row, span, b, c, p, n, to);
    gather(a, row, span, b, c, p, n, line);
    for (int64_t r = 0; r < a.stride; ++r) {
        float* phase = to + r * phase_ld;
        for (int64_t i = r, j = 0; i < n; i += a.stride, ++j) phase[j] = line[i];
    }
}

// out[i] = after(sums[i] + bias) + residual[i]. A is the activation, or `tanh` where it is switched
// on at run time; the residual is absent or float32.
template <class T, ConvAct A, bool R>
MC_INLINE void store_line(ConvAct act, F bias, F alpha, F gain, const float* sums,
                          const float* residual, int64_t n, T* out) {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        F v = apply(A == ConvAct::tanh ? act : A, add(load(sums + i), bias), alpha, gain);
        if (R) v = add(v, load(residual + i));
        store(out + i, v);
    }
    if (i < n) {
        const int m = (int)(n - i);
        F v = apply(A == ConvAct::tanh ? act : A, add(load(sums + i), bias), alpha, gain);
        if (R) v = add(v, loadn(residual + i, m));
        storen(out + i, v, m);
    }
}

// Outputs of a channel's phase at the times [t, t + n) of row b, from their sums.
template <class T>
static void store_outputs(const CausalConvArgs& a, int64_t b, int64_t channel, int64_t phase,
                          int64_t t, int64_t n, int64_t limit, const float* sums) {
    const ConvAct act = a.after.act;
    const bool is_snake = act == ConvAct::snake;
    const F bias = set1(a.bias ? load_one(a.bias_dtype, a.bias, channel) : 0.0f);
    const F alpha = is_snake ? set1(a.after.alpha[channel]) : zero();
    const F gain = is_snake ? set1(a.after.gain[channel]) : zero();
    const int64_t first = t * a.up + phase, step = a.up * a.out.time;
    const int64_t at = b * a.out.batch + channel * a.out.channel + first * a.out.time;
    const int64_t from = b * a.residual.batch + channel * a.residual.channel + first;
    n = min(n, ceil_div(limit - first, a.up));
    T* out = (T*)a.out.data + at;
    const float* residual = (const float*)a.residual.data;
    if (step == 1 && (!residual || a.residual.dtype == Dtype::f32)) {
        if (residual && act == ConvAct::none)
            return store_line<T, ConvAct::none, true>(act, bias, alpha, gain, sums, residual + from,
                                                      n, out);
        if (residual)
            return store_line<T, ConvAct::tanh, true>(act, bias, alpha, gain, sums, residual + from,
                                                      n, out);
        if (act == ConvAct::none)
            return store_line<T, ConvAct::none, false>(act, bias, alpha, gain, sums, residual, n,
                                                       out);
        if (is_snake)
            return store_line<T, ConvAct::snake, false>(act, bias, alpha, gain, sums, residual, n,
                                                        out);
        return store_line<T, ConvAct::tanh, false>(act, bias, alpha, gain, sums, residual, n, out);
    }
    for (int64_t i = 0; i < n; i += W) {
        const int m = (int)min(W, n - i);
        // beyond m the scratch is uninitialised: large values would take the slow path of sin
        const F sum = m == W ? load(sums + i) : loadn(sums + i, m);
        F v = apply(act, add(sum, bias), alpha, gain);
        if (residual) {
            float r[W];
            if (a.up == 1) widen(a.residual.dtype, a.residual.data, from + i, m, r);
            else
                for (int j = 0; j < m; ++j)
                    r[j] = load_one(a.residual.dtype, a.residual.data, from + (i + j) * a.up);
            v = add(v, loadn(r, m));
        }
        if (step == 1) {
            if (m == W) store(out + i, v);
            else storen(out + i, v, m);
        } else {
            T lanes[W];
            store(lanes, v);
            for (int j = 0; j < m; ++j) out[(i + j) * step] = lanes[j];
        }
    }
}
// Matrix row m of group g, which has `limit` outputs in this row of the batch.
MC_INLINE void store_outputs(const CausalConvArgs& a, int64_t limit, int64_t b, int64_t g,
                             int64_t m, int64_t t, int64_t n, const float* sums) {
    const int64_t channel = g * (a.N / a.groups) + m / a.up, phase = m % a.up;
    if (a.out.dtype == Dtype::f32) store_outputs<float>(a, b, channel, phase, t, n, limit, sums);
    else if (a.out.dtype == Dtype::bf16)
        store_outputs<bf16>(a, b, channel, phase, t, n, limit, sums);
    else store_outputs<f16>(a, b, channel, phase, t, n, limit, sums);
}

}  // namespace MC_ISA
}  // namespace mingcore
