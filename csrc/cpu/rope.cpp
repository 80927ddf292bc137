// rope and qkv_rope: pairs (p, q) of a head become (p cos - q sin, q cos + p sin), in float32.
// Pairs are D/2 apart, or neighbours when interleaved; heads that are not turned are copied.
//
// Cost: every element read once and written once, 3 flops. Slices of a wider tensor are read where
// they are. Angles are read once per token: they are the outer loop, its heads the inner one.
#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 18;  // elements under which waking threads costs more

struct Plan {
    const RopeArgs& a;
    int64_t tokens;  // of a task
    Counter work;
};

template <class T>
MC_INLINE F read(const T* p, int n) {
    return n == W ? load(p) : loadn(p, n);
}
template <class T>
MC_INLINE void write(T* p, F v, int n) {
    if (n == W) store(p, v);
    else storen(p, v, n);
}

template <class T>
MC_INLINE void turn_halves(const T* x, int64_t x_head, T* out, int64_t out_head, int64_t heads,
                           int64_t D, const float* cos, const float* sin) {
    const int64_t half = D / 2;
    for (int64_t i = 0; i < half; i += W) {
        const int n = half - i < W ? (int)(half - i) : W;
        const F c = read(cos + i, n), s = read(sin + i, n);
        for (int64_t h = 0; h < heads; ++h) {
            const T* p = x + h * x_head + i;
            T* o = out + h * out_head + i;
            const F a = read(p, n), b = read(p + half, n);
            write(o, sub(mul(a, c), mul(b, s)), n);
            write(o + half, fma(b, c, mul(a, s)), n);
        }
    }
}

template <class T>
MC_INLINE void turn_pairs(const T* x, int64_t x_head, T* out, int64_t out_head, int64_t heads,
                          int64_t D, const float* cos, const float* sin) {
    for (int64_t i = 0; i < D; i += W) {
        const int n = D - i < W ? (int)(D - i) : W;
        float cs[W] = {0}, ss[W] = {0};  // each cosine twice; -sine, sine
        for (int j = 0; j < n; j += 2) {
            cs[j] = cs[j + 1] = cos[(i + j) / 2];
            ss[j + 1] = sin[(i + j) / 2];
            ss[j] = -ss[j + 1];
        }
        const F c = load(cs), s = load(ss);
        for (int64_t h = 0; h < heads; ++h) {
            const F v = read(x + h * x_head + i, n);
            write(out + h * out_head + i, fma(v, c, mul(swap_pairs(v), s)), n);
        }
    }
}

template <class T>
void run(void* context, int) {
    Plan& plan = *(Plan*)context;
    const RopeArgs& a = plan.a;
    const int64_t all = a.B * a.T;
    for (int64_t from; (from = claim(plan.work) * plan.tokens) < all;) {
        const int64_t to = from + plan.tokens < all ? from + plan.tokens : all;
        for (int64_t i = from; i < to; ++i) {
            const int64_t b = i / a.T, t = i % a.T;
            const T* x = (const T*)a.x.data + b * a.x.batch + t * a.x.token;
            const float* cos = a.cos + b * a.cos_batch + t * a.cos_token;
            const float* sin = a.sin + b * a.sin_batch + t * a.sin_token;
            for (int j = 0; j < a.parts; ++j) {
                const RopeArgs::Part& p = a.part[j];
                T* out = (T*)p.out.data + b * p.out.batch + t * p.out.token;
                if (a.interleaved)
                    turn_pairs(x, a.x.head, out, p.out.head, p.turned, a.D, cos, sin);
                else
                    turn_halves(x, a.x.head, out, p.out.head, p.turned, a.D, cos, sin);
                for (int64_t h = p.turned; h < p.heads; ++h)
                    memcpy(out + h * p.out.head, x + h * a.x.head, (size_t)a.D * sizeof(T));
                x += p.heads * a.x.head;
            }
        }
    }
}

}  // namespace

void rope(const RopeArgs& a) {
    int64_t heads = 0;
    for (int j = 0; j < a.parts; ++j) heads += a.part[j].heads;
    const int64_t elements = a.B * a.T * heads * a.D;
    if (!elements) return;
    Plan plan{a, (1 << 13) / (heads * a.D) + 1, {}};
    parallel(elements < SERIAL ? 1 : a.threads,
             a.dtype == Dtype::f32    ? run<float>
             : a.dtype == Dtype::bf16 ? run<bf16>
                                      : run<f16>,
             &plan);
}

}  // namespace MC_ISA
}  // namespace mingcore
