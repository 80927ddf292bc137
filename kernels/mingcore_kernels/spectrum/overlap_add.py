"""overlap_add: sum_t window * frame_t / sum_t window^2, frames `hop` apart, streamed; one launch.

Cost: B T F floats of frames read once, B T hop samples written; the window stays in L1. Every
sample is a gather over the ceil(F / hop) frames that reach it, oldest first on top of what was
carried: no atomics on sums, and a stream's bits do not depend on how it was cut. A program owns
BLOCK_I columns of the hop for BLOCK_T hops of one row, so that what it reads of the carried sums
in place is what it writes.

Nothing waits for the host: how many frames are a row's own, what it had, whether it ends, are read
by the program. In place, lengths is read by every program of a row and rewritten by one: each adds
1 << 48 to what it reads, so the upper bits count the readers, and the last one writes.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device

LENGTH_BITS = tl.constexpr(48)
LENGTH = tl.constexpr((1 << 48) - 1)
READER = tl.constexpr(1 << 48)
FEW_HOPS = 16  # that one program takes: what is carried is then read and written by it alone


@triton.jit
def own_frames(valid, i_b, T, HAS_VALID: tl.constexpr):
    """How many of the T frames are row i_b's own."""
    if HAS_VALID:
        return tl.minimum(tl.load(valid + i_b), T).to(tl.int32)
    return T


@triton.jit
def frames_before(lengths, i_b, first, programs, HAS_STATE: tl.constexpr, IN_PLACE: tl.constexpr):
    """(frames that row i_b has had, whether this program of the row's `programs` writes lengths).

    first: one program per row says True.
    """
    if IN_PLACE:
        b_old = tl.atomic_add(lengths + i_b, READER)
        return b_old & LENGTH, (b_old >> LENGTH_BITS) == programs - 1
    if HAS_STATE:
        return tl.load(lengths + i_b), first
    return (first * 0).to(tl.int64), first


@triton.jit
def carried_sums(numerator, i_b, before, o_t, o_i, F, hop, HAS_STATE: tl.constexpr):
    """What earlier frames gave to columns o_i of hops o_t, [hops, columns]."""
    o_at = o_t[:, None] * hop + o_i[None, :]
    if HAS_STATE:
        m_at = (o_i < hop)[None, :] & (o_at < tl.where(before > 0, F - hop, 0))
        return tl.load(numerator + i_b * (F - hop) + o_at, mask=m_at, other=0.0)
    return o_at.to(tl.float32) * 0.0


