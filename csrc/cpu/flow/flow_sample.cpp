// flow_sample: the whole flow sampler, every step and block of it, in one parallel region.
//
// Cost of one evaluation at 8 x 1024, 22 rows (11 tokens, both branches): 4.08 GFLOP, of which the
// products are all but 0.5 %, and 201 MB of bf16 weights. So the products are bound by the vector
// units, and everything between them is fused: all rows of all requests and branches are the rows
// of one product; each product's epilogue (bias, residual, GELU, packing for the next product, the
// partial sums of RMSNorm) runs on 32 columns in L1; 1 / rms scales the next product's rows; the
// last block computes P rows of each group only; and in the first block, where tokens of both
// branches are still equal and those of the history always, every distinct row is computed once (2
// % fewer flops at 11 tokens, 10 % at 37). Memory is one workspace, reused between calls.
//
// Measured on 2 cores of an EPYC (Zen 5, 534 GFLOP/s of FMA, 42 GB/s), 10 steps, guidance,
// interleaved, medians in ms; oneDNN: the same network in PyTorch with prepacked linears and
// constants hoisted, in float32, and with bf16 activations on instructions that our bf16 does not
// use:
//
//                 fp32   bf16   int8   int8_dyn   oneDNN float32   oneDNN bf16
//   B 1, 11       113    107    106    43         232              145
//   B 1, 37              319           110        675              333
//   B 4, 11              368           111        785              345
//
// Predicted for bf16 at B = 1 were 84 ms (500 GFLOP/s, what one product alone reaches); the clock
// of this shared machine differs from hour to hour: 88 to 107 ms, and oneDNN bf16, which is level
// with ours at more rows, was 1.03 to 1.35 times slower at B = 1 in five runs. Of the time 84 % are
// the products' micro-kernels, 9 % their epilogues, 2 % attention, 1.6 % waiting. In int8_dyn,
// whose products take a quarter, the rest shows: of 47 ms, on another day, 61 % were micro-kernels
// (29 ms; 26 at the rate of one large int8 product), 16 % epilogues, 6 % quantising, 5 % attention,
// 8 % waiting.
//
// Tried, without effect (interleaved medians): prefetching the lines that a product's epilogue will
// write before the product (1.00); prefetching weights two or three K blocks ahead instead of one;
// into L2 only (0.92 to 0.97); two or four panels in one task (0.96 to 0.99). Of use: the products
// of a phase set up once per phase, not per task (0.98); huge pages behind the weights (0.95 to
// 0.98).
#include "cpu/flow/flow_sample_attention.h"
#include "cpu/flow/flow_sample_products.h"

