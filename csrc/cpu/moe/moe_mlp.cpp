// moe_mlp: out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t]), in one call.
//
// A grouped GEMM. Cost: the weights of every expert that some token chose are read once per chunk
// of tokens, 3 H I elements each, 6 H I flops per chosen row. Sorting, gathering, both products,
// SwiGLU, the weighted sum and the shared expert are fused into one parallel region, on scratch
// that is reused between calls.
//
// Scheduling: threads claim items (panels of an expert) in memory order (see moe_mlp_plan.h),
// without a barrier. An item of `down` waits for its own expert's hidden rows, and the thread that
// stores the last result of 32 output columns combines those columns, slot by slot and the shared
// expert last. So the order of every sum is fixed, and bits do not depend on threads, on chunks or
// on the batch.
//
// Types: all in float32. VNNI-4 ("int8_dyn") multiplies quantised rows of x and of hidden, exactly,
// in int32. VNNI-2 (bf16 tokens, 64 or more of them, and packed bf16 weights, where the CPU has
// AVX512-BF16) multiplies bf16 as it is: hidden rows are rounded to bf16 first, sums are float32.
// So the bits of bf16 tokens differ between 63 and 64 tokens, and between CPUs with the instruction
// and without.
//
// Measured on 2 cores (AVX-512), H 2048, I 1408, 64 experts, 6 per token, cold weights: one token
// in bf16 at 96 % of the read probe, in int8 1.84 times as fast; 512 tokens at 0.41 TFLOP/s,
// int8_dyn 1.2 TFLOP/s. In VNNI-2 512 tokens take 92 ms instead of 170 (0.77 TFLOP/s; PyTorch's
// best, which uses the same instruction, 141), and 90 instead of 168 when all choose the same
// experts (99); PyTorch without the instruction 520. Waking the threads costs 1.5 us where they
// spin between regions, 40 to 50 us where they sleep. Did not help: 2 streams per thread instead of
// 4 (-8 points of the probe), a prefetch distance of 512 bytes in each instead of 1024 (-9), huge
// pages for the weights (within the noise).
#include "cpu/lib/convert.h"
#include "cpu/lib/vmath.h"
#include "cpu/moe/moe_mlp_plan.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t MANY_TOKENS = 64;  // from here on products, not bytes, are what costs
// Below both, one thread is done before a second one is awake.
constexpr int64_t SERIAL_PRODUCTS = 1 << 18, SERIAL_BYTES = 1 << 18;

// Gathers n rows of x into one packed tile [H, n] (see PackedRows).
template <class X>
void gather(const X* x, int64_t x_row, const int32_t* token, int n, int64_t H, float* to) {
    if (n == 1) return convert_row(x + token[0] * x_row, H, to);
    for (int r0 = 0; r0 < n; r0 += W) {
        const int rn = n - r0 < W ? n - r0 : W;
        for (int64_t k = 0; k < H; k += W) {
            const int kn = (int)min(H - k, W);
            F v[W];
            for (int r = 0; r < W; ++r)
                v[r] = r < rn ? loadn(x + token[r0 + r] * x_row + k, kn) : zero();
            transpose(v);
            for (int i = 0; i < kn; ++i) storen(to + (k + i) * n + r0, v[i], rn);
        }
    }
}

// Where row i of a tile of n goes before it is packed: in its place when it is alone, else in
// `memory`.
int8_t* row_of_tile(int i, int n, int64_t K, float* memory, float* to) {
    return (int8_t*)((n == 1 ? to : memory) + i * K);
}

template <class X>
void gather_quantised(const X* x, int64_t x_row, const int32_t* token, int n, int64_t H,
                      float* scale, int32_t* sum, float* memory, float* to) {
    const int64_t K = vnni4_words(H);
    for (int i = 0; i < n; ++i)
        quantise_row(x + token[i] * x_row, H, row_of_tile(i, n, K, memory, to), scale + i, sum + i);
    if (n > 1) pack_tile(memory, K, K, n, to);
}

template <class X>
void pack_tile_of(const Plan& p, int64_t position, int n, int64_t at, float* memory, float* to) {
    const MoeMlpArgs& a = *p.a;
    const X* x = (const X*)a.x + p.t0 * a.x_row;
    const int32_t* token = p.token + position;
    if (p.form == Form::vnni4)
        gather_quantised(x, a.x_row, token, n, a.H, p.x_scale + at, p.x_sum + at, memory, to);
    else gather(x, a.x_row, token, n, a.H, to);
}

