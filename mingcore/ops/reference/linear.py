"""y = act(x W^T + b) + residual."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..invariance import by_row
from ..packed import unpack_rows
from ..registry import register
from .common import quantised_matmul, wide
from .silu_mul import swiglu

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "swiglu": swiglu,
}


@register("linear", "reference")
@by_row(x=0, residual=0)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    layout: str,
    n: int,
    scale: Tensor | None = None,
    format: str = "",
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
