// Threads and scratch for the kernels. Declarations only: ISA units must not instantiate
// standard-library templates, so the bodies are in parallel.cpp at the baseline ISA.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mingcore {

// A parallel region: runs fn(context, id) on up to `threads` threads, id unique in [0, threads),
// and joins them. Fewer threads than asked for may come, so tasks are claimed from a Counter
// (dynamic scheduling), never divided by id. The threads are those of PyTorch's OpenMP pool when it
// is loaded: a second pool would compete with it for the cores.
void parallel(int threads, void (*fn)(void* context, int id), void* context);

// Thread-local scratch, page-aligned, reused between calls: valid until the next call on this
// thread with this slot. Two slots, so that a kernel that calls another keeps its own (slot 1).
// Throws std::bad_alloc.
void* workspace(size_t bytes, int slot = 0);

struct Counter {
    int64_t next;
};
// The next task, by atomic fetch-and-add. Internal linkage and always inlined: no copy of it may be
// shared between ISA units.
static inline __attribute__((always_inline)) int64_t claim(Counter& c) {
    return __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED);
}

// Dependencies between tasks of one region: a latch `left` counts the tasks that must be done
// first. count_down releases, finished acquires. Wait only for tasks that come earlier in the
// claimed order: a running thread has them then, so nobody waits for a thread that never came.
static inline __attribute__((always_inline)) bool count_down(Counter& left, int64_t n = 1) {
    return __atomic_sub_fetch(&left.next, n, __ATOMIC_ACQ_REL) == 0;  // true: that was the last
}
static inline __attribute__((always_inline)) bool finished(const Counter& left) {
    return __atomic_load_n(&left.next, __ATOMIC_ACQUIRE) <= 0;
}
void spin_until_zero(const Counter& left);  // spins (pause), then yields the core
static inline __attribute__((always_inline)) void wait_for(const Counter& left) {
    if (!finished(left)) spin_until_zero(left);
}
// Waits until the counter, which other threads increase with release, is at least `min_value`.
// Spins, then yields the core.
void wait_until(const Counter& counter, int64_t min_value);

// madvise(MADV_HUGEPAGE) on the whole 2 MB pages of this range; no effect where there is no such
// thing.
void ask_for_huge_pages(void* data, size_t bytes);

const char* thread_pool();  // "openmp" or "std::thread"

}  // namespace mingcore
