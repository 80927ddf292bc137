// overlap_add: out = sum_t window * frame_t / sum_t window^2, frames `hop` apart, streamed.
//
// Cost: B T F floats of frames read once, B T hop written; everything else stays in L1. A task is
// HOPS hops. A sample is summed from its oldest frame to its newest on top of the sum carried over,
// so a stream's bits do not depend on how it was cut; where all frames that overlap it are there,
// it is multiplied by a precomputed inverse of the window's envelope instead of being divided by a
// sum.
#include "cpu/spectrum/overlap_add.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {
namespace {

constexpr int64_t HOPS = 8;          // of a task
constexpr int64_t SERIAL = 1 << 14;  // samples under which waking threads costs more

// One row: frames of earlier calls and of this one, its first sample to keep and the end of them.
struct Row {
    int64_t seen, fresh, skip, end;
    bool done;
};

struct Plan {
    const OverlapAddArgs& a;
    int64_t carried, parts, hops;  // hops: of a row, at most, that have samples to give
    const float* inverse;          // of the complete envelope [hop]
    Counter work;
};

Row row_of(const OverlapAddArgs& a, int64_t b) {
    const int64_t carried = a.F - a.hop, trim = carried / 2;
    Row r;
    r.seen = a.rows.lengths ? a.rows.lengths[b] : 0;
    r.fresh = a.rows.valid ? a.rows.valid[b] : a.T;
    r.done = a.rows.ended ? a.rows.ended[b] : a.rows.last;
    r.skip = max(trim - r.seen * a.hop, 0);
    r.end = r.fresh * a.hop + (r.done && r.seen + r.fresh > 0 ? carried - trim : 0);
    r.end = max(min(r.end, r.skip + a.outputs), r.skip);
    return r;
}

// The parts (hop-long pieces of frames) that overlap hop `t`: sums take oldest..newest, the
// envelope also those of earlier calls.
struct Parts {
    int64_t newest, oldest, enveloped;
};
MC_INLINE Parts parts_of(const Row& r, int64_t t, int64_t parts) {
    return {max(t - r.fresh + 1, 0), min(t, parts - 1), min(t + r.seen, parts - 1)};
}

// Samples i.. of hop t: n <= W of them, of which only parts below `parts` reach.
MC_INLINE F sum_of(const OverlapAddArgs& a, const float* frames, const float* numerator, int64_t t,
                   const Parts& parts, int64_t last, int64_t i, int n) {
    const int64_t at = t * a.hop + i, left = a.F - a.hop - at;
    F sum = zero();
    if (numerator && left > 0) sum = loadn(numerator + at, (int)min(left, n));
    for (int64_t j = min(parts.oldest, last); j >= parts.newest; --j) {
        const int64_t o = j * a.hop + i;
        const float* frame = frames + (t - j) * a.frames_row + o;
        sum = n == W ? fma(load(a.window + o), load(frame), sum)
                     : fma(loadn(a.window + o, n), loadn(frame, n), sum);
    }
    return sum;
}
MC_INLINE F envelope_of(const OverlapAddArgs& a, const Parts& parts, int64_t last, int64_t i,
                        int n) {
    F sum = zero();
    for (int64_t j = min(parts.enveloped, last); j >= parts.newest; --j) {
        const F w = loadn(a.window + j * a.hop + i, n);
        sum = fma(w, w, sum);
    }
    return sum;
}

// Calls fn(i, n, last) for vectors of the samples [from, to) of a hop: up to part `last` reaches.
template <class Fn>
MC_INLINE void vectors(const OverlapAddArgs& a, int64_t parts, int64_t from, int64_t to, Fn fn) {
    const int64_t edge = a.F - (parts - 1) * a.hop;  // from here on there is one part less
    for (int64_t i = from; i < to;) {
        const int64_t stop = i < edge ? min(edge, to) : to;
        const int n = (int)min(W, stop - i);
        fn(i, n, i < edge ? parts - 1 : parts - 2);
        i += n;
    }
}

void run(void* context, int) {
    Plan& p = *(Plan*)context;
    const OverlapAddArgs& a = p.a;
    const int64_t pieces = (p.hops + HOPS - 1) / HOPS;
    for (int64_t task; (task = claim(p.work)) < a.B * pieces;) {
        const int64_t b = task / pieces;
        const Row row = row_of(a, b);
        const float* frames = a.frames + b * a.frames_batch;
        const float* numerator = row.seen > 0 ? a.numerator + b * p.carried : nullptr;
        float* out = a.out + b * a.out_row - row.skip;
        const int64_t first = task % pieces * HOPS;
        for (int64_t t = first; t < first + HOPS && t * a.hop < row.end; ++t) {
            const Parts parts = parts_of(row, t, p.parts);
            const int64_t from = max(row.skip - t * a.hop, 0);
            const int64_t to = min(row.end - t * a.hop, a.hop);
            const bool complete = parts.newest == 0 && parts.enveloped == p.parts - 1;
            vectors(a, p.parts, from, to,
                    [&](int64_t i, int n, int64_t last) __attribute__((always_inline)) {
                        const F sum = sum_of(a, frames, numerator, t, parts, last, i, n);
                        const F y = complete ? mul(sum, loadn(p.inverse + i, n))
                                             : div(sum, envelope_of(a, parts, last, i, n));
                        if (n == W) store(out + t * a.hop + i, y);
                        else storen(out + t * a.hop + i, y, n);
                    });
        }
    }
}

// After all samples: carries the sums that later frames overlap, in ascending order, as it may be
// in place.
void carry(const Plan& p, int64_t b) {
    const OverlapAddArgs& a = p.a;
    const Row row = row_of(a, b);
    float* to = a.numerator_out + b * p.carried;
    if (row.done) {
        memset(to, 0, (size_t)p.carried * sizeof(float));
        return;
    }
    const float* numerator = row.seen > 0 ? a.numerator + b * p.carried : nullptr;
    for (int64_t t = row.fresh; (t - row.fresh) * a.hop < p.carried; ++t) {
        const Parts parts = parts_of(row, t, p.parts);
        const int64_t at = (t - row.fresh) * a.hop;
        vectors(a, p.parts, 0, min(a.hop, p.carried - at),
                [&](int64_t i, int n, int64_t last) __attribute__((always_inline)) {
                    const float* frames = a.frames + b * a.frames_batch;
                    storen(to + at + i, sum_of(a, frames, numerator, t, parts, last, i, n), n);
                });
    }
}

}  // namespace

void overlap_add(const OverlapAddArgs& a) {
    const int64_t carried = a.F - a.hop, parts = (a.F + a.hop - 1) / a.hop;
    float* inverse = (float*)workspace((size_t)(a.hop + W) * sizeof(float));
    const Parts all{0, parts - 1, parts - 1};
    vectors(a, parts, 0, a.hop, [&](int64_t i, int n, int64_t last) __attribute__((always_inline)) {
        storen(inverse + i, div(set1(1.0f), envelope_of(a, all, last, i, n)), n);
    });
    Plan p{a, carried, parts, a.T + (carried + a.hop - 1) / a.hop, inverse, {}};
    parallel(a.B * a.outputs < SERIAL ? 1 : a.threads, run, &p);
    for (int64_t b = 0; b < a.B; ++b) {
        const Row row = row_of(a, b);
        const int64_t emitted = row.end - row.skip;
        carry(p, b);
        memset(a.out + b * a.out_row + emitted, 0, (size_t)(a.outputs - emitted) * sizeof(float));
        a.rows.emitted[b] = emitted;
        a.rows.lengths_out[b] = row.done ? 0 : row.seen + row.fresh;
    }
}

}  // namespace MC_ISA
}  // namespace mingcore
