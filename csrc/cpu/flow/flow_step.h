#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct Float3 {  // a [B, P, C] operand whose last dimension is dense; data is null when absent
    const void* data;
    Dtype dtype;
    int64_t batch, row;
};

struct FlowStepArgs {  // out = x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise
    Float3 x, v_cond, v_null, noise;
    const float* guidance;
    const float* noise_scale;  // [B]
    float* out;
    int64_t out_batch, out_row;  // may be x itself
    int64_t B, P, C;
    float dt;
    int threads;
};

}  // namespace mingcore
