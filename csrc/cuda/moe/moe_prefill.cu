// moe_mlp for 64 tokens and more, with weights of 16 bits, in four launches: sort, gate and up, down,
// sum. The two in the middle are one grouped GEMM on wgmma.
// arch: sm_90a
//
// Cost at E 64, K 6, H 2048, I 1408 and a shared expert of 2816: 6 H I FLOPs per slot, 17.3 MFLOP,
// and weights of 1.14 GB once every expert is hit. Up to some 500 tokens bandwidth is the limit, 266 us
// at 4.3 TB/s; beyond, the tensor cores: 4096 tokens are 567 GFLOP, 0.72 ms at the 790 TFLOP/s
// that one large product reaches. Hidden values (69 MB at 4096 tokens) and y (117 MB, in 16 bits)
// are written and read once. Predicted: 300 us at 64 and 128 tokens, 1.0 ms at 4096. Not measured.
//
// - wgmma with weights as the 64 rows (M) and tokens as N, 16 to 192 in steps of 16: an expert with 6
//   tokens costs 16, and one with up to 192 has its weights read once. With tokens as M it would be 64
//   each, though results would not have to be transposed; stmatrix.trans does that for one instruction
//   per 256 values.
// - A tile is 256 rows of weights: 128 of gate and 128 of up, or 256 of down; one TMA box fetches 64
//   summed elements of them, 32 KB, swizzled. Gate and up of a column meet in one thread's registers,
//   so SwiGLU is an epilogue in registers.
// - Token rows are gathered by index, which tensor maps cannot do on sm_90: 128 threads copy them by
//   cp.async, 16 bytes each, to their swizzled places, and so in both products. They wait for their
//   own copies a stage late, then fence.proxy.async, then arrive: tokens and weights share an mbarrier.
// - Warp specialisation: 1 producer warpgroup (56 registers per thread), 2 consumers (224, of which
//   accumulators take up to 192), 3 stages of 56 KB. 192 tokens by 256 weights move 36 bytes per clock
//   and SM through L2 at full rate; 128 by 256 would be 48, which is about L2's limit, and 384 slots
//   per expert would be cut into four rather than two or three. The price is 3 stages rather than 4.
// - Persistent blocks, one per multiprocessor; the schedule follows from the offsets in device memory,
//   so the host knows no size and a CUDA graph may be replayed. Rows of an expert are cut evenly: 200
//   are 112 and 88, not 192 and 8.
// - Deterministic and batch-invariant from 64 tokens on: every value is summed by one thread in one
//   order, whatever the tile. The sum over k is the last launch's, in float32, in the order of k.
//
// Sorting reads all ids once per expert instead of scattering by atomics: stable, and a few
// microseconds at 4096 tokens. The loop over stages is kept rolled: the same instructions between
// products as fully unrolled, a third of the time to compile. Not tried: multicast of weight boxes in
// clusters of two blocks; programmatic dependent launch. So far it was compiled and emulated only.
#include "lib/cp_async.cuh"
#include "lib/mbarrier.cuh"
#include "lib/mma.cuh"
#include "lib/warpgroup.cuh"
#include "lib/wgmma.cuh"
#include "moe/moe_prefill_schedule.cuh"

// The producer warpgroup: TMA boxes of weights by one thread, token rows by all, 16 bytes each.
template <bool UP>
__device__ __forceinline__ void produce(const MoePrefillParams& p, Shared& s) {
    constexpr int ROWS = PRODUCERS / 8, COPIES = TOKENS / ROWS;
    constexpr unsigned ABSENT = ~0u;
    const int thread = threadIdx.x, chunk = thread % 8;
    unsigned count = 0;  // of stages so far
    for (TileScheduler<UP> tiles(p, s); tiles.valid(); tiles.next()) {
        const Tile t = tiles.tile();
        const TensorMap& map = t.group ? p.weights : p.shared;
        const char* const in = (const char*)(t.group ? p.in : p.shared_in) + chunk * 16;
        const unsigned pitch = (UP ? p.in_row : t.depth) / 8;
        unsigned from[COPIES];  // in 16 bytes
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int row = thread / 8 + i * ROWS, place = t.first + row;
            from[i] = ABSENT;
            if (row < t.rows) from[i] = pitch * (UP && t.group ? p.rows[place] / p.top_k : place);
        }
#pragma unroll 1
        for (int k = 0; k < t.depth; k += DEPTH, ++count) {
            const int stage = count % STAGES;
            char* const to = s.stage[stage];
            mbarrier_wait(&s.empty[stage], count / STAGES % 2 ^ 1);
            if (thread == 0) {
                mbarrier_arrive_expect_tx(&s.full[stage], WEIGHT_BYTES);
                cp_async_bulk_tensor_4d(to, map, &s.full[stage], k,
                                        t.part * TileScheduler<UP>::COLUMNS, 0,
                                        max(t.group - 1, 0));
            }
            const int bytes = k + chunk * 8 < t.depth ? 16 : 0;
            const char* const here = in + (bytes ? k * 2 : 0);
#pragma unroll
            for (int i = 0; i < COPIES; ++i)
                if (from[i] != ABSENT)
                    cp_async(to + WEIGHT_BYTES + swizzled(thread / 8 + i * ROWS, chunk),
                             here + (u64)from[i] * 16, bytes);
            cp_async_commit_group();
            // The rows of LAG stages ago are there. No deadlock: consumers that wait for them hold at
            // most one stage, and all but LAG + 1 can be filled before this arrival.
            if (count >= LAG) {
                cp_async_wait_group<LAG>();
                fence_proxy_async();
                mbarrier_arrive(&s.full[(count - LAG) % STAGES]);
            }
        }
    }
    cp_async_wait_group<0>();
    fence_proxy_async();
    for (unsigned late = count - min((int)count, LAG); late < count; ++late)
        mbarrier_arrive(&s.full[late % STAGES]);
}

