// linear: out[M, N] = act(x[M, K] @ w[N, K].T + bias) + residual, in float32 inside.
//
// Cost: one read of w (N K elements), 2 M N K flops. See gemm.h for the idea; here is the split of
// the work: a task is a few output panels times a range of row tiles, claimed in memory order, so
// that all threads stream until the end. Bias, activation and residual are applied while the sums
// are still in L1.
#include "gemm.h"
#include "kernels.h"
#include "vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t ROW_BLOCK = 256;  // rows whose sums for one panel stay in L1
constexpr int PACK_IN_PARALLEL = 1 << 15;
// Below both, one thread is done before a second one is awake: measured break-even, 2 threads.
constexpr int64_t SERIAL_PRODUCTS = 1 << 18, SERIAL_BYTES = 1 << 18;

struct Plan {
    const LinearArgs& a;
    Rows x;        // the rows of this block
    int64_t row0;  // where the block starts in x and out
    float* packed;
    int64_t outputs;            // output columns: N, or N / 2 for swiglu
    int group, groups, splits;  // panels of a task, tasks over columns, over rows
    float* scratch;
    int64_t scratch_each;
    Counter to_pack, work;
};

template <class T>
MC_INLINE void read32(const void* base, int64_t at, int n, float* to) {
    const T* p = (const T*)base + at;
    for (int j = 0; j < PANEL; j += W) {
        const int m = n - j;
        store(to + j, m >= W ? load(p + j) : m > 0 ? loadn(p + j, m) : zero());
    }
}
MC_INLINE void read32(const void* base, Dtype dtype, int64_t at, int n, float* to) {
    if (dtype == Dtype::f32) read32<float>(base, at, n, to);
    else if (dtype == Dtype::bf16) read32<bf16>(base, at, n, to);
    else read32<f16>(base, at, n, to);
}
template <class T>
MC_INLINE void write32(void* base, int64_t at, int n, const F* v) {
    T* p = (T*)base + at;
    for (int j = 0; j < PANEL / W; ++j) {
        const int m = n - j * W;
        if (m >= W) store(p + j * W, v[j]);
        else if (m > 0) storen(p + j * W, v[j], m);
    }
}

MC_INLINE int width_of(Act act) { return act == Act::swiglu ? 16 : PANEL; }  // outputs of one panel

MC_INLINE F activate(Act act, F v) {
    switch (act) {
        case Act::silu:
            return silu(v);
        case Act::gelu:
            return gelu(v);
        case Act::gelu_tanh:
            return gelu_tanh(v);
        default:
            return v;
    }
}

// Output columns [col, col + n) of `rows` rows from the sums of one panel: 32 columns, or for
// swiglu 16 gates and their 16 ups.
void finish(const LinearArgs& a, int64_t outputs, int64_t row, int rows, int64_t col, int n,
            const float* sums) {
    const bool swiglu = a.act == Act::swiglu;
    float bias[PANEL] = {0}, residual[PANEL] = {0};
    if (a.bias) {
        read32(a.bias, a.bias_dtype, col, n, bias);
        if (swiglu) {
            float up[PANEL];
            read32(a.bias, a.bias_dtype, outputs + col, n, up);
            for (int j = 0; j < 16; j += W) store(bias + 16 + j, load(up + j));
        }
    }
    for (int r = 0; r < rows; ++r, sums += PANEL) {
        F v[PANEL / W];
        if (a.residual)
            read32(a.residual, a.residual_dtype, (row + r) * a.residual_row + col, n, residual);
        for (int j = 0; j < PANEL; j += W) v[j / W] = add(load(sums + j), load(bias + j));
        if (swiglu)
            for (int j = 0; j < 16 / W; ++j) v[j] = mul(silu(v[j]), v[j + 16 / W]);
        else
            for (F& each : v) each = activate(a.act, each);
        for (int j = 0; j < PANEL; j += W) v[j / W] = add(v[j / W], load(residual + j));
        const int64_t at = (row + r) * a.out_row + col;
        if (a.out_dtype == Dtype::f32) write32<float>(a.out, at, n, v);
        else if (a.out_dtype == Dtype::bf16) write32<bf16>(a.out, at, n, v);
        else write32<f16>(a.out, at, n, v);
    }
}

void pack_rows(void* context, int) {
    Plan& p = *(Plan*)context;
    const LinearArgs& a = p.a;
    for (int64_t t; (t = claim(p.to_pack)) < p.x.tiles;) {
        const int r = p.x.begin((int)t), n = p.x.begin((int)t + 1) - r;
        const int64_t at = (p.row0 + r) * a.x_row;
        float* to = p.packed + p.x.K * r;
        if (a.x_dtype == Dtype::f32) pack_tile((const float*)a.x + at, a.x_row, a.K, n, to);
        else if (a.x_dtype == Dtype::bf16) pack_tile((const bf16*)a.x + at, a.x_row, a.K, n, to);
        else pack_tile((const f16*)a.x + at, a.x_row, a.K, n, to);
    }
}

