// GEMM for small M on packed micro-panels: c[M, 32 per micro-panel] = x[M, K] @ panel[K, 32].
//
// Cost: every weight is read from memory once, 2 M flops each. The design is that of BLIS and
// GotoBLAS: a micro-panel ("panel" below) is 32 output columns, stored [K, 32], so that one k is
// one or two whole cache lines; x is packed to [K, rows] per row tile, so that the broadcasts of
// one k share a line; the micro-kernel (`tile`) keeps rows x 32 sums in registers and walks K.
// Loops are ordered so that only the weights move: the K block of a panel stays in L1/L2 while all
// row tiles pass over it. With few rows several panels advance together, which keeps enough loads
// in flight to reach the memory's bandwidth.
//
// Order of summation: over KC-long blocks from zero, then block by block. It is the same for every
// M and every thread count, so a row's bits do not depend on its batch; rounding grows with KC +
// K/KC.
//
// Types: weights are float32, bf16, fp16 or int8, all widened to float32 in registers; or VNNI-4,
// four k of a column as bytes, multiplied with four int8 activations into int32 (simd_int.h). A
// VNNI-4 word has 32 bits, so its panels, packed rows and sums lie in memory like those of float32,
// and all but the innermost instruction is shared. `multiply` is the entry for one thread.
//
// VNNI-2: bf16 panels read two k at a time. The words of both k are shuffled into two k of one
// column each, and multiplied with two bf16 activations into float32, where the CPU has vdpbf16ps
// (AVX512-BF16). A row of K is then K / 2 words.
//
// Measured (2 Zen 5 cores of a virtual machine, best of interleaved rounds, the call from Python
// with its 8 us included; the read probe 61 GB/s, one large torch.mm 196 to 220 GFLOP/s):
//   K 2048, N 2816, cold weights, us     1 row     2     4     6     8    12
//     bf16                                 206   195   219   228   295   370
//     int8                                 106   113   154   200   257   352
//     int8_dyn                             116   120   127   126   159   153
//   22 rows, 1024 to 3072, warm, GFLOP/s: fp32 428, bf16 448, int8 446, int8_dyn 1422 (without VNNI
//   560); AVX2: bf16 201, int8_dyn 606 (without VNNI 312). 512 rows, bf16: 405 to 486.
//   So from 8 rows on float32 products are bound by the vector units.
// Software prefetch: 8 KB over all streams is the best distance (4 rows of bf16: 251 us at 1 KB per
// stream, 207 at 4, 217 at 8 KB; one row of int8: 120 us at 1 KB, 106 at 2, 109 at 4). With one
// stream the whole next block is best: a fixed distance instead is 8 to 20 % slower, half a block
// or more further 5 to 20 %. Alternating 2 panels block by block for 7 to 14 rows: no effect; 4: up
// to 15 % slower.
#pragma once
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd_int.h"

