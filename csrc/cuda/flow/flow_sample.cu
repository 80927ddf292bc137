// flow_sample: the whole flow sampler, all evaluations, transformer blocks and both branches of the
// guidance, in one persistent cooperative launch. docs/model.md section 3; the operands are Params
// (flow_sample_ring.cuh).
// arch: sm_90a
//
// Bound by bandwidth and by synchronisation. Cost: the weights once per evaluation, all else is
// small. 8 blocks of width 1024 hold 201 MB in bfloat16, ten evaluations read 2.0 GB: 0.42 to 0.47 ms
// at 4.8 to 4.3 TB/s; in e4m3 half of that. 22 rows of tokens make 44 GFLOP of that, nothing for
// tensor cores. What remains is the chain of dependent phases, 6 per block and 2 per evaluation, 500
// in all: at 1 us each they cost as much as the bytes. So the bytes must stream while the phases wait.
//
// - Warp specialisation: one thread block per multiprocessor, one of whose warps is the producer. It
//   streams the weights that the block will need through a ring of pages in shared memory, by
//   cp.async.bulk on mbarriers, in the order of their use and without regard to the phases: weights do
//   not depend on other blocks. A page is 8 rows of 1024 weights; the ring holds 11 pages of bfloat16,
//   about all that a multiprocessor reads in one transformer block, so memory stays busy through every
//   synchronisation.
// - mma.m16n8k16 with weights as the narrow operand (n8) and tokens as the wide one (m16): 384, 128, 512
//   and 512 units spread better over 132 multiprocessors than half as many of 16 rows would. Weights
//   stay in rows, the layout that Triton reads too; every row of a page is one copy.
// - Six phases per transformer block: QKV, ATTENTION, OUT, UP, DOWN, REDUCE. Synchronisation is by
//   acquire/release flags instead of a grid barrier: each block has a flag that counts its phases since
//   ever. Nothing is reset, a replayed CUDA graph needs no memset, and there is no atomic. QKV, OUT, UP
//   and DOWN wait for all blocks; ATTENTION for the few that made the q, k and v of its heads, REDUCE
//   for the four that hold the splits of its columns.
// - DOWN is split-K, in W / H splits. Without, every multiprocessor reads all of `hidden`, 24 MB through
//   L2 per block and 22 rows; with it 6 MB, and one synchronisation with few more.
// - x stays in float32 in shared memory, each column with the block that computes it, for all
//   evaluations. Others read it as bfloat16, times the weight of the next RMSNorm, whose divisor comes
//   from sums of squares per 8 columns and is applied in the epilogue of the product: a norm costs no
//   phase.
// - Activations go from L2 straight to mma's registers: split-K over the warps, every eighth run of 32
//   elements, so no two warps of a block read the same.
// - Biases, scales and the norm's weights are loaded before the wait. Sums are reduced in the order of
//   the warps, and of the splits: deterministic.
// - Every block keeps the whole latent state and makes the solver's step for itself.
// - A timeout of seconds sets the abort word, and a word in host memory that the next call reads; all
//   blocks leave, when their copies have arrived, with NaN. No trap: other requests go on.
//
// Tried: 288 threads without setmaxnreg have 168 registers each, and with 32, 64 and 96 rows of tokens
// 56, 192 and 288 bytes per thread spilled; with it consumers have 232, and up to 64 rows nothing
// spills. For 96 rows a lane must take 8 weights at a time, also of e4m3 (with 16: 48 bytes spilled),
// and a pass has two units, not four: activations are then read twice.
// Not measured: it was compiled, emulated with the real text on the CPU, and its schedule was
// model-checked at real sizes; no GPU has run it so far. 168 registers for 384 threads, nothing
// spilled, one block per multiprocessor.
#include "flow/flow_sample_phases.cuh"

namespace flow {

template <class T>
__device__ __forceinline__ void flow_sample(const Params& p) {
    const Shape& s = p.s;
    const Shared<T> shared(s, gridDim.x);
    if (threadIdx.x == 0) {
        for (int i = 0; i < s.pages; ++i) {
            mbarrier_init(shared.full + i, 1);
            mbarrier_init(shared.empty + i, CONSUMERS);
        }
        fence_proxy_async();
        *shared.epoch = ld_acquire(p.flags + FLAGS + blockIdx.x);
        *shared.aborted = ld_acquire(p.flags + ABORTED) != 0;
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMER_THREADS) {
        setmaxnreg_dec<40>();
        if (threadIdx.x >= CONSUMER_THREADS + 32) return;
        Producer<T> producer{p, shared};
        produce<T::BYTES, T::GROUP>(producer, s, blockIdx.x, gridDim.x);
        producer.drain();
    } else {
        setmaxnreg_inc<232>();
        Consumer<T> consumer(p, shared);
        consumer.prepare();
        if (!consume<T::BYTES, T::GROUP>(consumer, s, blockIdx.x, gridDim.x)) consumer.fill_nan();
    }
}

}  // namespace flow

#define INSTANTIATE(NAME, W, MT)                                            \
    extern "C" __global__ void __launch_bounds__(flow::THREADS, 1)          \
        flow_sample_##NAME##_##MT(const __grid_constant__ flow::Params p) { \
        flow::flow_sample<flow::Traits<W, MT>>(p);                          \
    }

INSTANTIATE(bf16, bf16, 2)
INSTANTIATE(bf16, bf16, 4)
INSTANTIATE(bf16, bf16, 6)
INSTANTIATE(fp8, e4m3, 2)
INSTANTIATE(fp8, e4m3, 4)
INSTANTIATE(fp8, e4m3, 6)
