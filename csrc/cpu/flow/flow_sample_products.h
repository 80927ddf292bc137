// The products of a block and their fused epilogues, on a panel's sums while they are in L1.
#pragma once
#include "cpu/flow/flow_sample_operands.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t PART_ROWS = PART_TILES * ROWS;

struct Sums {         // of one thread, for its current task
    float* c;         // [panels][rows][32]
    float* factor;    // [rows]: the scale, or 1 / rms, of the operand's rows
    int32_t* offset;  // [rows]: VNNI's correction, by which the int32 sums are too large
};

template <class T>
void multiply(const PackedRows& x, int t0, int t1, const char* panel, int count, const char* after,
              float* c) {
    const T* at[MAX_UNITS];
    for (int i = 0; i < count; ++i) at[i] = (const T*)panel + i * x.K * PANEL;
    panel_gemm(x, t0, t1, at, count, (const T*)after, c);
}

// c [count][rows of t0..t1][32] = x @ panels.
void multiply(Dtype dtype, const PackedRows& x, int t0, int t1, const char* panel, int count,
              const char* after, float* c) {
    if (dtype == Dtype::f32) multiply<float>(x, t0, t1, panel, count, after, c);
    else if (dtype == Dtype::bf16) multiply<bf16>(x, t0, t1, panel, count, after, c);
    else if (dtype == Dtype::f16) multiply<f16>(x, t0, t1, panel, count, after, c);
    else if (dtype == Dtype::i8) multiply<int8_t>(x, t0, t1, panel, count, after, c);
    else multiply<vnni4>(x, t0, t1, panel, count, after, c);
}

// The row factors of the rows i0.. of a product's sums.
void row_factors(const Product& m, int64_t i0, int64_t rows, const Sums& s) {
    const Operand& o = *m.x;
    const bool quantised = m.w->dtype == Dtype::u8;
    for (int64_t i = 0; i < rows; i += W) {
        const int n = (int)min(rows - i, W);
        store(s.factor + i, quantised ? loadn(o.scale + i0 + i, n) : inverse_rms(o, i0 + i, n));
    }
    for (int64_t i = 0; quantised && i < rows; ++i) {
        int32_t sum = 0;
        for (int64_t c = 0; c < o.chunks(); ++c) sum += o.sums[c * o.rows16 + i0 + i];
        s.offset[i] = cpu_vnni ? 128 * sum : 0;
    }
}

// The product from its sums, in place: factors, scales and bias, for columns col.. .
void scale_sums(const FlowMatrix& w, const FlowVector& v, int layer, int64_t col, int64_t rows,
                const Sums& s, float* c) {
    float bias[PANEL] = {0}, scale[PANEL];
    const int64_t n = min(v.n - col, PANEL);
    read_vector(v, layer, col, n, bias);
    for (int64_t j = 0; j < PANEL; ++j) scale[j] = 1;
    if (w.scale) read_values(w.scale + layer * w.n + col, n, scale);
    for (int64_t r = 0; r < rows; ++r, c += PANEL)
        for (int j = 0; j < PANEL; j += W) {
            F y = load(c + j);
            if (w.dtype == Dtype::u8) y = to_float(add(load_int(c + j), set1_int(-s.offset[r])));
            store(c + j, fma(mul(y, set1(s.factor[r])), load(scale + j), load(bias + j)));
        }
}

void store_qkv(const Plan& p, const Product& m, int layer, int64_t i0, int64_t n, int64_t col,
               const float* c) {
    const int columns = (int)min(3 * p.a->H - col, PANEL);
    for (int64_t i = i0; i < i0 + n; ++i, c += PANEL) {
        int64_t rows[2] = {i, -1};
        if (m.set == Set::unique) rows[0] = p.copy[i], rows[1] = p.second_copy[i];
        else if (m.set == Set::last) rows[0] = p.last_row(i);
        for (int64_t row : rows) {
            if (row < 0) continue;
            float* to = (layer ? p.qkv : p.first_qkv) + row * p.qkv_row + col;
            for (int j = 0; j < columns; j += W)
                storen(to + j, load(c + j), (int)min(columns - j, W));
        }
    }
}

// The epilogue of one panel of a product: members i0..i0+n of its rows, sums in c.
void epilogue(const Plan& p, const Phase& f, const Product& m, int64_t panel, int64_t i0, int64_t n,
              const Sums& s, float* c) {
    const FlowSampleArgs& a = *p.a;
    const int64_t col = panel * PANEL, i1 = i0 + n;
    scale_sums(*m.w, a.bias[m.w - a.matrix], m.layer, col, n, s, c);
    if (f.step == Step::qkv) return store_qkv(p, m, m.layer, i0, n, col, c);
    if (f.step == Step::up) {
        for (float* y = c; y < c + n * PANEL; y += W) store(y, gelu_tanh(load(y)));
        return pack_operand(p.hidden, m.rows.rows, i0, i1, col, nullptr,
                            [=](int64_t i) { return c + (i - i0) * PANEL; });
    }
    if (f.step == Step::final) {
        for (int64_t i = i0; i < i1; ++i, c += PANEL)
            for (int j = 0; j < PANEL; j += W)
                store(p.velocity + i * p.state_row + col + j, load(c + j));
        return;
    }
    float* x = p.x + panel * p.rows * PANEL;
    for (int64_t i = i0; i < i1; ++i, c += PANEL) {
        float* to = x + (m.set == Set::last ? p.last_row(i) : i) * PANEL;
        for (int j = 0; j < PANEL; j += W) store(to + j, add(load(to + j), load(c + j)));
    }
    if (f.step == Step::out) return pack_stream(p, m.set, f.e, i0, i1, panel, a.norm[1], f.block);
    if (p.is_last(f.block)) return pack_stream(p, Set::last, f.e, i0, i1, panel, a.norm[2], 0);
    pack_stream(p, Set::every, f.e, i0, i1, panel, a.norm[0], f.block + 1);
    if (p.is_last(f.block + 1))
        pack_stream(p, Set::last, f.e, p.last_before(i0), p.last_before(i1), panel, a.norm[0],
                    f.block + 1);
}

void run_quantise(const Plan& p, const Phase& f, int64_t task) {
    const Product& m = f.product_at(task);
    quantise(*m.x, m.rows.rows, (int)(task % m.rows.tiles), task / m.rows.tiles);
}

void run_product(const Plan& p, const Phase& f, int64_t task, const char* after, const Sums& s) {
    const Product& m = f.product_at(task);
    const int64_t panel = task / m.parts * m.group;
    const int count = (int)min(m.panels - panel, m.group), part = (int)(task % m.parts);
    const int t0 = m.rows.tiles * part / m.parts, t1 = m.rows.tiles * (part + 1) / m.parts;
    const int64_t i0 = m.rows.begin(t0), n = m.rows.begin(t1) - i0;
    multiply(m.w->dtype, m.rows, t0, t1, m.panel(m.first + panel), count, after, s.c);
    row_factors(m, i0, n, s);
    for (int i = 0; i < count; ++i)
        epilogue(p, f, m, m.first + panel + i, i0, n, s, s.c + i * n * PANEL);
}

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