namespace mingcore {
namespace MC_ISA {

constexpr int PANEL = 32;
constexpr int SLICES = PANEL / (2 * W);  // a slice: columns [s W, s W + W) and those 16 further on
constexpr int64_t KC = 128;              // a K block: hides the update of the sums, and fits L1
#if defined(MC_AVX512)
constexpr int ROWS = 14;      // rows of one tile: 28 sums + 2 weights + 1 broadcast of 32 registers
constexpr int MAX_SUMS = 24;  // when several slices advance together
#else
constexpr int ROWS = 6;
constexpr int MAX_SUMS = 12;
#endif
constexpr int MAX_UNITS = 4;  // slices that advance together
constexpr int NEAR = 8192;    // their prefetch distance, in bytes over all of them

// The two vectors of a slice. bf16 panels interleave: word j of a k holds the columns j and j + 16.
MC_INLINE void load_slice(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + 16);
}
MC_INLINE void load_slice(const f16* p, F& a, F& b) {
    a = load(p);
    b = load(p + 16);
}
MC_INLINE void load_slice(const bf16* p, F& a, F& b) { load_halves(p, a, b); }
MC_INLINE void load_slice(const int8_t* p, F& a, F& b) {
    a = load(p);
    b = load(p + 16);
}
MC_INLINE void load_slice(const vnni4* p, I& a, I& b) {
    a = load_int(p);
    b = load_int(p + 16);
}
#if defined(MC_AVX512)
MC_INLINE void load_slice(const vnni2* p, I& a, I& b) { load_vnni2(p, a, b); }
MC_INLINE const vnni2* slice(const vnni2* panel, int) { return panel; }
#endif
MC_INLINE const float* slice(const float* panel, int s) { return panel + s * W; }
MC_INLINE const f16* slice(const f16* panel, int s) { return panel + s * W; }
MC_INLINE const bf16* slice(const bf16* panel, int s) { return panel + 2 * s * W; }
MC_INLINE const int8_t* slice(const int8_t* panel, int s) { return panel + s * W; }
MC_INLINE const vnni4* slice(const vnni4* panel, int s) { return panel + s * W; }

// Accumulator type V and operand type X of a weight type: float32, but for the int32 sums of VNNI-4
// and for words that hold several k of both operands.
template <class T>
struct Sums {
    typedef F V, X;
    static constexpr bool quantised = false, words = false;
};
template <>
struct Sums<vnni2> {
    typedef F V;
    typedef I X;
    static constexpr bool quantised = false, words = true;
};
template <>
struct Sums<vnni4> {
    typedef I V, X;
    static constexpr bool quantised = true, words = true;
};
MC_INLINE void clear(F& a) { a = zero(); }
MC_INLINE void clear(I& a) { a = zero_int(); }
MC_INLINE void broadcast(const float* x, F& a) { a = set1(*x); }
MC_INLINE void broadcast(const float* x, I& a) {
    int32_t four;
    memcpy(&four, x, 4);
    a = set1_int(four);
}
template <bool VNNI>
MC_INLINE F multiply_add(F x, F w, F sum) {
    return fma(x, w, sum);
}
template <bool VNNI>
MC_INLINE I multiply_add(I x, I w, I sum) {
    return dot4<VNNI>(sum, w, x);
}
#if defined(MC_AVX512)
template <bool VNNI>
MC_INLINE F multiply_add(I x, I w, F sum) {
    return dot2(sum, w, x);
}
#endif
MC_INLINE void accumulate(float* c, F a, bool first) { store(c, first ? a : add(load(c), a)); }
MC_INLINE void accumulate(float* c, I a, bool first) {
    store_int(c, first ? a : add(load_int(c), a));
}

// Software prefetch of a tile: `bytes` per k, from at[u] on, and from then[u] on once k is
// switch_k.
struct Lookahead {
    const char *at[MAX_UNITS], *then[MAX_UNITS];
    int64_t bytes, switch_k;
};

// The micro-kernel: c[u][r] (+)= x[:, r] @ w[u] for kc values of k; x [kc, MR], each w[u] advances
// PANEL per k. Not inlined: alone, its sums and pointers fit the registers.
template <class T, int MR, int NU, bool VNNI>
__attribute__((noinline)) static void tile(const float* x, const T* const* w_in, int64_t kc,
                                           float* const* c, bool first, const Lookahead& ahead) {
    typedef typename Sums<T>::V V;
    typedef typename Sums<T>::X X;
    V a[NU][MR], b[NU][MR];
    const T* w[NU];
    const char* fetch[NU];
    for (int u = 0; u < NU; ++u) {
        w[u] = w_in[u];
        fetch[u] = ahead.at[u];
        for (int r = 0; r < MR; ++r) {
            clear(a[u][r]);
            clear(b[u][r]);
        }
    }
    for (int64_t k = 0; k < kc; ++k, x += MR) {
        if (NU > 1 && k == ahead.switch_k)
            for (int u = 0; u < NU; ++u) fetch[u] = ahead.then[u];
        for (int u = 0; u < NU; ++u) {
            X p, q;
            load_slice(w[u], p, q);
            prefetch(fetch[u]);
            if (sizeof(T) * PANEL > 64) prefetch(fetch[u] + 64);
            fetch[u] += ahead.bytes;
            w[u] += PANEL;
            for (int r = 0; r < MR; ++r) {
                X v;
                broadcast(x + r, v);
                a[u][r] = multiply_add<VNNI>(v, p, a[u][r]);
                b[u][r] = multiply_add<VNNI>(v, q, b[u][r]);
            }
        }
    }
    for (int u = 0; u < NU; ++u)
        for (int r = 0; r < MR; ++r) {
            float* o = c[u] + r * PANEL;
            accumulate(o, a[u][r], first);
            accumulate(o + 16, b[u][r], first);
        }
}

template <class T, int NU, int MR>
static void tile_of(int rows, const float* x, const T* const* w, int64_t kc, float* const* c,
                    bool first, const Lookahead& ahead) {
    if (rows == MR) {
        if constexpr (Sums<T>::quantised)
            if (cpu_vnni) return tile<T, MR, NU, true>(x, w, kc, c, first, ahead);
        return tile<T, MR, NU, false>(x, w, kc, c, first, ahead);
    }
    if constexpr (MR > 1) tile_of<T, NU, MR - 1>(rows, x, w, kc, c, first, ahead);
}

constexpr int rows_for(int units) { return units == 1 ? ROWS : MAX_SUMS / (2 * units); }

// Rows of x, packed: tile t holds rows [begin(t), begin(t + 1)) as [K, rows of t] at K * begin(t).
// In VNNI-4 an element of x is four int8 activations, K = vnni4_words(k) of them, and each row has
// a scale and the sum of its integers (quantise.h).
struct PackedRows {
    const float* x;
    int64_t K;
    int rows, tiles;
    const float* scale;
    const int32_t* sum;
    int begin(int t) const { return (int)((int64_t)rows * t / tiles); }
};

MC_INLINE int tiles_for(int rows) { return (rows + ROWS - 1) / ROWS; }

// Packs one tile of PackedRows from x [rows, K] with row stride x_row. VNNI-4 words are packed as
// float: only their bits are moved. One dense row is its own packed form.
template <class T>
static void pack_tile(const T* x, int64_t x_row, int64_t K, int rows, float* out) {
    for (int r0 = 0; r0 < rows; r0 += W) {
        const int n = rows - r0 < W ? rows - r0 : W;
        for (int64_t k = 0; k < K; k += W) {
            const int kn = K - k < W ? (int)(K - k) : W;
            F v[W];
            for (int r = 0; r < W; ++r) v[r] = r < n ? loadn(x + (r0 + r) * x_row + k, kn) : zero();
            transpose(v);
            for (int i = 0; i < kn; ++i) storen(out + (k + i) * rows + r0, v[i], n);
        }
    }
}

// How many panels one task should take: enough for the slices that advance together.
MC_INLINE int panels_for(int rows) {
    for (int units = MAX_UNITS; units > SLICES; units /= 2)
        if (rows <= rows_for(units)) return units / SLICES;
    return 1;
}

// One K block for the tiles t0..t1. They share the prefetch of `next`, the block that will be
// needed after this one: so the memory is busy all the time, not during the first tile only, and a
// task's first block is on its way before the task starts. With few rows several streams are bound
// by memory, and a short prefetch distance in each is better, at its end into `next`.
template <class T, int NU>
static void advance(const PackedRows& x, int t0, int t1, const T* const* w, const T* const* next,
                    int64_t k0, int64_t kc, float* const* c) {
    const int base = x.begin(t0);
    for (int t = t0; t < t1; ++t) {
        const int r = x.begin(t), n = x.begin(t + 1) - r;
        float* ct[NU];
        Lookahead ahead;
        ahead.bytes = PANEL * sizeof(T) / (t1 - t0);
        ahead.switch_k = kc;
        if (NU > 1 && k0 + kc == x.K)
            ahead.switch_k = kc > NEAR / NU / ahead.bytes ? kc - NEAR / NU / ahead.bytes : 0;
        for (int u = 0; u < NU; ++u) {
            ct[u] = c[u] + (int64_t)(r - base) * PANEL;
            ahead.at[u] = NU > 1 ? (const char*)w[u] + NEAR / NU
                                 : (const char*)next[u] + (t - t0) * kc * ahead.bytes;
            ahead.then[u] = (const char*)next[u];
        }
        tile_of<T, NU, rows_for(NU)>(n, x.x + x.K * r + k0 * n, w, kc, ct, k0 == 0, ahead);
    }
}

// One K block of `count` panels; panels[i] and next[i] point at its first row and at the first row
// of the block after it. c [count][rows of t0..t1][32].
template <class T>
static void panel_block(const PackedRows& x, int t0, int t1, const T* const* panels,
                        const T* const* next, int count, int64_t k0, int64_t kc, float* c) {
    const int rows = x.begin(t1) - x.begin(t0);
    const int tallest = (x.rows + x.tiles - 1) / x.tiles;
    const int units = count * SLICES;
    const T *w[MAX_UNITS], *n[MAX_UNITS];
    float* o[MAX_UNITS];
    int step;
    for (int u = 0; u < units; u += step) {
        step = MAX_UNITS;
        while (step > 1 && (units - u < step || tallest > rows_for(step))) step /= 2;
        for (int i = 0; i < step; ++i) {
            const int p = (u + i) / SLICES, s = (u + i) % SLICES;
            w[i] = slice(panels[p], s);
            n[i] = next[p];
            o[i] = c + (int64_t)p * rows * PANEL + s * W;
        }
        if (step == 4) advance<T, 4>(x, t0, t1, w, n, k0, kc, o);
        else if (step == 2) advance<T, 2>(x, t0, t1, w, n, k0, kc, o);
        else advance<T, 1>(x, t0, t1, w, n, k0, kc, o);
    }
}

// c [count][rows of t0..t1][32] = x @ panels, for count <= MAX_UNITS packed panels of [K, 32].
// `after`: the first of the panels that this thread will need next, or null.
template <class T>
static void panel_gemm(const PackedRows& x, int t0, int t1, const T* const* panels, int count,
                       const T* after, float* c) {
    for (int64_t k0 = 0; k0 < x.K; k0 += KC) {
        const int64_t kc = x.K - k0 < KC ? x.K - k0 : KC;
        const T *at[MAX_UNITS], *next[MAX_UNITS];
        for (int i = 0; i < count; ++i) {
            at[i] = panels[i] + k0 * PANEL;
            next[i] = k0 + kc < x.K ? at[i] + kc * PANEL
                      : after       ? after + i * x.K * PANEL
                                    : at[i];  // nothing: what is there already
        }
        panel_block(x, t0, t1, at, next, count, k0, kc, c);
    }
}

// A packed matrix: panels [count()][K][32] of T (in VNNI-4 K = vnni4_words(k)), with one scale per
// row where it is quantised, else null. outputs: columns of the product, half the matrix's rows for
// swiglu.
template <class T>
struct Matrix {
    const T* panels;
    int64_t K;
    const float* scale;
    int64_t outputs;
    bool swiglu;
    int width() const { return swiglu ? 16 : PANEL; }
    int64_t count() const { return (outputs + width() - 1) / width(); }
    const T* panel(int64_t p) const { return panels + p * K * PANEL; }
};

// The scales of a panel's 32 columns, zero where there are none.
template <class T>
static void panel_scale(const Matrix<T>& m, int64_t panel, float* to) {
    const int width = m.width();
    const int64_t col = panel * width, left = m.outputs - col;
    for (int j = 0; j < PANEL; j += W) {
        const int64_t n = left - j % width;
        const float* from = m.scale + (j < width ? 0 : m.outputs) + col + j % width;
        store(to + j, n >= W ? load(from) : n > 0 ? loadn(from, (int)n) : zero());
    }
}

// Dequantises the sums of quantised weights, in place: c [rows of t0..t1][32].
template <class T>
static void scale_sums(const PackedRows& x, int t0, int t1, const float* scale, float* c) {
    F by[PANEL / W];
    for (int j = 0; j < PANEL / W; ++j) by[j] = load(scale + j * W);
    const int to = x.begin(t1);
    for (int r = x.begin(t0); r < to; ++r, c += PANEL)
        for (int j = 0; j < PANEL / W; ++j) {
            F v;
            if constexpr (Sums<T>::quantised) {
                const I offset = set1_int(cpu_vnni ? -128 * x.sum[r] : 0);
                v = mul(to_float(add(load_int(c + j * W), offset)), set1(x.scale[r]));
            } else {
                v = load(c + j * W);
            }
            store(c + j * W, mul(v, by[j]));
        }
}

// Floats of scratch that `multiply` needs for the sums of `rows` rows.
MC_INLINE int64_t sums_for(int rows) { return (int64_t)panels_for(rows) * rows * PANEL; }

// x (its tiles t0..t1) times the panels [p0, p1) of m; then epilogue(panel, sums [rows][32]) for
// each, rows being those of t0..t1. sums: sums_for(x.rows) floats of the calling thread. after:
// what this thread will multiply with next, or null. Allocates nothing, starts no threads.
template <class T, class Epilogue>
static void multiply(const PackedRows& x, int t0, int t1, const Matrix<T>& m, int64_t p0,
                     int64_t p1, const T* after, float* sums, const Epilogue& epilogue) {
    const int64_t size = (int64_t)(x.begin(t1) - x.begin(t0)) * PANEL;
    const int group = panels_for(x.rows);
    for (int64_t p = p0; p < p1; p += group) {
        const int count = p1 - p < group ? (int)(p1 - p) : group;
        const T* at[MAX_UNITS];
        for (int i = 0; i < count; ++i) at[i] = m.panel(p + i);
        panel_gemm(x, t0, t1, at, count, p + count < p1 ? m.panel(p + count) : after, sums);
        for (int i = 0; i < count; ++i) {
            if (m.scale) {
                float scale[PANEL];
                panel_scale(m, p + i, scale);
                scale_sums<T>(x, t0, t1, scale, sums + i * size);
            }
            epilogue(p + i, (const float*)sums + i * size);
        }
    }
}

// The same for one panel of unpacked weights: its columns 0..15 are the n_low rows at `low`, 16..31
// the n_high rows at `high`. Each K block is packed into `scratch` [KC, 32] first: the same sums,
// so the same bits, as from the packed form.
template <class T>
static void rows_gemm(const PackedRows& x, int t0, int t1, const T* low, int n_low, const T* high,
                      int n_high, int64_t w_row, float* scratch, float* c) {
    for (int64_t k0 = 0; k0 < x.K; k0 += KC) {
        const int64_t kc = x.K - k0 < KC ? x.K - k0 : KC;
        for (int j0 = 0; j0 < PANEL; j0 += W) {
            const T* half = j0 < 16 ? low : high;
            const int from = j0 % 16, n = (j0 < 16 ? n_low : n_high) - from;
            for (int64_t k = 0; k < kc; k += W) {
                const int kn = kc - k < W ? (int)(kc - k) : W;
                F v[W];
                for (int j = 0; j < W; ++j) {
                    const T* p = half + (from + j) * w_row + k0 + k;
                    v[j] = j >= n ? zero() : kn == W ? load(p) : loadn(p, kn);
                }
                transpose(v);
                for (int i = 0; i < kn; ++i) store(scratch + (k + i) * PANEL + j0, v[i]);
            }
        }
        const float* panel = scratch;
        panel_block(x, t0, t1, &panel, &panel, 1, k0, kc, c);
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
