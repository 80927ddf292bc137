// route_topk: the K largest logits of each row, best first, ties to the lower id, and their softmax
// over all E, in float32. NaN counts as largest, as PyTorch sorts it.
//
// Selection, not sorting: logits become order-preserving integers, and K passes of a vector maximum
// over at most a few hundred of them cost less than a sort, and find the first of equals by
// themselves. Cost: K E compares and E exponentials a row.
#include "cpu/routing/route_topk.h"
#include "cpu/lib/convert.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd_int.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 14;  // logits under which waking threads costs more

struct Plan {
    const RouteTopkArgs& a;
    Counter work;
};

MC_INLINE int32_t ordered(float x) {  // an order-preserving integer
    if (x != x) return INT32_MAX;
    int32_t i;
    memcpy(&i, &x, 4);
    return i < 0 ? INT32_MIN - i : i;  // -0 is INT32_MIN, so 0
}

template <class T>
void row(const RouteTopkArgs& a, int64_t t, float* x, int32_t* keys) {
    const T* logits = (const T*)a.logits + t * a.row;
    const int64_t padded = (a.E + W - 1) / W * W;
    if (a.column == 1)
        for (int64_t e = 0; e < a.E; e += W) {
            const int n = a.E - e < W ? (int)(a.E - e) : W;
            store(x + e, load_part(logits + e, n));
        }
    else
        for (int64_t e = 0; e < a.E; ++e) x[e] = load_one(logits + e * a.column);
    for (int64_t e = 0; e < a.E; ++e) keys[e] = ordered(x[e]);
    for (int64_t e = a.E; e < padded; ++e) x[e] = -__builtin_inff(), keys[e] = INT32_MIN;

    int32_t* ids = a.ids + t * a.K;
    float* weights = a.weights + t * a.K;
    for (int64_t k = 0; k < a.K; ++k) {
        I best = load_int(keys);
        for (int64_t e = W; e < padded; e += W) best = max(best, load_int(keys + e));
        int32_t lanes[W], top = INT32_MIN;
        store_int(lanes, best);
        for (int32_t lane : lanes) top = lane > top ? lane : top;
        int64_t e = 0;
        while (keys[e] != top) ++e;
        ids[k] = (int32_t)e;
        keys[e] = INT32_MIN;  // less than any logit's
    }
    const F largest = set1(x[ids[0]]);
    F sum = zero();
    for (int64_t e = 0; e < padded; e += W) {
        const F y = exp(sub(load(x + e), largest));
        sum = add(sum, y);
        store(x + e, y);
    }
    const float all = sum_lanes(sum);
    float chosen = 0;
    for (int64_t k = 0; k < a.K; ++k) chosen += weights[k] = x[ids[k]] / all;
    if (a.renormalize && a.K > 1)
        for (int64_t k = 0; k < a.K; ++k) weights[k] /= chosen;
}

template <class T>
void run(void* context, int) {
    Plan& plan = *(Plan*)context;
    const RouteTopkArgs& a = plan.a;
    const int64_t padded = (a.E + W - 1) / W * W;
    float* x = (float*)workspace((size_t)padded * 8, 1);
    for (int64_t t; (t = claim(plan.work)) < a.T;) row<T>(a, t, x, (int32_t*)(x + padded));
}

}  // namespace

void route_topk(const RouteTopkArgs& a) {
    Plan plan{a, {}};
    parallel(a.T * a.E < SERIAL ? 1 : a.threads,
             a.dtype == Dtype::f32    ? run<float>
             : a.dtype == Dtype::bf16 ? run<bf16>
                                      : run<f16>,
             &plan);
}

}  // namespace MC_ISA
}  // namespace mingcore
