// flow_sample: what a block's consumers do in each phase.
#pragma once
#include "flow/flow_sample_products.cuh"

namespace flow {

template <class T>
struct Consumer {
    using W = typename T::W;
    static constexpr int MT = T::MT, ROWS = T::ROWS, GROUP = T::GROUP;
    const Params& p;
    const Shape& s;
    const Shared<T>& shared;
    const int tid = threadIdx.x, n = threadIdx.x % TILE;  // column of a tile
    const int M, tiles;
    const Run own;  // tiles of x
    int drawn = 0;
    unsigned watched = 0;  // a bit per kind: this thread watches the flag of block `tid` before it
    Sums<T> sums;
    float bias[GROUP], scale[GROUP], norm[GROUP];  // of this thread's column of each tile
    float square[2 * MT];  // this lane's part of the squares of rows warp, warp + 8, ...

    __device__ __forceinline__ Consumer(const Params& p_, const Shared<T>& shared_)
        : p(p_), s(p_.s), shared(shared_), M(p_.s.R * p_.s.T), tiles(p_.s.H / TILE),
          own(run_of(p_.s.H / TILE, blockIdx.x, gridDim.x)) {
        for (int kind = EMBED; kind <= DONE; ++kind)
            if (tid < gridDim.x && needs(s, kind, blockIdx.x, tid, gridDim.x)) watched |= 1u << kind;
    }

    // ---- between phases

    __device__ __forceinline__ bool wait(const Phase& phase) {
        const Run run = run_of(units_of(s, phase.kind), blockIdx.x, gridDim.x);
        if (phase.kind != DONE) constants(phase, run.first, min(run.end - run.first, GROUP));
        if (phase.index > 0 && (watched >> phase.kind & 1)) watch(phase);
        sync_consumers();
        if (*shared.stop) return false;
        if (phase.kind == DONE) {
            step(phase.eval - 1);
            if (blockIdx.x == 0) write_out();
        }
        return true;
    }

    // Until the block of this thread's number has ended as many phases as came before this one.
    __device__ __forceinline__ void watch(const Phase& phase) {
        const u64 least = *shared.epoch + phase.index;
        u64 since = 0;  // the clock is looked at when this takes long
        for (unsigned spins = 1; peek(p.flags + FLAGS + tid) < least; ++spins) {
            if (spins % 256) continue;
            if (since == 0) since = now_ns();
            if (now_ns() - since > PATIENCE_NS) {
                put(p.flags + ABORTED, 1);
                tell_host(p.fault, 1);
            }
            if (peek(p.flags + ABORTED)) {
                *shared.stop = 1;
                return;
            }
        }
    }

    __device__ __forceinline__ void post(const Phase& phase) {
        sync_consumers();
        if (tid == 0) put(p.flags + FLAGS + blockIdx.x, *shared.epoch + phase.index + 1);
    }

    // ---- products

    // Asked for before the wait: no exchange changes them.
    __device__ __forceinline__ void constants(const Phase& phase, int unit, int units) {
        const int kind = phase.kind;
        const bool last = kind == SETTLE || (kind == DOWN && s.splits == 1);
        const int matrix = kind == QKV ? QKV_W : kind == OUT ? OUT_W : kind == UP ? UP_W
                           : kind == FINAL ? FINAL_W : DOWN_W;
        const int width = kind == QKV ? 3 * s.H : kind == UP ? s.W : kind == FINAL ? s.C : s.H;
        const float* const scales = matrix == FINAL_W ? nullptr : p.scale[matrix - QKV_W];
        const bf16* next = kind == OUT ? p.norm2 + phase.layer * s.H
                           : kind == EMBED           ? p.norm1
                           : phase.layer + 1 < s.L   ? p.norm1 + (phase.layer + 1) * s.H
                                                     : p.final_norm;
        if (kind == ATTEND) return;
#pragma unroll
        for (int j = 0; j < GROUP; ++j) {
            if (j >= units) continue;
            const int tile = kind == DOWN ? (unit + j) % tiles : unit + j;
            const int column = tile * TILE + n;
            scale[j] = 1;
            if (kind != EMBED) {
                bias[j] = widen(p.bias[matrix][phase.layer * width + column]);
                if (scales && kind != SETTLE) scale[j] = scales[phase.layer * width + column];
            }
            if (kind == OUT || kind == EMBED || last) norm[j] = widen(next[column]);
        }
    }

    __device__ __forceinline__ void begin(const Phase& phase, int unit, int units, bool first) {
        if (!first) constants(phase, unit, units);
        sums.clear();
        const int kind = phase.kind;
        if (first && (kind == QKV || kind == UP || kind == FINAL)) ask_for_squares();
    }

    __device__ __forceinline__ void multiply(const Phase& phase, int unit, int units, int k,
                                             const Cursor& at) {
        const int kind = phase.kind, depth = min(page_depth<T::BYTES>(kind), depth_of(s, kind) - k);
        const bf16* rows = kind == OUT ? p.attended : kind == DOWN ? p.hidden : p.x;
        const int pitch = kind == DOWN ? s.W : s.H;
        rows += k + (kind == DOWN ? unit / tiles * depth_of(s, kind) : 0);
        if (T::BYTES != 2 && kind == FINAL)
            sums.template add<bf16>(shared, rows, M, pitch, depth, units, at, s.pages);
        else
            sums.template add<W>(shared, rows, M, pitch, depth, units, at, s.pages);
    }

