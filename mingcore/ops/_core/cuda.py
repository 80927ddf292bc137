"""What the adapters of the `cuda` backend share."""

import torch
from torch import Tensor

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
COPY_BYTES = 16


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


def rows_of_copies(x: Tensor) -> Tensor:
    """x [T, H] with dense rows at addresses that 16-byte copies can start from."""
    pitch = x.stride(0) * x.element_size() if x.shape[0] > 1 else 0
    dense = x.stride(1) == 1 or x.shape[1] == 1
    if dense and pitch % COPY_BYTES == 0 and x.data_ptr() % COPY_BYTES == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
