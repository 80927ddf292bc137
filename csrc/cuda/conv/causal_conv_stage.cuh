// causal_conv: a tile of outputs, and the multistage cp.async copies of its weights and inputs.
#pragma once
#include "conv/causal_conv_rows.cuh"
#include "lib/cp_async.cuh"
#include "lib/shared_memory.cuh"

constexpr int SCRATCH = 9 * THREADS * (int)sizeof(float);  // 8 floats per thread, padded to 9

// WM, WN, WK: warps along rows, columns and summed elements; a warp has 64 rows and 32 columns.
template <class X_, int WM_, int WN_, int WK_>
struct Tiling {
    using X = X_;  // type of inputs, outputs and, in shared memory, weights
    static constexpr int WM = WM_, WN = WN_, WK = WK_;
    static constexpr int E = 16 / sizeof(X);  // elements of a copy
    static constexpr int STEP = 4 * E;        // summed elements of a warp's step
    static constexpr int STEPS = WK == 1 ? 2 : WK;
    static constexpr int DEPTH = STEPS * STEP;  // summed elements of a stage
    static_assert(WM * WN * WK == WARPS, "eight warps");
};

// The block's tile. Tiles of rows are numbered first, so that neighbours share inputs in L2.
struct Tile {
    long long b, first;       // row of the batch; the tile's first column, counted in useful ones
    int group, row, channel;  // the tile's first row of the product and output channel of the group
    int rows;                 // of the product that exist
    long long u;              // index in x of staged element 0 of a channel
    int shift;                // from u to what column 0 reads first

    __device__ void find(const CausalConvParams& p) {
        unsigned i = blockIdx.x;
        const int tile = (int)(i % p.rows_all);
        i /= p.rows_all;
        group = (int)(i % p.groups);
        i /= p.groups;
        first = (long long)(i % p.times_all) * p.step;
        b = i / p.times_all;
        channel = tile * p.channels;
        const int each = p.up ? p.taps : 1;
        row = channel * each;
        rows = min(p.channels, p.N - channel) * each;
    }
    __device__ void set_input(const CausalConvParams& p, const Row& r) {
        u = r.begin + first * p.stride;
        const int offset = p.x_aligned ? (int)(u & 7) : 0;  // copies start at multiples of 8
        u -= offset;
        // with ldmatrix columns begin at the copy's start, and the first ones are not used
        shift = p.direct ? 0 : offset;
    }
};

// Permutation of 32 channels: those that one 8 x 8 matrix of ldmatrix takes, 0 1 8 9 16 17 24 25 and so
// on, become adjacent lines.
__device__ __forceinline__ int ldmatrix_line(int channel) {
    const int a = channel >> 3 & 3, w = channel >> 1 & 3, e = channel & 1;
    return (channel & ~31) | w << 3 | a << 1 | e;
}
// XOR swizzle of the 16-byte chunks of a weight tile's lines: no bank conflict, whether lines are rows
// of the product or (up: transposed) summed elements.
__device__ __forceinline__ int swizzled(int line, int chunk, bool up) {
    return up ? chunk ^ (line >> 3 & 3) << 1 : chunk ^ (line & 1) << 2;
}

template <class T>
struct Stage {
    using X = typename T::X;
    const CausalConvParams& p;
    const Tile& at;
    const Row& row;
    char* ring;
    int inputs;  // summed elements of the group

    __device__ X* weights(int slot) const {
        return (X*)(ring + (long long)slot * (p.w_bytes + p.x_bytes + T::DEPTH * 4));
    }
    __device__ X* staged(int slot) const { return (X*)((char*)weights(slot) + p.w_bytes); }
    __device__ int* offsets(int slot) const { return (int*)((char*)staged(slot) + p.x_bytes); }

    __device__ void copy(int slot, int stage) const {
        const int k = stage * T::DEPTH;
        copy_weights(weights(slot), k);
        copy_inputs(staged(slot), k);
        for (int i = threadIdx.x; i < T::DEPTH; i += THREADS) {
            const int kk = min(k + i, inputs - 1), c = kk / taps();
            const int tap = kk - c * taps(), local = c - k / taps();
            const int line = p.direct ? ldmatrix_line(i) : local;
            offsets(slot)[i] = line * p.pitch + tap * p.dilation * !p.up + at.shift;
        }
    }
    __device__ int taps() const { return p.up ? 1 : p.taps; }