@triton.jit
def finish_hops(
    b_sum,
    i_b,
    before,
    writes,
    fresh,
    o_t,
    o_i,
    window,
    ended,
    out,
    numerator,
    lengths,
    emitted,
    F,
    hop,
    outputs,
    last,
    HAS_ENDED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """From sums b_sum [hops o_t, columns o_i] to samples, carried sums, lengths and emitted.

    before, fresh: frames that the row has had and has now.
    """
    carried = F - hop
    trim = carried // 2
    near = tl.minimum(before, PARTS).to(tl.int32)  # more of them make no difference
    o_at = o_t[:, None] * hop + o_i[None, :]
    m_i = (o_i < hop)[None, :]
    b_envelope = tl.zeros_like(b_sum)
    for q in range(PARTS):
        o_w = (PARTS - 1 - q) * hop + o_i
        b_w = tl.load(window + o_w, mask=(o_i < hop) & (o_w < F), other=0.0).to(tl.float32)
        o_f = o_t - (PARTS - 1 - q)
        m_f = (o_f >= -near) & (o_f < fresh)
        b_envelope += tl.where(m_f[:, None], (b_w * b_w)[None, :], 0.0)

    if HAS_ENDED:
        done = tl.load(ended + i_b).to(tl.int32)
    else:
        done = last
    skip = tl.maximum(trim - near * hop, 0)
    end = fresh * hop + tl.where((done != 0) & (near + fresh > 0), carried - trim, 0)
    gives = tl.minimum(tl.maximum(end - skip, 0), outputs)
    o_out = o_at - skip
    b_y = tl.where(o_out < gives, b_sum / b_envelope, 0.0)
    tl.store(out + i_b * outputs + o_out, b_y, mask=m_i & (o_out >= 0) & (o_out < outputs))

    if IN_PLACE:
        tl.debug_barrier()  # every thread has read what it needs of the carried sums
    o_carry = o_at - fresh * hop
    b_carry = tl.where(done != 0, 0.0, b_sum)
    m_carry = m_i & (o_carry >= 0) & (o_carry < carried)
    tl.store(numerator + i_b * carried + o_carry, b_carry, mask=m_carry)
    tl.store(lengths + i_b, tl.where(done != 0, 0, before + fresh), mask=writes)
    tl.store(emitted + i_b, gives.to(tl.int64), mask=writes)


@triton.jit(do_not_specialize=["T", "outputs", "last", "stripes", "chunks"])
def _overlap_add_kernel(
    frames,
    window,
    numerator,
    lengths,
    valid,
    ended,
    out,
    numerator_out,
    lengths_out,
    emitted,
    T,
    F,
    hop,
    outputs,
    last,
    stripes,
    chunks,
    stride_b,
    stride_t,
    HAS_STATE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_ENDED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    i_stripe, i_chunk = tl.program_id(0) % stripes, tl.program_id(0) // stripes % chunks
    i_b = (tl.program_id(0) // (stripes * chunks)).to(tl.int64)
    o_t = i_chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    o_i = i_stripe * BLOCK_I + tl.arange(0, BLOCK_I)
    first = (i_stripe == 0) & (i_chunk == 0)
    fresh = own_frames(valid, i_b, T, HAS_VALID)
    before, writes = frames_before(lengths, i_b, first, stripes * chunks, HAS_STATE, IN_PLACE)

    b_sum = carried_sums(numerator, i_b, before, o_t, o_i, F, hop, HAS_STATE)
    for q in range(PARTS):  # from the oldest frame to the newest
        o_f = o_t - (PARTS - 1 - q)
        o_w = (PARTS - 1 - q) * hop + o_i
        m_w = (o_i < hop) & (o_w < F)
        m_f = (o_f >= 0) & (o_f < fresh)
        p_x = frames + i_b * stride_b + o_f.to(tl.int64)[:, None] * stride_t + o_w[None, :]
        b_x = tl.load(p_x, mask=m_f[:, None] & m_w[None, :], other=0.0).to(tl.float32)
        b_w = tl.load(window + o_w, mask=m_w, other=0.0).to(tl.float32)
        b_sum += b_x * b_w[None, :]
    finish_hops(
        b_sum,
        i_b,
        before,
        writes,
        fresh,
        o_t,
        o_i,
        window,
        ended,
        out,
        numerator_out,
        lengths_out,
        emitted,
        F,
        hop,
        outputs,
        last,
        HAS_ENDED,
        IN_PLACE,
        PARTS,
    )


def blocks_of(hops: int, hop: int) -> tuple[int, int, int]:
    """(hops, columns, warps) of a program, for so many hops of a row."""
    if hops <= FEW_HOPS:  # a patch: many small programs, each with all hops of its columns
        return triton.next_power_of_2(hops), min(32, triton.next_power_of_2(hop)), 2
    return 8, min(128, triton.next_power_of_2(hop)), 4


def overlap_add(
    frames: Tensor,
    window: Tensor,
    hop: int,
    numerator: Tensor | None,
    lengths: Tensor | None,
    valid: Tensor | None,
    ended: Tensor | None,
    last: bool,
    out: Tensor,
    next_numerator: Tensor,
    next_lengths: Tensor,
    emitted: Tensor,
) -> None:
    """Write samples [B, L] into `out`, and the next state.

    frames [B, T, F] and window [F] of any float type up to float32, their last dimension dense;
    numerator [B, F - hop] float32 and lengths [B] int64, None for new streams; they may be
    next_numerator and next_lengths themselves. valid [B] int64, ended [B] bool; all of them dense.
    """
    B, T, F = frames.shape
    if B == 0:
        return
    parts = triton.cdiv(F, hop)
    hops = T + parts - 1
    block_t, block_i, warps = blocks_of(max(hops, 1), hop)
    chunks, stripes = max(triton.cdiv(hops, block_t), 1), triton.cdiv(hop, block_i)
    in_place = lengths is next_lengths
    if in_place and chunks > 1:
        numerator = numerator.clone()  # other programs write what the first ones read
    with on_device(frames):
        _overlap_add_kernel[(B * chunks * stripes,)](
            frames,
            window,
            numerator,
            lengths,
            valid,
            ended,
            out,
            next_numerator,
            next_lengths,
            emitted,
            T,
            F,
            hop,
            out.shape[1],
            int(last),
            stripes,
            chunks,
            frames.stride(0),
            frames.stride(1),
            HAS_STATE=lengths is not None,
            HAS_VALID=valid is not None,
            HAS_ENDED=ended is not None,
            IN_PLACE=in_place,
            PARTS=parts,
            BLOCK_T=block_t,
            BLOCK_I=block_i,
            enable_fp_fusion=True,
            num_warps=warps,
        )
