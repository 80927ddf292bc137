"""RMSNorm and LayerNorm: in float32, times the weight, then cast."""

import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import wide
from . import ADD_RMS_NORM, LAYER_NORM, RMS_NORM


@RMS_NORM.implementation("reference")
@by_row(x=0)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H] * rsqrt(mean(x^2) + eps) * weight [H]."""
    y = wide(x)
    scale = (y.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return (y * scale * weight).to(x.dtype)


@ADD_RMS_NORM.implementation("reference")
@by_row(x=0, residual=0)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual in x.dtype."""
    total = (wide(x) + wide(residual)).to(x.dtype)
    return rms_norm(total, weight, eps), total


@LAYER_NORM.implementation("reference")
@by_row(x=0)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) * rsqrt(var + eps) * weight + bias over the last dimension."""
    y = wide(x)
    bias = None if bias is None else bias.to(y.dtype)
    return F.layer_norm(y, y.shape[-1:], weight.to(y.dtype), bias, eps).to(x.dtype)
