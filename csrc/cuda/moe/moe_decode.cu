// moe_mlp for up to 63 tokens: out[t] = sum_k weights[t, k] down_e (silu(gate_e x[t]) * up_e x[t]) with
// e = ids[t, k], plus the same of the shared expert. One launch from routing to result.
// arch: sm_80 sm_90 sm_100 compute_80
//
// Cost: the weights of the experts that are hit, 3 I H elements each, once; all else is small. At
// T = 1 with E 64, K 6, H 2048, I 1408 and 2 shared experts these are 138 MB, 32 us at 4.3 TB/s;
// at T = 32 and 63, balanced, 1.09 and 1.14 GB, 254 and 265 us; the products are nothing. So only
// one thing counts: every multiprocessor must have tens of kilobytes of weights on their way at
// every moment, from the first to the last.
//
// - A weight goes to the tensor cores as the operand of width 8 (8 weight rows by 16 summed
//   elements), the tokens as the one of 16 rows: 1 to 16 tokens cost the same, none is padding in
//   memory. The order of the summed elements is ours, so a lane takes 16 successive bytes of one
//   row, which is how it copies them from memory.
// - So every lane reads exactly the bytes that it copied itself: a private ring of asynchronous
//   copies per lane, without a barrier between copy and use. x takes the same way.
// - A unit takes up to 16 tokens of an expert. Where one has more, its units at the same rows of
//   weights follow each other in the same block: the rows come from memory once, then from L2. (In
//   the order of slots instead, they came from memory each time: at T = 63 four times for the
//   shared expert, 104 MB more.) Up to 63 tokens in one unit would want four times the room for x
//   in every stage of the ring, and leave two stages of five.
// - Blocks, one per multiprocessor, are dealt equal runs of units: 8 gate rows and their 8 up rows,
//   then rows of down. A unit's summed elements are dealt to the 8 warps in turn, over the ends
//   of units, so that all warps stream to the end; the warps' sums meet in shared memory.
// - Between the two phases all blocks wait for each other, since any hidden row may be needed
//   anywhere. The ring is filled with weights of down before that, 80 KB per multiprocessor: the
//   exchange costs nothing while it takes less than 2.5 us.
// - In the second phase a block owns rows of the output for all experts, so the weighted sum is
//   made in its shared memory, in the order of k, by nobody else: no third exchange, the same bits.
// - The exchange counts arrivals in device memory and never resets: a launch adds gridDim.x, its
//   ticket tells which launch it is. So a replayed graph needs no memset. A wait that takes
//   seconds sets the abort word, and the output, now and in later launches, to NaN: no trap.
//
// Two launches would cost a drained and a refilled ring, about 1.5 us, and the gap between them.
// Where a unit begins is kept, not computed anew (divisions, 64-bit products, the expert's place):
// the loop around the products went from 600 to 465 instructions, 140 of them on its usual way.
// Resources: 256 threads of 101 to 147 registers, nothing spilled (sm_90), a block per multiprocessor with
// 221,296 bytes of shared memory (8-bit weights 204,912; on sm_80 155,760).
// Times are estimates until a GPU has measured them: so far it was compiled and emulated only.
#include "moe/moe_decode_sums.cuh"

// The warps' sums of one element, in the order of the warps.
__device__ __forceinline__ float over_warps(const float* partial, int token, int row) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += partial[(w * TOKENS + token) * ROWS + row];
    return sum;
}

template <class X>
__device__ void finish_gate_up(const MoeDecodeParams& p, const Plan& plan, const Units& u,
                               const float* partial) {
    const int token = threadIdx.x / 8, pair = threadIdx.x % 8;
    const bool routed = u.entry < plan.routed;
    const int place = plan.start[u.entry] + token, width = routed ? p.I : p.Is;
    const int row = u.tile * 8 + pair;
    if (token >= TOKENS || place >= plan.start[u.entry + 1] || row >= width) return;
    float gate = over_warps(partial, token, pair), up = over_warps(partial, token, 8 + pair);
    if (p.gate_up_scale) {
        const float* scale = routed ? p.gate_up_scale + (long long)plan.expert[u.entry] * 2 * p.I
                                    : p.shared_gate_up_scale;
        gate *= scale[row];
        up *= scale[row + width];
    }
    narrow(gate / (1 + expf(-gate)) * up, ((X*)p.hidden)[hidden_row(p, place) + row]);
}

__device__ void finish_down(const MoeDecodeParams& p, const Plan& plan, const Units& u,
                            const float* partial, float* result) {
    const int token = threadIdx.x / ROWS, r = threadIdx.x % ROWS, row = u.tile * p.rows + r;
    const int place = plan.start[u.entry] + token;
    if (place >= plan.start[u.entry + 1] || r >= p.rows || row >= p.H) return;
    float sum = over_warps(partial, token, r);
    if (p.down_scale)
        sum *= u.entry < plan.routed
                   ? p.down_scale[(long long)plan.expert[u.entry] * p.H + row]
                   : p.shared_down_scale[row];
    result[plan.slots[place] * ROWS + r] = sum;
}

template <class X>
__device__ void weighted_sum(const MoeDecodeParams& p, int tile, const float* result) {
    const int r = threadIdx.x % ROWS, row = tile * p.rows + r;
    if (r >= p.rows || row >= p.H) return;
    for (int t = threadIdx.x / ROWS; t < p.T; t += THREADS / ROWS) {
        float sum = 0;
        for (int k = 0; k < p.K; ++k)
            sum = fmaf(p.weights[t * p.K + k], result[(t * p.K + k) * ROWS + r], sum);
        if (p.Is) sum += result[(p.T * p.K + t) * ROWS + r];
        narrow(sum, ((X*)p.out)[(long long)t * p.H + row]);
    }
}

