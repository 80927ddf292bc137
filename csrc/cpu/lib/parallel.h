// Threads and scratch for the kernels. Declarations only: ISA units must not instantiate
// standard-library templates, so the bodies are in parallel.cpp at the baseline ISA.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mingcore {

// Runs fn(context, id) on up to `threads` threads, id unique in [0, threads), and waits.
// Fewer threads than asked for may come, so the work is claimed from a Counter, never divided
// by id. The threads are PyTorch's own OpenMP pool when it is loaded: a second pool would
// fight it for the cores.
void parallel(int threads, void (*fn)(void* context, int id), void* context);

// Scratch of the calling thread, 64-byte aligned, kept and reused between calls: valid until the
// next call on this thread. Throws std::bad_alloc.
// There are two, so that a kernel that calls another keeps its own (slot 1).
void* workspace(size_t bytes, int slot = 0);

struct Counter {
    int64_t next;
};
// Internal linkage and always inlined: no copy of it may be shared between ISA units.
static inline __attribute__((always_inline)) int64_t claim(Counter& c) {
    return __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED);
}

// Work that depends on other work, inside one region: `left` counts what has to be done first. Wait
// only for what stands earlier in the claimed order: then some running thread has it in hand, and
// nobody waits for a thread that never came.
static inline __attribute__((always_inline)) bool finish(Counter& left, int64_t n = 1) {
    return __atomic_sub_fetch(&left.next, n, __ATOMIC_ACQ_REL) == 0;  // true: that was the last
}
static inline __attribute__((always_inline)) bool finished(const Counter& left) {
    return __atomic_load_n(&left.next, __ATOMIC_ACQUIRE) <= 0;
}
void wait_longer(const Counter& left);  // spins a while, then lets other threads have the core
static inline __attribute__((always_inline)) void wait_for(const Counter& left) {
    if (!finished(left)) wait_longer(left);
}
// Until the counter, which other threads increase with release, is `at_least` this much. Spins a
// while, then lets other threads have the core.
void wait_until(const Counter& counter, int64_t at_least);

// Asks for huge pages behind the whole ones in this range; nothing happens where there are none.
void ask_for_huge_pages(void* data, size_t bytes);

const char* thread_pool();  // "openmp" or "std::thread"

}  // namespace mingcore
