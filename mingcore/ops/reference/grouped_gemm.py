"""One matrix product per group of rows."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register
from .common import matmul


@register("grouped_gemm", "reference")
def grouped_gemm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """out[rows offsets[e] : offsets[e+1]] = x[those rows] w[e]^T; x [M, K], w [E, N, K] -> [M, N].

    On the CPU the loop knows the groups; on a GPU nothing is read back.
    """
    if not x.is_cpu:
        return _on_device(x, w, offsets)
    return by_group(x, offsets, w.shape[1], lambda rows, e: matmul(rows, w[e]))


def _on_device(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """bfloat16 goes to `grouped_mm`; the rest to `_masked`."""
    M, K = x.shape
    aligned = M > 0 and K % 8 == 0 and w.shape[1] % 8 == 0
    if aligned and x.dtype == w.dtype == torch.bfloat16:
        return F.grouped_mm(x.contiguous(), w.contiguous().mT, offs=offsets[1:])
    return _masked(x, offsets, w.shape[1], lambda rows, e: matmul(rows, w[e]))


def by_group(
    x: Tensor, offsets: Tensor, width: int, product: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """out[rows of group e] = product(x[those rows], e): x [M, K] -> [M, width] in x.dtype."""
    if not x.is_cpu:
        return _masked(x, offsets, width, product)
    out = x.new_empty(x.shape[0], width)
    bounds = offsets.tolist()
    for e, (start, stop) in enumerate(pairwise(bounds)):
        if start < stop:
            out[start:stop] = product(x[start:stop], e)
    return out


def _masked(
    x: Tensor, offsets: Tensor, width: int, product: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The product of all rows with every group's matrix, of which its own rows are kept: an oracle,
    not a fast path."""
    row = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    out = x.new_zeros(x.shape[0], width)
    for e in range(len(offsets) - 1):
        mine = (row >= offsets[e]) & (row < offsets[e + 1])
        out = torch.where(mine, product(x, e), out)
    return out
