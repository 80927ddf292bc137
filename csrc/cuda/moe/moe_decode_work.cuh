// moe_decode: what there is to do, who does it, and the copies that run ahead of it.
#pragma once
#include "lib/weights.cuh"

struct MoeDecodeParams {  // the order and sizes are known to mingcore/ops/cuda_moe.py
    const void* x;        // [T, H]
    const void *gate_up, *down;                // [E, 2I, H], [E, H, I]
    const void *shared_gate_up, *shared_down;  // [2Is, H], [H, Is]
    const float *gate_up_scale, *down_scale;   // [E, 2I], [E, H]; null: 1
    const float *shared_gate_up_scale, *shared_down_scale;  // [2Is], [H]
    const float* weights;                                   // [T, K]
    const int* ids;                                         // [T, K]
    void* hidden;  // of x's type: [T * K, I], then [T, Is]
    void* out;     // [T, H]
    u64* exchange;  // ARRIVED and ABORTED; zeroed once, the same gridDim.x ever after
    long long x_row;
    int T, K, H, I, Is;  // Is = 0: no shared expert
    int rows;            // of down per unit: 8 or 16
};

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int TOKENS = 16, ROWS = 16;  // of a unit
constexpr int MAX_SLOTS = 512, MAX_TOKENS = 63;
constexpr int MAX_ENTRIES = MAX_SLOTS + (MAX_TOKENS + TOKENS - 1) / TOKENS;
constexpr int ARRIVED = 0, ABORTED = 8;  // words of `exchange`, a line apart
constexpr u64 PATIENCE_NS = 4000000000ull;
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
    static constexpr int STEP = 8 * E;               // summed elements of one turn of a warp
    static constexpr int XV = E * sizeof(X) / 16;    // copies of x beside one of weights
    static constexpr int STAGE = (4 + 4 * XV) * 32;  // vectors: 2 tiles x 2 parts, x twice as many
    static constexpr int STAGES = sizeof(W) == 1 ? (LARGE ? 3 : 2) : (LARGE ? 5 : 3);

    static __device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1,
                                               unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
        if constexpr (same<X, bf16>)
            mma_bf16(d, a0, a1, a2, a3, b0, b1);
        else
            mma_f16(d, a0, a1, a2, a3, b0, b1);
    }
};

// An entry is an expert with up to 16 of the slots t * K + k that chose it; entries of one expert are
// neighbours. The last entries, from `routed` on, are the shared expert's, with slots T * K + t.
struct Plan {
    int expert[MAX_ENTRIES];
    short start[MAX_ENTRIES + 1];  // into slots
    short slots[MAX_SLOTS + MAX_TOKENS + 1];
    int routed, entries;
    int on;  // the exchange succeeded
};

// The entries of this launch's ids; experts in the order of their first slots.
__device__ void make_plan(const MoeDecodeParams& p, Plan& plan, short* leader, int* ids) {
    const int slots = p.T * p.K;
    short* const first = leader + MAX_SLOTS;  // of the expert; leader: of the entry
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
        int entry = 0, entries = 0, place = 0;
        for (int i = 0; i < slots; ++i) {
            const bool leads = leader[i] == i, of_it = first[i] == first[s];
            entries += leads;
            entry += leads && (of_it ? i < leader[s] : first[i] < first[s]);
            place += of_it ? i < s : first[i] < first[s];
        }
        plan.slots[place] = s;
        if (leader[s] == s) {
            plan.expert[entry] = ids[s];
            plan.start[entry] = place;
        }
        if (s == 0) plan.routed = entries;
    }
    __syncthreads();
    const int shared = p.Is ? (p.T + TOKENS - 1) / TOKENS : 0, routed = plan.routed;
    for (int t = threadIdx.x; t < p.T; t += THREADS) {
        plan.slots[slots + t] = slots + t;
        if (t < shared) {
            plan.start[routed + t] = slots + t * TOKENS;
        }
    }
    if (threadIdx.x == 0) {
        plan.entries = routed + shared;
        plan.start[routed + shared] = slots + (shared ? p.T : 0);
        plan.on = 1;
    }
    __syncthreads();
}

// A run of units of one phase, and a place in it: what a block computes, or a warp copies. Entries of
// one expert take turns at each tile, so that its weights come from memory once, then from L2. Going
// on costs no division: it happens every few copies.
struct Units {
    bool second;           // gate and up, or down
    int left;              // units, with the present one
    int entry, tile;       // of the present unit
    int K;                 // its summed elements
    int of_routed, tiles;  // of the first phase: tiles of an expert, of this entry
    int lead, end;         // of the first phase: the entries of this expert

