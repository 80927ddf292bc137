"""Both ends of one evaluation of the flow head: tokens in; velocity, guidance and the step out.

Tokens [R, T, H] = [first + time; history; x_embedder(x)], the residual stream's beginning: 64 KB of
weights and one write, in one launch. The end is final(rmsnorm(x)) on P rows a request, both
branches of a request in one program, so that guidance and the Euler step follow in registers:
y = base + dt (v_c + g (v_c - v_u)) + noise_scale * noise, the formula of flow_step.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, wait_for_previous
from ..lib.skinny_gemm import row_products
from . import configs as flow_configs
from .product import block_of_parts, inverse_rms, store_stream


@triton.jit(do_not_specialize=["e", "M", "B", "N", "T", "P"])
def _flow_embed_kernel(
    x,
    w,
    bias,
    first,
    null_first,
    times,
    history,
    norm,
    y,
    z,
    sums,
    e,
    M,
    B,
    N,
    T,
    P,
    H,
    C,
    OPERAND: tl.constexpr,
    EVEN_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y, z [M, H] and sums of evaluation e from latents x [B * P, C]; M = R T, R = B or 2B."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    i_m, i_n = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    wait_for_previous(OVERLAP)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m, m_n = o_m < M, o_n < H
    o_w = tl.minimum(o_n, H - 1).to(tl.int64)
    o_r, o_t = o_m // T, o_m % T
    o_b = o_r % B
    m_x = m_m & (o_t > N)
    b_y = row_products(
        x,
        o_b * P + o_t - 1 - N,
        m_x,
        tl.zeros([BLOCK_M], tl.float32),
        w,
        o_w,
        0,
        C,
        C,
        C,
        OPERAND,
        False,
        EVEN_K,
        1,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    b_bias = tl.load(bias + o_w).to(tl.float32)[:, None]
    b_y += tl.where(m_x[None, :], b_bias, 0.0)
    m_first = m_n[:, None] & (m_m & (o_t == 0) & (o_r < B))[None, :]
    b_y += tl.load(first + o_b.to(tl.int64)[None, :] * H + o_n[:, None], mask=m_first, other=0.0)
    m_null = (m_m & (o_t == 0) & (o_r >= B))[None, :]
    b_y += tl.where(m_null, tl.load(null_first + o_w).to(tl.float32)[:, None], 0.0)
    b_y += tl.where((m_m & (o_t == 0))[None, :], tl.load(times + e * H + o_w)[:, None], 0.0)
    m_past = m_n[:, None] & (m_m & (o_t > 0) & (o_t <= N))[None, :]
    o_past = (o_b * N + o_t - 1).to(tl.int64)[None, :] * H + o_n[:, None]
    b_y += tl.load(history + o_past, mask=m_past, other=0.0)
    store_stream(b_y, y, z, norm, sums, o_m, m_m, o_n, m_n, i_n, M, H)


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


def embed(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    first: Tensor,
    null_first: Tensor,
    times: Tensor,
    e: int,
    history: Tensor,
    norm: Tensor,
    y: Tensor,
    z: Tensor,
    sums: Tensor,
    *,
    T: int,
    N: int,
    config: flow_configs.Config,
    operand: torch.dtype,
    overlap: bool,
) -> None:
    """Tokens [R * T, H] into y (float32) and z, their sums of squares into sums [tiles, R * T].

    x [B, P, C], first [B, H] (the embedded condition), times [E, H], of which row e counts, and
    history [B * N, H] float32; null_first [H]: what stands for `first` in the rows from B on.
    """
    (B, P, C), (M, H) = x.shape, y.shape
    tiles = triton.cdiv(M, config.block_m) * triton.cdiv(H, config.block_n)
    _flow_embed_kernel[(tiles,)](
        x,
        w,
        bias,
        first,
        null_first,
        times,
        history,
        norm,
        y,
        z,
        sums,
        e,
        M,
        B,
        N,
        T,
        P,
        H,
        C,
        OPERAND=TYPES[operand],
        EVEN_K=C % config.block_k == 0,
        OVERLAP=overlap,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        enable_fp_fusion=True,
        num_warps=config.warps,
        num_stages=config.stages,
        **({"launch_pdl": True} if overlap else {}),
    )


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
