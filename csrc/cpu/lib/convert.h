// Loads and stores of a part of a vector, of one element, and of whole rows between element types.
#pragma once
#include "cpu/lib/simd.h"
#include "cpu/lib/types.h"

namespace mingcore {
namespace MC_ISA {

// The first n <= W elements; the rest read as zero, and is never touched.
template <class T>
MC_INLINE F load_part(const T* p, int n) {
    return n == W ? load(p) : loadn(p, n);
}
template <class T>
MC_INLINE void store_part(T* p, F v, int n) {
    if (n == W) store(p, v);
    else storen(p, v, n);
}
// Elements i.. of a vector whose type is known at run time only.
MC_INLINE F load_part(const void* p, Dtype dtype, int64_t i, int n) {
    if (dtype == Dtype::f32) return load_part((const float*)p + i, n);
    if (dtype == Dtype::bf16) return load_part((const bf16*)p + i, n);
    return load_part((const f16*)p + i, n);
}

template <class T>
MC_INLINE float load_one(const T* p) {
    float lanes[W];
    store(lanes, loadn(p, 1));
    return lanes[0];
}
MC_INLINE float load_one(const float* p) { return *p; }

// n elements from one type to another, float32 in between.
template <class X, class Y>
MC_INLINE void convert_row(const X* from, int64_t n, Y* to) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i));
    if (i < n) storen(to + i, loadn(from + i, (int)(n - i)), (int)(n - i));
}

}  // namespace MC_ISA
}  // namespace mingcore
