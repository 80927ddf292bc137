"""causal_conv1d and causal_conv_transpose1d: out = act(conv(act_before(x)) + bias) + residual.

x [B, C_in, L], weight as PyTorch holds it, out [B, C_out, T]; sums are float32. 2 C_in/groups k
FLOPs per output (of a transposed one 1/stride of it); x, the weights, the residual and out move
once where they stay in L2. A row's inputs before the chunk come out of its context by a select of
the address, one load for both, so no joined copy of the two is ever made. How far each row is
(lengths, valid, ended) is read on the device by each program.

A transposed convolution is an ordinary one of stride 1 whose output rows are (channel, phase): tap
i of phase r reads weight element (taps - 1 - i) stride + r, where dilation divides that. A tile
holds all phases of its channels, so that it writes whole sectors of the interleaved output.

Dense: an implicit matrix product with tl.dot, the inputs summed in the order (channel, tap), which
is how the weights lie; the activation before is computed anew for each tap. A depth of BLOCK_K is
the same for all tiles of a type, so a sum does not depend on how the stream is cut. Groups of fewer
than FEW inputs (depthwise): multiply and add over [channels, time], one tap after another.

Two launches: the outputs, then the state, whose old value all programs of the first one read. Not
measured on a GPU, nothing else was tried.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .configs import shared_bytes

FEW = 8  # inputs of a group that a matrix product would mostly pad
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_STATE_TILE = 2048
# (rows, times) -> block_m, block_t, block_k, warps, stages; reasoned, not measured
_TILES = {
    2: ((16, 16, 64, 4, 4), (32, 32, 64, 4, 4), (64, 64, 64, 4, 3), (128, 64, 64, 8, 3)),
    4: ((16, 16, 32, 4, 3), (32, 32, 32, 4, 3), (64, 32, 32, 4, 2), (64, 64, 32, 8, 2)),
}


@triton.jit
def _row(lengths, valid, ended, i_b, L, LAST: tl.constexpr):
    """Of row i_b: inputs it has had, those it gets now, whether it ends."""
    seen = tl.zeros([], tl.int64)
    if lengths is not None:
        seen = tl.load(lengths + i_b)
    new = seen * 0 + L
    if valid is not None:
        new = tl.load(valid + i_b)
    done = seen * 0 + LAST
    if ended is not None:
        done = tl.load(ended + i_b).to(tl.int64)
    return seen, new, done


@triton.jit
def _plan(seen, new, done, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
          LEFT_PAD: tl.constexpr, FLUSH: tl.constexpr, TRANSPOSED: tl.constexpr):  # fmt: skip
    """The first output's first input, counted from the chunk's; and how many outputs there are."""
    SPAN: tl.constexpr = (KERNEL - 1) * DILATION
    ends = (done != 0) & (seen + new > 0)
    if TRANSPOSED:
        first = -(SPAN // STRIDE) + 0 * seen
        count = new * STRIDE + tl.where(ends, FLUSH, 0)
    else:
        OVER: tl.constexpr = SPAN + 1 - STRIDE if SPAN + 1 > STRIDE else 0
        earlier = tl.maximum(seen + LEFT_PAD - SPAN - 1 + STRIDE, 0) // STRIDE
        whole = tl.maximum(seen + new + LEFT_PAD - SPAN - 1 + STRIDE, 0) // STRIDE
        covered = tl.maximum(seen + new + LEFT_PAD - OVER + STRIDE - 1, 0) // STRIDE
        count = tl.where(ends, covered, whole) - earlier
        first = earlier * STRIDE - LEFT_PAD - seen
    return first.to(tl.int32), count.to(tl.int32)


@triton.jit
def _inputs(x, context, o_c, o_j, mask, seen, new, L, W, stride_x_c, stride_x_t,
            REPLICATE: tl.constexpr):  # fmt: skip
    """The inputs o_j of the channels o_c of one row, counted from the chunk's first.

    Before it the context's, or, of a new stream, zeros or its first input; beyond the row's own
    zeros or its last one.
    """
    if REPLICATE:
        o_j = tl.minimum(o_j, new.to(tl.int32) - 1)
        o_j = tl.where(seen == 0, tl.maximum(o_j, 0), o_j)
        mask = mask & (o_j < L)
    else:
        mask = mask & (o_j < new)
    o_wide = o_c.to(tl.int64)
    p_x = x + o_wide * stride_x_c + o_j.to(tl.int64) * stride_x_t
    if context is not None:
        mask = mask & ((o_j >= 0) | (seen > 0))
        p_x = tl.where(o_j >= 0, p_x, context + o_wide * W + (o_j + W))
    else:
        mask = mask & (o_j >= 0)
    return tl.load(p_x, mask=mask, other=0.0)


@triton.jit
def _say(emitted, earlier, i_b, seen, count):
    """The row's number of outputs, and what the launch for the state must still know."""
    tl.store(emitted + i_b, count.to(tl.int64))
    if earlier is not None:
        tl.store(earlier + i_b, seen)


