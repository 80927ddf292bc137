// overlap_add: sum_t window * frame_t / sum_t window^2, frames `hop` apart, streamed. One launch.
// arch: sm_80 sm_90a sm_100 compute_80
//
// Cost: B T F elements of frames read once, B T hop samples written; the window comes from L1.
//
// - Gather, no atomics: a thread owns 4 columns (16 bytes) of one hop where sizes and addresses allow,
//   else 1, and sums the ceil(F / hop) frames that reach them, the oldest first, on top of the carried
//   sums. So a stream has the same bits however it was cut.
// - A block owns columns of a few hops; a patch's hops are all in one block, so the carried sums may
//   be rewritten in place.
// - Per-row lengths, ends and resets are read on the device: no host synchronisation.
#include "spectrum/overlap_rows.cuh"

template <class X_, int WIDTH_>
struct OverlapAddTraits {
    using X = X_;  // the frames' type
    static constexpr int WIDTH = WIDTH_;
    static constexpr int THREADS = 256;
};

template <class Traits>
__device__ __forceinline__ void overlap_add(const OverlapParams& p) {
    using X = typename Traits::X;
    constexpr int WIDTH = Traits::WIDTH;
    const int stripe = blockIdx.x % p.stripes, chunk = blockIdx.x / p.stripes % p.chunks;
    const Row r = find_row(p, blockIdx.x / (p.stripes * p.chunks), stripe + chunk == 0,
                           (u64*)shared_memory());
    const int vectors = p.columns / WIDTH;
    const int t = chunk * p.hops + threadIdx.x / vectors;
    const int i = stripe * p.columns + threadIdx.x % vectors * WIDTH;
    const bool active = threadIdx.x / vectors < p.hops && i < p.hop;
    float sum[WIDTH], x[WIDTH], w[WIDTH];
    if (active) {
        load_carried<WIDTH>(p, r, t, i, sum);
        const X* frames = (const X*)p.frames + r.b * p.frames_batch;
#pragma unroll 4
        for (int j = r.parts(p) - 1; j >= 0; --j) {
            const int n = j * p.hop + i;
            if (n >= p.F || t - j < 0 || t - j >= r.new_frames) continue;
            load<WIDTH>(frames + (t - j) * p.frames_row + n, x);
            load<WIDTH>(p.window + n, w);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) sum[k] = fmaf(w[k], x[k], sum[k]);
        }
    }
    __syncthreads();  // in place: every thread has read the carried sums
    if (active) write_sample<WIDTH>(p, r, t, i, sum);
}

#define INSTANTIATE(NAME, X, WIDTH)                                                      \
    extern "C" __global__ void __launch_bounds__(OverlapAddTraits<X, WIDTH>::THREADS, 4) \
        overlap_add_##NAME##_##WIDTH(const OverlapParams p) {                            \
        overlap_add<OverlapAddTraits<X, WIDTH>>(p);                                      \
    }

INSTANTIATE(float32, float, 4)
INSTANTIATE(float32, float, 1)
INSTANTIATE(bfloat16, bf16, 4)
INSTANTIATE(bfloat16, bf16, 1)
INSTANTIATE(float16, f16, 4)
INSTANTIATE(float16, f16, 1)