// Packs the rows at `position`, ... as a tile; `at`: where their scales go.
void pack_tile_of(const Plan& p, int64_t position, int n, int64_t at, float* memory, float* to) {
    const MoeMlpArgs& a = *p.a;
    if (p.form == Form::vnni2)  // two bf16 of x are one word
        gather((const float*)a.x + p.t0 * (a.x_row / 2), a.x_row / 2, p.token + position, n,
               a.H / 2, to);
    else if (p.a->x_dtype == Dtype::f32) pack_tile_of<float>(p, position, n, at, memory, to);
    else if (p.a->x_dtype == Dtype::bf16) pack_tile_of<bf16>(p, position, n, at, memory, to);
    else pack_tile_of<f16>(p, position, n, at, memory, to);
}

void pack(const Plan& p, Segment& s, const Item& item, float* memory) {
    for (int t = item.first; t < item.first + item.count; ++t) {
        const int r = s.x.begin(t), n = s.x.begin(t + 1) - r;
        pack_tile_of(p, s.first + r, n, s.first + r, memory, (float*)s.x.x + s.x.K * r);
    }
    count_down(s.to_pack, item.count);
}

// Packs complete hidden rows into words of several k.
void repack(const Plan& p, Segment& s, const Item& item, float* memory) {
    for (int t = item.first; t < item.first + item.count; ++t) {
        const int r0 = s.h.begin(t), n = s.h.begin(t + 1) - r0;
        float* to = (float*)s.h.x + s.h.K * r0;
        for (int i = 0; i < n; ++i) {
            const int64_t at = s.first + r0 + i;
            const float* row = s.gated + (r0 + i) * s.width;
            int8_t* packed = row_of_tile(i, n, s.h.K, memory, to);
            if (p.form == Form::vnni2) convert_row(row, s.width, (bf16*)packed);
            else quantise_row(row, s.width, packed, p.h_scale + at, p.h_sum + at);
        }
        if (n > 1) pack_tile(memory, s.h.K, s.h.K, n, to);
    }
    count_down(s.to_repack, item.count);
}

// silu(gate) * up of W columns, from the sums of a row: 16 gates, then their 16 ups.
MC_INLINE F gated(const float* sums) { return mul(silu(load(sums)), load(sums + 16)); }

// Stores the columns [col, col + n) of the hidden rows as rows.
void store_gated(const Segment& s, int64_t col, int n, const float* sums) {
    for (int r = 0; r < s.rows; ++r)
        for (int j = 0; j < n; j += W)
            storen(s.gated + r * s.width + col + j, gated(sums + (int64_t)r * PANEL + j),
                   n - j < W ? n - j : W);
}

// Packs the columns [col, col + n) of the hidden rows.
void pack_gated(const Segment& s, int64_t col, int n, const float* sums) {
    for (int t = 0; t < s.tiles; ++t) {
        const int r0 = s.h.begin(t), rows = s.h.begin(t + 1) - r0;
        float* to = (float*)s.h.x + s.width * r0 + col * rows;
        for (int j = 0; j < n; j += W) {
            const int m = n - j < W ? n - j : W;
            for (int r = 0; r < rows; r += W) {
                const int rn = rows - r < W ? rows - r : W;
                const float* from = sums + (int64_t)(r0 + r) * PANEL + j;
                F v[W];
                for (int i = 0; i < W; ++i) v[i] = i < rn ? gated(from + i * PANEL) : zero();
                if (rows == 1) {
                    storen(to + j, v[0], m);
                    continue;
                }
                transpose(v);
                for (int i = 0; i < m; ++i) storen(to + (int64_t)(j + i) * rows + r, v[i], rn);
            }
        }
    }
}

// Stores sums of down to the columns [col, col + n) of the segment's result rows.
void store_result(const Segment& s, int64_t H, int64_t col, int n, const float* sums) {
    for (int r = 0; r < s.rows; ++r)
        for (int j = 0; j < n; j += W)
            storen(s.result + r * H + col + j, load(sums + (int64_t)r * PANEL + j),
                   n - j < W ? n - j : W);
}

