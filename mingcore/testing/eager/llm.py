"""The language model of the eager baseline: BailingMoe as in an ordinary port."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    KVCache,
    RMSNorm,
    SwiGLU,
    cache_length,
    extend,
    grouped_attention,
    merge_heads,
    rotate_half,
    split_heads,
    visible,
)

ROPE_SECTIONS = (16, 24, 24)  # of the 64 frequencies: time, height, width


def rope_tables(positions: Tensor, llm: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """cos, sin [B, 1, T, D] for positions [3, B, T] (3-D RoPE) or [B, T]."""
    D = llm.get("head_dim") or llm["hidden_size"] // llm["num_attention_heads"]
    device = positions.device
    exponent = torch.arange(0, D, 2, dtype=torch.float32, device=device) / D
    inv_freq = 1.0 / (llm["rope_theta"] ** exponent)
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    if positions.dim() == 3:
        sections = ROPE_SECTIONS * 2
        cos = torch.cat([c[i % 3] for i, c in enumerate(cos.split(sections, dim=-1))], dim=-1)
        sin = torch.cat([s[i % 3] for i, s in enumerate(sin.split(sections, dim=-1))], dim=-1)
    return cos[:, None].to(dtype), sin[:, None].to(dtype)


class Attention(nn.Module):
    """Grouped-query attention with one packed q, k, v projection."""

    def __init__(self, llm: dict[str, Any], layer: int):
        super().__init__()
        H, self.layer = llm["hidden_size"], layer
        self.heads, self.kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
        D = llm.get("head_dim") or H // self.heads
        self.split = [self.heads * D, self.kv_heads * D, self.kv_heads * D]
        self.query_key_value = nn.Linear(H, sum(self.split), bias=llm.get("use_qkv_bias", False))
        self.dense = nn.Linear(self.heads * D, H, bias=llm.get("use_bias", False))

    def forward(self, x: Tensor, rope: tuple[Tensor, ...], mask: Tensor, cache: KVCache) -> Tensor:
        q, k, v = self.query_key_value(x).split(self.split, dim=-1)
        q, k = split_heads(q, self.heads), split_heads(k, self.kv_heads)
        q, k = rotate_half(q, *rope), rotate_half(k, *rope)
        k, v = extend(cache, self.layer, k, split_heads(v, self.kv_heads))
        return self.dense(merge_heads(grouped_attention(q, k, v, mask)))


class Gate(nn.Module):
    """A router: `weight` [E, H]."""

    def __init__(self, hidden: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class MoE(nn.Module):
    """Top-k of E experts, one after the other, and the ungated shared expert."""

    def __init__(self, llm: dict[str, Any]):
        super().__init__()
        H, E, width = llm["hidden_size"], llm["num_experts"], llm["moe_intermediate_size"]
        self.top_k, self.renormalize = llm["num_experts_per_tok"], llm["norm_topk_prob"]
        self.gate = Gate(H, E)
        if llm.get("multi_gate"):
            self.image_gate, self.audio_gate = Gate(H, E), Gate(H, E)
        self.experts = nn.ModuleList(SwiGLU(H, width) for _ in range(E))
        shared = llm.get("num_shared_experts") or 0
        self.shared_experts = SwiGLU(H, shared * width) if shared else None

    def router_logits(self, x: Tensor, audio_mask: Tensor | None, image_mask: Tensor | None) -> Tensor:
        logits = self.gate(x)
        if image_mask is not None and hasattr(self, "image_gate"):
            logits = torch.where(image_mask.bool().flatten()[:, None], self.image_gate(x), logits)
        if audio_mask is not None and hasattr(self, "audio_gate"):
            logits = torch.where(audio_mask.bool().flatten()[:, None], self.audio_gate(x), logits)
        return logits

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [T, K] float32 and expert ids [T, K]."""
        weights, ids = torch.topk(F.softmax(logits.float(), dim=-1), self.top_k, dim=-1)
        if self.renormalize and self.top_k > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, ids

    def routed(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        T, H = x.shape
        order = ids.flatten().argsort(stable=True)
        counts = ids.flatten().bincount(minlength=len(self.experts)).tolist()  # a sync
        gathered = x[order // self.top_k]
        parts, start = [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                parts.append(expert(gathered[start : start + count]))
            start += count
        slots = torch.empty_like(gathered)
        slots[order] = torch.cat(parts)
        slots = slots.view(T, self.top_k, H).float()
        return (slots * weights[..., None]).sum(1).to(x.dtype)

    def forward(self, hidden: Tensor, audio_mask: Tensor | None = None, image_mask: Tensor | None = None) -> Tensor:
        x = hidden.flatten(0, 1)
        weights, ids = self.route(self.router_logits(x, audio_mask, image_mask))
        y = self.routed(x, weights, ids).view_as(hidden)
        return y if self.shared_experts is None else y + self.shared_experts(hidden)


class Layer(nn.Module):
    """A pre-norm block: attention, then MoE (or a dense MLP in the first layers)."""

    def __init__(self, llm: dict[str, Any], layer: int):
        super().__init__()
        H, eps = llm["hidden_size"], llm["rms_norm_eps"]
        self.input_layernorm = RMSNorm(H, eps)
        self.attention = Attention(llm, layer)
        self.post_attention_layernorm = RMSNorm(H, eps)
        self.is_dense = layer < llm.get("first_k_dense_replace", 0)
        self.mlp = SwiGLU(H, llm["intermediate_size"]) if self.is_dense else MoE(llm)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...],
        mask: Tensor,
        cache: KVCache,
        masks: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), rope, mask, cache)
        h = self.post_attention_layernorm(x)
        return x + (self.mlp(h) if self.is_dense else self.mlp(h, *masks))


