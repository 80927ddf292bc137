"""Tokens into the flow head: [R, T, H] = [first + time; history; x_embedder(x)], the residual stream's beginning.

64 KB of weights and one write, in one launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import TYPES, wait_for_previous
from ..lib.skinny_gemm import row_products
from . import configs as flow_configs
from .product import store_stream


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
