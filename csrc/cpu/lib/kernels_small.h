// The interface of the small ops: norms, rotary embedding, routing, attention over a cache.
// Part of kernels.h, under the same rules.
#pragma once

namespace mingcore {

struct NormArgs {  // of the last dimension of x [M, H]; rms_norm of s = x + residual, layer_norm of x
    const void *x, *residual;  // residual: null where absent
    Dtype dtype;               // of x, residual, sum and out
    int64_t M, H, x_row, residual_row;
    const void *weight, *bias;  // [H]; bias: null where absent
    Dtype weight_dtype, bias_dtype;
    void *out, *sum;  // sum: s, rounded, null without residual
    int64_t out_row, sum_row;
    float eps;
    int threads;
};

struct Heads {  // [B, T, Hn, D] whose last dimension is dense; data is null when absent
    char* data;
    int64_t batch, token, head;
};

struct Positions {  // [B, T]
    const int64_t* data;
    int64_t batch, token;
};

// Turns the first heads of x and copies the others, in up to three parts of consecutive heads.
struct RopeArgs {
    Heads x;
    Dtype dtype;
    int64_t B, T, D;
    struct Part {
        int64_t heads, turned;
        Heads out;
    } part[3];
    int parts;
    const float *cos, *sin;  // [1 or B, T, D / 2]
    int64_t cos_batch, cos_token, sin_batch, sin_token;
    bool interleaved;
    int threads;
};

struct KvWriteArgs {  // cache[b, positions[b, t] mod S] = new[b, t], of keys and of values
    Heads cache[2], from[2];
    int64_t B, T, S, Hn, D, element;  // element: bytes
    Positions positions;
    int threads;
};

struct DecodeArgs {  // see ops/attention.py
    Heads q, k, v, out;
    Heads k_scale, v_scale;  // float32, of caches in int8; else their data is null
    Dtype dtype;             // of q, out and caches without scales
    int64_t B, T, Hq, Hkv, D, S, window;  // window 0: none
    Positions positions;
    float scale;
    int threads;
};

struct RouteArgs {  // logits [T, E] -> the K largest of each row, and their softmax
    const void* logits;
    Dtype dtype;
    int64_t T, E, K, row, column;
    bool renormalize;
    float* weights;  // [T, K], dense
    int32_t* ids;    // [T, K], dense
    int threads;
};

}  // namespace mingcore