@triton.jit
def _finish(
    b_y, bias, residual, alpha, gain, out, o_n, o_t, mask, count, stride_r_n, stride_r_t,
    stride_o_n, stride_o_t, ACT: tl.constexpr,
):  # fmt: skip
    """Bias, activation, residual; zeros beyond the row's own. o_n [M, 1], o_t [M or 1, T]."""
    o_wide, o_time = o_n.to(tl.int64), o_t.to(tl.int64)
    m_n = tl.max(mask.to(tl.int32), 1)[:, None] > 0
    if bias is not None:
        b_y += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    if ACT == "snake":
        b_alpha = tl.load(alpha + o_n, mask=m_n, other=0.0)
        b_y = activate(b_y, ACT, b_alpha, tl.load(gain + o_n, mask=m_n, other=0.0))
    else:
        b_y = activate(b_y, ACT, None, None)
    m_own = mask & (o_t < count)
    if residual is not None:
        p_r = residual + o_wide * stride_r_n + o_time * stride_r_t
        b_y += tl.load(p_r, mask=m_own, other=0.0).to(tl.float32)
    tl.store(out + o_wide * stride_o_n + o_time * stride_o_t, tl.where(m_own, b_y, 0.0), mask=mask)


@triton.jit(do_not_specialize=["L", "T"])
def _dense_kernel(
    x, w, bias, residual, context, lengths, valid, ended, before_alpha, before_gain, after_alpha,
    after_gain, out, emitted, earlier, C, N, L, T, W, CG, NG, stride_x_b, stride_x_c, stride_x_t,
    stride_r_b, stride_r_n, stride_r_t, stride_o_b, stride_o_n, stride_o_t,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, LEFT_PAD: tl.constexpr,
    FLUSH: tl.constexpr, TRANSPOSED: tl.constexpr, REPLICATE: tl.constexpr, LAST: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, OPERAND: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    UP: tl.constexpr = STRIDE if TRANSPOSED else 1
    TAPS: tl.constexpr = (KERNEL - 1) * DILATION // STRIDE + 1 if TRANSPOSED else KERNEL
    i_b, pid = tl.program_id(1).to(tl.int64), tl.program_id(0)
    seen, new, done = _row(lengths, valid, ended, i_b, L, LAST)
    first, count = _plan(seen, new, done, KERNEL, STRIDE, DILATION, LEFT_PAD, FLUSH, TRANSPOSED)
    if pid == 0:
        _say(emitted, earlier, i_b, seen, count)
    # the tiles that share inputs side by side: the weights are in L2 anyhow
    tiles_m = tl.cdiv(NG * UP, BLOCK_M)
    i_m, i_g = pid % tiles_m, pid // tiles_m % (C // CG)
    i_t = pid // tiles_m // (C // CG)
    x += i_b * stride_x_b
    out += i_b * stride_o_b
    if context is not None:
        context += i_b * C * W
    if residual is not None:
        residual += i_b * stride_r_b

    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_q = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < NG * UP
    m_q = o_q * UP < tl.minimum(T, count)
    K = CG * TAPS
    b_acc = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    for k in range(0, K, BLOCK_K):
        o_ck = k + o_k
        m_k = o_ck < K
        o_c, o_i = i_g * CG + o_ck // TAPS, o_ck % TAPS
        if TRANSPOSED:
            o_d = (TAPS - 1 - o_i)[None, :] * UP + (o_m % UP)[:, None]
            m_w = m_m[:, None] & m_k[None, :] & (o_d % DILATION == 0) & (o_d // DILATION < KERNEL)
            o_w = (o_c.to(tl.int64)[None, :] * NG + (o_m // UP)[:, None]) * KERNEL
            b_w = tl.load(w + o_w + o_d // DILATION, mask=m_w, other=0.0)
            o_j = first + o_q[None, :] + o_i[:, None]
        else:
            p_w = w + (i_g * NG + o_m).to(tl.int64)[:, None] * K + o_ck[None, :]
            b_w = tl.load(p_w, mask=m_m[:, None] & m_k[None, :], other=0.0)
            o_j = first + o_q[None, :] * STRIDE + (o_i * DILATION)[:, None]
        m_x = m_k[:, None] & m_q[None, :]
        b_x = _inputs(x, context, o_c[:, None], o_j, m_x, seen, new, L, W, stride_x_c, stride_x_t,
                      REPLICATE)  # fmt: skip
        if BEFORE == "snake":
            b_alpha = tl.load(before_alpha + o_c, mask=m_k, other=0.0)[:, None]
            b_gain = tl.load(before_gain + o_c, mask=m_k, other=0.0)[:, None]
            b_x = activate(b_x.to(tl.float32), BEFORE, b_alpha, b_gain)
        elif BEFORE != "none":
            b_x = activate(b_x.to(tl.float32), BEFORE, None, None)
        b_acc = tl.dot(b_w.to(OPERAND), b_x.to(OPERAND), b_acc, input_precision="ieee")

    o_t = o_q[None, :] * UP + (o_m % UP)[:, None]
    mask = m_m[:, None] & (o_t < T)
    _finish(b_acc, bias, residual, after_alpha, after_gain, out, (i_g * NG + o_m // UP)[:, None],
            o_t, mask, count, stride_r_n, stride_r_t, stride_o_n, stride_o_t, AFTER)  # fmt: skip


@triton.jit(do_not_specialize=["L", "T"])
def _direct_kernel(
    x, w, bias, residual, context, lengths, valid, ended, before_alpha, before_gain, after_alpha,
    after_gain, out, emitted, earlier, C, N, L, T, W, CG, NG, stride_x_b, stride_x_c, stride_x_t,
    stride_r_b, stride_r_n, stride_r_t, stride_o_b, stride_o_n, stride_o_t,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, LEFT_PAD: tl.constexpr,
    FLUSH: tl.constexpr, TRANSPOSED: tl.constexpr, REPLICATE: tl.constexpr, LAST: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    UP: tl.constexpr = STRIDE if TRANSPOSED else 1
    TAPS: tl.constexpr = (KERNEL - 1) * DILATION // STRIDE + 1 if TRANSPOSED else KERNEL
    i_b, pid = tl.program_id(1).to(tl.int64), tl.program_id(0)
    seen, new, done = _row(lengths, valid, ended, i_b, L, LAST)
    first, count = _plan(seen, new, done, KERNEL, STRIDE, DILATION, LEFT_PAD, FLUSH, TRANSPOSED)
    if pid == 0:
        _say(emitted, earlier, i_b, seen, count)
    tiles_t = tl.cdiv(T, BLOCK_T)
    i_m, i_t = pid // tl.maximum(tiles_t, 1), pid % tl.maximum(tiles_t, 1)
    x += i_b * stride_x_b
    out += i_b * stride_o_b
    if context is not None:
        context += i_b * C * W
    if residual is not None:
        residual += i_b * stride_r_b

    o_n = (i_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    o_t = (i_t * BLOCK_T + tl.arange(0, BLOCK_T))[None, :]
    m_n = o_n < N
    mask = m_n & (o_t < T)
    m_own = m_n & (o_t < tl.minimum(T, count))
    b_acc = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    for c in range(CG):
        o_c = o_n // NG * CG + c
        if BEFORE == "snake":
            b_alpha = tl.load(before_alpha + o_c, mask=m_n, other=0.0)
            b_gain = tl.load(before_gain + o_c, mask=m_n, other=0.0)
        for i in range(TAPS):
            if TRANSPOSED:
                o_d = (TAPS - 1 - i) * UP + o_t % UP
                m_w = m_n & (o_d % DILATION == 0) & (o_d // DILATION < KERNEL)
                o_w = (o_c.to(tl.int64) * NG + o_n % NG) * KERNEL + o_d // DILATION
                b_w = tl.load(w + o_w, mask=m_w, other=0.0)
                o_j = first + o_t // UP + i
            else:
                p_w = w + (o_n.to(tl.int64) * CG + c) * KERNEL + i
                b_w = tl.load(p_w, mask=m_n, other=0.0)
                o_j = first + o_t * STRIDE + i * DILATION
            b_x = _inputs(x, context, o_c, o_j, m_own, seen, new, L, W, stride_x_c, stride_x_t,
                          REPLICATE).to(tl.float32)  # fmt: skip
            if BEFORE == "snake":
                b_x = activate(b_x, BEFORE, b_alpha, b_gain)
            else:
                b_x = activate(b_x, BEFORE, None, None)
            b_acc += b_w.to(tl.float32) * b_x
    _finish(b_acc, bias, residual, after_alpha, after_gain, out, o_n, o_t, mask, count,
            stride_r_n, stride_r_t, stride_o_n, stride_o_t, AFTER)  # fmt: skip


@triton.jit(do_not_specialize=["L"])
def _state_kernel(
    x, context, lengths, valid, ended, context_out, lengths_out, C, L, W, stride_x_b, stride_x_c,
    stride_x_t, REPLICATE: tl.constexpr, LAST: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The newest W inputs and the lengths; context_out may be the context itself."""
    i_b = tl.program_id(1).to(tl.int64)
    seen, new, done = _row(lengths, valid, ended, i_b, L, LAST)
    if tl.program_id(0) == 0:
        tl.store(lengths_out + i_b, tl.where(done != 0, 0, seen + new))
    o_c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    o_w = tl.arange(0, BLOCK_W)[None, :]
    mask = (o_c < C) & (o_w < W)
    if context is not None:
        context += i_b * C * W
    o_j = new.to(tl.int32) - W + o_w
    # all o_j < new; a row without an input of its own may still copy the chunk's first one
    some = tl.maximum(new, REPLICATE)
    b_x = _inputs(x + i_b * stride_x_b, context, o_c, o_j, mask & (done == 0), seen, some, L, W,
                  stride_x_c, stride_x_t, REPLICATE)  # fmt: skip
    tl.debug_barrier()  # what one thread writes, another may have to read first
    tl.store(context_out + i_b * C * W + o_c.to(tl.int64) * W + o_w, b_x, mask=mask)


def choose(operand_bytes: int, rows: int, times: int, capability: int = 90) -> tuple[int, ...]:
    """block_m, block_t, block_k, warps, stages of the dense kernel, by rows and times of a row."""
    tiles = _TILES[operand_bytes]
    size = next((i for i, tile in enumerate(tiles) if times <= tile[1]), len(tiles) - 1)
    if size == 2 and rows >= 512 and times > 512:
        size = 3
    block_m, block_t, block_k, warps, stages = tiles[size]
    while stages * block_k * (block_m + block_t) * operand_bytes + 1024 > shared_bytes(capability):
        stages -= 1
    return block_m, block_t, block_k, warps, stages


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    carried: tuple[Tensor | None, Tensor | None],
    rows: tuple[Tensor | None, Tensor | None, bool],
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    sizes: tuple[int, int, int, int, int, int],
    acts: tuple,
    *,
    transposed: bool = False,
    replicate: bool = False,
) -> None:
    """Write the outputs and the next state of every row into `results`.

    x [B, C_in, L] and residual [B, C_out, T] of any strides; weight, bias and all else dense.
    carried: context [B, C_in, W] and lengths [B] int64, or None for new streams; rows: valid [B]
    int64, ended [B] bool, last. results: out [B, C_out, T], context, lengths, emitted; the state may
    be the one of `carried`. sizes: kernel, stride, dilation, groups, left_pad, flush. acts: name,
    alpha, gain before the convolution and after it.
    """
    kernel, stride, dilation, groups, left_pad, flush = sizes
    out, context_out, lengths_out, emitted = results
    context, lengths = carried
    valid, ended, last = rows
    B, C, L = x.shape
    N, T = out.shape[1:]
    if B == 0:
        return
    W, CG, NG = context_out.shape[2], C // groups, N // groups
    in_place = lengths is not None and lengths.data_ptr() == lengths_out.data_ptr()
    earlier = torch.empty_like(lengths) if in_place and not x.is_meta else None
    before, before_alpha, before_gain, after, after_alpha, after_gain = acts
    operand = x.dtype if x.dtype == weight.dtype else torch.float32
    strides = *x.stride(), *((0, 0, 0) if residual is None else residual.stride()), *out.stride()
    arguments = (
        x, weight, bias, residual, context, lengths, valid, ended, before_alpha, before_gain,
        after_alpha, after_gain, out, emitted, earlier, C, N, L, T, W, CG, NG, *strides,
    )  # fmt: skip
    constants = {
        "KERNEL": kernel, "STRIDE": stride, "DILATION": dilation, "LEFT_PAD": left_pad,
        "FLUSH": flush, "TRANSPOSED": transposed, "REPLICATE": replicate, "LAST": bool(last),
        "BEFORE": before, "AFTER": after,
    }  # fmt: skip
    up = stride if transposed else 1
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if CG >= FEW:
            times = -(-T // up)
            block_m, block_t, block_k, warps, stages = choose(
                operand.itemsize, NG * up, times, capability_of(x)
            )
            tiles = triton.cdiv(NG * up, block_m) * groups * max(triton.cdiv(times, block_t), 1)
            _dense_kernel[(tiles, B)](
                *arguments, **constants, OPERAND=TYPES[operand], BLOCK_M=block_m, BLOCK_T=block_t,
                BLOCK_K=block_k, num_warps=warps, num_stages=stages,
            )  # fmt: skip
        else:
            block_t = min(max(triton.next_power_of_2(T), 16), 512)
            block_m = 1024 // block_t if block_t > 128 else 8
            tiles = triton.cdiv(N, block_m) * max(triton.cdiv(T, block_t), 1)
            _direct_kernel[(tiles, B)](
                *arguments, **constants, BLOCK_M=block_m, BLOCK_T=block_t, num_warps=4
            )
        block_w = triton.next_power_of_2(max(W, 1))
        block_c = max(_STATE_TILE // block_w, 1)
        _state_kernel[(triton.cdiv(C, block_c) if W else 1, B)](
            x, context, earlier if in_place else lengths, valid, ended, context_out, lengths_out,
            C, L, W, *x.stride(), REPLICATE=replicate, LAST=bool(last), BLOCK_C=block_c,
            BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip


def capability_of(x: Tensor) -> int:
    """Such as 90; 90 too where there is no GPU, which is what the table was made for."""
    if not x.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor
