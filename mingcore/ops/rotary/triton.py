"""Rotary position embedding on the Triton kernel."""

from mingcore_kernels.rotary import rope as kernels

from .._core.support import Limit, Support
from .._core.triton import KERNELS
from . import QKV_ROPE, ROPE

_SOURCES = (KERNELS / "rotary" / "rope.py",)


def _support(x: str, width) -> Support:
    tensors = (x, "cos", "sin")
    limit = Limit("heads are {} wide", width, kernels.WIDEST)
    return Support(floats=(x,), float32=("cos", "sin"), dense_last=tensors, limits=(limit,))


@ROPE.implementation("triton", _support("x", lambda x, **_: x.shape[-1]), sources=_SOURCES)
def rope(x, cos, sin, interleaved, rope_heads, out):
    kernels.rope(x, cos, sin, interleaved, rope_heads, out)


def _head_width(qkv, num_heads, num_kv_heads, **_) -> int:
    return qkv.shape[-1] // (num_heads + 2 * num_kv_heads)


@QKV_ROPE.implementation("triton", _support("qkv", _head_width), sources=_SOURCES)
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads, q, k, v):
    x = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    kernels.rope(x, cos, sin, interleaved, rope_heads, q, (k, v))
