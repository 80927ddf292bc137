"""What the reference ops share: the type they compute in, and the matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import dequantise, quantise_activations


def wide(x: Tensor) -> Tensor:
    """x in the type an op computes in: float64 stays (the oracle), all else is float32."""
    return x if x.dtype in (torch.float64, torch.float32) else x.float()


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in x.dtype; a narrower weight is widened, a wider one widens x."""
    inner = torch.promote_types(x.dtype, weight.dtype)
    return F.linear(x.to(inner), weight.to(inner)).to(x.dtype)


def stream_progress(x, lengths, valid, ended, last: bool, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """By row of a stream, all [B]: inputs it has had, those it gets now, whether it ends."""
    seen = lengths
    if seen is None:
        seen = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    new = torch.full_like(seen, L) if valid is None else valid
    done = torch.full_like(seen, last, dtype=torch.bool) if ended is None else ended
    return seen, new, done


def quantised_matmul(x: Tensor, weight: Tensor, scale: Tensor, format: str) -> Tensor:
    """x [M, K] (scale * weight)^T -> [M, N], not rounded; weight [N, K] as stored, scale [N]."""
    x = wide(x)
    scale = scale.to(x.dtype)
    if format != "int8_dyn":
        return F.linear(x, dequantise(weight, scale))
    stored, x_scale = quantise_activations(x)
    total = F.linear(stored.double(), weight.double())  # integers, exact
    return total.to(scale.dtype) * x_scale.unsqueeze(-1) * scale
