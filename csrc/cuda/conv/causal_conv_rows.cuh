// causal_conv: the parameters, rows of a streamed batch, inputs by index across context and padding,
// activations and the epilogue.
#pragma once
#include "lib/vector.cuh"

struct CausalConvParams {  // the order and sizes are known to mingcore/ops/cuda_conv.py
    const void* x;         // [B, groups * C, L]
    const void* w;         // [groups * N, C, taps], or transposed [groups * C, N, taps]
    const void* bias;      // [groups * N] or null
    const void* residual;  // [B, groups * N, T] or null
    const void* context;   // [B, groups * C, span] of x's type, or null: every row begins
    const float *before_alpha, *before_gain, *after_alpha, *after_gain;
    const long long* lengths;    // [B] or null: every row begins
    const long long* valid;      // [B] or null: L each
    const unsigned char* ended;  // [B] or null: `last` for all
    void* out;                   // [B, groups * N, T]
    void* context_out;           // may be context
    long long *lengths_out, *emitted;
    long long* seen;  // [B]: what lengths held, for the kernel that overwrites it
    long long x_batch, x_row, x_time, residual_batch, residual_row, residual_time;
    long long out_batch, out_row, out_time;
    long long B, L, T;
    int C, N, groups;  // C, N: inputs and outputs of a group
    int taps, stride, dilation;
    int up;    // 0, or of the transposed convolution its stride; `stride` is then 1
    int span;  // inputs carried: (taps - 1) dilation, transposed that over the stride
    int left_pad, flush, replicate, last;
    int before, after;                                        // Act
    int w_type, bias_type, residual_type;                     // Type
    int x_aligned, w_aligned, out_aligned, residual_aligned;  // 16-byte accesses are possible
    // tiles of the GEMM: rows, the output channels that these are, columns, of which `step` are its
    // own; tiles along both
    int rows, channels, cols, step, rows_all, times_all;
    int direct;                    // one tap, no stride: staged inputs are read by ldmatrix
    int pitch;                     // elements from one staged channel to the next
    int stages, w_bytes, x_bytes;  // of the ring in shared memory
    int terms, term_bytes;         // 16-bit terms whose sum a staged input is: 1 or 2
    int stateless, unused;  // 1x1: the state is only counters, updated by the launch of the outputs
};

constexpr int THREADS = 256, WARPS = THREADS / 32;

enum Act { NONE, SILU, ELU, GELU, GELU_TANH, TANH, SNAKE };
enum Type { FLOAT32, BFLOAT16, FLOAT16 };

__device__ __forceinline__ long long floor_div(long long a, long long b) {
    return a >= 0 ? a / b : -((b - 1 - a) / b);
}

// One row of the batch.
struct Row {
    long long seen, new_inputs;  // inputs of earlier calls, and of this one
    long long begin;             // index in x that the first output reads first, may be negative
    long long count;             // outputs
    bool done;                   // the stream ends here
};

// Outputs of a stream after so many inputs; at its end, until every input is covered.
__device__ __forceinline__ long long outputs_after(const CausalConvParams& p, long long inputs,
                                                   bool over) {
    const long long have = inputs + p.left_pad, beyond = p.span + 1 - p.stride;
    long long n = over ? -floor_div(-(have - (beyond > 0 ? beyond : 0)), p.stride)
                       : floor_div(have - p.span - 1, p.stride) + 1;
    return n > 0 && !(over && inputs == 0) ? n : 0;
}
__device__ __forceinline__ Row find_row(const CausalConvParams& p, const long long* lengths,
                                        long long b) {
    Row r;
    r.seen = lengths ? lengths[b] : 0;
    r.new_inputs = p.valid ? p.valid[b] : p.L;
    r.done = p.ended ? p.ended[b] != 0 : p.last != 0;
    if (p.stateless) {
        r.begin = 0;
        r.count = r.new_inputs;
    } else if (p.up) {
        r.begin = -p.span;
        r.count = r.new_inputs * p.up + (r.done && r.seen + r.new_inputs > 0 ? p.flush : 0);
    } else {
        const long long earlier = outputs_after(p, r.seen, false);
        r.begin = earlier * p.stride - p.left_pad - r.seen;
        r.count = outputs_after(p, r.seen + r.new_inputs, r.done) - earlier;
    }
    if (r.count > p.T) r.count = p.T;
    return r;
}

__device__ __forceinline__ void next_counters(const CausalConvParams& p, const Row& r,
                                              long long b) {
    p.lengths_out[b] = r.done ? 0 : r.seen + r.new_inputs;
    p.emitted[b] = r.count;
}
// By the first block: a copy of `lengths` that is overwritten later, or the new counters themselves.
__device__ __forceinline__ void begin_state(const CausalConvParams& p) {
    if (blockIdx.x != 0) return;
    for (long long b = threadIdx.x; b < p.B; b += THREADS) {
        if (p.stateless) next_counters(p, find_row(p, p.lengths, b), b);
        else if (p.seen) p.seen[b] = p.lengths[b];
    }
}

