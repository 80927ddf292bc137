// GEMM epilogue: bias, activation, residual and rounding, on a product's sums while they are in L1.
#pragma once
#include "cpu/lib/gemm.h"
#include "cpu/lib/types.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {

// out = act(sums + bias) + residual. bias [N] or null, N = 2 * outputs for swiglu (gates first);
// residual and out [M, outputs] with row strides.
struct Epilogue {
    const void* bias;
    Dtype bias_dtype;
    const void* residual;
    Dtype residual_dtype;
    int64_t residual_row;
    void* out;
    Dtype out_dtype;
    int64_t out_row;
    int64_t outputs;
    Act act;
};

template <class T>
MC_INLINE void read32(const void* base, int64_t at, int n, float* to) {
    const T* p = (const T*)base + at;
    for (int j = 0; j < PANEL; j += W) {
        const int m = n - j;
        store(to + j, m >= W ? load(p + j) : m > 0 ? loadn(p + j, m) : zero());
    }
}
MC_INLINE void read32(const void* base, Dtype dtype, int64_t at, int n, float* to) {
    if (dtype == Dtype::f32) read32<float>(base, at, n, to);
    else if (dtype == Dtype::bf16) read32<bf16>(base, at, n, to);
    else read32<f16>(base, at, n, to);
}
template <class T>
MC_INLINE void write32(void* base, int64_t at, int n, const F* v) {
    T* p = (T*)base + at;
    for (int j = 0; j < PANEL / W; ++j) {
        const int m = n - j * W;
        if (m >= W) store(p + j * W, v[j]);
        else if (m > 0) storen(p + j * W, v[j], m);
    }
}

MC_INLINE F activate(Act act, F v) {
    switch (act) {
        case Act::silu: return silu(v);
        case Act::gelu: return gelu(v);
        case Act::gelu_tanh: return gelu_tanh(v);
        default: return v;
    }
}

// The columns of one micro-panel for the rows [row, row + rows) of residual and out; sums
// [rows][32]: 32 columns, or for swiglu 16 gates and their 16 ups.
static void apply_epilogue(const Epilogue& e, int64_t row, int rows, int64_t panel,
                           const float* sums) {
    const bool swiglu = e.act == Act::swiglu;
    const int width = swiglu ? 16 : PANEL;
    const int64_t col = panel * width, left = e.outputs - col;
    const int n = left < width ? (int)left : width;
    float bias[PANEL] = {0}, residual[PANEL] = {0};
    if (e.bias) {
        read32(e.bias, e.bias_dtype, col, n, bias);
        if (swiglu) {
            float up[PANEL];
            read32(e.bias, e.bias_dtype, e.outputs + col, n, up);
            for (int j = 0; j < 16; j += W) store(bias + 16 + j, load(up + j));
        }
    }
    for (int r = 0; r < rows; ++r, sums += PANEL) {
        F v[PANEL / W];
        if (e.residual)
            read32(e.residual, e.residual_dtype, (row + r) * e.residual_row + col, n, residual);
        for (int j = 0; j < PANEL; j += W) v[j / W] = add(load(sums + j), load(bias + j));
        if (swiglu)
            for (int j = 0; j < 16 / W; ++j) v[j] = mul(silu(v[j]), v[j + 16 / W]);
        else
            for (F& each : v) each = activate(e.act, each);
        for (int j = 0; j < PANEL; j += W) v[j / W] = add(v[j / W], load(residual + j));
        const int64_t at = (row + r) * e.out_row + col;
        if (e.out_dtype == Dtype::f32) write32<float>(e.out, at, n, v);
        else if (e.out_dtype == Dtype::bf16) write32<bf16>(e.out, at, n, v);
        else write32<f16>(e.out, at, n, v);
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