    __device__ void start(const MoeDecodeParams& p, const Plan& plan, bool second_) {
        second = second_;
        const int block = blockIdx.x, blocks = gridDim.x;
        if (second) {
            tile = block;
            entry = 0;
            left = max(((p.H + p.rows - 1) / p.rows - block + blocks - 1) / blocks, 0);
            left *= plan.entries;
        } else {
            of_routed = (p.I + 7) / 8;
            const int of_shared = (p.Is + 7) / 8, routed = plan.routed * of_routed;
            const long long all = routed + (plan.entries - plan.routed) * of_shared;
            const int first = (int)(all * block / blocks);
            left = (int)(all * (block + 1) / blocks) - first;
            const bool shared = first >= routed && of_shared;
            find(plan, shared ? plan.routed : first / of_routed);
            const int within = first - (shared ? routed : lead * of_routed);
            const int turns = max(end - lead, 1);
            tile = within / turns;
            entry = lead + within % turns;
        }
        look(p, plan);
    }
    __device__ void next(const MoeDecodeParams& p, const Plan& plan) {
        --left;
        ++entry;
        if (second) {
            if (entry == plan.entries) {
                entry = 0;
                tile += gridDim.x;
            }
        } else if (entry == end) {
            if (++tile < tiles) {
                entry = lead;
            } else {
                tile = 0;
                find(plan, entry);
            }
        }
        look(p, plan);
    }
    // the entries of the expert that has entry `of`
    __device__ void find(const Plan& plan, int of) {
        lead = min(of, plan.routed);
        end = of < plan.routed ? of + 1 : plan.entries;
        if (of >= plan.routed) return;
        while (lead > 0 && plan.expert[lead - 1] == plan.expert[of]) --lead;
        while (end < plan.routed && plan.expert[end] == plan.expert[of]) ++end;
    }
    __device__ void look(const MoeDecodeParams& p, const Plan& plan) {
        const bool routed = entry < plan.routed;
        tiles = routed ? of_routed : (p.Is + 7) / 8;
        K = !second ? p.H : routed ? p.I : p.Is;
    }
};

// Rows of hidden are in the order of Plan::slots, so that those of an entry are neighbours.
__device__ __forceinline__ long long hidden_row(const MoeDecodeParams& p, int place) {
    const int slots = p.T * p.K;
    return place < slots ? (long long)place * p.I : (long long)slots * p.I + (place - slots) * p.Is;
}

template <class Traits>
struct Feed {
    using X = typename Traits::X;
    using W = typename Traits::W;
    Units u;
    int step;       // of the unit, this warp's
    int entry;      // that base and x are of
    const W* base;  // first phase: row g of the entry's gate rows
    const W* w[2];  // this lane's weight row of each tile; null: there is none
    const X* x[2];  // its rows g and g + 8 of x or hidden

    __device__ void start(const MoeDecodeParams& p, const Plan& plan, bool second) {
        u.start(p, plan, second);
        step = threadIdx.x / 32;
        entry = -1;
        settle(p, plan);
    }
    __device__ void next(const MoeDecodeParams& p, const Plan& plan) {
        step += WARPS;
        if (u.left > 0 && step * Traits::STEP >= u.K) settle(p, plan);
    }
    __device__ void settle(const MoeDecodeParams& p, const Plan& plan) {
        for (;;) {
            while (u.left > 0 && step * Traits::STEP >= u.K) {
                step -= (u.K + Traits::STEP - 1) / Traits::STEP;
                u.next(p, plan);
            }
            if (u.left > 0) break;
            if (u.second) return;
            u.start(p, plan, true);
            step = threadIdx.x / 32;
            entry = -1;
        }
        const bool routed = u.entry < plan.routed;
        const int g = threadIdx.x % 32 / 4, width = routed ? p.I : p.Is;
        if (entry != u.entry) aim(p, plan, g, routed, width);
        if (u.second) {
            const int row = u.tile * p.rows + g;
            w[0] = row < p.H ? base + (long long)row * width : nullptr;
            w[1] = p.rows == ROWS && row + 8 < p.H ? base + (long long)(row + 8) * width : nullptr;
        } else {
            const bool there = u.tile * 8 + g < width;
            w[0] = there ? base + (long long)u.tile * 8 * p.H : nullptr;
            w[1] = there ? w[0] + (long long)width * p.H : nullptr;
        }
    }
    __device__ void aim(const MoeDecodeParams& p, const Plan& plan, int g, bool routed, int width) {
        entry = u.entry;
        const long long expert = routed ? plan.expert[entry] : 0, size = (long long)width * p.H;
        if (u.second)
            base = (const W*)(routed ? p.down : p.shared_down) + expert * size;
        else
            base = (const W*)(routed ? p.gate_up : p.shared_gate_up) + 2 * expert * size +
                   (long long)g * p.H;
        const int end = plan.start[entry + 1], slots = p.T * p.K;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place = plan.start[entry] + g + 8 * half;
            x[half] = nullptr;
            if (place >= end) continue;
            if (u.second) {
                x[half] = (const X*)p.hidden + hidden_row(p, place);
            } else {
                const int slot = plan.slots[place];
                x[half] = (const X*)p.x + (slot < slots ? slot / p.K : slot - slots) * p.x_row;
            }
        }
    }
    // to: this lane's place in a stage. The unit's end is filled with zeros, rows that are not
    // there with nothing: each spoils only its own sums, which nobody reads.
    __device__ void copy_weights(Vector16* to) const {
        if (u.left <= 0) return;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const int k = first(part), bytes = k < u.K ? 16 : 0;
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
                if (w[tile]) cp_async(to + (tile * 2 + part) * 32, w[tile] + (bytes ? k : 0), bytes);
        }
    }
    __device__ void copy_x(Vector16* to) const {
        if (u.left <= 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (!x[half]) continue;
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int k = first(part), bytes = k < u.K ? 16 : 0;
#pragma unroll
                for (int i = 0; i < Traits::XV; ++i)
                    cp_async(to + (4 + (half * 2 + part) * Traits::XV + i) * 32,
                             (const Vector16*)(x[half] + (bytes ? k : 0)) + i, bytes);
            }
        }
    }
    __device__ int first(int part) const {  // summed element of this lane's copy
        return step * Traits::STEP + (part * 4 + threadIdx.x % 4) * Traits::E;
    }
};
