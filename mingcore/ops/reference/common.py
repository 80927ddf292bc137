"""What the reference ops share: the type they compute in, and the matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in the type an op computes in: float64 stays (the oracle), all else is float32."""
    return x if x.dtype in (torch.float64, torch.float32) else x.float()


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in x.dtype; a narrower weight is widened, a wider one widens x."""
    inner = torch.promote_types(x.dtype, weight.dtype)
    return F.linear(x.to(inner), weight.to(inner)).to(x.dtype)
