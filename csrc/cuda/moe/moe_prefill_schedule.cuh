// moe_prefill: slots sorted by expert, shared memory, and the persistent tile scheduler.
#pragma once
#include "lib/shared_memory.cuh"
#include "lib/tma.cuh"
#include "lib/vector.cuh"

struct MoeSortParams {  // the orders and sizes are known to mingcore/ops/cuda_moe_prefill.py
    const int* ids;     // [slots]
    int* rows;          // [slots]
    int* offsets;       // [E + 1]
    int slots, E;
};

struct MoePrefillParams {        // of either grouped GEMM
    TensorMap weights, shared;   // [K, width, parts, E], the innermost first
    const void *in, *shared_in;  // x twice, or hidden and the shared expert's hidden
    void *out, *shared_out;      // hidden and the shared expert's, or y and y + slots * H
    const int *rows, *offsets;   // of moe_prefill_sort
    long long in_row;            // of x: elements from one row to the next
    int T, top_k, E;
    int width, shared_width;  // columns of out: I and Is, or H and H
    int depth, shared_depth;  // summed elements: H and H, or I and Is
};

struct MoeSumParams {
    const void* y;         // [slots + T, H], without the last T where there is no shared expert
    const float* weights;  // [T, top_k]
    void* out;             // [T, H]
    int T, top_k, H, has_shared;
};

constexpr int MAX_EXPERTS = 256;
constexpr int TOKENS = 192;         // of a tile, at most
constexpr int WEIGHTS = 256;        // weight rows of a tile
constexpr int DEPTH = 64;           // summed elements of a stage: 128 bytes, the widest swizzle
constexpr int STAGES = 3, LAG = 1;  // LAG <= STAGES - 2: produce()
constexpr int PRODUCERS = 128, CONSUMERS = 256, THREADS = PRODUCERS + CONSUMERS;
constexpr int SORTERS = 512, SUMMERS = 256;
constexpr int WEIGHT_BYTES = WEIGHTS * DEPTH * 2, TOKEN_BYTES = TOKENS * DEPTH * 2;
constexpr int STAGE_BYTES = WEIGHT_BYTES + TOKEN_BYTES;
constexpr int OUT_BYTES = TOKENS * 64 * 2;  // of a warpgroup: 64 columns of its outputs

// Dynamic shared memory, from the first multiple of 1024 bytes on, as the swizzle wants it.
struct Shared {
    char stage[STAGES][STAGE_BYTES];
    char out[2][OUT_BYTES];
    u64 full[STAGES], empty[STAGES];
    int first[MAX_EXPERTS + 2];  // tile of each group; group 0 is the shared expert
};

__device__ __forceinline__ Shared& shared_layout() {
    char* const from = shared_memory();
    return *(Shared*)(from + (1024 - shared_address(from) % 1024) % 1024);
}

// The 128-byte XOR swizzle of TMA and wgmma: where 16-byte chunk `chunk` of row `row` is.
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * 128 + ((chunk ^ row % 8) << 4);
}

// Rows of a group are cut into tiles as even as steps of 16 allow.
__device__ __forceinline__ int tiles_of(int rows) { return (rows + TOKENS - 1) / TOKENS; }

struct Tile {
    int group;        // 0: shared; 1 + e
    int first, rows;  // of its group's sorted rows, or tokens: 1 to TOKENS
    int part;         // of the weight rows
    int depth;
};

// A persistent block takes every gridDim-th tile. They are numbered group by group, the shared
// expert's first since its sums of the second product may be the longest; within a group tiles of the
// same weights are neighbours, so that these come from L2.
template <bool UP>
struct TileScheduler {
    static constexpr int COLUMNS = UP ? WEIGHTS / 2 : WEIGHTS;  // of out: gate and up make one
    const MoePrefillParams& p;
    const Shared& s;
    int index, group;

    __device__ TileScheduler(const MoePrefillParams& p_, const Shared& s_)
        : p(p_), s(s_), index(blockIdx.x), group(0) {}

    // A prefix sum of the groups' tiles, by all threads, before a scheduler is used.
    static __device__ void count_tiles(const MoePrefillParams& p, Shared& s) {
        int* const count = (int*)s.out;
        for (int g = threadIdx.x; g <= p.E; g += THREADS) {
            const int rows = g ? p.offsets[g] - p.offsets[g - 1] : p.T;
            const int width = g ? p.width : p.shared_width;
            count[g] = tiles_of(rows) * ((width + COLUMNS - 1) / COLUMNS);
        }
        __syncthreads();
        for (int g = threadIdx.x; g <= p.E + 1; g += THREADS) {
            int before = 0;
            for (int i = 0; i < g; ++i) before += count[i];
            s.first[g] = before;
        }
    }
    __device__ bool valid() const { return index < s.first[p.E + 1]; }
    __device__ Tile tile() {
        while (index >= s.first[group + 1]) ++group;
        const int start = group ? p.offsets[group - 1] : 0;
        const int all = group ? p.offsets[group] - start : p.T;
        const int tiles = tiles_of(all), within = index - s.first[group];
        const int size = ((all + tiles - 1) / tiles + 15) / 16 * 16;
        Tile t;
        t.group = group;
        t.part = within / tiles;
        t.first = start + within % tiles * size;
        t.rows = min(size, start + all - t.first);
        t.depth = group ? p.depth : p.shared_depth;
        return t;
    }
    __device__ void next() { index += gridDim.x; }
};

// A stable counting sort without atomics. rows: the slots t * K + k by expert, in their order; offsets:
// where an expert's begin. Block e reads all ids for expert e, each warp a contiguous part, twice:
// to count, then to place.
__device__ __forceinline__ void sort_slots(const MoeSortParams& p) {
    constexpr int WARPS = SORTERS / 32, NONE = 0x7fffffff;
    int* const equal = (int*)shared_memory();  // [WARPS]: of this expert, and of those before it
    int* const less = equal + WARPS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x;
    const int part = (p.slots + 32 * WARPS - 1) / (32 * WARPS) * 32;
    const int begin = min(warp * part, p.slots), end = min(begin + part, p.slots);
    int chose = 0, below = 0;
#pragma unroll 8
    for (int i = begin; i < end; i += 32) {
        const int id = i + lane < end ? p.ids[i + lane] : NONE;
        chose += __popc(__ballot_sync(~0u, id == expert));
        below += __popc(__ballot_sync(~0u, id < expert));
    }
    if (lane == 0) {
        equal[warp] = chose;
        less[warp] = below;
    }
    __syncthreads();
    int at = 0, all = 0;
    for (int w = 0; w < WARPS; ++w) {
        at += less[w] + (w < warp ? equal[w] : 0);
        all += less[w] + equal[w];
    }
    if (threadIdx.x == 0) {
        if (expert == 0) p.offsets[0] = 0;
        p.offsets[expert + 1] = all;
    }
#pragma unroll 8
    for (int i = begin; i < end; i += 32) {
        const int id = i + lane < end ? p.ids[i + lane] : NONE;
        const unsigned mine = __ballot_sync(~0u, id == expert);
        if (id == expert) p.rows[at + __popc(mine & ((1u << lane) - 1))] = i + lane;
        at += __popc(mine);
    }
}
