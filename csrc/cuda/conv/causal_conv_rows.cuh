// causal_conv: the parameters, the rows of a stream's batch, one input by its place, and activations.
#pragma once
#include "lib/weights.cuh"

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
    int up;      // 0, or of the transposed convolution its stride; `stride` is then 1
    int span;    // inputs carried: (taps - 1) dilation, transposed that over the stride
    int left_pad, flush, replicate, last;
    int before, after;                       // Act
    int w_type, bias_type, residual_type;    // Type
    int x_fast, w_fast, out_fast, residual_fast;  // 16 bytes may move at once
    // a tile: rows of the product, of so many output channels, at columns of which `step` are its
    // own; how many tiles there are
    int rows, channels, cols, step, rows_all, times_all;
    int direct;                    // one tap, no stride: staged inputs are read as matrices
    int pitch;                     // elements from one staged channel to the next
    int stages, w_bytes, x_bytes;  // of the ring in shared memory
    int parts, part_bytes;         // staged inputs as one value each, or as two whose sum they are
    int alone, unused;  // an input makes an output, whatever the row has had: the outputs' launch
                        // renews the state, which is only counters
};

constexpr int THREADS = 256, WARPS = THREADS / 32;

enum Act { NONE, SILU, ELU, GELU, GELU_TANH, TANH, SNAKE };
enum Type { FLOAT32, BFLOAT16, FLOAT16 };

__device__ __forceinline__ long long floor_div(long long a, long long b) {
    return a >= 0 ? a / b : -((b - 1 - a) / b);
}

// One row of the batch: what it has had and gets; the place in x, perhaps negative, that its first
// output reads first; and how many outputs there are.
struct Row {
    long long seen, fresh, begin, count;
    bool done;
};

// Outputs of a stream after so many inputs; once it is over, until every input is covered.
__device__ __forceinline__ long long outputs_after(const CausalConvParams& p, long long inputs,
                                                   bool over) {
    const long long have = inputs + p.left_pad, beyond = p.span + 1 - p.stride;
    long long n = over ? -floor_div(-(have - (beyond > 0 ? beyond : 0)), p.stride)
                       : floor_div(have - p.span - 1, p.stride) + 1;
    return n > 0 && !(over && inputs == 0) ? n : 0;
}
__device__ __forceinline__ Row row_of(const CausalConvParams& p, const long long* lengths,
                                      long long b) {
    Row r;
    r.seen = lengths ? lengths[b] : 0;
    r.fresh = p.valid ? p.valid[b] : p.L;
    r.done = p.ended ? p.ended[b] != 0 : p.last != 0;
    if (p.alone) {
        r.begin = 0;
        r.count = r.fresh;
    } else if (p.up) {
        r.begin = -p.span;
        r.count = r.fresh * p.up + (r.done && r.seen + r.fresh > 0 ? p.flush : 0);
    } else {
        const long long earlier = outputs_after(p, r.seen, false);
        r.begin = earlier * p.stride - p.left_pad - r.seen;
        r.count = outputs_after(p, r.seen + r.fresh, r.done) - earlier;
    }
    if (r.count > p.T) r.count = p.T;
    return r;
}

__device__ __forceinline__ void next_counters(const CausalConvParams& p, const Row& r, long long b) {
    p.lengths_out[b] = r.done ? 0 : r.seen + r.fresh;
    p.emitted[b] = r.count;
}
// The first block's part for the state: what will be overwritten, or the state itself.
__device__ __forceinline__ void begin_state(const CausalConvParams& p) {
    if (blockIdx.x != 0) return;
    for (long long b = threadIdx.x; b < p.B; b += THREADS) {
        if (p.alone)
            next_counters(p, row_of(p, p.lengths, b), b);
        else if (p.seen)
            p.seen[b] = p.lengths[b];
    }
}

