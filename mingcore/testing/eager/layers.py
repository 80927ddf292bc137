"""Shared parts of the eager model: norms, rotary embeddings, SwiGLU, cached attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KVCache = dict[int, tuple[Tensor, Tensor]]  # layer -> keys, values, each [B, Hkv, S, D]


class RMSNorm(nn.Module):
    """y = w * x / sqrt(mean(x^2) + eps), the statistics in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight.float() * h).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of pairs (i, i + D/2); cos and sin broadcast to x [..., D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of pairs (2i, 2i + 1); angles [T, D/2] for x [..., T, D]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * D] -> [B, heads, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, T, D] -> [B, T, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def extend(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Append k, v [B, Hkv, T, D] to a layer's cache and return all keys and values."""
    if layer in cache:
        old_k, old_v = cache[layer]
        k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
    cache[layer] = (k, v)
    return k, v


def cache_length(cache: KVCache) -> int:
    """Number of positions already in a cache."""
    return cache[0][0].shape[2] if cache else 0


def visible(T: int, past: int, device: torch.device, window: int | None = None) -> Tensor:
    """Boolean mask [T, past + T]: causal, and only the `window` newest keys (incl. self)."""
    query = torch.arange(past, past + T, device=device)[:, None]
    key = torch.arange(past + T, device=device)[None, :]
    mask = key <= query
    if window is not None:
        mask = mask & (key > query - window)
    return mask


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention; keys and values repeated up to the number of query heads."""
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
