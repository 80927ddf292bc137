#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct LinearArgs {  // out = act(x @ w.T + bias) + residual
    const void* x;
    Dtype x_dtype;
    int64_t M, K, x_row;
    const void* w;
    Dtype w_dtype;
    Layout layout;
    int64_t N, w_row;    // w_row: only for rows
    const float* scale;  // [N], for i8 and u8
    const void* bias;
    Dtype bias_dtype;  // [N] or null
    const void* residual;
    Dtype residual_dtype;
    int64_t residual_row;  // [M, N_out] or null
    void* out;
    Dtype out_dtype;
    int64_t out_row;  // [M, N_out]
    Act act;
    int threads;
};

}  // namespace mingcore
