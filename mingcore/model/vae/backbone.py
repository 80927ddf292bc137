"""The Qwen2 backbone of the encoder and of the decoder: causal, windowed, streaming."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import BackboneConfig
from ..layers import Attention, SwiGLU, dense_positions
from ..rope import Rope
from ..state import KVState
from ..weights import Weights


class Layer:
    """One pre-norm block."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, attention_norm: Tensor, attention: Attention, mlp_norm: Tensor, mlp: SwiGLU):
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    @classmethod
    def from_weights(cls, w: Weights, c: BackboneConfig, window: int | None) -> Layer:
        H, kv, a = c.hidden_size, c.num_kv_heads * c.head_dim, w.sub("self_attn")
        attention = Attention(
            a.linear(("q_proj", "k_proj", "v_proj"), (H, kv, kv), H, block=True),
            a.linear("o_proj", H, H, bias=False, block=True),
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            window=window,
        )
        return cls(
            w.vector("input_layernorm.weight", H),
            attention,
            w.vector("post_attention_layernorm.weight", H),
            SwiGLU.from_weights(w.sub("mlp"), H, c.intermediate_size),
        )


class Backbone:
    """x [B,T,H] and its KV state -> [B,T,H] after the final norm (docs/model.md section 4)."""

    def __init__(
        self,
        config: BackboneConfig,
        layers: list[Layer],
        norm: Tensor,
        *,
        device: torch.device,
        activation_dtype: torch.dtype,
    ):
        self.config, self.layers, self.norm = config, layers, norm
        self.device, self.activation_dtype = device, activation_dtype
        self.rope = Rope(config.rope_theta, config.head_dim, device)

    @classmethod
    def from_weights(cls, w: Weights, config: BackboneConfig) -> Backbone:
        w.ignore("embed_tokens.weight", "the backbone reads frames, not tokens")
        layers = [Layer.from_weights(w.sub(f"layers.{i}"), config, config.windows[i]) for i in range(config.num_layers)]
        return cls(
            config,
            layers,
            w.vector("norm.weight", config.hidden_size),
            device=torch.device("meta") if w.dry else w.device,
            activation_dtype=w.activation_dtype,
        )

    def new_state(self, batch: int, block: int) -> KVState:
        """An empty state that takes at most `block` frames a step."""
        c = self.config
        return KVState.create(
            batch,
            block,
            c.windows,
            c.num_kv_heads,
            c.head_dim,
            block=block,
            dtype=self.activation_dtype,
            device=self.device,
        )

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
