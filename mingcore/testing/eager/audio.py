"""The audio autoencoder of the eager baseline: encoder, semantic module, decoder, inverse STFT."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    rotate_pairs,
    split_heads,
    visible,
)


class QwenAttention(nn.Module):
    """Grouped-query attention with biases on q, k, v."""

    def __init__(self, config: dict[str, Any], layer: int):
        super().__init__()
        H, self.layer = config["hidden_size"], layer
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        kv = H // self.heads * self.kv_heads
        self.q_proj, self.o_proj = nn.Linear(H, H), nn.Linear(H, H, bias=False)
        self.k_proj, self.v_proj = nn.Linear(H, kv), nn.Linear(H, kv)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache):
        q = rotate_half(split_heads(self.q_proj(x), self.heads), *rope)
        k = rotate_half(split_heads(self.k_proj(x), self.kv_heads), *rope)
        k, v = extend(cache, self.layer, k, split_heads(self.v_proj(x), self.kv_heads))
        return self.o_proj(merge_heads(grouped_attention(q, k, v, mask)))


class QwenLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: dict[str, Any], layer: int):
        super().__init__()
        H, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(H, eps), RMSNorm(H, eps)
        self.self_attn = QwenAttention(config, layer)
        self.mlp = SwiGLU(H, config["intermediate_size"])

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    """A causal backbone with a sliding window; embeddings in, hidden states out."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        n_layers = config["num_hidden_layers"]
        self.layers = nn.ModuleList(QwenLayer(config, n) for n in range(n_layers))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def window(self, layer: int) -> int | None:
        """Visible keys of a layer; the two meanings of the window are in docs/model.md."""
        if not self.config.get("use_sliding_window"):
            return None
        if self.config.get("_attn_implementation") != "flash_attention_2":
            return self.config["sliding_window"]
        on = layer >= self.config.get("max_window_layers", 0)
        return self.config["sliding_window"] + 1 if on else None

    def forward(self, x: Tensor, cache: KVCache) -> Tensor:
        T, past = x.shape[1], cache_length(cache)
        D = self.config["hidden_size"] // self.config["num_attention_heads"]
        exponent = torch.arange(0, D, 2, dtype=torch.float32, device=x.device) / D
        inv_freq = 1.0 / (self.config["rope_theta"] ** exponent)
        positions = torch.arange(past, past + T, device=x.device)
        angles = torch.cat(2 * (positions[:, None].float() * inv_freq,), dim=-1)
        rope = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        for n, layer in enumerate(self.layers):
            x = layer(x, rope, visible(T, past, x.device, self.window(n)), cache)
        return self.norm(x)


