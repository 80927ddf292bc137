// Dynamic int8 quantisation of activations, for products with VNNI-4 weights ("int8_dyn"): the
// operations of `quantise_activations` of mingcore.ops, in its order, so that every backend and
// every instruction set gets the same integers. a = max|row|; q = round_to_even(x (127 / a)); scale
// = a / 127.
#pragma once
#include "cpu/lib/simd_int.h"

namespace mingcore {
namespace MC_ISA {

MC_INLINE int64_t vnni4_words(int64_t K) { return (K + 3) / 4; }  // of a row of K

// q [4 vnni4_words(K)] from x [K], zero padded; its scale and the sum of q. A row with a NaN or an
// infinity becomes zeros with a scale that makes its products NaN.
template <class T>
static void quantise_row(const T* x, int64_t K, int8_t* q, float* scale, int32_t* sum) {
    I largest = zero_int();  // as bits, which order as the numbers do, NaN above all
    for (int64_t k = 0; k < K; k += W)
        largest = max(largest, as_int(abs(K - k < W ? loadn(x + k, (int)(K - k)) : load(x + k))));
    int32_t lanes[W], total = 0;
    store_int(lanes, largest);
    for (int32_t lane : lanes) lanes[0] = lane > lanes[0] ? lane : lanes[0];
    float a;
    memcpy(&a, lanes, 4);
    *scale = a / 127.0f;
    const F inverse = set1(a > 0 ? 127.0f / a : 0.0f);
    I sums = zero_int();
    for (int64_t k = 0; k < K; k += W) {
        const int n = K - k < W ? (int)(K - k) : W;
        F v = mul(n == W ? load(x + k) : loadn(x + k, n), inverse);
        v = min(set1(127.0f), max(set1(-127.0f), v));  // NaN stays
        const I i = to_int(select(less(abs(v), set1(128.0f)), v, zero()));
        storen(q + k, i, n);
        sums = add(sums, i);
    }
    for (int64_t k = K; k < 4 * vnni4_words(K); ++k) q[k] = 0;
    store_int(lanes, sums);
    for (int32_t lane : lanes) total += lane;
    *sum = total;
}

}  // namespace MC_ISA
}  // namespace mingcore
