// flow_sample: what a block's consumer warps do in each phase.
#pragma once
#include "flow/flow_sample_attention.cuh"
#include "flow/flow_sample_mma.cuh"

namespace flow {

__device__ __forceinline__ float gelu_tanh(float v) {
    const float u = 0.7978845608028654f * fmaf(0.044715f * v * v, v, v);
    return v / (1 + expf(-2 * u));
}

template <class T>
struct Consumer {
    using W = typename T::W;
    static constexpr int MT = T::MT, ROWS = T::ROWS, GROUP = T::GROUP;
    const Params& p;
    const Shape& s;
    const Shared<T>& shared;
    const int tid = threadIdx.x, n = threadIdx.x % TILE;  // column of a tile
    const int M, tiles;
    const Range own;      // tiles of x
    int draw = 0;         // of the noise
    unsigned polled = 0;  // a bit per kind: before it this thread polls the flag of block `tid`
    Accumulators<T> sums;
    float bias[GROUP], scale[GROUP], norm[GROUP];  // of this thread's column of each tile
    float square[2 * MT];  // this lane's share of the squares of rows warp, warp + 8, ...

    __device__ __forceinline__ Consumer(const Params& p_, const Shared<T>& shared_)
        : p(p_),
          s(p_.s),
          shared(shared_),
          M(p_.s.R * p_.s.T),
          tiles(p_.s.H / TILE),
          own(range_of(p_.s.H / TILE, blockIdx.x, gridDim.x)) {
        for (int kind = EMBED; kind <= DONE; ++kind)
            if (tid < gridDim.x && depends(s, kind, blockIdx.x, tid, gridDim.x))
                polled |= 1u << kind;
    }

    // ---- between phases

    __device__ __forceinline__ bool wait(const Phase& phase) {
        const Range range = range_of(units_of(s, phase.kind), blockIdx.x, gridDim.x);
        if (phase.kind != DONE)
            load_constants(phase, range.first, min(range.end - range.first, GROUP));
        if (phase.index > 0 && (polled >> phase.kind & 1)) poll(phase);
        sync_consumers();
        if (*shared.aborted) return false;
        if (phase.kind == DONE) {
            step(phase.eval - 1);
            if (blockIdx.x == 0) write_output();
        }
        return true;
    }

    // Spins until block `tid` has ended as many phases as came before this one.
    __device__ __forceinline__ void poll(const Phase& phase) {
        const u64 min_phases = *shared.epoch + phase.index;
        u64 since = 0;  // the clock is read only after 256 spins
        for (unsigned spins = 1; ld_acquire(p.flags + FLAGS + tid) < min_phases; ++spins) {
            if (spins % 256) continue;
            if (since == 0) since = globaltimer_ns();
            if (globaltimer_ns() - since > TIMEOUT_NS) {
                st_release(p.flags + ABORTED, 1);
                st_release_sys(p.fault, 1);
            }
            if (ld_acquire(p.flags + ABORTED)) {
                *shared.aborted = 1;
                return;
            }
        }
    }

    __device__ __forceinline__ void signal(const Phase& phase) {
        sync_consumers();
        if (tid == 0) st_release(p.flags + FLAGS + blockIdx.x, *shared.epoch + phase.index + 1);
    }

    // ---- products

    // Loaded before the wait for other blocks, since none of them writes these.
    __device__ __forceinline__ void load_constants(const Phase& phase, int unit, int units) {
        const int kind = phase.kind;
        const bool last = kind == REDUCE || (kind == DOWN && s.splits == 1);
        const int matrix = kind == QKV     ? QKV_W
                           : kind == OUT   ? OUT_W
                           : kind == UP    ? UP_W
                           : kind == FINAL ? FINAL_W
                                           : DOWN_W;
        const int width = kind == QKV ? 3 * s.H : kind == UP ? s.W : kind == FINAL ? s.C : s.H;
        const float* const scales = matrix == FINAL_W ? nullptr : p.scale[matrix - QKV_W];
        const bf16* next = kind == OUT             ? p.norm2 + phase.layer * s.H
                           : kind == EMBED         ? p.norm1
                           : phase.layer + 1 < s.L ? p.norm1 + (phase.layer + 1) * s.H
                                                   : p.final_norm;
        if (kind == ATTENTION) return;
#pragma unroll
        for (int j = 0; j < GROUP; ++j) {
            if (j >= units) continue;
            const int tile = kind == DOWN ? (unit + j) % tiles : unit + j;
            const int column = tile * TILE + n;
            scale[j] = 1;
            if (kind != EMBED) {
                bias[j] = widen(p.bias[matrix][phase.layer * width + column]);
                if (scales && kind != REDUCE) scale[j] = scales[phase.layer * width + column];
            }
            if (kind == OUT || kind == EMBED || last) norm[j] = widen(next[column]);
        }
    }

