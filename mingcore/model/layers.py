"""The layers that the LLM, the AudioVAE's backbones and the semantic module are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from .context import ContextCache
from .declared import Build, Declared

if TYPE_CHECKING:
    from .weights import Weights


class Linear:
    """y = activation(x Wᵀ + b) + residual, with the weight in the one form its device reads."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: ops.PackedLinear | Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, *, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation=activation, residual=residual)


class SwiGLU:
    """x -> down(silu(gate x) * up x), gate and up in one matrix."""

    __slots__ = ("down", "gate_up")

    def __init__(self, gate_up: Linear, down: Linear):
        self.gate_up, self.down = gate_up, down

    @classmethod
    def declare(cls, w: Weights, hidden: int, width: int) -> Declared[SwiGLU]:
        names = ("gate_proj", "up_proj")
        return Build(
            cls,
            w.linear(names, (width, width), hidden, bias=False, activation="swiglu", role="block"),
            w.linear("down_proj", hidden, width, bias=False, role="block"),
        )

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        return self.down(self.gate_up(x, activation="swiglu"), residual=residual)


class Attention:
    """Causal attention with a KV cache and RoPE: x [B,T,H] -> x's residual stream [B,T,H].

    `window` is how many keys a query sees, itself included (None: all).
    """

    __slots__ = ("head_dim", "heads", "interleaved", "kv_heads", "out", "qkv", "window")

    def __init__(
        self,
        qkv: Linear,
        out: Linear,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        interleaved: bool = False,
        window: int | None = None,
    ):
        self.qkv, self.out = qkv, out
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.interleaved, self.window = interleaved, window

    def __call__(
        self,
        x: Tensor,
        residual: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor] | ContextCache,
        positions: Tensor,
        fresh: bool,
    ) -> Tensor:
        """x: the normed input. rope: cos, sin [1|B,T,D/2]. cache: keys, values [B,S,Hkv,D], or one
        that departs from the reference.

        positions [B,T] int64: where the new keys are stored, negative for tokens that are not.
        fresh: the cache is empty and no token is masked, so the new keys are all there is.
        """
        B, T, _ = x.shape
        q, k, v = ops.qkv_rope(self.qkv(x), *rope, self.heads, self.kv_heads, interleaved=self.interleaved)
        window = self.window
        if isinstance(cache, ContextCache):
            window = cache.window
            cache.write_(k, v, positions)
        else:
            ops.kv_write_(*cache, k, v, positions)
        if fresh:
            a = ops.attention_prefill(q, k, v, causal=True, window=window)
        elif isinstance(cache, ContextCache):
            a = cache.attend(q, positions)
        else:
            a = ops.attention_decode(q, *cache, positions, window=window)
        return self.out(a.reshape(B, T, self.heads * self.head_dim), residual=residual)


def dense_positions(lengths: Tensor, T: int, attention_mask: Tensor | None) -> Tensor:
    """Positions [B,T] at which T new tokens are stored behind `lengths` [B]; masked ones get -1."""
    if attention_mask is None:
        if T == 1:
            return lengths[:, None].clone()
        return lengths[:, None] + torch.arange(T, device=lengths.device)
    valid = attention_mask != 0
    behind = lengths[:, None] + valid.cumsum(1) - 1
    return torch.where(valid, behind, -1)
