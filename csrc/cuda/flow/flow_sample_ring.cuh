// flow_sample: the operands, shared memory, and the producer warp that streams weights through it.
#pragma once
#include "flow/flow_sample_plan.cuh"
#include "lib/grid_barrier.cuh"
#include "lib/mbarrier.cuh"
#include "lib/tma.cuh"
#include "lib/vector.cuh"
#include "lib/warpgroup.cuh"

namespace flow {

enum Matrix { COND, X_IN, QKV_W, OUT_W, UP_W, DOWN_W, FINAL_W, MATRICES };

struct Params {                       // the order and sizes are known to mingcore/ops/cuda_flow.py
    const bf16 *condition, *history;  // [B, Hc], [B, N, C]
    const float *noise, *guidance, *times, *dt,
        *noise_scale;        // [draws, B, P, C], [B], [E, H], [E], [E, B]
    const float *cos, *sin;  // [T, D / 2]
    const void*
        matrix[MATRICES];  // [H, Hc], [H, C], [L, 3H, H], [L, H, H], [L, W, H], [L, H, W], [C, H]
    const bf16* bias[MATRICES];
    const bf16 *norm1, *norm2, *final_norm, *q_norm, *k_norm;  // [L, H] twice, [H], [L, D] or null
    const float* scale[4];                                     // of QKV_W to DOWN_W; null: 1
    bf16 *x, *qkv, *attended, *hidden;    // [M, H], [M, 3H], [M, H], [M, W], with M = R * T
    float *squares, *partial, *velocity;  // [M, H / 8], [splits, M, H], [R, P, C]
    float* out;                           // [B, P, C]
    u64* flags;      // ABORTED, then from FLAGS on each block's count of phases; zeroed once
    u64* fault;      // in pinned host memory
    u64 advance[4];  // a bit per evaluation: the state advances
    Shape s;
};

constexpr int CONSUMERS = 8, CONSUMER_THREADS = 32 * CONSUMERS, THREADS = CONSUMER_THREADS + 128;
constexpr int ABORTED = 0, FLAGS = 16, MAX_BLOCKS = 240;

// W: type of the weights. MT: tiles of 16 rows (mma's m16) that hold the M rows of all tokens.
template <class W_, int MT_>
struct Traits {
    using W = W_;
    static constexpr int MT = MT_;
    static constexpr int ROWS = 16 * MT;
    static constexpr int BYTES = sizeof(W);
    static constexpr int GROUP = MT <= 4 ? 4 : 2;  // units per pass; limited by registers
    // padding instead of a swizzle: lanes (row g, elements 8c to 8c + 7) hit all banks evenly
    static constexpr int PITCH = (DEPTH + 32) * BYTES;
    static constexpr int PAGE = TILE * PITCH;
    static constexpr int ROUND = MT <= 2 ? GROUP : MT <= 4 ? 2 : 1;  // tiles reduced at a time
    static constexpr int SUMS = CONSUMERS * ROUND * ROWS * TILE;     // floats
};

// Dynamic shared memory, in this order.
template <class T>
struct Shared {
    char* ring;             // [pages][PAGE]
    u64 *full, *empty;      // [pages]
    float* sums;            // [CONSUMERS][ROUND][ROWS][TILE]
    float* own;             // [tiles][ROWS][TILE]: this block's columns of x, throughout the launch
    float* constant;        // the same of the embedded condition and history
    float *base, *current;  // [B, P, C]
    float* inverse;         // [ROWS]: 1 / root mean square of x
    u64* epoch;             // this block's count of phases before this launch
    volatile int* aborted;

    __device__ __forceinline__ Shared(const Shape& s, int blocks) {
        const int tiles = (s.H / TILE + blocks - 1) / blocks * T::ROWS * TILE;
        const int state = s.B * s.P * s.C;
        ring = shared_memory();
        full = (u64*)(ring + s.pages * T::PAGE);
        empty = full + s.pages;
        epoch = empty + s.pages;
        aborted = (volatile int*)(epoch + 1);
        sums = (float*)(epoch + 2);
        own = sums + T::SUMS;
        constant = own + tiles;
        base = constant + tiles;
        current = base + state;
        inverse = current + state;
    }
};

__device__ __forceinline__ void sync_consumers() { bar_sync(1, CONSUMER_THREADS); }

// Every row of a page is one cp.async.bulk.
template <class T>
struct Producer {
    const Params& p;
    const Shared<T>& shared;
    int filled = 0;

    __device__ __forceinline__ bool fill(const Phase& phase, int unit, int k, const Cursor& at) {
        const Shape& s = p.s;
        const int lane = threadIdx.x % 32;
        u64* const full = shared.full + at.page;
        if (at.round)
            while (!mbarrier_try_wait(shared.empty + at.page, (at.round - 1) & 1))
                if (*shared.aborted) break;
        if (__any_sync(~0u, *shared.aborted)) return false;
        const int kind = phase.kind, depth = depth_of(s, kind), tiles = s.H / TILE;
        const int split = kind == DOWN ? unit / tiles : 0, tile = unit - split * tiles;
        const int from = split * depth + k;
        const int weights = min(page_depth<T::BYTES>(kind), depth - k);
        const int width = kind == DOWN ? s.W : s.H;
        const int bytes = kind == FINAL ? 2 : T::BYTES;
        const int matrix = kind == QKV    ? QKV_W
                           : kind == OUT  ? OUT_W
                           : kind == UP   ? UP_W
                           : kind == DOWN ? DOWN_W
                                          : FINAL_W;
        const int rows = kind == QKV ? 3 * s.H : kind == UP ? s.W : kind == FINAL ? s.C : s.H;
        if (lane == 0) mbarrier_arrive_expect_tx(full, TILE * weights * bytes);
        __syncwarp();
        if (lane < TILE) {
            const long long row = (long long)phase.layer * rows + tile * TILE + lane;
            cp_async_bulk(shared.ring + at.page * T::PAGE + lane * T::PITCH,
                          (const char*)p.matrix[matrix] + (row * width + from) * bytes,
                          weights * bytes, full);
        }
        ++filled;
        return true;
    }

    // Bulk copies in flight must arrive before the block ends.
    __device__ __forceinline__ void drain() {
        const int pages = p.s.pages;
        for (int i = max(filled - pages, 0); i < filled; ++i)
            while (!mbarrier_try_wait(shared.full + i % pages, i / pages & 1)) {
            }
    }
};

}  // namespace flow
