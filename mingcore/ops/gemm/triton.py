"""The `triton` backend's norms, rotary embedding and linear layers."""

import torch

from mingcore_kernels.gemm import grouped_gemm as gemm_kernels
from mingcore_kernels.gemm import linear as linear_kernels
from mingcore_kernels.gemm.grouped_gemm import capability_of
from mingcore_kernels.moe.moe_mlp import quantised_rows

from .._core.registry import register
from .._core.triton import FLOATS, KERNELS, unfit
from ..norm.triton import _rows
from ..routing.triton import _too_many

_STORED = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
_FP8_CAPABILITY = 89


# linear


def _linear_why_not(x, weight, bias, residual, activation, layout, n, scale, format):
    if layout != "rows":
        return f"weight is in layout {layout!r}; it takes 'rows'"
    reason = unfit(("x", "bias", "residual"), (x, bias, residual))
    reason = reason or unfit(("x", "weight", "scale"), (x, weight, scale), types=None)
    if reason:
        return reason
    if not weight.is_contiguous():
        return f"weight has strides {tuple(weight.stride())}; it takes a contiguous one"
    if scale is not None:
        if weight.dtype != _STORED.get(format) or scale.dtype != torch.float32:
            return f"format {format} comes as {weight.dtype} with {scale.dtype} scales"
        if format == "fp8" and not x.is_cpu and capability_of(x.device.index) < _FP8_CAPABILITY:
            return f"8-bit floats are for sm_{_FP8_CAPABILITY} and newer"
    elif weight.dtype not in FLOATS or x.dtype not in (weight.dtype, torch.float32):
        return f"x is {x.dtype} and weight is {weight.dtype}; it takes one type, or float32 x"
    return None


@register("linear", "triton", _linear_why_not, sources=(KERNELS / "gemm" / "linear.py", __file__))
def linear(x, weight, bias, residual, activation, layout, n, scale, format):
    out = x.new_empty(*x.shape[:-1], n // 2 if activation == "swiglu" else n)
    if not out.numel():
        return out
    rows, x_scale = _rows(x) if x.shape[-1] else x.new_empty(out.numel() // out.shape[-1], 0), None
    if format == "int8_dyn":
        with linear_kernels.on_device(x):
            rows, x_scale = quantised_rows(rows)
    linear_kernels.linear(
        rows,
        weight,
        None if bias is None else bias.contiguous(),
        None if residual is None else _rows(residual),
        activation,
        out,
        scale=None if scale is None else scale.contiguous(),
        x_scale=x_scale,
    )
    return out


def _mismatch(x: torch.dtype, w: torch.dtype) -> str | None:
    """Float weights have the type of x, or x is float32 and they are widened."""
    if w in FLOATS and (x == w or x == torch.float32):
        return None
    return f"x is {x} and the weights are {w}; it takes one type, or float32 x"


def _grouped_why_not(x, w, offsets):
    reason = unfit(("x", "w", "offsets"), (x, w, offsets), types=None)
    return reason or unfit(("x",), (x,)) or _mismatch(x.dtype, w.dtype) or _too_many(w.shape[0])


@register("grouped_gemm", "triton", _grouped_why_not, sources=(KERNELS / "gemm" / "grouped_gemm.py", __file__))
def grouped_gemm(x, w, offsets):
    out = x.new_empty(x.shape[0], w.shape[1])
    gemm_kernels.grouped_gemm(x, w, offsets, out)
    return out
