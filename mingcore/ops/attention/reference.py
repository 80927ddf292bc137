"""Attention over fresh keys (prefill) and over a cache (decode), and writing that cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import wide
from . import ATTENTION_DECODE, ATTENTION_PREFILL, KV_WRITE


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float):
    """[B, T, H, D] in and out; grouped heads."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).contiguous()


@ATTENTION_PREFILL.implementation("reference")
@by_row(q=0, k=0, v=0)
def attention_prefill(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float) -> Tensor:
    """softmax(scale q k^T) v; causal: query t sees keys s <= t, with a window also s > t - window.

    window 0: none. q [B, T, Hq, D], k and v [B, S, Hkv, D] -> [B, T, Hq, D].
    """
    T = q.shape[1]
    if not causal or window == 0 or window >= T:
        return _sdpa(q, k, v, None, causal, scale)
    t = torch.arange(T, device=q.device).unsqueeze(1)
    s = torch.arange(T, device=q.device)
    return _sdpa(q, k, v, (s <= t) & (s > t - window), False, scale)


@ATTENTION_DECODE.implementation("reference")
@by_row(("k_cache", "v_cache", "k_scale", "v_scale"), q=0, positions=0)
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    window: int,
    scale: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> Tensor:
    """q [B, T, Hq, D] at positions [B, T] over caches [B, S, Hkv, D] -> [B, T, Hq, D].

    Slot j of row b holds the key of position p_j = last - (last - j) mod S, last = max
    positions[b]. A query at p sees it iff 0 <= p_j <= p and (no window or p_j > p - window).
    Scales [B, S, Hkv, 1]: key = scale * stored, of caches in int8.
    """
    if k_scale is not None:
        inner = wide(q)
        k_cache = k_cache.to(inner.dtype) * k_scale
        v_cache = v_cache.to(inner.dtype) * v_scale
        out = attention_decode(inner, k_cache, v_cache, positions, window, scale, None, None)
        return out.to(q.dtype)
    if not positions.is_cpu:
        return _decode_masked(q, k_cache, v_cache, positions, window, scale)
    newest = max(int(positions.max()), 0)
    used = min(newest + 1, k_cache.shape[1])
    k_cache, v_cache = k_cache[:, :used], v_cache[:, :used]
    if positions.numel() == 1 and int(positions) == newest and (window == 0 or window >= used):
        return _by_kv_head(q, k_cache, v_cache, None, scale)
    return _decode_masked(q, k_cache, v_cache, positions, window, scale)


def _decode_masked(q: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, window: int, scale: float) -> Tensor:
    S = k_cache.shape[1]
    last = positions.amax(dim=1, keepdim=True)
    slot = torch.arange(S, device=q.device)
    key = (last - (last - slot).remainder(S)).unsqueeze(1)
    query = positions.unsqueeze(2)
    visible = (key >= 0) & (key <= query)
    if window:
        visible &= key > query - window
    out = _by_kv_head(q, k_cache, v_cache, visible, scale)
    return out.masked_fill((positions < 0)[:, :, None, None], 0.0)


def _by_kv_head(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """The heads that share a KV head are rows of one product, so each key is read once.

    q [B, T, Hq, D], visible [B, T, S] or None: everything.
    """
    B, T, _, D = q.shape
    heads = k.shape[2]
    rows = q.reshape(B, T, heads, -1, D).permute(0, 2, 3, 1, 4)  # [B, Hkv, G, T, D]
    G = rows.shape[2]
    if visible is not None:
        visible = visible[:, None, None].expand(B, 1, G, T, -1).reshape(B, 1, G * T, -1)
    out = F.scaled_dot_product_attention(
        rows.reshape(B, heads, G * T, D), k.transpose(1, 2), v.transpose(1, 2), visible, scale=scale
    )
    out = out.unflatten(2, (G, T)).permute(0, 3, 1, 2, 4)
    return out.reshape(q.shape).contiguous()


@KV_WRITE.implementation("reference")
def kv_write_(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """cache[b, positions[b, t] mod S] = k[b, t]; skipped where positions < 0.

    Of two tokens for the same slot the later position stays.
    """
    if not positions.is_cpu:
        return _kv_write_on_device(k_cache, v_cache, k, v, positions)
    S = k_cache.shape[1]
    b, t = _written(positions, S).nonzero(as_tuple=True)
    slot = positions[b, t].remainder(S)
    k_cache[b, slot], v_cache[b, slot] = k[b, t], v[b, t]


def _written(positions: Tensor, S: int) -> Tensor:
    """Tokens that are not skipped and that no later one of the same call overwrites."""
    return (positions >= 0) & (positions > positions.amax(dim=1, keepdim=True) - S)


def _kv_write_on_device(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Without reading anything back: a token that is not written repeats the write of its row's
    newest one, or, in a row without any, writes back what was there."""
    (B, S), T = k_cache.shape[:2], positions.shape[1]
    last, newest = positions.max(dim=1, keepdim=True)
    b = torch.arange(B, device=k.device).unsqueeze(1)
    t = torch.where(_written(positions, S), torch.arange(T, device=k.device), newest)
    slot = positions.gather(1, t).remainder(S)
    nothing = (last < 0)[:, :, None, None]
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache[b, slot] = torch.where(nothing, cache[b, slot], new[b, t])
