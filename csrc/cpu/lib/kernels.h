// The plain-data interface between the bindings (baseline ISA) and the per-ISA kernels.
// Sizes and strides are in elements. Nothing here may own memory or use a standard-library
// template: these declarations are shared by code compiled for different instruction sets.
#pragma once
#include <cstddef>
#include <cstdint>

// Whether the assembler knows AVX-VNNI.
#if defined(MC_X86) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MC_AVX_VNNI
#endif

namespace mingcore {

// i8 and u8 are weights only: int8, and quads of int8 + 128.
enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, u8 = 4, i32 = 5, i64 = 6 };
enum class Act : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3, swiglu = 4 };
// rows: [N, K]. panels: [ceil(N/32), K, 32], zero padded. panels_swiglu: [ceil(I/16), K, 32], each
// panel 16 gate columns and their 16 up columns. bf16 panels interleave: 32-bit word j of a k-row
// holds columns j (low half) and j + 16 (high half); the others keep the columns in order. Panels of
// u8 are [panels, ceil(K/4), 32, 4]: four k of a column side by side.
enum class Layout : int32_t { rows = 0, panels = 1, panels_swiglu = 2 };

struct LinearArgs {  // out = act(x @ w.T + bias) + residual
    const void* x;
    Dtype x_dtype;
    int64_t M, K, x_row;
    const void* w;
    Dtype w_dtype;
    Layout layout;
    int64_t N, w_row;    // w_row: only for rows
    const float* scale;  // [N], for i8 and u8
    const void* bias;
    Dtype bias_dtype;  // [N] or null
    const void* residual;
    Dtype residual_dtype;
    int64_t residual_row;  // [M, N_out] or null
    void* out;
    Dtype out_dtype;
    int64_t out_row;  // [M, N_out]
    Act act;
    int threads;
};

struct ExpertMatrix {  // expert e at data + e * expert; a row of layout rows is `row` long
    const void* data;  // null: there is none
    int64_t expert, row;
    const float* scale;  // [E, N] of quantised weights, one per output row, or null
    int64_t scale_expert;
};

struct MoeArgs {  // out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t])
    const void* x;
    Dtype x_dtype;
    int64_t T, K, E, H, I, shared_I, x_row;
    Dtype w_dtype;
    Layout layout;  // rows; or panels, then gate_up is panels_swiglu
    ExpertMatrix gate_up, down, shared_gate_up, shared_down;
    const float* weights;
    int64_t weights_row, weights_column;  // [T, K]
    const int32_t* ids;
    int64_t ids_row, ids_column;  // [T, K]
    void* out;
    Dtype out_dtype;
    int64_t out_row;  // [T, H]
    int threads;
};

struct SiluMulArgs {  // out = silu(gate_up[:, :I]) * gate_up[:, I:]
    const void* gate_up;
    void* out;
    Dtype dtype;
    int64_t M, I, gate_up_row, out_row;
    int threads;
};

struct Float3 {  // a [B, P, C] operand whose last dimension is dense; data is null when absent
    const void* data;
    Dtype dtype;
    int64_t batch, row;
};

struct FlowStepArgs {  // out = x + dt * (v_c + g * (v_c - v_u)) + noise_scale * noise
    Float3 x, v_cond, v_null, noise;
    const float* guidance;
    const float* noise_scale;  // [B]
    float* out;
    int64_t out_batch, out_row;  // may be x itself
    int64_t B, P, C;
    float dt;
    int threads;
};

struct FlowMatrix {  // [layers][ceil(n / 32)] panels, see Layout
    const void* data;
    Dtype dtype;
    int64_t n, k;
    const float* scale;  // [layers][n], one per output row of quantised weights, or null
};

struct FlowVector {  // [layers][n]; data is null when absent
    const void* data;
    Dtype dtype;
    int64_t n;
};

// The sampler: E evaluations of the velocity, and the step after each. See ops/flow_sampler.py.
struct FlowSampleArgs {
    int64_t B, N, P, C, L, H, W, E, heads, rope_heads;  // W: width of the MLP
    const void *condition, *history;  // [B, matrix[0].k], [B, N, C], dense
    Dtype condition_dtype, history_dtype;
    const float *noise, *guidance;  // [at least 1 + steps with noise, B, P, C], [B]
    const float *times, *dt, *noise_scale;  // [E, H], [E], [E, B]
    const uint8_t* advance;                 // [E]
    const float *cos, *sin;                 // [1 + N + P, H / heads / 2]
    FlowMatrix matrix[7];                   // cond, x, qkv, out, up, down, final
    FlowVector bias[7];                     // of those
    FlowVector norm[5];                     // norm1, norm2, final; q, k or absent
    bool guided, quantised;                 // quantised: the matrices of the blocks are u8
    float* out;                             // [B, P, C]
    int threads;
};
}  // namespace mingcore
#include "cpu/lib/kernels_audio.h"
#include "cpu/lib/kernels_small.h"
namespace mingcore {

struct Kernels {
    const char* isa;
    void (*linear)(const LinearArgs&);
    void (*silu_mul)(const SiluMulArgs&);
    // The first slot t * K + k whose id is not in 0..E-1, and then nothing is computed; else -1.
    int64_t (*moe_mlp)(const MoeArgs&);
    void (*flow_step)(const FlowStepArgs&);
    void (*flow_sample)(const FlowSampleArgs&);
    // Reads bfloat16 vectors of `bytes` at `data`, in 1, 2, 4 or 8 streams per thread, `ahead`
    // bytes ahead; the result only keeps the reads alive.
    uint32_t (*read_probe)(const void* data, int64_t bytes, int threads, int streams,
                           int64_t ahead);
    void (*causal_conv)(const ConvArgs&);
    void (*overlap_add)(const OverlapArgs&);
    void (*spectrum_head)(const SpectrumArgs&);
    void (*rms_norm)(const NormArgs&);
    void (*layer_norm)(const NormArgs&);
    void (*rope)(const RopeArgs&);
    void (*route_topk)(const RouteArgs&);
    void (*kv_write)(const KvWriteArgs&);
    void (*attention_decode)(const DecodeArgs&);
};

// The variants that this build holds, best first, and the one in use.
extern const Kernels* const available[];
extern const int available_count;
bool cpu_runs(const Kernels& kernels);
const Kernels& current();
bool select_isa(const char* isa);  // false: not compiled in, or this CPU cannot run it

// Whether the set in use multiplies quads with the VNNI instruction: by CPUID, AVX512-VNNI for
// avx512 and AVX-VNNI for avx2. Without it the same sums are made from 16-bit products.
extern bool cpu_vnni;
// Whether it has the bf16 dot product (AVX512-BF16, avx512 only): products of bf16 with bf16.
extern bool cpu_bf16;
bool select_bf16(bool wanted);  // as select_vnni
bool select_vnni(bool wanted);  // for tests; false: not here. select_isa sets it again

}  // namespace mingcore
