// emulated_gpu.h, continued with mbarrier, TMA, wgmma and what else sm_90a adds. Copies and products
// are as late as they may be: a TMA box arrives when every thread waits, or never; wgmma reads its
// operands when it is issued and again in wait_group, and they must be the same. Accumulators are NaN
// in between. Descriptors and tensor maps are decoded, and addresses swizzled, as the hardware does.
#pragma once
#include <algorithm>
#include <map>
#include "emulated_gpu.h"

#include "lib/tma.cuh"

#define __grid_constant__

namespace gpu {

struct Box {  // in flight
    std::map<unsigned, std::vector<char>> rows;  // by shared address
    Block* home;
    Mbarrier* barrier;
    long long bytes;
};
struct Issued {  // a wgmma
    float* d;
    int n;
    u64 a, b;
    bool bf16;
    unsigned group;
    std::vector<float> sums;
    std::vector<unsigned short> operands;
};
struct Warpgroup {
    Barrier barrier, gather;
    std::vector<float> product;
    std::vector<unsigned short> operands;
    unsigned registers = 0;
};
struct Extra {  // of a block
    std::map<u64*, Mbarrier> barriers;
    std::map<unsigned, Warpgroup> groups;
    std::map<int, Barrier> named;
    std::map<unsigned, unsigned> unfenced;  // 16 bytes of cp.async, to its thread, without a fence
};
struct Threads {  // of a fiber
    std::deque<Issued> issued;
    std::map<float*, std::vector<float>> sums;  // of products in flight; the registers hold NaN
    unsigned group = 0;
    bool fenced = false;
};
static std::map<Block*, Extra> extras;
static std::map<Fiber*, Threads> threads;
static std::deque<Box> boxes;

static Extra& extra() { return extras[current->home]; }
static Warpgroup& group() { return extra().groups[current->thread.x / 128]; }

static unsigned address(const void* p) { return (const char*)p - current->home->pages; }

// The oldest box arrives: called when no thread can go on.
static bool deliver() {
    if (boxes.empty()) return false;
    Box box = boxes.front();
    boxes.pop_front();
    for (auto& [to, bytes] : box.rows) memcpy(box.home->pages + to, bytes.data(), bytes.size());
    box.barrier->bytes -= box.bytes;
    box.barrier->complete();
    return true;
}
static void end() {
    if (!boxes.empty()) fault("a box was never waited for");
    for (auto& [fiber, own] : threads)
        if (!own.issued.empty()) fault("a product was never waited for");
    extras.clear();
    threads.clear();
}

static void land(void* to) { extra().unfenced[address(to) / 16] = current->thread.x; }
static const bool hooked = (on_cp_async = land, on_deadlock = deliver, on_end = end, true);

static Mbarrier& mbarrier(u64* b) {
    auto found = extra().barriers.find(b);
    if (found == extra().barriers.end()) fault("this barrier was not initialised");
    return found->second;
}

// The 16 bits at an address, swizzled as bits 62 and 63 of a descriptor say.
static unsigned short element(unsigned at, u64 mode) {
    if (mode == 1) at ^= (at >> 7 & 7) << 4;
    auto late = extra().unfenced.find(at / 16);
    if (late != extra().unfenced.end()) fault("a product reads a copy that was not fenced");
    unsigned short v;
    memcpy(&v, current->home->pages + at, 2);
    return v;
}
// rows x 16 elements, K innermost
static void fetch(u64 descriptor, int rows, std::vector<unsigned short>& to) {
    const unsigned start = (descriptor & 0x3fff) << 4, mode = descriptor >> 62;
    const unsigned leading = (descriptor >> 16 & 0x3fff) << 4;
    const unsigned stride = (descriptor >> 32 & 0x3fff) << 4, base = descriptor >> 49 & 7;
    if (mode > 1 || base) fault("this descriptor is not emulated");
    for (int r = 0; r < rows; ++r)
        for (int k = 0; k < 16; ++k) {
            const unsigned block = start + r / 8 * stride;
            to.push_back(mode ? element(block + r % 8 * 128 + k * 2, 1)
                              : element(block + k / 8 * leading + r % 8 * 16 + k % 8 * 2, 0));
        }
}

static void wgmma(float* d, int n, u64 a, u64 b, bool is_bf16) {
    Warpgroup& g = group();
    Threads& own = threads[current];
    if (!own.fenced) fault("a product without wgmma_fence() before it");
    if (++g.gather.arrived == 1) {  // one thread computes it for all
        g.operands.clear();
        fetch(a, 64, g.operands);
        fetch(b, n, g.operands);
        g.product.assign(64 * n, 0.0f);
        const auto widen = [&](unsigned short v) { return is_bf16 ? widen_bf16(v) : widen_f16(v); };
        std::vector<float> wide(g.operands.size());
        for (size_t i = 0; i < wide.size(); ++i) wide[i] = widen(g.operands[i]);
        for (int r = 0; r < 64; ++r)
            for (int c = 0; c < n; ++c)
                for (int k = 0; k < 16; ++k)
                    g.product[r * n + c] += wide[r * 16 + k] * wide[(64 + c) * 16 + k];
    }
    if (g.gather.arrived == 128) g.gather.arrived = 0;
    Issued one{d, n, a, b, is_bf16, own.group, {}, {}};
    const unsigned t = current->thread.x % 128, row = t / 32 * 16 + t % 32 / 4, c = t % 4;
    if (own.sums.emplace(d, std::vector<float>(d, d + n / 2)).second)
        for (int i = 0; i < n / 2; ++i) d[i] = NAN;
    for (int i = 0; i < n / 2; ++i)
        one.sums.push_back(g.product[(row + i / 2 % 2 * 8) * n + i / 4 * 8 + 2 * c + i % 2]);
    if (t == 0) one.operands = g.operands;
    own.issued.push_back(one);
    wait(g.barrier, 128);
}

}  // namespace gpu

