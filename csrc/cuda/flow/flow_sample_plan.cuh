// flow_sample: the static schedule. The phases, the units of each block in each, which blocks wait for
// which, and the order of the pages in which weights arrive. No GPU instruction is here: a test
// compiles the same text for the host and model-checks it over thousands of interleavings, at the
// sizes of real heads.
#pragma once

namespace flow {

// One evaluation of the velocity: EMBED, then per transformer block QKV to REDUCE (the split-K
// reduction of DOWN), then FINAL.
enum Kind { EMBED, QKV, ATTENTION, OUT, UP, DOWN, REDUCE, FINAL, DONE };

constexpr int TILE = 8;      // weight rows of a unit: the n8 operand of mma.m16n8k16
constexpr int DEPTH = 1024;  // weights of a row in one page

struct Shape {  // the order is known to mingcore/ops/cuda_flow.py
    int B, R, T, N, P, C, Hc, H, W, L, E, heads, rope_heads;
    int splits;  // of K in DOWN (split-K); with more than one REDUCE adds them up
    int pages;   // of the ring
    int draws;   // of the noise
};

struct Range {  // of units
    int first, end;
};

__device__ __forceinline__ Range range_of(int units, int block, int blocks) {
    return {(int)((long long)units * block / blocks),
            (int)((long long)units * (block + 1) / blocks)};
}

__device__ __forceinline__ bool is_product(int kind) {
    return kind == QKV || kind == OUT || kind == UP || kind == DOWN || kind == FINAL;
}

// Units of a phase: tiles of weight rows, for DOWN split by split; for ATTENTION one query of one head.
__device__ __forceinline__ int units_of(const Shape& s, int kind) {
    switch (kind) {
        case QKV: return 3 * s.H / TILE;
        case ATTENTION: return s.heads * s.R * s.T;
        case UP: return s.W / TILE;
        case DOWN: return s.splits * (s.H / TILE);
        case FINAL: return s.C / TILE;
        default: return s.H / TILE;  // EMBED, OUT, REDUCE: a block's own columns of x
    }
}

__device__ __forceinline__ int depth_of(const Shape& s, int kind) {  // summed elements of a unit
    return kind == DOWN ? s.W / s.splits : s.H;
}

// Weights of a row in a page. FINAL's matrix is never quantised: 2 bytes each.
template <int BYTES>
__device__ __forceinline__ int page_depth(int kind) {
    return kind == FINAL ? DEPTH * BYTES / 2 : DEPTH;
}

// Units from `unit` on, before `end`, that share one pass over the activations: up to `max_units`.
__device__ __forceinline__ int group_of(const Shape& s, int kind, int unit, int end,
                                        int max_units) {
    int size = end - unit < max_units ? end - unit : max_units;
    if (kind == DOWN) {
        const int tiles = s.H / TILE, left = tiles - unit % tiles;
        size = size < left ? size : left;
    }
    return size;
}

struct Phase {
    int kind = EMBED, layer = 0, eval = 0;
    int index = 0;  // phases before it in this launch

    __device__ __forceinline__ void next(const Shape& s) {
        ++index;
        if (kind == FINAL) {
            kind = ++eval < s.E ? EMBED : DONE;
        } else if (kind == REDUCE || (kind == DOWN && s.splits == 1)) {
            kind = ++layer < s.L ? QKV : FINAL;
            layer = layer < s.L ? layer : 0;
        } else {
            ++kind;
        }
    }
};

__device__ __forceinline__ bool overlap(Range range, int first, int end) {
    return range.first < end && first < range.end && range.first < range.end;
}

// Whether `block` must wait for `other` before a phase of this kind: point-to-point synchronisation
// where everything a block reads comes from few others. That no buffer is overwritten under a reader
// (write after read) follows from the phases that wait for all; the model checker checks it.
__device__ __forceinline__ bool depends(const Shape& s, int kind, int block, int other,
                                        int blocks) {
    const int tiles = s.H / TILE;
    if (kind == EMBED || kind == DONE) {
        const Range range = range_of(units_of(s, FINAL), other, blocks);
        return range.first < range.end && (kind == EMBED || block == 0);
    }
    if (kind == ATTENTION) {
        const Range mine = range_of(units_of(s, ATTENTION), block, blocks);
        if (mine.first == mine.end) return false;
        const int of_head = s.H / s.heads / TILE, queries = s.R * s.T;
        const int first = mine.first / queries * of_head;
        const int end = ((mine.end - 1) / queries + 1) * of_head;
        const Range range = range_of(units_of(s, QKV), other, blocks);
        return overlap(range, first, end) || overlap(range, tiles + first, tiles + end) ||
               overlap(range, 2 * tiles + first, 2 * tiles + end);
    }
    if (kind == REDUCE) {
        const Range mine = range_of(tiles, block, blocks);
        const Range range = range_of(units_of(s, DOWN), other, blocks);
        for (int split = 0; split < s.splits; ++split)
            if (mine.first < mine.end &&
                overlap(range, split * tiles + mine.first, split * tiles + mine.end))
                return true;
        return false;
    }
    return true;
}

struct Cursor {  // a page of the ring, and how often the ring has wrapped
    int page = 0;
    unsigned round = 0;

    __device__ __forceinline__ void next(int pages) {
        if (++page == pages) {
            page = 0;
            ++round;
        }
    }
};

// The producer warp's loop: page after page in the order of their use, as far ahead as the ring is
// long, whatever phase the consumers are in. work.fill(phase, unit, k, at) waits until the page is
// free; false: aborted.
template <int BYTES, int GROUP, class Work>
__device__ __forceinline__ void produce(Work& work, const Shape& s, int block, int blocks) {
    Cursor at;
    for (Phase phase; phase.kind != DONE; phase.next(s)) {
        if (!is_product(phase.kind)) continue;
        const Range range = range_of(units_of(s, phase.kind), block, blocks);
        for (int unit = range.first, units; unit < range.end; unit += units) {
            units = group_of(s, phase.kind, unit, range.end, GROUP);
            for (int k = 0; k < depth_of(s, phase.kind); k += page_depth<BYTES>(phase.kind))
                for (int j = 0; j < units; ++j, at.next(s.pages))
                    if (!work.fill(phase, unit + j, k, at)) return;
        }
    }
}

// The consumer warps' loop. work.wait(phase): for the blocks that it depends on; false: aborted.
// work.multiply(phase, unit, units, k, at): waits for the pages from `at` on, and frees them.
// work.signal(phase): tells the other blocks that the phase has ended here.
template <int BYTES, int GROUP, class Work>
__device__ __forceinline__ bool consume(Work& work, const Shape& s, int block, int blocks) {
    Cursor at;
    for (Phase phase; work.wait(phase); phase.next(s)) {
        if (phase.kind == DONE) return true;
        const Range range = range_of(units_of(s, phase.kind), block, blocks);
        if (is_product(phase.kind)) {
            for (int unit = range.first, units; unit < range.end; unit += units) {
                units = group_of(s, phase.kind, unit, range.end, GROUP);
                work.begin(phase, unit, units, unit == range.first);
                for (int k = 0; k < depth_of(s, phase.kind); k += page_depth<BYTES>(phase.kind)) {
                    work.multiply(phase, unit, units, k, at);
                    for (int j = 0; j < units; ++j) at.next(s.pages);
                }
                work.finish(phase, unit, units, unit == range.first);
            }
        } else {
            work.run(phase, range);
        }
        work.signal(phase);
    }
    return false;
}

}  // namespace flow
