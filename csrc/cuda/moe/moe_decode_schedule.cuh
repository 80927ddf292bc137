// moe_decode: tokens grouped by expert, the static schedule of tiles, and the cp.async loader that
// runs ahead of it.
#pragma once
#include "lib/cp_async.cuh"
#include "lib/types.cuh"
#include "lib/vector.cuh"

struct MoeDecodeParams {         // the order and sizes are known to mingcore/ops/cuda_moe.py
    const void* x;               // [T, H]
    const void *gate_up, *down;  // [E, 2I, H], [E, H, I]
    const void *shared_gate_up, *shared_down;               // [2Is, H], [H, Is]
    const float *gate_up_scale, *down_scale;                // [E, 2I], [E, H]; null: 1
    const float *shared_gate_up_scale, *shared_down_scale;  // [2Is], [H]
    const float* weights;                                   // [T, K]
    const int* ids;                                         // [T, K]
    void* hidden;                                           // of x's type: [T * K, I], then [T, Is]
    void* out;                                              // [T, H]
    u64* barrier;  // words of grid_barrier(); zeroed once, the same gridDim.x ever after
    long long x_row;
    int T, K, H, I, Is;  // Is = 0: no shared expert
    int rows;            // of down per tile: 8 or 16
};

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int TOKENS = 16, ROWS = 16;  // of a tile, at most
constexpr int MAX_SLOTS = 512, MAX_TOKENS = 63;
constexpr int MAX_GROUPS = MAX_SLOTS + (MAX_TOKENS + TOKENS - 1) / TOKENS;
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr bool LARGE = false;  // 163 KB of shared memory
#else
constexpr bool LARGE = true;  // 227 KB
#endif

template <class X_, class W_>
struct MoeDecodeTraits {
    using X = X_;  // type of x, hidden and out
    using W = W_;
    static constexpr int E = 16 / sizeof(W);         // weights of one copy
    static constexpr int STEP = 8 * E;               // summed elements of a warp's step
    static constexpr int XV = E * sizeof(X) / 16;    // copies of x beside one of weights
    static constexpr int STAGE = (4 + 4 * XV) * 32;  // vectors: 2 x 2 of weights, 4 * XV of x
    static constexpr int STAGES = sizeof(W) == 1 ? (LARGE ? 3 : 2) : (LARGE ? 5 : 3);
};

// Slots t * K + k sorted by expert and cut into groups: an expert with up to 16 of its slots. Groups
// of one expert are neighbours. The last groups, from `routed` on, are the shared expert's, with slots
// T * K + t.
struct Groups {
    int expert[MAX_GROUPS];
    short start[MAX_GROUPS + 1];  // into slots
    short slots[MAX_SLOTS + MAX_TOKENS + 1];
    int routed, count;
    int alive;  // no grid barrier has timed out
};

// A stable rank sort of this launch's ids, O(slots^2) over all threads; experts in the order of their
// first slots.
__device__ void group_slots(const MoeDecodeParams& p, Groups& groups, short* leader, int* ids) {
    const int slots = p.T * p.K;
    short* const first = leader + MAX_SLOTS;  // slot of the expert; leader: of the group
    for (int s = threadIdx.x; s < slots; s += THREADS) ids[s] = p.ids[s];
    __syncthreads();
    for (int s = threadIdx.x; s < slots; s += THREADS) {
        int before = 0;
        for (int i = 0; i <= s; ++i) {
            if (ids[i] != ids[s]) continue;
            if (before == 0) first[s] = i;
            if (before++ % TOKENS == 0) leader[s] = i;
        }
    }
    __syncthreads();
    for (int s = threadIdx.x; s < slots; s += THREADS) {
        int group = 0, all = 0, place = 0;
        for (int i = 0; i < slots; ++i) {
            const bool leads = leader[i] == i, of_it = first[i] == first[s];
            all += leads;
            group += leads && (of_it ? i < leader[s] : first[i] < first[s]);
            place += of_it ? i < s : first[i] < first[s];
        }
        groups.slots[place] = s;
        if (leader[s] == s) {
            groups.expert[group] = ids[s];
            groups.start[group] = place;
        }
        if (s == 0) groups.routed = all;
    }
    __syncthreads();
    const int shared = p.Is ? (p.T + TOKENS - 1) / TOKENS : 0, routed = groups.routed;
    for (int t = threadIdx.x; t < p.T; t += THREADS) {
        groups.slots[slots + t] = slots + t;
        if (t < shared) {
            groups.start[routed + t] = slots + t * TOKENS;
        }
    }
    if (threadIdx.x == 0) {
        groups.count = routed + shared;
        groups.start[routed + shared] = slots + (shared ? p.T : 0);
        groups.alive = 1;
    }
    __syncthreads();
}

