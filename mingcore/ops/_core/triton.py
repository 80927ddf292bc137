"""What the adapters of the Triton kernels share: where the kernels are, and what they all ask."""

from pathlib import Path

from torch import Tensor

import mingcore_kernels

KERNELS = Path(mingcore_kernels.__file__).parent


def matrix(x: Tensor) -> Tensor:
    """x [..., H] as [M, H]."""
    return x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])
