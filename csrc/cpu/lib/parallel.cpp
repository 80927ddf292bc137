#include "cpu/lib/parallel.h"

#include <dlfcn.h>
#include <sched.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace mingcore {
namespace {

struct Region {
    void (*fn)(void*, int);
    void* context;
    int threads;
    Counter ids;
};

void enter(void* data) {
    auto& region = *static_cast<Region*>(data);
    const int64_t id = claim(region.ids);
    if (id < region.threads) region.fn(region.context, static_cast<int>(id));
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_gomp() {
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// GOMP_parallel of the OpenMP runtime in the process; looked up at every region until found, as
// PyTorch may be imported after this module.
GompParallel gomp() {
    static GompParallel found = nullptr;
    GompParallel f = __atomic_load_n(&found, __ATOMIC_ACQUIRE);
    if (!f && (f = find_gomp())) __atomic_store_n(&found, f, __ATOMIC_RELEASE);
    return f;
}

// A pool of std::thread, used only where no OpenMP runtime is loaded. One region at a time; workers
// sleep in between.
class Pool {
public:
    void run(Region& region) {
        std::lock_guard<std::mutex> one(region_lock_);
        {
            std::lock_guard<std::mutex> lock(lock_);
            while (static_cast<int>(workers_.size()) < region.threads - 1)
                workers_.emplace_back([this, seen = epoch_] { work(seen); });
            region_ = &region;
            pending_ = static_cast<int>(workers_.size());
            ++epoch_;
        }
        wake_.notify_all();
        enter(&region);
        std::unique_lock<std::mutex> lock(lock_);
        done_.wait(lock, [this] { return pending_ == 0; });
    }

private:
    void work(uint64_t seen) {
        std::unique_lock<std::mutex> lock(lock_);
        for (;;) {
            wake_.wait(lock, [&] { return epoch_ != seen; });
            seen = epoch_;
            Region* region = region_;
            lock.unlock();
            enter(region);
            lock.lock();
            if (--pending_ == 0) done_.notify_one();
        }
    }

    std::mutex region_lock_, lock_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Region* region_ = nullptr;
    int pending_ = 0;
    uint64_t epoch_ = 0;
};

struct Scratch {
    void* data = nullptr;
    size_t bytes = 0;
    ~Scratch() { std::free(data); }
};

}  // namespace

void parallel(int threads, void (*fn)(void*, int), void* context) {
    if (threads <= 1) return fn(context, 0);
    Region region{fn, context, threads, {}};
    if (GompParallel f = gomp()) return f(enter, &region, static_cast<unsigned>(threads), 0);
    static Pool* pool = new Pool;  // never destroyed: its workers outlive static destructors
    pool->run(region);
}

void* workspace(size_t bytes, int slot) {
    static thread_local Scratch scratches[2];
    Scratch& scratch = scratches[slot];
    if (scratch.bytes < bytes) {
        std::free(scratch.data);
        scratch.bytes = 0;
        const size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        scratch.data = std::aligned_alloc(4096, rounded);
        if (!scratch.data) throw std::bad_alloc();
        scratch.bytes = rounded;
    }
    return scratch.data;
}

static void back_off(int spins) {  // spins some tens of microseconds, the length of a usual task
    if (spins >= 2000) sched_yield();
#if defined(MC_X86)
    else __builtin_ia32_pause();
#endif
}

void spin_until_zero(const Counter& left) {
    for (int i = 0; !finished(left); ++i) back_off(i);
}

void wait_until(const Counter& counter, int64_t min_value) {
    for (int i = 0; __atomic_load_n(&counter.next, __ATOMIC_ACQUIRE) < min_value; ++i) back_off(i);
}

void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, from = (reinterpret_cast<uintptr_t>(data) + page - 1) / page;
    const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + bytes) / page;
    if (from < to) madvise(reinterpret_cast<void*>(from * page), (to - from) * page, MADV_HUGEPAGE);
#endif
}

const char* thread_pool() { return gomp() ? "openmp" : "std::thread"; }

}  // namespace mingcore
