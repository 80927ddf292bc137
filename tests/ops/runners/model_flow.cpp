// A model checker of flow_sample.cu's synchronisation at the sizes of real heads, without its
// arithmetic: the very text of flow_sample_plan.cuh, run by a producer and two consumer warps per
// block, interleaved at random. Every buffer holds the number of the phase that wrote it, every page
// what it was filled with. Stores become visible at once or only with the flag (release), copies arrive
// in any order at any time, and a page is poison until then. Checked: no read before its write, no
// write before the last read, no deadlock; after a lost flag all blocks leave.
#include <ucontext.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>
#define __device__
#define __forceinline__ inline
#include "flow/flow_sample_plan.cuh"

using namespace flow;
typedef long long i64;

constexpr int WARPS = 2;
constexpr i64 POISON = -1;
enum Buffer { X, QKV_OUT, ATTENDED, HIDDEN, PARTIAL, VELOCITY, BUFFERS };

[[noreturn]] static void fail(const char* what, i64 a = 0, i64 b = 0, i64 c = 0) {
    printf("%s (%lld, %lld, %lld)\n", what, a, b, c);
    exit(1);
}

struct Agent {
    ucontext_t context;
    std::vector<char> stack;
    std::function<void()> body;
    std::function<bool()> ready;
    bool done = false, slow = false;
};

static ucontext_t scheduler;
static Agent* current;
static unsigned seed;
static unsigned rnd(unsigned below) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % below;
}
static void wait_until(std::function<bool()> ready) {
    current->ready = ready;
    swapcontext(&current->context, &scheduler);
}
static void maybe_yield() {
    if (rnd(4) == 0) wait_until([] { return true; });
}

struct Barrier {  // of so many arrivals; as those of shared memory, phases 0, 1, 0, ...
    int count, arrived = 0;
    i64 round = 0;
    void arrive() {
        if (++arrived == count) {
            arrived = 0;
            ++round;
        }
    }
};
struct Page {
    Barrier full{2}, empty{WARPS};  // full: the producer's arrival and that of the copy
    i64 tag = POISON;
};
struct Store {
    int buffer, at;
    i64 tag;
};
struct Block {
    std::vector<Page> pages;
    std::vector<Store> late;
    Barrier warps{WARPS};
    bool stop = false;
    i64 epoch = 0;
};
struct Copy {
    Page* page;
    i64 tag;
};

static Shape s;
static int blocks;
static std::vector<Block> state;
static std::vector<i64> memory[BUFFERS], flags;
static std::vector<int> owner;
static std::vector<Copy> copies;
static bool aborted, late_time;
static int muted;
static i64 muted_from, filled_before_wait, waits_of_products;

static i64 tag_of(i64 phase, int unit, int k) { return (phase * 100000 + unit) * 100 + k / 64; }
static void barrier(Block& b) {
    const i64 round = b.warps.round;
    b.warps.arrive();
    wait_until([&b, round] { return b.warps.round != round; });
}

struct Producing {
    int block;
    i64 filled = 0;

    bool fill(const Phase& phase, int unit, int k, const Cursor& at) {
        Block& b = state[block];
        Page& page = b.pages[at.page];
        const i64 before = at.round;
        if (before) wait_until([&] { return page.empty.round >= before || b.stop; });
        if (b.stop) return false;
        if (page.empty.round != before) fail("a page was freed twice", block, at.page);
        page.tag = POISON;
        page.full.arrive();
        copies.push_back({&page, tag_of(b.epoch + phase.index, unit, k)});
        ++filled;
        maybe_yield();
        return true;
    }
    void drain() {
        Block& b = state[block];
        for (i64 i = std::max(filled - s.pages, (i64)0); i < filled; ++i)
            wait_until([&b, i] { return b.pages[i % s.pages].full.round > i / s.pages; });
    }
};

struct Consuming {
    int block, warp;
    Producing& producer;
    i64 used = 0;

    Block& home() { return state[block]; }
    i64 now(const Phase& phase) { return home().epoch + phase.index; }

