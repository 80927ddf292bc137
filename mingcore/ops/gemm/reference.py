"""y = act(x W^T + b) + residual."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core import checks
from .._core.invariance import by_row
from .._core.packing import unpack_rows
from .._core.reference import matmul, quantised_matmul, wide
from ..activation.reference import swiglu
from . import GROUPED_GEMM, LINEAR

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "swiglu": swiglu}


@LINEAR.implementation("reference")
@by_row(x=0, residual=0)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    layout: str,
    n: int,
    scale: Tensor | None,
    format: str,
) -> Tensor:
    """x [..., K], weight [N, K] in `layout`, bias [N], residual [..., N_out] -> [..., N_out].

    A quantised `format` has a scale [N]: weight = scale * stored.
    """
    weight = unpack_rows(weight, layout, n, x.shape[-1])
    if scale is not None:
        y = quantised_matmul(x.reshape(-1, x.shape[-1]), weight, scale, format)
        y = y.view(*x.shape[:-1], n)
        y = y if bias is None else y + bias
    else:
        inner = torch.promote_types(x.dtype, weight.dtype)
        bias = None if bias is None else bias.to(inner)
        y = F.linear(x.to(inner), weight.to(inner), bias)
    if activation != "none":
        y = ACTIVATIONS[activation](wide(y))
    if residual is not None:
        y = wide(y) + wide(residual)
    return y.to(x.dtype)


@GROUPED_GEMM.implementation("reference")
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


def by_group(x: Tensor, offsets: Tensor, width: int, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    """out[rows of group e] = product(x[those rows], e): x [M, K] -> [M, width] in x.dtype."""
    if not x.is_cpu:
        return _masked(x, offsets, width, product)
    out = x.new_empty(x.shape[0], width)
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != len(x) or any(stop < start for start, stop in pairwise(bounds)):
        checks.fail("grouped_gemm", "offsets", f"from 0 to M = {len(x)}, not decreasing", bounds)
    for e, (start, stop) in enumerate(pairwise(bounds)):
        if start < stop:
            out[start:stop] = product(x[start:stop], e)
    return out


def _masked(x: Tensor, offsets: Tensor, width: int, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The product of all rows with every group's matrix, of which its own rows are kept: an oracle,
    not a fast path."""
    row = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    out = x.new_zeros(x.shape[0], width)
    for e in range(len(offsets) - 1):
        mine = (row >= offsets[e]) & (row < offsets[e + 1])
        out = torch.where(mine, product(x, e), out)
    return out
