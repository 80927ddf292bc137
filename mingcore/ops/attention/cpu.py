"""Attention on the CPU kernels, and writing its cache."""

import torch

from ... import _cpu
from .._core.cpu import array, array_or_none, dense_last
from .._core.support import FLOATS, Support
from . import ATTENTION_DECODE, ATTENTION_PREFILL, KV_WRITE

_STORED = (*FLOATS, torch.int8)
# Copies that an adapter makes must live, by name, until the kernel has read them.


def _dense_if_int8(k_cache, v_cache, k_scale, **_) -> str | None:
    strided = k_cache.shape[-1] > 1 and (k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1)
    if k_scale is not None and strided:
        return "the int8 caches are strided within a head; it takes a dense last dimension"
    return None


@ATTENTION_DECODE.implementation(
    "cpu",
    Support(floats=("q", "k_scale", "v_scale"), types={"k_cache": _STORED, "v_cache": _STORED}, rule=_dense_if_int8),
)
def attention_decode(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale, out):
    q, k_cache, v_cache = dense_last(q), dense_last(k_cache), dense_last(v_cache)
    caches, scales = (array(k_cache), array(v_cache)), (array_or_none(k_scale), array_or_none(v_scale))
    _cpu.attention_decode(
        array(q), *caches, array(positions), window, scale, *scales, array(out), torch.get_num_threads()
    )


@ATTENTION_PREFILL.implementation("cpu", Support(floats=("q", "k", "v")))
def attention_prefill(q, k, v, causal, window, scale, out):
    # fresh keys are a cache that is just full: query t stands at position t, or behind every key
    T, S = q.shape[1], k.shape[1]
    positions = torch.arange(T) if causal else torch.full((T,), S - 1)
    attention_decode(q, k, v, positions.expand(q.shape[0], T), window, scale, None, None, out)


@KV_WRITE.implementation(
    "cpu",
    Support(
        floats=("k_cache", "v_cache", "k", "v"), dense_last=("k_cache", "v_cache"), disjoint=("k_cache", "v_cache")
    ),
)
def kv_write_(k_cache, v_cache, k, v, positions):
    k, v = dense_last(k), dense_last(v)
    _cpu.kv_write(array(k_cache), array(v_cache), array(k), array(v), array(positions), torch.get_num_threads())