template <class X>
__device__ __forceinline__ X zero() {
    X v;
    narrow(0.0f, v);
    return v;
}
// The address of input u of x: below 0 in the context; padding is null, or replicated.
template <class X>
__device__ __forceinline__ const X* input_at(const CausalConvParams& p, const Row& r, long long b,
                                             int channel, long long u) {
    const X* x = (const X*)p.x + b * p.x_batch + channel * p.x_row;
    if (u >= r.new_inputs) {
        if (!p.replicate) return nullptr;
        u = r.new_inputs - 1;
    }
    if (u >= 0) return x + u * p.x_time;
    if (u < -p.span) return nullptr;  // only of columns that nobody reads
    if (r.seen > 0)
        return (const X*)p.context + (b * p.groups * p.C + channel) * p.span + p.span + u;
    return p.replicate && p.L > 0 ? x : nullptr;
}
__device__ __forceinline__ int clamp8(long long v) { return v < 0 ? 0 : v > 8 ? 8 : (int)v; }
// Eight inputs from u on, one load each: x from `first` to `end`, before it the context, beyond both
// the padding.
template <class X, class To>
__device__ __forceinline__ void gather8(const CausalConvParams& p, const Row& r, long long b,
                                        int channel, long long u, To (&v)[8]) {
    const int first = clamp8(-u), end = clamp8(r.new_inputs - u);
    const int start = clamp8(-p.span - u);
    const X* x = (const X*)p.x + b * p.x_batch + channel * p.x_row + u * p.x_time;
    const X* head = nullptr;
    const X* tail = nullptr;
    if (first > start) head = input_at<X>(p, r, b, channel, u + start);
    if (end < 8 && p.replicate) tail = input_at<X>(p, r, b, channel, r.new_inputs);
    const int step = r.seen > 0;
#pragma unroll
    for (int e = 0; e < 8; ++e, x += p.x_time) {
        const X* from = e >= end ? tail : e >= first ? x : e >= start ? head : nullptr;
        if (e >= start) head += head ? step : 0;
        const X value = from ? *from : zero<X>();
        if constexpr (is_same<X, To>) v[e] = value;
        else v[e] = widen(value);
    }
}

__device__ __forceinline__ float load_as_float(const void* from, int type, long long at) {
    if (type == FLOAT32) return ((const float*)from)[at];
    return type == BFLOAT16 ? widen(((const bf16*)from)[at]) : widen(((const f16*)from)[at]);
}

// sin(x)^2. Up to 1e4 by Cody-Waite reduction, pi in three parts whose multiples are exact, then an odd
// polynomial for |r| <= pi/2 (our own minimax fit: relative error 6e-9 before rounding). Beyond by
// Payne-Hanek: x / pi in 64-bit fixed point, from the bits of 2 / pi that matter at x's exponent.
constexpr float CODY_WAITE_MAX = 1e4f;
__device__ __forceinline__ float sin_squared_poly(float r) {
    const float s = r * r;
    float q = fmaf(2.605780557e-6f, s, -1.980960289e-4f);
    q = fmaf(q, s, 8.333066246e-3f);
    q = fmaf(q, s, -1.666665955e-1f);
    const float y = fmaf(r * s, q, r);
    return y * y;
}
__device__ __forceinline__ float sin_squared_cody_waite(float x) {
    const float n = rintf(x * 0.318309886f);
    float r = fmaf(n, -3.140625f, x);
    r = fmaf(n, -9.675025939941406e-4f, r);
    return sin_squared_poly(fmaf(n, -1.5099580252808664e-7f, r));
}
__device__ const unsigned TWO_OVER_PI[7] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1,
                                            0xf534ddc0, 0xdb629599, 0x3c439041};
