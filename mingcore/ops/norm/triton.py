"""The `triton` backend's norms, rotary embedding and linear layers."""

import torch

from mingcore_kernels.norm import norms as norm_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit


def _rows(x):
    """x [..., H] as [M, H]."""
    return x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])


def _like(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# norms

_NORMS = (KERNELS / "norm" / "norms.py",)


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
