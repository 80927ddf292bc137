#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct AttentionDecodeArgs {  // see mingcore.ops.attention_decode
    Heads q, k, v, out;
    Heads k_scale, v_scale;               // float32, of caches in int8; else their data is null
    Dtype dtype;                          // of q, out and caches without scales
    int64_t B, T, Hq, Hkv, D, S, window;  // window 0: none
    Positions positions;
    float scale;
    int threads;
};

}  // namespace mingcore
