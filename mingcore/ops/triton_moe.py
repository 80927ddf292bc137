"""The `triton` backend's routing, grouped product and mixture of experts."""

import torch

from mingcore_kernels import configs
from mingcore_kernels import grouped_gemm as gemm_kernels
from mingcore_kernels import moe_mlp as moe_kernels
from mingcore_kernels import routing as routing_kernels

from .registry import register
from .triton_common import FLOATS, KERNELS, unfit

_STORED = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
_FP8_CAPABILITY = 89


def _too_many(experts: int) -> str | None:
    if 1 <= experts <= configs.MAX_EXPERTS:
        return None
    return f"there are {experts} experts; it takes 1 to {configs.MAX_EXPERTS}"


def _mismatch(x: torch.dtype, w: torch.dtype) -> str | None:
    """Float weights have the type of x, or x is float32 and they are widened."""
    if w in FLOATS and (x == w or x == torch.float32):
        return None
    return f"x is {x} and the weights are {w}; it takes one type, or float32 x"


def _route_why_not(logits, top_k, renormalize):
    return _too_many(logits.shape[1]) or unfit(("logits",), (logits,))


@register("route_topk", "triton", _route_why_not, sources=(KERNELS / "routing.py", __file__))
def route_topk(logits, top_k, renormalize):
    weights = logits.new_empty(logits.shape[0], top_k, dtype=torch.float32)
    ids = torch.empty_like(weights, dtype=torch.int32)
    routing_kernels.route_topk(logits, renormalize, weights, ids)
    return weights, ids


def _sort_why_not(ids, num_experts):
    return unfit(("ids",), (ids.flatten()[:1],), types=None)  # in any order: it is made dense


@register("sort_by_expert", "triton", _sort_why_not, sources=(KERNELS / "routing.py", __file__))
def sort_by_expert(ids, num_experts):
    rows, offsets = ids.new_empty(ids.numel()), ids.new_empty(num_experts + 1)
    routing_kernels.sort_by_expert(ids.contiguous(), rows, offsets)
    return rows, offsets


def _grouped_why_not(x, w, offsets):
    reason = unfit(("x", "w", "offsets"), (x, w, offsets), types=None)
    return reason or unfit(("x",), (x,)) or _mismatch(x.dtype, w.dtype) or _too_many(w.shape[0])


@register("grouped_gemm", "triton", _grouped_why_not,
          sources=(KERNELS / "grouped_gemm.py", __file__))  # fmt: skip
def grouped_gemm(x, w, offsets):
    out = x.new_empty(x.shape[0], w.shape[1])
    gemm_kernels.grouped_gemm(x, w, offsets, out)
    return out


_NAMES = ("x", "gate_up", "down", "shared_gate_up", "shared_down")
_SCALES = ("gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale")


def _moe_why_not(x, gate_up, down, weights, ids, shared_gate_up, shared_down, gate_up_scale,
                 down_scale, shared_gate_up_scale, shared_down_scale, layout, format):  # fmt: skip
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


@register("moe_mlp", "triton", _moe_why_not, sources=(KERNELS / "moe_mlp.py", __file__))
def moe_mlp(x, gate_up, down, weights, ids, shared_gate_up, shared_down, gate_up_scale,
            down_scale, shared_gate_up_scale, shared_down_scale, layout, format):  # fmt: skip
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = gate_up, down, weights.contiguous(), ids.contiguous(), shared_gate_up, shared_down
    scales = gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale
    moe_kernels.moe_mlp(x, *matrices, *scales, format == "int8_dyn", out)
    return out
