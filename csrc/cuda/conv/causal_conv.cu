// causal_conv1d and causal_conv_transpose1d, streamed: out = after(conv(before(x)) + bias) + residual,
// every row of the batch at its own position in its stream.
// arch: sm_80 sm_90 sm_100 compute_80
//
// Implicit GEMM. Cost: 2 B T N C taps / groups FLOPs (transposed B L for B T); weights, inputs, context,
// residual and out move once where one block reads them all, else again from L2: inputs once per tile
// of rows, weights once per tile of times. Streamed, a layer is its weights: 1536 to 768 channels, 16
// taps, is 38 MB for 4 inputs, 9 us at 4.3 TB/s. A depthwise layer is its inputs, outputs and residual.
//
// - Dense: a GEMM of weights [N, C taps] and inputs, without im2col: a stage holds the inputs of its
//   channels once, with the halo of the kernel, and summed element (c, tap) at column t is read at
//   c * pitch + t * stride + tap * dilation.
// - Weights stay in PyTorch's layout. The order of the summed elements within 32 is free, so 16
//   successive bytes of a weight row are a lane's operand of mma. A transposed weight [C, N, taps] is a
//   GEMM operand as it is, rows (n, tap): no phase is padded, whatever kernel and stride; a tile holds
//   all taps of its channels, columns are inputs, and col2im is a gather in shared memory.
// - With one tap, and transposed, columns are read by ldmatrix: channels of one matrix are adjacent
//   lines, an odd number of 16 bytes apart, so there are no bank conflicts.
// - Weights and inputs come by cp.async, 2 to 4 stages of a ring, one barrier per stage. The activation
//   is applied in place by the thread that copied, once per element. In 16 bits its result is split
//   into the sum of two values (bf16x2 or f16x2 split) and multiplied twice: rounded to one, outputs
//   behind a tanh missed the tolerance by a factor of two.
// - float32: FMA, 8 by 8 accumulators per thread.
// - Few columns: "few" has 64 rows by up to 32 columns and split-K over the warps; columns go by eights
//   (mma's n8), so 4 of them cost 8 and not 128.
// - Context, padding, ends of rows and inputs at unaligned addresses are loaded element by element, by
//   the threads that would have issued their cp.async.
// - A row's offsets are computed from its counters in every block: no host synchronisation. The state
//   is updated by a launch of its own, since any block may read the old one; it goes from the front on,
//   so it may work in place. The state of a 1x1 layer is only counters, which its blocks need not read:
//   there the first block updates them.
//
// It was compiled and emulated only: times are not measured.
#include "conv/causal_conv_depthwise.cuh"
#include "conv/causal_conv_mma.cuh"

template <class T>
__device__ __forceinline__ void dense(const CausalConvParams& p) {
    using X = typename T::X;
    float* const scratch = (float*)shared_memory() + threadIdx.x * 9;
    char* const ring = shared_memory() + SCRATCH;
    Tile at;
    at.find(p);
    const Row r = find_row(p, p.lengths, at.b);
    at.set_input(p, r);
    begin_state(p);
    const int each = p.up ? p.up : 1, inputs = p.up ? p.C : p.C * p.taps;
    const bool empty = at.first * each >= r.count;

    const Stage<T> stage{p, at, r, ring, inputs};
    const int depth = empty ? 0 : (inputs + T::DEPTH - 1) / T::DEPTH;  // stages
    const int warp = threadIdx.x / 32;
    const int row = warp % T::WM * 64, column = warp / T::WM % T::WN * 32;
    Accumulators<T> sums;
    int slot = 0, fill = 0;
#pragma unroll 1
    for (int s = 1 - p.stages; s < depth; ++s) {
        if (s >= 0) {
            if (p.stages == 4) cp_async_wait_group<2>();
            else if (p.stages == 3) cp_async_wait_group<1>();
            else cp_async_wait_group<0>();
            stage.activate_inputs(slot, s, scratch);
            __syncthreads();  // and the slot that is filled next has been read by all
        }
        const int lookahead = s + p.stages - 1;
        if (lookahead < depth) stage.copy(fill, lookahead);
        cp_async_commit_group();
        if (++fill == p.stages) fill = 0;
        if (s < 0) continue;
        const X *w = stage.weights(slot), *x = stage.staged(slot);
#pragma unroll 1
        for (int step = T::WK == 1 ? 0 : warp; step < T::STEPS; step += T::WK)
            if (s * T::DEPTH + step * T::STEP < inputs && row < p.rows && column < p.cols)
#pragma unroll 1
                for (int term = 0; term < p.terms; ++term)
                    sums.add(p, w, (const X*)((const char*)x + term * p.term_bytes),
                             stage.offsets(slot), step, row, column);
        if (++slot == p.stages) slot = 0;
    }
    cp_async_wait_group<0>();
    __syncthreads();

    float* const to = (float*)ring;  // [WK][rows][pitch]
    const int pitch = p.cols / 8 * 9, size = p.rows * pitch;
    if (!empty) sums.store(p, to + (T::WK == 1 ? 0 : warp * size), pitch, row, column);
    __syncthreads();
    if (T::WK > 1 && !empty) {
        for (int i = threadIdx.x; i < size; i += THREADS) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < T::WK; ++k) sum += to[k * size + i];
            to[i] = sum;
        }
        __syncthreads();
    }
    const int units = (p.step * each + 7) / 8, channels = min(p.channels, p.N - at.channel);
    for (int i = threadIdx.x; i < channels * units; i += THREADS) {
        const int c = i / units, unit = i % units;
        const long long o = at.first * each + unit * 8;
        if (o >= p.T) continue;
        float v[8] = {};
        if (!empty && p.up) {
            sum_taps(p, (int)(o - at.u * p.up), 1, p.cols, v, [&](int tap, int column) {
                return to[(c * p.taps + tap) * pitch + column / 8 * 9 + column % 8];
            });
        } else if (!empty) {
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = to[c * pitch + unit * 9 + e];
        }
        const long long n = (long long)at.group * p.N + at.channel + c;
        epilogue8<X>(p, r, at.b, n, o, v, scratch);
    }
}

#define KERNEL(NAME, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const CausalConvParams p)
#define INSTANTIATE(NAME, X)                                             \
    KERNEL(causal_conv_many_##NAME, 1) { dense<Tiling<X, 2, 4, 1>>(p); } \
    KERNEL(causal_conv_few_##NAME, 1) { dense<Tiling<X, 1, 1, 8>>(p); }  \
    KERNEL(causal_conv_depthwise_##NAME, 4) { depthwise<X>(p); }         \
    KERNEL(causal_conv_state_##NAME, 4) { next_state<X>(p); }

INSTANTIATE(float32, float)
INSTANTIATE(bfloat16, bf16)
INSTANTIATE(float16, f16)
