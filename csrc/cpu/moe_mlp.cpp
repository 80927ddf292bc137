// moe_mlp: out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t]), in one call.
//
// Cost: the weights of every expert that some token chose are read once per chunk of tokens,
// 3 H I elements each, 6 H I flops per chosen row. Sorting, gathering, both products, SwiGLU, the
// weighted sum and the shared expert run in one parallel region on scratch that is kept between
// calls. Threads claim pieces of experts in memory order (see moe_plan.h) and never meet: a piece
// of `down` waits for its own expert's hidden rows, and whoever brings the last result of 32 output
// columns adds up those columns, slot by slot and the shared expert last. So the order of every sum
// is fixed, and bits do not depend on threads, on chunks or on the batch. All in float32.
#include "moe_plan.h"
#include "vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

// Below both, one thread is done before a second one is awake.
constexpr int64_t SERIAL_PRODUCTS = 1 << 18, SERIAL_BYTES = 1 << 18;

template <class X>
void pack_row(const X* x, int64_t H, float* to) {
    int64_t k = 0;
    for (; k + W <= H; k += W) store(to + k, load(x + k));
    if (k < H) storen(to + k, loadn(x + k, (int)(H - k)), (int)(H - k));
}

// Rows of x, wherever they are, as one tile [H, n] (see Rows).
template <class X>
void gather_tile(const X* x, int64_t x_row, const int32_t* token, int n, int64_t H, float* to) {
    if (n == 1) return pack_row(x + token[0] * x_row, H, to);
    for (int r0 = 0; r0 < n; r0 += W) {
        const int rn = n - r0 < W ? n - r0 : W;
        for (int64_t k = 0; k < H; k += W) {
            const int kn = (int)least(H - k, W);
            F v[W];
            for (int r = 0; r < W; ++r)
                v[r] = r < rn ? loadn(x + token[r0 + r] * x_row + k, kn) : zero();
            transpose(v);
            for (int i = 0; i < kn; ++i) storen(to + (k + i) * n + r0, v[i], rn);
        }
    }
}

void gather_tile(const Plan& p, const int32_t* token, int n, float* to) {
    const MoeArgs& a = *p.a;
    const int64_t at = p.t0 * a.x_row;
    if (a.x_dtype == Dtype::f32) gather_tile((const float*)a.x + at, a.x_row, token, n, a.H, to);
    else if (a.x_dtype == Dtype::bf16) gather_tile((const bf16*)a.x + at, a.x_row, token, n, a.H, to);
    else gather_tile((const f16*)a.x + at, a.x_row, token, n, a.H, to);
}

void pack(Plan& p, Segment& s, const Item& item) {
    const Rows x = s.x(p.a->H);
    for (int t = item.first; t < item.first + item.count; ++t) {
        const int r = x.begin(t);
        gather_tile(p, p.token + s.first + r, x.begin(t + 1) - r, s.input + p.a->H * r);
    }
    finish(s.to_pack, item.count);
}

