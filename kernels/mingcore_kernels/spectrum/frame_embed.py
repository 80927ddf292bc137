"""frame_embed: samples cut into frames, each times a matrix: y[t, h] = sum_k w[h, k] x[t hop + k].

A convolution of one channel with kernel = stride = hop is a plain product: frame t begins at sample
t * hop, so the frames are a matrix with rows of hop samples that is never made; what lies beyond
the last sample reads as zero. 2 hop FLOPs per output; the samples, w and y move once (w again for
every tile of frames, out of L2). Real size: 5 frames of 320 for a patch times [896, 320], 573 KB of
bfloat16. The rows of w are the tall side of a tile, as in causal_conv.py. Not measured on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..conv import configs as conv_configs
from ..lib.launch import TYPES, on_device
from ..lib.target import capability_of


@triton.jit(do_not_specialize=["L", "T"])
def _frame_embed_kernel(
    x,
    w,
    out,
    L,
    T,
    H,
    hop,
    stride_x_b,
    stride_o_b,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x [B, L] dense along time, w [H, hop] dense, out [B, T, H] dense along H and T."""
    i_b, pid = tl.program_id(1).to(tl.int64), tl.program_id(0)
    tiles_m = tl.cdiv(H, BLOCK_M)
    o_m = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_t = pid // tiles_m * BLOCK_T + tl.arange(0, BLOCK_T)
    m_m, m_t = o_m < H, o_t < T
    o_x = o_t.to(tl.int64) * hop
    p_w = w + o_m.to(tl.int64)[:, None] * hop
    p_x = x + i_b * stride_x_b + o_x[None, :]
    b_acc = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    for k in range(0, hop, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < hop
        m_x = m_k[:, None] & m_t[None, :] & (o_x[None, :] + o_k[:, None] < L)
        b_w = tl.load(p_w + o_k[None, :], mask=m_m[:, None] & m_k[None, :], other=0)
        b_x = tl.load(p_x + o_k[:, None], mask=m_x, other=0)
        b_acc = tl.dot(b_w.to(OPERAND), b_x.to(OPERAND), b_acc, input_precision="ieee")
    p_o = out + i_b * stride_o_b + o_t.to(tl.int64)[None, :] * H + o_m[:, None]
    tl.store(p_o, b_acc, mask=m_m[:, None] & m_t[None, :])


def frame_embed(samples: Tensor, weight: Tensor, hop: int, out: Tensor) -> None:
    """samples [B, L], dense along time, weight [H, hop], dense -> out [B, ceil(L / hop), H],
    dense."""
    (B, L), (_, T, H) = samples.shape, out.shape
    if out.numel() == 0:
        return
    operand = samples.dtype if samples.dtype == weight.dtype else torch.float32
    config = conv_configs.choose(
        str(8 * operand.itemsize),
        rows=H,
        times=T,
        batch=B,
        single=hop * weight.itemsize % 16 != 0,
        capability=capability_of(samples.device.index),
    )
    tiles = triton.cdiv(H, config.block_m) * triton.cdiv(T, config.block_t)
    with on_device(samples):
        _frame_embed_kernel[(tiles, B)](
            samples,
            weight,
            out,
            L,
            T,
            H,
            hop,
            samples.stride(0),
            out.stride(0),
            OPERAND=TYPES[operand],
            BLOCK_M=config.block_m,
            BLOCK_T=config.block_t,
            BLOCK_K=config.block_k,
            enable_fp_fusion=True,
            num_warps=config.warps,
            num_stages=config.stages,
        )