    bool wait(const Phase& phase) {
        for (int other = warp; other < blocks; other += WARPS) {
            if (phase.index == 0 || !depends(s, phase.kind, block, other, blocks)) continue;
            const i64 min_phases = now(phase);
            wait_until([=] { return flags[other] >= min_phases || late_time || aborted; });
            if (flags[other] < min_phases) {
                aborted = true;
                home().stop = true;
                break;
            }
        }
        if (warp == 0 && is_product(phase.kind)) {
            const Range range = range_of(units_of(s, phase.kind), block, blocks);
            if (range.first < range.end) {
                ++waits_of_products;
                filled_before_wait += producer.filled > used;
            }
        }
        barrier(home());
        return !home().stop;
    }
    void signal(const Phase& phase) {
        barrier(home());
        if (warp) return;
        for (const Store& each : home().late) memory[each.buffer][each.at] = each.tag;
        home().late.clear();
        if (block == muted && now(phase) >= muted_from) return;
        flags[block] = now(phase) + 1;
    }

    void read(const Phase& phase, int buffer, int first, int end) {
        for (int i = first + warp; i < end; i += WARPS)
            if (memory[buffer][i] != now(phase) - 1)
                fail("stale or overwritten", phase.kind, i, memory[buffer][i] - now(phase));
    }
    void write(const Phase& phase, int buffer, int at) {
        if (memory[buffer][at] == now(phase)) fail("written twice", phase.kind, at);
        if (buffer == X) {
            if (owner[at] >= 0 && owner[at] != block) fail("not its own column", at, block);
            owner[at] = block;
        }
        if (rnd(2))
            memory[buffer][at] = now(phase);
        else
            home().late.push_back({buffer, at, now(phase)});
    }

    void begin(const Phase&, int, int, bool) { maybe_yield(); }

    void multiply(const Phase& phase, int unit, int units, int k, const Cursor& from) {
        const int kind = phase.kind, tiles = s.H / TILE, depth = depth_of(s, kind);
        if (kind == OUT)
            read(phase, ATTENDED, 0, units_of(s, ATTENTION));
        else if (kind == DOWN && unit / tiles != (unit + units - 1) / tiles)
            fail("a group of two parts", unit, units);
        else if (kind == DOWN)
            read(phase, HIDDEN, unit / tiles * depth / TILE, (unit / tiles + 1) * depth / TILE);
        else
            read(phase, X, 0, tiles);
        for (int pass = 0; pass < 2; ++pass, maybe_yield()) {
            Cursor at = from;
            for (int j = 0; j < units; ++j, at.next(s.pages)) {
                Page& page = home().pages[at.page];
                const i64 round = at.round;
                wait_until([&page, round] { return page.full.round > round; });
                if (page.tag != tag_of(now(phase), unit + j, k))
                    fail("a wrong page", kind, unit + j, page.tag);
            }
        }
        Cursor at = from;
        for (int j = 0; j < units; ++j, at.next(s.pages)) home().pages[at.page].empty.arrive();
        used += units;
    }
    void finish(const Phase& phase, int unit, int units, bool) {
        barrier(home());
        barrier(home());
        for (int j = warp; j < units; j += WARPS) {
            const int kind = phase.kind, at = unit + j;
            const int buffer = kind == QKV ? QKV_OUT : kind == UP ? HIDDEN : kind == FINAL ? VELOCITY
                               : kind == DOWN && s.splits > 1 ? PARTIAL : X;
            write(phase, buffer, at);
        }
        maybe_yield();
    }
    void run(const Phase& phase, const Range& range) {
        const int tiles = s.H / TILE, of_head = s.H / s.heads / TILE;
        if (phase.kind == EMBED && phase.index) read(phase, VELOCITY, 0, s.C / TILE);
        for (int unit = range.first + warp; unit < range.end; unit += WARPS, maybe_yield()) {
            if (phase.kind == ATTENTION) {
                const int head = unit / (s.R * s.T) * of_head;
                for (int part = 0; part < 3; ++part)
                    for (int i = 0; i < of_head; ++i)
                        if (memory[QKV_OUT][part * tiles + head + i] != now(phase) - 1)
                            fail("stale q, k or v", unit, head);
            } else if (phase.kind == REDUCE) {
                for (int part = 0; part < s.splits; ++part)
                    if (memory[PARTIAL][part * tiles + unit] != now(phase) - 1)
                        fail("a stale part", unit, part);
            }
            write(phase, phase.kind == ATTENTION ? ATTENDED : X, unit);
        }
    }
};

