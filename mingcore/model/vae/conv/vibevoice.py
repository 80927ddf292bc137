"""VibeVoice's acoustic tokenizer: depthwise ConvNeXt blocks between strided convolutions.

A block is x + gamma * mixer(norm(x)), where the mixer is a causal depthwise convolution, then
x + gamma' * ffn(norm'(x)) over channels. Both gammas are folded into the weights they follow. Norms
and FFN take channels last, convolutions time last: a block turns what flows around twice, and adds
the mixer's residual where it is normed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .... import ops
from ...layers import Linear
from ...weights import DictTensors, FileTensors, Weights, assemble
from .codec import ConvVAE
from .config import VibeVoiceConfig
from .layers import Builder, Layer, Network, wide
from .stream import Chunk


class VibeVoiceVAE(ConvVAE):
    """VibeVoice's acoustic tokenizer: 24 kHz, 7.5 latents of 64 a second.

    Its posterior has one width for all: `encode` gives std = vae_std everywhere. VibeVoice itself
    samples with one normal factor per row on top: mean + std * factor [B, 1, 1] * noise.
    """

    def __init__(self, encoder: Network, decoder: Network, config: VibeVoiceConfig, **kinds):
        super().__init__(
            encoder,
            decoder,
            channels=config.channels,
            latent_dim=config.latent_dim,
            hop_samples=config.hop_samples,
            out_hop_samples=config.hop_samples,
            sample_rate=config.sample_rate,
            out_sample_rate=config.sample_rate,
            **kinds,
        )
        self.config = config

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        *,
        sample_rate: int = 24000,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        activation_dtype: torch.dtype | None = None,
    ) -> VibeVoiceVAE:
        """From the names and the config's keys that transformers has.

        sample_rate in Hz is not in that config. Raises CheckpointError for a config that
        contradicts itself and for keys that are missing, unexpected or misshapen.
        """
        source = DictTensors(tensors, "VibeVoice's acoustic tokenizer")
        parsed = VibeVoiceConfig.from_json(config, sample_rate)
        return cls.from_source(source, parsed, device, dtype, activation_dtype)

    @classmethod
    def from_source(
        cls,
        source: FileTensors | DictTensors,
        config: VibeVoiceConfig,
        device: str | torch.device,
        dtype: torch.dtype,
        activation_dtype: torch.dtype | None,
    ) -> VibeVoiceVAE:
        def build(w: Weights) -> VibeVoiceVAE:
            parts = _encoder(w.sub("encoder"), config), _decoder(w.sub("decoder"), config)
            return cls(*parts, config, device=w.device, dtype=w.activation_dtype)

        kinds = {"device": device, "dtype": dtype, "activation_dtype": activation_dtype}
        return assemble(source, build, **kinds)[0]

    def _posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.full_like(y, self.config.vae_std)


class _Block:
    """x [B, C, L] -> [B, C, L]."""

    def __init__(self, w: Weights, build: Builder, C: int, config: VibeVoiceConfig):
        width = config.ffn_expansion * C
        self.norm, self.ffn_norm = (w.sub(n).vector("weight", C) for n in ("norm", "ffn_norm"))
        self.eps, self.activation = config.rms_norm_eps, config.activation
        self.mixer = build.conv(w.sub("mixer"), "conv", C, C, config.kernel, groups=C, scale=wide(w, "gamma", C))
        self.up = w.linear("ffn.linear1", width, C)
        self.down = _scaled_linear(w.sub("ffn.linear2"), C, width, wide(w, "ffn_gamma", C))

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = x.transpose(1, 2).contiguous()  # [B, L, C]
        h = ops.rms_norm(x, self.norm, self.eps).transpose(1, 2).contiguous()
        mixed = self.mixer(h, chunk).transpose(1, 2).contiguous()
        h, x = ops.add_rms_norm(mixed, x, self.ffn_norm, self.eps)
        return self.down(self.up(h, activation=self.activation), residual=x).transpose(1, 2)


def _scaled_linear(w: Weights, outputs: int, inputs: int, scale: Tensor) -> Linear:
    """A linear layer whose outputs are multiplied with scale [outputs]."""
    weight = wide(w, "weight", outputs, inputs) * scale.unsqueeze(1)
    bias = (wide(w, "bias", outputs) * scale).to(w.activation_dtype)
    return Linear(weight if w.dry else ops.pack_linear(weight.to(w.dtype)), bias)


def _stage(w: Weights, build: Builder, C: int, depth: int, config: VibeVoiceConfig) -> list[Layer]:
    return [_Block(w.sub(f"stage.{i}"), build, C, config) for i in range(depth)]


def _encoder(w: Weights, config: VibeVoiceConfig) -> Network:
    build, C, k = Builder(), config.filters, config.kernel
    stem = w.sub("stem")
    layers: list[Layer] = [build.conv(stem.sub("conv"), "conv", config.channels, C, k)]
    layers += _stage(stem, build, C, config.depths[0], config)
    for i, stride in enumerate(config.ratios):
        part = w.sub(f"conv_layers.{i}")
        layers.append(build.conv(part.sub("conv"), "conv", C, 2 * C, 2 * stride, stride=stride))
        C *= 2
        layers += _stage(part, build, C, config.depths[i + 1], config)
    layers.append(build.conv(w.sub("head"), "conv", C, config.latent_dim, k))
    return Network(layers, build.contexts, config.latent_dim)


def _decoder(w: Weights, config: VibeVoiceConfig) -> Network:
    build, k, stem = Builder(), config.kernel, w.sub("stem")
    depths, C = config.depths[::-1], config.filters * 2 ** len(config.ratios)
    layers: list[Layer] = [build.conv(stem.sub("conv"), "conv", config.latent_dim, C, k)]
    layers += _stage(stem, build, C, depths[0], config)
    for i, stride in enumerate(reversed(config.ratios)):
        part, up = w.sub(f"conv_layers.{i}"), {"stride": stride, "transposed": True}
        layers.append(build.conv(part.sub("convtr"), "convtr", C, C // 2, 2 * stride, **up))
        C //= 2
        layers += _stage(part, build, C, depths[i + 1], config)
    layers.append(build.conv(w.sub("head"), "conv", C, config.channels, k))
    return Network(layers, build.contexts, config.channels)
