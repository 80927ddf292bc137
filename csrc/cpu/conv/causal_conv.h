#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

enum class ConvAct : int32_t { none, silu, elu, gelu, gelu_tanh, tanh, snake };

struct Operand3 {  // [B, C, L]: data is null when absent
    char* data;
    Dtype dtype;
    int64_t batch, channel, time;
};

struct Activation {  // alpha, gain [C] float32: for snake
    ConvAct act;
    const float *alpha, *gain;
};

// out = after(conv(before(x)) + bias) + residual. A transposed convolution comes as one of stride 1
// whose `up` outputs per channel (row c * up + r of its matrix) are interleaved in time.
struct CausalConvArgs {
    int64_t B, C, N, L, T;      // N output channels, T outputs
    Operand3 x, residual, out;  // time: 1 for x and residual; out any
    const void* context;        // [B, C, W] of x's type, or null: W = (taps - 1) dilation
    void* context_out;          // [B, C, W]; may be `context`
    StreamRows rows;
    const void* w;  // rows: [groups, N / groups * up, C / groups * taps]
    Dtype w_dtype;  // panels: [groups, panels, C / groups * taps, 32]
    Layout layout;
    int64_t groups, taps, stride, dilation, up, left_pad, flush;
    bool replicate;
    const void* bias;  // [N] or null
    Dtype bias_dtype;
    Activation before, after;
    int threads;
};

}  // namespace mingcore
