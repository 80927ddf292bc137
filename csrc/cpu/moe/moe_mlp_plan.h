// The schedule of one moe_mlp call: rows sorted by expert (a counting sort), and the work list
// whose items threads claim in order.
//
// A segment is up to ROW_BLOCK rows that go through one expert together (the shared expert is one
// more, which every token chose). Its rows are contiguous in all of the plan's memory, at positions
// first, first + 1, ...: packed input [H] each, overwritten by the segment's result when all of its
// gate_up is done, and hidden [I]. An item waits only for items before it in the list:
//
//   pack 0 | pack 1, gate_up 0 | pack 2, gate_up 1 | ... | down 0 | down 1 | ...
//
// (in VNNI-2 and VNNI-4, hidden rows are packed as well, one expert after their gate_up). So while
// the last items of gate_up are in progress other threads begin with down 0, whose inputs were done
// long ago: there is no barrier, and memory is read without a gap from the first weight to the
// last.
#pragma once
#include "cpu/lib/arena.h"
#include "cpu/lib/gemm.h"
#include "cpu/lib/quantise.h"
#include "cpu/moe/moe_mlp.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int ROW_BLOCK = 256;  // rows of a segment: their sums for one panel stay in L1
constexpr int PACK_TILES = 4;   // row tiles that one item packs
constexpr int64_t CHUNK_FLOATS = 24 << 20;  // of scratch per chunk of tokens, about

// How rows are packed: as float32, or in words of several k. Words need whole rows, so hidden rows
// are stored in `gated` until theirs are complete.
enum class Form { floats, vnni2, vnni4 };

enum class Kind : int32_t { pack, gate_up, repack, down };

struct Segment {
    const char *gate_up, *down;  // this expert's matrices
    const float *gate_up_scale, *down_scale;
    int64_t width, gate_up_row, down_row;  // I, or the shared expert's; row lengths of layout rows
    int64_t first;                         // the position of its first row
    PackedRows x, h;                       // the packed inputs of both products
    float *gated, *result;                 // [width] of a row that is to be repacked, [H] of a row
    int rows, tiles;
    Counter to_pack, to_gate, to_repack;  // latches: row tiles, panels of gate_up, row tiles
};

struct Item {
    int32_t segment;
    Kind kind;
    int32_t first, count;  // panels; to pack and repack, row tiles
};

struct Plan {
    const MoeMlpArgs* a;
    int64_t t0, T;             // this chunk's tokens
    int64_t slots, positions;  // T K; with the shared expert's rows
    int64_t element;           // bytes of a weight
    Form form;                 // of x and of hidden rows
    int threads, experts_hit;
    int32_t *token, *place;  // of a position: its token, from t0 on; of a slot: its position
    int32_t* start;          // of an expert: its first position; [E + 1]
    float *rows, *hidden, *gated, *one, *memory;
    float *x_scale, *h_scale;  // of quantised rows, by position; the last of x is for `one`
    int32_t *x_sum, *h_sum;
    int64_t memory_each;  // floats of a thread: unpacked weights, sums, rows before they are packed
    Segment* segments;
    Item* items;
    Counter* to_combine;  // latches, of 32 output columns each: results that are not there yet
    int64_t segment_count, item_count, max_items;
    Counter work;
};

// 32-bit words that a packed row of K takes.
MC_INLINE int64_t words(const Plan& p, int64_t K) {
    return p.form == Form::floats ? K : p.form == Form::vnni2 ? K / 2 : vnni4_words(K);
}

constexpr int64_t SUMS = ROW_BLOCK * PANEL;  // sums_for of any segment
constexpr int64_t UNPACKED = KC * PANEL;     // rows_gemm's scratch

