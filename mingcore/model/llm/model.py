"""The language model: embeddings in, hidden states after the final norm out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import LLMConfig
from ...errors import InputError
from ..declared import Build, Declared, Shared
from ..layers import Attention, Linear, SwiGLU, dense_positions
from ..rope import ScaledRope
from ..state import KVState
from ..weights import Weights
from .moe import MoE
from .on_demand import ReadOnDemand

LLMState = KVState


class DecoderLayer:
    """One pre-norm block: attention, then experts (or a dense MLP)."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, attention_norm: Tensor, attention: Attention, mlp_norm: Tensor, mlp: MoE | SwiGLU):
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    @classmethod
    def declare(cls, w: Weights, config: LLMConfig, index: int) -> Declared[DecoderLayer]:
        H, D, heads, kv = (config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads)
        a = w.sub("attention")
        attention = Build(
            Attention,
            a.linear("query_key_value", (heads + 2 * kv) * D, H, bias=config.use_qkv_bias, role="block"),
            a.linear("dense", H, heads * D, bias=config.use_bias, role="block"),
            heads,
            kv,
            D,
        )
        if config.is_moe(index):
            mlp = MoE.declare(w.sub("mlp"), config)
        else:
            mlp = SwiGLU.declare(w.sub("mlp"), H, config.intermediate_size)
        norm, mlp_norm = w.vector("input_layernorm.weight", H), w.vector("post_attention_layernorm.weight", H)
        return Build(cls, norm, attention, mlp_norm, mlp)


