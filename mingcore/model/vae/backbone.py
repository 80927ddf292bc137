"""The Qwen2 backbone of the encoder and of the decoder: causal, windowed, streaming."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import BackboneConfig
from ..declared import Build, Declared
from ..layers import Attention, SwiGLU, dense_positions
from ..rope import Rope
from ..state import KVState
from ..weights import Weights


class BackboneLayer:
    """A pre-norm block: attention, then a SwiGLU MLP."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, attention_norm: Tensor, attention: Attention, mlp_norm: Tensor, mlp: SwiGLU):
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    @classmethod
    def declare(cls, w: Weights, c: BackboneConfig, window: int | None) -> Declared[BackboneLayer]:
        H, kv, a = c.hidden_size, c.num_kv_heads * c.head_dim, w.sub("self_attn")
        attention = Build(
            Attention,
            a.linear(("q_proj", "k_proj", "v_proj"), (H, kv, kv), H, role="block"),
            a.linear("o_proj", H, H, bias=False, role="block"),
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            window=window,
        )
        return Build(
            cls,
            w.vector("input_layernorm.weight", H),
            attention,
            w.vector("post_attention_layernorm.weight", H),
            SwiGLU.declare(w.sub("mlp"), H, c.intermediate_size),
        )


class Backbone:
    """x [B,T,H] and its KV state -> [B,T,H] after the final norm (docs/model.md section 4)."""

    def __init__(
        self,
        config: BackboneConfig,
        layers: list[BackboneLayer],
        norm: Tensor,
        *,
        device: torch.device,
        activation_dtype: torch.dtype,
    ):
        self.config, self.layers, self.norm = config, layers, norm
        self.device, self.activation_dtype = device, activation_dtype
        self.rope = Rope(config.rope_theta, config.head_dim, device)

    @classmethod
    def declare(cls, w: Weights, config: BackboneConfig) -> Declared[Backbone]:
        w.ignore("embed_tokens.weight", "the backbone reads frames, not tokens")
        layers = [
            BackboneLayer.declare(w.sub(f"layers.{i}"), config, config.windows[i]) for i in range(config.num_layers)
        ]
        return Build(
            cls,
            config,
            layers,
            w.vector("norm.weight", config.hidden_size),
            device=w.device,
            activation_dtype=w.activation_dtype,
        )

    def new_state(self, batch: int, block: int) -> KVState:
        """An empty state that takes at most `block` frames a step."""
        return backbone_state(self.config, batch, block, dtype=self.activation_dtype, device=self.device)

    def __call__(self, x: Tensor, state: KVState, mask: Tensor | None = None) -> Tensor:
        """One step of T <= state.block frames; the state is changed in place.

        mask [B,T]: frames that count; the others are neither stored nor seen, and what comes out
        in their place has no meaning.
        """
        T, fresh = x.shape[1], state.max_length == 0 and mask is None
        out = self.forward(x, state.reserve(T), state.lengths, fresh=fresh, mask=mask)
        state.advance(T)
        return out

    def forward(
        self,
        x: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        lengths: Tensor,
        *,
        fresh: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The step itself, on tensors alone; `lengths` [B] is moved in place."""
        T, eps = x.shape[1], self.config.rms_norm_eps
        positions = dense_positions(lengths, T, mask)
        lengths.add_(T if mask is None else mask.sum(1))
        rope = self.rope(positions if mask is None else positions.clamp(min=0))
        normed = ops.rms_norm(x, self.layers[0].attention_norm, eps)
        for index, layer in enumerate(self.layers):
            x = layer.attention(normed, x, rope, caches[index], positions, fresh)
            y = layer.mlp(ops.rms_norm(x, layer.mlp_norm, eps))
            last = index + 1 == len(self.layers)
            norm = self.norm if last else self.layers[index + 1].attention_norm
            normed, x = ops.add_rms_norm(y, x, norm, eps)
        return normed


def backbone_state(
    config: BackboneConfig, batch: int, block: int, *, dtype: torch.dtype, device: torch.device
) -> KVState:
    """An empty state of a backbone that takes at most `block` frames a step."""
    heads = config.num_kv_heads, config.head_dim
    return KVState.create(batch, block, config.windows, *heads, block=block, dtype=dtype, device=device)
