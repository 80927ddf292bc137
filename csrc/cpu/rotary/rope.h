#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

// Rotates the first heads of x and copies the others, in up to three parts of consecutive heads.
struct RopeArgs {
    Heads x;
    Dtype dtype;
    int64_t B, T, D;
    struct Part {
        int64_t heads, rotated;
        Heads out;
    } part[3];
    int parts;
    const float *cos, *sin;  // [1 or B, T, D / 2]
    int64_t cos_batch, cos_token, sin_batch, sin_token;
    bool interleaved;
    int threads;
};

}  // namespace mingcore
