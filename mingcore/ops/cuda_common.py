"""What the adapters of the `cuda` backend share."""

import torch
from torch import Tensor

TYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def unfit(names: tuple[str, ...], tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why these operands cannot go to a GPU kernel: another device, or a gradient to record."""
    for name, t in zip(names, tensors):
        if t is None:
            continue
        if t.device != tensors[0].device:
            return f"{name} is on {t.device}, {names[0]} on {tensors[0].device}"
        if t.requires_grad and torch.is_grad_enabled():
            return f"{name} requires a gradient; it computes none (torch.no_grad() or reference)"
    return None
