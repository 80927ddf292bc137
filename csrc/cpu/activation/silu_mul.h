#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct SiluMulArgs {  // out = silu(gate_up[:, :I]) * gate_up[:, I:]
    const void* gate_up;
    void* out;
    Dtype dtype;
    int64_t M, I, gate_up_row, out_row;
    int threads;
};

}  // namespace mingcore
