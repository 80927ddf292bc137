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
void* workspace(size_t bytes);

struct Counter {
    int64_t next;
};
// Internal linkage and always inlined: no copy of it may be shared between ISA units.
static inline __attribute__((always_inline)) int64_t claim(Counter& c) {
    return __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED);
}

const char* thread_pool();  // "openmp" or "std::thread"

}  // namespace mingcore
