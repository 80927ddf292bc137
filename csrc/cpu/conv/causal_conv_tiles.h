// The micro-kernel with times in the lanes: c[row, time] = sum_k w[k, row] x[k, time], one K block
// at a time.
//
// An indirection table gives the offset of each k's input, so that one flat loop serves every
// kernel size, dilation and stride; the weights of the next block are prefetched a little with
// every k. Measured (2 Zen 5 cores, 518 GFLOP/s of FMAs on registers alone with AVX-512, 258 with
// AVX2; the 1x1 of VoxCPM's residual units streamed, the call from Python included, us, channels x
// times):
//                                  768x32  384x256  192x1280  96x2560
//   a loop over taps within one over channels, parts of 3 vectors and a rest, no prefetch
//                                     149      294       386      283
//   flat, equal parts, prefetch       118      208       295      172
//   and an unswitched epilogue        114      194       253      156
//   AVX2                              226      381       499      277
// Copying inputs that could be read in place into rows an odd number of cache lines apart, against
// rows that share few sets of L1: no gain up to 2560 times; with 16000 times, whose rows lie in
// pages of their own, 15.5 ms instead of 19.8.
#pragma once
#include "cpu/lib/arena.h"
#include "cpu/lib/gemm.h"

namespace mingcore {
namespace MC_ISA {

#if defined(MC_AVX512)
constexpr int MAX_ROWS = 8, MAX_VECTORS = 3;  // 24 sums + 3 inputs + 1 weight of 32 registers
#else
constexpr int MAX_ROWS = 4, MAX_VECTORS = 3;
#endif
constexpr int ROW_VECTORS =
    6;  // of a single row: as many accumulators as hide an addition's latency
constexpr int OVERREAD = ROW_VECTORS * W;  // floats that a tile may load beyond the times asked for

// Software prefetch of a tile, for the one after it: `step` bytes per k from `at` on.
struct Prefetch {
    const char* at;
    int64_t step;
};

// c[r, v] (+)= w[k, r] * x[where[k] + v] for kc values of k.
template <int MR, int NV>
__attribute__((noinline)) static void times_tile(const float* w, int64_t wr, int64_t wk,
                                                 const float* x, const int64_t* where, int64_t kc,
                                                 float* c, int64_t c_row, bool first,
                                                 Prefetch fetch) {
    F sum[MR][NV];
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) sum[r][v] = zero();
    for (int64_t k = 0; k < kc; ++k, w += wk) {
        const float* at = x + where[k];
        F in[NV];
        for (int v = 0; v < NV; ++v) in[v] = load(at + v * W);
        if constexpr (MR > 1) {
            prefetch(fetch.at);
            fetch.at += fetch.step;
        }
        for (int r = 0; r < MR; ++r) {
            const F s = set1(w[r * wr]);
            for (int v = 0; v < NV; ++v) sum[r][v] = fma(s, in[v], sum[r][v]);
        }
    }
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) {
            float* o = c + r * c_row + v * W;
            store(o, first ? sum[r][v] : add(load(o), sum[r][v]));
        }
}
template <int MR, int NV>
static void times_of(int rows, int vectors, const float* w, int64_t wr, int64_t wk, const float* x,
                     const int64_t* where, int64_t kc, float* c, int64_t c_row, bool first,
                     Prefetch fetch) {
    if (rows == MR && vectors == NV)
        return times_tile<MR, NV>(w, wr, wk, x, where, kc, c, c_row, first, fetch);
    if constexpr (NV > 1) {
        if (vectors < NV)
            return times_of<MR, NV - 1>(rows, vectors, w, wr, wk, x, where, kc, c, c_row, first,
                                        fetch);
    }
    if constexpr (MR > 1)
        times_of<MR - 1, NV>(rows, vectors, w, wr, wk, x, where, kc, c, c_row, first, fetch);
}

// sums [rows][c_row] of `times` times from one K block; where[k]: where its inputs lie from x on.
// `next`: `bytes` of memory that will be read after this block.
MC_INLINE void times_block(const float* w, int64_t wr, int64_t wk, int rows, const float* x,
                           const int64_t* where, int64_t kc, int64_t times, float* c, int64_t c_row,
                           bool first, const void* next, int64_t bytes) {
    const int vectors = (int)((times + W - 1) / W);
    Prefetch fetch{(const char*)next, 0};
    if (rows == 1) {
        for (int v = 0; v < vectors; v += ROW_VECTORS)
            times_of<1, ROW_VECTORS>(1, (int)min(vectors - v, ROW_VECTORS), w, wr, wk, x + v * W,
                                     where, kc, c + v * W, c_row, first, fetch);
        return;
    }
    // parts as equal as can be: a tile of one vector would wait for its weights
    const int wide = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    const int tall = (rows + MAX_ROWS - 1) / MAX_ROWS;
    fetch.step = bytes / (kc * wide * tall);
    for (int i = 0; i < wide; ++i) {
        const int v = vectors * i / wide, n = vectors * (i + 1) / wide - v;
        for (int j = 0; j < tall; ++j, fetch.at += fetch.step * kc) {
            const int r = rows * j / tall, m = rows * (j + 1) / tall - r;
            times_of<MAX_ROWS, MAX_VECTORS>(m, n, w + r * wr, wr, wk, x + v * W, where, kc,
                                            c + r * c_row + v * W, c_row, first, fetch);
        }
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
