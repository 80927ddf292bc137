// spectrum_head: hidden states to samples. Two launches: spectrum, x W^T + b with
// S = min(exp m, 100) (cos p + i sin p) where the sums are; inverse, S to samples and state.
// arch: sm_80 sm_90a sm_100 compute_80
//
// Cost of a patch of the released head (H 896, F 1280, 5 frames): W once, 2.3 MB in 16 bits, 0.53 us
// at 4.3 TB/s; all else is small, so what counts is that everything is on its way at once.
//
// - spectrum: the tensor cores take 16 rows of W as the wide operand, 8 of m and the same 8 bins of
//   p, frames as the one of 8: both numbers of a bin end in one place. Warps have shares of H; a
//   lane copies 16 successive bytes of its rows, and of x, to where only it reads them, 7 steps
//   ahead: at H 896 all of its 28 KB are on their way at once, in 81 blocks. Loads to registers did
//   not stay in front of the products (40 registers instead of the 56 that they would fill, sm_90a).
//   For more than 8 frames a block takes 64.
// - inverse: a block has a few hops of a row. It transforms the frames that reach them in shared
//   memory, real by complex ones of half as many points (640 = 2 5 8 8: 4 passes), and adds them
//   up where they lie: per frame 5 KB in, where a matrix product would read a basis of 6.6 MB and
//   do 1.6 M multiply-adds. Frames that reach hops of two blocks are transformed in both: with 8
//   hops a block and 4 parts a frame, 11 transforms for 8.
// - Tensor cores cut what they add, so their chains are short: each of 4 warps sums a quarter of H.
//   The transform is in float32.
//
// Fusing both in one launch would let one block transform while the others idle, and save the gap
// between launches, about 1 us in a graph; not tried. Times: not measured, it was compiled and
// emulated only.
#include "spectrum_transform.cuh"
#include "weights.cuh"

struct SpectrumParams {  // the order and sizes are known to mingcore/ops/cuda_audio.py
    const void* x;       // [M, H]
    const void* w;       // [F + 2, H]
    const void* bias;    // [F + 2] or null
    float* spectra;      // [M, F]: real parts of bins 0..F/2, imaginary ones of 1..F/2 - 1
    long long x_row;
    int M, F, H, unused;
};

constexpr int BINS = 8, WARPS = 4;

template <class X_, int TILES_>
struct SpectrumTraits {
    using X = X_;
    static constexpr int TILES = TILES_;  // of 8 frames
    static constexpr int FRAMES = 8 * TILES, THREADS = 32 * WARPS;
    static constexpr int E = 16 / sizeof(X), STEP = 4 * E;  // elements of a lane, of a warp
    static constexpr int STAGES = TILES == 1 ? 7 : 4;       // steps on their way
    static constexpr int STAGE = (2 + TILES) * THREADS;     // vectors: rows of m, of p, of x
};

// A warp's sums of 16 rows (8 of m, 8 of p) and 8 frames, spread as mma leaves them. x: this lane's
// place among the vectors of 8 frames.
template <class X>
struct SpectrumSums {
    float d[4] = {};
    __device__ __forceinline__ void add(const Vector16& m, const Vector16& p, const Vector16* x) {
        const Vector16 v = *x;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            if constexpr (same<X, bf16>)
                mma_bf16(d, m.word[i], p.word[i], m.word[i + 1], p.word[i + 1], v.word[i],
                         v.word[i + 1]);
            else
                mma_f16(d, m.word[i], p.word[i], m.word[i + 1], p.word[i + 1], v.word[i],
                        v.word[i + 1]);
        }
    }
    __device__ __forceinline__ void store(float* to, int row) {  // to [16][row]
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            to[(g + 8 * half) * row + 2 * c] = d[2 * half];
            to[(g + 8 * half) * row + 2 * c + 1] = d[2 * half + 1];
        }
    }
};
template <>
struct SpectrumSums<float> {  // rows g of m and p, all 8 frames, over this lane's elements
    float d[2][8] = {};
    __device__ __forceinline__ void add(const Vector16& m, const Vector16& p, const Vector16* x) {
        const int g = threadIdx.x % 32 / 4;
        __syncwarp();  // x was copied by other lanes
#pragma unroll
        for (int f = 0; f < 8; ++f) {
            const Vector16 v = x[(f - g) * 4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                d[0][f] = fmaf(__uint_as_float(m.word[i]), __uint_as_float(v.word[i]), d[0][f]);
                d[1][f] = fmaf(__uint_as_float(p.word[i]), __uint_as_float(v.word[i]), d[1][f]);
            }
        }
        __syncwarp();  // and they copy anew
    }
    __device__ __forceinline__ void store(float* to, int row) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int f = 0; f < 8; ++f) {
                float sum = d[half][f];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (c == 0) to[(g + 8 * half) * row + f] = sum;
            }
    }
};

