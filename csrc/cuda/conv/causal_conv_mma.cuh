// causal_conv: a warp's products of a stage, 64 rows by 32 columns, by mma.m16n8k16, for float32 by
// FMA.
#pragma once
#include "conv/causal_conv_stage.cuh"
#include "lib/mma.cuh"

// The order of the summed elements within a step of 32 is free: lane 4g + c has 8c to 8c + 7 of its
// rows, which are 16 successive bytes of an ordinary weight.
template <class T>
struct Accumulators {
    using X = typename T::X;
    float tile[4][4][4] = {};  // tiles of 16 rows by 8 columns, in mma's layout

    static __device__ __forceinline__ Vector16 chunk_at(const X* w, int line, int chunk, int wide,
                                                        bool up) {
        return ((const Vector16*)w)[line * wide + swizzled(line, chunk, up)];
    }
    // step: of the stage; row, column: this warp's first
    __device__ void add(const CausalConvParams& p, const X* w, const X* x, const int* offsets,
                        int step, int row, int column) {
        const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
        const int wide = (p.up ? p.rows : T::DEPTH) / 8;
        unsigned b[4][4];  // [8 columns][packed x2 summed elements]
        if (p.direct) {
            const X* from = x + (step * 32 + lane) * p.pitch + column;
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (column + n * 8 < p.cols) ldmatrix_x4_trans(b[n], from + n * 8);
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
            unsigned a[4][4];  // [16 rows][operands of mma]
            if (p.up) {  // lines are summed elements, 8 rows each: interleaved to bf16x2 by PRMT
#pragma unroll
                for (int far = 0; far < 2; ++far) {
                    const int line = step * 32 + c * 8 + half * 4 + far * 2, chunk = row / 8 + g;
                    if (row + g * 8 >= p.rows) {
#pragma unroll
                        for (int m = 0; m < 4; ++m) a[m][2 * far] = a[m][2 * far + 1] = 0;
                        continue;
                    }
                    const Vector16 one = chunk_at(w, line, chunk, wide, true);
                    const Vector16 two = chunk_at(w, line + 1, chunk, wide, true);
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
                        const int line = row + m * 16 + g, chunk = step * 4 + c;
                        const Vector16 one = chunk_at(w, line, chunk, wide, false);
                        const Vector16 two = chunk_at(w, line + 8, chunk, wide, false);
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
                            mma_m16n8k16<X>(tile[m][n], a[m][0], a[m][1], a[m][2], a[m][3],
                                            b[n][2 * half], b[n][2 * half + 1]);
                }
        }
    }
    // to [rows][pitch], columns padded from 8 to 9 against bank conflicts
    __device__ void store(const CausalConvParams& p, float* to, int pitch, int row, int column) {
        const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int half = i / 2,
                          r = row + (p.up ? g * 8 + 2 * m + half : m * 16 + half * 8 + g);
                if (r >= p.rows) continue;
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    if (column + n * 8 < p.cols)
                        to[r * pitch + (column / 8 + n) * 9 + 2 * c + i % 2] = tile[m][n][i];
            }
    }
};

// FMA: tf32 would miss the tolerance, and three tf32 products are no faster here. Lane 4r + c has rows
// r + 8i (transposed 8r + i) and columns c + 4j.
template <int WM, int WN, int WK>
struct Accumulators<Tiling<float, WM, WN, WK>> {
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
                a[i] = m < p.rows ? w[line * wide + swizzled(line, at / 4, p.up) * 4 + at % 4] : 0;
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