static void enter() {
    current->body();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// All agents of one launch, to the end; the number of blocks that stopped early.
template <int BYTES, int GROUP>
static int launch() {
    std::vector<Producing> producers;
    std::vector<Agent> agents(blocks * (1 + WARPS));
    int stopped = 0;
    i64 all = s.E * (2 + s.L * (s.splits > 1 ? 6ll : 5ll));
    state.assign(blocks, {});
    for (int b = 0; b < blocks; ++b) {
        state[b].pages.resize(s.pages);
        state[b].epoch = flags[b];
        state[b].stop = aborted;
        producers.push_back({b});
    }
    for (size_t i = 0; i < agents.size(); ++i) {
        Agent& a = agents[i];
        const int b = i / (1 + WARPS), role = i % (1 + WARPS);
        a.slow = rnd(8) == 0;
        a.ready = [] { return true; };
        a.body = [&, b, role] {
            if (role == 0) {
                produce<BYTES, GROUP>(producers[b], s, b, blocks);
                producers[b].drain();
            } else {
                Consuming work{b, role - 1, producers[b]};
                if (!consume<BYTES, GROUP>(work, s, b, blocks))
                    stopped += role == 1;
                else if (flags[b] != state[b].epoch + all && b != muted)
                    fail("phases were miscounted", flags[b], state[b].epoch + all);
            }
        };
        a.stack.resize(64 << 10);
        getcontext(&a.context);
        a.context.uc_stack = {a.stack.data(), 0, a.stack.size()};
        makecontext(&a.context, enter, 0);
    }
    late_time = false;
    std::vector<int> left(agents.size());
    for (size_t i = 0; i < left.size(); ++i) left[i] = i;
    for (i64 idle = 0; !left.empty();) {
        if (!copies.empty() && rnd(3) == 0) {
            std::swap(copies[rnd(copies.size())], copies.back());
            copies.back().page->tag = copies.back().tag;
            copies.back().page->full.arrive();
            copies.pop_back();
            idle = 0;
        }
        const int pick = rnd(left.size());
        Agent& a = agents[left[pick]];
        const i64 slowness = 40 * (i64)left.size();
        if (a.slow && idle < slowness && rnd(50)) {
            ++idle;
            continue;
        }
        if (!a.ready()) {
            if (++idle > 4 * slowness && copies.empty()) {  // nobody can go on: clocks run out
                const auto can = [&](int i) { return agents[i].ready(); };
                if (std::none_of(left.begin(), left.end(), can)) {
                    if (late_time) fail("deadlock", left.size());
                    late_time = true;
                }
                idle = 0;
            }
            continue;
        }
        idle = 0;
        current = &a;
        swapcontext(&scheduler, &a.context);
        if (a.done) {
            left[pick] = left.back();
            left.pop_back();
        }
    }
    if (!copies.empty()) fail("a block ended before its copies", copies.size());
    return stopped;
}

// arguments: seed launches bytes group lost, then blocks and the fields of Shape
int main(int, char** argument) {
    const auto next = [&] { return atoi(*++argument); };
    seed = next();
    const int launches = next(), bytes = next(), group = next(), lost = next();
    blocks = next();
    for (int* field = (int*)&s; field < (int*)(&s + 1); ++field) *field = next();
    const int tiles = s.H / TILE;
    const int sizes[] = {tiles,      3 * tiles,         units_of(s, ATTENTION),
                         s.W / TILE, s.splits * tiles, s.C / TILE};
    for (int i = 0; i < BUFFERS; ++i) memory[i].assign(sizes[i], -2);
    flags.assign(blocks, 0);
    owner.assign(tiles, -1);
    muted = -1;
    int stopped = 0;
    for (int i = 0; i < launches; ++i) {
        if (lost && i == launches - 2) {
            muted = rnd(blocks);
            muted_from = flags[muted] + rnd(s.E * (2 + 5 * s.L));
        }
        stopped = bytes == 2 ? (group == 4 ? launch<2, 4>() : launch<2, 2>())
                             : (group == 4 ? launch<1, 4>() : launch<1, 2>());
        if (!lost && stopped) fail("stopped without a reason", stopped);
    }
    if (lost && (!aborted || stopped != blocks)) fail("not everyone left", stopped, blocks);
    printf("%lld of %lld waits of a product found pages filled ahead\n", filled_before_wait,
           waits_of_products);
}