__device__ __forceinline__ float sin_squared_payne_hanek(float x) {
    const unsigned bits = __float_as_uint(x), exponent = bits >> 23 & 255;
    if (exponent == 255) return x - x;
    const int at = (int)exponent - 150 - 1 + 32;  // first bit of 1 / pi times x's last bit
    const unsigned* word = TWO_OVER_PI + at / 32;
    u64 fraction = (u64)word[0] << 32 | word[1];
    if (at % 32) fraction = fraction << at % 32 | word[2] >> (32 - at % 32);
    fraction *= (bits & 0x7fffff) | 0x800000;  // whole multiples of pi overflow
    return sin_squared_poly((float)(int)(fraction >> 32) * (3.14159265f / 4294967296.0f));
}
__device__ __forceinline__ float activate(float v, int act, float alpha, float gain) {
    switch (act) {
        case SILU: return __fdividef(v, 1.0f + expf(-v));
        case ELU: return v > 0 ? v : expm1f(v);
        case GELU: return 0.5f * v * (1.0f + erff(v * 0.707106781f));
        case GELU_TANH:
            return 0.5f * v * (1.0f + tanhf(0.797884561f * fmaf(0.044715f * v * v, v, v)));
        case TANH: return tanhf(v);
        case SNAKE: {
            const float angle = alpha * v;
            const float s = fabsf(angle) < CODY_WAITE_MAX ? sin_squared_cody_waite(angle)
                                                          : sin_squared_payne_hanek(angle);
            return fmaf(gain, s, v);
        }
        default: return v;
    }
}
// Eight values of one channel. Snake is unrolled in registers; the other activations run one value at
// a time through `scratch`, 8 floats of this thread in shared memory, so that their code is not
// unrolled eight times.
__device__ __forceinline__ void activate(float (&v)[8], int act, float alpha, float gain,
                                         float* scratch) {
    if (act == NONE) return;
    if (act == SNAKE) {
        bool small = true;
#pragma unroll
        for (int i = 0; i < 8; ++i) small = small && fabsf(alpha * v[i]) < CODY_WAITE_MAX;
        if (small) {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                v[i] = fmaf(gain, sin_squared_cody_waite(alpha * v[i]), v[i]);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scratch[i] = v[i];
#pragma unroll 1
    for (int i = 0; i < 8; ++i) scratch[i] = activate(scratch[i], act, alpha, gain);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = scratch[i];
}

// Eight successive elements, by one or two vector accesses.
template <class X>
__device__ __forceinline__ void load8(const X* from, float (&v)[8]) {
    constexpr int E = 16 / sizeof(X);
#pragma unroll
    for (int k = 0; k < 8; k += E) {
        float part[E];
        load<E>(from + k, part);
#pragma unroll
        for (int i = 0; i < E; ++i) v[k + i] = part[i];
    }
}
template <class X>
__device__ __forceinline__ void store8(X* to, const float (&v)[8]) {
    constexpr int E = 16 / sizeof(X);
#pragma unroll
    for (int k = 0; k < 8; k += E) {
        float part[E];
#pragma unroll
        for (int i = 0; i < E; ++i) part[i] = v[k + i];
        store<E>(to + k, part);
    }
}
// col2im of a transposed convolution: eight outputs, `apart` from each other, as sums of
// product(tap, column) over all that contribute. o: the first output, counted from the one that tap 0
// of column 0 contributes to.
template <class Product>
__device__ __forceinline__ void sum_taps(const CausalConvParams& p, int o, int apart, int columns,
                                         float (&v)[8], Product product) {
#pragma unroll 1
    for (int e = 0; e < 8; ++e, o += apart) {
        float sum = 0;
        if (p.dilation == 1) {
            int column = o / p.up;
            for (int tap = o % p.up; tap < p.taps && column >= 0; tap += p.up, --column)
                if (column < columns) sum += product(tap, column);
        } else {
            for (int tap = 0; tap < p.taps; ++tap) {
                const int from = o - tap * p.dilation, column = from / p.up;
                if (from >= 0 && from % p.up == 0 && column < columns) sum += product(tap, column);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i == e) v[i] = sum;
    }
}
// Epilogue of eight successive outputs of channel n from o on: bias, activation, residual; beyond the
// row's count zeros.
template <class X>
__device__ __forceinline__ void epilogue8(const CausalConvParams& p, const Row& r, long long b,
                                          long long n, long long o, float (&v)[8], float* scratch) {
    const float bias = p.bias ? load_as_float(p.bias, p.bias_type, n) : 0.0f;
    const bool snake = p.after == SNAKE;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += bias;
    activate(v, p.after, snake ? p.after_alpha[n] : 0, snake ? p.after_gain[n] : 0, scratch);
    X* out = (X*)p.out + b * p.out_batch + n * p.out_row;
    const long long from = b * p.residual_batch + n * p.residual_row;
    if (o + 8 <= p.T && p.out_aligned && (!p.residual || p.residual_aligned)) {
        if (p.residual) {
            float add[8];
            load8((const X*)p.residual + from + o, add);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += add[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = o + i < r.count ? v[i] : 0.0f;
        store8(out + o, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scratch[i] = v[i];
#pragma unroll 2
    for (int i = 0; i < 8; ++i, ++o) {
        if (o >= p.T) break;
        float sum = scratch[i];
        if (p.residual)
            sum += load_as_float(p.residual, p.residual_type, from + o * p.residual_time);
        narrow(o < r.count ? sum : 0.0f, out[o * p.out_time]);
    }
}
