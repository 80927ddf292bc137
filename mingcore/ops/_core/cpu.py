"""What the adapters of the CPU kernels share: how tensors cross, what every kernel asks of them.

A tensor crosses as (data_ptr, dtype code, sizes, strides).
"""

import torch
from torch import Tensor

from ... import _cpu
from .packing import OFFSET, PANEL, PANEL_TYPES, panels_shape

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


def on_huge_pages(t: Tensor) -> Tensor:
    """t, new and not yet written, backed by huge pages where the system gives them when asked.

    Weights are read in several streams at once, each of which meets a new page every few
    microseconds.
    """
    if t.nbytes >= LARGE_BYTES:
        _cpu.ask_for_huge_pages(t.data_ptr(), t.nbytes)
    return t


def new_panels(count: int, N: int, K: int, format: str, swiglu: bool = False) -> Tensor:
    """Memory for the panels of `count` matrices [N, K]: [count, *panels_shape]."""
    return on_huge_pages(torch.empty(count, *panels_shape(N, K, format, swiglu), dtype=PANEL_TYPES[format]))


def pack_panels(weight: Tensor, format: str, *, swiglu: bool = False) -> Tensor:
    """A [N, K] weight as the panels that `linear` reads, in `format`, one of `CPU_FORMATS`.

    For "int8" and "int8_dyn" the weight is what `quantise` stored. Gives [ceil(N/32), K, 32], zero
    padded; with `swiglu` (N = 2I, gate rows first) [ceil(I/16), K, 32], where a panel holds 16 gate
    columns and then their 16 up columns. bf16 panels interleave columns j and j + 16 in one 32-bit
    word; panels of "int8_dyn" are [.., ceil(K/4), 32, 4] uint8. See `packed.py`.
    """
    N, K = weight.shape
    halves = weight.view(2, N // 2, K) if swiglu else weight.unsqueeze(0)
    block = PANEL // halves.shape[0]
    short = -halves.shape[1] % block
    if short:
        halves = torch.nn.functional.pad(halves, (0, 0, 0, short))
    panels = halves.unflatten(1, (-1, block)).permute(1, 3, 0, 2)  # [P, K, halves, block]
    out = new_panels(1, N, K, "int8" if format == "int8_dyn" else format, swiglu)[0]
    if out.dtype == torch.bfloat16:
        view = out.view(-1, K, PANEL // 2, 2)
        view.copy_(panels.reshape(-1, K, 2, PANEL // 2).transpose(2, 3))
    else:
        out.view(panels.shape).copy_(panels)
    if format == "int8_dyn":
        out = torch.nn.functional.pad(out.view(torch.uint8) ^ OFFSET, (0, 0, 0, -K % 4), value=OFFSET)
        fours = out.unflatten(1, (-1, 4)).transpose(2, 3)
        out = new_panels(1, N, K, format, swiglu)[0].copy_(fours)
    return out
