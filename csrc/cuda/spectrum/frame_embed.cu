// frame_embed: samples cut into frames, each times a matrix: y[t, h] = sum_k w[h, k] x[t hop + k].
// arch: sm_80 sm_90a sm_100 compute_80
//
// Implicit GEMM: frame t begins at sample t * hop, so the samples are read as a matrix with rows of
// hop samples, and no im2col is made; cp.async fills with zeros past the last sample. Cost: 2 hop
// FLOPs per output; samples, w and y move once, from and to device memory. One launch.
//
// - A patch of the released model, 5 frames of 320 by [896, 320]: 573 KB of w in 16 bits, 0.13 us at
//   4.3 TB/s, so the latency of one load is the limit. skinny_gemm.cuh: all 10 KB of a block are in
//   flight at once, in 56 blocks, one per 16 channels. Up to 256 frames, 64 per block.
// - A minute, 3000 frames: 1.7 GFLOP and 7.9 MB in 16 bits, 1.8 us of bandwidth and as much of the
//   tensor cores. Tiles of 128 frames by 64 channels: 336 blocks of 49 KB, all resident on an H100 at
//   once. Frames are the wide operand of mma. Shared memory has swizzled rows of 64 bytes, the depth
//   of a stage: eight lanes read two of them from all banks without ldmatrix, since the order of the
//   summed elements is free. So is that of channels: a lane's sums are 8 successive ones of a frame
//   and are stored 16 bytes at a time. float32 has the same tiles and FMA: tf32 would miss the
//   tolerance.
// - Where 16-byte copies cannot start (hop, strides, addresses), tiles are filled element by element:
//   any hop works, at less speed.
//
// Rows of a batch are merged where their frames follow each other; else no block has frames of two.
// Times: not measured, it was compiled and emulated only.
#include "lib/skinny_gemm.cuh"

struct FrameEmbedParams {  // the order and sizes are known to mingcore/ops/cuda_audio.py
    const void* x;         // [B, L]
    const void* w;         // [H, hop]
    void* out;             // [B, T, H]
    long long x_row, L;
    int T, H, hop, unused;
};

// Samples from the given one on, clamped to what int holds and no tile exceeds.
__device__ __forceinline__ int samples_left(const FrameEmbedParams& p, long long from) {
    const long long left = p.L - from, limit = 1 << 30;
    return (int)(left < limit ? left : limit);
}

template <class Traits>
__device__ __forceinline__ void embed_skinny(const FrameEmbedParams& p) {
    using X = typename Traits::X;
    constexpr int FRAMES = Traits::ROWS;
    const int g = threadIdx.x % 32 / 4, tiles = (p.H + GEMM_M - 1) / GEMM_M;
    const int chunks = (p.T + FRAMES - 1) / FRAMES, chunk = blockIdx.x / tiles % chunks;
    const int row = blockIdx.x % tiles * GEMM_M, first = chunk * FRAMES;
    const long long b = blockIdx.x / tiles / chunks, from = (long long)(first + g) * p.hop;
    const X* const one = (const X*)p.w + (long long)min(row + g, p.H - 1) * p.hop;
    const X* const two = (const X*)p.w + (long long)min(row + 8 + g, p.H - 1) * p.hop;
    const X* const x = (const X*)p.x + b * p.x_row + from;
    const int left = samples_left(p, from);
    const auto copy_x = [&](Vector16* to, int tile, int k, int bytes) {
        const int at = 8 * tile * p.hop + k;
        bytes = min(max(left - at, 0) * (int)sizeof(X), bytes);
        cp_async(to, bytes ? x + at : (const X*)p.x, bytes);
    };
    const float* const partial = skinny_gemm<Traits>(one, two, p.hop, copy_x);
    for (int e = threadIdx.x; e < GEMM_M * FRAMES; e += Traits::THREADS) {
        const int h = e % GEMM_M, t = e / GEMM_M;
        if (row + h >= p.H || first + t >= p.T) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < GEMM_WARPS; ++w) sum += partial[(w * GEMM_M + h) * FRAMES + t];
        narrow(sum, ((X*)p.out)[(b * p.T + first + t) * p.H + row + h]);
    }
}

