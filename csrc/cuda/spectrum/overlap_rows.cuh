// What overlap_add and spectrum_head share: a row of a stream, and the way from a sum of windowed
// frames to a sample or to what is carried. Sample i of hop t of a row lies at t hop + i, counted
// from the first frame of this call; it has ceil(F / hop) parts, part j being of frame t - j.
#pragma once
#include "lib/common.cuh"

struct OverlapParams {  // the order and sizes are known to mingcore/ops/cuda_audio.py
    const void* frames;        // [B, T, F], or spectra of as many
    const float* window;       // [F]
    const float* numerator;    // [B, F - hop]; null: new streams
    u64* lengths;              // [B]; null: new streams
    const long long* valid;    // [B]; null: T
    const unsigned char* ended;  // [B]; null: last
    float* out;                // [B, outputs]
    float* numerator_out;      // [B, F - hop]
    u64* lengths_out;          // [B]
    long long* emitted;        // [B]
    const void* turns;         // spectrum_head: e^(2 pi i k / F) [F]
    long long frames_batch, frames_row;
    int T, F, hop, outputs;
    int last, in_place;       // in place: lengths_out is lengths
    int hops, columns;        // of a block; spectrum_head: its blocks take all columns
    int stripes, chunks;      // blocks side by side, and one after the other, of a row
    int group;                // spectrum_head: frames that a block transforms at once
    int radices[13];          // spectrum_head: of the transform of F / 2 points, then 0
};

constexpr int LENGTH_BITS = 48;  // of lengths, in place; the bits above count the blocks that read

struct Row {
    long long b;
    int before, fresh;  // frames: had (as many as make a difference), and new
    int skip, gives;    // samples: dropped at first, and of the row's own in out
    bool done;

    __device__ int parts(const OverlapParams& p) const { return (p.F + p.hop - 1) / p.hop; }
};

// The row of a block; all of its threads call. word: in shared memory. Where the state is written
// in place, every block of a row adds one reader to lengths, and the last reader writes it.
__device__ __forceinline__ Row row_of(const OverlapParams& p, long long b, bool first, u64* word) {
    const u64 readers = (u64)p.stripes * p.chunks;
    if (threadIdx.x == 0) {
        u64 old = 0;
        if (p.in_place)
            old = add_release(p.lengths + b, 1ull << LENGTH_BITS);
        else if (p.lengths)
            old = p.lengths[b];
        *word = old;
    }
    __syncthreads();
    const u64 before = *word & ((1ull << LENGTH_BITS) - 1);
    const bool writes = p.in_place ? (*word >> LENGTH_BITS) + 1 == readers : first;
    const int carried = p.F - p.hop, trim = carried / 2;
    Row r;
    r.b = b;
    r.before = before < (u64)p.F ? (int)before : p.F;
    r.fresh = p.valid && p.valid[b] < p.T ? (int)p.valid[b] : p.T;
    r.done = p.ended ? p.ended[b] != 0 : p.last != 0;
    r.skip = r.before < r.parts(p) ? max(trim - r.before * p.hop, 0) : 0;
    const int end = r.fresh * p.hop + (r.done && r.before + r.fresh > 0 ? carried - trim : 0);
    r.gives = min(max(end - r.skip, 0), p.outputs);
    if (threadIdx.x == 0 && writes) {
        p.lengths_out[b] = r.done ? 0 : before + r.fresh;
        p.emitted[b] = r.gives;
    }
    return r;
}

// WIDTH columns from i on of hop t; WIDTH divides whatever they are compared with.
template <int WIDTH>
__device__ __forceinline__ void carried_sum(const OverlapParams& p, const Row& r, int t, int i,
                                            float (&sum)[WIDTH]) {
    const int at = t * p.hop + i;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum[k] = 0;
    if (p.numerator && r.before > 0 && at < p.F - p.hop)
        load<WIDTH>(p.numerator + r.b * (p.F - p.hop) + at, sum);
}
template <int WIDTH>
__device__ __forceinline__ void finish(const OverlapParams& p, const Row& r, int t, int i,
                                       float (&sum)[WIDTH]) {
    const int at = t * p.hop + i, o = at - r.skip, carried = p.F - p.hop;
    const int c = at - r.fresh * p.hop;
    if (c >= 0 && c < carried) {
        float to[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) to[k] = r.done ? 0.0f : sum[k];
        store<WIDTH>(p.numerator_out + r.b * carried + c, to);
    }
    if (o < 0 || o >= p.outputs) return;
    float envelope[WIDTH] = {}, w[WIDTH];
    for (int j = r.parts(p) - 1; j >= 0; --j) {
        const int n = j * p.hop + i;
        if (n >= p.F || t - j < -r.before || t - j >= r.fresh) continue;
        load<WIDTH>(p.window + n, w);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) envelope[k] = fmaf(w[k], w[k], envelope[k]);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum[k] = o < r.gives ? sum[k] / envelope[k] : 0.0f;
    store<WIDTH>(p.out + r.b * p.outputs + o, sum);
}
