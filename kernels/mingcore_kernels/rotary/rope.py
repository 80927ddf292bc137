"""rope and qkv_rope: pairs of elements of a head rotated by the angles of its token.

x [B, T, Hn, D], cos and sin [1|B, T, D/2] float32 -> q [B, T, Hq, D], k, v: the heads of x in this
order, those of q and k rotated, v copied. `rope` is the case of no keys. One read and one write:
2 B T Hn D elements; a token of the released model is 6 KB, so what counts is the launch, and one
launch stands for split, two rotations and a copy. A pair's other half is loaded a second time, out
of L1: it lies one element or D/2 away, and either way the same code serves.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device

BLOCK = 1024  # elements of one program
WIDEST = 1024  # D


@triton.jit(do_not_specialize=["T"])
def _rope_kernel(
    x,
    cos,
    sin,
    q,
    k,
    v,
    T,
    Hq,
    Hkv,
    rope_heads,
    stride_x_b,
    stride_x_t,
    stride_x_h,
    stride_cos_b,
    stride_cos_t,
    stride_sin_b,
    stride_sin_t,
    D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_KV: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_t, i_b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_d = tl.arange(0, BLOCK_D)
    if INTERLEAVED:
        o_other, o_angle = o_d ^ 1, o_d // 2
        b_sign = tl.where(o_d % 2 == 0, -1.0, 1.0)
    else:
        o_other = tl.where(o_d < D // 2, o_d + D // 2, o_d - D // 2)
        o_angle = tl.where(o_d < D // 2, o_d, o_d - D // 2)
        b_sign = tl.where(o_d < D // 2, -1.0, 1.0)
    heads = Hq + 2 * Hkv
    m_d = o_d < D
    m_hd = (o_h < heads)[:, None] & m_d[None, :]
    p_x = x + i_b * stride_x_b + i_t * stride_x_t + o_h.to(tl.int64)[:, None] * stride_x_h
    b_x = tl.load(p_x + o_d[None, :], mask=m_hd, other=0.0)  # [BLOCK_H, BLOCK_D]

    o_place = tl.where(o_h < Hq, o_h, o_h - Hq)  # of q, or of k; that of v is past Hkv
    rotated = (o_place < rope_heads) & (o_h < Hq + Hkv)
    b_other = tl.load(p_x + o_other[None, :], mask=m_hd & rotated[:, None], other=0.0)
    b_cos = tl.load(cos + i_b * stride_cos_b + i_t * stride_cos_t + o_angle, mask=m_d, other=0.0)
    b_sin = tl.load(sin + i_b * stride_sin_b + i_t * stride_sin_t + o_angle, mask=m_d, other=0.0)
    b_rotated = b_x.to(tl.float32) * b_cos[None, :]
    b_rotated += b_other.to(tl.float32) * (b_sin * b_sign)[None, :]
    b_out = tl.where(rotated[:, None], b_rotated.to(x.dtype.element_ty), b_x)

    token = i_b * T + i_t
    p_q = q + (token * Hq + o_h)[:, None] * D + o_d[None, :]
    tl.store(p_q, b_out, mask=m_hd & (o_h < Hq)[:, None])
    if HAS_KV:
        is_k = (o_h >= Hq) & (o_h < Hq + Hkv)
        p_k = k + (token * Hkv + o_place)[:, None] * D + o_d[None, :]
        tl.store(p_k, b_out, mask=m_hd & is_k[:, None])
        p_v = v + (token * Hkv + o_place - Hkv)[:, None] * D + o_d[None, :]
        tl.store(p_v, b_out, mask=m_hd & (o_h >= Hq + Hkv)[:, None])


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    rope_heads: int,
    q: Tensor,
    kv: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write the heads of x [B, T, Hn, D] (dense heads) into contiguous q and, where given, k and v.

    cos and sin [1 or B, T, D/2] float32 with dense rows; the first rope_heads heads of q and of k
    are rotated.
    """
    if x.numel() == 0:
        return
    B, T, heads, D = x.shape
    Hq, Hkv = q.shape[2], kv[0].shape[2] if kv else 0
    block_d = triton.next_power_of_2(D)
    block_h = max(1, min(BLOCK // block_d, triton.next_power_of_2(heads)))
    k, v = kv or (q, q)
    one = cos.shape[0] == 1
    with on_device(x):
        _rope_kernel[(T, triton.cdiv(heads, block_h), B)](
            x,
            cos,
            sin,
            q,
            k,
            v,
            T,
            Hq,
            Hkv,
            rope_heads,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            0 if one else cos.stride(0),
            cos.stride(1),
            0 if one else sin.stride(0),
            sin.stride(1),
            D=D,
            INTERLEAVED=interleaved,
            HAS_KV=kv is not None,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            enable_fp_fusion=True,
            num_warps=4 if block_h * block_d >= 512 else 1,
        )