template <class O>
void combine(const Plan& p, int64_t col, int n, O* out) {
    const MoeMlpArgs& a = *p.a;
    const bool shared = p.positions > p.slots;
    for (int64_t t = 0; t < p.T; ++t) {
        const float* weights = a.weights + (p.t0 + t) * a.weights_row;
        const int32_t* place = p.place + t * a.K;
        for (int j = 0; j < n; j += W) {
            const int m = n - j < W ? n - j : W;
            const float* from = p.rows + col + j;
            F sum = zero();
            for (int64_t k = 0; k < a.K; ++k)
                sum =
                    fma(set1(weights[k * a.weights_column]), loadn(from + place[k] * a.H, m), sum);
            if (shared) sum = add(sum, loadn(from + (p.slots + t) * a.H, m));
            storen(out + (p.t0 + t) * a.out_row + col + j, sum, m);
        }
    }
}

void combine(const Plan& p, int64_t panel) {
    const MoeMlpArgs& a = *p.a;
    const int64_t col = panel * PANEL;
    const int n = (int)min(a.H - col, PANEL);
    if (a.out_dtype == Dtype::f32) combine(p, col, n, (float*)a.out);
    else if (a.out_dtype == Dtype::bf16) combine(p, col, n, (bf16*)a.out);
    else combine(p, col, n, (f16*)a.out);
}

template <class T>
Matrix<T> matrix_of(const Plan& p, const Item& item) {
    const Segment& s = p.segments[item.segment];
    if (item.kind == Kind::gate_up)
        return {(const T*)s.gate_up, s.x.K, s.gate_up_scale, s.width, true};
    return {(const T*)s.down, s.h.K, s.down_scale, p.a->H, false};
}

// The first panel of an item, or null: prefetched while the thread's item before ends.
template <class T>
const T* first_panel(const Plan& p, const Item& item) {
    const bool product = item.kind == Kind::gate_up || item.kind == Kind::down;
    return product && p.a->layout != Layout::rows ? matrix_of<T>(p, item).panel(item.first)
                                                  : nullptr;
}

// One panel of unpacked weights.
template <class T>
void multiply_rows(const Segment& s, const PackedRows& x, const Matrix<T>& m, int64_t panel,
                   float* memory, float* sums) {
    const int64_t col = panel * m.width(), row = m.swiglu ? s.gate_up_row : s.down_row;
    const int64_t upper = m.swiglu ? m.outputs + col : col + 16;  // the row of column 16
    const int n = (int)min(m.outputs - col, m.width()), low = n < 16 ? n : 16;
    rows_gemm(x, 0, x.tiles, m.panels + col * row, low, m.panels + upper * row,
              m.swiglu ? n : n - low, row, memory, sums);
}

template <class T>
void run_product(Plan& p, Segment& s, const Item& item, const T* after, float* memory) {
    const bool gates = item.kind == Kind::gate_up;
    wait_for(gates ? s.to_pack : p.form == Form::floats ? s.to_gate : s.to_repack);
    const PackedRows& x = gates ? s.x : s.h;
    const Matrix<T> m = matrix_of<T>(p, item);
    float* sums = memory + UNPACKED;
    const auto epilogue = [&](int64_t panel, const float* of) {
        const int64_t col = panel * m.width();
        const int n = (int)min(m.outputs - col, m.width());
        if (!gates) store_result(s, p.a->H, col, n, of);
        else if (p.form != Form::floats) store_gated(s, col, n, of);
        else pack_gated(s, col, n, of);
    };
    bool done = false;
    if constexpr (sizeof(T) > 1 && !Sums<T>::words)
        if (p.a->layout == Layout::rows) {
            multiply_rows(s, x, m, item.first, memory, sums);
            epilogue(item.first, sums);
            done = true;
        }
    if (!done)
        multiply(x, 0, x.tiles, m, item.first, item.first + item.count, after, sums, epilogue);
    if (gates) {
        count_down(s.to_gate, item.count);
        return;
    }
    for (int64_t panel = item.first; panel < item.first + item.count; ++panel)
        if (count_down(p.to_combine[panel])) combine(p, panel);
}

