"""The flow sampler's attention: every token of a row sees every other, no mask, RoPE inside.

qkv [R * T, 3H] -> out [R * rows, H], the queries being the last `rows` of T tokens. Two products of
2 R rows T H FLOPs, qkv once per block of queries: 11 tokens of 16 heads are 4 KB a program, so what
counts is the launch. Here, and not in the product before, are the RMS norm of q and k over a head
(optional) and the interleaved RoPE, because a program holds whole heads. Keys go by in blocks under
a running maximum, so that any number of tokens fits.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, wait_for_previous
from .product import EPS

BLOCK = 4096  # tokens, of queries or of keys, times the head's width: what the registers hold


@triton.jit
def _head(p_head, stride, o_t, m_t, cos, sin, norm, rotated, D, QK_NORM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head of tokens o_t, normed, its first `rotated` columns rotated by RoPE: [BLOCK_T, BLOCK_D]."""
    o_d = tl.arange(0, BLOCK_D)
    m_td = m_t[:, None] & (o_d < D)[None, :]
    p_row = p_head + o_t.to(tl.int64)[:, None] * stride
    b = tl.load(p_row + o_d[None, :], mask=m_td, other=0.0).to(tl.float32)
    b_other = tl.load(p_row + (o_d ^ 1)[None, :], mask=m_td, other=0.0).to(tl.float32)
    if QK_NORM:
        b_scale = (1.0 / tl.sqrt(tl.sum(b * b, 1) / D + EPS))[:, None]
        b *= b_scale * tl.load(norm + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
        b_norm = tl.load(norm + (o_d ^ 1), mask=o_d < D, other=0.0).to(tl.float32)
        b_other *= b_scale * b_norm[None, :]
    o_angle = o_t[:, None] * (D // 2) + (o_d // 2)[None, :]
    m_angle = m_t[:, None] & (o_d < rotated)[None, :]
    b_cos = tl.load(cos + o_angle, mask=m_angle, other=1.0)
    b_sin = tl.load(sin + o_angle, mask=m_angle, other=0.0)
    b_sign = tl.where(o_d % 2 == 0, -1.0, 1.0)[None, :]
    return b * b_cos + b_other * (b_sign * b_sin)


@triton.jit(do_not_specialize=["T", "rows", "rope_heads"])
def _flow_attention_kernel(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    out,
    T,
    rows,
    H,
    D,
    rope_heads,
    scale,
    OPERAND: tl.constexpr,
    QK_NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_head, i_r, i_q = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    wait_for_previous(OVERLAP)
    o_row = i_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_row < rows
    rotated = tl.where(i_head < rope_heads, D, 0)
    p_q = qkv + i_r * T * (3 * H) + i_head * D
    b_q = _head(p_q, 3 * H, T - rows + o_row, m_row, cos, sin, q_norm, rotated, D, QK_NORM, BLOCK_D).to(OPERAND)
    b_most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_Q], tl.float32)
    b_out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for s in range(0, T, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        m_s = o_s < T
        b_k = _head(p_q + H, 3 * H, o_s, m_s, cos, sin, k_norm, rotated, D, QK_NORM, BLOCK_D)
        b_dots = tl.dot(b_q, tl.trans(b_k.to(OPERAND)), input_precision="ieee") * scale
        b_dots = tl.where(m_s[None, :], b_dots, float("-inf"))
        b_new = tl.maximum(b_most, tl.max(b_dots, 1))
        b_p = tl.exp(b_dots - b_new[:, None])
        b_keep = tl.exp(b_most - b_new)
        m_sd = m_s[:, None] & (o_d < D)[None, :]
        p_v = p_q + 2 * H + o_s.to(tl.int64)[:, None] * (3 * H) + o_d[None, :]
        b_v = tl.load(p_v, mask=m_sd, other=0.0)
        b_total = b_total * b_keep + tl.sum(b_p, 1)
        b_out = b_out * b_keep[:, None]
        b_out = tl.dot(b_p.to(OPERAND), b_v.to(OPERAND), b_out, input_precision="ieee")
        b_most = b_new
    b_out = b_out / b_total[:, None]
    p_out = out + (i_r * rows + o_row)[:, None] * H + i_head * D + o_d[None, :]
    m_out = m_row[:, None] & (o_d < D)[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


def launch(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: tuple[Tensor, Tensor] | None,
    out: Tensor,
    *,
    T: int,
    rows: int,
    heads: int,
    rope_heads: int,
    overlap: bool,
) -> None:
    """out [R * rows, H] from qkv [R * T, 3H] of one type, the products' operands; cos and sin
    [T, D / 2] float32; qk_norm: two [D] of any float type."""
    R, H = qkv.shape[0] // T, out.shape[1]
    D = H // heads
    block_d = max(16, triton.next_power_of_2(D))
    max_block = min(64, max(16, BLOCK // block_d))
    block_q = min(max_block, max(16, triton.next_power_of_2(rows)))
    block_s = min(max_block, max(16, triton.next_power_of_2(T)))
    q_norm, k_norm = qk_norm or (cos, cos)
    _flow_attention_kernel[(heads, R, triton.cdiv(rows, block_q))](
        qkv,
        cos,
        sin,
        q_norm,
        k_norm,
        out,
        T,
        rows,
        H,
        D,
        rope_heads,
        D**-0.5,
        OPERAND=TYPES[qkv.dtype],
        QK_NORM=qk_norm is not None,
        OVERLAP=overlap,
        BLOCK_Q=block_q,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
        enable_fp_fusion=True,
        num_warps=8 if block_d > 128 else 2 if block_q <= 16 and block_s <= 16 else 4,
        num_stages=1,
        **({"launch_pdl": True} if overlap else {}),
    )