// Sums of gate_up, 16 gates and their 16 ups a row, to columns [col, col + n) of packed hidden rows.
void gate(const Segment& s, int64_t col, int n, const float* sums) {
    const Rows h = s.h();
    F scale[PANEL / W];
    for (int j = 0; j < 16 / W; ++j) {
        const int m = n - j * W < W ? n - j * W : W;
        const bool any = s.gate_up_scale && m > 0;
        scale[j] = any ? loadn(s.gate_up_scale + col + j * W, m) : set1(1);
        scale[j + 16 / W] = any ? loadn(s.gate_up_scale + s.width + col + j * W, m) : set1(1);
    }
    for (int t = 0; t < h.tiles; ++t) {
        const int r0 = h.begin(t), rows = h.begin(t + 1) - r0;
        float* to = s.hidden + s.width * r0 + col * rows;
        for (int j = 0; j < n; j += W) {
            const int m = n - j < W ? n - j : W;
            for (int r = 0; r < rows; r += W) {
                const int rn = rows - r < W ? rows - r : W;
                F v[W];
                for (int i = 0; i < W; ++i) {
                    if (i >= rn) {
                        v[i] = zero();
                        continue;
                    }
                    const float* from = sums + (int64_t)(r0 + r + i) * PANEL + j;
                    const F g = mul(load(from), scale[j / W]);
                    v[i] = mul(silu(g), mul(load(from + 16), scale[(j + 16) / W]));
                }
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

// Sums of down to columns [col, col + n) of the segment's result rows.
void keep(const Segment& s, int64_t H, int64_t col, int n, const float* sums) {
    for (int j = 0; j < n; j += W) {
        const int m = n - j < W ? n - j : W;
        const F scale = s.down_scale ? loadn(s.down_scale + col + j, m) : set1(1);
        float* to = s.result + col + j;
        for (int r = 0; r < s.rows; ++r, to += H)
            storen(to, mul(load(sums + (int64_t)r * PANEL + j), scale), m);
    }
}

template <class O>
void add_up(const Plan& p, int64_t col, int n, O* out) {
    const MoeArgs& a = *p.a;
    const bool shared = p.positions > p.slots;
    for (int64_t t = 0; t < p.T; ++t) {
        const float* weights = a.weights + (p.t0 + t) * a.weights_row;
        const int32_t* place = p.place + t * a.K;
        for (int j = 0; j < n; j += W) {
            const int m = n - j < W ? n - j : W;
            const float* from = p.rows + col + j;
            F sum = zero();
            for (int64_t k = 0; k < a.K; ++k)
                sum = fma(set1(weights[k * a.weights_column]), loadn(from + place[k] * a.H, m), sum);
            if (shared) sum = add(sum, loadn(from + (p.slots + t) * a.H, m));
            storen(out + (p.t0 + t) * a.out_row + col + j, sum, m);
        }
    }
}

void add_up(const Plan& p, int64_t panel) {
    const MoeArgs& a = *p.a;
    const int64_t col = panel * PANEL;
    const int n = (int)least(a.H - col, PANEL);
    if (a.out_dtype == Dtype::f32) add_up(p, col, n, (float*)a.out);
    else if (a.out_dtype == Dtype::bf16) add_up(p, col, n, (bf16*)a.out);
    else add_up(p, col, n, (f16*)a.out);
}

// The weights of panel `first` on, or null where there is nothing to fetch ahead.
template <class T>
const T* panel_at(const Plan& p, const Item& item) {
    if (item.kind == Kind::pack || p.a->layout == Layout::rows) return nullptr;
    const Segment& s = p.segments[item.segment];
    if (item.kind == Kind::gate_up) return (const T*)s.gate_up + item.first * p.a->H * PANEL;
    return (const T*)s.down + item.first * s.width * PANEL;
}

// sums [count][rows][32] of panels first, first + 1, ... of either product.
template <class T>
void multiply(const Plan& p, const Segment& s, const Item& item, const T* after, float* memory) {
    const bool gates = item.kind == Kind::gate_up;
    const Rows x = gates ? s.x(p.a->H) : s.h();
    float* sums = memory + KC * PANEL;
    if (p.a->layout == Layout::rows) {
        const int64_t width = gates ? 16 : PANEL, col = item.first * width;
        const int n = (int)least((gates ? s.width : p.a->H) - col, width);
        const T* w = (const T*)(gates ? s.gate_up : s.down);
        const int64_t row = gates ? s.gate_up_row : s.down_row;
        const int64_t upper = gates ? s.width + col : col + 16;  // the row of column 16
        const int low = n < 16 ? n : 16;
        rows_gemm(x, 0, x.tiles, w + col * row, low, w + upper * row, gates ? n : n - low, row,
                  memory, sums);
        return;
    }
    const T *w = panel_at<T>(p, item), *at[MAX_UNITS];
    for (int i = 0; i < item.count; ++i) at[i] = w + i * x.K * PANEL;
    panel_gemm(x, 0, x.tiles, at, item.count, after, sums);
}

template <class T>
void run_item(Plan& p, const Item& item, const T* after, float* memory) {
    Segment& s = p.segments[item.segment];
    if (item.kind == Kind::pack) return pack(p, s, item);
    wait_for(item.kind == Kind::gate_up ? s.to_pack : s.to_gate);
    multiply(p, s, item, after, memory);
    const float* sums = memory + KC * PANEL;
    for (int i = 0; i < item.count; ++i, sums += (int64_t)s.rows * PANEL) {
        const int64_t panel = item.first + i;
        if (item.kind == Kind::gate_up)
            gate(s, panel * 16, (int)least(s.width - panel * 16, 16), sums);
        else
            keep(s, p.a->H, panel * PANEL, (int)least(p.a->H - panel * PANEL, PANEL), sums);
    }
    if (item.kind == Kind::gate_up) {
        finish(s.to_gate, item.count);
        return;
    }
    for (int64_t panel = item.first; panel < item.first + item.count; ++panel)
        if (finish(p.to_add[panel])) add_up(p, panel);
}

// Items are claimed one ahead, so that the next one's first weights can be fetched; but not near
// the end, where a thread must not hold work that another one could do.
template <class T>
void run_items(void* context, int id) {
    Plan& p = *(Plan*)context;
    float* memory = p.sums + id * SUMS;
    const int64_t near_end = p.item_count - 4 * p.threads;
    int64_t item = claim(p.work);
    while (item < p.item_count) {
        const bool ahead = item < near_end;
        int64_t next = ahead ? claim(p.work) : p.item_count;
        const T* after = next < p.item_count ? panel_at<T>(p, p.items[next]) : nullptr;
        run_item<T>(p, p.items[item], after, memory);
        item = ahead ? next : claim(p.work);
    }
}

int64_t tokens_per_chunk(const MoeArgs& a) {
    const int64_t shared = a.shared_gate_up.data ? a.H + a.shared_I : 0;
    const int64_t most = CHUNK_FLOATS / (a.K * (a.H + a.I) + shared + 1) + 1;
    return up(a.T, up(a.T, most));  // chunks of one size
}

bool is_small(const MoeArgs& a, int64_t element) {
    const int64_t shared = a.shared_gate_up.data ? a.shared_I : 0;
    const int64_t products = 3 * a.H * a.T * (a.K * a.I + shared);
    const int64_t weights = 3 * a.H * (least(a.T * a.K, a.E) * a.I + shared);
    return products < SERIAL_PRODUCTS && weights * element < SERIAL_BYTES;
}

}  // namespace

int64_t moe_mlp(const MoeArgs& a) {
    const int64_t bad = first_bad_slot(a);
    if (bad >= 0 || a.T == 0) return bad;
    const int64_t element = a.w_dtype == Dtype::f32 ? 4 : 2, chunk = tokens_per_chunk(a);
    for (int64_t t0 = 0; t0 < a.T; t0 += chunk) {
        Plan p{};
        p.a = &a;
        p.t0 = t0, p.T = least(a.T - t0, chunk);
        p.slots = p.T * a.K, p.positions = p.slots + (a.shared_gate_up.data ? p.T : 0);
        p.element = element;
        p.threads = is_small(a, element) ? 1 : a.threads;
        lay_out(p, (char*)workspace(lay_out(p, nullptr)));
        make_plan(p);
        if (p.T == 1) {
            const int32_t first = 0;
            gather_tile(p, &first, 1, p.one);
        }
        if (p.segment_count == 0)  // no expert at all: sums of nothing
            for (int64_t panel = 0; panel < up(a.H, PANEL); ++panel) add_up(p, panel);
        void (*run)(void*, int) = a.w_dtype == Dtype::f32    ? run_items<float>
                                  : a.w_dtype == Dtype::bf16 ? run_items<bf16>
                                                             : run_items<f16>;
        parallel(p.threads, run, &p);
    }
    return -1;
}

}  // namespace MC_ISA
}  // namespace mingcore
