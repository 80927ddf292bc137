"""What the adapters of the `cuda` backend share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
COPY_BYTES = 16
_MATRICES = ("gate_up", "down", "shared_gate_up", "shared_down")
_SCALES = ("gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale")
_EXPERTS = ("x", *_MATRICES, "weights", "ids", *_SCALES)


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


def unfit_experts(
    x: Tensor,
    matrices: Sequence[Tensor | None],
    scales: Sequence[Tensor | None],
    weights: Tensor,
    ids: Tensor,
    layout: str,
    format: str,
    formats: Mapping[str, Sequence[torch.dtype]],
) -> str | None:
    """Why operands of moe_mlp cannot go to a kernel that copies 16 bytes at a time, or None.

    formats: those that it takes, each with the types of x.
    """
    if weights.dtype != torch.float32:
        return f"weights is {weights.dtype}; it takes float32 weights"
    reason = unfit(_EXPERTS, (x, *matrices, weights, ids, *scales))
    if reason is not None:
        return reason
    if layout != "rows":
        return f"the layout is {layout!r}; it takes rows"
    if x.dtype not in formats.get(format, ()):
        pairs = ", ".join(f"{name} with {TYPES[t]}" for name in formats for t in formats[name])
        return f"the format is {format} and x is {x.dtype}; it takes {pairs}"
    gate_up, down, _, shared_down = matrices
    width = COPY_BYTES // gate_up.element_size()
    sizes = {"H": x.shape[1], "I": down.shape[2]}
    if shared_down is not None:
        sizes["Is"] = shared_down.shape[1]
    for name, size in sizes.items():
        if size % width:
            return f"{name} is {size}; in {format} it takes multiples of {width}"
    for name, t in zip(_MATRICES, matrices):
        if t is not None and (not t.is_contiguous() or t.data_ptr() % COPY_BYTES):
            return f"{name} is not contiguous from an address that is a multiple of {COPY_BYTES}"
    for name, t in zip(_SCALES, scales):
        if t is not None and (t.dtype != torch.float32 or not t.is_contiguous()):
            return f"{name} is not contiguous float32"
    return None


def rows_of_copies(x: Tensor) -> Tensor:
    """x [T, H] with dense rows at addresses that 16-byte copies can start from."""
    pitch = x.stride(0) * x.element_size() if x.shape[0] > 1 else 0
    dense = x.stride(1) == 1 or x.shape[1] == 1
    if dense and pitch % COPY_BYTES == 0 and x.data_ptr() % COPY_BYTES == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
