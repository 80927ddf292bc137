#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct ReadProbeArgs {  // reads bfloat16 vectors of `bytes` at `data`
    const void* data;
    int64_t bytes;
    int threads, streams;  // streams: 1, 2, 4 or 8 per thread
    int64_t ahead;         // prefetch distance in bytes, in each stream; 0: the hardware's own
};

}  // namespace mingcore
