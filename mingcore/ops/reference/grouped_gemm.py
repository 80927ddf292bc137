"""One matrix product per group of rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register
from .common import matmul


@register("grouped_gemm", "reference")
def grouped_gemm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """out[rows offsets[e] : offsets[e+1]] = x[those rows] w[e]^T; x [M, K], w [E, N, K] -> [M, N].

    The loop knows the groups on the host; on a GPU nothing is read back.
    """
    if not x.is_cpu:
        return _on_device(x, w, offsets)
    out = x.new_empty(x.shape[0], w.shape[1])
    bounds = offsets.tolist()
    for e in range(w.shape[0]):
        group = slice(bounds[e], bounds[e + 1])
        if group.start < group.stop:
            out[group] = matmul(x[group], w[e])
    return out


def _on_device(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """bfloat16 goes to `grouped_mm`; other types to one product of all rows per expert, of which
    its own rows are kept: an oracle, not a fast path."""
    M, K = x.shape
    aligned = M > 0 and K % 8 == 0 and w.shape[1] % 8 == 0
    if aligned and x.dtype == w.dtype == torch.bfloat16:
        return F.grouped_mm(x.contiguous(), w.contiguous().mT, offs=offsets[1:])
    row = torch.arange(M, device=x.device).unsqueeze(1)
    out = x.new_zeros(M, w.shape[1])
    for e in range(w.shape[0]):
        mine = (row >= offsets[e]) & (row < offsets[e + 1])
        out = torch.where(mine, matmul(x, w[e]), out)
    return out