template <class X_, bool COPIES_>
struct TileTraits {
    using X = X_;
    static constexpr bool COPIES = COPIES_;  // cp.async of 16 bytes, else element by element
    static constexpr int FRAMES = 128, CHANNELS = 64, THREADS = 128;
    static constexpr int E = 16 / sizeof(X), DEPTH = 4 * E;  // elements of a copy, of a stage
    static constexpr int STAGES = 4, STAGE = (FRAMES + CHANNELS) * 4;  // vectors
};

// XOR swizzle: where 16-byte chunk 0..3 of a tile's row is. Rows 4 apart start in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * 4 + (chunk ^ (row >> 2 & 3));
}

// A warp's accumulators of 64 frames by 32 channels, from rows f and h of a stage on. A lane has
// frames frame(i) and, of each, RUNS runs of E successive channels from channel(j) on.
template <class X>
struct TileAccumulators {
    static constexpr int E = 8, RUNS = 1;
    float d[4][4][4] = {};  // tiles of 16 frames by 8 channels, in mma's layout
    __device__ __forceinline__ void add(const Vector16* stage, int f, int h) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
        Vector16 b[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) b[n] = stage[swizzled(h + g / 2 * 8 + 2 * n + g % 2, c)];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const Vector16 one = stage[swizzled(f + 16 * m + g, c)];
            const Vector16 two = stage[swizzled(f + 16 * m + 8 + g, c)];
#pragma unroll
            for (int i = 0; i < 4; i += 2)
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    mma_m16n8k16<X>(d[m][n], one.word[i], two.word[i], one.word[i + 1],
                                    two.word[i + 1], b[n].word[i], b[n].word[i + 1]);
        }
    }
    static __device__ __forceinline__ int frame(int i) { return threadIdx.x % 32 / 4 + 8 * i; }
    static __device__ __forceinline__ int channel(int) { return threadIdx.x % 4 * 8; }
    __device__ __forceinline__ void run(int i, int, float (&to)[8]) const {
#pragma unroll
        for (int e = 0; e < 8; ++e) to[e] = d[i / 2][e / 2][i % 2 * 2 + e % 2];
    }
};
template <>
struct TileAccumulators<float> {
    static constexpr int E = 4, RUNS = 2;
    float d[8][8] = {};
    __device__ __forceinline__ void add(const Vector16* stage, int f, int h) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll 1
        for (int piece = 0; piece < 4; ++piece) {
            Vector16 b[8];
#pragma unroll
            for (int n = 0; n < 8; ++n)
                b[n] = stage[swizzled(h + 4 * c + n / 4 * 16 + n % 4, piece)];
#pragma unroll
            for (int m = 0; m < 8; ++m) {
                const Vector16 a = stage[swizzled(f + g + 8 * m, piece)];
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int n = 0; n < 8; ++n)
                        d[m][n] = fmaf(__uint_as_float(a.word[i]), __uint_as_float(b[n].word[i]),
                                       d[m][n]);
            }
        }
    }
    static __device__ __forceinline__ int frame(int i) { return threadIdx.x % 32 / 4 + 8 * i; }
    static __device__ __forceinline__ int channel(int j) { return threadIdx.x % 4 * 4 + 16 * j; }
    __device__ __forceinline__ void run(int i, int j, float (&to)[4]) const {
#pragma unroll
        for (int e = 0; e < 4; ++e) to[e] = d[i][4 * j + e];
    }
};

// 16 bytes to shared memory; the first `elements` are read and the rest is zeros.
template <class Traits>
__device__ __forceinline__ void copy_16_bytes(Vector16* to, const typename Traits::X* from,
                                              int elements, const void* anywhere) {
    using X = typename Traits::X;
    const int n = min(max(elements, 0), Traits::E);
    if constexpr (Traits::COPIES) {
        cp_async(to, n ? (const void*)from : anywhere, n * (int)sizeof(X));
    } else {
#pragma unroll
        for (int e = 0; e < Traits::E; ++e) ((X*)to)[e] = e < n ? from[e] : X{};
    }
}