class LLM:
    """BailingMoe (docs/model.md section 2)."""

    def __init__(
        self,
        config: LLMConfig,
        embedding: Tensor,
        head: Linear,
        head_scale: Tensor | None,
        layers: Sequence[DecoderLayer],
        norm: Tensor,
        *,
        activation_dtype: torch.dtype,
    ):
        self.config, self.embedding, self.head, self.head_scale = (config, embedding, head, head_scale)
        self.layers, self.norm = layers, norm
        self.activation_dtype = activation_dtype
        self.device = embedding.device
        self.rope = ScaledRope(config.rope, self.device)

    @classmethod
    def declare(cls, w: Weights, config: LLMConfig, *, on_demand: bool = False) -> Declared[LLM]:
        """on_demand: layers are read when they are needed (`OnDemand`)."""
        V, H = config.vocab_size, config.hidden_size
        inner = w.sub("model")
        head = None if config.tie_word_embeddings else Shared(w.linear("lm_head", V, H, bias=False))
        embedding = Shared(inner.matrix(("word_embeddings",), (V,), H))
        if head is None:
            w.ignore("lm_head.weight", "the embeddings are the head (tie_word_embeddings)")
            head = Build(Linear, embedding, None)
        layers = [DecoderLayer.declare(inner.sub(f"layers.{i}"), config, i) for i in range(config.num_layers)]
        return Build(
            cls,
            config,
            # the largest matrix first: packing copies it, which is freed before the others are read
            head=head,
            embedding=embedding,
            head_scale=Build(_head_scale, head, w.activation_dtype) if config.norm_head else None,
            layers=ReadOnDemand(layers) if on_demand else layers,
            norm=inner.vector("norm.weight", H),
            activation_dtype=w.activation_dtype,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B,T] -> embeddings [B,T,H]."""
        return torch.nn.functional.embedding(ids, self.embedding).to(self.activation_dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [...,H] -> logits [...,V]."""
        if self.head_scale is not None:
            hidden = hidden * self.head_scale
        return self.head(hidden)

    def new_state(self, batch: int, capacity: int) -> LLMState:
        """An empty KV cache for `capacity` tokens a row; it doubles when they are exceeded."""
        return llm_state(self.config, batch, capacity, dtype=self.activation_dtype, device=self.device)

    def __call__(
        self,
        embeds: Tensor,
        state: LLMState | None = None,
        audio_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, LLMState]:
        """Run T more tokens: embeds [B,T,H] -> (hidden [B,T,H] after the final norm, state).

        audio_mask, image_mask [B,T]: tokens that take that router, where the model has one.
        positions [B,T] or [3,B,T]: for RoPE only; by default a token's place in its row.
        attention_mask [B,T], 1 = valid: masked tokens (padding) are neither stored nor seen, and
        what comes out in their place has no meaning. The state is changed in place; None starts
        afresh. Raises InputError for shapes that do not fit.
        """
        B, T, _ = self._check(embeds, state, audio_mask, image_mask, positions, attention_mask)
        state = state or self.new_state(B, T)
        fresh = state.max_length == 0 and attention_mask is None
        hidden = self.forward(
            embeds,
            state.reserve(T),
            state.lengths,
            audio_mask=audio_mask,
            image_mask=image_mask,
            positions=positions,
            attention_mask=attention_mask,
            fresh=fresh,
        )
        state.advance(T)
        return hidden, state

    def forward(
        self,
        embeds: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        lengths: Tensor,
        *,
        audio_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        fresh: bool = False,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """The step itself, on tensors alone: for torch.compile and CUDA graphs.

        caches: each layer's (keys, values) [B,S,Hkv,D] with room for T more tokens
        (`state.reserve(T)`). lengths [B] is moved in place; the caller calls `state.advance(T)`.
        fresh: the caches are empty. trace: receives what goes into each layer.
        """
        B, T, _ = embeds.shape
        eps = self.config.rms_norm_eps
        stored = dense_positions(lengths, T, attention_mask)
        if attention_mask is None:
            lengths.add_(T)
        else:
            lengths.add_((attention_mask != 0).sum(1))
        if positions is None:
            positions = stored if attention_mask is None else stored.clamp(min=0)
        rope = self.rope(positions, lengths)
        masks = [None if m is None else m.reshape(B * T, 1) != 0 for m in (audio_mask, image_mask)]
        x = embeds.to(self.activation_dtype)
        normed = ops.rms_norm(x, self.layers[0].attention_norm, eps)
        for index, layer in enumerate(self.layers):
            if trace is not None:
                trace.append(x)
            x = layer.attention(normed, x, rope, caches[index], stored, fresh)
            normed = ops.rms_norm(x, layer.mlp_norm, eps)
            y = layer.mlp(normed, *masks) if isinstance(layer.mlp, MoE) else layer.mlp(normed)
            last = index + 1 == len(self.layers)
            norm = self.norm if last else self.layers[index + 1].attention_norm
            normed, x = ops.add_rms_norm(y, x, norm, eps)
        return normed

    def _check(
        self,
        embeds: Tensor,
        state: LLMState | None,
        audio_mask: Tensor | None,
        image_mask: Tensor | None,
        positions: Tensor | None,
        attention_mask: Tensor | None,
    ) -> tuple[int, int, int]:
        H = self.config.hidden_size
        if embeds.dim() != 3 or embeds.shape[-1] != H or embeds.numel() == 0:
            raise InputError(f"llm: embeds must be [B, T, {H}], got {list(embeds.shape)}")
        B, T, _ = embeds.shape
        if state is not None and state.batch != B:
            raise InputError(f"llm: the state has {state.batch} rows, embeds has {B}")
        masks = {"audio_mask": audio_mask, "image_mask": image_mask, "attention_mask": attention_mask}
        for name, mask in masks.items():
            if mask is not None and mask.shape != (B, T):
                raise InputError(f"llm: {name} must be {[B, T]}, got {list(mask.shape)}")
        if positions is not None and tuple(positions.shape) not in ((B, T), (3, B, T)):
            raise InputError(f"llm: positions must be {[B, T]} or {[3, B, T]}, got {list(positions.shape)}")
        return B, T, H


def llm_state(config: LLMConfig, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device) -> LLMState:
    """An empty KV cache for `capacity` tokens a row; it doubles when they are exceeded."""
    shape = (None,) * config.num_layers, config.num_kv_heads, config.head_dim
    return KVState.create(batch, capacity, *shape, block=capacity, dtype=dtype, device=device)


def _head_scale(head: Linear, dtype: torch.dtype) -> Tensor:
    """norm_head: 1 / |column| of the head [H], applied to the hidden channels instead of the matrix."""
    weight = head.weight if isinstance(head.weight, Tensor) else head.weight.unpack()
    squares = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)
    for rows in weight.split(4096):
        squares += rows.float().square().sum(0)
    return (1.0 / (squares.sqrt() + 1e-7)).to(dtype)
