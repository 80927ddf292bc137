// attention_decode: softmax(scale q k^T) v of new tokens over a KV cache; attention_prefill is the
// same over a cache that is just full.
//
// Grouped-query attention: the heads that share a KV head, and the tokens of a batch row, are the
// query rows of one task, so a key is read once for all of them. Split-K (flash decoding): where
// there are fewer tasks (a KV head, up to GROUP query rows) than the threads need, a chunk of CHUNK
// keys is a task. Chunks begin at multiples of CHUNK and are merged in order whether or not they
// were tasks of their own: bits depend neither on threads nor on the batch. Online softmax over
// blocks of BLOCK keys, in float32. Cost: keys and values read once; 4 flops per query row, key and
// element of a head.
//
// Measured on two cores of an AMD EPYC with AVX-512, caches cold, medians:
//   16 heads on 4, D 128, 1 token, 4096 keys: 0.67 ms float32 (25 GB/s), 0.48 ms bf16; 301 keys on
//   one thread 90 and 62 us. 20 heads, D 64, 5 tokens: 1.65 ms and 1.13 ms at 4096 keys.
// Software prefetch took the last two from 2.40 and 2.61 ms: in bf16 too it was the stride between
// a head's rows that cost, not the bytes. A distance of 8 keys is best; 16 and 32 are 10 to 25 %
// slower where rows are 512 bytes. Prompts, one thread pool, against SDPA: 300 tokens of 16 heads
// on 4 1.6 ms (5.0), 1000 tokens 13.9 (36.7), 250 of 14 heads on 2 with a window of 32 0.35 (2.0),
// float32; bf16 takes the same time. 8-bit keys and values with a scale each are 27 % of float32's
// bytes. One layer of the semantic module (5 queries of 20 heads of 64), several caches round
// robin, EPYC, two cores: 1.6 times as fast at 1000, 3000 and 12000 keys (0.23, 0.65 and 2.7 ms),
// so now widening them is the limit. Waking sleeping threads costs 40 to 50 us: below SERIAL one
// thread does it all.
#include "cpu/attention/attention_decode.h"
#include "cpu/attention/attention_decode_dots.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/parallel.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t CHUNK = 512, GROUP = 64;
constexpr int64_t SERIAL = 1 << 22;  // products under which waking threads costs more

struct Plan {
    const AttentionDecodeArgs* a;
    int64_t G, rows, groups, tasks, chunks, Dp;  // rows: T * G query rows, t first
    bool split;                                  // chunks are tasks of their own
    const int64_t *first, *last;                 // [B] lowest and highest position of a query
    Counter work, *left;                         // left [tasks]
    float* partial;                              // [tasks, chunks] of Sums
    int64_t partial_floats;
};

struct Scratch {
    Queries q;
    Sums total, part;
    float* s;
};

MC_INLINE Sums sums_at(float* p, int64_t n, int64_t Dp) { return {p + n * Dp, p + n * Dp + n, p}; }
MC_INLINE int64_t sums_floats(int64_t n, int64_t Dp) { return n * Dp + (2 * n + W - 1) / W * W; }

MC_INLINE void clear(const Queries& q, const Sums& s) {
    for (int64_t r = 0; r < q.n; ++r) s.top[r] = -__builtin_inff(), s.sum[r] = 0;
    for (int64_t i = 0; i < q.n * q.Dp; i += W) store(s.out + i, zero());
}

struct Task {
    int64_t b, head, row, n;  // KV head; first query row, and how many
};
MC_INLINE Task task_at(const Plan& p, int64_t task) {
    const int64_t group = task % p.groups, rest = task / p.groups, row = group * GROUP;
    return {rest / p.a->Hkv, rest % p.a->Hkv, row, min(GROUP, p.rows - row)};
}

