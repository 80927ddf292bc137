// causal_conv: a warp's products of a stage, 64 rows by 32 columns, on the tensor cores or, for
// float32, without.
#pragma once
#include "conv/causal_conv_stage.cuh"

// The order of summed elements within a step of 32 is ours: lane 4g + c has 8c..8c + 7 of its rows,
// which are 16 successive bytes of an ordinary weight.
template <class T>
struct Sums {
    using X = typename T::X;
    float tile[4][4][4] = {};  // tiles of 16 rows, of 8 columns, as mma leaves them

    static __device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                               unsigned a3, unsigned b0, unsigned b1) {
        if constexpr (same<X, bf16>)
            mma_bf16(d, a0, a1, a2, a3, b0, b1);
        else
            mma_f16(d, a0, a1, a2, a3, b0, b1);
    }
    static __device__ __forceinline__ Vector16 copy_at(const X* w, int line, int piece, int wide,
                                                       bool up) {
        return ((const Vector16*)w)[line * wide + exchanged(line, piece, up)];
    }
    // step: of the stage; row, column: this warp's first
    __device__ void add(const CausalConvParams& p, const X* w, const X* x, const int* offsets,
                        int step, int row, int column) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
        const int wide = (p.up ? p.rows : T::DEPTH) / 8;
        unsigned b[4][4];  // [8 columns][pairs of summed elements]
        if (p.direct) {
            const X* from = x + (step * 32 + lane) * p.pitch + column;
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (column + n * 8 < p.cols) ldmatrix_trans(b[n], from + n * 8);
        } else {
            const X* from = x + (column + g) * p.stride;
            int off[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) off[e] = offsets[step * 32 + c * 8 + e];
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (column + n * 8 < p.cols) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const X* at = from + n * 8 * p.stride;
                        b[n][i] = at[off[2 * i]].bits | (unsigned)at[off[2 * i + 1]].bits << 16;
                    }
                }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned a[4][4];  // [16 rows][as mma takes them]
            if (p.up) {  // lines of summed elements: 8 rows of each, put in pairs
#pragma unroll
                for (int far = 0; far < 2; ++far) {
                    const int line = step * 32 + c * 8 + half * 4 + far * 2, piece = row / 8 + g;
                    if (row + g * 8 >= p.rows) {
#pragma unroll
                        for (int m = 0; m < 4; ++m) a[m][2 * far] = a[m][2 * far + 1] = 0;
                        continue;
                    }
                    const Vector16 one = copy_at(w, line, piece, wide, true);
                    const Vector16 two = copy_at(w, line + 1, piece, wide, true);
#pragma unroll
                    for (int m = 0; m < 4; ++m) {
                        a[m][2 * far] = __byte_perm(one.word[m], two.word[m], 0x5410);
                        a[m][2 * far + 1] = __byte_perm(one.word[m], two.word[m], 0x7632);
                    }
                }
            } else {
#pragma unroll
                for (int m = 0; m < 4; ++m)
                    if (row + m * 16 < p.rows) {
                        const int line = row + m * 16 + g, piece = step * 4 + c;
                        const Vector16 one = copy_at(w, line, piece, wide, false);
                        const Vector16 two = copy_at(w, line + 8, piece, wide, false);
                        a[m][0] = one.word[2 * half];
                        a[m][1] = two.word[2 * half];
                        a[m][2] = one.word[2 * half + 1];
                        a[m][3] = two.word[2 * half + 1];
                    }
            }
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (column + n * 8 < p.cols) {
#pragma unroll
                    for (int m = 0; m < 4; ++m)
                        if (row + m * 16 < p.rows)
                            mma(tile[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[n][2 * half],
                                b[n][2 * half + 1]);
                }
        }
    }
    // to [rows][pitch], columns in nines of which eight are used
    __device__ void store(const CausalConvParams& p, float* to, int pitch, int row, int column) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int half = i / 2, r = row + (p.up ? g * 8 + 2 * m + half : m * 16 + half * 8 + g);
                if (r >= p.rows) continue;
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    if (column + n * 8 < p.cols)
                        to[r * pitch + (column / 8 + n) * 9 + 2 * c + i % 2] = tile[m][n][i];
            }
    }
};

// Lane 4r + c: rows r + 8i (transposed 8r + i), columns c + 4j. The sums are plain multiply-adds:
// a product in tf32 would miss the tolerance, three of them are no faster here.
template <int WM, int WN, int WK>
struct Sums<Tiling<float, WM, WN, WK>> {
    using T = Tiling<float, WM, WN, WK>;
    float tile[8][8] = {};

    __device__ void add(const CausalConvParams& p, const float* w, const float* x,
                        const int* offsets, int step, int row, int column) {
        const int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
        const int wide = p.up ? p.rows : T::DEPTH;
        const float* from = x + (column + c) * p.stride;
#pragma unroll 1
        for (int k = step * T::STEP; k < (step + 1) * T::STEP; ++k) {
            float a[8], b[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int m = row + (p.up ? 8 * r + i : r + 8 * i);
                const int line = p.up ? k : m, at = p.up ? m : k;
                a[i] = m < p.rows ? w[line * wide + exchanged(line, at / 4, p.up) * 4 + at % 4] : 0;
            }
            const float* here = from + offsets[k];
#pragma unroll
            for (int j = 0; j < 8; ++j)
                b[j] = column + c + 4 * j < p.cols ? here[4 * j * p.stride] : 0;
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) tile[i][j] = fmaf(a[i], b[j], tile[i][j]);
        }
    }
    __device__ void store(const CausalConvParams& p, float* to, int pitch, int row, int column) {
        const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int m = row + (p.up ? 8 * r + i : r + 8 * i);
            if (m >= p.rows) continue;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int n = column + c + 4 * j;
                if (n < p.cols) to[m * pitch + n / 8 * 9 + n % 8] = tile[i][j];
            }
        }
    }
};
