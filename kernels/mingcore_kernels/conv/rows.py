"""What the convolutions share: where each row of a batch is, its inputs, its outputs, its state.

All of it is read on the device by each program, so no launch waits for the host: lengths (inputs
that a row has had), valid (those of this chunk), ended. An input's place is counted from the
chunk's first; what came before is in the context. One load gives both, by a select of the address,
so that no joined copy of the two is ever made. Tiles that lie inside the chunk, which are nearly
all of a long one, skip the select and all masks along time.
"""

import triton
import triton.language as tl

from ..lib.activations import activate


@triton.jit
def row_of(lengths, valid, ended, i_b, L, LAST: tl.constexpr):
    """Of row i_b: inputs it has had, those it gets now (never more than the chunk has), whether it
    ends."""
    seen = tl.zeros([], tl.int64)
    if lengths is not None:
        seen = tl.load(lengths + i_b)
    new = tl.zeros([], tl.int64) + L
    if valid is not None:
        new = tl.minimum(tl.maximum(tl.load(valid + i_b), 0), new)
    done = tl.full([], LAST, tl.int32)
    if ended is not None:
        done = tl.load(ended + i_b).to(tl.int32)
    return seen, new, done


@triton.jit
def plan_of(
    seen,
    new,
    done,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    LEFT_PAD: tl.constexpr,
    FLUSH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The first output's first input, counted from the chunk's; and how many outputs there are."""
    SPAN: tl.constexpr = (KERNEL - 1) * DILATION
    OVER: tl.constexpr = SPAN + 1 - STRIDE if SPAN + 1 > STRIDE else 0
    ends = (done != 0) & (seen + new > 0)
    if TRANSPOSED:
        first = tl.full([], -(SPAN // STRIDE), tl.int32)
        count = new * STRIDE + tl.where(ends, FLUSH, 0)
    elif STRIDE == 1 and LEFT_PAD == SPAN:  # a constant, so that alignment is known
        first = tl.full([], -SPAN, tl.int32)
        count = new
    else:
        earlier = tl.maximum(seen + (LEFT_PAD - SPAN - 1 + STRIDE), 0) // STRIDE
        complete = tl.maximum(seen + new + (LEFT_PAD - SPAN - 1 + STRIDE), 0) // STRIDE
        covered = tl.maximum(seen + new + (LEFT_PAD - OVER + STRIDE - 1), 0) // STRIDE
        count = tl.where(ends, covered, complete) - earlier
        first = (earlier * STRIDE - LEFT_PAD - seen).to(tl.int32)
    return first, count.to(tl.int32)


@triton.jit
def inputs_of(
    x,
    context,
    o_c,
    o_j,
    mask,
    seen,
    new,
    L,
    W,
    stride_x_c,
    stride_x_t,
    REPLICATE: tl.constexpr,
    INSIDE: tl.constexpr,
    OFFSET: tl.constexpr = tl.int64,
):
    """The inputs o_j of the channels o_c of one row; `mask`: those wanted.

    Before the chunk the context's, or, of a new stream, zeros or its first input; beyond the row's
    own zeros or its last one. INSIDE: all o_j are the row's own inputs of this chunk. OFFSET: the
    type of distances from x and context.
    """
    o_wide = o_c.to(OFFSET)
    if INSIDE:
        return tl.load(x + o_wide * stride_x_c + o_j.to(OFFSET) * stride_x_t, mask=mask, other=0)
    if REPLICATE:
        o_j = tl.minimum(o_j, new.to(tl.int32) - 1)
        o_j = tl.where(seen == 0, tl.maximum(o_j, 0), o_j)
        mask = mask & (o_j < L)
    else:
        mask = mask & (o_j < new)
    p_x = x + o_wide * stride_x_c + o_j.to(OFFSET) * stride_x_t
    if context is not None:
        mask = mask & (o_j >= tl.where(seen > 0, -W, 0))
        p_x = tl.where(o_j >= 0, p_x, context + o_wide * W + (o_j + W))
    else:
        mask = mask & (o_j >= 0)
    return tl.load(p_x, mask=mask, other=0)


@triton.jit
def finish(
    b_y,
    bias,
    residual,
    alpha,
    gain,
    out,
    o_n,
    o_t,
    m_n,
    T,
    count,
    stride_r_n,
    stride_r_t,
    stride_o_n,
    stride_o_t,
    ACT: tl.constexpr,
):
    """Bias, activation, residual; zeros beyond the row's own. o_n, m_n [M, 1], o_t [1 or M, T]."""
    o_wide, o_time = o_n.to(tl.int64), o_t.to(tl.int64)
    if bias is not None:
        b_y += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    if ACT == "snake":
        b_alpha = tl.load(alpha + o_n, mask=m_n, other=0.0)
        b_y = activate(b_y, ACT, b_alpha, tl.load(gain + o_n, mask=m_n, other=0.0))
    else:
        b_y = activate(b_y, ACT, None, None)
    m_own = m_n & (o_t < tl.minimum(T, count))
    if residual is not None:
        p_r = residual + o_wide * stride_r_n + o_time * stride_r_t
        b_y += tl.load(p_r, mask=m_own, other=0.0).to(tl.float32)
    p_o = out + o_wide * stride_o_n + o_time * stride_o_t
    tl.store(p_o, tl.where(m_own, b_y, 0.0), mask=m_n & (o_t < T))


@triton.jit
def write_counts(emitted, earlier, i_b, seen, count):
    """The row's number of outputs, and what the launch for the state must still know."""
    tl.store(emitted + i_b, count.to(tl.int64))
    if earlier is not None:
        tl.store(earlier + i_b, seen)


@triton.jit(do_not_specialize=["L"])
def _conv_state_kernel(
    x,
    context,
    lengths,
    valid,
    ended,
    context_out,
    lengths_out,
    C,
    L,
    W,
    stride_x_b,
    stride_x_c,
    stride_x_t,
    REPLICATE: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The newest W inputs and the lengths; context_out may be the context itself."""
    i_b = tl.program_id(1).to(tl.int64)
    seen, new, done = row_of(lengths, valid, ended, i_b, L, LAST)
    if tl.program_id(0) == 0:
        tl.store(lengths_out + i_b, tl.where(done != 0, 0, seen + new))
    o_c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    if context is not None:
        context += i_b * C * W
    x += i_b * stride_x_b
    context_out += i_b * C * W
    # all places are below `new`; a row without an input of its own may copy the chunk's first one
    some = tl.maximum(new, REPLICATE)
    live = tl.where(done != 0, 0, W)
    for w in range(0, W, BLOCK_W):  # upwards: what a piece writes no later one reads
        o_w = (w + tl.arange(0, BLOCK_W))[None, :]
        b_x = inputs_of(
            x,
            context,
            o_c,
            new.to(tl.int32) - W + o_w,
            (o_c < C) & (o_w < live),
            seen,
            some,
            L,
            W,
            stride_x_c,
            stride_x_t,
            REPLICATE,
            False,
        )
        tl.debug_barrier()  # what one thread writes, another may have to read first
        tl.store(context_out + o_c.to(tl.int64) * W + o_w, b_x, mask=(o_c < C) & (o_w < W))