    __device__ __forceinline__ void finish(const Phase& phase, int unit, int units, bool first) {
        const int kind = phase.kind, warp = tid / 32;
        if (first && (kind == QKV || kind == UP || kind == FINAL)) add_squares();
#pragma unroll
        for (int j0 = 0; j0 < GROUP; j0 += T::ROUND) {
            if (j0 >= units) continue;
            sync_consumers();  // the sums before these have been read
#pragma unroll
            for (int j = j0; j < j0 + T::ROUND; ++j)
                if (j < units)
                    sums.store(shared.sums + (warp * T::ROUND + j - j0) * ROWS * TILE, j);
            sync_consumers();
#pragma unroll
            for (int j = j0; j < j0 + T::ROUND; ++j)
                if (j < units) results(phase, unit + j, j, j - j0);
        }
    }

    // Over the warps in their order; then what the phase makes of it.
    __device__ __forceinline__ void results(const Phase& phase, int unit, int j, int slot) {
        const int kind = phase.kind, part = kind == DOWN ? unit / tiles : 0;
        const int tile = unit - part * tiles, column = tile * TILE + n;
#pragma unroll 1
        for (int m0 = 0; m0 < ROWS; m0 += CONSUMER_THREADS / TILE) {
            const int m = m0 + tid / TILE;
            float v = 0;
#pragma unroll
            for (int w = 0; w < CONSUMERS; ++w)
                v += shared.sums[((w * T::ROUND + slot) * ROWS + m) * TILE + n];
            v *= scale[j];
            if (kind == OUT || (kind == DOWN && s.splits == 1)) {
                publish(tile, m, v + bias[j] + residual(tile, m), norm[j]);
                continue;
            }
            if (m >= M) continue;
            if (kind == QKV) {
                narrow(v * shared.inverse[m] + bias[j], p.qkv[m * 3 * s.H + column]);
            } else if (kind == UP) {
                narrow(gelu_tanh(v * shared.inverse[m] + bias[j]), p.hidden[m * s.W + column]);
            } else if (kind == DOWN) {
                p.partial[(part * M + m) * s.H + column] = v;
            } else {
                const int r = m / s.T, frame = m - r * s.T - (s.T - s.P);
                if (frame >= 0)
                    p.velocity[(r * s.P + frame) * s.C + column] = v * shared.inverse[m] + bias[j];
            }
        }
    }

    // ---- x: every block keeps its own columns in float32, others see them times the next norm's
    // weight, in bfloat16; what the norm divides by follows from the sums of squares

    __device__ __forceinline__ float& residual(int tile, int m) {
        return shared.own[((tile - own.first) * ROWS + m) * TILE + n];
    }

    __device__ __forceinline__ void publish(int tile, int m, float v, float weight) {
        if (m >= M) v = 0;
        residual(tile, m) = v;
        float squares = v * v;
#pragma unroll
        for (int x = 1; x < TILE; x *= 2) squares += __shfl_xor_sync(~0u, squares, x);
        if (m >= M) return;
        narrow(v * weight, p.x[m * s.H + tile * TILE + n]);
        if (n == 0) p.squares[m * tiles + tile] = squares;
    }

