// Sums with times in the lanes: c[row, time] = sum_k w[k, row] x[k, time], one K block at a time.
#pragma once
#include "gemm.h"

namespace mingcore {
namespace MC_ISA {

#if defined(MC_AVX512)
constexpr int MAX_ROWS = 8, MAX_VECTORS = 3;  // 24 sums + 3 inputs + 1 weight of 32 registers
#else
constexpr int MAX_ROWS = 4, MAX_VECTORS = 3;
#endif
MC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int ALONE = 6;  // vectors of one row: as many sums as hide an addition's latency
constexpr int MANY = ALONE * W;  // what a tile may load beyond the times asked for

// c[r, v] (+)= w[k, r] * x[k, v] for kc values of k that begin at tap `tap` of the channel at x.
template <int MR, int NV>
__attribute__((noinline)) static void times_tile(const float* w, int64_t wr, int64_t wk,
                                                 const float* x, int64_t ld, const int64_t* taps,
                                                 int64_t n_taps, int64_t tap, int64_t kc, float* c,
                                                 int64_t c_row, bool first) {
    F sum[MR][NV];
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) sum[r][v] = zero();
    for (int64_t k = 0; k < kc;) {
        int64_t here = n_taps - tap < kc - k ? n_taps - tap : kc - k;
        k += here;
        for (; here > 0; --here, ++tap, w += wk) {
            const float* at = x + taps[tap];
            F in[NV];
            for (int v = 0; v < NV; ++v) in[v] = load(at + v * W);
            for (int r = 0; r < MR; ++r) {
                const F s = set1(w[r * wr]);
                for (int v = 0; v < NV; ++v) sum[r][v] = fma(s, in[v], sum[r][v]);
            }
        }
        tap = 0;
        x += ld;
    }
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) {
            float* o = c + r * c_row + v * W;
            store(o, first ? sum[r][v] : add(load(o), sum[r][v]));
        }
}
template <int MR, int NV>
static void times_of(int rows, int vectors, const float* w, int64_t wr, int64_t wk, const float* x,
                     int64_t ld, const int64_t* taps, int64_t n_taps, int64_t tap, int64_t kc,
                     float* c, int64_t c_row, bool first) {
    if (rows == MR && vectors == NV)
        return times_tile<MR, NV>(w, wr, wk, x, ld, taps, n_taps, tap, kc, c, c_row, first);
    if constexpr (NV > 1) {
        if (vectors < NV)
            return times_of<MR, NV - 1>(rows, vectors, w, wr, wk, x, ld, taps, n_taps, tap, kc, c,
                                        c_row, first);
    }
    if constexpr (MR > 1)
        times_of<MR - 1, NV>(rows, vectors, w, wr, wk, x, ld, taps, n_taps, tap, kc, c, c_row,
                             first);
}

// sums [rows][c_row] of `times` times from one K block; x is the channel in which it begins.
MC_INLINE void times_block(const float* w, int64_t wr, int64_t wk, int rows, const float* x,
                           int64_t ld, const int64_t* taps, int64_t n_taps, int64_t tap, int64_t kc,
                           int64_t times, float* c, int64_t c_row, bool first) {
    if (rows == 1) {
        for (int64_t t = 0; t < times; t += ALONE * W)
            times_of<1, ALONE>(1, (int)smaller((times - t + W - 1) / W, ALONE), w, wr, wk, x + t, ld,
                               taps, n_taps, tap, kc, c + t, c_row, first);
        return;
    }
    for (int64_t t = 0; t < times; t += MAX_VECTORS * W) {
        const int vectors = (int)smaller((times - t + W - 1) / W, MAX_VECTORS);
        for (int r = 0; r < rows; r += MAX_ROWS)
            times_of<MAX_ROWS, MAX_VECTORS>((int)smaller(rows - r, MAX_ROWS), vectors, w + r * wr, wr,
                                            wk, x + t, ld, taps, n_taps, tap, kc,
                                            c + r * c_row + t, c_row, first);
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
