"""The `cpu` backend's norms, rotary embedding and routing."""

import torch

from ... import _cpu
from .._core.cpu import array, dense_last, unfit
from .._core.registry import register
from ..norm.cpu import _like


def _rope_why_not(x, cos, sin, interleaved, rope_heads):
    if cos.dtype != torch.float32:
        return f"cos is {cos.dtype}; it takes float32 angles"
    return unfit(("x", "cos", "sin"), (x, cos, sin))


@register("rope", "cpu", _rope_why_not)
def rope(x, cos, sin, interleaved, rope_heads):
    out = _like(x)
    x, cos, sin = dense_last(x), dense_last(cos), dense_last(sin)
    threads = torch.get_num_threads()
    _cpu.rope(array(x), array(cos), array(sin), interleaved, rope_heads, array(out), threads)
    return out


def _qkv_rope_why_not(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    if cos.dtype != torch.float32:
        return f"cos is {cos.dtype}; it takes float32 angles"
    return unfit(("qkv", "cos", "sin"), (qkv, cos, sin))


@register("qkv_rope", "cpu", _qkv_rope_why_not)
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    B, T, width = qkv.shape
    D = width // (num_heads + 2 * num_kv_heads)
    q = qkv.new_empty((B, T, num_heads, D))
    k = qkv.new_empty((B, T, num_kv_heads, D))
    v = qkv.new_empty((B, T, num_kv_heads, D))
    qkv, cos, sin = dense_last(qkv), dense_last(cos), dense_last(sin)
    _cpu.qkv_rope(
        array(qkv),
        array(cos),
        array(sin),
        interleaved,
        rope_heads,
        array(q),
        array(k),
        array(v),
        torch.get_num_threads(),
    )
    return q, k, v
