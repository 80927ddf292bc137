// causal_conv1d and causal_conv_transpose1d: out = after(conv(before(x)) + bias) + residual, with a
// stream's context, in float32 inside.
//
// Cost: 2 B T N K / groups flops (K = C taps); x, context, w, residual and out move once.
// Algorithms:
//  - direct: times are in the lanes, weights are broadcast. The inputs of a stretch of time are
//    staged once, as float32, behind their context, activated, and split by phase of the stride, so
//    that every tap is a contiguous load without im2col; bias, activation and residual are a fused
//    epilogue.
//  - panels, a GEMM (gemm.h): output channels are in the lanes; for few times, where weights are
//    what is read.
//  - rows: as direct, for groups of few outputs (depthwise; one output channel): a task stages its
//    own few channels, so that nothing leaves L1 between reading x and writing out.
// A transposed convolution is one of stride 1 with `up` times the channels, interleaved when
// stored. Sums run over KC-long blocks from zero, then block by block, in every algorithm alike: a
// stream's bits do not depend on how it was cut into chunks.
#include "cpu/conv/causal_conv_rows.h"
#include "cpu/conv/causal_conv_tiles.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t MIN_TIMES = 2 * W;        // times from which they are put into the lanes
constexpr int TC = 96;                      // times of a direct task: its sums stay in L1
constexpr int64_t STAGED_L2 = 1 << 17;      // floats staged at once: stays in L2
constexpr int64_t SMALL_WEIGHTS = 1 << 17;  // weights of a group that stay in L2
constexpr int64_t ROW_BLOCK = 256;          // rows of a panels task
constexpr int64_t STAGED_L1 = 1 << 13;      // floats that a rows task stages
constexpr int64_t SERIAL = 1 << 17;         // products under which waking threads costs more
constexpr int64_t SERIAL_COPY = 1 << 15;    // floats copied, likewise
constexpr int64_t MAX_IN_PLACE = 4096;      // times beyond which each row is in pages of its own
constexpr int64_t CARRY_CHANNELS = 16;      // channels whose context a task carries on

struct Plan {
    const CausalConvArgs& a;
    Row* rows;
    int64_t span, inputs, outputs, K;  // per group: input channels, matrix rows, summed dimension
    int64_t b, t0, t1;                 // the stretch of time that is staged now
    float* staged;
    int64_t channel_ld, phase_ld;
    int64_t* where;  // of k: the offset of its input from a time's first one
    float* scratch;
    int64_t scratch_each;
    int64_t tasks, bundle, panels, pieces, row0, row1;
    PackedRows packed;
    float* packed_at;
    int group;
    bool small;  // all weights stay in L2: then the loop over panels is the inner one
    Counter to_stage, work;
};

// Writes the context of the next call: the newest `span` inputs of a row's channel. May be in
// place, where the older ones move to the front.
template <class T>
void carry(const Plan& p, int64_t b, int64_t c) {
    const CausalConvArgs& a = p.a;
    const int64_t span = p.span;
    const Row& row = p.rows[b];
    T* to = (T*)a.context_out + (b * a.C + c) * span;
    const T* from = (const T*)a.context + (b * a.C + c) * span;
    const T* x = (const T*)a.x.data + b * a.x.batch + c * a.x.channel;
    const int64_t carried = row.fresh < span ? span - row.fresh : 0;
    if (row.done) {
        memset(to, 0, (size_t)span * sizeof(T));
        return;
    }
    if (row.seen > 0) memmove(to, from + row.fresh, (size_t)carried * sizeof(T));
    else
        for (int64_t i = 0; i < carried; ++i) {
            if (a.replicate && row.fresh > 0) to[i] = x[0];
            else memset(to + i, 0, sizeof(T));
        }
    memcpy(to + carried, x + (row.fresh - (span - carried)), (size_t)(span - carried) * sizeof(T));
}
MC_INLINE void carry_one(const Plan& p, int64_t b, int64_t c) {
    if (p.span == 0) return;
    p.a.x.dtype == Dtype::f32 ? carry<float>(p, b, c) : carry<bf16>(p, b, c);
}
void carry_tasks(void* context, int) {
    Plan& p = *(Plan*)context;
    for (int64_t task; (task = claim(p.to_stage)) < ceil_div(p.a.B * p.a.C, CARRY_CHANNELS);)
        for (int64_t i = task * CARRY_CHANNELS; i < min((task + 1) * CARRY_CHANNELS, p.a.B * p.a.C);
             ++i)
            carry_one(p, i / p.a.C, i % p.a.C);
}

