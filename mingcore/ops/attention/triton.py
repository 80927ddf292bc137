"""Attention over a cache on the Triton kernels, and writing that cache."""

import torch

from mingcore_kernels.attention import attention_decode as decode_kernels
from mingcore_kernels.attention import kv_write as cache_kernels

from .._core.support import FLOATS, Limit, Support
from .._core.triton import KERNELS
from . import ATTENTION_DECODE, KV_WRITE

_STORED = (*FLOATS, torch.int8)
_MAX_SLOTS = 1 << 30  # they are counted in 32 bits


@ATTENTION_DECODE.implementation(
    "triton",
    Support(
        floats=("q",),
        types={"k_cache": _STORED, "v_cache": _STORED, "k_scale": (torch.float32,), "v_scale": (torch.float32,)},
        dense_last=("q", "k_cache", "v_cache"),
        limits=(
            Limit("heads are {} wide", lambda q, **_: q.shape[-1], decode_kernels.WIDEST),
            Limit("the cache has {} slots", lambda k_cache, **_: k_cache.shape[1], _MAX_SLOTS),
            Limit("the window is {}", lambda window, **_: window, _MAX_SLOTS),
        ),
    ),
    sources=(KERNELS / "attention" / "attention_decode.py",),
)
def attention_decode(q, k_cache, v_cache, positions, window, scale, k_scale, v_scale, out):
    decode_kernels.attention_decode(
        q, k_cache, v_cache, positions, window, scale, out, k_scale=k_scale, v_scale=v_scale
    )


@KV_WRITE.implementation(
    "triton",
    Support(
        floats=("k_cache", "v_cache", "k", "v"),
        dense_last=("k_cache", "v_cache", "k", "v"),
        disjoint=("k_cache", "v_cache"),
    ),
    sources=(KERNELS / "attention" / "kv_write.py",),
)
def kv_write_(k_cache, v_cache, k, v, positions):
    cache_kernels.kv_write(k_cache, v_cache, k, v, positions)
