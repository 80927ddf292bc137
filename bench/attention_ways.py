"""The ordinary PyTorch ways of attention over a cache, of filling it, of RoPE and of routing.

What a model computes once a step for all its layers (masks, slots, complex angles) is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[[], Any]
Ways = Iterator[tuple[str, Call]]


def _visible(positions: Tensor, S: int, window: int | None) -> Tensor | None:
    """[B, 1, T, S] which slots a query sees; None: all of them."""
    last = positions.amax(1, keepdim=True)
    key = (last - (last - torch.arange(S, device=positions.device)).remainder(S)).unsqueeze(1)
    query = positions.unsqueeze(2)
    seen = (key >= 0) & (key <= query)
    if window is not None:
        seen &= key > query - window
    return None if bool(seen.all()) else seen.unsqueeze(1)


def attention_decode(kw: dict[str, Any]) -> Ways:
    positions, scale = kw["positions"], kw["scale"]
    used = min(int(positions.max()) + 1, kw["k_cache"].shape[1])
    q = kw["q"].transpose(1, 2)
    k, v = (kw[name][:, :used].transpose(1, 2) for name in ("k_cache", "v_cache"))
    mask = _visible(positions, used, kw["window"])
    G, T = q.shape[1] // k.shape[1], q.shape[2]

    def plain() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=G > 1)
        return out.transpose(1, 2)

    yield "SDPA", plain
    if G == 1:
        return
    many = None if mask is None else mask.repeat(1, 1, G, 1)

    def by_kv_head() -> Tensor:
        """The heads that share a KV head as rows of one product."""
        rows = q.reshape(q.shape[0], k.shape[1], G * T, -1)
        out = F.scaled_dot_product_attention(rows, k, v, many, scale=scale)
        return out.reshape(q.shape).transpose(1, 2)

    yield "SDPA by KV head", by_kv_head


def kv_write_(kw: dict[str, Any]) -> Ways:
    caches, new = (kw["k_cache"], kw["v_cache"]), (kw["k"], kw["v"])
    slots = kw["positions"].remainder(caches[0].shape[1])
    if len(slots) == 1:
        yield "index_copy_", lambda: [c.index_copy_(1, slots[0], n) for c, n in zip(caches, new)]
    rows = torch.arange(len(slots), device=slots.device).unsqueeze(1)
    yield "index_put_", lambda: [c.index_put_((rows, slots), n) for c, n in zip(caches, new)]


def _turn(x: Tensor, angles: tuple[Tensor, ...], interleaved: bool) -> Tensor:
    if interleaved:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angles[0]).flatten(-2).to(x.dtype)
    cos, sin = angles
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


def _angles(kw: dict[str, Any]) -> tuple[Tensor, ...]:
    cos, sin = kw["cos"].unsqueeze(2), kw["sin"].unsqueeze(2)
    if kw["interleaved"]:
        return (torch.complex(cos, sin),)
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def rope(kw: dict[str, Any]) -> Ways:
    x, interleaved, angles = kw["x"], kw["interleaved"], _angles(kw)
    if kw["rope_heads"] is None:
        yield "complex" if interleaved else "cat", lambda: _turn(x, angles, interleaved)


def qkv_rope(kw: dict[str, Any]) -> Ways:
    heads, interleaved, angles = ((kw["num_heads"], kw["num_kv_heads"]), kw["interleaved"], _angles(kw))
    qkv, sizes = kw["qkv"], (sum(heads), heads[1])

    def together() -> tuple[Tensor, ...]:
        """q and k turned in one go; all three are views."""
        qk, v = qkv.unflatten(-1, (sum(sizes), -1)).split(sizes, 2)
        return *_turn(qk, angles, interleaved).split(heads, 2), v

    if kw["rope_heads"] is None:
        yield "complex" if interleaved else "cat", together


def route_topk(kw: dict[str, Any]) -> Ways:
    logits, K, renormalize = kw["logits"], kw["top_k"], kw.get("renormalize", True)

    def plain() -> tuple[Tensor, Tensor]:
        weights, ids = logits.float().softmax(-1).topk(K)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, ids.int()

    yield "softmax, topk", plain
