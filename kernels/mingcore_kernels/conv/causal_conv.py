"""causal_conv1d and causal_conv_transpose1d: out = act(conv(act_before(x)) + bias) + residual.

x [B, C_in, L], weight as PyTorch holds it, out [B, C_out, T]; sums are float32. 2 C_in/groups k
FLOPs per output (of a transposed one 1/stride of it). Once over the memory go x, the weights, the
residual and out; what is read again comes out of L1 and L2. A transposed convolution is an ordinary
one of stride 1 whose output rows are (channel, phase): tap i of phase r reads weight element
(taps - 1 - i) stride + r, where dilation divides that. A tile holds all phases of its channels, so
that it writes whole sectors of the interleaved output.

Dense: an implicit matrix product with tl.dot, the inputs summed in the order (channel, tap), which
is how the weights lie; the activation before is computed anew for each tap and each tile of rows,
and goes to the tensor cores as two 16-bit parts, so that nothing is rounded between the two.

Direct, for groups of fewer than FEW inputs (depthwise): causal_conv_direct.py.

Two launches: the outputs, then the state, whose old value all programs of the first one read. Not
measured on a GPU, nothing else was tried.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.activations import activate
from ..lib.target import device_of
from . import configs as conv_configs
from .causal_conv_direct import _conv_direct_kernel
from .rows import _conv_state_kernel, finish, inputs_of, plan_of, row_of, tell

FEW = 8  # inputs of a group that a matrix product would mostly pad
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
FAR = 1 << 31  # elements that a 32-bit distance does not reach
_STATE_TILE = 2048


@triton.jit
def _product(
    x,
    w,
    context,
    before_alpha,
    before_gain,
    seen,
    new,
    first,
    i_g,
    o_m,
    m_m,
    o_q,
    m_q,
    L,
    W,
    CG,
    NG,
    stride_x_c,
    stride_x_t,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    REPLICATE: tl.constexpr,
    BEFORE: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OFFSET: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """The sums [BLOCK_M, BLOCK_T] of the rows o_m of group i_g at the times o_q."""
    SPAN: tl.constexpr = (KERNEL - 1) * DILATION
    UP: tl.constexpr = STRIDE if TRANSPOSED else 1
    TAPS: tl.constexpr = SPAN // STRIDE + 1 if TRANSPOSED else KERNEL
    K = CG * TAPS
    o_n = (o_m // UP).to(OFFSET)[:, None]
    b_acc = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    for k in range(0, K, BLOCK_K):
        c_0 = (i_g * CG + k // TAPS).to(tl.int64)  # one wide address a step, narrow distances
        o_ck = k % TAPS + tl.arange(0, BLOCK_K)
        o_c, o_i = o_ck // TAPS, o_ck % TAPS
        m_k = o_c < CG - k // TAPS
        m_w = m_m[:, None] & m_k[None, :]
        if TRANSPOSED:
            o_d = (TAPS - 1 - o_i)[None, :] * UP + (o_m % UP)[:, None]
            if DILATION > 1:
                m_w = m_w & (o_d % DILATION == 0)
            if TAPS * UP > SPAN + 1:
                m_w = m_w & (o_d < SPAN + 1)
            p_w = w + c_0 * NG * KERNEL
            o_w = (o_c.to(OFFSET)[None, :] * NG + o_n) * KERNEL + o_d // DILATION
            o_j = first + o_q[None, :] + o_i[:, None]
        else:
            p_w = w + (c_0 - i_g * CG) * TAPS + (i_g * NG).to(tl.int64) * K
            o_w = o_n * K + o_ck[None, :]
            o_j = first + o_q[None, :] * STRIDE + (o_i * DILATION)[:, None]
        b_w = tl.load(p_w + o_w, mask=m_w, other=0)
        m_x = tl.broadcast_to(m_k[:, None], [BLOCK_K, BLOCK_T])
        if not INSIDE:
            m_x = m_x & m_q[None, :]
        p_x, p_context = x + c_0 * stride_x_c, context
        if context is not None:
            p_context = context + c_0 * W
        b_x = inputs_of(
            p_x, p_context, o_c[:, None], o_j, m_x, seen, new, L, W, stride_x_c, stride_x_t, REPLICATE, INSIDE, OFFSET
        )
        if BEFORE == "snake":
            b_alpha = tl.load(before_alpha + c_0 + o_c, mask=m_k, other=0.0)[:, None]
            b_gain = tl.load(before_gain + c_0 + o_c, mask=m_k, other=0.0)[:, None]
            b_x = activate(b_x.to(tl.float32), BEFORE, b_alpha, b_gain)
        elif BEFORE != "none":
            b_x = activate(b_x.to(tl.float32), BEFORE, None, None)
        b_w, b_high = b_w.to(OPERAND), b_x.to(OPERAND)
        b_acc = tl.dot(b_w, b_high, b_acc, input_precision="ieee")
        if BEFORE != "none" and OPERAND != tl.float32:  # noqa: SIM300  what the rounding took
            b_low = (b_x - b_high.to(tl.float32)).to(OPERAND)
            b_acc = tl.dot(b_w, b_low, b_acc, input_precision="ieee")
    return b_acc


@triton.jit(do_not_specialize=["L", "T"])
def _conv_dense_kernel(
    x,
    w,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    before_alpha,
    before_gain,
    after_alpha,
    after_gain,
    out,
    emitted,
    earlier,
    C,
    N,
    L,
    T,
    W,
    CG,
    NG,
    stride_x_b,
    stride_x_c,
    stride_x_t,
    stride_r_b,
    stride_r_n,
    stride_r_t,
    stride_o_b,
    stride_o_n,
    stride_o_t,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    LEFT_PAD: tl.constexpr,
    FLUSH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    REPLICATE: tl.constexpr,
    LAST: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OFFSET: tl.constexpr,
):
    SPAN: tl.constexpr = (KERNEL - 1) * DILATION
    UP: tl.constexpr = STRIDE if TRANSPOSED else 1
    STEP: tl.constexpr = 1 if TRANSPOSED else STRIDE
    REACH: tl.constexpr = SPAN // STRIDE if TRANSPOSED else SPAN
    i_b, pid = tl.program_id(1).to(tl.int64), tl.program_id(0)
    seen, new, done = row_of(lengths, valid, ended, i_b, L, LAST)
    first, count = plan_of(seen, new, done, KERNEL, STRIDE, DILATION, LEFT_PAD, FLUSH, TRANSPOSED)
    if pid == 0:
        tell(emitted, earlier, i_b, seen, count)
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
    m_m, m_q = o_m < NG * UP, o_q * UP < tl.minimum(T, count)
    low = first + i_t * BLOCK_T * STEP
    if (low >= 0) & (low + (BLOCK_T - 1) * STEP + REACH < new):
        b_acc = _product(
            x,
            w,
            context,
            before_alpha,
            before_gain,
            seen,
            new,
            first,
            i_g,
            o_m,
            m_m,
            o_q,
            m_q,
            L,
            W,
            CG,
            NG,
            stride_x_c,
            stride_x_t,
            KERNEL,
            STRIDE,
            DILATION,
            TRANSPOSED,
            REPLICATE,
            BEFORE,
            OPERAND,
            BLOCK_M,
            BLOCK_T,
            BLOCK_K,
            OFFSET,
            True,
        )
    else:
        b_acc = _product(
            x,
            w,
            context,
            before_alpha,
            before_gain,
            seen,
            new,
            first,
            i_g,
            o_m,
            m_m,
            o_q,
            m_q,
            L,
            W,
            CG,
            NG,
            stride_x_c,
            stride_x_t,
            KERNEL,
            STRIDE,
            DILATION,
            TRANSPOSED,
            REPLICATE,
            BEFORE,
            OPERAND,
            BLOCK_M,
            BLOCK_T,
            BLOCK_K,
            OFFSET,
            False,
        )
    o_n = (i_g * NG + o_m // UP)[:, None]
    finish(
        b_acc,
        bias,
        residual,
        after_alpha,
        after_gain,
        out,
        o_n,
        o_q[None, :] * UP + (o_m % UP)[:, None],
        m_m[:, None],
        T,
        count,
        stride_r_n,
        stride_r_t,
        stride_o_n,
        stride_o_t,
        AFTER,
    )


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
    in_place: bool = False,
) -> None:
    """Write the outputs and the next state of every row into `results`.

    x [B, C_in, L] and residual [B, C_out, T] of any strides; weight, bias and all else dense.
    carried: context [B, C_in, W] and lengths [B] int64, or None for new streams; rows: valid [B]
    int64, ended [B] bool, last. results: out [B, C_out, T], context, lengths, emitted; in_place:
    the state is the one of `carried`. sizes: kernel, stride, dilation, groups, left_pad, flush.
    acts: name, alpha, gain before the convolution and after it.
    """
    kernel, stride, dilation, groups, left_pad, flush = sizes
    out, context_out, lengths_out, emitted = results
    (context, lengths), (valid, ended, last) = carried, rows
    (B, C, L), (N, T) = x.shape, out.shape[1:]
    if B == 0:
        return
    W, CG, NG = context_out.shape[2], C // groups, N // groups
    context = None if W == 0 else context
    earlier = torch.empty_like(lengths) if in_place else None
    before, before_alpha, before_gain, after, after_alpha, after_gain = acts
    strides = *x.stride(), *((0, 0, 0) if residual is None else residual.stride()), *out.stride()
    arguments = (
        x,
        weight,
        bias,
        residual,
        context,
        lengths,
        valid,
        ended,
        before_alpha,
        before_gain,
        after_alpha,
        after_gain,
        out,
        emitted,
        earlier,
        C,
        N,
        L,
        T,
        W,
        CG,
        NG,
        *strides,
    )
    constants = {
        "KERNEL": kernel,
        "STRIDE": stride,
        "DILATION": dilation,
        "LEFT_PAD": left_pad,
        "FLUSH": flush,
        "TRANSPOSED": transposed,
        "REPLICATE": replicate,
        "LAST": int(last),
        "BEFORE": before,
        "AFTER": after,
    }
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if CG >= FEW:
            operand = x.dtype if x.dtype == weight.dtype else torch.float32
            up = stride if transposed else 1
            times = -(-T // up)
            capability = capability_of(x)
            unaligned = (stride if transposed else CG * kernel) * weight.itemsize % 16 != 0
            parts = before != "none" and operand != torch.float32
            config = conv_configs.choose(
                str(8 * operand.itemsize),
                rows=NG * up,
                times=times,
                batch=B * groups,
                single=unaligned or (parts and capability < 90),
                capability=capability,
            )
            tiles = triton.cdiv(NG * up, config.block_m) * groups
            tiles *= max(triton.cdiv(times, config.block_t), 1)
            # the longest distances from where a step begins: within the weight and within x
            farthest = max(N * CG * kernel, config.block_k * (NG * kernel + x.stride(1)) + L * x.stride(2))
            offset = tl.int32 if farthest < FAR else tl.int64
            _conv_dense_kernel[(tiles, B)](
                *arguments,
                **constants,
                OFFSET=offset,
                OPERAND=TYPES[operand],
                BLOCK_M=config.block_m,
                BLOCK_T=config.block_t,
                BLOCK_K=config.block_k,
                enable_fp_fusion=True,
                num_warps=config.warps,
                num_stages=config.stages,
            )
        else:
            config = conv_configs.choose_direct(
                channels=N * B, times=T, taps=kernel, stride=0 if transposed else stride
            )
            apart = dilation if config.share > 1 else 1
            times = -(-T // (config.share * apart)) * apart
            tiles = triton.cdiv(N, config.block_c) * max(triton.cdiv(times, config.block_t), 1)
            _conv_direct_kernel[(tiles, B)](
                *arguments,
                **constants,
                SHARE=config.share,
                BLOCK_C=config.block_c,
                BLOCK_T=config.block_t,
                enable_fp_fusion=True,
                num_warps=config.warps,
            )
        block_w = min(triton.next_power_of_2(max(W, 1)), _STATE_TILE)
        block_c = _STATE_TILE // block_w
        _conv_state_kernel[(triton.cdiv(C, block_c) if W else 1, B)](
            x,
            context,
            earlier if in_place else lengths,
            valid,
            ended,
            context_out,
            lengths_out,
            C,
            L,
            W,
            *x.stride(),
            REPLICATE=replicate,
            LAST=int(last),
            BLOCK_C=block_c,
            BLOCK_W=block_w,
            enable_fp_fusion=True,
            num_warps=4,
        )


def capability_of(x: Tensor) -> int:
    """Of the GPU that x is on, such as 90; elsewhere of the one that `target` assumes."""
    return device_of(x.device.index if x.is_cuda else None)[0]