void stage_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    float* line = p.scratch + id * p.scratch_each;
    for (int64_t c; (c = claim(p.to_stage)) < p.a.C;)
        stage(p.a, p.rows[p.b], p.span, p.b, c, p.t0, p.t1, p.phase_ld, line,
              p.staged + c * p.channel_ld);
}

// Direct: a task is a panel at TC times.
template <class T>
void direct_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    const CausalConvArgs& a = p.a;
    float *wide = p.scratch + id * p.scratch_each, *sums = wide + KC * PANEL;
    for (int64_t task; (task = claim(p.work)) < p.tasks;) {
        const int64_t each = p.panels * p.pieces, g = task / each, i = task % each;
        const int64_t panel = p.small ? i % p.panels : i / p.pieces;
        const int64_t piece = p.small ? i / p.panels : i % p.pieces;
        const int64_t t = p.t0 + piece * TC, times = min(p.t1 - t, TC);
        const int rows = (int)min(PANEL, p.outputs - panel * PANEL);
        const T* w = (const T*)a.w + (g * p.panels + panel) * p.K * PANEL;
        const float* x = p.staged + g * p.inputs * p.channel_ld + (t - p.t0);
        for (int64_t k = 0; k < p.K; k += KC) {
            const int64_t kc = min(KC, p.K - k);
            const float* block = wide;
            if constexpr (sizeof(T) == 4) block = (const float*)w + k * PANEL;
            else
                for (int64_t i = 0; i < kc; ++i)
                    for (int s = 0; s < SLICES; ++s) {
                        F low, high;
                        load_slice(slice(w + (k + i) * PANEL, s), low, high);
                        store(wide + i * PANEL + s * W, low);
                        store(wide + i * PANEL + s * W + 16, high);
                    }
            times_block(block, 1, PANEL, rows, x, p.where + k, kc, times, sums, TC, k == 0,
                        w + (k + kc) * PANEL, kc * PANEL * sizeof(T));
        }
        for (int r = 0; r < rows; ++r)
            store_outputs(a, p.rows[p.b].count, p.b, g, panel * PANEL + r, t, times, sums + r * TC);
    }
}

// Rows: a task is a group at one of `pieces` pieces of its times; it stages the group's channels
// itself.
template <class T>
void rows_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    const CausalConvArgs& a = p.a;
    float* wide = p.scratch + id * p.scratch_each;
    float* sums = wide + p.outputs * p.K;
    float* line = sums + p.outputs * p.t1;
    float* staged = line + (p.t1 - 1) * a.stride + p.span + 1 + OVERREAD;
    int64_t task = 0, until = 0;
    for (;; ++task) {
        if (task == until) {  // channels of little work are claimed several at a time
            task = claim(p.work) * p.bundle;
            until = min(task + p.bundle, p.tasks);
            if (task >= p.tasks) return;
        }
        const int64_t piece = task % p.pieces, g = task / p.pieces % a.groups;
        const int64_t b = task / p.pieces / a.groups;
        const int64_t t = piece * p.t1, times = min(p.rows[b].times - t, p.t1);
        const bool whole = p.pieces == 1;  // then no other task reads these channels' context
        if (times <= 0) {
            for (int64_t c = 0; c < p.inputs && whole; ++c) carry_one(p, b, g * p.inputs + c);
            continue;
        }
        for (int64_t c = 0; c < p.inputs; ++c)
            stage(a, p.rows[b], p.span, b, g * p.inputs + c, t, t + times, p.phase_ld, line,
                  staged + c * p.channel_ld);
        for (int64_t c = 0; c < p.inputs && whole; ++c) carry_one(p, b, g * p.inputs + c);
        const T* w = (const T*)a.w + g * p.outputs * p.K;
        const float* block = wide;
        if constexpr (sizeof(T) == 4) block = (const float*)w;
        else convert_row(w, p.outputs * p.K, wide);
        for (int64_t k = 0; k < p.K; k += KC)
            times_block(block + k, p.K, 1, (int)p.outputs, staged, p.where + k, min(KC, p.K - k),
                        times, sums, p.t1, k == 0, block, 0);
        for (int64_t m = 0; m < p.outputs; ++m)
            store_outputs(a, p.rows[b].count, b, g, m, t, times, sums + m * p.t1);
    }
}

// Panels: a row of the GEMM is (row of the batch, time). Packs [K, rows] per tile, as im2col would.
void pack_tasks(void* context, int) {
    Plan& p = *(Plan*)context;
    const CausalConvArgs& a = p.a;
    for (int64_t task; (task = claim(p.to_stage)) < a.groups * p.packed.tiles;) {
        const int64_t g = task / p.packed.tiles;
        const int tile = (int)(task % p.packed.tiles);
        const int r0 = p.packed.begin(tile), n = p.packed.begin(tile + 1) - r0;
        float* to = p.packed_at + g * p.K * p.packed.rows + p.K * r0;
        int64_t b = 0, first = 0;
        while (first + p.rows[b].times <= p.row0 + r0) first += p.rows[b++].times;
        for (int r = 0; r < n;) {  // runs of one row of the batch
            const int64_t t = p.row0 + r0 + r - first;
            const int run = (int)min(n - r, p.rows[b].times - t);
            const float* from = p.staged + b * a.C * p.channel_ld;
            for (int64_t c = 0; c < p.inputs; ++c)
                for (int64_t i = 0; i < a.taps; ++i) {
                    const float* x =
                        from + (g * p.inputs + c) * p.channel_ld + t * a.stride + i * a.dilation;
                    float* o = to + (c * a.taps + i) * n + r;
                    for (int j = 0; j < run; ++j) o[j] = x[j * a.stride];
                }
            r += run;
            first += p.rows[b++].times;
        }
    }
}

void stage_rows_tasks(void* context, int) {
    Plan& p = *(Plan*)context;
    const CausalConvArgs& a = p.a;
    for (int64_t task; (task = claim(p.work)) < a.B * a.C;) {
        const int64_t b = task / a.C, c = task % a.C, n = p.rows[b].times;
        if (n == 0) continue;
        gather(a, p.rows[b], p.span, b, c, p.rows[b].begin, (n - 1) * a.stride + p.span + 1,
               p.staged + task * p.channel_ld);
    }
}

// Channel-last and nothing but a bias to add: the sums of a time are contiguous in the output.
MC_INLINE bool plain_last(const CausalConvArgs& a) {
    return a.out.channel == 1 && a.up == 1 && a.after.act == ConvAct::none && !a.residual.data &&
           a.groups == 1 && a.out.dtype == Dtype::f32 && (!a.bias || a.bias_dtype == Dtype::f32);
}

