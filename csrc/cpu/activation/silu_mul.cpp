// silu_mul: out[M, I] = silu(gate_up[M, :I]) * gate_up[M, I:], in float32 inside.
// Cost: 3 M I elements moved once, one exp each. A task is a block of columns of a row.
#include "cpu/activation/silu_mul.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/vmath.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t BLOCK = 1024;      // columns of a task
constexpr int64_t SERIAL = 1 << 13;  // elements under which waking threads costs more

struct Plan {
    const SiluMulArgs& a;
    int64_t blocks;
    Counter work;
};

template <class T>
void run(void* context, int) {
    Plan& p = *(Plan*)context;
    const SiluMulArgs& a = p.a;
    for (int64_t task; (task = claim(p.work)) < a.M * p.blocks;) {
        const int64_t row = task / p.blocks, from = task % p.blocks * BLOCK;
        const int64_t to = a.I - from < BLOCK ? a.I : from + BLOCK;
        const T* gate = (const T*)a.gate_up + row * a.gate_up_row;
        const T* up = gate + a.I;
        T* out = (T*)a.out + row * a.out_row;
        int64_t i = from;
        for (; i + W <= to; i += W) store(out + i, mul(silu(load(gate + i)), load(up + i)));
        if (const int n = (int)(to - i))
            storen(out + i, mul(silu(loadn(gate + i, n)), loadn(up + i, n)), n);
    }
}

}  // namespace

void silu_mul(const SiluMulArgs& a) {
    Plan plan{a, (a.I + BLOCK - 1) / BLOCK, {}};
    parallel(a.M * a.I < SERIAL ? 1 : a.threads,
             a.dtype == Dtype::f32    ? run<float>
             : a.dtype == Dtype::bf16 ? run<bf16>
                                      : run<f16>,
             &plan);
}

}  // namespace MC_ISA
}  // namespace mingcore
