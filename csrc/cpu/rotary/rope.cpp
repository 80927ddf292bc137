// Rotary embedding, rope and qkv_rope: the elements (p, q) of a head become (p cos - q sin, q cos +
// p sin), in float32. p and q are D/2 apart, or neighbours when interleaved; the other heads are
// copied.
//
// Cost: every element read once and written once, 3 flops. Slices of a wider tensor are read where
// they are. Loop order: the angles of four vectors stay in registers while these elements of all
// heads pass; with heads of 64 floats that is sequential access. Measured (processor not noted),
// float32, interleaved, [2, 11, 16, 64]: 1.7 us from cache, 6.3 us from memory. One vector of all
// heads at a time jumps from line to line: 2.1 and 12.6. Head by head, a head's angles in L1: 3.0
// and 7.2.
#include <cstring>

#include "cpu/lib/convert.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd.h"
#include "cpu/rotary/rope.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 18;  // elements under which waking threads costs more

struct Plan {
    const RopeArgs& a;
    int64_t tokens;  // of a task
    Counter work;
};

// Elements i.. of every head, K vectors of them (n of one vector where K is 1), with their angles
// in registers.
template <int K, class T>
MC_INLINE void halves_at(const T* x, int64_t x_head, T* out, int64_t out_head, int64_t heads,
                         int64_t half, const float* cos, const float* sin, int n = W) {
    F c[K], s[K];
    for (int k = 0; k < K; ++k) c[k] = load_part(cos + k * W, n), s[k] = load_part(sin + k * W, n);
    for (int64_t h = 0; h < heads; ++h) {
        const T* p = x + h * x_head;
        T* o = out + h * out_head;
        for (int k = 0; k < K; ++k) {
            const F a = load_part(p + k * W, n), b = load_part(p + half + k * W, n);
            store_part(o + k * W, sub(mul(a, c[k]), mul(b, s[k])), n);
            store_part(o + half + k * W, fma(b, c[k], mul(a, s[k])), n);
        }
    }
}

template <class T>
MC_INLINE void rotate_halves(const T* x, int64_t x_head, T* out, int64_t out_head, int64_t heads,
                             int64_t D, const float* cos, const float* sin) {
    const int64_t half = D / 2;
    int64_t i = 0;
    for (; i + 4 * W <= half; i += 4 * W)
        halves_at<4>(x + i, x_head, out + i, out_head, heads, half, cos + i, sin + i);
    for (; i + 2 * W <= half; i += 2 * W)
        halves_at<2>(x + i, x_head, out + i, out_head, heads, half, cos + i, sin + i);
    for (; i < half; i += W)
        halves_at<1>(x + i, x_head, out + i, out_head, heads, half, cos + i, sin + i,
                     half - i < W ? (int)(half - i) : W);
}

template <int K, class T>
MC_INLINE void interleaved_at(const T* x, int64_t x_head, T* out, int64_t out_head, int64_t heads,
                              const float* cos, const float* sin, int n = W) {
    float cs[K * W] = {0}, ss[K * W] = {0};  // each cosine twice; -sine, sine
    for (int j = 0; j < (K - 1) * W + n; j += 2) {
        cs[j] = cs[j + 1] = cos[j / 2];
        ss[j + 1] = sin[j / 2];
        ss[j] = -ss[j + 1];
    }
    F c[K], s[K];
    for (int k = 0; k < K; ++k) c[k] = load(cs + k * W), s[k] = load(ss + k * W);
    for (int64_t h = 0; h < heads; ++h)
        for (int k = 0; k < K; ++k) {
            const F v = load_part(x + h * x_head + k * W, n);
            store_part(out + h * out_head + k * W, fma(v, c[k], mul(swap_neighbours(v), s[k])), n);
        }
}

template <class T>
MC_INLINE void rotate_interleaved(const T* x, int64_t x_head, T* out, int64_t out_head,
                                  int64_t heads, int64_t D, const float* cos, const float* sin) {
    int64_t i = 0;
    for (; i + 4 * W <= D; i += 4 * W)
        interleaved_at<4>(x + i, x_head, out + i, out_head, heads, cos + i / 2, sin + i / 2);
    for (; i < D; i += W)
        interleaved_at<1>(x + i, x_head, out + i, out_head, heads, cos + i / 2, sin + i / 2,
                          D - i < W ? (int)(D - i) : W);
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
                    rotate_interleaved(x, a.x.head, out, p.out.head, p.rotated, a.D, cos, sin);
                else rotate_halves(x, a.x.head, out, p.out.head, p.rotated, a.D, cos, sin);
                for (int64_t h = p.rotated; h < p.heads; ++h)
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
