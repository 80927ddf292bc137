// read_probe: read bandwidth, the 100 % of the benches: the fastest streaming read of bfloat16 that
// feeds FMAs. Cost: every byte read once, nothing written. It is what a memory-bound product does
// with its weights, without the product: two FMAs per 32-bit word, independent sums, tasks claimed
// in order.
//
// The best access pattern differs between machines and, where cores are shared, between minutes:
// one thread reads 1, 2, 4 or 8 streams at once, each with a software prefetch distance of `ahead`
// bytes (0: the hardware's prefetcher alone). roofline.py takes the best of all. With one stream
// and 4 KB only, the probe once read 48 GB/s where products reached 57 (processor not noted).
#include "cpu/probe/read_probe.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t TASK = 1 << 18;  // elements: large enough that claiming one costs nothing

struct Plan {
    const bf16* x;
    int64_t n, ahead;
    uint32_t check;
    Counter work;
};

template <int STREAMS>
void run(void* context, int) {
    constexpr int UNROLL = STREAMS >= 4 ? 1 : 4 / STREAMS;
    constexpr int64_t STEP = 2 * W * UNROLL;
    Plan& p = *(Plan*)context;
    const F scale = set1(0.5f);
    F sum[STREAMS][2 * UNROLL];
    for (auto& of : sum)
        for (F& s : of) s = zero();
    for (int64_t task; (task = claim(p.work)) * TASK < p.n;) {
        const bf16* x = p.x + task * TASK;
        const int64_t left = p.n - task * TASK, length = (left < TASK ? left : TASK) / STREAMS;
        for (int64_t i = 0; i + STEP <= length; i += STEP, x += STEP)
            for (int s = 0; s < STREAMS; ++s)
                for (int u = 0; u < UNROLL; ++u) {
                    F low, high;
                    const bf16* at = x + s * length + u * 2 * W;
                    if (p.ahead) prefetch((const char*)at + p.ahead);
                    load_halves(at, low, high);
                    sum[s][2 * u] = fma(low, scale, sum[s][2 * u]);
                    sum[s][2 * u + 1] = fma(high, scale, sum[s][2 * u + 1]);
                }
    }
    float lanes[W];
    F all = zero();
    for (auto& of : sum)
        for (F& s : of) all = add(all, s);
    store(lanes, all);
    uint32_t bits = 0, lane;
    for (float v : lanes) {
        memcpy(&lane, &v, 4);
        bits ^= lane;
    }
    __atomic_fetch_xor(&p.check, bits, __ATOMIC_RELAXED);
}

}  // namespace

uint32_t read_probe(const ReadProbeArgs& a) {
    Plan plan{(const bf16*)a.data, a.bytes / 2, a.ahead, 0, {}};
    void (*of)(void*, int) = a.streams >= 8   ? run<8>
                             : a.streams >= 4 ? run<4>
                             : a.streams >= 2 ? run<2>
                                              : run<1>;
    parallel(a.threads, of, &plan);
    return plan.check;
}

}  // namespace MC_ISA
}  // namespace mingcore
