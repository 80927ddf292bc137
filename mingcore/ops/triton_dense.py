"""The `triton` backend's norms, rotary embedding and linear layers."""

import torch

from mingcore_kernels import linear as linear_kernels
from mingcore_kernels import norms as norm_kernels
from mingcore_kernels import rope as rope_kernels
from mingcore_kernels.grouped_gemm import capability_of
from mingcore_kernels.moe_mlp import quantised_rows

from .registry import register
from .triton_common import FLOATS, KERNELS, unfit

_STORED = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
_FP8_CAPABILITY = 89


def _rows(x):
    """x [..., H] as [M, H]."""
    return x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])


def _like(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# norms

_NORMS = (KERNELS / "norms.py",)


def _long(x):
    H = x.shape[-1]
    most = norm_kernels.LONGEST
    return None if most >= H else f"rows have {H} elements; it takes up to {most}"


def _rms_why_not(x, weight, eps):
    return unfit(("x", "weight"), (x, weight)) or _long(x)


@register("rms_norm", "triton", _rms_why_not, sources=(*_NORMS, __file__))
def rms_norm(x, weight, eps):
    out = _like(x)
    norm_kernels.rms_norm(_rows(x), weight, eps, out)
    return out


def _add_rms_why_not(x, residual, weight, eps):
    return unfit(("x", "residual", "weight"), (x, residual, weight)) or _long(x)


@register("add_rms_norm", "triton", _add_rms_why_not, sources=(*_NORMS, __file__))
def add_rms_norm(x, residual, weight, eps):
    out, total = _like(x), _like(x)
    norm_kernels.add_rms_norm(_rows(x), _rows(residual), weight, eps, out, total)
    return out, total


def _layer_why_not(x, weight, bias, eps):
    return unfit(("x", "weight", "bias"), (x, weight, bias)) or _long(x)


@register("layer_norm", "triton", _layer_why_not, sources=(*_NORMS, __file__))
def layer_norm(x, weight, bias, eps):
    out = _like(x)
    norm_kernels.layer_norm(_rows(x), weight, bias, eps, out)
    return out


# rotary embedding


def _angles_unfit(x, cos, sin, D):
    for name, t in (("cos", cos), ("sin", sin)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes float32"
    if D > rope_kernels.WIDEST:
        return f"heads are {D} wide; it takes up to {rope_kernels.WIDEST}"
    return unfit(("x", "cos", "sin"), (x, cos, sin))


def _rope_why_not(x, cos, sin, interleaved, rope_heads):
    return _angles_unfit(x, cos, sin, x.shape[-1])


@register("rope", "triton", _rope_why_not, sources=(KERNELS / "rope.py", __file__))
def rope(x, cos, sin, interleaved, rope_heads):
    out = _like(x)
    rope_kernels.rope(x, cos, sin, interleaved, rope_heads, out)
    return out


def _qkv_rope_why_not(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    return _angles_unfit(qkv, cos, sin, qkv.shape[-1] // (num_heads + 2 * num_kv_heads))


@register("qkv_rope", "triton", _qkv_rope_why_not, sources=(KERNELS / "rope.py", __file__))
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    heads = num_heads, num_kv_heads, num_kv_heads
    x = qkv.unflatten(-1, (sum(heads), -1))
    q, k, v = (qkv.new_empty(*x.shape[:2], n, x.shape[3]) for n in heads)
    rope_kernels.rope(x, cos, sin, interleaved, rope_heads, q, (k, v))
    return q, k, v


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


@register("linear", "triton", _linear_why_not, sources=(KERNELS / "linear.py", __file__))
def linear(x, weight, bias, residual, activation, layout, n, scale, format):
    out = x.new_empty(*x.shape[:-1], n // 2 if activation == "swiglu" else n)
    if not out.numel():
        return out
    rows, x_scale = _rows(x) if x.shape[-1] else x.new_empty(out.numel() // out.shape[-1], 0), None
    if format == "int8_dyn":
        with linear_kernels.on_device(x):
            rows, x_scale = quantised_rows(rows)
    linear_kernels.linear(
        rows, weight, None if bias is None else bias.contiguous(),
        None if residual is None else _rows(residual), activation, out,
        scale=None if scale is None else scale.contiguous(), x_scale=x_scale,
    )  # fmt: skip
    return out
