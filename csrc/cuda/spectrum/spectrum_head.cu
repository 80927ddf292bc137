// spectrum_head: hidden states to samples, an inverse STFT head. Two launches: spectrum, [m p] =
// x W^T + b with S = min(exp m, 100) (cos p + i sin p) as its epilogue; inverse, S to samples and state.
// arch: sm_80 sm_90a sm_100 compute_80
//
// Cost of a patch of the released head (H 896, F 1280, 5 frames): W once, 2.3 MB in 16 bits, 0.53 us
// at 4.3 TB/s; all else is small, so memory latency is the limit: all bytes must be in flight at once.
//
// - spectrum: skinny_gemm.cuh, with 8 rows of m as the first 8 of W and the same 8 bins of p as the
//   second, so that both numbers of a bin end in one block. At H 896 all 28 KB of a block are in
//   flight at once, in 81 blocks. For more than 8 frames a block takes 64.
// - inverse: a block owns a few hops of a row. It inverts the frames that reach them in shared memory,
//   real by a complex FFT of half as many points (640 = 2 5 8 8: 4 passes), and overlap-adds them
//   there: per frame 5 KB are read, where a matrix product would read a basis of 6.6 MB and do 1.6 M
//   multiply-adds. Frames that reach the hops of two blocks are inverted in both: with 8 hops per
//   block and 4 parts per frame, 11 FFTs for 8.
// - The FFT is in float32.
//
// Not tried: one launch for both, which would save the gap between launches, about 1 us in a graph,
// while one block inverts and the others idle. Times: not measured, it was compiled and emulated only.
#include "lib/skinny_gemm.cuh"
#include "spectrum/spectrum_fft.cuh"

struct SpectrumParams {  // the order and sizes are known to mingcore/ops/cuda_audio.py
    const void* x;       // [M, H]
    const void* w;       // [F + 2, H]
    const void* bias;    // [F + 2] or null
    float* spectra;      // [M, F]: real parts of bins 0..F/2, imaginary ones of 1..F/2 - 1
    long long x_row;
    int M, F, H, unused;
};

constexpr int BINS = 8;

// e^(i x), x in radians. Cody-Waite reduction by pi / 2 in three parts, then minimax polynomials. The
// reduction's error, 2e-11 |x|, is less than the rounding of x.
__device__ __forceinline__ Complex cis(float x) {
    const float n = floorf(fmaf(x, 0.636619772f, 0.5f));
    float r = fmaf(n, -1.5703125f, x);
    r = fmaf(n, -4.837512969970703e-4f, r);
    r = fmaf(n, -7.549790126404332e-8f, r);
    const float s = r * r;
    float p = fmaf(s, -1.950694199e-4f, 8.332099748e-3f);
    p = fmaf(p, s, -1.666665365e-1f);
    const float sine = fmaf(r * s, p, r);
    float q = fmaf(s, 2.442921104e-5f, -1.388728891e-3f);
    q = fmaf(q, s, 4.166664531e-2f);
    const float cosine = fmaf(s * s, q, fmaf(s, -0.5f, 1.0f));
    const int quadrant = (int)n & 3;
    const float a = quadrant & 1 ? cosine : sine, b = quadrant & 1 ? sine : cosine;
    return {(quadrant + 1) & 2 ? -b : b, quadrant & 2 ? -a : a};
}

template <class Traits>
__device__ __forceinline__ void spectrum(const SpectrumParams& p) {
    using X = typename Traits::X;
    constexpr int FRAMES = Traits::ROWS;
    const int g = threadIdx.x % 32 / 4, half = p.F / 2, tiles = half / BINS + 1;
    const int first_bin = blockIdx.x % tiles * BINS, first = blockIdx.x / tiles * FRAMES;
    const X* const m = (const X*)p.w + (long long)min(first_bin + g, half) * p.H;
    const X* const phase = m + (long long)(half + 1) * p.H;
    const X* const x = (const X*)p.x + (first + g) * p.x_row;
    const int rows = p.M - first - g;  // tile n holds this lane's frame where it is > 8 n
    const auto copy_x = [&](Vector16* to, int tile, int k, int bytes) {
        const bool there = rows > 8 * tile;
        cp_async(to, there ? x + 8 * tile * p.x_row + k : (const X*)p.x, there ? bytes : 0);
    };
    const float* const partial = skinny_gemm<Traits>(m, phase, p.H, copy_x);
    for (int e = threadIdx.x; e < BINS * FRAMES; e += Traits::THREADS) {
        const int k = e % BINS, f = e / BINS, at = first_bin + k;
        if (at > half || first + f >= p.M) continue;
        float size = 0, angle = 0;
#pragma unroll
        for (int w = 0; w < GEMM_WARPS; ++w) {
            size += partial[(w * GEMM_M + k) * FRAMES + f];
            angle += partial[(w * GEMM_M + 8 + k) * FRAMES + f];
        }
        if (p.bias) {
            size += widen(((const X*)p.bias)[at]);
            angle += widen(((const X*)p.bias)[half + 1 + at]);
        }
        size = expf(size);
        if (size > 100.0f) size = 100.0f;  // NaN stays
        const Complex unit = cis(angle);
        float* const to = p.spectra + (long long)(first + f) * p.F + at;
        to[0] = size * unit.re;
        if (at > 0 && at < half) to[half] = size * unit.im;
    }
}

