// Vectorised exp, erf and the activations on them, by range reduction and weighted minimax
// polynomials of our own. Error on float32 inputs against float64: exp 1.0e-7 relative, erf 1.2e-7
// relative.
#pragma once
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {

MC_INLINE float first_lane(F v) {
    float lanes[W];
    store(lanes, v);
    return lanes[0];
}
MC_INLINE float sum_lanes(F v) {
    float lanes[W], sum = 0;
    store(lanes, v);
    for (float each : lanes) sum += each;
    return sum;
}
MC_INLINE float max_lanes(F v) {
    float lanes[W];
    store(lanes, v);
    float largest = lanes[0];
    for (float each : lanes) largest = each > largest ? each : largest;
    return largest;
}

// exp(x) = 2^n * exp(r), r = x - n ln 2. Clamped to [-104, 88.8]: below is 0, above infinity.
MC_INLINE F exp(F x) {
    x = min(set1(88.8f), max(set1(-104.0f), x));
    const F n = round(mul(x, set1(1.44269504f)));
    F r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.395070868e-3f);
    p = fma(p, r, set1(8.369018493e-3f));
    p = fma(p, r, set1(4.166620262e-2f));
    p = fma(p, r, set1(1.666651778e-1f));
    p = fma(p, r, set1(5.000000096e-1f));
    p = fma(mul(r, r), p, r);
    return scale2(add(p, set1(1.0f)), n);
}

// |x| < 0.95: x + x P(x^2); above: 1 - exp(-Q(|x|)) with Q fitted to -log erfc on [0.95, 4].
MC_INLINE F erf(F x) {
    const F a = abs(x), s = mul(x, x);
    F p = set1(-5.886773774e-4f);
    p = fma(p, s, set1(4.973116895e-3f));
    p = fma(p, s, set1(-2.675333472e-2f));
    p = fma(p, s, set1(1.128146655e-1f));
    p = fma(p, s, set1(-3.761246268e-1f));
    p = fma(p, s, set1(1.283791454e-1f));
    p = fma(p, x, x);
    const F t = min(set1(4.0f), a);
    F q = set1(1.915053061e-4f);
    q = fma(q, t, set1(-2.999551782e-3f));
    q = fma(q, t, set1(2.205204022e-2f));
    q = fma(q, t, set1(-1.035669782e-1f));
    q = fma(q, t, set1(-6.375999431e-1f));
    q = fma(q, t, set1(-1.127426142f));
    q = fma(q, t, set1(-2.564325079e-4f));
    q = copysign(sub(set1(1.0f), exp(q)), x);
    return select(less(a, set1(0.95f)), p, q);
}

MC_INLINE F silu(F x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }
MC_INLINE F gelu(F x) {
    const F h = mul(x, set1(0.5f));
    return fma(h, erf(mul(x, set1(0.70710678f))), h);
}
// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
MC_INLINE F gelu_tanh(F x) {
    const F x2 = mul(x, x);
    const F u2 = mul(mul(x, set1(1.59576912f)), fma(x2, set1(0.044715f), set1(1.0f)));
    return div(x, add(set1(1.0f), exp(sub(zero(), u2))));
}

}  // namespace MC_ISA
}  // namespace mingcore