template <class T>
void run_tasks(void* context, int id) {
    Plan& p = *(Plan*)context;
    const LinearArgs& a = p.a;
    const int width = width_of(a.act);
    const int64_t panels = (p.outputs + width - 1) / width;
    const T* w = (const T*)a.w;
    float *scratch = p.scratch + id * p.scratch_each, *sums = scratch + KC * PANEL;
    const int64_t tasks = (int64_t)p.groups * p.splits;
    int64_t following = claim(p.work);
    for (int64_t task; (task = following) < tasks;) {
        following = claim(p.work);  // known early, so that its first weights can be fetched
        const int64_t first = task / p.splits * p.group;
        const int count = panels - first < p.group ? (int)(panels - first) : p.group;
        const int part = (int)(task % p.splits);
        const int t0 = p.x.tiles * part / p.splits, t1 = p.x.tiles * (part + 1) / p.splits;
        const int row = p.x.begin(t0), rows = p.x.begin(t1) - row;
        if (a.layout == Layout::rows) {
            const int64_t col = first * width, left = p.outputs - col;
            const int64_t upper =
                width == 16 ? p.outputs + col : col + 16;  // first row of lanes 16..31
            const int n = left < width ? (int)left : width, n_low = n < 16 ? n : 16;
            rows_gemm(p.x, t0, t1, w + col * a.w_row, n_low, w + upper * a.w_row,
                      width == 16 ? n : n - n_low, a.w_row, scratch, sums);
        } else {
            const T* at[MAX_UNITS];
            for (int i = 0; i < count; ++i) at[i] = w + (first + i) * a.K * PANEL;
            const T* after =
                following < tasks ? w + following / p.splits * p.group * a.K * PANEL : nullptr;
            panel_gemm(p.x, t0, t1, at, count, after, sums);
        }
        for (int i = 0; i < count; ++i) {
            const int64_t col = (first + i) * width, left = p.outputs - col;
            finish(a, p.outputs, p.row0 + row, rows, col, left < width ? (int)left : width,
                   sums + (int64_t)i * rows * PANEL);
        }
    }
}

}  // namespace

void linear(const LinearArgs& a) {
    const int width = width_of(a.act);
    const int64_t outputs = width == 16 ? a.N / 2 : a.N, panels = (outputs + width - 1) / width;
    const int64_t bytes = a.N * a.K * (a.w_dtype == Dtype::f32 ? 4 : 2);
    const bool serial = a.threads < 1 || (a.M * a.N * a.K < SERIAL_PRODUCTS && bytes < SERIAL_BYTES);
    const int threads = serial ? 1 : a.threads;
    const int block = (int)(a.M < ROW_BLOCK ? a.M : ROW_BLOCK);
    const bool in_place = block == 1 && a.x_dtype == Dtype::f32;  // one row is its own packed form

    int group = a.layout == Layout::rows ? 1 : panels_for(block);
    while (group > 1 && panels < (int64_t)group * threads * 4) group /= 2;
    const int64_t scratch_each = KC * PANEL + (int64_t)group * block * PANEL;
    const int64_t packed = in_place ? 0 : (int64_t)block * a.K;
    const int64_t aligned = (packed + 15) / 16 * 16;
    float* memory = (float*)workspace((size_t)(aligned + threads * scratch_each) * sizeof(float));

    for (int64_t row0 = 0; row0 < a.M; row0 += ROW_BLOCK) {
        const int rows = (int)(a.M - row0 < ROW_BLOCK ? a.M - row0 : ROW_BLOCK);
        const int tiles = tiles_for(rows);
        const int groups = (int)((panels + group - 1) / group);
        int splits = 1;
        while (splits * 2 <= tiles && groups * splits < threads * 4) splits *= 2;
        Plan plan{a,      {memory, a.K, rows, tiles}, row0,         memory, outputs, group, groups,
                  splits, memory + aligned,           scratch_each, {},     {}};
        if (in_place) plan.x.x = (const float*)a.x + row0 * a.x_row;
        else if ((int64_t)rows * a.K < PACK_IN_PARALLEL) pack_rows(&plan, 0);
        else parallel(threads, pack_rows, &plan);
        void (*run)(void*, int) = a.w_dtype == Dtype::f32    ? run_tasks<float>
                                  : a.w_dtype == Dtype::bf16 ? run_tasks<bf16>
                                                             : run_tasks<f16>;
        parallel((int64_t)groups * splits == 1 ? 1 : threads, run, &plan);
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
