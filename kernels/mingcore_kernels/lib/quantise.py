"""Rows of activations as int8 with one scale each, for int8_dyn."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantise_rows_kernel(x, stored, scale, K, stride_x, BLOCK: tl.constexpr):
    """stored = round_to_even(x 127 / a), scale = a / 127, a = max |row|; divisions are exact."""
    i_m = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BLOCK)
    b_largest = tl.zeros([BLOCK], tl.float32)
    for k in range(0, K, BLOCK):
        p_x = x + i_m * stride_x + k + o_k
        b_x = tl.load(p_x, mask=o_k < K - k, other=0.0).to(tl.float32)
        b_largest = tl.maximum(b_largest, tl.abs(b_x))
    largest = tl.max(b_largest, 0)
    inverse = tl.where(largest > 0, tl.div_rn(127.0, tl.where(largest > 0, largest, 1.0)), 0.0)
    tl.store(scale + i_m, tl.div_rn(largest, 127.0))
    for k in range(0, K, BLOCK):
        p_x = x + i_m * stride_x + k + o_k
        b_x = tl.load(p_x, mask=o_k < K - k, other=0.0).to(tl.float32) * inverse
        b_x = tl.minimum(tl.maximum(b_x, -127.0), 127.0)
        b_x = (b_x + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no room for a fraction
        tl.store(stored + i_m * K + k + o_k, b_x.to(tl.int8), mask=o_k < K - k)


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] with dense rows as int8 [M, K] and its scales [M], on the current device."""
    M, K = x.shape
    stored, scale = x.new_empty(M, K, dtype=torch.int8), x.new_empty(M, dtype=torch.float32)
    block = min(triton.next_power_of_2(K), 2048)
    _quantise_rows_kernel[(M,)](x, stored, scale, K, x.stride(0), BLOCK=block, enable_fp_fusion=True, num_warps=4)
    return stored, scale
