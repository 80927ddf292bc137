// flow_sample: the phases, who does what in each, who waits for whom, and the order of the pages in
// which weights arrive. No instruction of a GPU is here: a test compiles the same text for the host
// and walks it with thousands of interleavings, at the sizes of real heads.
#pragma once

namespace flow {

// One evaluation of the velocity: EMBED, then per block of the head QKV to SETTLE, then FINAL.
enum Kind { EMBED, QKV, ATTEND, OUT, UP, DOWN, SETTLE, FINAL, DONE };

constexpr int TILE = 8;   // weight rows of a unit: the narrow operand of mma.m16n8k16
constexpr int DEPTH = 1024;  // weights of a row in one page

struct Shape {  // the order is known to mingcore/ops/cuda_flow.py
    int B, R, T, N, P, C, Hc, H, W, L, E, heads, rope_heads;
    int splits;  // parts of the sums of `down`; with more than one SETTLE adds them up
    int pages;   // of the ring
    int draws;   // of the noise
};

struct Run {
    int first, end;
};

__device__ __forceinline__ Run run_of(int units, int block, int blocks) {
    return {(int)((long long)units * block / blocks), (int)((long long)units * (block + 1) / blocks)};
}

__device__ __forceinline__ bool is_product(int kind) {
    return kind == QKV || kind == OUT || kind == UP || kind == DOWN || kind == FINAL;
}

// Units of a phase: tiles of weight rows, for DOWN of one part after the other; queries of a head.
__device__ __forceinline__ int units_of(const Shape& s, int kind) {
    switch (kind) {
        case QKV: return 3 * s.H / TILE;
        case ATTEND: return s.heads * s.R * s.T;
        case UP: return s.W / TILE;
        case DOWN: return s.splits * (s.H / TILE);
        case FINAL: return s.C / TILE;
        default: return s.H / TILE;  // EMBED, OUT, SETTLE: a block's own columns of x
    }
}

__device__ __forceinline__ int depth_of(const Shape& s, int kind) {  // summed elements of a unit
    return kind == DOWN ? s.W / s.splits : s.H;
}

// Weights of a row in a page. The final matrix is never quantised: 2 bytes each.
template <int BYTES>
__device__ __forceinline__ int page_depth(int kind) {
    return kind == FINAL ? DEPTH * BYTES / 2 : DEPTH;
}

// Units from `unit` on, before `end`, that share one pass over the activations: up to `most`.
__device__ __forceinline__ int group_of(const Shape& s, int kind, int unit, int end, int most) {
    int size = end - unit < most ? end - unit : most;
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
        } else if (kind == SETTLE || (kind == DOWN && s.splits == 1)) {
            kind = ++layer < s.L ? QKV : FINAL;
            layer = layer < s.L ? layer : 0;
        } else {
            ++kind;
        }
    }
};

__device__ __forceinline__ bool overlap(Run run, int first, int end) {
    return run.first < end && first < run.end && run.first < run.end;
}

// Must `block` see that `other` ended the phase before one of this kind? Where everything a block
// reads comes from few others, it waits for these only. That no buffer is overwritten under a
// reader follows from the phases that wait for all; the test of this file checks it.
__device__ __forceinline__ bool needs(const Shape& s, int kind, int block, int other, int blocks) {
    const int tiles = s.H / TILE;
    if (kind == EMBED || kind == DONE) {
        const Run run = run_of(units_of(s, FINAL), other, blocks);
        return run.first < run.end && (kind == EMBED || block == 0);
    }
    if (kind == ATTEND) {
        const Run mine = run_of(units_of(s, ATTEND), block, blocks);
        if (mine.first == mine.end) return false;
        const int of_head = s.H / s.heads / TILE, queries = s.R * s.T;
        const int first = mine.first / queries * of_head;
        const int end = ((mine.end - 1) / queries + 1) * of_head;
        const Run run = run_of(units_of(s, QKV), other, blocks);
        return overlap(run, first, end) || overlap(run, tiles + first, tiles + end) ||
               overlap(run, 2 * tiles + first, 2 * tiles + end);
    }
    if (kind == SETTLE) {
        const Run mine = run_of(tiles, block, blocks);
        const Run run = run_of(units_of(s, DOWN), other, blocks);
        for (int part = 0; part < s.splits; ++part)
            if (mine.first < mine.end &&
                overlap(run, part * tiles + mine.first, part * tiles + mine.end))
                return true;
        return false;
    }
    return true;
}

struct Cursor {  // a place in the ring, and how often the ring was gone around
    int page = 0;
    unsigned round = 0;

    __device__ __forceinline__ void next(int pages) {
        if (++page == pages) {
            page = 0;
            ++round;
        }
    }
};

// What the producer of a block does: fill page after page, in the order of their use, as far ahead
// as the ring is long, whatever phase the consumers are in. work.fill(phase, unit, k, at) waits
// until the page is free; false: stop.
template <int BYTES, int GROUP, class Work>
__device__ __forceinline__ void produce(Work& work, const Shape& s, int block, int blocks) {
    Cursor at;
    for (Phase phase; phase.kind != DONE; phase.next(s)) {
        if (!is_product(phase.kind)) continue;
        const Run run = run_of(units_of(s, phase.kind), block, blocks);
        for (int unit = run.first, units; unit < run.end; unit += units) {
            units = group_of(s, phase.kind, unit, run.end, GROUP);
            for (int k = 0; k < depth_of(s, phase.kind); k += page_depth<BYTES>(phase.kind))
                for (int j = 0; j < units; ++j, at.next(s.pages))
                    if (!work.fill(phase, unit + j, k, at)) return;
        }
    }
}

// What the consumers of a block do. work.wait(phase): for the blocks that it needs; false: stop.
// work.multiply(phase, unit, units, k, at): waits for the pages at `at` and on, and frees them.
// work.post(phase): says to the other blocks that the phase is ended here.
template <int BYTES, int GROUP, class Work>
__device__ __forceinline__ bool consume(Work& work, const Shape& s, int block, int blocks) {
    Cursor at;
    for (Phase phase; work.wait(phase); phase.next(s)) {
        if (phase.kind == DONE) return true;
        const Run run = run_of(units_of(s, phase.kind), block, blocks);
        if (is_product(phase.kind)) {
            for (int unit = run.first, units; unit < run.end; unit += units) {
                units = group_of(s, phase.kind, unit, run.end, GROUP);
                work.begin(phase, unit, units, unit == run.first);
                for (int k = 0; k < depth_of(s, phase.kind); k += page_depth<BYTES>(phase.kind)) {
                    work.multiply(phase, unit, units, k, at);
                    for (int j = 0; j < units; ++j) at.next(s.pages);
                }
                work.finish(phase, unit, units, unit == run.first);
            }
        } else {
            work.serve(phase, run);
        }
        work.post(phase);
    }
    return false;
}

}  // namespace flow
