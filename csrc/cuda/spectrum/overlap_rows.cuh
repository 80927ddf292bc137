// Shared by overlap_add and spectrum_head: a row of a streamed batch, and the epilogue from a sum of
// windowed frames to a sample or to the carried state. Sample i of hop t of a row lies at t hop + i,
// counted from the first frame of this call; it has ceil(F / hop) parts, part j being of frame t - j.
#pragma once
#include "lib/ld_st.cuh"
#include "lib/shared_memory.cuh"
#include "lib/vector.cuh"

struct OverlapParams {           // the order and sizes are known to mingcore/ops/cuda_audio.py
    const void* frames;          // [B, T, F], or spectra of as many
    const float* window;         // [F]
    const float* numerator;      // [B, F - hop]; null: new streams
    u64* lengths;                // [B]; null: new streams
    const long long* valid;      // [B]; null: T
    const unsigned char* ended;  // [B]; null: last
    float* out;                  // [B, outputs]
    float* numerator_out;        // [B, F - hop]
    u64* lengths_out;            // [B]
    long long* emitted;          // [B]
    const void* twiddles;        // spectrum_head: e^(2 pi i k / F) [F]
    long long frames_batch, frames_row;
    int T, F, hop, outputs;
    int last, in_place;   // in place: lengths_out is lengths
    int hops, columns;    // of a block; spectrum_head: its blocks take all columns
    int stripes, chunks;  // blocks of a row: along columns, and along hops
    int group;            // spectrum_head: frames of a batched FFT
    int radices[13];      // spectrum_head: of the FFT of F / 2 points, then 0
};

constexpr int LENGTH_BITS = 48;  // in place: low bits of lengths; those above count reading blocks

struct Row {
    long long b;
    int before, new_frames;  // frames of earlier calls (capped at F), and new ones
    int skip, emitted;       // samples: trimmed at the beginning, and valid in out
    bool done;               // the stream ends here

    __device__ int parts(const OverlapParams& p) const { return (p.F + p.hop - 1) / p.hop; }
};

// The row of a block; all of its threads call. word: in shared memory. Where the state is updated in
// place, several blocks read the same `lengths`: each adds itself to a reader count in its high bits
// by an atomic add, and the last reader writes the new value.
__device__ __forceinline__ Row find_row(const OverlapParams& p, long long b, bool first,
                                        u64* word) {
    const u64 readers = (u64)p.stripes * p.chunks;
    if (threadIdx.x == 0) {
        u64 old = 0;
        if (p.in_place) old = atom_add_acq_rel(p.lengths + b, 1ull << LENGTH_BITS);
        else if (p.lengths) old = p.lengths[b];
        *word = old;
    }
    __syncthreads();
    const u64 before = *word & ((1ull << LENGTH_BITS) - 1);
    const bool writes = p.in_place ? (*word >> LENGTH_BITS) + 1 == readers : first;
    const int carried = p.F - p.hop, trim = carried / 2;
    Row r;
    r.b = b;
    r.before = before < (u64)p.F ? (int)before : p.F;
    r.new_frames = p.valid && p.valid[b] < p.T ? (int)p.valid[b] : p.T;
    r.done = p.ended ? p.ended[b] != 0 : p.last != 0;
    r.skip = r.before < r.parts(p) ? max(trim - r.before * p.hop, 0) : 0;
    const int end =
        r.new_frames * p.hop + (r.done && r.before + r.new_frames > 0 ? carried - trim : 0);
    r.emitted = min(max(end - r.skip, 0), p.outputs);
    if (threadIdx.x == 0 && writes) {
        p.lengths_out[b] = r.done ? 0 : before + r.new_frames;
        p.emitted[b] = r.emitted;
    }
    return r;
}

// WIDTH columns from i on of hop t; WIDTH divides every bound that they are compared with.
template <int WIDTH>
__device__ __forceinline__ void load_carried(const OverlapParams& p, const Row& r, int t, int i,
                                             float (&sum)[WIDTH]) {
    const int at = t * p.hop + i;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum[k] = 0;
    if (p.numerator && r.before > 0 && at < p.F - p.hop)
        load<WIDTH>(p.numerator + r.b * (p.F - p.hop) + at, sum);
}
template <int WIDTH>
__device__ __forceinline__ void write_sample(const OverlapParams& p, const Row& r, int t, int i,
                                             float (&sum)[WIDTH]) {
    const int at = t * p.hop + i, o = at - r.skip, carried = p.F - p.hop;
    const int c = at - r.new_frames * p.hop;
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
        if (n >= p.F || t - j < -r.before || t - j >= r.new_frames) continue;
        load<WIDTH>(p.window + n, w);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) envelope[k] = fmaf(w[k], w[k], envelope[k]);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum[k] = o < r.emitted ? sum[k] / envelope[k] : 0.0f;
    store<WIDTH>(p.out + r.b * p.outputs + o, sum);
}
