// Inverse complex FFT of h points: Stockham's autosort passes of radix 2 to 8, on split real and
// imaginary parts. `table` is made by the Python adapter of the op: the roots of unity of every
// radix, then per pass, for each output j = 1..r-1, the twiddles w^(p j) of all p (cosines, then
// sines). The first pass has p in the lanes and interleaves when it stores; in later passes the
// lanes are sequences that are contiguous already.
#pragma once
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {

struct Complex {
    float *re, *im;
};

// outputs j of one butterfly of R inputs: sum_i in[i] root^(i j), times the twiddle of j.
template <int R>
MC_INLINE void butterfly(const float* roots, const F* re, const F* im, F* to_re, F* to_im) {
    for (int j = 0; j < R; ++j) {
        F a = re[0], b = im[0];
        for (int i = 1; i < R; ++i) {
            const F c = set1(roots[2 * (i * j % R)]), s = set1(roots[2 * (i * j % R) + 1]);
            a = fma(re[i], c, fma(sub(zero(), im[i]), s, a));
            b = fma(re[i], s, fma(im[i], c, b));
        }
        to_re[j] = a;
        to_im[j] = b;
    }
}
// Complex multiplication by a twiddle factor.
MC_INLINE void twiddle(F& re, F& im, F c, F s) {
    const F a = fma(re, c, mul(sub(zero(), im), s));
    im = fma(re, s, mul(im, c));
    re = a;
}

// s interleaved sequences; m = (points of a sequence) / R.
template <int R>
static void pass(const float* roots, const float* table, int64_t s, int64_t m, Complex x,
                 Complex y) {
    F re[R], im[R], to_re[R], to_im[R];
    const float* const tw = table;  // [R - 1][2][m]
    if (s == 1) {
        for (int64_t p = 0; p < m; p += W) {
            const int n = m - p < W ? (int)(m - p) : W;
            for (int i = 0; i < R; ++i) {
                re[i] = loadn(x.re + p + m * i, n);
                im[i] = loadn(x.im + p + m * i, n);
            }
            butterfly<R>(roots, re, im, to_re, to_im);
            float a[R][W], b[R][W];
            for (int j = 0; j < R; ++j) {
                if (j)
                    twiddle(to_re[j], to_im[j], loadn(tw + (2 * j - 2) * m + p, n),
                            loadn(tw + (2 * j - 1) * m + p, n));
                store(a[j], to_re[j]);
                store(b[j], to_im[j]);
            }
            for (int k = 0; k < n; ++k)
                for (int j = 0; j < R; ++j) {
                    y.re[(p + k) * R + j] = a[j][k];
                    y.im[(p + k) * R + j] = b[j][k];
                }
        }
        return;
    }
    for (int64_t p = 0; p < m; ++p)
        for (int64_t q = 0; q < s; q += W) {
            const int n = s - q < W ? (int)(s - q) : W;
            for (int i = 0; i < R; ++i) {
                re[i] = loadn(x.re + q + s * (p + m * i), n);
                im[i] = loadn(x.im + q + s * (p + m * i), n);
            }
            butterfly<R>(roots, re, im, to_re, to_im);
            for (int j = 0; j < R; ++j) {
                if (j)
                    twiddle(to_re[j], to_im[j], set1(tw[(2 * j - 2) * m + p]),
                            set1(tw[(2 * j - 1) * m + p]));
                storen(y.re + q + s * (R * p + j), to_re[j], n);
                storen(y.im + q + s * (R * p + j), to_im[j], n);
            }
        }
}

constexpr int MAX_RADIX = 8;

// x [h] -> its transform, in x or y: returns where. radices: zero-terminated. table: [2 * MAX_RADIX
// * (MAX_RADIX + 1)] roots (of radix r at 2 * MAX_RADIX * r), then the passes.
static Complex inverse_fft(const int32_t* radices, const float* table, int64_t h, Complex x,
                           Complex y) {
    const float* tw = table + 2 * MAX_RADIX * (MAX_RADIX + 1);
    int64_t s = 1, points = h;
    for (; *radices; ++radices) {
        const int r = *radices;
        const int64_t m = points / r;
        const float* roots = table + 2 * MAX_RADIX * r;
        switch (r) {
            case 2: pass<2>(roots, tw, s, m, x, y); break;
            case 3: pass<3>(roots, tw, s, m, x, y); break;
            case 4: pass<4>(roots, tw, s, m, x, y); break;
            case 5: pass<5>(roots, tw, s, m, x, y); break;
            case 7: pass<7>(roots, tw, s, m, x, y); break;
            default: pass<8>(roots, tw, s, m, x, y);
        }
        tw += 2 * (r - 1) * m;
        s *= r;
        points = m;
        const Complex t = x;
        x = y, y = t;
    }
    return x;
}

}  // namespace MC_ISA
}  // namespace mingcore
