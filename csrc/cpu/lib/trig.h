// Vectorised sin, cos and tanh, and the activations of convolutions on them: ELU, tanh, Snake. By
// range reduction (Cody and Waite) and minimax polynomials of our own. Error on float32 inputs
// against float64: sin and cos 6e-8 absolute up to |x| = 1e4 (beyond: libm in double, lane by
// lane), tanh 1.5e-7 relative.
#pragma once
#include <math.h>

#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {

constexpr float TRIG_LIMIT = 1e4f;  // up to here the products of n and the parts of pi are exact

// Only the lanes beyond the limit take libm: a lane's bits must not depend on its neighbours.
MC_INLINE M near(F x) { return less(abs(x), set1(TRIG_LIMIT)); }
MC_INLINE bool all_near(M near) { return __builtin_expect(all(near), 1); }

// r + r s P(s), s = r^2, for |r| <= pi/2: relative error 6e-9 before rounding.
MC_INLINE F sin_reduced(F r) {
    const F s = mul(r, r);
    F p = set1(2.605780557e-6f);
    p = fma(p, s, set1(-1.980960289e-4f));
    p = fma(p, s, set1(8.333066246e-3f));
    p = fma(p, s, set1(-1.666665955e-1f));
    return fma(mul(r, s), p, r);
}

// sin(x)^2 for |x| < TRIG_LIMIT: reduced by multiples of pi, as the sign of sin does not matter.
MC_INLINE F sin_squared_near(F x) {
    const F n = round(mul(x, set1(0.318309886f)));
    F r = fma(n, set1(-3.140625f), x);
    r = fma(n, set1(-9.675025939941406e-4f), r);
    r = fma(n, set1(-1.5099580252808664e-7f), r);
    const F y = sin_reduced(r);
    return mul(y, y);
}
__attribute__((noinline)) static void sin_squared_libm(const float* x, float* out) {
    for (int i = 0; i < W; ++i) {
        const double y = sin((double)x[i]);
        out[i] = (float)(y * y);
    }
}

struct SinCos {
    F sin, cos;
};
__attribute__((noinline)) static void sincos_libm(const float* x, float* s, float* c) {
    for (int i = 0; i < W; ++i) {
        s[i] = (float)::sin((double)x[i]);
        c[i] = (float)::cos((double)x[i]);
    }
}
MC_INLINE SinCos sincos_near(F x) {
    const F n = round(mul(x, set1(0.636619772f)));
    F r = fma(n, set1(-1.5703125f), x);
    r = fma(n, set1(-4.837512969970703e-4f), r);
    r = fma(n, set1(-7.549790126404332e-8f), r);
    const F s = mul(r, r);
    F p = set1(-1.950694199e-4f);
    p = fma(p, s, set1(8.332099748e-3f));
    p = fma(p, s, set1(-1.666665365e-1f));
    const F sine = fma(mul(r, s), p, r);
    F q = set1(2.442921104e-5f);
    q = fma(q, s, set1(-1.388728891e-3f));
    q = fma(q, s, set1(4.166664531e-2f));
    const F cosine = fma(mul(s, s), q, fma(s, set1(-0.5f), set1(1.0f)));
    // the quadrant, n mod 4, in 0..3
    const F quadrant = fma(round(fma(n, set1(0.25f), set1(-0.375f))), set1(-4.0f), n);
    const F odd = sub(quadrant, mul(set1(2.0f), round(fma(quadrant, set1(0.5f), set1(-0.25f)))));
    const M swap = less(set1(0.5f), odd);
    F a = select(swap, cosine, sine), b = select(swap, sine, cosine);
    a = select(less(set1(1.5f), quadrant), sub(zero(), a), a);
    const M negative = less(abs(sub(quadrant, set1(1.5f))), set1(1.0f));  // quadrants 1 and 2
    b = select(negative, sub(zero(), b), b);
    return {a, b};
}
MC_INLINE SinCos sincos(F x) {
    const M close = near(x);
    SinCos y = sincos_near(x);
    if (!all_near(close)) {
        float in[W], s[W], c[W];
        store(in, x);
        sincos_libm(in, s, c);
        y = {select(close, y.sin, load(s)), select(close, y.cos, load(c))};
    }
    return y;
}

// |x| < 0.6: x + x^3 P(x^2); above: 1 - 2 / (exp 2|x| + 1).
MC_INLINE F tanh(F x) {
    const F s = mul(x, x), a = abs(x);
    F p = set1(-5.895156370e-3f);
    p = fma(p, s, set1(2.079597080e-2f));
    p = fma(p, s, set1(-5.378383023e-2f));
    p = fma(p, s, set1(1.333192413e-1f));
    p = fma(p, s, set1(-3.333329800e-1f));
    p = fma(mul(x, s), p, x);
    const F t = div(set1(2.0f), add(exp(add(a, a)), set1(1.0f)));
    return select(less(a, set1(0.6f)), p, copysign(sub(set1(1.0f), t), x));
}

// x for x > 0, else exp x - 1 without cancellation: exp's own polynomial is that of exp r - 1.
MC_INLINE F elu(F x) {
    const F y = max(set1(-104.0f), x);
    const F n = min(zero(), round(mul(y, set1(1.44269504f))));
    F r = fma(n, set1(-0.693359375f), y);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.395070868e-3f);
    p = fma(p, r, set1(8.369018493e-3f));
    p = fma(p, r, set1(4.166620262e-2f));
    p = fma(p, r, set1(1.666651778e-1f));
    p = fma(p, r, set1(5.000000096e-1f));
    p = fma(mul(r, r), p, r);
    const F scale = scale2(set1(1.0f), n);
    return select(less(zero(), x), x, fma(scale, p, sub(scale, set1(1.0f))));
}

// x + gain sin(alpha x)^2
MC_INLINE F snake(F x, F alpha, F gain) {
    const F angle = mul(alpha, x);
    const M close = near(angle);
    F y = sin_squared_near(angle);
    if (!all_near(close)) {
        float in[W], out[W];
        store(in, angle);
        sin_squared_libm(in, out);
        y = select(close, y, load(out));
    }
    return fma(gain, y, x);
}

}  // namespace MC_ISA
}  // namespace mingcore