// The static tile scheduler of a block: its contiguous run of tiles (rows of weights x a group) of one
// phase. Groups of one expert alternate at each tile of rows, so that its weights come from memory
// once, then from L2. next() is incremental, without a division: it runs every few copies.
struct TileScheduler {
    bool down;             // phase: gate and up, or down
    int left;              // tiles, with the present one
    int group, tile;       // of the present tile
    int K;                 // its summed elements
    int of_routed, tiles;  // gate and up: row tiles of a routed expert, of this group's
    int lead, end;         // gate and up: the groups of this expert

    __device__ void start(const MoeDecodeParams& p, const Groups& groups, bool down_) {
        down = down_;
        const int block = blockIdx.x, blocks = gridDim.x;
        if (down) {
            tile = block;
            group = 0;
            left = max(((p.H + p.rows - 1) / p.rows - block + blocks - 1) / blocks, 0);
            left *= groups.count;
        } else {
            of_routed = (p.I + 7) / 8;
            const int of_shared = (p.Is + 7) / 8, routed = groups.routed * of_routed;
            const long long all = routed + (groups.count - groups.routed) * of_shared;
            const int first = (int)(all * block / blocks);
            left = (int)(all * (block + 1) / blocks) - first;
            const bool shared = first >= routed && of_shared;
            find(groups, shared ? groups.routed : first / of_routed);
            const int within = first - (shared ? routed : lead * of_routed);
            const int sharing = max(end - lead, 1);
            tile = within / sharing;
            group = lead + within % sharing;
        }
        set_sizes(p, groups);
    }
    __device__ void next(const MoeDecodeParams& p, const Groups& groups) {
        --left;
        ++group;
        if (down) {
            if (group == groups.count) {
                group = 0;
                tile += gridDim.x;
            }
        } else if (group == end) {
            if (++tile < tiles) {
                group = lead;
            } else {
                tile = 0;
                find(groups, group);
            }
        }
        set_sizes(p, groups);
    }
    // The groups of the expert that has group `of`.
    __device__ void find(const Groups& groups, int of) {
        lead = min(of, groups.routed);
        end = of < groups.routed ? of + 1 : groups.count;
        if (of >= groups.routed) return;
        while (lead > 0 && groups.expert[lead - 1] == groups.expert[of]) --lead;
        while (end < groups.routed && groups.expert[end] == groups.expert[of]) ++end;
    }
    __device__ void set_sizes(const MoeDecodeParams& p, const Groups& groups) {
        const bool routed = group < groups.routed;
        tiles = routed ? of_routed : (p.Is + 7) / 8;
        K = !down ? p.H : routed ? p.I : p.Is;
    }
};

// Rows of hidden are in the order of Groups::slots, so that those of a group are neighbours.
__device__ __forceinline__ long long hidden_row(const MoeDecodeParams& p, int place) {
    const int slots = p.T * p.K;
    return place < slots ? (long long)place * p.I : (long long)slots * p.I + (place - slots) * p.Is;
}