// Which keys the rows of the task see, and their queries, scaled.
template <class T>
static void prepare(const Plan& p, const Task& w, Scratch& c) {
    const AttentionDecodeArgs& a = *p.a;
    c.q.n = w.n;
    int64_t *low = (int64_t*)c.q.low, *high = (int64_t*)c.q.high;
    const int64_t oldest = max(p.last[w.b] - a.S + 1, 0);
    const F scale = set1(a.scale);
    for (int64_t r = 0; r < w.n; ++r) {
        const int64_t t = (w.row + r) / p.G, h = w.head * p.G + (w.row + r) % p.G;
        const int64_t at = a.positions.data[w.b * a.positions.batch + t * a.positions.token];
        high[r] = at < 0 ? 0 : at + 1;
        low[r] = a.window ? max(oldest, at - a.window + 1) : oldest;
        const T* from = (const T*)a.q.data + w.b * a.q.batch + t * a.q.token + h * a.q.head;
        float* to = (float*)c.q.q + r * p.Dp;
        for (int64_t d = 0; d < a.D; d += W) store(to + d, mul(read(from + d, a.D - d), scale));
    }
}

// Positions [from, to).
struct Span {
    int64_t from, to;
};
// Of the keys that any row of the task sees.
MC_INLINE Span visible_span(const Scratch& c) {
    Span s{INT64_MAX, 0};
    for (int64_t r = 0; r < c.q.n; ++r)
        if (c.q.low[r] < c.q.high[r]) s = {min(s.from, c.q.low[r]), max(s.to, c.q.high[r])};
    return s;
}

template <class C>
static void run_chunk(const Plan& p, const Task& w, const Scratch& c, Span span, const Sums& to) {
    const AttentionDecodeArgs& a = *p.a;
    const C* k = (const C*)a.k.data + w.b * a.k.batch + w.head * a.k.head;
    const C* v = (const C*)a.v.data + w.b * a.v.batch + w.head * a.v.head;
    Scales by{};
    if (a.k_scale.data) {
        by = {(const float*)a.k_scale.data + w.b * a.k_scale.batch + w.head * a.k_scale.head,
              (const float*)a.v_scale.data + w.b * a.v_scale.batch + w.head * a.v_scale.head,
              a.k_scale.token, a.v_scale.token};
    }
    for (int64_t from = span.from; from < span.to;) {
        const int64_t slot = from % a.S;
        const int64_t block = from / BLOCK * BLOCK + BLOCK;  // where the next block begins
        const int64_t n = min(min(block, span.to) - from, a.S - slot);
        attend_all<C>(c.q, to, k + slot * a.k.token, a.k.token, v + slot * a.v.token, a.v.token,
                      from_slot(by, slot), n, from, c.s);
        from += n;
    }
}

template <class T>
static void write_out(const Plan& p, const Task& w, const Scratch& c, const Sums& from) {
    const AttentionDecodeArgs& a = *p.a;
    for (int64_t r = 0; r < w.n; ++r) {
        const int64_t t = (w.row + r) / p.G, h = w.head * p.G + (w.row + r) % p.G;
        T* to = (T*)a.out.data + w.b * a.out.batch + t * a.out.token + h * a.out.head;
        const float* out = from.out + r * p.Dp;
        const F inverse = set1(from.sum[r] != 0 ? 1 / from.sum[r] : 0);
        for (int64_t d = 0; d < a.D; d += W) {
            const F y = mul(load(out + d), inverse);
            if (a.D - d >= W) store(to + d, y);
            else storen(to + d, y, (int)(a.D - d));
        }
    }
}

// Chunk `chunk` of a task, counted from the first that its batch row needs; all of them where not
// split.
template <class T, class C>
static void run_task(const Plan& p, Scratch& c, int64_t task, int64_t chunk) {
    const Task w = task_at(p, task);
    prepare<T>(p, w, c);
    const Span all = visible_span(c);
    const int64_t base = p.split ? p.first[w.b] / CHUNK : all.from / CHUNK;
    if (!p.split) {
        clear(c.q, c.total);
        for (int64_t at = base * CHUNK; at < all.to; at += CHUNK) {
            const Span span{max(at, all.from), min(at + CHUNK, all.to)};
            if (at == base * CHUNK) {
                run_chunk<C>(p, w, c, span, c.total);
                continue;
            }
            clear(c.q, c.part);
            run_chunk<C>(p, w, c, span, c.part);
            merge(c.q, c.total, c.part);
        }
        return write_out<T>(p, w, c, c.total);
    }
    auto partial = [&](int64_t i) {
        return sums_at(p.partial + (task * p.chunks + i) * p.partial_floats, w.n, p.Dp);
    };
    const int64_t at = (base + chunk) * CHUNK;
    clear(c.q, partial(chunk));
    run_chunk<C>(p, w, c, {max(at, all.from), min(at + CHUNK, all.to)}, partial(chunk));
    if (!count_down(p.left[task])) return;
    for (int64_t i = 1; i < p.chunks; ++i) merge(c.q, partial(0), partial(i));
    write_out<T>(p, w, c, partial(0));
}