    // [rows][DEPTH], or transposed [DEPTH][rows]: lines of 16-byte chunks.
    __device__ void copy_weights(X* to, int k) const {
        const int wide = (p.up ? T::WM * 64 : T::DEPTH) / T::E, lines = p.up ? T::DEPTH : p.rows;
        const long long pitch = p.up ? (long long)p.N * p.taps : inputs;
        const long long base = (long long)at.group * p.N * p.C * p.taps;
        for (int i = threadIdx.x; i < lines * wide; i += THREADS) {
            const int line = p.up ? i / (T::WM * 64 / T::E) : i / (T::DEPTH / T::E);
            const int chunk = i - line * wide;
            const int m = p.up ? chunk * T::E : line, kk = k + (p.up ? line : chunk * T::E);
            const long long from =
                base + (p.up ? kk * pitch + at.row + m : (at.row + m) * pitch + kk);
            X* const into = to + (line * wide + swizzled(line, chunk, p.up)) * T::E;
            const bool inside = m < at.rows && kk < inputs;
            if (p.w_aligned) {
                cp_async(into, inside ? (const X*)p.w + from : p.w, inside ? 16 : 0);
                continue;
            }
#pragma unroll
            for (int e = 0; e < T::E; ++e) {
                const bool element_inside = inside && (p.up ? m + e < at.rows : kk + e < inputs);
                if constexpr (sizeof(X) == 4)
                    into[e] = element_inside ? load_as_float(p.w, p.w_type, from + e) : 0.0f;
                else into[e] = element_inside ? ((const X*)p.w)[from + e] : zero<X>();
            }
        }
    }
    // This thread's share of the inputs: run(line in shared memory, channel of the group, unit of 8).
    template <class Run>
    __device__ void each_unit(int k, Run run) const {
        const int units = p.pitch / 8, first = k / taps();
        const int last = min((min(k + T::DEPTH, inputs) - 1) / taps(), p.C - 1);
        int lines = last - first + 1;
        if (p.direct) lines = (lines + 31) & ~31;
        int line = threadIdx.x / units, unit = threadIdx.x % units;
        const int lines_on = THREADS / units, units_on = THREADS % units;
        while (line < lines) {
            run(p.direct ? ldmatrix_line(line) : line, first + line, unit);
            line += lines_on;
            unit += units_on;
            if (unit >= units) {
                unit -= units;
                ++line;
            }
        }
    }
    __device__ void copy_inputs(X* to, int k) const {
        each_unit(k, [&](int line, int c, int unit) {
            const long long u = at.u + unit * 8;
            const int channel = at.group * p.C + c;
            X* const into = to + line * p.pitch + unit * 8;
            if (p.x_aligned && c < p.C && u >= 0 && u + 8 <= row.new_inputs) {
                const X* from = (const X*)p.x + at.b * p.x_batch + channel * p.x_row + u;
#pragma unroll
                for (int e = 0; e < 8; e += T::E) cp_async(into + e, from + e, 16);
                return;
            }
            X v[8];
            if (c < p.C) {
                gather8<X>(p, row, at.b, channel, u, v);
            } else {
#pragma unroll
                for (int e = 0; e < 8; ++e) v[e] = zero<X>();
            }
#pragma unroll
            for (int e = 0; e < 8; ++e) into[e] = v[e];
        });
    }
    // The activation before, in place, by the thread that copied: once per element and no barrier.
    __device__ void activate_inputs(int slot, int stage, float* scratch) const {
        if (p.before == NONE) return;
        X* const to = staged(slot);
        each_unit(stage * T::DEPTH, [&](int line, int c, int unit) {
            const int channel = at.group * p.C + min(c, p.C - 1);
            X* const of = to + line * p.pitch + unit * 8;
            float v[8];
            load8(of, v);
            const bool snake = p.before == SNAKE;
            activate(v, p.before, snake ? p.before_alpha[channel] : 0,
                     snake ? p.before_gain[channel] : 0, scratch);
            store8(of, v);
            if (p.terms == 1) return;
            float rounded[8];
            load8(of, rounded);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] -= rounded[e];
            store8((X*)((char*)of + p.term_bytes), v);
        });
    }
};