void store_panel(const Plan& p, int64_t g, int64_t m0, int columns, const float* sums,
                 float* transposed) {
    const CausalConvArgs& a = p.a;
    const int64_t rows = p.row1 - p.row0;
    int64_t b = 0, first = 0;
    while (first + p.rows[b].times <= p.row0) first += p.rows[b++].times;
    if (!plain_last(a))
        for (int64_t r = 0; r < rows; ++r)
            for (int j = 0; j < columns; ++j) transposed[j * (rows + W) + r] = sums[r * PANEL + j];
    for (int64_t r = 0; r < rows;) {
        const int64_t t = p.row0 + r - first, run = min(rows - r, p.rows[b].times - t);
        if (plain_last(a)) {
            for (int64_t i = 0; i < run; ++i) {
                float* out = (float*)a.out.data + b * a.out.batch + (t + i) * a.out.time + m0;
                for (int j = 0; j < columns; j += W) {
                    const int m = (int)min(W, columns - j);
                    F v = load(sums + (r + i) * PANEL + j);
                    if (a.bias) v = add(v, loadn((const float*)a.bias + m0 + j, m));
                    storen(out + j, v, m);
                }
            }
        } else {
            for (int j = 0; j < columns; ++j)
                store_outputs(a, p.rows[b].count, b, g, m0 + j, t, run,
                              transposed + j * (rows + W) + r);
        }
        r += run;
        first += p.rows[b++].times;
    }
}

template <class T>
void panel_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    const CausalConvArgs& a = p.a;
    const int64_t rows = p.row1 - p.row0, groups = ceil_div(p.panels, p.group);
    float *sums = p.scratch + id * p.scratch_each, *transposed = sums + p.group * rows * PANEL;
    int64_t following = claim(p.work);
    for (int64_t task; (task = following) < p.tasks;) {
        following = claim(p.work);
        const int64_t g = task / groups, first = task % groups * p.group;
        const int count = (int)min(p.panels - first, p.group);
        const T* base = (const T*)a.w;
        const T* at[MAX_UNITS];
        for (int i = 0; i < count; ++i) at[i] = base + (g * p.panels + first + i) * p.K * PANEL;
        const T* after = nullptr;
        if (following < p.tasks)
            after =
                base + (following / groups * p.panels + following % groups * p.group) * p.K * PANEL;
        PackedRows x = p.packed;
        x.x = p.packed_at + g * p.K * rows;
        panel_gemm(x, 0, x.tiles, at, count, after, sums);
        for (int i = 0; i < count; ++i) {
            const int64_t m0 = (first + i) * PANEL;
            store_panel(p, g, m0, (int)min(PANEL, p.outputs - m0), sums + i * rows * PANEL,
                        transposed);
        }
    }
}

#define MC_BY_WEIGHT(task, dtype) \
    (dtype == Dtype::f32 ? task<float> : dtype == Dtype::bf16 ? task<bf16> : task<f16>)

MC_INLINE int64_t lines(int64_t floats) { return ceil_div(floats, 16) * 16; }

// Counts the rows in fresh scratch; `more` floats follow.
Arena begin(Plan& p, int64_t more) {
    const CausalConvArgs& a = p.a;
    const int64_t rows = ceil_div(a.B * (int64_t)sizeof(Row), 4);
    Arena arena{(char*)workspace((size_t)(lines(rows) + more) * 4)};
    p.rows = (Row*)arena.take<float>(rows);
    count_rows(a, p.span, p.rows);
    return arena;
}
// The same, and where the inputs of every k lie.
Arena begin_listed(Plan& p, int64_t more) {
    const CausalConvArgs& a = p.a;
    Arena arena = begin(p, lines(2 * p.K) + more);
    p.where = arena.take<int64_t>(p.K);
    for (int64_t i = 0; i < a.taps; ++i) {
        const int64_t x = i * a.dilation;
        const int64_t at = a.stride == 1 ? x : x % a.stride * p.phase_ld + x / a.stride;
        for (int64_t c = 0; c < p.inputs; ++c) p.where[c * a.taps + i] = at + c * p.channel_ld;
    }
    return arena;
}