    __device__ __forceinline__ void begin(const Phase& phase, int unit, int units, bool first) {
        if (!first) load_constants(phase, unit, units);
        sums.clear();
        const int kind = phase.kind;
        if (first && (kind == QKV || kind == UP || kind == FINAL)) prefetch_squares();
    }

    __device__ __forceinline__ void multiply(const Phase& phase, int unit, int units, int k,
                                             const Cursor& at) {
        const int kind = phase.kind, depth = min(page_depth<T::BYTES>(kind), depth_of(s, kind) - k);
        const bf16* rows = kind == OUT ? p.attended : kind == DOWN ? p.hidden : p.x;
        const int pitch = kind == DOWN ? s.W : s.H;
        rows += k + (kind == DOWN ? unit / tiles * depth_of(s, kind) : 0);
        if (T::BYTES != 2 && kind == FINAL)
            sums.template add<bf16>(shared, rows, M, pitch, depth, units, at, s.pages);
        else sums.template add<W>(shared, rows, M, pitch, depth, units, at, s.pages);
    }

    __device__ __forceinline__ void finish(const Phase& phase, int unit, int units, bool first) {
        const int kind = phase.kind, warp = tid / 32;
        if (first && (kind == QKV || kind == UP || kind == FINAL)) reduce_squares();
#pragma unroll
        for (int j0 = 0; j0 < GROUP; j0 += T::ROUND) {
            if (j0 >= units) continue;
            sync_consumers();  // the previous round has been read
#pragma unroll
            for (int j = j0; j < j0 + T::ROUND; ++j)
                if (j < units)
                    sums.store(shared.sums + (warp * T::ROUND + j - j0) * ROWS * TILE, j);
            sync_consumers();
#pragma unroll
            for (int j = j0; j < j0 + T::ROUND; ++j)
                if (j < units) epilogue(phase, unit + j, j, j - j0);
        }
    }

    // The split-K reduction, in the order of the warps, and the phase's epilogue.
    __device__ __forceinline__ void epilogue(const Phase& phase, int unit, int j, int slot) {
        const int kind = phase.kind, split = kind == DOWN ? unit / tiles : 0;
        const int tile = unit - split * tiles, column = tile * TILE + n;
#pragma unroll 1
        for (int m0 = 0; m0 < ROWS; m0 += CONSUMER_THREADS / TILE) {
            const int m = m0 + tid / TILE;
            float v = 0;
#pragma unroll
            for (int w = 0; w < CONSUMERS; ++w)
                v += shared.sums[((w * T::ROUND + slot) * ROWS + m) * TILE + n];
            v *= scale[j];
            if (kind == OUT || (kind == DOWN && s.splits == 1)) {
                write_x(tile, m, v + bias[j] + residual(tile, m), norm[j]);
                continue;
            }
            if (m >= M) continue;
            if (kind == QKV) {
                narrow(v * shared.inverse[m] + bias[j], p.qkv[m * 3 * s.H + column]);
            } else if (kind == UP) {
                narrow(gelu_tanh(v * shared.inverse[m] + bias[j]), p.hidden[m * s.W + column]);
            } else if (kind == DOWN) {
                p.partial[(split * M + m) * s.H + column] = v;
            } else {
                const int r = m / s.T, frame = m - r * s.T - (s.T - s.P);
                if (frame >= 0)
                    p.velocity[(r * s.P + frame) * s.C + column] = v * shared.inverse[m] + bias[j];
            }
        }
    }

    // ---- x: every block keeps its own columns in float32; others read them in bfloat16, times the
    // next norm's weight. The norm's divisor follows from partial sums of squares

    __device__ __forceinline__ float& residual(int tile, int m) {
        return shared.own[((tile - own.first) * ROWS + m) * TILE + n];
    }