namespace mingcore {
namespace MC_ISA {
namespace {

// A whole panel of an embedding; calls done(i, sums of row i with the bias).
template <class Done>
MC_INLINE void embed_rows(const Plan& p, const Operand& x, int64_t count, int matrix, int64_t panel,
                          const Sums& s, Done done) {
    if (count == 0) return;
    const PackedRows rows = x.packed((int)count);
    const FlowMatrix& w = p.a->matrix[matrix];
    for (int64_t i = 0; i < PART_ROWS; ++i) s.factor[i] = 1;
    for (int t0 = 0; t0 < rows.tiles; t0 += PART_TILES) {
        const int t1 = (int)min(t0 + PART_TILES, rows.tiles), i0 = rows.begin(t0);
        multiply(w.dtype, rows, t0, t1, panel_of(w, 0, panel), 1, nullptr, s.c);
        scale_sums(w, p.a->bias[matrix], 0, panel * PANEL, rows.begin(t1) - i0, s, s.c);
        for (int i = i0; i < rows.begin(t1); ++i) done(i, s.c + (i - i0) * PANEL);
    }
}

MC_INLINE void copy32(float* to, const float* from) {
    for (int j = 0; j < PANEL; j += W) store(to + j, load(from + j));
}

// 32 columns of all tokens: [condition + time; history; x].
void embed(const Plan& p, int e, int64_t panel, const Sums& s) {
    const FlowSampleArgs& a = *p.a;
    const int64_t col = panel * PANEL, n = min(a.H - col, PANEL);
    float* x = p.x + panel * p.rows * PANEL;
    float* first = p.first + panel * a.B * PANEL;
    float* history = p.history + panel * a.B * a.N * PANEL;
    if (e == 0) {
        const auto to = [](float* rows) {
            return [=](int64_t i, const float* c) { copy32(rows + i * PANEL, c); };
        };
        embed_rows(p, p.condition, a.B, 0, panel, s, to(first));
        embed_rows(p, p.past, a.B * a.N, 1, panel, s, to(history));
    }
    float time[PANEL] = {0}, bias[PANEL] = {0};
    read_values(a.times + e * a.H + col, n, time);
    read_vector(a.bias[0], 0, col, n, bias);
    for (int64_t g = 0; g < p.G; ++g) {
        const float* c = p.unconditional[g] ? bias : first + p.group_request[g] * PANEL;
        for (int j = 0; j < PANEL; j += W)
            store(x + g * p.T * PANEL + j, add(load(c + j), load(time + j)));
    }
    const auto to_tokens = [&](int64_t i, const float* c) {  // i: of unique rows
        copy32(x + p.copy[i] * PANEL, c);
        if (p.second_copy[i] >= 0) copy32(x + p.second_copy[i] * PANEL, c);
    };
    const int64_t past = p.G + a.B * a.P;
    for (int64_t i = 0; i < a.B * a.N; ++i) to_tokens(past + i, history + i * PANEL);
    embed_rows(p, p.current, a.B * a.P, 1, panel, s,
               [&](int64_t i, const float* c) { to_tokens(p.G + i, c); });
    pack_stream(p, Set::unique, e, 0, p.count(Set::unique, e), panel, a.norm[0], 0);
}

// Request b: classifier-free guidance, Euler's step, noise; and x as the operand of the next
// evaluation.
void advance(const Plan& p, int e, int64_t b) {
    const FlowSampleArgs& a = *p.a;
    const F guidance = set1(a.guidance[b]), dt = set1(a.dt[e]);
    const float scale = a.advance[e] ? a.noise_scale[e * a.B + b] : 0;
    int64_t draw = 0;
    for (int i = 0; i <= e; ++i) draw += a.advance[i];
    for (int64_t f = 0; f < a.P; ++f) {
        const int64_t at = b * a.P + f;
        const float* v_cond = p.velocity + (p.first_group[b] * a.P + f) * p.state_row;
        const float* v_null = v_cond + a.P * p.state_row;
        const float* noise = a.noise + ((draw * a.B + b) * a.P + f) * a.C;
        float *state = p.state + at * p.state_row, *base = p.base + at * p.state_row;
        for (int64_t c = 0; c < a.C; c += W) {
            const int n = (int)min(a.C - c, W);
            F v = load(v_cond + c);
            if (p.groups_of[b] == 2) v = fma(guidance, sub(v, load(v_null + c)), v);
            F y = fma(dt, v, load(base + c));
            if (scale != 0) y = fma(set1(scale), loadn(noise + c, n), y);
            store(state + c, y);
            if (a.advance[e]) store(base + c, y);
            if (e + 1 == a.E) storen(a.out + at * a.C + c, y, n);
        }
    }
    for (int64_t col = 0; col < a.C; col += PANEL)
        pack_operand(p.current, (int)(a.B * a.P), b * a.P, (b + 1) * a.P, col, nullptr,
                     [&](int64_t i) { return p.state + i * p.state_row + col; });
}

void run(void* context, int id) {
    Plan& p = *(Plan*)context;
    float* scratch = p.scratch + id * p.scratch_each;
    const Sums sums{scratch + 2 * (PART_ROWS + W), scratch, (int32_t*)scratch + PART_ROWS + W};
    Phase now, next;
    next.begin(p);
    next.seek(p, 0);
    now = next;
    int64_t following = claim(p.next);
    for (int64_t ticket; (ticket = following) < p.total;) {
        following = claim(p.next);
        if (ticket >= now.start + now.tasks) {
            if (ticket >= next.start + next.tasks) next.seek(p, ticket);
            now = next;
        }
        if (following < p.total) next.seek(p, following);
        wait_until(p.done, now.start);
        const int64_t task = ticket - now.start;
        if (now.step == Step::embed) embed(p, now.e, task, sums);
        else if (now.step == Step::step) advance(p, now.e, task);
        else if (now.quantises()) run_quantise(p, now, task);
        else if (now.step == Step::attend)
            attend(p, now.block ? p.qkv : p.first_qkv, now.block, p.is_last(now.block),
                   task / p.a->heads, task % p.a->heads, scratch);
        else
            run_product(p, now, task, following < p.total ? next.weights(following) : nullptr,
                        sums);
        __atomic_fetch_add(&p.done.next, 1, __ATOMIC_RELEASE);
    }
}

MC_INLINE int branches(const FlowSampleArgs& a, int64_t b) {
    return a.guided && a.guidance[b] != 0 ? 2 : 1;
}

Operand operand(Arena& m, int64_t K, int64_t rows, int64_t pieces, bool normed, bool quantised) {
    Operand o{m.take<float>(K * rows), K, nullptr, nullptr, round_up(rows, 16), pieces, normed};
    o.squares = normed ? m.take<float>(pieces * o.rows16) : nullptr;
    o.largest = m.take<float>(pieces * o.rows16);
    if (!quantised) return o;
    o.vnni4_data = m.take<float>(vnni4_words(K) * rows);
    o.scale = m.take<float>(o.rows16);
    o.sums = m.take<int32_t>(o.chunks() * o.rows16);
    return o;
}

// Lays out everything the plan points to; returns the bytes.
size_t lay_out(Plan& p, char* base) {
    const FlowSampleArgs& a = *p.a;
    Arena m{base};
    const int64_t panels = ceil_div(a.H, PANEL), unique = 2 * a.B + a.B * (a.P + a.N),
                  Hc = a.matrix[0].k;
    p.group_request = m.take<int32_t>(p.G), p.unconditional = m.take<bool>(p.G);
    p.first_group = m.take<int32_t>(a.B), p.groups_of = m.take<int32_t>(a.B);
    p.copy = m.take<int32_t>(unique), p.second_copy = m.take<int32_t>(unique);
    p.x = m.take<float>(panels * p.rows * PANEL);
    p.qkv = m.take<float>(p.rows * p.qkv_row), p.first_qkv = m.take<float>(p.rows * p.qkv_row);
    p.velocity = m.take<float>(p.G * a.P * p.state_row);
    p.state = m.take<float>(a.B * a.P * p.state_row);
    p.base = m.take<float>(a.B * a.P * p.state_row);
    p.first = m.take<float>(panels * a.B * PANEL);
    p.history = m.take<float>(panels * a.B * a.N * PANEL);
    p.cos = m.take<float>(p.T * round_up(p.D, W)), p.sin = m.take<float>(p.T * round_up(p.D, W));
    p.condition = operand(m, Hc, a.B, ceil_div(Hc, PANEL), false, false);
    p.past = operand(m, a.C, a.B * a.N, ceil_div(a.C, PANEL), false, false);
    p.current = operand(m, a.C, a.B * a.P, ceil_div(a.C, PANEL), false, false);
    p.unique = operand(m, a.H, unique, panels, true, a.quantised);
    p.every = operand(m, a.H, p.rows, panels, true, a.quantised);
    p.last = operand(m, a.H, p.G * a.P, panels, true, a.quantised);
    p.attended = operand(m, a.H, p.rows, a.heads, false, a.quantised);
    p.hidden = operand(m, a.W, p.rows, ceil_div(a.W, PANEL), false, a.quantised);
    int64_t each = 2 * (PART_ROWS + W) + PART_ROWS * PANEL;
    if (each < attention_scratch(p.T, p.D)) each = attention_scratch(p.T, p.D);
    p.scratch_each = round_up(each, 16);
    p.scratch = m.take<float>(p.scratch_each * p.threads);
    return m.used;
}

template <class T>
void pack_whole(const T* x, const Operand& o, int64_t count) {
    if (count == 0) return;
    const PackedRows rows = o.packed((int)count);
    for (int t = 0; t < rows.tiles; ++t) {
        const int r = rows.begin(t);
        pack_tile(x + r * o.K, o.K, o.K, rows.begin(t + 1) - r, o.data + o.K * r);
    }
}
void pack_whole(const void* x, Dtype dtype, const Operand& o, int64_t count) {
    if (dtype == Dtype::f32) pack_whole((const float*)x, o, count);
    else if (dtype == Dtype::bf16) pack_whole((const bf16*)x, o, count);
    else pack_whole((const f16*)x, o, count);
}

// Before the first task: row maps, rotary tables, packed arguments, the initial state.
void prepare(Plan& p) {
    const FlowSampleArgs& a = *p.a;
    for (int32_t b = 0, g = 0; b < a.B; g += p.groups_of[b++]) {
        p.first_group[b] = g, p.groups_of[b] = branches(a, b);
        for (int i = 0; i < p.groups_of[b]; ++i)
            p.group_request[g + i] = b, p.unconditional[g + i] = i == 1;
    }
    for (int64_t g = 0; g < p.G; ++g) p.copy[g] = (int32_t)(g * p.T), p.second_copy[g] = -1;
    for (int64_t b = 0; b < a.B; ++b)
        for (int64_t t = 1; t < p.T; ++t) {
            const int64_t i =
                t > a.N ? p.G + b * a.P + t - 1 - a.N : p.G + a.B * a.P + b * a.N + t - 1;
            p.copy[i] = (int32_t)(p.first_group[b] * p.T + t);
            p.second_copy[i] = p.groups_of[b] == 2 ? p.copy[i] + (int32_t)p.T : -1;
        }
    const int64_t Dp = round_up(p.D, W);
    for (int64_t t = 0; t < p.T; ++t)
        for (int64_t d = 0; d < Dp; ++d) {
            const bool real = d < p.D;
            const float sin = real ? a.sin[t * (p.D / 2) + d / 2] : 0;
            p.cos[t * Dp + d] = real ? a.cos[t * (p.D / 2) + d / 2] : 0;
            p.sin[t * Dp + d] = d % 2 ? sin : -sin;
        }
    for (int64_t i = 0; i < a.B * a.P; ++i)
        for (int64_t c = 0; c < p.state_row; ++c)
            p.state[i * p.state_row + c] = p.base[i * p.state_row + c] =
                c < a.C ? a.noise[i * a.C + c] : 0;
    pack_whole(a.condition, a.condition_dtype, p.condition, a.B);
    pack_whole(a.history, a.history_dtype, p.past, a.B * a.N);
    pack_whole(a.noise, p.current, a.B * a.P);
}

int64_t tasks_until(const Plan& p, int e) {
    Phase f;
    f.begin(p);
    while (f.e < e) f.forward(p);
    return f.start;
}

}  // namespace

void flow_sample(const FlowSampleArgs& a) {
    Plan p{};
    p.a = &a;
    p.T = 1 + a.N + a.P, p.D = a.H / a.heads;
    p.threads = a.threads < 1 ? 1 : a.threads;
    p.qkv_row = 3 * a.H + 16;  // no power of two: the rows of a head must not share a set of L1
    p.state_row = round_up(a.C, PANEL);
    for (int64_t b = 0; b < a.B; ++b) p.G += branches(a, b);
    p.rows = p.G * p.T;
    lay_out(p, (char*)workspace(lay_out(p, nullptr)));
    prepare(p);
    const int64_t first = tasks_until(p, 1), each = tasks_until(p, 2) - first;
    p.total = first + (a.E - 1) * each;
    parallel(p.threads, run, &p);
}

}  // namespace MC_ISA
}  // namespace mingcore
