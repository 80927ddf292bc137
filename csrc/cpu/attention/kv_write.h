#pragma once
#include "cpu/lib/types.h"

namespace mingcore {

struct KvWriteArgs {  // cache[b, positions[b, t] mod S] = new[b, t], of keys and of values
    Heads cache[2], from[2];
    int64_t B, T, S, Hn, D, element;  // element: bytes
    Positions positions;
    int threads;
};

}  // namespace mingcore
