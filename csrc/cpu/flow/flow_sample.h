#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct FlowMatrix {  // [layers][ceil(n / 32)] packed micro-panels, see Layout
    const void* data;
    Dtype dtype;
    int64_t n, k;
    const float* scale;  // [layers][n], one per output row of quantised weights, or null
};

struct FlowVector {  // [layers][n]; data is null when absent
    const void* data;
    Dtype dtype;
    int64_t n;
};

// The sampler: E evaluations of the velocity, and the step after each. See
// mingcore.ops.flow_sample.
struct FlowSampleArgs {
    int64_t B, N, P, C, L, H, W, E, heads, rope_heads;  // W: width of the MLP
    const void *condition, *history;                    // [B, matrix[0].k], [B, N, C], dense
    Dtype condition_dtype, history_dtype;
    const float *noise, *guidance;          // [at least 1 + steps with noise, B, P, C], [B]
    const float *times, *dt, *noise_scale;  // [E, H], [E], [E, B]
    const uint8_t* advance;                 // [E]
    const float *cos, *sin;                 // [1 + N + P, H / heads / 2]
    FlowMatrix matrix[7];                   // cond, x, qkv, out, up, down, final
    FlowVector bias[7];                     // of those
    FlowVector norm[5];                     // norm1, norm2, final; q, k or absent
    bool guided, quantised;                 // quantised: the blocks' matrices are VNNI-4
    float* out;                             // [B, P, C]
    int threads;
};

}  // namespace mingcore
