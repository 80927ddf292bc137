#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct RouteTopkArgs {  // logits [T, E] -> the K largest of each row, and their softmax
    const void* logits;
    Dtype dtype;
    int64_t T, E, K, row, column;
    bool renormalize;
    float* weights;  // [T, K], dense
    int32_t* ids;    // [T, K], dense
    int threads;
};

}  // namespace mingcore
