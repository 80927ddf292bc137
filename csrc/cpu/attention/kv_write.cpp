// kv_write_: new keys and values into a ring buffer, cache[b, positions[b, t] mod S] = new[b, t],
// skipped where the position is negative or a newer token of the same call takes the slot. Cost:
// every byte read once and written once.
#include <cstring>

#include "cpu/attention/kv_write.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t SERIAL = 1 << 20;  // bytes under which waking threads costs more

struct Plan {
    const KvWriteArgs& a;
    Counter work;
};

static void copy(const KvWriteArgs& a, int i, int64_t b, int64_t t, int64_t slot) {
    const Heads &to = a.cache[i], &from = a.from[i];
    char* out = to.data + (b * to.batch + slot * to.token) * a.element;
    const char* x = from.data + (b * from.batch + t * from.token) * a.element;
    if (to.head == a.D && from.head == a.D) {
        memcpy(out, x, (size_t)(a.Hn * a.D * a.element));
        return;
    }
    for (int64_t h = 0; h < a.Hn; ++h)
        memcpy(out + h * to.head * a.element, x + h * from.head * a.element,
               (size_t)(a.D * a.element));
}

static void run(void* context, int) {
    Plan& plan = *(Plan*)context;
    const KvWriteArgs& a = plan.a;
    for (int64_t b; (b = claim(plan.work)) < a.B * 2;) {
        const int64_t* at = a.positions.data + b / 2 * a.positions.batch;
        int64_t last = -1;
        for (int64_t t = 0; t < a.T; ++t)
            if (at[t * a.positions.token] > last) last = at[t * a.positions.token];
        for (int64_t t = 0; t < a.T; ++t) {
            const int64_t position = at[t * a.positions.token];
            if (position >= 0 && position > last - a.S) copy(a, b % 2, b / 2, t, position % a.S);
        }
    }
}

}  // namespace

void kv_write(const KvWriteArgs& a) {
    Plan plan{a, {}};
    const int64_t bytes = 2 * a.B * a.T * a.Hn * a.D * a.element;
    parallel(bytes < SERIAL ? 1 : a.threads, run, &plan);
}

}  // namespace MC_ISA
}  // namespace mingcore