// Input k of the complex FFT of half = F / 2 points whose outputs have the even samples as real, the
// odd ones as imaginary parts.
__device__ __forceinline__ Complex half_spectrum(const float* s, const Complex* twiddles, int k,
                                                 int half) {
    const float scale = 0.5f / half;
    const float near = s[k], far = s[half - k];
    const float up = k ? s[half + k] : 0.0f, down = k ? s[2 * half - k] : 0.0f;
    const Complex twiddle = twiddles[k];
    const float a = near + far, b = up - down, c = near - far, d = up + down;
    return {scale * (a - fmaf(c, twiddle.im, d * twiddle.re)),
            scale * (b + fmaf(c, twiddle.re, -d * twiddle.im))};
}

__device__ __forceinline__ void inverse(const OverlapParams& p) {
    char* const memory = shared_memory();
    float* const sums = (float*)(memory + 16);  // [hops, hop], an even number of them
    const int size = p.hops * p.hop, half = p.F / 2;
    Complex* const one = (Complex*)(sums + (size + 1) / 2 * 2);  // [group, half]
    Complex* const two = one + p.group * half;
    const int chunk = blockIdx.x % p.chunks, t0 = chunk * p.hops;
    const Row r = find_row(p, blockIdx.x / p.chunks, chunk == 0, (u64*)memory);
    for (int e = threadIdx.x; e < size; e += INVERSE_THREADS) {
        float sum[1];
        load_carried<1>(p, r, t0 + e / p.hop, e % p.hop, sum);
        sums[e] = sum[0];
    }
    __syncthreads();  // in place: every thread has read the carried sums
    const int parts = r.parts(p), end = min(t0 + p.hops, r.new_frames);
    for (int first = max(t0 - parts + 1, 0); first < end; first += p.group) {
        const int frames = min(p.group, end - first);
        const float* spectra = (const float*)p.frames + r.b * p.frames_batch + first * p.frames_row;
        for (int e = threadIdx.x; e < frames * half; e += INVERSE_THREADS) {
            const int f = e / half, k = e - f * half;
            one[e] = half_spectrum(spectra + f * p.frames_row, (const Complex*)p.twiddles, k, half);
        }
        __syncthreads();
        const float* const waves = (const float*)inverse_fft(p, one, two, frames, half);
        for (int e = threadIdx.x; e < size; e += INVERSE_THREADS) {
            const int t = t0 + e / p.hop, i = e % p.hop;
            float sum = sums[e];
            for (int f = max(t - parts + 1, first); f < min(t + 1, first + frames); ++f) {
                const int n = (t - f) * p.hop + i;
                if (n < p.F) sum = fmaf(p.window[n], waves[(f - first) * p.F + n], sum);
            }
            sums[e] = sum;
        }
        __syncthreads();
    }
    for (int e = threadIdx.x; e < size; e += INVERSE_THREADS) {
        float sum[1] = {sums[e]};
        write_sample<1>(p, r, t0 + e / p.hop, e % p.hop, sum);
    }
}

#define SPECTRUM(NAME, X, TILES)                                                      \
    extern "C" __global__ void __launch_bounds__(SkinnyGemmTraits<X, TILES>::THREADS) \
        spectrum_##NAME##_##TILES(const SpectrumParams p) {                           \
        spectrum<SkinnyGemmTraits<X, TILES>>(p);                                      \
    }

SPECTRUM(bfloat16, bf16, 1)
SPECTRUM(bfloat16, bf16, 8)
SPECTRUM(float16, f16, 1)
SPECTRUM(float16, f16, 8)
SPECTRUM(float32, float, 1)
extern "C" __global__ void __launch_bounds__(INVERSE_THREADS)
    spectrum_inverse(const OverlapParams p) {
    inverse(p);
}