    __device__ __forceinline__ void write_x(int tile, int m, float v, float weight) {
        if (m >= M) v = 0;
        residual(tile, m) = v;
        float squares = v * v;
#pragma unroll
        for (int x = 1; x < TILE; x *= 2) squares += __shfl_xor_sync(~0u, squares, x);
        if (m >= M) return;
        narrow(v * weight, p.x[m * s.H + tile * TILE + n]);
        if (n == 0) p.squares[m * tiles + tile] = squares;
    }

    __device__ __forceinline__ void prefetch_squares() {
        const int warp = tid / 32, lane = tid % 32;
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
            const int m = warp + CONSUMERS * i;
            square[i] = 0;
            for (int v = lane; m < M && v < tiles / 4; v += 32) {
                unsigned part[4];
                ld_cg(p.squares + m * tiles + v * 4, part);
                square[i] += (__uint_as_float(part[0]) + __uint_as_float(part[1])) +
                             (__uint_as_float(part[2]) + __uint_as_float(part[3]));
            }
        }
    }
    __device__ __forceinline__ void reduce_squares() {
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
#pragma unroll
            for (int x = 1; x < 32; x *= 2) square[i] += __shfl_xor_sync(~0u, square[i], x);
            if (tid % 32 == 0)
                shared.inverse[tid / 32 + CONSUMERS * i] = 1 / sqrtf(square[i] / s.H + EPS);
        }
    }

    // ---- phases without products

    __device__ __forceinline__ void run(const Phase& phase, const Range& range) {
        if (phase.kind == ATTENTION) {
            for (int unit = range.first + tid / 32; unit < range.end; unit += CONSUMERS)
                attention(p, phase.layer, unit);
            return;
        }
        if (phase.kind == EMBED && phase.eval > 0) {
            step(phase.eval - 1);
            sync_consumers();
        }
        for (int unit = range.first; unit < range.end; unit += GROUP) {
            if (unit > range.first) load_constants(phase, unit, min(range.end - unit, GROUP));
#pragma unroll
            for (int j = 0; j < GROUP; ++j)
                if (unit + j < range.end)
#pragma unroll 1
                    for (int m0 = 0; m0 < ROWS; m0 += CONSUMER_THREADS / TILE) {
                        const int m = m0 + tid / TILE, tile = unit + j;
                        float v = 0;
                        if (m < M)
                            v = phase.kind == EMBED ? token(phase, tile, m) : reduced(tile, m, j);
                        write_x(tile, m, v, norm[j]);
                    }
        }
    }

    __device__ __forceinline__ float reduced(int tile, int m, int j) {
        const float* from = p.partial + m * s.H + tile * TILE + n;
        float v = 0;
        for (int split = 0; split < s.splits; ++split) v += ld_cg(from + split * M * s.H);
        return v + bias[j] + residual(tile, m);
    }

    // [condition + time; history; x], of which the constant part is precomputed
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

    // Constant over the evaluations: the embedded condition and history.
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
            const bf16* const w =
                (const bf16*)p.matrix[COND] + (long long)(own.first * TILE + column) * s.Hc;
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

    // The solver's step after an evaluation, replicated: every block keeps the whole state, a few
    // kilobytes, and nothing of it is communicated.
    __device__ __forceinline__ void step(int eval) {
        const int state = s.B * s.P * s.C;
        const bool advance = p.advance[eval / 64] >> eval % 64 & 1;
        draw += advance;
        const float dt = p.dt[eval];
        for (int i = tid; i < state; i += CONSUMER_THREADS) {
            const int b = i / (s.P * s.C);
            float v = ld_cg(p.velocity + i);
            if (s.R > s.B) v = fmaf(p.guidance[b], v - ld_cg(p.velocity + state + i), v);
            v = fmaf(dt, v, shared.base[i]);
            const float scale = advance ? p.noise_scale[eval * s.B + b] : 0;
            if (scale != 0 && draw < s.draws) v = fmaf(scale, p.noise[draw * state + i], v);
            shared.current[i] = v;
            if (advance) shared.base[i] = v;
        }
    }
    __device__ __forceinline__ void write_output() {
        for (int i = tid; i < s.B * s.P * s.C; i += CONSUMER_THREADS) p.out[i] = shared.current[i];
    }
    __device__ __forceinline__ void fill_nan() {
        for (int i = tid; i < s.B * s.P * s.C; i += CONSUMER_THREADS)
            p.out[i] = __uint_as_float(0x7fc00000);
    }
};

}  // namespace flow