// Lays out everything the plan points to, large enough for any ids; returns the bytes.
size_t lay_out(Plan& p, char* base) {
    const MoeMlpArgs& a = *p.a;
    const int64_t shared = p.positions - p.slots, hit = min(a.E, p.slots);
    const int64_t segments = hit + p.slots / ROW_BLOCK + ceil_div(shared, ROW_BLOCK);
    const int64_t tiles = p.positions / ROWS + 2 * segments, columns = ceil_div(a.H, PANEL);
    const int64_t routed = segments - ceil_div(shared, ROW_BLOCK);
    p.max_items = 2 * (ceil_div(tiles, PACK_TILES) + segments) +
                  routed * (ceil_div(a.I, 16) + columns) +
                  ceil_div(shared, ROW_BLOCK) * (ceil_div(a.shared_I, 16) + columns);
    Arena arena{base};
    p.rows = arena.take<float>(p.positions * a.H);
    const int64_t all = p.slots * a.I + shared * a.shared_I, widest = max(a.I, a.shared_I);
    p.hidden = arena.take<float>(p.slots * words(p, a.I) + shared * words(p, a.shared_I));
    p.gated = arena.take<float>(p.form == Form::floats ? 0 : all);
    p.one = arena.take<float>(p.T == 1 ? a.H : 0);
    const int64_t scaled = p.form == Form::vnni4 ? p.positions + 1 : 0;
    p.x_scale = arena.take<float>(scaled);
    p.h_scale = arena.take<float>(scaled);
    p.x_sum = arena.take<int32_t>(scaled);
    p.h_sum = arena.take<int32_t>(scaled);
    const int64_t tile =
        p.form == Form::floats ? 0 : ceil_div(ROWS * words(p, max(a.H, widest)), 16) * 16;
    p.memory_each = UNPACKED + SUMS + tile;
    p.memory = arena.take<float>(p.threads * p.memory_each);
    p.segments = arena.take<Segment>(segments);
    p.items = arena.take<Item>(p.max_items);
    p.to_combine = arena.take<Counter>(columns);
    p.token = arena.take<int32_t>(p.positions);
    p.place = arena.take<int32_t>(p.slots);
    p.start = arena.take<int32_t>(a.E + 1);
    return arena.used;
}

MC_INLINE int32_t id_of(const MoeMlpArgs& a, int64_t t, int64_t k) {
    return a.ids[t * a.ids_row + k * a.ids_column];
}

int64_t first_bad_slot(const MoeMlpArgs& a) {
    for (int64_t t = 0; t < a.T; ++t)
        for (int64_t k = 0; k < a.K; ++k)
            if (id_of(a, t, k) < 0 || id_of(a, t, k) >= a.E) return t * a.K + k;
    return -1;
}

// Counting sort of the slots by expert, stable; then, for the shared expert, every token once.
void sort_slots(Plan& p) {
    const MoeMlpArgs& a = *p.a;
    for (int64_t e = 0; e <= a.E; ++e) p.start[e] = 0;
    for (int64_t t = 0; t < p.T; ++t)
        for (int64_t k = 0; k < a.K; ++k) ++p.start[id_of(a, p.t0 + t, k) + 1];
    for (int64_t e = 0; e < a.E; ++e) p.start[e + 1] += p.start[e];
    for (int64_t t = 0; t < p.T; ++t)
        for (int64_t k = 0; k < a.K; ++k) {
            const int32_t at = p.start[id_of(a, p.t0 + t, k)]++;  // then it is the next one's start
            p.token[at] = (int32_t)t;
            p.place[t * a.K + k] = at;
        }
    for (int64_t e = a.E; e > 0; --e) p.start[e] = p.start[e - 1];
    p.start[0] = 0;
    for (int64_t i = p.slots; i < p.positions; ++i) p.token[i] = (int32_t)(i - p.slots);
}

// The segments of expert e, or of the shared one, at positions [begin, end).
void add_segments(Plan& p, const ExpertMatrix& gate_up, const ExpertMatrix& down, int64_t e,
                  int64_t width, int64_t begin, int64_t end, float* hidden, float* gated) {
    const MoeMlpArgs& a = *p.a;
    const int64_t x_K = words(p, a.H), h_K = words(p, width);
    const int64_t blocks = ceil_div(end - begin, ROW_BLOCK), rows = end - begin;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t from = rows * b / blocks;
        Segment& s = p.segments[p.segment_count++];
        s.gate_up = (const char*)gate_up.data + e * gate_up.expert * p.element;
        s.down = (const char*)down.data + e * down.expert * p.element;
        s.gate_up_scale = gate_up.scale ? gate_up.scale + e * gate_up.scale_expert : nullptr;
        s.down_scale = down.scale ? down.scale + e * down.scale_expert : nullptr;
        s.width = width, s.gate_up_row = gate_up.row, s.down_row = down.row;
        s.first = begin + from;
        s.result = p.rows + s.first * a.H;
        s.gated = gated + from * width;
        s.rows = (int)(rows * (b + 1) / blocks - from);
        s.tiles = tiles_for(s.rows);
        const bool only = p.T == 1 && s.rows == 1;  // the one token: packed before all else
        const int64_t at = only ? p.positions : s.first;
        s.x = {only ? p.one : s.result, x_K, s.rows, s.tiles, p.x_scale + at, p.x_sum + at};
        s.h = {hidden + from * h_K, h_K, s.rows, s.tiles, p.h_scale + s.first, p.h_sum + s.first};
        s.to_pack.next = only ? 0 : s.tiles;
        s.to_gate.next = ceil_div(width, 16);
        s.to_repack.next = p.form == Form::floats ? 0 : s.tiles;
    }
}

