// The schedule of one flow_sample call: phases, their tasks, and the memory they work on.
//
// Tokens. A request has one group of T = 1 + N + P tokens, or two with the unconditional branch
// (none where its guidance is 0); all groups together are `rows` rows, token t of group g is row
// g T + t. Three sets of rows are operands of products:
//   every    all of them
//   last     the P velocities of each group: what the last block computes, besides keys and values
//   unique   the distinct rows of the first block: a first token per group, and per request its x
//            and its history, which both branches share; the history only once per call
//
// Order. One evaluation of the velocity is a list of phases (embed; per block qkv, attend, out, up,
// down; final; step), a phase a list of tasks. Tasks are numbered over the whole call and claimed
// in that order (a ticket each); before a task of a phase runs, all tasks of earlier phases must be
// done, which is one comparison with one counter. So there is no barrier that threads join: any
// number of threads will do, and a thread knows its next task, and prefetches its weights, while it
// still works on the one before.
#pragma once
#include "cpu/flow/flow_sample.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/gemm.h"
#include "cpu/lib/quantise.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr float EPS = 1e-6f;
constexpr int64_t CHUNK = 1024;  // columns that one task quantises
constexpr int PART_TILES = 16;   // row tiles of one task: their sums for one panel stay in L1/L2

// The left operand of a product, packed in row tiles (see PackedRows) by the epilogue of the phase
// before, 32 columns at a time. RMSNorm is fused: a normed operand holds x * norm weight, and 1 /
// rms(x), by squares summed per 32 columns, is applied to the product's rows. Where activations are
// quantised, a phase of its own turns the operand into VNNI-4 words (see gemm.h) before the
// product.
struct Operand {
    float* data;
    int64_t K;
    float *squares, *largest;  // [pieces][rows16]: sums of x^2; max |data|, of 32 columns (a head)
    int64_t rows16, pieces;    // rows16: a multiple of 16
    bool normed;
    float *vnni4_data, *scale;  // vnni4_data null: not quantised; scale [rows16]
    int32_t* sums;              // of the integers: [ceil(K / CHUNK)][rows16]

    PackedRows packed(int rows) const { return {data, K, rows, tiles_for(rows), nullptr, nullptr}; }
    PackedRows operand(int rows) const {
        if (!vnni4_data) return packed(rows);
        return {vnni4_data, vnni4_words(K), rows, tiles_for(rows), nullptr, nullptr};
    }
    int64_t chunks() const { return ceil_div(K, CHUNK); }
};

enum class Set : int32_t { every, last, unique };
enum class Step : int32_t {
    embed,
    quantise_qkv,
    qkv,
    attend,
    quantise_out,
    out,
    quantise_up,
    up,
    quantise_down,
    down,
    final,
    step
};

struct Plan {
    const FlowSampleArgs* a;
    int64_t T, D, rows;  // tokens of a group, width of a head, rows in all
    int G;               // groups
    int32_t *group_request, *first_group, *groups_of;  // [G]; [B], [B]
    bool* unconditional;                               // [G]
    int32_t *copy, *second_copy;  // of a unique row: its rows among all; -1: there is one only
    float* x;                     // the residual stream [ceil(H/32)][rows][32]
    float *qkv, *first_qkv;       // [rows][qkv_row]; of the first block, whose history stays
    int64_t qkv_row;
    float *velocity, *state, *base;  // [last rows][state_row], [B P][state_row] twice
    int64_t state_row;
    float *first, *history;  // embedded: [ceil(H/32)][B][32], [ceil(H/32)][B N][32]
    float *cos, *sin;        // [T][D]: repeated for both neighbours; sin with the sign of the first
    Operand condition, past, current;  // of cond, and of x twice
    Operand unique, every, last;       // of qkv, up and final
    Operand attended, hidden;          // of out and down
    float* scratch;
    int64_t scratch_each;
    int threads;
    int64_t total;
    Counter next, done;

    int count(Set set, int e) const {
        if (set == Set::every) return (int)rows;
        if (set == Set::last) return (int)(G * a->P);
        return (int)(G + a->B * a->P + (e ? 0 : a->B * a->N));
    }
    bool is_last(int block) const { return block + 1 == a->L; }
    // The row, among all, of member i of `last`.
    int64_t last_row(int64_t i) const { return i / a->P * T + T - a->P + i % a->P; }
    // How many members of `last` precede row r.
    int64_t last_before(int64_t r) const {
        const int64_t t = r % T - (T - a->P);
        return r / T * a->P + (t > 0 ? t : 0);
    }
};

MC_INLINE const char* panel_of(const FlowMatrix& w, int layer, int64_t i) {
    const int64_t k = w.dtype == Dtype::u8 ? 4 * vnni4_words(w.k) : w.k;
    const int64_t column = k * element_bytes(w.dtype);
    return (const char*)w.data + (layer * ceil_div(w.n, PANEL) + i) * column * PANEL;
}

// The tile of `rows` that row i is in.
MC_INLINE int tile_at(const PackedRows& rows, int64_t i) {
    int t = (int)(i * rows.tiles / rows.rows);
    while (rows.begin(t + 1) <= i) ++t;
    return t;
}

