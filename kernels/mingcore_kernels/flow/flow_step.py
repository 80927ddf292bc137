"""flow_step: out = x + dt (v_c + g (v_c - v_u)) + noise_scale noise over [B, P, C], in float32.

Cost: each operand read once, out written once: 12 B for x, noise and out, and the velocity's own
width twice per element. A program takes one block of consecutive elements of [B, P * C], so rows
of any length keep the lanes full; an absent operand is compiled away. All strides are in elements.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device

BLOCK = 512


@triton.jit
def _flow_step_kernel(
    x,
    v_cond,
    v_null,
    noise,
    guidance,
    noise_scale,
    out,
    dt,
    P,
    C,
    stride_x_b,
    stride_x_p,
    stride_c_b,
    stride_c_p,
    stride_n_b,
    stride_n_p,
    stride_e_b,
    stride_e_p,
    stride_o_b,
    stride_o_p,
    HAS_NULL: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_b, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_pc = i_block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_pc = o_pc < P * C
    o_p, o_c = (o_pc // C).to(tl.int64), o_pc % C

    p_x = x + i_b * stride_x_b + o_p * stride_x_p + o_c
    p_cond = v_cond + i_b * stride_c_b + o_p * stride_c_p + o_c
    b_x = tl.load(p_x, mask=m_pc, other=0.0)  # [BLOCK]
    b_v = tl.load(p_cond, mask=m_pc, other=0.0).to(tl.float32)
    if HAS_NULL:
        p_null = v_null + i_b * stride_n_b + o_p * stride_n_p + o_c
        b_u = tl.load(p_null, mask=m_pc, other=0.0).to(tl.float32)
        b_v += tl.load(guidance + i_b) * (b_v - b_u)
    b_x += dt * b_v
    if HAS_NOISE:
        p_noise = noise + i_b * stride_e_b + o_p * stride_e_p + o_c
        b_e = tl.load(p_noise, mask=m_pc, other=0.0).to(tl.float32)
        b_x += tl.load(noise_scale + i_b) * b_e
    tl.store(out + i_b * stride_o_b + o_p * stride_o_p + o_c, b_x, mask=m_pc)


def flow_step(
    x: Tensor,
    v_cond: Tensor,
    v_null: Tensor | None,
    dt: float,
    guidance: Tensor,
    noise: Tensor | None,
    noise_scale: Tensor,
    out: Tensor,
) -> None:
    """Write the step into `out`, which may be x.

    x, out [B, P, C] float32; v_cond, v_null, noise [B, P, C] of any float type; guidance and
    noise_scale [B] float32 and dense. The last dimension of every operand is dense.
    """
    B, P, C = x.shape
    if x.numel() == 0:
        return
    null = v_cond if v_null is None else v_null
    extra = x if noise is None else noise
    strides = [s for t in (x, v_cond, null, extra, out) for s in t.stride()[:2]]
    with on_device(x):
        _flow_step_kernel[(B, triton.cdiv(P * C, BLOCK))](
            x,
            v_cond,
            null,
            extra,
            guidance,
            noise_scale,
            out,
            dt,
            P,
            C,
            *strides,
            HAS_NULL=v_null is not None,
            HAS_NOISE=noise is not None,
            BLOCK=BLOCK,
            enable_fp_fusion=True,
            num_warps=4,
        )
