// flow_step, Euler's step with classifier-free guidance: out = x + dt (v_c + g (v_c - v_u)) +
// noise_scale noise, per element of [B, P, C]. Cost: each operand read once, out written once;
// state and arithmetic are float32 whatever the velocity's type. Every operand has its own strides,
// so the velocity may stay a slice of the network's output. An absent operand costs nothing.
#include "cpu/flow/flow_step.h"
#include "cpu/lib/convert.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 14;  // elements under which waking threads costs more

struct Plan {
    const FlowStepArgs& a;
    Counter work;
};

MC_INLINE F read(const Float3& v, int64_t i, int n) { return load_part(v.data, v.dtype, i, n); }

void run(void* context, int) {
    Plan& plan = *(Plan*)context;
    const FlowStepArgs& a = plan.a;
    for (int64_t task; (task = claim(plan.work)) < a.B * a.P;) {
        const int64_t b = task / a.P, p = task % a.P;
        const F guidance = set1(a.guidance[b]), scale = set1(a.noise_scale[b]), dt = set1(a.dt);
        float* out = a.out + b * a.out_batch + p * a.out_row;
        for (int64_t c = 0; c < a.C; c += W) {
            const int n = a.C - c < W ? (int)(a.C - c) : W;
            F v = read(a.v_cond, b * a.v_cond.batch + p * a.v_cond.row + c, n);
            if (a.v_null.data)
                v = fma(guidance,
                        sub(v, read(a.v_null, b * a.v_null.batch + p * a.v_null.row + c, n)), v);
            F x = fma(dt, v, read(a.x, b * a.x.batch + p * a.x.row + c, n));
            if (a.noise.data)
                x = fma(scale, read(a.noise, b * a.noise.batch + p * a.noise.row + c, n), x);
            storen(out + c, x, n);
        }
    }
}

}  // namespace

void flow_step(const FlowStepArgs& a) {
    Plan plan{a, {}};
    parallel(a.B * a.P * a.C < SERIAL ? 1 : a.threads, run, &plan);
}

}  // namespace MC_ISA
}  // namespace mingcore
