"""The `triton` backend's norms, rotary embedding and linear layers."""

import torch

from mingcore_kernels.rotary import rope as rope_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit
from ..norm.triton import _like

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


@register("rope", "triton", _rope_why_not, sources=(KERNELS / "rotary" / "rope.py", __file__))
def rope(x, cos, sin, interleaved, rope_heads):
    out = _like(x)
    rope_kernels.rope(x, cos, sin, interleaved, rope_heads, out)
    return out


def _qkv_rope_why_not(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    return _angles_unfit(qkv, cos, sin, qkv.shape[-1] // (num_heads + 2 * num_kv_heads))


@register("qkv_rope", "triton", _qkv_rope_why_not, sources=(KERNELS / "rotary" / "rope.py", __file__))
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    heads = num_heads, num_kv_heads, num_kv_heads
    x = qkv.unflatten(-1, (sum(heads), -1))
    q, k, v = (qkv.new_empty(*x.shape[:2], n, x.shape[3]) for n in heads)
    rope_kernels.rope(x, cos, sin, interleaved, rope_heads, q, (k, v))
    return q, k, v