template <class Traits>
__device__ __forceinline__ void embed_tile(const FrameEmbedParams& p) {
    using X = typename Traits::X;
    using Sums = TileAccumulators<X>;
    constexpr int FRAMES = Traits::FRAMES, STAGES = Traits::STAGES, LINES = Traits::THREADS / 4;
    Vector16* const ring = (Vector16*)shared_memory();
    const int tiles = (p.H + Traits::CHANNELS - 1) / Traits::CHANNELS;
    const int chunks = (p.T + FRAMES - 1) / FRAMES, chunk = blockIdx.x / tiles % chunks;
    const int row = blockIdx.x % tiles * Traits::CHANNELS, first = chunk * FRAMES;
    const int line = threadIdx.x / 4, piece = threadIdx.x % 4;
    const long long b = blockIdx.x / tiles / chunks, from = (long long)(first + line) * p.hop;
    const X* const x = (const X*)p.x + b * p.x_row + from;
    const X* const w = (const X*)p.w + (long long)(row + line) * p.hop;
    const int left = samples_left(p, from);

    const auto copy = [&](int step) {
        Vector16* const to = ring + step % STAGES * Traits::STAGE;
        const int k = step * Traits::DEPTH + piece * Traits::E, more = p.hop - k;
#pragma unroll
        for (int i = 0; i < FRAMES / LINES; ++i) {
            const int at = i * LINES * p.hop + k;
            copy_16_bytes<Traits>(to + swizzled(line + i * LINES, piece), x + at,
                                  min(left - at, more), p.x);
        }
#pragma unroll
        for (int i = 0; i < Traits::CHANNELS / LINES; ++i)
            copy_16_bytes<Traits>(to + swizzled(FRAMES + line + i * LINES, piece),
                                  w + i * LINES * p.hop + k,
                                  row + line + i * LINES < p.H ? more : 0, p.w);
    };
    const int warp = threadIdx.x / 32, f = warp / 2 * 64, h = warp % 2 * 32;
    const bool used = first + f < p.T && row + h < p.H;
    const int steps = (p.hop + Traits::DEPTH - 1) / Traits::DEPTH;
    Sums sums;
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        if (i < steps) copy(i);
        cp_async_commit_group();
    }
    for (int step = 0; step < steps; ++step) {
        cp_async_wait_group<STAGES - 2>();
        __syncthreads();  // the step has arrived for all, and the one before has been read by all
        if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
        cp_async_commit_group();
        if (used) sums.add(ring + step % STAGES * Traits::STAGE, f, FRAMES + h);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int t = first + f + Sums::frame(i);
        X* const out = (X*)p.out + (b * p.T + t) * p.H;
#pragma unroll
        for (int j = 0; j < Sums::RUNS; ++j) {
            const int at = row + h + Sums::channel(j);
            float values[Sums::E];
            sums.run(i, j, values);
            if (t >= p.T || at >= p.H) continue;
            if (p.H % Sums::E == 0) {
                store<Sums::E>(out + at, values);
            } else {
#pragma unroll
                for (int e = 0; e < Sums::E; ++e)
                    if (at + e < p.H) narrow(values[e], out[at + e]);
            }
        }
    }
}

#define SKINNY(NAME, X, TILES)                                                        \
    extern "C" __global__ void __launch_bounds__(SkinnyGemmTraits<X, TILES>::THREADS) \
        frame_embed_##NAME##_##TILES(const FrameEmbedParams p) {                      \
        embed_skinny<SkinnyGemmTraits<X, TILES>>(p);                                  \
    }
#define TILE(NAME, X, KIND, COPIES)                                                 \
    extern "C" __global__ void __launch_bounds__(TileTraits<X, COPIES>::THREADS, 3) \
        frame_embed_##NAME##_##KIND(const FrameEmbedParams p) {                     \
        embed_tile<TileTraits<X, COPIES>>(p);                                       \
    }

SKINNY(bfloat16, bf16, 1)
SKINNY(bfloat16, bf16, 8)
TILE(bfloat16, bf16, many, true)
TILE(bfloat16, bf16, any, false)
SKINNY(float16, f16, 1)
SKINNY(float16, f16, 8)
TILE(float16, f16, many, true)
TILE(float16, f16, any, false)
SKINNY(float32, float, 1)
TILE(float32, float, many, true)
TILE(float32, float, any, false)
