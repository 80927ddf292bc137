// flow_sample.cu on the CPU: emulated_gpu.h, continued with what bulk.cuh names and with what the
// kernel takes of hopper.cuh. Built by test_cuda_flow.py. A bulk copy arrives at a random moment
// after it was issued, in random order; until then its target is poison. Its source is read when it
// arrives.
#include <map>
#include "emulated_gpu.h"

#define MC_HOPPER
#define MC_BULK
#define __grid_constant__

namespace gpu {

[[noreturn]] static void fault(const char* what) {
    fprintf(stderr, "the emulated GPU, block %u thread %u: %s\n", current->block.x,
            current->thread.x, what);
    abort();
}

struct Counted {  // a barrier of shared memory
    unsigned count, pending;
    long long bytes = 0;
    unsigned round = 0;  // its phases so far
    void look() {
        if (pending || bytes) return;
        pending = count;
        ++round;
    }
};
struct Bulk {  // on its way
    char* to;
    const char* from;
    unsigned bytes;
    Counted* barrier;
};
static std::map<u64*, Counted> barriers;
static std::map<Block*, Barrier> named;
static std::vector<Bulk> copies;
static unsigned random_state = 1, patience = 8;  // one copy arrives in so many looks
static long long looks = 0, arrived = 0;

static unsigned random() {
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8;
}
static void deliver() {
    if (copies.empty() || random() % patience) return;
    std::swap(copies[random() % copies.size()], copies.back());
    const Bulk copy = copies.back();
    copies.pop_back();
    memcpy(copy.to, copy.from, copy.bytes);
    copy.barrier->bytes -= copy.bytes;
    copy.barrier->look();
    progress = true;
    ++arrived;
}
static Counted& counted(u64* b) {
    auto found = barriers.find(b);
    if (found == barriers.end()) fault("this barrier was not initialised");
    return found->second;
}

}  // namespace gpu

static void barrier_init(u64* b, unsigned count) {
    if ((u64)b % 8) gpu::fault("a barrier is not aligned");
    gpu::barriers[b] = {count, count};
}
static void barrier_arrive(u64* b) {
    gpu::Counted& c = gpu::counted(b);
    if (c.pending == 0) gpu::fault("an arrival too many");
    --c.pending;
    c.look();
    gpu::progress = true;
}
static void barrier_expect(u64* b, unsigned bytes) {
    gpu::counted(b).bytes += bytes;
    barrier_arrive(b);
}
static bool barrier_done(u64* b, unsigned phase) {
    ++gpu::looks;
    gpu::deliver();
    gpu::yield();
    return gpu::counted(b).round % 2 != phase;
}
static void fence_async() {}
static void copy_bulk(void* shared, const void* global, unsigned bytes, u64* barrier) {
    if ((u64)shared % 16 || (u64)global % 16 || bytes % 16 || bytes == 0)
        gpu::fault("a bulk copy is not aligned, or empty");
    memset(shared, 0xff, bytes);
    gpu::copies.push_back({(char*)shared, (const char*)global, bytes, &gpu::counted(barrier)});
}
static void load_l2(const void* p, unsigned (&v)[4]) {
    if ((u64)p % 16) gpu::fault("a load is not aligned");
    memcpy(v, p, 16);
}
static float load_l2(const float* p) { return *p; }
static void tell_host(u64* p, u64 v) { *p = v; }
static void sync_some(int, int threads) { gpu::wait(gpu::named[gpu::current->home], threads); }
template <int N>
static void fewer_registers() {}
template <int N>
static void more_registers() {}
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
// Launch the kernel `name`; seed and patience: of the copies. muted: a word to which no store goes.
void emulated_flow(const char* name, unsigned blocks, size_t shared, const void* params,
                   unsigned seed, unsigned patience, const u64* muted) {
    Dl_info here;
    dladdr((const void*)&emulated_flow, &here);
    void* library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    const auto kernel = (void (*)(const flow::Params))dlsym(library, name);
    flow::Params p;
    memcpy(&p, params, sizeof(p));
    gpu::random_state = seed;
    gpu::patience = patience;
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
