// A GPU in plain C++: CUDA's built-ins, and the instructions of csrc/cuda/lib (MC_EMULATED leaves
// theirs out). Every thread of every block is a fiber; they switch at barriers, warp-wide instructions
// and ld_acquire. cp.async is as late as it may be: its target is poisoned at once, its source is read
// at once, and the bytes arrive in the wait_group that asks for them. Shared memory ends at a guard
// page. The clock runs only while every thread waits for another.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define MC_EMULATED
#include "lib/types.cuh"

static struct Index {
    unsigned x, y, z;
} blockIdx, threadIdx, gridDim;

namespace gpu {

struct Barrier {
    unsigned arrived = 0, round = 0;
};
struct Mbarrier {
    unsigned count, pending;
    long long bytes = 0;
    unsigned round = 0;  // its phases so far
    void complete() {
        if (pending || bytes) return;  // the phase is not complete
        pending = count;
        ++round;
    }
};
struct Warp {
    Barrier barrier;
    unsigned words[32][6];
};
struct Block {
    Barrier barrier;
    std::vector<Warp> warps;
    char *pages, *shared;
    size_t size;
};
struct Copy {
    void* to;
    char bytes[16];
    unsigned group;
};
struct Fiber {
    ucontext_t context;  // to begin in; then jumps, which make no system call
    jmp_buf at;
    bool begun = false;
    std::vector<char> stack;
    Index block, thread;
    Block* home;
    const unsigned* round = nullptr;  // waiting until this is not `seen`
    unsigned seen = 0, group = 0;
    std::deque<Copy> copies;
    bool done = false;
};

static Fiber* current = nullptr;
static jmp_buf scheduler;
static std::function<void()> kernel;
static bool progress;
static u64 clock_ns = 0;
static void (*on_cp_async)(void*) = nullptr;  // called with 16 bytes that a cp.async has brought
static bool (*on_deadlock)() = nullptr;       // called when no thread can go on: whether one can now
static void (*on_end)() = nullptr;            // called at a grid's end
// A model of L2: of what cp.async reads in [begin, end), how much misses a cache that holds the last
// `reach` reads of 16 bytes.
static struct {
    u64 begin = 0, end = 0, reach = 0, reads = 0, missed = 0;
    std::map<u64, u64> last;
    void read(u64 at) {
        if (at < begin || at >= end) return;
        u64& when = last[at];
        missed += !when || reads - when > reach;
        when = ++reads;
    }
} memory;
static int lost = 0;  // so many of the next atom_add_acq_rel() are dropped
static const u64* muted = nullptr;  // every st_release() to this word is dropped

[[noreturn]] static void fault(const char* what) {
    fprintf(stderr, "the emulated GPU, block %u thread %u: %s\n", current->block.x,
            current->thread.x, what);
    abort();
}

static void yield() {
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}
static void wait(Barrier& b, unsigned of) {
    const unsigned round = b.round;
    progress = true;
    if (++b.arrived == of) {
        b.arrived = 0;
        ++b.round;
        return;
    }
    current->round = &b.round;
    current->seen = round;
    yield();
}
static Warp& warp() { return current->home->warps[current->thread.x / 32]; }
static unsigned lane() { return current->thread.x % 32; }
static void sync_warp() { wait(warp().barrier, 32); }
static void sync_block() { wait(current->home->barrier, 32 * current->home->warps.size()); }

static void body() {
    kernel();
    current->done = progress = true;
    yield();
}

// Run `call` as every thread of a grid; threads is a multiple of 32.
static void run(unsigned blocks, unsigned threads, size_t shared, std::function<void()> call) {
    const size_t page = 4096, room = (shared + page - 1) / page * page;
    kernel = call;
    std::vector<Block> homes(blocks);
    std::vector<Fiber> fibers(blocks * threads);
    for (Block& b : homes) {
        b.warps.resize(threads / 32);
        b.size = room + page;
        b.pages = (char*)mmap(nullptr, b.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                              -1, 0);
        mprotect(b.pages + room, page, PROT_NONE);
        b.shared = b.pages + room - shared;
        memset(b.shared, 0xff, shared);
    }
    for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber& f = fibers[i];
        f.home = &homes[i / threads];
        f.block = {(unsigned)(i / threads), 0, 0};
        f.thread = {(unsigned)(i % threads), 0, 0};
        f.stack.resize(32 << 10);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        makecontext(&f.context, body, 0);
    }
    gridDim = {blocks, 1, 1};
    volatile unsigned random = 1, left = fibers.size();
    while (left) {
        random = random * 1664525 + 1013904223;  // each round begins with another thread
        const volatile size_t first = random % fibers.size();
        progress = false;
        for (volatile size_t n = 0; n < fibers.size(); ++n) {
            Fiber& f = fibers[(first + n) % fibers.size()];
            if (f.done || (f.round && *f.round == f.seen)) continue;
            f.round = nullptr;
            current = &f;
            blockIdx = f.block;
            threadIdx = f.thread;
            if (!_setjmp(scheduler)) {
                if (f.begun) _longjmp(f.at, 1);
                f.begun = true;
                setcontext(&f.context);
            }
            left -= current->done;
        }
        if (!progress && on_deadlock && on_deadlock()) continue;
        if (!progress) clock_ns += 20000000;
        if (clock_ns > 1000000000000) {
            fprintf(stderr, "the emulated GPU hangs\n");
            abort();
        }
    }
    if (on_end) on_end();
    for (Block& b : homes) munmap(b.pages, b.size);
}

static float widen_bf16(unsigned short bits) {
    const unsigned wide = (unsigned)bits << 16;
    float v;
    memcpy(&v, &wide, 4);
    return v;
}
static float widen_f16(unsigned short bits) {
    _Float16 v;
    memcpy(&v, &bits, 2);
    return v;
}
static unsigned short low(unsigned v) { return v; }
static unsigned short high(unsigned v) { return v >> 16; }