template <class T>
MC_INLINE void read_values(const T* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += W) store(to + i, loadn(from + i, (int)min(n - i, W)));
}
// n values of a vector, from `at` on, zero padded to whole SIMD vectors.
MC_INLINE void read_vector(const FlowVector& v, int layer, int64_t at, int64_t n, float* to) {
    at += layer * v.n;
    if (v.dtype == Dtype::f32) read_values((const float*)v.data + at, n, to);
    else if (v.dtype == Dtype::bf16) read_values((const bf16*)v.data + at, n, to);
    else read_values((const f16*)v.data + at, n, to);
}

// One product of a phase, and how it is cut into tasks: `group` panels times a part of the tiles.
struct Product {
    const Operand* x;
    Set set;
    const FlowMatrix* w;
    int layer;
    PackedRows rows;
    int64_t first, panels;  // of the matrix
    int group, parts;
    int64_t tasks;

    const char* panel(int64_t i) const { return panel_of(*w, layer, i); }
};

static Product product_of(const Plan& p, const Operand& x, Set set, int e, int matrix, int layer,
                          int64_t first, int64_t panels) {
    const FlowMatrix& w = p.a->matrix[matrix];
    Product m{&x,
              set,
              &w,
              layer,
              w.dtype == Dtype::u8 ? x.operand(p.count(set, e)) : x.packed(p.count(set, e)),
              first,
              panels,
              1,
              1,
              0};
    m.group = panels_for(m.rows.rows);
    while (m.group > 1 && panels < (int64_t)m.group * p.threads * 4) m.group /= 2;
    m.parts = (int)ceil_div(m.rows.tiles, PART_TILES);
    while (m.parts * 2 <= m.rows.tiles && ceil_div(panels, m.group) * m.parts < p.threads * 4)
        m.parts *= 2;
    m.tasks = ceil_div(panels, m.group) * m.parts;
    return m;
}

// A phase: which evaluation, block and step it is, and its tasks. A thread walks through them with
// `forward`.
struct Phase {
    int e, block;
    Step step;
    int64_t start, tasks;  // number of its first task, how many
    int count;             // of its products, or of operands to quantise
    Product product[2];

    void set(int i, const Plan& p, const Operand& x, Set rows, int matrix, int64_t first,
             int64_t panels) {
        product[i] = product_of(p, x, rows, e, matrix, matrix < 6 ? block : 0, first, panels);
        count = i + 1;
        tasks += product[i].tasks;
    }

    // Quantisation of the operands of step `of`: a task is a tile of CHUNK columns.
    void quantise(const Plan& p, Step of) {
        if (!p.a->quantised) return;
        const Step here = step;
        step = of;
        set_tasks(p);
        step = here;
        tasks = 0;
        for (int i = 0; i < count; ++i)
            tasks += product[i].tasks = product[i].rows.tiles * product[i].x->chunks();
    }

    void set_tasks(const Plan& p) {
        const FlowSampleArgs& a = *p.a;
        const bool last = p.is_last(block);
        const Set rows = last ? Set::last : Set::every;
        const int64_t H = ceil_div(a.H, PANEL), qkv = ceil_div(3 * a.H, PANEL), q = a.H / PANEL;
        count = 0, tasks = 0;
        switch (step) {
            case Step::embed: tasks = H; break;
            case Step::qkv:
                if (block == 0) set(0, p, p.unique, Set::unique, 2, 0, qkv);
                else set(0, p, p.every, Set::every, 2, last ? q : 0, qkv - (last ? q : 0));
                if (block > 0 && last) set(1, p, p.last, Set::last, 2, 0, q);
                break;
            case Step::quantise_qkv:
            case Step::quantise_out:
            case Step::quantise_up:
            case Step::quantise_down: quantise(p, (Step)((int)step + 1)); break;
            case Step::attend: tasks = (int64_t)p.G * a.heads; break;
            case Step::out: set(0, p, p.attended, rows, 3, 0, H); break;
            case Step::up:
                set(0, p, last ? p.last : p.every, rows, 4, 0, ceil_div(a.W, PANEL));
                break;
            case Step::down: set(0, p, p.hidden, rows, 5, 0, H); break;
            case Step::final: set(0, p, p.last, Set::last, 6, 0, ceil_div(a.C, PANEL)); break;
            case Step::step: tasks = a.B;
        }
    }

    void begin(const Plan& p) {
        e = block = 0, step = Step::embed, start = 0;
        set_tasks(p);
    }

    void forward(const Plan& p) {
        start += tasks;
        if (step == Step::step) ++e, block = 0, step = Step::embed;
        else if (step == Step::down && !p.is_last(block)) ++block, step = Step::quantise_qkv;
        else step = (Step)((int)step + 1);
        set_tasks(p);
    }

    // Advances to the phase of task number `ticket`.
    void seek(const Plan& p, int64_t ticket) {
        while (ticket >= start + tasks) forward(p);
    }

    bool quantises() const {
        return step == Step::quantise_qkv || step == Step::quantise_out ||
               step == Step::quantise_up || step == Step::quantise_down;
    }

    // The product that task number `task` of this phase is in; `task` becomes its number there.
    const Product& product_at(int64_t& task) const {
        if (task < product[0].tasks) return product[0];
        task -= product[0].tasks;
        return product[1];
    }

    // The weights that task number `ticket` reads first, to be prefetched; null where it reads
    // none.
    const char* weights(int64_t ticket) const {
        if (count == 0 || quantises()) return nullptr;
        int64_t task = ticket - start;
        const Product& m = product_at(task);
        return m.panel(m.first + task / m.parts * m.group);
    }
};

}  // namespace
}  // namespace MC_ISA
}  // namespace mingcore