class Decoder(nn.Module):
    """Token embedding, layers and final norm."""

    def __init__(self, llm: dict[str, Any]):
        super().__init__()
        self.word_embeddings = nn.Embedding(llm["vocab_size"], llm["hidden_size"])
        self.layers = nn.ModuleList(Layer(llm, n) for n in range(llm["num_hidden_layers"]))
        self.norm = RMSNorm(llm["hidden_size"], llm["rms_norm_eps"])


class EagerLLM(nn.Module):
    """The language model; every call computes the vocabulary's logits, as generation code does."""

    def __init__(self, llm: dict[str, Any]):
        super().__init__()
        scaling = llm.get("rope_scaling")
        if scaling is not None and scaling.get("type") != "3D":
            raise ValueError(f"EagerLLM: rope_scaling must be null or 3D, got {scaling}")
        self.config, self.is_3d = llm, scaling is not None
        self.model = Decoder(llm)
        self.lm_head = nn.Linear(llm["hidden_size"], llm["vocab_size"], bias=False)

    def finish_loading(self) -> None:
        """Divide the head by its norm over the vocabulary where the config asks for it."""
        if self.config.get("norm_head"):
            weight = self.lm_head.weight.detach().float()
            scaled = weight / (weight.norm(dim=0, keepdim=True) + 1e-7)
            self.lm_head.weight = nn.Parameter(scaled.to(self.lm_head.weight.dtype), requires_grad=False)

    def forward(
        self,
        embeds: Tensor,
        cache: KVCache,
        *,
        positions: Tensor | None = None,
        audio_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states after the final norm [B, T, H] and logits [B, T, V]; extends `cache`.

        embeds [B, T, H]; positions [B, T] or [3, B, T], the cache's length onwards by default;
        attention_mask [B, S + T] with 1 = valid, over the cache and the new tokens.
        """
        B, T, _ = embeds.shape
        past = cache_length(cache)
        if positions is None:
            positions = torch.arange(past, past + T, device=embeds.device).expand(B, T)
        if self.is_3d and positions.dim() == 2:
            positions = positions.expand(3, B, T)
        rope = rope_tables(positions, self.config, embeds.dtype)
        mask = visible(T, past, embeds.device)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None, None, :]
        hidden = embeds
        for layer in self.model.layers:
            hidden = layer(hidden, rope, mask, cache, (audio_mask, image_mask))
        hidden = self.model.norm(hidden)
        return hidden, self.lm_head(hidden).float()
