// rms_norm and add_rms_norm: out = s / sqrt(mean(s^2) + eps) * weight, s = x or x + residual.
// layer_norm: out = (x - mean) / sqrt(var + eps) * weight + bias. All in float32, rows in L1.
//
// Cost: x (and residual) read once from memory, out (and sum) written once, 3 to 6 flops an
// element. Two-pass variance: the squares are of centred values, read again from L1, so nothing
// cancels.
#include "cpu/norm/norms.h"
#include "cpu/lib/convert.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 17;  // elements under which waking threads costs more
constexpr int64_t PIECE = 1 << 14;   // elements of a task

struct Plan {
    const NormArgs& a;
    int64_t rows;  // of a task
    Counter work;
};

// Sum over a row of x - centre, or of its square; four accumulators hide the latency of an
// addition.
template <bool SQUARE, class T>
MC_INLINE float total(const T* x, int64_t H, F centre) {
    F sum[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * W <= H; i += 4 * W)
        for (int j = 0; j < 4; ++j) {
            const F v = sub(load(x + i + j * W), centre);
            sum[j] = SQUARE ? fma(v, v, sum[j]) : add(sum[j], v);
        }
    for (; i + W <= H; i += W) {
        const F v = sub(load(x + i), centre);
        sum[0] = SQUARE ? fma(v, v, sum[0]) : add(sum[0], v);
    }
    float rest = 0;
    if (const int n = (int)(H - i)) {  // lane by lane: an absent lane would count as 0 - centre
        float lanes[W];
        store(lanes, sub(loadn(x + i, n), centre));
        for (int j = 0; j < n; ++j) rest += SQUARE ? lanes[j] * lanes[j] : lanes[j];
    }
    return sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3]))) + rest;
}

// out = (x - centre) * factor * weight + bias
template <class T>
MC_INLINE void scale(const NormArgs& a, const T* x, F centre, F factor, T* out) {
    for (int64_t i = 0; i < a.H; i += W) {
        const int n = a.H - i < W ? (int)(a.H - i) : W;
        F v = n == W ? load(x + i) : loadn(x + i, n);
        v = mul(mul(sub(v, centre), factor), load_part(a.weight, a.weight_dtype, i, n));
        if (a.bias) v = add(v, load_part(a.bias, a.bias_dtype, i, n));
        if (n == W) store(out + i, v);
        else storen(out + i, v, n);
    }
}

template <class T>
MC_INLINE void add_rows(const T* x, const T* y, int64_t H, T* out) {
    int64_t i = 0;
    for (; i + W <= H; i += W) store(out + i, add(load(x + i), load(y + i)));
    if (const int n = (int)(H - i)) storen(out + i, add(loadn(x + i, n), loadn(y + i, n)), n);
}

template <class T, bool CENTRED>
void run(void* context, int) {
    Plan& plan = *(Plan*)context;
    const NormArgs& a = plan.a;
    for (int64_t from; (from = claim(plan.work) * plan.rows) < a.M;) {
        const int64_t to = from + plan.rows < a.M ? from + plan.rows : a.M;
        for (int64_t m = from; m < to; ++m) {
            const T* x = (const T*)a.x + m * a.x_row;
            if (a.residual) {
                T* sum = (T*)a.sum + m * a.sum_row;
                add_rows(x, (const T*)a.residual + m * a.residual_row, a.H, sum);
                x = sum;
            }
            const float H = (float)a.H;
            const F centre = CENTRED ? set1(total<false>(x, a.H, zero()) / H) : zero();
            const float mean = total<true>(x, a.H, centre) / H;
            scale(a, x, centre, set1(1 / __builtin_sqrtf(mean + a.eps)), (T*)a.out + m * a.out_row);
        }
    }
}

template <bool CENTRED>
void norm(const NormArgs& a) {
    Plan plan{a, PIECE / a.H + 1, {}};
    parallel(a.M * a.H < SERIAL ? 1 : a.threads,
             a.dtype == Dtype::f32    ? run<float, CENTRED>
             : a.dtype == Dtype::bf16 ? run<bf16, CENTRED>
                                      : run<f16, CENTRED>,
             &plan);
}

}  // namespace

void rms_norm(const NormArgs& a) { norm<false>(a); }
void layer_norm(const NormArgs& a) { norm<true>(a); }

}  // namespace MC_ISA
}  // namespace mingcore
