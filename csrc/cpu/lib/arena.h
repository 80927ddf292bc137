// Integer arithmetic of sizes, and an arena: the pieces of one workspace.
#pragma once
#include "cpu/lib/simd.h"
#include "cpu/lib/types.h"

namespace mingcore {
namespace MC_ISA {

MC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MC_INLINE int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }
MC_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
MC_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

MC_INLINE int64_t element_bytes(Dtype dtype) {
    return dtype == Dtype::f32 ? 4 : dtype == Dtype::i8 || dtype == Dtype::u8 ? 1 : 2;
}

namespace {

// A bump allocator over one block, 64-byte aligned; without a base it only counts the bytes.
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
