"""The `triton` backend's attention over a cache, and the writing of it."""

import torch

from mingcore_kernels.attention import attention_decode as attention_kernels
from mingcore_kernels.attention import kv_write as cache_kernels

from .._core.registry import register
from .._core.triton import KERNELS, unfit

_LONGEST = 1 << 30  # slots: they are counted in 32 bits


def _decode_why_not(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale):
    D, S = q.shape[-1], k_cache.shape[1]
    if D > attention_kernels.WIDEST:
        return f"heads are {D} wide; it takes up to {attention_kernels.WIDEST}"
    if S > _LONGEST or window > _LONGEST:
        return f"the cache has {S} slots, the window is {window}; it takes up to {_LONGEST}"
    if k_scale is None:
        return unfit(("q", "k_cache", "v_cache"), (q, k_cache, v_cache))
    names = ("q", "k_cache", "v_cache", "k_scale", "v_scale")
    tensors = (q, k_cache, v_cache, k_scale, v_scale)
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        return "the int8 caches are strided within a head; it takes a dense last dimension"
    return unfit(names, tensors, types=None) or unfit(("q",), (q,))


@register(
    "attention_decode", "triton", _decode_why_not, sources=(KERNELS / "attention" / "attention_decode.py", __file__)
)
def attention_decode(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale):
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    attention_kernels.attention_decode(
        q, k_cache, v_cache, positions, window, scale, out, k_scale=k_scale, v_scale=v_scale
    )
    return out


def _write_why_not(k_cache, v_cache, k, v, positions):
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if torch._debug_has_internal_overlap(cache) == 1:
            return f"{name} overlaps itself (strides {tuple(cache.stride())}); it takes none"
    return unfit(("k_cache", "v_cache", "k", "v"), (k_cache, v_cache, k, v))


@register("kv_write_", "triton", _write_why_not, sources=(KERNELS / "attention" / "kv_write.py", __file__))
def kv_write_(k_cache, v_cache, k, v, positions):
    cache_kernels.kv_write(k_cache, v_cache, k, v, positions)
