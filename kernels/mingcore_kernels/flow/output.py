"""The flow head's output: velocity, guidance and the Euler step.

final(rmsnorm(x)) on P rows a request, both branches of a request in one program, so that guidance and
the Euler step follow in registers: y = base + dt (v_c + g (v_c - v_u)) + noise_scale * noise, the
formula of flow_step.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, wait_for_previous
from ..lib.skinny_gemm import row_products
from . import configs as flow_configs
from .product import block_of_parts, inverse_rms


@triton.jit(do_not_specialize=["e", "j", "B", "P", "parts_in"])
def _flow_step_out_kernel(
    z,
    w,
    bias,
    sums,
    base,
    noise,
    guidance,
    dt,
    noise_scale,
    out,
    e,
    j,
    B,
    P,
    H,
    C,
    parts_in,
    OPERAND: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    GUIDED: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    EVEN_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """out [M, C], M = B P, not over base; z and sums have M rows, with GUIDED 2M."""
    M = B * P
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m, i_n = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    wait_for_previous(OVERLAP)
    rows = 2 * M if GUIDED else M
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < M
    m_nm = (o_n < C)[:, None] & m_m[None, :]
    o_w = tl.minimum(o_n, C - 1).to(tl.int64)
    o_out = o_m[None, :] * C + o_n[:, None]
    b_bias = tl.load(bias + o_w).to(tl.float32)[:, None]

    b_inverse = inverse_rms(sums, o_m, m_m, rows, H, parts_in, BLOCK_PARTS)
    b_v = row_products(
        z, o_m, m_m, b_inverse, w, o_w, 0, H, H, H, OPERAND, NORM_FIRST, EVEN_K, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if not NORM_FIRST:
        b_v *= b_inverse[None, :]
    b_v += b_bias
    if GUIDED:
        b_inverse = inverse_rms(sums, o_m + M, m_m, rows, H, parts_in, BLOCK_PARTS)
        b_u = row_products(
            z,
            o_m + M,
            m_m,
            b_inverse,
            w,
            o_w,
            0,
            H,
            H,
            H,
            OPERAND,
            NORM_FIRST,
            EVEN_K,
            SPLIT,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        if not NORM_FIRST:
            b_u *= b_inverse[None, :]
        b_g = tl.load(guidance + o_m // P, mask=m_m, other=0.0)[None, :]
        b_v += b_g * (b_v - (b_u + b_bias))
    b_y = tl.load(base + o_out, mask=m_nm, other=0.0)
    b_y += tl.load(dt + e) * b_v
    if HAS_NOISE:
        b_scale = tl.load(noise_scale + e * B + o_m // P, mask=m_m, other=0.0)[None, :]
        b_y += b_scale * tl.load(noise + j * M * C + o_out, mask=m_nm & (b_scale != 0), other=0.0)
    tl.store(out + o_out, b_y, mask=m_nm)


def step_out(
    z: Tensor,
    w: Tensor,
    bias: Tensor,
    sums: Tensor,
    base: Tensor,
    noise: Tensor,
    guidance: Tensor,
    dt: Tensor,
    noise_scale: Tensor,
    out: Tensor,
    *,
    e: int,
    j: int | None,
    config: flow_configs.Config,
    operand: torch.dtype,
    overlap: bool,
) -> None:
    """out [B, P, C] = base + dt * velocity + noise_scale * noise, all float32 and contiguous;
    out and base share no memory.

    z [R * P, H] and sums [parts, R * P] of the final norm, R = B or 2B with the unconditional rows
    behind; guidance [B]; dt [E] and noise_scale [E, B], of which row e counts; noise [S, B, P, C],
    of which part j is added, or none where j is None.
    """
    B, P, C = out.shape
    M, H = B * P, z.shape[1]
    tiles = triton.cdiv(M, config.block_m) * triton.cdiv(C, config.block_n)
    _flow_step_out_kernel[(tiles,)](
        z,
        w,
        bias,
        sums,
        base,
        noise,
        guidance,
        dt,
        noise_scale,
        out,
        e,
        j or 0,
        B,
        P,
        H,
        C,
        sums.shape[0],
        OPERAND=TYPES[operand],
        NORM_FIRST=z.dtype == torch.float32,
        GUIDED=z.shape[0] != M,
        HAS_NOISE=j is not None,
        EVEN_K=H % (config.split * config.block_k) == 0,
        OVERLAP=overlap,
        SPLIT=config.split,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_PARTS=block_of_parts(sums),
        enable_fp_fusion=True,
        num_warps=config.warps,
        num_stages=config.stages,
        **({"launch_pdl": True} if overlap else {}),
    )
