"""What the adapters of the Triton kernels share: where the kernels are, and what they all ask."""

from pathlib import Path

import torch
from torch import Tensor
from triton import knobs

import mingcore_kernels

KERNELS = Path(mingcore_kernels.__file__).parent
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def unfit(names: tuple[str, ...], tensors: tuple[Tensor | None, ...], types=FLOATS, dense: bool = True) -> str | None:
    """Why these operands cannot go to a kernel, or None: device, type, gradient, and with `dense`
    the last dimension's stride."""
    first = tensors[0]
    # meta tensors only come here where launches are recorded, not run: `aot.record`
    if first.device.type not in ("cuda", "meta") and not knobs.runtime.interpret:
        return f"{names[0]} is on {first.device}; it takes tensors on a GPU"
    for name, t in zip(names, tensors):
        if t is None:
            continue
        if t.device != first.device:
            return f"{name} is on {t.device}, {names[0]} on {first.device}"
        if types is not None and t.dtype not in types:
            return f"{name} is {t.dtype}; it takes float32, bfloat16 and float16"
        if t.requires_grad and torch.is_grad_enabled():
            return f"{name} requires a gradient; it computes none (torch.no_grad() or reference)"
        if dense and t.dim() and t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"{name} has strides {tuple(t.stride())}; it takes a dense last dimension"
    return None


def matrix(x: Tensor) -> Tensor:
    """x [..., H] as [M, H]."""
    return x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])