template <class X>
__device__ __forceinline__ X zero() {
    X v;
    narrow(0.0f, v);
    return v;
}
// Where the input at place u of x is: before 0 in the context, or it is padding: null, or replicated.
template <class X>
__device__ __forceinline__ const X* place_of(const CausalConvParams& p, const Row& r, long long b,
                                             int channel, long long u) {
    const X* x = (const X*)p.x + b * p.x_batch + channel * p.x_row;
    if (u >= r.fresh) {
        if (!p.replicate) return nullptr;
        u = r.fresh - 1;
    }
    if (u >= 0) return x + u * p.x_time;
    if (u < -p.span) return nullptr;  // only columns that nobody asks for
    if (r.seen > 0)
        return (const X*)p.context + (b * p.groups * p.C + channel) * p.span + p.span + u;
    return p.replicate && p.L > 0 ? x : nullptr;
}
__device__ __forceinline__ int within_eight(long long v) { return v < 0 ? 0 : v > 8 ? 8 : (int)v; }
// The eight from place u on, to shared memory, one load each: inputs from `first` to `end`, before
// them the context, beyond both what pads.
template <class X, class To>
__device__ __forceinline__ void gather_eight(const CausalConvParams& p, const Row& r, long long b,
                                             int channel, long long u, To (&v)[8]) {
    const int first = within_eight(-u), end = within_eight(r.fresh - u);
    const int start = within_eight(-p.span - u);
    const X* x = (const X*)p.x + b * p.x_batch + channel * p.x_row + u * p.x_time;
    const X* head = nullptr;
    const X* tail = nullptr;
    if (first > start) head = place_of<X>(p, r, b, channel, u + start);
    if (end < 8 && p.replicate) tail = place_of<X>(p, r, b, channel, r.fresh);
    const int along = r.seen > 0;
#pragma unroll
    for (int e = 0; e < 8; ++e, x += p.x_time) {
        const X* from = e >= end ? tail : e >= first ? x : e >= start ? head : nullptr;
        if (e >= start) head += head ? along : 0;
        const X value = from ? *from : zero<X>();
        if constexpr (same<X, To>)
            v[e] = value;
        else
            v[e] = widen(value);
    }
}

__device__ __forceinline__ float load_any(const void* from, int type, long long at) {
    if (type == FLOAT32) return ((const float*)from)[at];
    return type == BFLOAT16 ? widen(((const bf16*)from)[at]) : widen(((const f16*)from)[at]);
}

// sin(x)^2. Up to 1e4 in three steps of pi, whose multiples are exact, then an odd polynomial for
// |r| <= pi/2 (our own minimax fit: relative error 6e-9 before rounding); beyond, x / pi in 64 bits
// behind the point, from the bits of 2 / pi that matter at x's exponent.
constexpr float NEAR = 1e4f;
__device__ __forceinline__ float sin_squared_of(float r) {
    const float s = r * r;
    float q = fmaf(2.605780557e-6f, s, -1.980960289e-4f);
    q = fmaf(q, s, 8.333066246e-3f);
    q = fmaf(q, s, -1.666665955e-1f);
    const float y = fmaf(r * s, q, r);
    return y * y;
}
__device__ __forceinline__ float sin_squared_near(float x) {
    const float n = rintf(x * 0.318309886f);
    float r = fmaf(n, -3.140625f, x);
    r = fmaf(n, -9.675025939941406e-4f, r);
    return sin_squared_of(fmaf(n, -1.5099580252808664e-7f, r));
}
__device__ const unsigned TWO_OVER_PI[7] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1,
                                            0xf534ddc0, 0xdb629599, 0x3c439041};
