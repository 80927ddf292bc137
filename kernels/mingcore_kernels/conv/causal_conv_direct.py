"""The direct kernel of causal_conv, for groups of few inputs (depthwise): multiply and add over [channels, time].

A thread's four outputs lie a dilation apart, so k taps of all four are k + 3 inputs: each is loaded and activated
once for the four (2.5 times per output for k = 7, not 7 times). Not measured on a GPU.
"""

import triton
import triton.language as tl

from ..lib.activations import activate
from .rows import finish, inputs_of, plan_of, row_of, tell


@triton.jit
def _input(
    x,
    context,
    before_alpha,
    before_gain,
    o_c,
    o_j,
    mask,
    m_n,
    seen,
    new,
    L,
    W,
    stride_x_c,
    stride_x_t,
    REPLICATE: tl.constexpr,
    BEFORE: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """inputs_of with the activation before, in float32; o_c, m_n [M, 1]."""
    b_x = inputs_of(x, context, o_c, o_j, mask, seen, new, L, W, stride_x_c, stride_x_t, REPLICATE, INSIDE).to(
        tl.float32
    )
    if BEFORE == "snake":
        b_alpha = tl.load(before_alpha + o_c, mask=m_n, other=0.0)
        b_gain = tl.load(before_gain + o_c, mask=m_n, other=0.0)
        b_x = activate(b_x, BEFORE, b_alpha, b_gain)
    else:
        b_x = activate(b_x, BEFORE, None, None)
    return b_x


@triton.jit
def _four_sums(
    x,
    w,
    context,
    before_alpha,
    before_gain,
    seen,
    new,
    first,
    o_n,
    m_n,
    o_t,
    L,
    W,
    CG,
    NG,
    stride_x_c,
    stride_x_t,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REPLICATE: tl.constexpr,
    BEFORE: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """The sums of the outputs o_t, o_t + DILATION, and so on to the fourth; stride 1."""
    b_0 = tl.zeros([o_n.shape[0], o_t.shape[1]], tl.float32)
    b_1, b_2, b_3 = b_0, b_0, b_0
    m_x = tl.broadcast_to(m_n, b_0.shape)
    for c in range(CG):
        o_c = o_n // NG * CG + c
        w_0 = tl.zeros(o_n.shape, tl.float32)
        w_1, w_2, w_3 = w_0, w_0, w_0
        for i in tl.static_range(KERNEL + 3):
            b_x = _input(
                x,
                context,
                before_alpha,
                before_gain,
                o_c,
                first + o_t + i * DILATION,
                m_x,
                m_n,
                seen,
                new,
                L,
                W,
                stride_x_c,
                stride_x_t,
                REPLICATE,
                BEFORE,
                INSIDE,
            )
            if i < KERNEL:
                p_w = w + (o_n.to(tl.int64) * CG + c) * KERNEL + i
                w_0 = tl.load(p_w, mask=m_n, other=0).to(tl.float32)
                b_0 += w_0 * b_x
            if i >= 1 and i < KERNEL + 1:
                b_1 += w_1 * b_x
            if i >= 2 and i < KERNEL + 2:
                b_2 += w_2 * b_x
            if i >= 3:
                b_3 += w_3 * b_x
            w_1, w_2, w_3 = w_0, w_1, w_2
    return b_0, b_1, b_2, b_3


@triton.jit
def _sum(
    x,
    w,
    context,
    before_alpha,
    before_gain,
    seen,
    new,
    first,
    o_n,
    m_n,
    o_t,
    m_own,
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
):
    """The sums of the outputs o_t, one tap after another."""
    SPAN: tl.constexpr = (KERNEL - 1) * DILATION
    TAPS: tl.constexpr = SPAN // STRIDE + 1 if TRANSPOSED else KERNEL
    b_acc = tl.zeros([o_n.shape[0], o_t.shape[1]], tl.float32)
    for c in range(CG):
        o_c = o_n // NG * CG + c
        for i in range(TAPS):
            if TRANSPOSED:
                o_d = (TAPS - 1 - i) * STRIDE + o_t % STRIDE
                m_w = m_n & (o_d % DILATION == 0) & (o_d < SPAN + 1)
                o_w = (o_c.to(tl.int64) * NG + o_n % NG) * KERNEL + o_d // DILATION
                b_w = tl.load(w + o_w, mask=m_w, other=0).to(tl.float32)
                o_j, m_x = first + o_t // STRIDE + i, m_own & m_w
            else:
                p_w = w + (o_n.to(tl.int64) * CG + c) * KERNEL + i
                b_w = tl.load(p_w, mask=m_n, other=0).to(tl.float32)
                o_j, m_x = first + o_t * STRIDE + i * DILATION, m_own
            b_acc += b_w * _input(
                x,
                context,
                before_alpha,
                before_gain,
                o_c,
                o_j,
                m_x,
                m_n,
                seen,
                new,
                L,
                W,
                stride_x_c,
                stride_x_t,
                REPLICATE,
                BEFORE,
                False,
            )
    return b_acc


@triton.jit(do_not_specialize=["L", "T"])
def _conv_direct_kernel(
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
    SHARE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    i_b, pid = tl.program_id(1).to(tl.int64), tl.program_id(0)
    seen, new, done = row_of(lengths, valid, ended, i_b, L, LAST)
    first, count = plan_of(seen, new, done, KERNEL, STRIDE, DILATION, LEFT_PAD, FLUSH, TRANSPOSED)
    if pid == 0:
        tell(emitted, earlier, i_b, seen, count)
    tiles_c = tl.cdiv(N, BLOCK_C)
    i_c, i_t = pid % tiles_c, pid // tiles_c
    x += i_b * stride_x_b
    out += i_b * stride_o_b
    if context is not None:
        context += i_b * C * W
    if residual is not None:
        residual += i_b * stride_r_b
    o_n = (i_c * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    m_n = o_n < N
    o_q = (i_t * BLOCK_T + tl.arange(0, BLOCK_T))[None, :]
    if SHARE == 1:
        b_0 = _sum(
            x,
            w,
            context,
            before_alpha,
            before_gain,
            seen,
            new,
            first,
            o_n,
            m_n,
            o_q,
            m_n & (o_q < tl.minimum(T, count)),
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
        )
        finish(
            b_0,
            bias,
            residual,
            after_alpha,
            after_gain,
            out,
            o_n,
            o_q,
            m_n,
            T,
            count,
            stride_r_n,
            stride_r_t,
            stride_o_n,
            stride_o_t,
            AFTER,
        )
    else:
        APART: tl.constexpr = 4 * DILATION
        o_t = o_q // DILATION * APART + o_q % DILATION
        low = first + i_t * BLOCK_T // DILATION * APART
        high = first + (i_t * BLOCK_T + BLOCK_T - 1) // DILATION * APART + APART - 1
        if (low >= 0) & (high + (KERNEL - 1) * DILATION < new):
            b_0, b_1, b_2, b_3 = _four_sums(
                x,
                w,
                context,
                before_alpha,
                before_gain,
                seen,
                new,
                first,
                o_n,
                m_n,
                o_t,
                L,
                W,
                CG,
                NG,
                stride_x_c,
                stride_x_t,
                KERNEL,
                DILATION,
                REPLICATE,
                BEFORE,
                True,
            )
        else:
            b_0, b_1, b_2, b_3 = _four_sums(
                x,
                w,
                context,
                before_alpha,
                before_gain,
                seen,
                new,
                first,
                o_n,
                m_n,
                o_t,
                L,
                W,
                CG,
                NG,
                stride_x_c,
                stride_x_t,
                KERNEL,
                DILATION,
                REPLICATE,
                BEFORE,
                False,
            )
        if DILATION == 1:  # side by side: each thread writes four in a row
            b_y = tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3))
            b_y = tl.reshape(b_y, [BLOCK_C, 4 * BLOCK_T])
            o_y = (i_t * 4 * BLOCK_T + tl.arange(0, 4 * BLOCK_T))[None, :]
            finish(
                b_y,
                bias,
                residual,
                after_alpha,
                after_gain,
                out,
                o_n,
                o_y,
                m_n,
                T,
                count,
                stride_r_n,
                stride_r_t,
                stride_o_n,
                stride_o_t,
                AFTER,
            )
        else:
            finish(
                b_0,
                bias,
                residual,
                after_alpha,
                after_gain,
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
                AFTER,
            )
            finish(
                b_1,
                bias,
                residual,
                after_alpha,
                after_gain,
                out,
                o_n,
                o_t + DILATION,
                m_n,
                T,
                count,
                stride_r_n,
                stride_r_t,
                stride_o_n,
                stride_o_t,
                AFTER,
            )
            finish(
                b_2,
                bias,
                residual,
                after_alpha,
                after_gain,
                out,
                o_n,
                o_t + 2 * DILATION,
                m_n,
                T,
                count,
                stride_r_n,
                stride_r_t,
                stride_o_n,
                stride_o_t,
                AFTER,
            )
            finish(
                b_3,
                bias,
                residual,
                after_alpha,
                after_gain,
                out,
                o_n,
                o_t + 3 * DILATION,
                m_n,
                T,
                count,
                stride_r_n,
                stride_r_t,
                stride_o_n,
                stride_o_t,
                AFTER,
            )
