// spectrum_head: a batch of inverse FFTs of n = F / 2 complex points in shared memory. Stockham's
// autosort algorithm, mixed radix: no bit reversal, two buffers, one barrier per pass.
#pragma once
#include "spectrum/overlap_rows.cuh"

constexpr int INVERSE_THREADS = 512;

struct alignas(8) Complex {
    float re, im;
};
__device__ __forceinline__ Complex operator+(Complex a, Complex b) {
    return {a.re + b.re, a.im + b.im};
}
__device__ __forceinline__ Complex operator-(Complex a, Complex b) {
    return {a.re - b.re, a.im - b.im};
}
__device__ __forceinline__ Complex operator*(Complex a, Complex b) {
    return {fmaf(a.re, b.re, -a.im * b.im), fmaf(a.re, b.im, a.im * b.re)};
}
__device__ __forceinline__ Complex times_i(Complex a) { return {-a.im, a.re}; }

// cosines and sines of 2 pi i / R, i = 1..(R - 1) / 2
__device__ constexpr float root_cosine(int R, int i) {
    if (R == 3) return -0.5f;
    if (R == 5) return i == 1 ? 0.309016994f : -0.809016994f;
    return i == 1 ? 0.623489802f : i == 2 ? -0.222520934f : -0.900968868f;
}
__device__ constexpr float root_sine(int R, int i) {
    if (R == 3) return 0.866025404f;
    if (R == 5) return i == 1 ? 0.951056516f : 0.587785252f;
    return i == 1 ? 0.781831482f : i == 2 ? 0.974927912f : 0.433883739f;
}

// An inverse DFT of R points: x[j] = sum_i x[i] e^(2 pi sqrt(-1) i j / R).
template <int R>
struct Butterfly {  // odd R: inputs i and R - i, and outputs j and R - j, share products
    static __device__ __forceinline__ void run(Complex (&x)[R]) {
        constexpr int N = (R - 1) / 2;
        Complex plus[N], minus[N], y[R];
        y[0] = x[0];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            plus[i] = x[1 + i] + x[R - 1 - i];
            minus[i] = x[1 + i] - x[R - 1 - i];
            y[0] = y[0] + plus[i];
        }
#pragma unroll
        for (int j = 1; j <= N; ++j) {
            Complex a = x[0], b = {0, 0};
#pragma unroll
            for (int i = 1; i <= N; ++i) {
                const int k = i * j % R;  // cos(-k) = cos k, sin(-k) = -sin k
                const float c = root_cosine(R, k <= N ? k : R - k);
                const float s = k <= N ? root_sine(R, k) : -root_sine(R, R - k);
                a = {fmaf(plus[i - 1].re, c, a.re), fmaf(plus[i - 1].im, c, a.im)};
                b = {fmaf(minus[i - 1].re, s, b.re), fmaf(minus[i - 1].im, s, b.im)};
            }
            y[j] = a + times_i(b);
            y[R - j] = a - times_i(b);
        }
#pragma unroll
        for (int j = 0; j < R; ++j) x[j] = y[j];
    }
};
template <>
struct Butterfly<2> {
    static __device__ __forceinline__ void run(Complex (&x)[2]) {
        const Complex a = x[0], b = x[1];
        x[0] = a + b;
        x[1] = a - b;
    }
};
template <>
struct Butterfly<4> {
    static __device__ __forceinline__ void run(Complex (&x)[4]) {
        const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = times_i(x[1] - x[3]);
        x[0] = a + c;
        x[1] = b + d;
        x[2] = a - c;
        x[3] = b - d;
    }
};
template <>
struct Butterfly<8> {
    static __device__ __forceinline__ void run(Complex (&x)[8]) {
        Complex even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
        Butterfly<4>::run(even);
        Butterfly<4>::run(odd);
        const float r = 0.707106781f;
        odd[1] = Complex{r * (odd[1].re - odd[1].im), r * (odd[1].re + odd[1].im)};
        odd[2] = times_i(odd[2]);
        odd[3] = Complex{-r * (odd[3].re + odd[3].im), r * (odd[3].re - odd[3].im)};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            x[j] = even[j] + odd[j];
            x[j + 4] = even[j] - odd[j];
        }
    }
};

// One radix-R pass of `frames` transforms of n points; s interleaved sequences of n / s points.
template <int R>
__device__ __forceinline__ void pass(const Complex* twiddles, const Complex* from, Complex* to,
                                     int frames, int n, int s) {
    const int each = n / R, m = each / s;  // butterflies of a frame, of a sequence
    for (int e = threadIdx.x; e < frames * each; e += INVERSE_THREADS) {
        const int frame = e / each, u = e - frame * each, q = u % s, w = u / s;
        const Complex* in = from + frame * n + q + s * w;
        Complex *out = to + frame * n + q + s * R * w, x[R];
#pragma unroll
        for (int i = 0; i < R; ++i) x[i] = in[s * m * i];
        Butterfly<R>::run(x);
        out[0] = x[0];
#pragma unroll
        for (int j = 1; j < R; ++j)
            out[s * j] = x[j] * twiddles[2 * s * w * j];  // of n points: every other one of 2n
    }
}

// `frames` transforms of n points, ping-pong between the buffers; returns the one written last.
__device__ __forceinline__ Complex* inverse_fft(const OverlapParams& p, Complex* from, Complex* to,
                                                int frames, int n) {
    const Complex* twiddles = (const Complex*)p.twiddles;
    int s = 1;
    for (int k = 0; p.radices[k]; ++k) {
        switch (p.radices[k]) {
            case 2: pass<2>(twiddles, from, to, frames, n, s); break;
            case 3: pass<3>(twiddles, from, to, frames, n, s); break;
            case 4: pass<4>(twiddles, from, to, frames, n, s); break;
            case 5: pass<5>(twiddles, from, to, frames, n, s); break;
            case 7: pass<7>(twiddles, from, to, frames, n, s); break;
            default: pass<8>(twiddles, from, to, frames, n, s);
        }
        __syncthreads();
        s *= p.radices[k];
        Complex* const free = from;
        from = to;
        to = free;
    }
    return from;
}