__device__ __forceinline__ float sin_squared_far(float x) {
    const unsigned bits = __float_as_uint(x), exponent = bits >> 23 & 255;
    if (exponent == 255) return x - x;
    const int at = (int)exponent - 150 - 1 + 32;  // of 1 / pi behind the point, times x's last bit
    const unsigned* word = TWO_OVER_PI + at / 32;
    u64 turn = (u64)word[0] << 32 | word[1];
    if (at % 32) turn = turn << at % 32 | word[2] >> (32 - at % 32);
    turn *= (bits & 0x7fffff) | 0x800000;  // whole turns of pi fall off the top
    return sin_squared_of((float)(int)(turn >> 32) * (3.14159265f / 4294967296.0f));
}
__device__ __forceinline__ float activate(float v, int act, float alpha, float gain) {
    switch (act) {
        case SILU:
            return __fdividef(v, 1.0f + expf(-v));
        case ELU:
            return v > 0 ? v : expm1f(v);
        case GELU:
            return 0.5f * v * (1.0f + erff(v * 0.707106781f));
        case GELU_TANH:
            return 0.5f * v * (1.0f + tanhf(0.797884561f * fmaf(0.044715f * v * v, v, v)));
        case TANH:
            return tanhf(v);
        case SNAKE: {
            const float turn = alpha * v;
            const float s = fabsf(turn) < NEAR ? sin_squared_near(turn) : sin_squared_far(turn);
            return fmaf(gain, s, v);
        }
        default:
            return v;
    }
}
// Eight values of one channel. Snake, where it matters, in registers; the others one by one through
// `scratch`, 8 floats of this thread: their code stands once.
__device__ __forceinline__ void activate(float (&v)[8], int act, float alpha, float gain,
                                         float* scratch) {
    if (act == NONE) return;
    if (act == SNAKE) {
        bool near = true;
#pragma unroll
        for (int i = 0; i < 8; ++i) near = near && fabsf(alpha * v[i]) < NEAR;
        if (near) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = fmaf(gain, sin_squared_near(alpha * v[i]), v[i]);
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

// Eight neighbouring elements, 16 or 32 bytes.
template <class X>
__device__ __forceinline__ void load_eight(const X* from, float (&v)[8]) {
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
__device__ __forceinline__ void store_eight(X* to, const float (&v)[8]) {
    constexpr int E = 16 / sizeof(X);
#pragma unroll
    for (int k = 0; k < 8; k += E) {
        float part[E];
#pragma unroll
        for (int i = 0; i < E; ++i) part[i] = v[k + i];
        store<E>(to + k, part);
    }
}
// Eight outputs of a transposed convolution, `apart` from each other: what(tap, column) over all that
// meet in them. o: the first one's distance from what tap 0 of column 0 reaches.
template <class What>
__device__ __forceinline__ void over_taps(const CausalConvParams& p, int o, int apart, int columns,
                                          float (&v)[8], What what) {
#pragma unroll 1
    for (int e = 0; e < 8; ++e, o += apart) {
        float sum = 0;
        if (p.dilation == 1) {
            int column = o / p.up;
            for (int tap = o % p.up; tap < p.taps && column >= 0; tap += p.up, --column)
                if (column < columns) sum += what(tap, column);
        } else {
            for (int tap = 0; tap < p.taps; ++tap) {
                const int from = o - tap * p.dilation, column = from / p.up;
                if (from >= 0 && from % p.up == 0 && column < columns) sum += what(tap, column);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i == e) v[i] = sum;
    }
}
// Sums of eight successive outputs, of output channel n from o on, become outputs: bias, activation,
// residual; beyond the row's count zeros.
template <class X>
__device__ __forceinline__ void finish_eight(const CausalConvParams& p, const Row& r, long long b,
                                             long long n, long long o, float (&v)[8],
                                             float* scratch) {
    const float bias = p.bias ? load_any(p.bias, p.bias_type, n) : 0.0f;
    const bool snake = p.after == SNAKE;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += bias;
    activate(v, p.after, snake ? p.after_alpha[n] : 0, snake ? p.after_gain[n] : 0, scratch);
    X* out = (X*)p.out + b * p.out_batch + n * p.out_row;
    const long long from = b * p.residual_batch + n * p.residual_row;
    if (o + 8 <= p.T && p.out_fast && (!p.residual || p.residual_fast)) {
        if (p.residual) {
            float add[8];
            load_eight((const X*)p.residual + from + o, add);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += add[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = o + i < r.count ? v[i] : 0.0f;
        store_eight(out + o, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scratch[i] = v[i];
#pragma unroll 2
    for (int i = 0; i < 8; ++i, ++o) {
        if (o >= p.T) break;
        float sum = scratch[i];
        if (p.residual)
            sum += load_any(p.residual, p.residual_type, from + o * p.residual_time);
        narrow(o < r.count ? sum : 0.0f, out[o * p.out_time]);
    }
}