    __device__ __forceinline__ void ask_for_squares() {
        const int warp = tid / 32, lane = tid % 32;
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
            const int m = warp + CONSUMERS * i;
            square[i] = 0;
            for (int v = lane; m < M && v < tiles / 4; v += 32) {
                unsigned part[4];
                load_l2(p.squares + m * tiles + v * 4, part);
                square[i] += (__uint_as_float(part[0]) + __uint_as_float(part[1])) +
                             (__uint_as_float(part[2]) + __uint_as_float(part[3]));
            }
        }
    }
    __device__ __forceinline__ void add_squares() {
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
#pragma unroll
            for (int x = 1; x < 32; x *= 2) square[i] += __shfl_xor_sync(~0u, square[i], x);
            if (tid % 32 == 0)
                shared.inverse[tid / 32 + CONSUMERS * i] = 1 / sqrtf(square[i] / s.H + EPS);
        }
    }

    // ---- phases without products

    __device__ __forceinline__ void serve(const Phase& phase, const Run& run) {
        if (phase.kind == ATTEND) {
            for (int unit = run.first + tid / 32; unit < run.end; unit += CONSUMERS)
                attend(p, phase.layer, unit);
            return;
        }
        if (phase.kind == EMBED && phase.eval > 0) {
            step(phase.eval - 1);
            sync_consumers();
        }
        for (int unit = run.first; unit < run.end; unit += GROUP) {
            if (unit > run.first) constants(phase, unit, min(run.end - unit, GROUP));
#pragma unroll
            for (int j = 0; j < GROUP; ++j)
                if (unit + j < run.end)
#pragma unroll 1
                    for (int m0 = 0; m0 < ROWS; m0 += CONSUMER_THREADS / TILE) {
                        const int m = m0 + tid / TILE, tile = unit + j;
                        float v = 0;
                        if (m < M) v = phase.kind == EMBED ? token(phase, tile, m) : settled(tile, m, j);
                        publish(tile, m, v, norm[j]);
                    }
        }
    }

    __device__ __forceinline__ float settled(int tile, int m, int j) {
        const float* from = p.partial + m * s.H + tile * TILE + n;
        float v = 0;
        for (int part = 0; part < s.splits; ++part) v += load_l2(from + part * M * s.H);
        return v + bias[j] + residual(tile, m);
    }

    // [condition + time; history; x], of which the constant part is there already
    __device__ __forceinline__ float token(const Phase& phase, int tile, int m) {
        const int column = tile * TILE + n, r = m / s.T, t = m - r * s.T, frame = t - 1 - s.N;
        const float v = shared.constant[((tile - own.first) * ROWS + m) * TILE + n];
        if (t == 0) return v + p.times[phase.eval * s.H + column];
        if (frame < 0) return v;
        const float* const x = shared.current + (r % s.B * s.P + frame) * s.C;
        const bf16* const w = (const bf16*)p.matrix[X_IN] + column * s.C;
        float sum = 0;
        for (int c = 0; c < s.C; c += 8) {
            float weights[8];
            load8(w + c, weights);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = fmaf(x[c + i], weights[i], sum);
        }
        return v + sum;
    }

    // What does not change from one evaluation to the next: the embedded condition and history.
    __device__ __forceinline__ void prepare() {
        const int warp = tid / 32, lane = tid % 32;
        for (int i = tid; i < s.B * s.P * s.C; i += CONSUMER_THREADS)
            shared.base[i] = shared.current[i] = p.noise[i];
        for (int tile = own.first; tile < own.end; ++tile)
            for (int m = tid / TILE; m < M; m += CONSUMER_THREADS / TILE) {
                const int column = tile * TILE + n, r = m / s.T, t = m - r * s.T;
                float v = widen(p.bias[t ? X_IN : COND][column]);
                const bf16* const x = p.history + (r % s.B * s.N + t - 1) * s.C;
                const bf16* const w = (const bf16*)p.matrix[X_IN] + column * s.C;
                for (int c = 0; t > 0 && t <= s.N && c < s.C; c += 8) {
                    float a[8], b[8];
                    load8(x + c, a);
                    load8(w + c, b);
#pragma unroll
                    for (int i = 0; i < 8; ++i) v = fmaf(a[i], b[i], v);
                }
                shared.constant[((tile - own.first) * ROWS + m) * TILE + n] = v;
            }
        sync_consumers();
        for (int i = warp; i < (own.end - own.first) * TILE * s.B; i += CONSUMERS) {
            const int column = i / s.B, b = i - column * s.B;  // of this block's
            const bf16* const w = (const bf16*)p.matrix[COND] + (long long)(own.first * TILE + column) * s.Hc;
            float v = 0;
            for (int c = lane * 8; c < s.Hc; c += 256) {
                float x[8], y[8];
                load8(p.condition + b * s.Hc + c, x);
                load8(w + c, y);
#pragma unroll
                for (int e = 0; e < 8; ++e) v = fmaf(x[e], y[e], v);
            }
#pragma unroll
            for (int x = 1; x < 32; x *= 2) v += __shfl_xor_sync(~0u, v, x);
            if (lane == 0)
                shared.constant[(column / TILE * ROWS + b * s.T) * TILE + column % TILE] += v;
        }
        sync_consumers();
    }

    // The solver's step after an evaluation; every block keeps the whole state, a few kilobytes.
    __device__ __forceinline__ void step(int eval) {
        const int state = s.B * s.P * s.C;
        const bool advance = p.advance[eval / 64] >> eval % 64 & 1;
        drawn += advance;
        const float dt = p.dt[eval];
        for (int i = tid; i < state; i += CONSUMER_THREADS) {
            const int b = i / (s.P * s.C);
            float v = load_l2(p.velocity + i);
            if (s.R > s.B) v = fmaf(p.guidance[b], v - load_l2(p.velocity + state + i), v);
            v = fmaf(dt, v, shared.base[i]);
            const float scale = advance ? p.noise_scale[eval * s.B + b] : 0;
            if (scale != 0 && drawn < s.draws) v = fmaf(scale, p.noise[drawn * state + i], v);
            shared.current[i] = v;
            if (advance) shared.base[i] = v;
        }
    }
    __device__ __forceinline__ void write_out() {
        for (int i = tid; i < s.B * s.P * s.C; i += CONSUMER_THREADS) p.out[i] = shared.current[i];
    }
    __device__ __forceinline__ void spoil() {
        for (int i = tid; i < s.B * s.P * s.C; i += CONSUMER_THREADS)
            p.out[i] = __uint_as_float(0x7fc00000);
    }
};

}  // namespace flow
