// flow_sample: the whole flow sampler, all evaluations, blocks and both branches, in one launch.
// docs/model.md section 3; the operands are Params (flow_sample_ring.cuh).
// arch: sm_90a
//
// Cost: the weights once per evaluation, all else is small. 8 blocks of width 1024 hold 201 MB in
// bfloat16, ten evaluations read 2.0 GB: 0.42 to 0.47 ms at 4.8 to 4.3 TB/s; in e4m3 half of that.
// 22 rows of tokens make 44 GFLOP of that, nothing for tensor cores. What remains is the chain of
// dependent phases, 6 per block and 2 per evaluation, 500 in all: at 1 us each they cost as much as
// the bytes. So the bytes must come while the phases wait for each other.
//
// - One block per multiprocessor. One of its warps, the producer, streams the weights that the block
//   will need through a ring of pages in shared memory, by bulk copies, in the order of their use
//   and without regard to the phases: weights do not depend on the exchange. A page is 8 rows of
//   1024 weights; the ring holds 11 pages of bfloat16, about all that a multiprocessor reads in one
//   block of the head, so memory is busy through every exchange of a block.
// - Weights are the operand of width 8 of mma.m16n8k16, tokens that of 16 rows: 384, 128, 512 and
//   512 units spread better over 132 multiprocessors than half as many of 16 rows would. A row is
//   read in the layout that Triton reads too; every row of a page is one copy.
// - Six phases per block: QKV, ATTEND, OUT, UP, DOWN, SETTLE. A block says with a flag of its own
//   how many phases it has ended, since ever: nothing is reset, a replayed graph needs no memset,
//   and there is no atomic. QKV, OUT, UP and DOWN wait for all blocks; ATTEND for the few that made
//   the q, k and v of its heads, SETTLE for the four that hold the parts of its columns.
// - DOWN is cut into W / H parts of the sum. Uncut, every multiprocessor reads all of `hidden`,
//   24 MB through L2 per block and 22 rows; cut, 6 MB and one exchange with few more.
// - x lives in float32 in shared memory, each column with the block that computes it, for all
//   evaluations. Others see it as bfloat16, times the weight of the next norm; what the norm
//   divides by comes from sums of squares per 8 columns, and is applied to the product's result. So
//   a norm costs no exchange.
// - Activations go from L2 straight to the registers that mma takes them from: a warp sums up every
//   eighth run of 32 elements, so no two warps of a block read the same.
// - Biases, scales and the norm's weights are asked for before the wait, since no exchange changes
//   them. Sums are added up in the order of the warps, and of the parts: the same bits every time.
// - Every block keeps the whole latent state and makes the solver's step for itself.
// - A wait of seconds sets the abort word, and a word on the host that the next call sees; all
//   blocks leave, when their copies have arrived, with NaN. No trap: other requests go on.
//
// Tried: 288 threads without setmaxnreg have 168 registers each, and with 32, 64 and 96 rows of
// tokens 56, 192 and 288 bytes of each went to local memory; with it consumers have 232, and up to
// 64 rows none does. For 96 rows a lane must take 8 weights at a time, also of e4m3 (with 16: 48
// bytes), and units go by twos, not fours: activations are then read twice.
// Not measured: it was compiled, emulated with the real text on the CPU, and its control was walked
// at real sizes; no GPU has run it so far. 168 registers for 384 threads, nothing spilled, one block
// per multiprocessor.
#include "flow/flow_sample_phases.cuh"

namespace flow {

template <class T>
__device__ __forceinline__ void flow_sample(const Params& p) {
    const Shape& s = p.s;
    const Shared<T> shared(s, gridDim.x);
    if (threadIdx.x == 0) {
        for (int i = 0; i < s.pages; ++i) {
            barrier_init(shared.full + i, 1);
            barrier_init(shared.empty + i, CONSUMERS);
        }
        fence_async();
        *shared.epoch = peek(p.flags + FLAGS + blockIdx.x);
        *shared.stop = peek(p.flags + ABORTED) != 0;
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMER_THREADS) {
        fewer_registers<40>();
        if (threadIdx.x >= CONSUMER_THREADS + 32) return;
        Producer<T> producer{p, shared};
        produce<T::BYTES, T::GROUP>(producer, s, blockIdx.x, gridDim.x);
        producer.drain();
    } else {
        more_registers<232>();
        Consumer<T> consumer(p, shared);
        consumer.prepare();
        if (!consume<T::BYTES, T::GROUP>(consumer, s, blockIdx.x, gridDim.x)) consumer.spoil();
    }
}

}  // namespace flow

#define INSTANTIATE(NAME, W, MT)                                                             \
    extern "C" __global__ void __launch_bounds__(flow::THREADS, 1)                           \
        flow_sample_##NAME##_##MT(const __grid_constant__ flow::Params p) {                  \
        flow::flow_sample<flow::Traits<W, MT>>(p);                                           \
    }

INSTANTIATE(bf16, bf16, 2)
INSTANTIATE(bf16, bf16, 4)
INSTANTIATE(bf16, bf16, 6)
INSTANTIATE(fp8, e4m3, 2)
INSTANTIATE(fp8, e4m3, 4)
INSTANTIATE(fp8, e4m3, 6)
