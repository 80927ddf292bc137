#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct OverlapAddArgs {  // out = sum(window * frame) / sum(window^2), "same" trimmed
    int64_t B, T, F, hop, outputs;
    const float* frames;  // [B, T, F]; the last dimension dense
    int64_t frames_batch, frames_row;
    const float* window;     // [F]
    const float* numerator;  // [B, F - hop] or null
    float* numerator_out;    // may be `numerator`
    StreamRows rows;
    float* out;  // [B, outputs]
    int64_t out_row;
    int threads;
};

}  // namespace mingcore