MC_INLINE int64_t panels_of(const Plan& p, const Segment& s, Kind kind) {
    return kind == Kind::gate_up ? ceil_div(s.width, 16) : ceil_div(p.a->H, PANEL);
}

void add_packing(Plan& p, int64_t s0, int64_t s1, Kind kind) {
    for (int64_t s = s0; s < s1; ++s) {
        const Segment& of = p.segments[s];
        const int64_t tiles = kind == Kind::pack ? of.to_pack.next : of.to_repack.next;
        for (int64_t t = 0; t < tiles; t += PACK_TILES) {
            const int32_t count = (int32_t)min(tiles - t, PACK_TILES);
            p.items[p.item_count++] = {(int32_t)s, kind, (int32_t)t, count};
        }
    }
}

// One product of the segments s0..s1 of one expert, interleaved panel group by panel group. `left`:
// panels from here to the end of this kind; the last items are small (guided scheduling), so that
// all threads finish together.
void add_product(Plan& p, int64_t s0, int64_t s1, Kind kind, int64_t& left) {
    const int64_t panels = panels_of(p, p.segments[s0], kind);
    const int group = p.a->layout == Layout::rows ? 1 : panels_for(p.segments[s0].rows);
    for (int64_t first = 0; first < panels;) {
        int64_t count = group;
        while (count > 1 && (count * p.threads * 4 > left || count > panels - first)) count /= 2;
        for (int64_t s = s0; s < s1; ++s)
            p.items[p.item_count++] = {(int32_t)s, kind, (int32_t)first, (int32_t)count};
        first += count;
        left -= count * (s1 - s0);
    }
}

int64_t same_expert(const Plan& p, int64_t s) {  // the end of the segments that share s's expert
    const Segment& first = p.segments[s];
    while (s < p.segment_count && p.segments[s].gate_up == first.gate_up &&
           p.segments[s].down == first.down && p.segments[s].width == first.width)
        ++s;
    return s;
}

void make_plan(Plan& p) {
    const MoeMlpArgs& a = *p.a;
    sort_slots(p);
    p.segment_count = p.item_count = 0;
    p.work.next = 0;
    if (p.positions > p.slots)
        add_segments(p, a.shared_gate_up, a.shared_down, 0, a.shared_I, p.slots, p.positions,
                     p.hidden + p.slots * words(p, a.I), p.gated + p.slots * a.I);
    for (int64_t e = 0; e < a.E; ++e)
        if (p.start[e] < p.start[e + 1])
            add_segments(p, a.gate_up, a.down, e, a.I, p.start[e], p.start[e + 1],
                         p.hidden + p.start[e] * words(p, a.I), p.gated + p.start[e] * a.I);

    int64_t gates = 0;
    const int64_t columns = ceil_div(a.H, PANEL);
    for (int64_t s = 0; s < p.segment_count; ++s)
        gates += panels_of(p, p.segments[s], Kind::gate_up);
    int64_t downs = columns * p.segment_count;
    for (int64_t i = 0; i < columns; ++i) p.to_combine[i].next = p.segment_count;

    if (p.segment_count) add_packing(p, 0, same_expert(p, 0), Kind::pack);
    for (int64_t before = 0, s = 0, end; s < p.segment_count; before = s, s = end) {
        end = same_expert(p, s);
        if (end < p.segment_count) add_packing(p, end, same_expert(p, end), Kind::pack);
        add_product(p, s, end, Kind::gate_up, gates);
        add_packing(p, before, s, Kind::repack);
        if (end == p.segment_count) add_packing(p, s, end, Kind::repack);
    }
    for (int64_t s = 0, end; s < p.segment_count; s = end) {
        end = same_expert(p, s);
        add_product(p, s, end, Kind::down, downs);
    }
}

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
