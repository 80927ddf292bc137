"""The `cpu` backend's attention, and writing its cache."""

import torch

from ... import _cpu
from .._core.cpu import array, array_or_none, dense_last, unfit
from .._core.registry import register


def _decode_why_not(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale):
    if k_scale is None:
        return unfit(("q", "k_cache", "v_cache"), (q, k_cache, v_cache))
    if k_cache.shape[-1] > 1 and (k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1):
        return "the int8 caches are strided within a head; it takes a dense last dimension"
    return unfit(("q", "k_scale", "v_scale"), (q, k_scale, v_scale))


@register("attention_decode", "cpu", _decode_why_not)
def attention_decode(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale):
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    # copies made here must live, by name, until the kernel has read them
    q, k_cache, v_cache = dense_last(q), dense_last(k_cache), dense_last(v_cache)
    _cpu.attention_decode(
        array(q),
        array(k_cache),
        array(v_cache),
        array(positions),
        window,
        scale,
        array_or_none(k_scale),
        array_or_none(v_scale),
        array(out),
        torch.get_num_threads(),
    )
    return out


def _prefill_why_not(q, k, v, causal, window, scale):
    return unfit(("q", "k", "v"), (q, k, v))


@register("attention_prefill", "cpu", _prefill_why_not)
def attention_prefill(q, k, v, causal, window, scale):
    # fresh keys are a cache that is just full: query t stands at position t, or behind every key
    T, S = q.shape[1], k.shape[1]
    positions = torch.arange(T) if causal else torch.full((T,), S - 1)
    return attention_decode(q, k, v, positions.expand(q.shape[0], T), window, scale, None, None)


def _kv_write_why_not(k_cache, v_cache, k, v, positions):
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.is_contiguous():
            continue
        if cache.shape[-1] > 1 and cache.stride(-1) != 1:
            return f"{name} has strides {tuple(cache.stride())}; it takes a dense last dimension"
        if torch._debug_has_internal_overlap(cache) == 1:
            return f"{name} overlaps itself (strides {tuple(cache.stride())}); it takes none"
    return unfit(("k_cache", "v_cache", "k", "v"), (k_cache, v_cache, k, v))


@register("kv_write_", "cpu", _kv_write_why_not)
def kv_write_(k_cache, v_cache, k, v, positions):
    k, v = dense_last(k), dense_last(v)
    _cpu.kv_write(array(k_cache), array(v_cache), array(k), array(v), array(positions), torch.get_num_threads())
