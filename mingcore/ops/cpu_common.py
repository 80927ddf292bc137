"""What the adapters of the CPU kernels share: how tensors cross, what every kernel asks of them.

A tensor crosses as (data_ptr, dtype code, sizes, strides).
"""

import torch
from torch import Tensor

from .. import _cpu

CODES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.uint8: 4,
    torch.int32: 5,
    torch.int64: 6,
}
LARGE_BYTES = 4 << 20
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
STRIDED = torch.strided


def array(t: Tensor) -> tuple:
    return t.data_ptr(), CODES[t.dtype], t.shape, t.stride()


def array_or_none(t: Tensor | None) -> tuple | None:
    return None if t is None else array(t)


def rows(t: Tensor) -> Tensor:
    """[..., K] as [M, K] with a dense last dimension; a view wherever strides allow."""
    if t.dim() != 2:
        t = t.reshape(-1, t.shape[-1])
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def dense_last(t: Tensor) -> Tensor:
    """t, copied only where its last dimension is not dense."""
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def unfit(names: tuple[str, ...], tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why these operands cannot go to C++: device, dtype, layout or a gradient to record."""
    grad = torch.is_grad_enabled()
    for name, t in zip(names, tensors):
        if t is None or (
            t.dtype in FLOATS
            and t.is_cpu
            and t.layout is STRIDED
            and not (grad and t.requires_grad)
        ):
            continue
        if t.dtype not in FLOATS:
            return f"{name} is {t.dtype}; it takes float32, bfloat16 and float16"
        if t.device.type != "cpu" or t.layout is not torch.strided:
            return f"{name} is a {t.layout} tensor on {t.device}; it takes dense CPU tensors"
        if grad and t.requires_grad:
            return f"{name} requires a gradient; it computes none (torch.no_grad() or reference)"
    return None


def on_huge_pages(t: Tensor) -> Tensor:
    """t, new and not yet written, backed by huge pages where the system gives them when asked.

    Weights are read in several streams at once, each of which meets a new page every few
    microseconds.
    """
    if t.nbytes >= LARGE_BYTES:
        _cpu.ask_for_huge_pages(t.data_ptr(), t.nbytes)
    return t
