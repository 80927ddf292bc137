"""Rotary position embedding on the CPU kernels."""

import torch

from ... import _cpu
from .._core.cpu import array, dense_last
from .._core.support import Support
from . import QKV_ROPE, ROPE


@ROPE.implementation("cpu", Support(floats=("x",), float32=("cos", "sin")))
def rope(x, cos, sin, interleaved, rope_heads, out):
    x, cos, sin = dense_last(x), dense_last(cos), dense_last(sin)  # copies live until the kernel has read them
    _cpu.rope(array(x), array(cos), array(sin), interleaved, rope_heads, array(out), torch.get_num_threads())


@QKV_ROPE.implementation("cpu", Support(floats=("qkv",), float32=("cos", "sin")))
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads, q, k, v):
    qkv, cos, sin = dense_last(qkv), dense_last(cos), dense_last(sin)
    results = array(q), array(k), array(v)
    _cpu.qkv_rope(array(qkv), array(cos), array(sin), interleaved, rope_heads, *results, torch.get_num_threads())
