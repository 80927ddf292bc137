#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

// Over the last dimension of x [M, H]: rms_norm of s = x + residual, layer_norm of x.
struct NormArgs {
    const void *x, *residual;  // residual: null where absent
    Dtype dtype;               // of x, residual, sum and out
    int64_t M, H, x_row, residual_row;
    const void *weight, *bias;  // [H]; bias: null where absent
    Dtype weight_dtype, bias_dtype;
    void *out, *sum;  // sum: s, rounded, null without residual
    int64_t out_row, sum_row;
    float eps;
    int threads;
};

}  // namespace mingcore
