// linear: out[M, N] = act(x[M, K] @ w[N, K].T + bias) + residual, in float32 inside; with VNNI-4
// weights ("int8_dyn") the rows of x are quantised first and the products are summed in int32.
//
// Cost: one read of w (N K elements), 2 M N K flops. The GEMM is gemm.h's; here is the split into
// tasks: a few micro-panels times a range of row tiles, claimed in memory order, so that all
// threads stream until the end. Scales, bias, activation and residual are a fused epilogue on sums
// in L1.
#include "cpu/gemm/linear.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/epilogue.h"
#include "cpu/lib/quantise.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t ROW_BLOCK = 256;  // rows whose sums for one panel stay in L1
constexpr int PACK_IN_PARALLEL = 1 << 15;
// Below both, one thread is done before a second one is awake: the measured break-even of 2
// threads.
constexpr int64_t SERIAL_PRODUCTS = 1 << 18, SERIAL_BYTES = 1 << 18;

struct Plan {
    const LinearArgs& a;
    Epilogue epilogue;
    PackedRows x;  // the rows of this block
    int64_t row0;  // where the block starts in x and out
    float* packed;
    int8_t* quantised;  // of VNNI-4: the int8 rows before they are packed,
    float* scale;       // the scale of each,
    int32_t* sum;       // the sum of its integers
    int64_t panels;
    int group, groups, splits;  // panels of a task, tasks over columns, over rows
    float* scratch;
    int64_t scratch_each;
    Counter to_pack, work;
};

template <class X>
void pack(Plan& p, int t) {
    const int r = p.x.begin(t), n = p.x.begin(t + 1) - r;
    const X* x = (const X*)p.a.x + (p.row0 + r) * p.a.x_row;
    float* to = p.packed + p.x.K * r;
    if (!p.quantised) return pack_tile(x, p.a.x_row, p.x.K, n, to);
    int8_t* q = p.quantised + 4 * p.x.K * r;
    for (int i = 0; i < n; ++i)
        quantise_row(x + i * p.a.x_row, p.a.K, q + 4 * p.x.K * i, p.scale + r + i, p.sum + r + i);
    if (p.x.x != (const float*)p.quantised) pack_tile((const float*)q, p.x.K, p.x.K, n, to);
}

void pack_rows(void* context, int) {
    Plan& p = *(Plan*)context;
    for (int64_t t; (t = claim(p.to_pack)) < p.x.tiles;) {
        if (p.a.x_dtype == Dtype::f32) pack<float>(p, (int)t);
        else if (p.a.x_dtype == Dtype::bf16) pack<bf16>(p, (int)t);
        else pack<f16>(p, (int)t);
    }
}

template <class T>
void run_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    const LinearArgs& a = p.a;
    const Matrix<T> m{(const T*)a.w, p.x.K, a.scale, p.epilogue.outputs, a.act == Act::swiglu};
    float *scratch = p.scratch + id * p.scratch_each, *sums = scratch + KC * PANEL;
    const int64_t tasks = (int64_t)p.groups * p.splits;
    int64_t following = claim(p.work);
    for (int64_t task; (task = following) < tasks;) {
        following = claim(p.work);  // lookahead, to prefetch its first weights
        const int64_t first = task / p.splits * p.group;
        const int64_t last = first + p.group < p.panels ? first + p.group : p.panels;
        const int part = (int)(task % p.splits);
        const int t0 = p.x.tiles * part / p.splits, t1 = p.x.tiles * (part + 1) / p.splits;
        const int row = p.x.begin(t0), rows = p.x.begin(t1) - row;
        const auto epilogue = [&](int64_t panel, const float* of) {
            apply_epilogue(p.epilogue, p.row0 + row, rows, panel, of);
        };
        if constexpr (!Sums<T>::quantised) {
            if (a.layout == Layout::rows) {
                const int width = m.width();
                const int64_t col = first * width, left = m.outputs - col;
                const int64_t upper = m.swiglu ? m.outputs + col : col + 16;  // lanes 16..31
                const int n = left < width ? (int)left : width, n_low = n < 16 ? n : 16;
                rows_gemm(p.x, t0, t1, m.panels + col * a.w_row, n_low, m.panels + upper * a.w_row,
                          m.swiglu ? n : n - n_low, a.w_row, scratch, sums);
                epilogue(first, sums);
                continue;
            }
        }
        const T* after = following < tasks ? m.panel(following / p.splits * p.group) : nullptr;
        multiply(p.x, t0, t1, m, first, last, after, sums, epilogue);
    }
}

}  // namespace