// Leading dimensions of the staged inputs of `times` times: `channel_ld` and `phase_ld`.
void set_leading_dimensions(Plan& p, int64_t times) {
    const CausalConvArgs& a = p.a;
    p.phase_ld = a.stride == 1 ? 0 : lines(times + p.span / a.stride + 1 + OVERREAD);
    p.channel_ld = a.stride == 1 ? lines(times + p.span + OVERREAD) : a.stride * p.phase_ld;
    if (p.channel_ld / 16 % 2 == 0)
        p.channel_ld += 16;  // odd, in lines: else channels share few L1 sets
}
MC_INLINE int64_t line_of(const Plan& p, int64_t times) {  // the inputs of `times` times
    return lines((times - 1) * p.a.stride + p.span + 1 + W);
}

void run_direct(Plan& p, int threads, int64_t longest) {
    const CausalConvArgs& a = p.a;
    const int64_t fit = STAGED_L2 / (a.C * a.stride) / TC * TC;
    const int64_t stretch = min(max(fit, TC), ceil_div(longest, W) * W);
    set_leading_dimensions(p, stretch);
    p.scratch_each = lines(max(KC * PANEL + TC * PANEL, line_of(p, stretch)));
    const int64_t staged = a.C * p.channel_ld;
    Arena arena = begin_listed(p, lines(staged) + threads * p.scratch_each);
    p.staged = arena.take<float>(staged);
    p.scratch = arena.take<float>(threads * p.scratch_each);
    for (p.b = 0; p.b < a.B; ++p.b)
        for (p.t0 = 0; p.t0 < p.rows[p.b].times; p.t0 += stretch) {
            p.t1 = min(p.t0 + stretch, p.rows[p.b].times);
            p.pieces = ceil_div(p.t1 - p.t0, TC);
            p.tasks = a.groups * p.panels * p.pieces;
            p.to_stage = p.work = {};
            parallel(threads, stage_tasks, &p);
            parallel(threads, MC_BY_WEIGHT(direct_tasks, a.w_dtype), &p);
        }
}

// Kernel size 1 on inputs that need no staging: they are read in place. Whole vectors only, so that
// no load leaves the tensor.
bool reads_in_place(const Plan& p, int64_t longest) {
    const CausalConvArgs& a = p.a;
    return p.span == 0 && a.stride == 1 && a.before.act == ConvAct::none && !a.rows.valid &&
           a.x.dtype == Dtype::f32 && a.L == longest && a.L % W == 0 && a.left_pad == 0 &&
           a.L <= MAX_IN_PLACE;
}

void run_in_place(Plan& p, int threads) {
    const CausalConvArgs& a = p.a;
    p.channel_ld = a.x.channel;
    p.scratch_each = lines(KC * PANEL + TC * PANEL);
    Arena arena = begin_listed(p, threads * p.scratch_each);
    p.scratch = arena.take<float>(threads * p.scratch_each);
    p.t1 = a.L;
    p.pieces = ceil_div(a.L, TC);
    p.tasks = a.groups * p.panels * p.pieces;
    for (p.b = 0; p.b < a.B; ++p.b) {
        p.staged = (float*)a.x.data + p.b * a.x.batch;
        p.work = {};
        parallel(threads, MC_BY_WEIGHT(direct_tasks, a.w_dtype), &p);
    }
}

void run_rows(Plan& p, int threads, int64_t longest) {
    const CausalConvArgs& a = p.a;
    const int64_t fit = STAGED_L1 / (p.inputs * a.stride) / OVERREAD * OVERREAD;
    p.t1 = min(max(fit, OVERREAD), ceil_div(longest, W) * W);
    set_leading_dimensions(p, p.t1);
    p.scratch_each = lines(p.outputs * (p.K + p.t1)) + line_of(p, p.t1) + OVERREAD +
                     lines(p.inputs * p.channel_ld);
    Arena arena = begin_listed(p, threads * p.scratch_each);
    p.scratch = arena.take<float>(threads * p.scratch_each);
    p.pieces = ceil_div(longest, p.t1);
    p.tasks = a.B * a.groups * p.pieces;
    p.bundle = max(p.tasks / (threads * 8), 1);
    parallel(threads, MC_BY_WEIGHT(rows_tasks, a.w_dtype), &p);
}