static unsigned shared_address(const void* p) { return gpu::address(p); }

static void mbarrier_init(u64* b, unsigned count) {
    if (gpu::address(b) % 8) gpu::fault("a barrier is not aligned");
    gpu::extra().barriers[b] = {count, count};
    memset(b, 0, 8);
}
static void mbarrier_wait(u64* b, unsigned phase) {
    gpu::Mbarrier& c = gpu::mbarrier(b);
    if (phase > 1) gpu::fault("phases are 0 and 1");
    while (c.round % 2 == phase) {  // that phase has not ended
        gpu::current->round = &c.round;
        gpu::current->seen = c.round;
        gpu::yield();
    }
    gpu::progress = true;
}

static void fence_proxy_async() {
    auto& unfenced = gpu::extra().unfenced;
    for (auto it = unfenced.begin(); it != unfenced.end();)
        it = it->second == gpu::current->thread.x ? unfenced.erase(it) : std::next(it);
}

static void prefetch_tensormap(const TensorMap&) {}
// word: 0 address, 1 rank, 2.. dims, 6.. strides in bytes from the second dim on, 9.. box, 13 bytes
// of an element, 14 whether 128 bytes are swizzled. As emulated_cuda.cpp makes them.
static void cp_async_bulk_tensor_4d(void* shared, const TensorMap& map, u64* barrier, int c0, int c1, int c2,
                     int c3) {
    using namespace gpu;
    const u64* w = map.word;
    const long long at[4] = {c0, c1, c2, c3};
    const unsigned to = address(shared), size = w[13];
    if (w[1] != 4) fault("the copy and the map differ in rank");
    if (to % (w[14] ? 1024 : 128)) fault("a box is not aligned");
    if ((u64)&map % 64) fault("a tensor map is not aligned");
    Box box{{}, current->home, &mbarrier(barrier), 0};
    u64 i[4];
    for (i[3] = 0; i[3] < w[12]; ++i[3])
        for (i[2] = 0; i[2] < w[11]; ++i[2])
            for (i[1] = 0; i[1] < w[10]; ++i[1])
                for (i[0] = 0; i[0] < w[9] * size; i[0] += 16) {
                    std::vector<char> bytes(16, 0);
                    bool inside = true;
                    const char* from = (const char*)w[0];
                    for (int d = 1; d < 4; ++d) {
                        inside = inside && at[d] + (long long)i[d] < (long long)w[2 + d];
                        from += (at[d] + i[d]) * w[5 + d];
                    }
                    for (unsigned b = 0; b < 16; b += size)
                        if (inside && at[0] + (i[0] + b) / size < w[2])
                            memcpy(&bytes[b], from + at[0] * size + i[0] + b, size);
                    const u64 row = (i[3] * w[11] + i[2]) * w[10] + i[1];
                    unsigned place = to + row * w[9] * size + i[0];
                    if (w[14]) place ^= (place >> 7 & 7) << 4;
                    memset(current->home->pages + place, 0xff, 16);
                    box.rows[place] = bytes;
                    box.bytes += 16;
                }
    boxes.push_back(box);
}