template <class T, class C = T>
void run(void* context, int) {
    Plan& p = *(Plan*)context;
    const int64_t n = min(GROUP, p.rows);
    Scratch c;
    for (char* memory = nullptr;;) {
        Arena arena{memory};
        c.q = {n,
               p.a->D,
               p.Dp,
               arena.take<float>(n * p.Dp),
               arena.take<int64_t>(n),
               arena.take<int64_t>(n)};
        c.total = sums_at(arena.take<float>(sums_floats(n, p.Dp)), n, p.Dp);
        c.part = sums_at(arena.take<float>(sums_floats(n, p.Dp)), n, p.Dp);
        c.s = arena.take<float>(5 * BLOCK);
        if (memory) break;
        memory = (char*)workspace(arena.used, 1);
    }
    const int64_t pieces = p.split ? p.chunks : 1;
    for (int64_t i; (i = claim(p.work)) < p.tasks * pieces;)
        run_task<T, C>(p, c, i / pieces, i % pieces);
}

}  // namespace

// The positions that the queries of batch row b see: first and last.
static Span bounds(const AttentionDecodeArgs& a, int64_t b) {
    Span s{INT64_MAX, -1};  // here of queries: the lowest, and the highest itself
    for (int64_t t = 0; t < a.T; ++t) {
        const int64_t at = a.positions.data[b * a.positions.batch + t * a.positions.token];
        if (at >= 0) s = {min(s.from, at), max(s.to, at)};
    }
    if (s.to < 0) return {0, -1};
    const int64_t low = a.window ? s.from - a.window + 1 : 0;
    return {max(max(low, s.to - a.S + 1), 0), s.to};
}

void attention_decode(const AttentionDecodeArgs& a) {
    Plan p{};
    p.a = &a;
    p.G = a.Hq / a.Hkv, p.rows = a.T * p.G, p.groups = ceil_div(p.rows, GROUP);
    p.tasks = a.B * a.Hkv * p.groups, p.Dp = ceil_div(a.D, W) * W, p.chunks = 1;
    p.partial_floats = sums_floats(min(GROUP, p.rows), p.Dp);
    int64_t products = 0;
    for (int64_t b = 0; b < a.B; ++b) {
        const Span s = bounds(a, b);
        products += 2 * (s.to - s.from + 1) * a.Hq * a.T * a.D;
        p.chunks = max(p.chunks, s.to / CHUNK - s.from / CHUNK + 1);
    }
    const int threads = products < SERIAL ? 1 : a.threads;
    p.split = threads > 1 && p.chunks > 1 && p.tasks < 2 * threads;
    int64_t* bound = nullptr;
    for (char* memory = nullptr;; memory = (char*)bound) {
        Arena arena{memory};
        bound = arena.take<int64_t>(2 * a.B);
        p.left = arena.take<Counter>(p.tasks);
        p.partial = arena.take<float>(p.split ? p.tasks * p.chunks * p.partial_floats : 0);
        if (memory) break;
        bound = (int64_t*)workspace(arena.used);
    }
    p.first = bound, p.last = bound + a.B;
    for (int64_t b = 0; b < a.B; ++b) {
        const Span s = bounds(a, b);
        bound[b] = s.from, bound[a.B + b] = s.to;
    }
    for (int64_t i = 0; i < p.tasks; ++i) p.left[i].next = p.chunks;
    const bool quantised = a.k_scale.data != nullptr;
    parallel(threads,
             a.dtype == Dtype::f32    ? (quantised ? run<float, int8_t> : run<float>)
             : a.dtype == Dtype::bf16 ? (quantised ? run<bf16, int8_t> : run<bf16>)
                                      : (quantised ? run<f16, int8_t> : run<f16>),
             &p);
}

}  // namespace MC_ISA
}  // namespace mingcore