void linear(const LinearArgs& a) {
    const bool quantised = a.w_dtype == Dtype::u8;
    const int64_t outputs = a.act == Act::swiglu ? a.N / 2 : a.N,
                  K = quantised ? vnni4_words(a.K) : a.K;
    const int width = a.act == Act::swiglu ? 16 : PANEL;
    const int64_t panels = ceil_div(outputs, width);
    const int64_t bytes = a.N * a.K * element_bytes(a.w_dtype);
    const bool serial = a.M * a.N * a.K < SERIAL_PRODUCTS && bytes < SERIAL_BYTES;
    const int threads = serial || a.threads < 1 ? 1 : a.threads;
    const int block = (int)(a.M < ROW_BLOCK ? a.M : ROW_BLOCK);
    const bool one_row = block == 1;  // its own packed form, once it is float or int8
    const bool to_pack = !one_row || (!quantised && a.x_dtype != Dtype::f32);

    int group = a.layout == Layout::rows ? 1 : panels_for(block);
    while (group > 1 && threads > 1 && panels < (int64_t)group * threads * 4) group /= 2;
    const int64_t scratch_each = KC * PANEL + (int64_t)group * block * PANEL;
    const int64_t packed = to_pack ? block * K : 0, quantised_rows = quantised ? block : 0;
    const int64_t floats = packed + threads * scratch_each + (K + 2) * quantised_rows;
    Arena arena{(char*)workspace((size_t)(floats + 5 * 16) * sizeof(float))};
    Plan plan{a,
              {a.bias, a.bias_dtype, a.residual, a.residual_dtype, a.residual_row, a.out,
               a.out_dtype, a.out_row, outputs, a.act}};
    plan.packed = arena.take<float>(packed);
    plan.scale = arena.take<float>(quantised_rows);
    plan.sum = arena.take<int32_t>(quantised_rows);
    plan.quantised = quantised ? arena.take<int8_t>(4 * K * quantised_rows) : nullptr;
    plan.scratch = arena.take<float>(threads * scratch_each);
    plan.scratch_each = scratch_each;
    plan.panels = panels;
    plan.group = group;
    plan.groups = (int)ceil_div(panels, group);
    void (*run)(void*, int) = a.w_dtype == Dtype::f32    ? run_tasks<float>
                              : a.w_dtype == Dtype::bf16 ? run_tasks<bf16>
                              : a.w_dtype == Dtype::f16  ? run_tasks<f16>
                              : a.w_dtype == Dtype::i8   ? run_tasks<int8_t>
                                                         : run_tasks<vnni4>;

    for (int64_t row0 = 0; row0 < a.M; row0 += ROW_BLOCK) {
        const int rows = (int)(a.M - row0 < ROW_BLOCK ? a.M - row0 : ROW_BLOCK);
        const float* x = to_pack     ? plan.packed
                         : quantised ? (const float*)plan.quantised
                                     : (const float*)a.x + row0 * a.x_row;
        plan.x = {x, K, rows, tiles_for(rows), plan.scale, plan.sum};
        plan.row0 = row0;
        plan.splits = 1;
        while (plan.splits * 2 <= plan.x.tiles && plan.groups * plan.splits < threads * 4)
            plan.splits *= 2;
        plan.to_pack = plan.work = {};
        if (to_pack || quantised)
            parallel((int64_t)rows * a.K < PACK_IN_PARALLEL ? 1 : threads, pack_rows, &plan);
        parallel((int64_t)plan.groups * plan.splits == 1 ? 1 : threads, run, &plan);
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