template <class Widen>
static void mma(float (&d)[4], const unsigned (&mine)[6], Widen widen) {
    Warp& w = warp();
    memcpy(w.words[lane()], mine, sizeof(mine));
    sync_warp();
    const unsigned g = lane() / 4, c = lane() % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned half = i / 2, column = 2 * c + i % 2;
        for (unsigned k = 0; k < 4; ++k)
            for (unsigned far = 0; far < 2; ++far) {
                const unsigned a = w.words[4 * g + k][2 * far + half];
                const unsigned b = w.words[4 * column + k][4 + far];
                d[i] += widen(low(a)) * widen(low(b)) + widen(high(a)) * widen(high(b));
            }
    }
    sync_warp();
}

static Mbarrier& mbarrier(u64* b);  // of the emulator that includes this

}  // namespace gpu

static float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static float __fdividef(float a, float b) { return a / b; }
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static void __syncthreads() { gpu::sync_block(); }
static void __syncwarp() { gpu::sync_warp(); }
static float __shfl_xor_sync(unsigned, float v, unsigned mask) {
    memcpy(&gpu::warp().words[gpu::lane()][0], &v, 4);
    gpu::sync_warp();
    memcpy(&v, &gpu::warp().words[gpu::lane() ^ mask][0], 4);
    gpu::sync_warp();
    return v;
}
static unsigned __ballot_sync(unsigned, bool v) {
    gpu::warp().words[gpu::lane()][0] = v;
    gpu::sync_warp();
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= gpu::warp().words[i][0] << i;
    gpu::sync_warp();
    return all;
}
static int __popc(unsigned v) { return __builtin_popcount(v); }
static unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const u64 both = (u64)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i)
        r |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return r;
}

static float cvt_f32_f16(unsigned short bits) { return gpu::widen_f16(bits); }
static unsigned short cvt_f16_f32(float v) {
    const _Float16 r = v;
    unsigned short bits;
    memcpy(&bits, &r, 2);
    return bits;
}
static unsigned short cvt_bf16_f32(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    if (v != v) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned fma_f16x2(unsigned a, unsigned b, unsigned c) {
    using namespace gpu;
    return cvt_f16_f32(widen_f16(low(a)) * widen_f16(low(b)) + widen_f16(low(c))) |
           (unsigned)cvt_f16_f32(widen_f16(high(a)) * widen_f16(high(b)) + widen_f16(high(c))) << 16;
}
static unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
    using namespace gpu;
    return cvt_bf16_f32(widen_bf16(low(a)) * widen_bf16(low(b)) + widen_bf16(low(c))) |
           (unsigned)cvt_bf16_f32(widen_bf16(high(a)) * widen_bf16(high(b)) + widen_bf16(high(c))) << 16;
}
template <class X>
static void mma_m16n8k16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                         unsigned b0, unsigned b1) {
    gpu::mma(d, {a0, a1, a2, a3, b0, b1}, is_same<X, bf16> ? gpu::widen_bf16 : gpu::widen_f16);
}

static void ldmatrix_x4_trans(unsigned (&to)[4], const void* row) {
    if ((u64)row % 16) gpu::fault("ldmatrix: a row is not aligned");
    memcpy(&gpu::warp().words[gpu::lane()][0], &row, 8);
    gpu::sync_warp();
    for (unsigned i = 0; i < 4; ++i) {
        unsigned short pair[2];
        for (unsigned e = 0; e < 2; ++e) {
            const unsigned short* from;
            memcpy(&from, &gpu::warp().words[8 * i + gpu::lane() % 4 * 2 + e][0], 8);
            pair[e] = from[gpu::lane() / 4];
        }
        to[i] = pair[0] | (unsigned)pair[1] << 16;
    }
    gpu::sync_warp();
}
static void cp_async(void* shared, const void* global, int bytes) {
    gpu::Copy copy{shared, {}, gpu::current->group};
    if ((u64)shared % 16 || (u64)global % 16) gpu::fault("cp.async: an address is not aligned");
    memcpy(copy.bytes, global, bytes);
    if (bytes) gpu::memory.read((u64)global);
    memset(shared, 0xff, 16);
    gpu::current->copies.push_back(copy);
}
static void cp_async_commit_group() { ++gpu::current->group; }
template <int N>
static void cp_async_wait_group() {
    auto& copies = gpu::current->copies;
    while (!copies.empty() && copies.front().group + N < gpu::current->group) {
        memcpy(copies.front().to, copies.front().bytes, 16);
        if (gpu::on_cp_async) gpu::on_cp_async(copies.front().to);
        copies.pop_front();
    }
}
static char* shared_memory() { return gpu::current->home->shared; }
static u64 atom_add_acq_rel(u64* p, u64 v) {
    const u64 old = *p;
    if (gpu::lost > 0)
        --gpu::lost;
    else
        *p += v;
    gpu::progress = true;
    return old;
}
static u64 ld_acquire(const u64* p) {
    gpu::yield();
    return *p;
}
static void st_release(u64* p, u64 v) {
    if (p != gpu::muted) *p = v;
}
static u64 globaltimer_ns() { return gpu::clock_ns; }

static void mbarrier_arrive(u64* b) {
    gpu::Mbarrier& c = gpu::mbarrier(b);
    if (c.pending == 0) gpu::fault("an arrival too many");
    --c.pending;
    c.complete();
    gpu::progress = true;
}
static void mbarrier_arrive_expect_tx(u64* b, unsigned bytes) {
    gpu::mbarrier(b).bytes += bytes;
    mbarrier_arrive(b);
}
