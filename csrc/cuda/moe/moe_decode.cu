// moe_mlp for up to 63 tokens: out[t] = sum_k weights[t, k] down_e (silu(gate_e x[t]) * up_e x[t]) with
// e = ids[t, k], plus the same of the shared expert. One launch from routing to result.
// arch: sm_80 sm_90 sm_100 compute_80
//
// Bound by bandwidth. Cost: the weights of the experts that are hit, 3 I H elements each, once; all
// else is small. At T = 1 with E 64, K 6, H 2048, I 1408 and 2 shared experts these are 138 MB, 32 us
// at 4.3 TB/s; at T = 32 and 63, balanced, 1.09 and 1.14 GB, 254 and 265 us. So one thing counts:
// every multiprocessor must have tens of kilobytes of weights in flight from the first moment to the
// last.
//
// - mma.m16n8k16 with 8 weight rows as the narrow operand (n8) and tokens as the wide one (m16): 1 to
//   16 tokens cost the same, and nothing is padded in memory. The order of the summed elements is
//   free, so a lane's operand is 16 successive bytes of one row, which is one cp.async.
// - Every lane reads exactly the bytes that it copied itself: a private cp.async ring per lane,
//   without a barrier between copy and use. x takes the same way.
// - A tile is rows of weights by a group of up to 16 tokens of an expert. Where an expert has more
//   groups, the tiles of the same rows follow each other in one block: the rows come from memory once,
//   then from L2. (In the order of slots they came from memory each time: at T = 63 four times for the
//   shared expert, 104 MB more.) 63 tokens in one tile would want four times the room for x in every
//   stage of the ring, and leave two stages of five.
// - Persistent blocks, one per multiprocessor, have equal runs of tiles: 8 gate rows and their 8 up
//   rows, then rows of down. Split-K over the 8 warps, round robin across the ends of tiles, so that
//   all warps stream to the end; partial sums are reduced in shared memory.
// - A grid barrier separates the two phases, since any hidden row may be needed anywhere. The ring is
//   filled with weights of down before it, 80 KB per multiprocessor: the barrier costs nothing while
//   it takes less than 2.5 us.
// - In the second phase a block owns rows of the output for all experts, so it makes the weighted sum
//   in its own shared memory, in the order of k: no second grid barrier, and deterministic.
// - A grid barrier that times out sets the abort word, and the output, now and in later launches, to
//   NaN: no trap (lib/grid_barrier.cuh).
//
// Two launches would cost a drained and a refilled ring, about 1.5 us, and the gap between them.
// Where a tile begins is kept incrementally, not computed anew (divisions, 64-bit products, the
// expert's place): the main loop went from 600 to 465 instructions, 140 of them on its usual path.
// Resources: 256 threads of 101 to 147 registers, nothing spilled (sm_90), a block per multiprocessor with
// 221,296 bytes of shared memory (8-bit weights 204,912; on sm_80 155,760).
// Times are estimates until a GPU has measured them: so far it was compiled and emulated only.
#include "lib/grid_barrier.cuh"
#include "moe/moe_decode_mma.cuh"

// The reduction of split-K: one element, always in the order of the warps.
__device__ __forceinline__ float sum_warps(const float* partial, int token, int row) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += partial[(w * TOKENS + token) * ROWS + row];
    return sum;
}

// Epilogue of gate and up: scales and SwiGLU.
template <class X>
__device__ void finish_gate_up(const MoeDecodeParams& p, const Groups& groups,
                               const TileScheduler& u, const float* partial) {
    const int token = threadIdx.x / 8, column = threadIdx.x % 8;
    const bool routed = u.group < groups.routed;
    const int place = groups.start[u.group] + token, width = routed ? p.I : p.Is;
    const int row = u.tile * 8 + column;
    if (token >= TOKENS || place >= groups.start[u.group + 1] || row >= width) return;
    float gate = sum_warps(partial, token, column), up = sum_warps(partial, token, 8 + column);
    if (p.gate_up_scale) {
        const float* scale = routed ? p.gate_up_scale + (long long)groups.expert[u.group] * 2 * p.I
                                    : p.shared_gate_up_scale;
        gate *= scale[row];
        up *= scale[row + width];
    }
    narrow(gate / (1 + expf(-gate)) * up, ((X*)p.hidden)[hidden_row(p, place) + row]);
}

