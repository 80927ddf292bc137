// flow_sample: the operands, shared memory, and the producer that streams weights through it.
#pragma once
#include "lib/bulk.cuh"
#include "flow/flow_sample_plan.cuh"
#include "lib/weights.cuh"

namespace flow {

enum Matrix { COND, X_IN, QKV_W, OUT_W, UP_W, DOWN_W, FINAL_W, MATRICES };

struct Params {  // the order and sizes are known to mingcore/ops/cuda_flow.py
    const bf16 *condition, *history;  // [B, Hc], [B, N, C]
    const float *noise, *guidance, *times, *dt, *noise_scale;  // [draws, B, P, C], [B], [E, H], [E], [E, B]
    const float *cos, *sin;                                    // [T, D / 2]
    const void* matrix[MATRICES];  // [H, Hc], [H, C], [L, 3H, H], [L, H, H], [L, W, H], [L, H, W], [C, H]
    const bf16* bias[MATRICES];
    const bf16 *norm1, *norm2, *final_norm, *q_norm, *k_norm;  // [L, H] twice, [H], [L, D] or null
    const float* scale[4];                                     // of QKV_W to DOWN_W; null: 1
    bf16 *x, *qkv, *attended, *hidden;  // [M, H], [M, 3H], [M, H], [M, W], with M = R * T
    float *squares, *partial, *velocity;  // [M, H / 8], [splits, M, H], [R, P, C]
    float* out;                           // [B, P, C]
    u64* flags;  // ABORTED, then from FLAGS on a block's phases so far; zeroed once
    u64* fault;  // on the host
    u64 advance[4];  // a bit per evaluation
    Shape s;
};

constexpr int CONSUMERS = 8, CONSUMER_THREADS = 32 * CONSUMERS, THREADS = CONSUMER_THREADS + 128;
constexpr int ABORTED = 0, FLAGS = 16, MAX_BLOCKS = 240;
constexpr u64 PATIENCE_NS = 4000000000ull;

// Type of the weights, and tiles of 16 rows that hold the M rows of all tokens.
template <class W_, int MT_>
struct Traits {
    using W = W_;
    static constexpr int MT = MT_;
    static constexpr int ROWS = 16 * MT;
    static constexpr int BYTES = sizeof(W);
    static constexpr int GROUP = MT <= 4 ? 4 : 2;  // of units; as many as there are registers for
    // so much more than the weights that lanes (row g, elements 8c to 8c + 7) touch all banks evenly
    static constexpr int PITCH = (DEPTH + 32) * BYTES;
    static constexpr int PAGE = TILE * PITCH;
    static constexpr int ROUND = MT <= 2 ? GROUP : MT <= 4 ? 2 : 1;  // tiles summed up at a time
    static constexpr int SUMS = CONSUMERS * ROUND * ROWS * TILE;     // floats
};

// Dynamic shared memory, in this order.
template <class T>
struct Shared {
    char* ring;         // [pages][PAGE]
    u64 *full, *empty;  // [pages]
    float* sums;        // [CONSUMERS][ROUND][ROWS][TILE]
    float* own;         // [tiles][ROWS][TILE]: this block's columns of x, for good
    float* constant;    // the same of what the tokens begin with in every evaluation
    float *base, *current;  // [B, P, C]
    float* inverse;         // [ROWS]: 1 / root mean square of x
    u64* epoch;             // phases of all launches before this one
    volatile int* stop;

    __device__ __forceinline__ Shared(const Shape& s, int blocks) {
        const int tiles = (s.H / TILE + blocks - 1) / blocks * T::ROWS * TILE;
        const int state = s.B * s.P * s.C;
        ring = shared_memory();
        full = (u64*)(ring + s.pages * T::PAGE);
        empty = full + s.pages;
        epoch = empty + s.pages;
        stop = (volatile int*)(epoch + 1);
        sums = (float*)(epoch + 2);
        own = sums + T::SUMS;
        constant = own + tiles;
        base = constant + tiles;
        current = base + state;
        inverse = current + state;
    }
};

__device__ __forceinline__ void sync_consumers() { sync_some(1, CONSUMER_THREADS); }

// Units of a phase to rows of its matrix.
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
            while (!barrier_done(shared.empty + at.page, (at.round - 1) & 1))
                if (*shared.stop) break;
        if (__any_sync(~0u, *shared.stop)) return false;
        const int kind = phase.kind, depth = depth_of(s, kind), tiles = s.H / TILE;
        const int part = kind == DOWN ? unit / tiles : 0, tile = unit - part * tiles;
        const int from = part * depth + k;
        const int weights = min(page_depth<T::BYTES>(kind), depth - k);
        const int width = kind == DOWN ? s.W : s.H;
        const int bytes = kind == FINAL ? 2 : T::BYTES;
        const int matrix = kind == QKV ? QKV_W : kind == OUT ? OUT_W : kind == UP ? UP_W
                           : kind == DOWN ? DOWN_W : FINAL_W;
        const int rows = kind == QKV ? 3 * s.H : kind == UP ? s.W : kind == FINAL ? s.C : s.H;
        if (lane == 0) barrier_expect(full, TILE * weights * bytes);
        __syncwarp();
        if (lane < TILE) {
            const long long row = (long long)phase.layer * rows + tile * TILE + lane;
            copy_bulk(shared.ring + at.page * T::PAGE + lane * T::PITCH,
                      (const char*)p.matrix[matrix] + (row * width + from) * bytes,
                      weights * bytes, full);
        }
        ++filled;
        return true;
    }

    // Pages on their way must arrive before the block ends.
    __device__ __forceinline__ void drain() {
        const int pages = p.s.pages;
        for (int i = max(filled - pages, 0); i < filled; ++i)
            while (!barrier_done(shared.full + i % pages, i / pages & 1)) {
            }
    }
};

}  // namespace flow