// A consumer warpgroup's accumulators: twice 64 weight rows by N tokens, in wgmma's layout.
template <class X, int N>
struct Accumulators {
    float low[N / 2] = {}, high[N / 2] = {};

    static __device__ __forceinline__ void add(float (&d)[N / 2], u64 a, u64 b) {
        if constexpr (is_same<X, bf16>) Wgmma<N>::bf16(d, a, b);
        else Wgmma<N>::f16(d, a, b);
    }
    // Matrix descriptor: K-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart.
    static __device__ __forceinline__ u64 descriptor(const char* at) {
        return (u64)1 << 62 | (u64)(1024 >> 4) << 32 | (u64)1 << 16 | shared_address(at) >> 4;
    }
    __device__ __forceinline__ void mainloop(Shared& s, int group, int depth, unsigned& count) {
        constexpr int IN_FLIGHT = N > 64;  // wgmma groups
        const bool elected = threadIdx.x % 32 == 0;
#pragma unroll 1
        for (int k = 0; k < depth; k += DEPTH, ++count) {
            const int stage = count % STAGES;
            mbarrier_wait(&s.full[stage], count / STAGES % 2);
            const u64 a = descriptor(s.stage[stage] + group * 64 * 128);
            const u64 b = descriptor(s.stage[stage] + WEIGHT_BYTES);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < DEPTH / 16; ++i) {  // 16 elements are 32 bytes of a row
                add(low, a + i * 2, b + i * 2);
                add(high, a + (WEIGHT_BYTES / 2 >> 4) + i * 2, b + i * 2);
            }
            wgmma_commit_group();
            // A group in flight keeps the tensor cores busy; with few tokens copies are the limit and
            // the stage is freed at once instead.
            wgmma_wait_group<IN_FLIGHT>();
            if (elected && (!IN_FLIGHT || k))
                mbarrier_arrive(&s.empty[(count - IN_FLIGHT) % STAGES]);
        }
        if (!IN_FLIGHT) return;
        wgmma_wait_group<0>();
        if (elected) mbarrier_arrive(&s.empty[(count - 1) % STAGES]);
    }
};

template <class X>
__device__ __forceinline__ unsigned pack_x2(float low, float high) {
    return is_same<X, bf16> ? cvt_bf16x2_f32(low, high) : cvt_f16x2_f32(low, high);
}

// Columns first .. first + 63 of out, from a warpgroup's accumulators: transposed by stmatrix into
// shared memory, then stored row by row.
template <class X, bool UP, int N>
__device__ __forceinline__ void store(const MoePrefillParams& p, const Tile& t, int first,
                                      char* shared, int group, const float (&v)[N / 2]) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    bar_sync(1 + group, 128);  // the previous tile has been read
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
        const float* const d = v + 8 * j;
        stmatrix_x4_trans(
            shared + swizzled(16 * j + lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2),
            {pack_x2<X>(d[0], d[1]), pack_x2<X>(d[2], d[3]), pack_x2<X>(d[4], d[5]),
             pack_x2<X>(d[6], d[7])});
    }
    bar_sync(1 + group, 128);
    const int chunk = thread % 8, column = first + chunk * 8;
    const int width = t.group ? p.width : p.shared_width;
    if (column >= width) return;
    X* const out = (X*)(t.group ? p.out : p.shared_out) + column;
    for (int row = thread / 8; row < t.rows; row += 128 / 8) {
        const int place = t.first + row;
        const long long to = !UP && t.group ? p.rows[place] : place;
        *(Vector<X, 8>*)(out + to * width) = *(Vector<X, 8>*)(shared + swizzled(row, chunk));
    }
}