// All blocks have written their part of hidden. waits: this block needs the others'.
__device__ bool exchange(const MoeDecodeParams& p, Plan& plan, bool waits) {
    __syncthreads();
    if (threadIdx.x == 32 && peek(p.exchange + ABORTED)) plan.on = 0;
    if (threadIdx.x == 0) {
        const u64 blocks = gridDim.x;
        const u64 all = (add_release(p.exchange + ARRIVED, 1) / blocks + 1) * blocks;
        const u64 since = now_ns();
        for (unsigned spins = 1; waits && peek(p.exchange + ARRIVED) < all; ++spins) {
            if (spins % 256) continue;
            if (now_ns() - since > PATIENCE_NS) put(p.exchange + ABORTED, 1);
            if (peek(p.exchange + ABORTED)) {
                plan.on = 0;
                break;
            }
        }
    }
    __syncthreads();
    return plan.on;
}

template <class X>
__device__ void spoil(const MoeDecodeParams& p) {
    for (int tile = blockIdx.x; tile * p.rows < p.H; tile += gridDim.x)
        for (int i = threadIdx.x; i < p.rows * p.T; i += THREADS)
            if (tile * p.rows + i % p.rows < p.H)
                narrow(__uint_as_float(0x7fc00000),
                       ((X*)p.out)[i / p.rows * (long long)p.H + tile * p.rows + i % p.rows]);
}

// Dynamic shared memory, in this order: Vector16 ring[WARPS][STAGES][STAGE],
// float partial[2][WARPS][TOKENS][ROWS], float result[T * K + T][ROWS], Plan.
template <class Traits>
__device__ __forceinline__ void moe_decode(const MoeDecodeParams& p) {
    using X = typename Traits::X;
    constexpr int STAGE = Traits::STAGE, STAGES = Traits::STAGES;
    constexpr int PARTIAL = WARPS * TOKENS * ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Vector16* const rings = (Vector16*)shared_memory();
    float* const partial = (float*)(rings + WARPS * STAGES * STAGE);
    float* const result = partial + 2 * PARTIAL;
    Plan& plan = *(Plan*)(result + (p.T * p.K + p.T) * ROWS);
    Vector16* const ring = rings + warp * STAGES * STAGE + lane;

    make_plan(p, plan, (short*)(partial + PARTIAL), (int*)partial);
    Feed<Traits> feed;
    feed.start(p, plan, false);
    for (int i = 0; i < STAGES; ++i) {
        feed.copy_weights(ring + i * STAGE);
        if (!feed.u.second) feed.copy_x(ring + i * STAGE);
        cp_async_commit();
        feed.next(p, plan);
    }
    Units u;
    int stage = 0, buffer = 0;
    for (int second = 0; second < 2; ++second) {
        u.start(p, plan, second);
        if (second) {
            if (!exchange(p, plan, u.left > 0)) {
                cp_async_wait<0>();
                return spoil<X>(p);
            }
            Feed<Traits> late;  // the weights of the next STAGES steps are on their way: now hidden
            late.start(p, plan, true);
            for (int i = 0; i < STAGES; ++i) {
                late.copy_x(ring + (stage + i) % STAGES * STAGE);
                cp_async_commit();
                late.next(p, plan);
            }
        }
        int step = warp;
        for (; u.left > 0; u.next(p, plan)) {
            const int tokens = min(plan.start[u.entry + 1] - plan.start[u.entry], TOKENS);
            Sums<Traits> sums;
            for (; step * Traits::STEP < u.K; step += WARPS) {
                Vector16* const at = ring + stage * STAGE;
                cp_async_wait<STAGES - 1>();
                sums.add(at, tokens);
                feed.copy_weights(at);
                if (second || !feed.u.second) feed.copy_x(at);
                cp_async_commit();
                feed.next(p, plan);
                stage = stage + 1 == STAGES ? 0 : stage + 1;
            }
            step -= (u.K + Traits::STEP - 1) / Traits::STEP;
            sums.store(partial + buffer * PARTIAL + warp * TOKENS * ROWS, tokens);
            __syncthreads();  // one is enough: the next unit's sums go to the other buffer
            if (second) {
                finish_down(p, plan, u, partial + buffer * PARTIAL, result);
                if (u.entry == plan.entries - 1) {
                    __syncthreads();
                    weighted_sum<X>(p, u.tile, result);
                }
            } else {
                finish_gate_up<X>(p, plan, u, partial + buffer * PARTIAL);
            }
            buffer ^= 1;
        }
    }
}

#define INSTANTIATE(NAME, X, W)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                  \
        moe_decode_##NAME(const MoeDecodeParams p) {                                          \
        moe_decode<MoeDecodeTraits<X, W>>(p);                                                 \
    }

INSTANTIATE(float32_fp32, float, float)
INSTANTIATE(bfloat16_bf16, bf16, bf16)
INSTANTIATE(bfloat16_int8, bf16, int8)
INSTANTIATE(bfloat16_fp8, bf16, e4m3)
INSTANTIATE(float16_fp16, f16, f16)
INSTANTIATE(float16_int8, f16, int8)
INSTANTIATE(float16_fp8, f16, e4m3)
