#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct ExpertMatrix {  // expert e at data + e * expert; `row`: the row stride of layout rows
    const void* data;  // null where absent
    int64_t expert, row;
    const float* scale;  // [E, N] of quantised weights, one per output row, or null
    int64_t scale_expert;
};

struct MoeMlpArgs {  // out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t])
    const void* x;
    Dtype x_dtype;
    int64_t T, K, E, H, I, shared_I, x_row;
    Dtype w_dtype;
    Layout layout;  // rows; or panels, then gate_up is panels_swiglu
    ExpertMatrix gate_up, down, shared_gate_up, shared_down;
    const float* weights;
    int64_t weights_row, weights_column;  // [T, K]
    const int32_t* ids;
    int64_t ids_row, ids_column;  // [T, K]
    void* out;
    Dtype out_dtype;
    int64_t out_row;  // [T, H]
    int threads;
};

}  // namespace mingcore