// Lookahead of one item, so that the next one's first weights can be prefetched; but not near the
// end, where a thread must not hold an item that an idle one could do.
template <class T>
void run_items(void* context, int id) {
    Plan& p = *(Plan*)context;
    float *memory = p.memory + id * p.memory_each, *rows = memory + UNPACKED + SUMS;
    const int64_t near_end = p.item_count - 4 * p.threads;
    for (int64_t at = claim(p.work); at < p.item_count;) {
        const bool lookahead = at < near_end;
        const int64_t following = lookahead ? claim(p.work) : p.item_count;
        const Item& item = p.items[at];
        Segment& s = p.segments[item.segment];
        const T* after = nullptr;
        if (following < p.item_count) after = first_panel<T>(p, p.items[following]);
        if (item.kind == Kind::pack) {
            pack(p, s, item, rows);
        } else if (item.kind == Kind::repack) {
            wait_for(s.to_gate);
            repack(p, s, item, rows);
        } else {
            run_product(p, s, item, after, memory);
        }
        at = lookahead ? following : claim(p.work);
    }
}

int64_t tokens_per_chunk(const MoeMlpArgs& a) {
    const int64_t shared = a.shared_gate_up.data ? a.H + a.shared_I : 0;
    const int64_t max_tokens = CHUNK_FLOATS / (a.K * (a.H + a.I) + shared + 1) + 1;
    return ceil_div(a.T, ceil_div(a.T, max_tokens));  // chunks of one size
}

bool is_small(const MoeMlpArgs& a, int64_t element) {
    const int64_t shared = a.shared_gate_up.data ? a.shared_I : 0;
    const int64_t products = 3 * a.H * a.T * (a.K * a.I + shared);
    const int64_t weights = 3 * a.H * (min(a.T * a.K, a.E) * a.I + shared);
    return products < SERIAL_PRODUCTS && weights * element < SERIAL_BYTES;
}

// Whether bf16 is multiplied with bf16: many tokens, no row of an odd length.
bool uses_vnni2(const MoeMlpArgs& a) {
#if defined(MC_AVX512)
    const int64_t odd = a.H | a.I | a.x_row | (a.shared_gate_up.data ? a.shared_I : 0);
    return cpu_bf16 && a.T >= MANY_TOKENS && a.w_dtype == Dtype::bf16 && a.x_dtype == Dtype::bf16 &&
           a.layout != Layout::rows && odd % 2 == 0;
#else
    return false;
#endif
}

}  // namespace

int64_t moe_mlp(const MoeMlpArgs& a) {
    const int64_t bad = first_bad_slot(a);
    if (bad >= 0 || a.T == 0) return bad;
    const int64_t element = element_bytes(a.w_dtype), chunk = tokens_per_chunk(a);
    const bool vnni2_words = uses_vnni2(a);
    for (int64_t t0 = 0; t0 < a.T; t0 += chunk) {
        Plan p{};
        p.a = &a;
        p.t0 = t0, p.T = min(a.T - t0, chunk);
        p.slots = p.T * a.K, p.positions = p.slots + (a.shared_gate_up.data ? p.T : 0);
        p.element = element;
        p.form = a.w_dtype == Dtype::u8 ? Form::vnni4 : vnni2_words ? Form::vnni2 : Form::floats;
        p.threads = is_small(a, element) ? 1 : a.threads;
        lay_out(p, (char*)workspace(lay_out(p, nullptr)));
        make_plan(p);
        if (p.T == 1 && p.positions) pack_tile_of(p, 0, 1, p.positions, nullptr, p.one);
        if (p.segment_count == 0)  // no expert at all: sums of nothing
            for (int64_t panel = 0; panel < ceil_div(a.H, PANEL); ++panel) combine(p, panel);
        void (*run)(void*, int) = a.w_dtype == Dtype::f32    ? run_items<float>
                                  : a.w_dtype == Dtype::bf16 ? run_items<bf16>
                                  : a.w_dtype == Dtype::f16  ? run_items<f16>
                                  : a.w_dtype == Dtype::i8   ? run_items<int8_t>
                                                             : run_items<vnni4>;
#if defined(MC_AVX512)
        if (vnni2_words) run = run_items<vnni2>;
#endif
        parallel(p.threads, run, &p);
    }
    return -1;
}

}  // namespace MC_ISA
}  // namespace mingcore
