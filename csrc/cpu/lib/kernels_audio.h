// The plain-data interface of the streamed ops of sound: convolutions, overlap-add, spectrum head.
// Part of kernels.h; sizes and strides are in elements.
#pragma once

namespace mingcore {

enum class ConvAct : int32_t { none, silu, elu, gelu, gelu_tanh, tanh, snake };

// Which rows of a batch take part in a call of a stream; all [B].
struct StreamRows {
    const int64_t* lengths;  // inputs that a row has had; null: none
    const int64_t* valid;    // how many of this call's are its own; null: all
    const bool* ended;       // null: `last` for all
    bool last;
    int64_t* lengths_out;  // may be `lengths`
    int64_t* emitted;
};

struct Operand3 {  // [B, C, L]: data is null when absent
    char* data;
    Dtype dtype;
    int64_t batch, channel, time;
};

struct Activation {  // alpha, gain [C] float32: for snake
    ConvAct act;
    const float *alpha, *gain;
};

// out = after(conv(before(x)) + bias) + residual. A transposed convolution comes as one of stride 1
// whose `up` outputs per channel (row c * up + r of its matrix) are interleaved in time.
struct ConvArgs {
    int64_t B, C, N, L, T;         // N output channels, T outputs
    Operand3 x, residual, out;     // time: 1 for x and residual; out any
    const void* context;           // [B, C, W] of x's type, or null: W = (taps - 1) dilation
    void* context_out;             // [B, C, W]; may be `context`
    StreamRows rows;
    const void* w;                 // rows: [groups, N / groups * up, C / groups * taps]
    Dtype w_dtype;                 // panels: [groups, panels, C / groups * taps, 32]
    Layout layout;
    int64_t groups, taps, stride, dilation, up, left_pad, flush;
    bool replicate;
    const void* bias;  // [N] or null
    Dtype bias_dtype;
    Activation before, after;
    int threads;
};

struct OverlapArgs {  // out = sum(window * frame) / sum(window^2), "same" trimmed
    int64_t B, T, F, hop, outputs;
    const float* frames;  // [B, T, F]; the last dimension dense
    int64_t frames_batch, frames_row;
    const float* window;  // [F]
    const float* numerator;  // [B, F - hop] or null
    float* numerator_out;    // may be `numerator`
    StreamRows rows;
    float* out;  // [B, outputs]
    int64_t out_row;
    int threads;
};

struct SpectrumArgs {  // frames = irfft(min(exp m, 100) (cos p + i sin p)), [m | p] = linear
    LinearArgs linear;  // of [B T, H]; its out, out_row and threads are set here
    OverlapArgs overlap;  // its frames are set here
    const int32_t* radices;      // of h = F / 2, zero-terminated
    const float *table, *turns;  // twiddles (fft.h); cosines and sines of 2 pi k / F for k < h
};

}  // namespace mingcore
