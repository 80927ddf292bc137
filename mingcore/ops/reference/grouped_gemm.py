"""One matrix product per group of rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register
from .common import matmul


@register("grouped_gemm", "reference")
def grouped_gemm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """out[rows offsets[e] : offsets[e+1]] = x[those rows] w[e]^T; x [M, K], w [E, N, K] -> [M, N].

    On a GPU nothing is read back: bfloat16 goes to `grouped_mm`, other types to one masked
    product per expert (an oracle, not a fast path).
    """
    if x.is_cpu:
        out = x.new_empty(x.shape[0], w.shape[1])
        bounds = offsets.tolist()
        for e in range(w.shape[0]):
            if bounds[e] < bounds[e + 1]:
                out[bounds[e] : bounds[e + 1]] = matmul(x[bounds[e] : bounds[e + 1]], w[e])
        return out
    if x.dtype == w.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 and w.shape[1] % 8 == 0:
        return F.grouped_mm(x.contiguous(), w.contiguous().mT, offs=offsets[1:])
    row = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    out = x.new_zeros(x.shape[0], w.shape[1])
    for e in range(w.shape[0]):
        mine = (row >= offsets[e]) & (row < offsets[e + 1])
        out = torch.where(mine, matmul(x, w[e]), out)
    return out