// Of x in radians. What the reduction loses, 2e-11 |x|, is less than x is rounded by.
__device__ __forceinline__ Complex turn_by(float x) {
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
    constexpr int TILES = Traits::TILES, FRAMES = Traits::FRAMES, STAGES = Traits::STAGES;
    Vector16* const ring = (Vector16*)shared_memory() + threadIdx.x;  // of this lane alone
    float* const partial = (float*)shared_memory() + STAGES * Traits::STAGE * 4;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int half = p.F / 2, tiles = half / BINS + 1;
    const int first_bin = blockIdx.x % tiles * BINS, first = blockIdx.x / tiles * FRAMES;
    const X* const m = (const X*)p.w + (long long)min(first_bin + g, half) * p.H;
    const X* const phase = m + (long long)(half + 1) * p.H;
    const X* const x = (const X*)p.x + (first + g) * p.x_row;
    const int rows = p.M - first - g;  // tile n has this lane's frame if it is more than 8 n

    const auto copy = [&](int step, Vector16* to) {
        const int k = (step * WARPS + warp) * Traits::STEP + c * Traits::E;
        const int bytes = k < p.H ? 16 : 0, at = bytes ? k : 0;
        cp_async(to, m + at, bytes);
        cp_async(to + Traits::THREADS, phase + at, bytes);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const bool there = rows > 8 * tile;
            cp_async(to + (2 + tile) * Traits::THREADS,
                     there ? x + 8 * tile * p.x_row + at : (const X*)p.x, there ? bytes : 0);
        }
    };
    SpectrumSums<X> sums[TILES];
    const int steps = (p.H + WARPS * Traits::STEP - 1) / (WARPS * Traits::STEP);
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
        if (i < steps) copy(i, ring + i * Traits::STAGE);
        cp_async_commit();
    }
    for (int step = 0, stage = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 1>();
        Vector16* const at = ring + stage * Traits::STAGE;
        const Vector16 wm = at[0], wp = at[Traits::THREADS];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
            sums[tile].add(wm, wp, at + (2 + tile) * Traits::THREADS);
        if (step + STAGES < steps) copy(step + STAGES, at);
        cp_async_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
        sums[tile].store(partial + warp * 16 * FRAMES + 8 * tile, FRAMES);
    __syncthreads();
    for (int e = threadIdx.x; e < BINS * FRAMES; e += Traits::THREADS) {
        const int k = e % BINS, f = e / BINS, at = first_bin + k;
        if (at > half || first + f >= p.M) continue;
        float size = 0, angle = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            size += partial[(w * 16 + k) * FRAMES + f];
            angle += partial[(w * 16 + 8 + k) * FRAMES + f];
        }
        if (p.bias) {
            size += widen(((const X*)p.bias)[at]);
            angle += widen(((const X*)p.bias)[half + 1 + at]);
        }
        size = expf(size);
        if (size > 100.0f) size = 100.0f;  // NaN stays
        const Complex turn = turn_by(angle);
        float* const to = p.spectra + (long long)(first + f) * p.F + at;
        to[0] = size * turn.re;
        if (at > 0 && at < half) to[half] = size * turn.im;
    }
}

// Even samples as real, odd ones as imaginary parts of a transform of half = F / 2 points.
__device__ __forceinline__ Complex half_spectrum(const float* s, const Complex* turns, int k,
                                                 int half) {
    const float scale = 0.5f / half;
    const float near = s[k], far = s[half - k];
    const float up = k ? s[half + k] : 0.0f, down = k ? s[2 * half - k] : 0.0f;
    const Complex turn = turns[k];
    const float a = near + far, b = up - down, c = near - far, d = up + down;
    return {scale * (a - fmaf(c, turn.im, d * turn.re)), scale * (b + fmaf(c, turn.re, -d * turn.im))};
}

__device__ __forceinline__ void inverse(const OverlapParams& p) {
    char* const memory = shared_memory();
    float* const sums = (float*)(memory + 16);  // [hops, hop], an even number of them
    const int size = p.hops * p.hop, half = p.F / 2;
    Complex* const one = (Complex*)(sums + (size + 1) / 2 * 2);  // [group, half]
    Complex* const two = one + p.group * half;
    const int chunk = blockIdx.x % p.chunks, t0 = chunk * p.hops;
    const Row r = row_of(p, blockIdx.x / p.chunks, chunk == 0, (u64*)memory);
    for (int e = threadIdx.x; e < size; e += INVERSE_THREADS) {
        float sum[1];
        carried_sum<1>(p, r, t0 + e / p.hop, e % p.hop, sum);
        sums[e] = sum[0];
    }
    __syncthreads();  // in place: every thread has read what was carried
    const int parts = r.parts(p), end = min(t0 + p.hops, r.fresh);
    for (int first = max(t0 - parts + 1, 0); first < end; first += p.group) {
        const int frames = min(p.group, end - first);
        const float* spectra = (const float*)p.frames + r.b * p.frames_batch + first * p.frames_row;
        for (int e = threadIdx.x; e < frames * half; e += INVERSE_THREADS) {
            const int f = e / half, k = e - f * half;
            one[e] = half_spectrum(spectra + f * p.frames_row, (const Complex*)p.turns, k, half);
        }
        __syncthreads();
        const float* const waves = (const float*)transforms(p, one, two, frames, half);
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
        finish<1>(p, r, t0 + e / p.hop, e % p.hop, sum);
    }
}

#define SPECTRUM(NAME, X, TILES)                                                      \
    extern "C" __global__ void __launch_bounds__(SpectrumTraits<X, TILES>::THREADS)   \
        spectrum_##NAME##_##TILES(const SpectrumParams p) {                           \
        spectrum<SpectrumTraits<X, TILES>>(p);                                        \
    }

SPECTRUM(bfloat16, bf16, 1)
SPECTRUM(bfloat16, bf16, 8)
SPECTRUM(float16, f16, 1)
SPECTRUM(float16, f16, 8)
SPECTRUM(float32, float, 1)
extern "C" __global__ void __launch_bounds__(INVERSE_THREADS) spectrum_inverse(const OverlapParams p) {
    inverse(p);
}