class Encoder(nn.Module):
    """Frames of samples to the mean and scale of the posterior."""

    def __init__(self, enc: dict[str, Any]):
        super().__init__()
        H, latent = enc["backbone"]["hidden_size"], enc["latent_dim"]
        self.hop = enc["hop_size"]
        self.fc1 = nn.Linear(enc["input_dim"], H, bias=False)
        self.fc2, self.fc3 = nn.Linear(H, H), nn.Linear(H, 2 * latent)
        self.encoder = Qwen2(enc["backbone"])
        self.norm = nn.LayerNorm(H)  # in the checkpoint, unused

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, T, 64] of samples [B, L]."""
        frames = F.pad(samples, (0, -samples.shape[1] % self.hop)).unflatten(1, (-1, self.hop))
        h = self.encoder(self.fc2(self.fc1(frames.to(self.fc1.weight.dtype))), {})
        mean, scale = self.fc3(h).chunk(2, dim=-1)
        return mean, F.softplus(scale) + 1e-4


class SemanticAttention(nn.Module):
    """Multi-head attention, key without bias, interleaved RoPE."""

    def __init__(self, width: int, heads: int, layer: int):
        super().__init__()
        self.heads, self.layer = heads, layer
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        q = rotate_pairs(split_heads(self.query(x), self.heads), angles)
        k = rotate_pairs(split_heads(self.key(x), self.heads), angles)
        k, v = extend(cache, self.layer, k, split_heads(self.value(x), self.heads))
        return self.out(merge_heads(grouped_attention(q, k, v, mask)))


class FloatLayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class SemanticBlock(nn.Module):
    """A Whisper-style block."""

    def __init__(self, width: int, heads: int, layer: int):
        super().__init__()
        self.attn, self.attn_ln = SemanticAttention(width, heads, layer), FloatLayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = FloatLayerNorm(width)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        x = x + self.attn(self.attn_ln(x), angles, mask, cache)
        return x + self.mlp(self.mlp_ln(x))


class SemanticModel(nn.Module):
    """The stack that turns latents into the unified embedding."""

    def __init__(self, whisper: dict[str, Any]):
        super().__init__()
        width, self.heads = whisper["n_state"], whisper["n_head"]
        n_layers = whisper["n_layer"]
        self.blocks = nn.ModuleList(SemanticBlock(width, self.heads, n) for n in range(n_layers))
        self.ln_post = FloatLayerNorm(width)

    def forward(self, x: Tensor, cache: KVCache) -> Tensor:
        T, past = x.shape[1], cache_length(cache)
        D = x.shape[-1] // self.heads
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, D, 2, device=x.device).float() / D))
        angles = torch.arange(past, past + T, device=x.device).float()[:, None] * inv_freq
        mask = visible(T, past, x.device)
        for block in self.blocks:
            x = block(x, angles, mask, cache)
        return self.ln_post(x)


class InverseSTFT(nn.Module):
    """Windowed overlap-add of inverse FFT frames with "same" trimming."""

    def __init__(self, n_fft: int, hop: int):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.empty(n_fft))

    def overlap_add(self, frames: Tensor) -> Tensor:
        """[B, T, n_fft] -> [B, (T - 1) * hop + n_fft]."""
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        columns = frames.transpose(1, 2)
        folded = F.fold(columns, (1, length), (1, self.n_fft), stride=(1, self.hop))
        return folded[:, 0, 0]


class Head(nn.Module):
    """Hidden states to complex spectra to samples."""

    def __init__(self, hidden: int, hop: int):
        super().__init__()
        self.out = nn.Linear(hidden, 4 * hop + 2)
        self.istft = InverseSTFT(4 * hop, hop)

    def frames(self, hidden: Tensor) -> Tensor:
        """Inverse FFT frames [B, T, n_fft], before the window."""
        magnitude, phase = self.out(hidden).float().chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=100)
        spectrum = magnitude * (torch.cos(phase) + 1j * torch.sin(phase))
        return torch.fft.irfft(spectrum, n=self.istft.n_fft, norm="backward")


@dataclass
class DecoderState:
    """What streaming carries: KV cache, and the overlap of numerator and envelope."""

    cache: KVCache = field(default_factory=dict)
    numerator: Tensor | None = None
    envelope: Tensor | None = None
    drop: int = 0


class AudioDecoder(nn.Module):
    """Latents to samples, and latents to the unified embedding."""

    def __init__(self, dec: dict[str, Any], whisper: dict[str, Any]):
        super().__init__()
        H, S, latent = dec["backbone"]["hidden_size"], whisper["n_state"], dec["latent_dim"]
        self.fc1, self.fc2, self.fc3 = nn.Linear(latent, H), nn.Linear(H, S), nn.Linear(S, H)
        self.decoder = Qwen2(dec["backbone"])
        self.semantic_model = SemanticModel(whisper)
        self.head = Head(H, dec["output_dim"])

    def unify(self, latents: Tensor, cache: KVCache) -> Tensor:
        """Unified embedding [B, T, S] of latents [B, T, 64]; extends `cache`."""
        h = self.fc2(F.gelu(self.fc1(latents.to(self.fc1.weight.dtype))))
        return self.semantic_model(h, cache)

    def backbone(self, latents: Tensor, cache: KVCache) -> Tensor:
        return self.decoder(self.fc1(latents.to(self.fc1.weight.dtype)), cache)

    def decode(self, latents: Tensor, state: DecoderState | None, last: bool) -> Tensor:
        """Samples [B, L] of latents [B, T, 64]; `state` None means all at once."""
        first = state is None or state.numerator is None
        if state is None:
            state = DecoderState()
        istft = self.head.istft
        trim, tail = (istft.n_fft - istft.hop) // 2, istft.n_fft - istft.hop
        window = istft.window.float()
        frames = self.head.frames(self.backbone(latents, state.cache))
        numerator = istft.overlap_add(frames * window)
        squared = window.square().expand(1, frames.shape[1], -1)
        envelope = istft.overlap_add(squared)[0]
        if first:
            state.drop = trim
        else:
            numerator[:, :tail] += state.numerator
            envelope[:tail] += state.envelope
        state.numerator, state.envelope = numerator[:, -tail:].clone(), envelope[-tail:].clone()
        end = numerator.shape[1] - (trim if last else tail)
        start = min(state.drop, end)
        state.drop -= start
        return numerator[:, start:end] / envelope[start:end]


class EagerAudio(nn.Module):
    """Both halves, by the checkpoint's names."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        whisper = config["semantic_module_kwargs"]["whisper_encoder"]
        self.encoder = Encoder(config["enc_kwargs"])
        self.decoder = AudioDecoder(config["dec_kwargs"], whisper)