// The producer side of every warp: issues cp.async for tiles STAGES steps ahead of the products, also
// beyond the grid barrier.
template <class Traits>
struct Loader {
    using X = typename Traits::X;
    using W = typename Traits::W;
    TileScheduler u;
    int step;       // of the tile, this warp's
    int group;      // that base and x belong to
    const W* base;  // gate and up: row g of the expert's gate rows; down: its matrix
    const W* w[2];  // this lane's row of both halves of the tile; null: there is none
    const X* x[2];  // its rows g and g + 8 of x or hidden

    __device__ void start(const MoeDecodeParams& p, const Groups& groups, bool down) {
        u.start(p, groups, down);
        step = threadIdx.x / 32;
        group = -1;
        find_tile(p, groups);
    }
    __device__ void next(const MoeDecodeParams& p, const Groups& groups) {
        step += WARPS;
        if (u.left > 0 && step * Traits::STEP >= u.K) find_tile(p, groups);
    }
    __device__ void find_tile(const MoeDecodeParams& p, const Groups& groups) {
        for (;;) {
            while (u.left > 0 && step * Traits::STEP >= u.K) {
                step -= (u.K + Traits::STEP - 1) / Traits::STEP;
                u.next(p, groups);
            }
            if (u.left > 0) break;
            if (u.down) return;
            u.start(p, groups, true);
            step = threadIdx.x / 32;
            group = -1;
        }
        const bool routed = u.group < groups.routed;
        const int g = threadIdx.x % 32 / 4, width = routed ? p.I : p.Is;
        if (group != u.group) set_group(p, groups, g, routed, width);
        if (u.down) {
            const int row = u.tile * p.rows + g;
            w[0] = row < p.H ? base + (long long)row * width : nullptr;
            w[1] = p.rows == ROWS && row + 8 < p.H ? base + (long long)(row + 8) * width : nullptr;
        } else {
            const bool there = u.tile * 8 + g < width;
            w[0] = there ? base + (long long)u.tile * 8 * p.H : nullptr;
            w[1] = there ? w[0] + (long long)width * p.H : nullptr;
        }
    }
    __device__ void set_group(const MoeDecodeParams& p, const Groups& groups, int g, bool routed,
                              int width) {
        group = u.group;
        const long long expert = routed ? groups.expert[group] : 0, size = (long long)width * p.H;
        if (u.down) base = (const W*)(routed ? p.down : p.shared_down) + expert * size;
        else
            base = (const W*)(routed ? p.gate_up : p.shared_gate_up) + 2 * expert * size +
                   (long long)g * p.H;
        const int end = groups.start[group + 1], slots = p.T * p.K;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place = groups.start[group] + g + 8 * half;
            x[half] = nullptr;
            if (place >= end) continue;
            if (u.down) {
                x[half] = (const X*)p.hidden + hidden_row(p, place);
            } else {
                const int slot = groups.slots[place];
                x[half] = (const X*)p.x + (slot < slots ? slot / p.K : slot - slots) * p.x_row;
            }
        }
    }
    // to: this lane's place in a stage. Beyond K zeros are copied. Of absent rows nothing is: garbage
    // there reaches only the sums of these rows, which nobody reads.
    __device__ void copy_weights(Vector16* to) const {
        if (u.left <= 0) return;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const int k = column(part), bytes = k < u.K ? 16 : 0;
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
                if (w[tile])
                    cp_async(to + (tile * 2 + part) * 32, w[tile] + (bytes ? k : 0), bytes);
        }
    }
    __device__ void copy_x(Vector16* to) const {
        if (u.left <= 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (!x[half]) continue;
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int k = column(part), bytes = k < u.K ? 16 : 0;
#pragma unroll
                for (int i = 0; i < Traits::XV; ++i)
                    cp_async(to + (4 + (half * 2 + part) * Traits::XV + i) * 32,
                             (const Vector16*)(x[half] + (bytes ? k : 0)) + i, bytes);
            }
        }
    }
    __device__ int column(int part) const {  // summed element of this lane's copy
        return step * Traits::STEP + (part * 4 + threadIdx.x % 4) * Traits::E;
    }
};
