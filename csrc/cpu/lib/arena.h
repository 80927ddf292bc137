// Sizes, and the pieces of a workspace.
#pragma once
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

MC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MC_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MC_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out pieces of one block; without a base it only counts.
struct Arena {
    char* base;
    size_t used = 0;
    template <class T>
    T* take(int64_t n) {
        T* piece = (T*)(base + used);
        used += ((size_t)n * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