template <class X, bool UP, int N>
__device__ __forceinline__ void compute(const MoePrefillParams& p, Shared& s, const Tile& t,
                                        int group, unsigned& count) {
    Accumulators<X, N> sums;
    sums.mainloop(s, group, t.depth, count);
    const int first = t.part * TileScheduler<UP>::COLUMNS + group * 64;
    if constexpr (UP) {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float gate = sums.low[i];
            sums.low[i] =
                gate * rcp_approx(1 + ex2_approx(gate * -1.4426950408889634f)) * sums.high[i];
        }
    }
    store<X, UP, N>(p, t, first, s.out[group], group, sums.low);
    if constexpr (!UP) store<X, UP, N>(p, t, first + WEIGHTS / 2, s.out[group], group, sums.high);
}

template <class X, bool UP>
__device__ __forceinline__ void consume(const MoePrefillParams& p, Shared& s, int group) {
    unsigned count = 0;
    for (TileScheduler<UP> tiles(p, s); tiles.valid(); tiles.next()) {
        const Tile t = tiles.tile();
        const int steps = (t.rows + 15) / 16;
        static_assert(TOKENS == 12 * 16, "a case for each");
        switch (steps) {
            case 1: compute<X, UP, 16>(p, s, t, group, count); break;
            case 2: compute<X, UP, 32>(p, s, t, group, count); break;
            case 3: compute<X, UP, 48>(p, s, t, group, count); break;
            case 4: compute<X, UP, 64>(p, s, t, group, count); break;
            case 5: compute<X, UP, 80>(p, s, t, group, count); break;
            case 6: compute<X, UP, 96>(p, s, t, group, count); break;
            case 7: compute<X, UP, 112>(p, s, t, group, count); break;
            case 8: compute<X, UP, 128>(p, s, t, group, count); break;
            case 9: compute<X, UP, 144>(p, s, t, group, count); break;
            case 10: compute<X, UP, 160>(p, s, t, group, count); break;
            case 11: compute<X, UP, 176>(p, s, t, group, count); break;
            default: compute<X, UP, 192>(p, s, t, group, count);
        }
    }
}

template <class X, bool UP>
__device__ __forceinline__ void grouped_gemm(const MoePrefillParams& p) {
    Shared& s = shared_layout();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(&s.full[i], PRODUCERS + 1);
            mbarrier_init(&s.empty[i], CONSUMERS / 32);
        }
        fence_proxy_async();
        prefetch_tensormap(p.weights);
        prefetch_tensormap(p.shared);
    }
    TileScheduler<UP>::count_tiles(p, s);
    __syncthreads();
    if (threadIdx.x < PRODUCERS) {
        setmaxnreg_dec<56>();
        produce<UP>(p, s);
    } else {
        setmaxnreg_inc<224>();
        consume<X, UP>(p, s, threadIdx.x / 128 - 1);
    }
}

// out[t] = sum_k weights[t, k] y[t * K + k] + y[slots + t], in float32 and in the order of k.
template <class X>
__device__ __forceinline__ void weighted_sum(const MoeSumParams& p) {
    const long long i = ((long long)blockIdx.x * SUMMERS + threadIdx.x) * 8;
    const int t = (int)(i / p.H), column = (int)(i % p.H);
    if (t >= p.T) return;
    const X* y = (const X*)p.y + (long long)t * p.top_k * p.H + column;
    float sum[8] = {}, part[8];
#pragma unroll 4
    for (int k = 0; k < p.top_k; ++k, y += p.H) {
        const float weight = p.weights[t * p.top_k + k];
        load<8>(y, part);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] = fmaf(weight, part[j], sum[j]);
    }
    if (p.has_shared) {
        load<8>((const X*)p.y + ((long long)p.T * p.top_k + t) * p.H + column, part);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += part[j];
    }
    store<8>((X*)p.out + i, sum);
}

extern "C" __global__ void __launch_bounds__(SORTERS)
    moe_prefill_sort(const __grid_constant__ MoeSortParams p) {
    sort_slots(p);
}
#define INSTANTIATE(NAME, X)                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                  \
        moe_prefill_up_##NAME(const __grid_constant__ MoePrefillParams p) {   \
        grouped_gemm<X, true>(p);                                             \
    }                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                  \
        moe_prefill_down_##NAME(const __grid_constant__ MoePrefillParams p) { \
        grouped_gemm<X, false>(p);                                            \
    }                                                                         \
    extern "C" __global__ void __launch_bounds__(SUMMERS)                     \
        moe_prefill_sum_##NAME(const __grid_constant__ MoeSumParams p) {      \
        weighted_sum<X>(p);                                                   \
    }
INSTANTIATE(bfloat16, bf16)
INSTANTIATE(float16, f16)
