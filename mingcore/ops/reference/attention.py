"""Attention over fresh keys (prefill) and over a cache (decode), and writing that cache."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import register


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float):
    """[B, T, H, D] in and out; grouped heads."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).contiguous()


@register("attention_prefill", "reference")
def attention_prefill(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float
) -> Tensor:
    """softmax(scale q k^T) v; causal: query t sees keys s <= t, with a window also s > t - window.

    window 0: none. q [B, T, Hq, D], k and v [B, S, Hkv, D] -> [B, T, Hq, D].
    """
    T = q.shape[1]
    if not causal or window == 0 or window >= T:
        return _sdpa(q, k, v, None, causal, scale)
    t = torch.arange(T, device=q.device).unsqueeze(1)
    s = torch.arange(T, device=q.device)
    return _sdpa(q, k, v, (s <= t) & (s > t - window), False, scale)


@register("attention_decode", "reference")
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, window: int, scale: float
) -> Tensor:
    """q [B, T, Hq, D] at positions [B, T] over caches [B, S, Hkv, D] -> [B, T, Hq, D].

    Slot j of row b holds the key of position p_j = last - (last - j) mod S, last = max
    positions[b]. A query at p sees it iff 0 <= p_j <= p and (no window or p_j > p - window).
    """
    S = k_cache.shape[1]
    if positions.is_cpu:
        newest = max(int(positions.max()), 0)
        if newest < S:
            S = newest + 1
            k_cache, v_cache = k_cache[:, :S], v_cache[:, :S]
        if positions.numel() == 1 and int(positions) == newest and (window == 0 or window >= S):
            return _sdpa(q, k_cache, v_cache, None, False, scale)
    last = positions.amax(dim=1, keepdim=True)
    slot = torch.arange(S, device=q.device)
    key = (last - (last - slot).remainder(S)).unsqueeze(1)
    query = positions.unsqueeze(2)
    visible = (key >= 0) & (key <= query)
    if window:
        visible &= key > query - window
    out = _sdpa(q, k_cache, v_cache, visible.unsqueeze(1), False, scale)
    return out.masked_fill((positions < 0)[:, :, None, None], 0.0)


@register("kv_write_", "reference")
def kv_write_(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """cache[b, positions[b, t] mod S] = k[b, t]; skipped where positions < 0.

    Of two tokens for the same slot the later position stays. On a GPU nothing is read back: a
    skipped token repeats the write of the row's newest one, or writes back what was there.
    """
    B, S = k_cache.shape[:2]
    last, newest = positions.max(dim=1, keepdim=True)
    written = (positions >= 0) & (positions > last - S)
    if positions.is_cpu:
        b, t = written.nonzero(as_tuple=True)
        slot = positions[b, t].remainder(S)
        k_cache[b, slot], v_cache[b, slot] = k[b, t], v[b, t]
        return
    b = torch.arange(B, device=k.device).unsqueeze(1)
    t = torch.where(written, torch.arange(positions.shape[1], device=k.device), newest)
    slot = positions.gather(1, t).remainder(S)
    empty = (last < 0)[:, :, None, None]
    k_cache[b, slot] = torch.where(empty, k_cache[b, slot], k[b, t])
    v_cache[b, slot] = torch.where(empty, v_cache[b, slot], v[b, t])
