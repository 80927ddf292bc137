// flow_sample.cu on the CPU: emulated_gpu.h, continued with bulk copies, mbarrier and what else the
// kernel takes. Built by emulated.py. A cp.async.bulk arrives at a random moment after it was
// issued, in random order; until then its target is poison. Its source is read when it arrives.
#include <map>
#include "emulated_gpu.h"

#define __grid_constant__

namespace gpu {

struct Bulk {  // in flight
    char* to;
    const char* from;
    unsigned bytes;
    Mbarrier* barrier;
};
static std::map<u64*, Mbarrier> barriers;
static std::map<Block*, Barrier> named;
static std::vector<Bulk> copies;
static unsigned random_state = 1, latency = 8;  // one copy arrives in so many polls
static long long polls = 0, arrived = 0;

static unsigned random() {
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8;
}
static void deliver() {
    if (copies.empty() || random() % latency) return;
    std::swap(copies[random() % copies.size()], copies.back());
    const Bulk copy = copies.back();
    copies.pop_back();
    memcpy(copy.to, copy.from, copy.bytes);
    copy.barrier->bytes -= copy.bytes;
    copy.barrier->complete();
    progress = true;
    ++arrived;
}
static Mbarrier& mbarrier(u64* b) {
    auto found = barriers.find(b);
    if (found == barriers.end()) fault("this barrier was not initialised");
    return found->second;
}

}  // namespace gpu

static void mbarrier_init(u64* b, unsigned count) {
    if ((u64)b % 8) gpu::fault("a barrier is not aligned");
    gpu::barriers[b] = {count, count};
}
static bool mbarrier_try_wait(u64* b, unsigned phase) {
    ++gpu::polls;
    gpu::deliver();
    gpu::yield();
    return gpu::mbarrier(b).round % 2 != phase;
}
static void fence_proxy_async() {}
static void cp_async_bulk(void* shared, const void* global, unsigned bytes, u64* barrier) {
    if ((u64)shared % 16 || (u64)global % 16 || bytes % 16 || bytes == 0)
        gpu::fault("a bulk copy is not aligned, or empty");
    memset(shared, 0xff, bytes);
    gpu::copies.push_back({(char*)shared, (const char*)global, bytes, &gpu::mbarrier(barrier)});
}
static void ld_cg(const void* p, unsigned (&v)[4]) {
    if ((u64)p % 16) gpu::fault("a load is not aligned");
    memcpy(v, p, 16);
}
static float ld_cg(const float* p) { return *p; }
static void st_release_sys(u64* p, u64 v) { *p = v; }
static void bar_sync(int, int threads) { gpu::wait(gpu::named[gpu::current->home], threads); }
template <int N>
static void setmaxnreg_dec() {}
template <int N>
static void setmaxnreg_inc() {}
static int __any_sync(unsigned, int v) {
    gpu::warp().words[gpu::lane()][0] = v;
    gpu::sync_warp();
    int any = 0;
    for (int i = 0; i < 32; ++i) any |= gpu::warp().words[i][0];
    gpu::sync_warp();
    return any != 0;
}

#include "flow/flow_sample.cu"

#include <dlfcn.h>

extern "C" {
// Launch the kernel `name`; seed and latency: of the copies. muted: a word to which no store goes.
void emulated_flow(const char* name, unsigned blocks, size_t shared, const void* params,
                   unsigned seed, unsigned latency, const u64* muted) {
    Dl_info here;
    dladdr((const void*)&emulated_flow, &here);
    void* library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    const auto kernel = (void (*)(const flow::Params))dlsym(library, name);
    flow::Params p;
    memcpy(&p, params, sizeof(p));
    gpu::random_state = seed;
    gpu::latency = latency;
    gpu::muted = muted;
    gpu::clock_ns = 0;
    gpu::run(blocks, flow::THREADS, shared, [=] { kernel(p); });
    if (!gpu::copies.empty()) {
        fprintf(stderr, "a block ended before its copies had arrived\n");
        abort();
    }
    gpu::barriers.clear();
    gpu::named.clear();
}
size_t emulated_params() { return sizeof(flow::Params); }
}