static void set_registers(unsigned registers) {
    gpu::Warpgroup& g = gpu::group();
    g.registers = registers;
    unsigned all = 0;
    for (auto& [number, other] : gpu::extra().groups) all += 128 * other.registers;
    if (all > 65536) gpu::fault("a block has 65536 registers");
    gpu::wait(g.barrier, 128);
}
template <int N>
static void setmaxnreg_dec() {
    set_registers(N);
}
template <int N>
static void setmaxnreg_inc() {
    set_registers(N);
}
static void bar_sync(int name, int threads) {
    if (name < 1 || name > 15 || threads % 32) gpu::fault("no such barrier");
    gpu::wait(gpu::extra().named[name], threads);
}

static float ex2_approx(float v) { return exp2f(v); }
static float rcp_approx(float v) { return 1 / v; }
static unsigned cvt_bf16x2_f32(float low, float high) {
    return cvt_bf16_f32(low) | (unsigned)cvt_bf16_f32(high) << 16;
}
static unsigned cvt_f16x2_f32(float low, float high) {
    return cvt_f16_f32(low) | (unsigned)cvt_f16_f32(high) << 16;
}
static void stmatrix_x4_trans(void* row, const unsigned (&v)[4]) {
    using namespace gpu;
    if (address(row) % 16) fault("a stored row is not aligned");
    Warp& w = warp();
    memcpy(w.words[lane()], v, 16);
    sync_warp();
    const unsigned matrix = lane() / 8, r = lane() % 8;  // this lane stores its own row
    for (unsigned column = 0; column < 8; ++column) {
        const unsigned pair = w.words[4 * column + r / 2][matrix];
        const unsigned short value = pair >> r % 2 * 16;
        memcpy((char*)row + column * 2, &value, 2);
    }
    sync_warp();
}

static void wgmma_fence() { gpu::threads[gpu::current].fenced = true; }
static void wgmma_commit_group() {
    gpu::Threads& own = gpu::threads[gpu::current];
    ++own.group;
    own.fenced = false;
}
template <int N>
static void wgmma_wait_group() {
    using namespace gpu;
    Threads& own = threads[current];
    while (!own.issued.empty() && own.issued.front().group + N < own.group) {
        Issued& one = own.issued.front();
        if (!one.operands.empty()) {
            std::vector<unsigned short> now;
            fetch(one.a, 64, now);
            fetch(one.b, one.n, now);
            if (now != one.operands) fault("operands changed under a product");
        }
        for (int i = 0; i < one.n / 2; ++i) own.sums[one.d][i] += one.sums[i];
        own.issued.pop_front();
    }
    for (auto it = own.sums.begin(); it != own.sums.end();) {
        const auto adds = [&](const Issued& one) { return one.d == it->first; };
        const bool open = std::any_of(own.issued.begin(), own.issued.end(), adds);
        if (!open) memcpy(it->first, it->second.data(), it->second.size() * 4);
        it = open ? std::next(it) : own.sums.erase(it);
    }
    wait(group().barrier, 128);
}
template <int N>
struct Wgmma {
    static void bf16(float (&d)[N / 2], u64 a, u64 b) { gpu::wgmma(d, N, a, b, true); }
    static void f16(float (&d)[N / 2], u64 a, u64 b) { gpu::wgmma(d, N, a, b, false); }
};