void run_panels(Plan& p, int threads, int64_t longest) {
    const CausalConvArgs& a = p.a;
    p.channel_ld = line_of(p, longest);
    const int64_t block = min(a.B * longest, ROW_BLOCK);
    p.group = panels_for((int)block);
    while (p.group > 1 && p.panels * a.groups < (int64_t)p.group * threads * 4) p.group /= 2;
    p.scratch_each = lines((p.group * block + block + W) * PANEL);
    const int64_t staged = a.B * a.C * p.channel_ld, packed = a.groups * p.K * block;
    Arena arena = begin(p, lines(staged) + lines(packed) + threads * p.scratch_each);
    p.staged = arena.take<float>(staged);
    p.packed_at = arena.take<float>(packed);
    p.scratch = arena.take<float>(threads * p.scratch_each);
    int64_t total = 0;
    for (int64_t b = 0; b < a.B; ++b) total += p.rows[b].times;
    parallel(staged < SERIAL_COPY ? 1 : threads, stage_rows_tasks, &p);
    for (p.row0 = 0; p.row0 < total; p.row0 += block) {
        p.row1 = min(p.row0 + block, total);
        const int rows = (int)(p.row1 - p.row0);
        p.packed = {nullptr, p.K, rows, tiles_for(rows)};
        p.tasks = a.groups * ceil_div(p.panels, p.group);
        p.to_stage = p.work = {};
        parallel(packed < SERIAL_COPY ? 1 : threads, pack_tasks, &p);
        parallel(threads, MC_BY_WEIGHT(panel_tasks, a.w_dtype), &p);
    }
}

template <class T>
void clear_rest(const Plan& p) {
    const CausalConvArgs& a = p.a;
    for (int64_t b = 0; b < a.B; ++b)
        for (int64_t n = 0; n < a.N && p.rows[b].count < a.T; ++n)
            for (int64_t t = p.rows[b].count; t < a.T; ++t)
                memset((T*)a.out.data + b * a.out.batch + n * a.out.channel + t * a.out.time, 0,
                       sizeof(T));
}

}  // namespace

void causal_conv(const CausalConvArgs& a) {
    Plan p{a};
    p.span = (a.taps - 1) * a.dilation;
    p.inputs = a.C / a.groups;
    p.outputs = a.N / a.groups * a.up;
    p.K = p.inputs * a.taps;
    p.panels = ceil_div(p.outputs, PANEL);
    p.small = p.outputs * p.K < SMALL_WEIGHTS;
    const int64_t longest = ceil_div(a.T, a.up);
    const int64_t moved = a.B * longest * (a.C * a.stride + a.N * a.up) * 8;
    const int64_t products = a.B * longest * a.groups * p.outputs * p.K;
    const int64_t bytes = a.groups * p.outputs * p.K * (a.w_dtype == Dtype::f32 ? 4 : 2);
    const int threads = products + moved < SERIAL && bytes < SERIAL ? 1 : a.threads;
    if (longest == 0) begin(p, 0);
    else if (a.layout == Layout::rows) run_rows(p, threads, longest);
    else if (longest >= MIN_TIMES && a.out.time == 1 && reads_in_place(p, longest))
        run_in_place(p, threads);
    else if (longest >= MIN_TIMES && a.out.time == 1) run_direct(p, threads, longest);
    else run_panels(p, threads, longest);
    const bool wide = a.out.dtype == Dtype::f32;
    wide ? clear_rest<float>(p) : clear_rest<bf16>(p);
    if (longest == 0 || a.layout != Layout::rows || p.pieces > 1) {
        p.to_stage = {};
        parallel(a.B * a.C * p.span < SERIAL_COPY ? 1 : a.threads, carry_tasks, &p);
    }
    for (int64_t b = 0; b < a.B; ++b) {
        a.rows.emitted[b] = p.rows[b].count;
        a.rows.lengths_out[b] = p.rows[b].done ? 0 : p.rows[b].seen + p.rows[b].fresh;
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
