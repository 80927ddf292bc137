// flow_step: out = x + dt (v_c + g (v_c - v_u)) + noise_scale noise, per element of [B, P, C].
// arch: sm_80 sm_90a sm_100 compute_80
//
// Elementwise and bound by bandwidth. Cost: per element 4 bytes each of x, out and noise, and the
// velocity's own width twice. Nothing is reused, so a thread takes one vector of 4 elements (16 bytes
// of float32); the state stays float32 whatever the network's type. All strides are in elements, the
// last dimension is dense, and the velocities may be slices of the network's output. out may be x.
#include "lib/vector.cuh"

struct FlowStepParams {  // the order and sizes are known to mingcore/ops/cuda.py
    const float* x;
    const void* v_cond;
    const void* v_null;        // null: the velocity is v_cond alone
    const float* noise;        // null: no noise
    const float* guidance;     // [B]
    const float* noise_scale;  // [B]
    float* out;
    long long x_batch, x_row, cond_batch, cond_row, null_batch, null_row, noise_batch, noise_row;
    long long out_batch, out_row;
    long long B;
    int P, C;
    float dt;
    int unused;
};

template <class V_, int WIDTH_>
struct FlowStepTraits {
    using V = V_;                         // the velocity's type
    static constexpr int WIDTH = WIDTH_;  // elements of a thread: 4 where C and the strides allow
    static constexpr int THREADS = 256;
};

template <class Traits>
__device__ __forceinline__ void flow_step(const FlowStepParams& p) {
    using V = typename Traits::V;
    constexpr int WIDTH = Traits::WIDTH;
    const long long i = (long long)blockIdx.x * Traits::THREADS + threadIdx.x;
    const int vectors = p.C / WIDTH;
    const long long row = i / vectors;
    if (row >= p.B * p.P) return;
    const int c = (int)(i - row * vectors) * WIDTH;
    const long long b = row / p.P;
    const int r = (int)(row - b * p.P);

    float x[WIDTH], v[WIDTH], u[WIDTH];
    load<WIDTH>(p.x + b * p.x_batch + r * p.x_row + c, x);
    load<WIDTH>((const V*)p.v_cond + b * p.cond_batch + r * p.cond_row + c, v);
    if (p.v_null) {
        const float g = p.guidance[b];
        load<WIDTH>((const V*)p.v_null + b * p.null_batch + r * p.null_row + c, u);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) v[k] = fmaf(g, v[k] - u[k], v[k]);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) x[k] = fmaf(p.dt, v[k], x[k]);
    if (p.noise) {
        const float scale = p.noise_scale[b];
        load<WIDTH>(p.noise + b * p.noise_batch + r * p.noise_row + c, u);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) x[k] = fmaf(scale, u[k], x[k]);
    }
    store<WIDTH>(p.out + b * p.out_batch + r * p.out_row + c, x);
}

#define INSTANTIATE(NAME, V, WIDTH)                                                 \
    extern "C" __global__ void __launch_bounds__(FlowStepTraits<V, WIDTH>::THREADS) \
        flow_step_##NAME##_##WIDTH(const FlowStepParams p) {                        \
        flow_step<FlowStepTraits<V, WIDTH>>(p);                                     \
    }

INSTANTIATE(float32, float, 4)
INSTANTIATE(float32, float, 1)
INSTANTIATE(bfloat16, bf16, 4)
INSTANTIATE(bfloat16, bf16, 1)
INSTANTIATE(float16, f16, 4)
INSTANTIATE(float16, f16, 1)
