// causal_conv: depthwise layers (groups of one input channel), bound by bandwidth; and the state update.
#pragma once
#include "conv/causal_conv_stage.cuh"

// A block takes p.rows output channels at p.cols * 8 times, p.cols threads each. Every input is read
// once, 16 bytes at a time, and activated on its way to shared memory as float32. A thread sums times
// p.cols apart, so that lanes read successive words (no bank conflicts); the sums are then transposed
// through shared memory, so that a thread stores 8 successive outputs by vector stores.
template <class X>
__device__ __forceinline__ void depthwise(const CausalConvParams& p) {
    float* const scratch = (float*)shared_memory() + threadIdx.x * 9;
    float* const weights = (float*)(shared_memory() + SCRATCH);   // [rows][taps]
    float* const lines = weights + ((p.rows * p.taps + 3) & ~3);  // [rows][pitch]
    unsigned i = blockIdx.x;
    const int first = (int)(i % p.rows_all) * p.rows;
    i /= p.rows_all;
    const long long time = (long long)(i % p.times_all) * p.step, b = i / p.times_all;
    const Row r = find_row(p, p.lengths, b);
    begin_state(p);
    const int rows = min(p.rows, p.groups * p.N - first);
    const bool empty = time >= r.count;
    long long u = r.begin + (p.up ? time / p.up : time * p.stride);
    const int shift = p.x_aligned ? (int)(u & 7) : 0;
    u -= shift;
    const int units = empty ? 0 : p.pitch / 8;
    for (int at = threadIdx.x; at < rows * units; at += THREADS) {
        const int line = at / units, unit = at % units;
        const int channel = (first + line) / p.N;
        const long long from = u + unit * 8;
        float v[8];
        if (p.x_aligned && from >= 0 && from + 8 <= r.new_inputs) {
            load8((const X*)p.x + b * p.x_batch + channel * p.x_row + from, v);
        } else {
            gather8<X>(p, r, b, channel, from, v);
        }
        const bool snake = p.before == SNAKE;
        activate(v, p.before, snake ? p.before_alpha[channel] : 0,
                 snake ? p.before_gain[channel] : 0, scratch);
        store8(lines + line * p.pitch + unit * 8, v);
    }
    for (int at = threadIdx.x; at < rows * p.taps; at += THREADS)
        weights[at] = load_as_float(p.w, p.w_type, (long long)first * p.taps + at);
    __syncthreads();
    const int line = threadIdx.x / p.cols, lane = threadIdx.x % p.cols;
    float v[8] = {};
    if (line < rows && !empty && p.up) {
        const float *from = lines + line * p.pitch, *w = weights + line * p.taps;
        sum_taps(p, (int)(time - u * p.up) + lane, p.cols, p.pitch, v,
                 [&](int tap, int column) { return w[tap] * from[column]; });
    } else if (line < rows && !empty) {
        const float* from = lines + line * p.pitch + lane * p.stride + shift;
        const int apart = p.cols * p.stride;
        for (int tap = 0; tap < p.taps; ++tap, from += p.dilation) {
            const float w = weights[line * p.taps + tap];
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = fmaf(w, from[j * apart], v[j]);
        }
    }
    __syncthreads();  // the sums replace the inputs: [rows][cols] of 8, padded to 9
    float* const sums = lines + line * p.cols * 9;
    if (line < rows) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int t = j * p.cols + lane;
            sums[t / 8 * 9 + t % 8] = v[j];
        }
    }
    __syncthreads();
    const long long o = time + lane * 8;
    if (line >= rows || o >= p.T) return;
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = sums[lane * 9 + j];
    epilogue8<X>(p, r, b, first + line, o, v, scratch);
}

// The next context, lengths and emitted, in a launch behind that of the outputs: a warp per row of the
// context. It may be updated in place, so a warp goes from its beginning on and reads before it writes.
template <class X>
__device__ __forceinline__ void next_state(const CausalConvParams& p) {
    const unsigned channels = p.span ? p.groups * p.C : 1,
                   at = blockIdx.x * WARPS + threadIdx.x / 32;
    const long long b = at / channels;
    const int c = (int)(at % channels);
    if (b >= p.B) return;
    const int lane = threadIdx.x % 32;
    const Row r = find_row(p, p.seen ? p.seen : p.lengths, b);
    if (c == 0 && lane == 0) next_counters(p, r, b);
    X* const to = (X*)p.context_out + (long long)at * p.span;
    for (int w = lane; w - lane < p.span; w += 32) {
        X v = zero<X>();
        const X* from = nullptr;
        if (w < p.span && !r.done) from = input_at<X>(p, r, b, c, r.new_inputs - p.span + w);
        if (from) v = *from;
        __syncwarp();
        if (w < p.span) to[w] = v;
    }
}