// Epilogue of down: scales; slots wait in shared memory for their weighted sum.
__device__ void finish_down(const MoeDecodeParams& p, const Groups& groups, const TileScheduler& u,
                            const float* partial, float* result) {
    const int token = threadIdx.x / ROWS, r = threadIdx.x % ROWS, row = u.tile * p.rows + r;
    const int place = groups.start[u.group] + token;
    if (place >= groups.start[u.group + 1] || r >= p.rows || row >= p.H) return;
    float sum = sum_warps(partial, token, r);
    if (p.down_scale)
        sum *= u.group < groups.routed ? p.down_scale[(long long)groups.expert[u.group] * p.H + row]
                                       : p.shared_down_scale[row];
    result[groups.slots[place] * ROWS + r] = sum;
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

// Between the phases. wait: this block has tiles of the second phase, which read all of hidden.
__device__ bool sync_grid(const MoeDecodeParams& p, Groups& groups, bool wait) {
    __syncthreads();
    if (threadIdx.x == 32 && ld_acquire(p.barrier + BARRIER_ABORTED)) groups.alive = 0;
    if (threadIdx.x == 0) grid_barrier(p.barrier, wait, &groups.alive);
    __syncthreads();
    return groups.alive;
}

template <class X>
__device__ void fill_nan(const MoeDecodeParams& p) {
    for (int tile = blockIdx.x; tile * p.rows < p.H; tile += gridDim.x)
        for (int i = threadIdx.x; i < p.rows * p.T; i += THREADS)
            if (tile * p.rows + i % p.rows < p.H)
                narrow(__uint_as_float(0x7fc00000),
                       ((X*)p.out)[i / p.rows * (long long)p.H + tile * p.rows + i % p.rows]);
}

// Dynamic shared memory, in this order: Vector16 ring[WARPS][STAGES][STAGE],
// float partial[2][WARPS][TOKENS][ROWS], float result[T * K + T][ROWS], Groups.
template <class Traits>
__device__ __forceinline__ void moe_decode(const MoeDecodeParams& p) {
    using X = typename Traits::X;
    constexpr int STAGE = Traits::STAGE, STAGES = Traits::STAGES;
    constexpr int PARTIAL = WARPS * TOKENS * ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Vector16* const rings = (Vector16*)shared_memory();
    float* const partial = (float*)(rings + WARPS * STAGES * STAGE);
    float* const result = partial + 2 * PARTIAL;
    Groups& groups = *(Groups*)(result + (p.T * p.K + p.T) * ROWS);
    Vector16* const ring = rings + warp * STAGES * STAGE + lane;

    group_slots(p, groups, (short*)(partial + PARTIAL), (int*)partial);
    Loader<Traits> loader;
    loader.start(p, groups, false);
    for (int i = 0; i < STAGES; ++i) {
        loader.copy_weights(ring + i * STAGE);
        if (!loader.u.down) loader.copy_x(ring + i * STAGE);
        cp_async_commit_group();
        loader.next(p, groups);
    }
    TileScheduler u;
    int stage = 0, buffer = 0;
    for (int phase = 0; phase < 2; ++phase) {
        u.start(p, groups, phase);
        if (phase) {
            if (!sync_grid(p, groups, u.left > 0)) {
                cp_async_wait_group<0>();
                return fill_nan<X>(p);
            }
            Loader<Traits> late;  // the next STAGES steps have their weights in flight; now hidden
            late.start(p, groups, true);
            for (int i = 0; i < STAGES; ++i) {
                late.copy_x(ring + (stage + i) % STAGES * STAGE);
                cp_async_commit_group();
                late.next(p, groups);
            }
        }
        int step = warp;
        for (; u.left > 0; u.next(p, groups)) {
            const int tokens = min(groups.start[u.group + 1] - groups.start[u.group], TOKENS);
            Accumulators<Traits> sums;
            for (; step * Traits::STEP < u.K; step += WARPS) {
                Vector16* const at = ring + stage * STAGE;
                cp_async_wait_group<STAGES - 1>();
                sums.add(at, tokens);
                loader.copy_weights(at);
                if (phase || !loader.u.down) loader.copy_x(at);
                cp_async_commit_group();
                loader.next(p, groups);
                stage = stage + 1 == STAGES ? 0 : stage + 1;
            }
            step -= (u.K + Traits::STEP - 1) / Traits::STEP;
            sums.store(partial + buffer * PARTIAL + warp * TOKENS * ROWS, tokens);
            __syncthreads();  // one is enough: partial sums are double-buffered
            if (phase) {
                finish_down(p, groups, u, partial + buffer * PARTIAL, result);
                if (u.group == groups.count - 1) {
                    __syncthreads();
                    weighted_sum<X>(p, u.tile, result);
                }
            } else {
                finish_gate_up<X>(p, groups, u, partial + buffer * PARTIAL);
            }
            buffer ^= 1;
        }
    }
}

#define INSTANTIATE(NAME, X, W)                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) \
        moe_decode_##NAME(const MoeDecodeParams p) {         \
        moe_decode<MoeDecodeTraits<X, W>>(p);                \
    }

INSTANTIATE(float32_fp32, float, float)
INSTANTIATE(bfloat16_bf16, bf16, bf16)
INSTANTIATE(bfloat16_int8, bf16, int8)
INSTANTIATE(bfloat16_fp8, bf16, e4m3)
INSTANTIATE(float16_fp16, f16, f16)
INSTANTIATE(float16_int8, f16, int8)
INSTANTIATE(float16_fp8, f16, e4m3)
