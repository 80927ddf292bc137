"""rms_norm, add_rms_norm and layer_norm over the last dimension, in float32.

x [M, H] -> out [M, H]; add_rms_norm takes two and writes two. A program holds one row in registers,
so everything is read once and written once: 2 M H elements (4 M H with the sum) and the weights,
which stay in L2. A token of the released model is 4 KB: what counts is the launch, and the sum over
a row, which is why a row is spread over as many warps as have eight elements a thread. The variance
of layer_norm is that of what is left after the mean, not a difference of two large sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..lib.launch import on_device

LONGEST = 16384  # elements of a row: 32 for each thread of 16 warps


@triton.jit
def _norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    total,
    H,
    eps,
    stride_x,
    stride_r,
    LAYER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BLOCK)
    m_h = o_h < H
    b_x = tl.load(x + i_m * stride_x + o_h, mask=m_h, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_x += tl.load(residual + i_m * stride_r + o_h, mask=m_h, other=0.0).to(tl.float32)
        b_sum = b_x.to(total.dtype.element_ty)
        tl.store(total + i_m * H + o_h, b_sum, mask=m_h)
        b_x = b_sum.to(tl.float32)  # the norm is of the sum as it is kept
    if LAYER:
        b_x = tl.where(m_h, b_x - tl.sum(b_x, 0) / H, 0.0)
    b_scale = 1.0 / tl.sqrt(tl.sum(b_x * b_x, 0) / H + eps)
    b_out = b_x * b_scale * tl.load(weight + o_h, mask=m_h, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_out += tl.load(bias + o_h, mask=m_h, other=0.0).to(tl.float32)
    tl.store(out + i_m * H + o_h, b_out.to(out.dtype.element_ty), mask=m_h)


def warps_of(H: int) -> int:
    """Warps of one row: eight elements a thread, from 1 to 16 of them.

    >>> [warps_of(H) for H in (64, 1024, 2048, 16384)]
    [1, 4, 8, 16]
    """
    return min(max(triton.next_power_of_2(H) // 256, 1), 16)


def _launch(x, residual, weight, bias, eps, out, total, layer):
    M, H = x.shape
    if M == 0 or H == 0:
        return
    with on_device(x):
        _norm_kernel[(M,)](
            x,
            residual,
            weight,
            bias,
            out,
            total,
            H,
            eps,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            LAYER=layer,
            HAS_RESIDUAL=residual is not None,
            HAS_BIAS=bias is not None,
            BLOCK=triton.next_power_of_2(H),
            enable_fp_fusion=True,
            num_warps=warps_of(H),
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Write x * rsqrt(mean(x^2) + eps) * weight into contiguous out; x [M, H] with dense rows."""
    _launch(x, None, weight, None, eps, out, None, False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, total: Tensor) -> None:
    """Write s = x + residual, rounded to its type, into total and rms_norm(s) into out."""
    _launch(x, residual, weight, None, eps, out, total, False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor) -> None:
    """Write (x - mean) * rsqrt(var + eps) * weight + bias into out."""
    _launch(x, None, weight, bias, eps, out, None, True)
