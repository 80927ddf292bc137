"""The `triton` backend's routing, grouped product and mixture of experts."""

import torch

from mingcore_kernels.gemm import grouped_gemm as gemm_kernels
from mingcore_kernels.moe import moe_mlp as moe_kernels

from .._core.registry import register
from .._core.triton import FLOATS, KERNELS, unfit
from ..gemm.triton import _mismatch
from ..routing.triton import _too_many

_STORED = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
_FP8_CAPABILITY = 89


_NAMES = ("x", "gate_up", "down", "shared_gate_up", "shared_down")
_SCALES = ("gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale")


def _moe_why_not(
    x,
    gate_up,
    down,
    weights,
    ids,
    shared_gate_up,
    shared_down,
    gate_up_scale,
    down_scale,
    shared_gate_up_scale,
    shared_down_scale,
    layout,
    format,
):
    if layout != "rows":
        return f"the experts are in layout {layout!r}; it takes 'rows'"
    reason = unfit(_NAMES, (x, gate_up, down, shared_gate_up, shared_down), types=None)
    reason = reason or unfit(("x",), (x,))
    scales = (gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale)
    reason = reason or unfit(("x", *_SCALES), (x, *scales), types=FLOATS)
    if reason:
        return reason
    for name, scale in zip(_SCALES, scales):
        if scale is not None and (scale.dtype != torch.float32 or not scale.is_contiguous()):
            return f"{name} is {scale.dtype}, strides {scale.stride()}; it takes dense float32"
    if weights.dtype != torch.float32 or (weights.requires_grad and torch.is_grad_enabled()):
        return f"weights are {weights.dtype}; it takes float32 without a gradient"
    if ids.shape[1] == 0:
        return "ids name no expert; it takes at least one per token"
    if format not in _STORED:
        reason = _mismatch(x.dtype, gate_up.dtype)
    elif gate_up.dtype != _STORED[format] or gate_up_scale is None:
        reason = f"format {format} comes as {gate_up.dtype} without scales or of another type"
    elif format == "fp8" and not x.is_cpu:
        capability = gemm_kernels.capability_of(x.device.index)
        if capability < _FP8_CAPABILITY:
            reason = f"sm_{capability} has no 8-bit floats; it takes sm_{_FP8_CAPABILITY} and newer"
    return reason or _too_many(gate_up.shape[0])


@register("moe_mlp", "triton", _moe_why_not, sources=(KERNELS / "moe" / "moe_mlp.py", __file__))
def moe_mlp(
    x,
    gate_up,
    down,
    weights,
    ids,
    shared_gate_up,
    shared_down,
    gate_up_scale,
    down_scale,
    shared_gate_up_scale,
    shared_down_scale,
    layout,
    format,
):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = gate_up, down, weights.contiguous(), ids.contiguous(), shared_gate_up, shared_down
    scales = gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale
    moe_kernels.moe_mlp(x, *matrices, *scales, format == "int8_dyn", out)
    return out
