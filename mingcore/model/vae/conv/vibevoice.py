"""VibeVoice's acoustic tokenizer: depthwise ConvNeXt blocks between strided convolutions.

A block is x + gamma * mixer(norm(x)), where the mixer is a causal depthwise convolution, then
x + gamma' * ffn(norm'(x)) over channels. Both gammas are folded into the weights they follow. Norms
and FFN take channels last, convolutions time last: a block transposes its activations twice, and adds
the mixer's residual in the norm that follows (`add_rms_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .... import ops
from ...declared import Build, Declared
from ...layers import Linear
from ...sources import DictTensors, FileTensors
from ...weights import Weights, assemble
from .codec import ConvVAE
from .config import VibeVoiceConfig
from .layers import Contexts, Conv, ConvLayer, Network
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
        def declare(w: Weights) -> Declared[VibeVoiceVAE]:
            parts = _encoder(w.sub("encoder"), config), _decoder(w.sub("decoder"), config)
            return Build(cls, *parts, config, device=w.device, dtype=w.activation_dtype)

        kinds = {"device": device, "dtype": dtype, "activation_dtype": activation_dtype}
        return assemble(source, declare, **kinds)

    def _posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.full_like(y, self.config.vae_std)


class ConvNeXtBlock:
    """Depthwise convolution, then an MLP over channels, both residual: x [B, C, L] -> [B, C, L]."""

    def __init__(
        self, norm: Tensor, ffn_norm: Tensor, mixer: Conv, up: Linear, down: Linear, eps: float, activation: str
    ):
        self.norm, self.ffn_norm, self.mixer, self.up, self.down = norm, ffn_norm, mixer, up, down
        self.eps, self.activation = eps, activation

    @classmethod
    def declare(cls, w: Weights, contexts: Contexts, C: int, config: VibeVoiceConfig) -> Declared[ConvNeXtBlock]:
        width = config.ffn_expansion * C
        norms = [w.sub(name).vector("weight", C) for name in ("norm", "ffn_norm")]
        gamma = w.float32("gamma", C)
        mixer = contexts.conv(w.sub("mixer"), "conv", C, C, config.kernel, groups=C, scale=gamma)
        up = w.linear("ffn.linear1", width, C)
        ffn_gamma = w.float32("ffn_gamma", C)
        down = _scaled_linear(w.sub("ffn.linear2"), C, width, ffn_gamma)
        return Build(cls, *norms, mixer, up, down, config.rms_norm_eps, config.activation)

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = x.transpose(1, 2).contiguous()  # [B, L, C]
        h = ops.rms_norm(x, self.norm, self.eps).transpose(1, 2).contiguous()
        mixed = self.mixer(h, chunk).transpose(1, 2).contiguous()
        h, x = ops.add_rms_norm(mixed, x, self.ffn_norm, self.eps)
        return self.down(self.up(h, activation=self.activation), residual=x).transpose(1, 2)


def _scaled_linear(w: Weights, outputs: int, inputs: int, scale: Declared[Tensor]) -> Declared[Linear]:
    """A linear layer whose outputs are multiplied with scale [outputs]."""
    weight, bias = w.float32("weight", outputs, inputs), w.float32("bias", outputs)
    return Build(_scale, weight, bias, scale, w.dtype, w.activation_dtype)


def _scale(weight: Tensor, bias: Tensor, scale: Tensor, dtype: torch.dtype, activation_dtype: torch.dtype) -> Linear:
    scaled = (weight * scale.unsqueeze(1)).to(dtype)
    return Linear(ops.pack_linear(scaled), (bias * scale).to(activation_dtype))


def _stage(w: Weights, contexts: Contexts, C: int, depth: int, config: VibeVoiceConfig) -> list[Declared[ConvLayer]]:
    return [ConvNeXtBlock.declare(w.sub(f"stage.{i}"), contexts, C, config) for i in range(depth)]


def _encoder(w: Weights, config: VibeVoiceConfig) -> Declared[Network]:
    contexts, C, k = Contexts(), config.filters, config.kernel
    stem = w.sub("stem")
    layers: list[Declared[ConvLayer]] = [contexts.conv(stem.sub("conv"), "conv", config.channels, C, k)]
    layers += _stage(stem, contexts, C, config.depths[0], config)
    for i, stride in enumerate(config.ratios):
        part = w.sub(f"conv_layers.{i}")
        layers.append(contexts.conv(part.sub("conv"), "conv", C, 2 * C, 2 * stride, stride=stride))
        C *= 2
        layers += _stage(part, contexts, C, config.depths[i + 1], config)
    layers.append(contexts.conv(w.sub("head"), "conv", C, config.latent_dim, k))
    return Build(Network, layers, contexts.sizes, config.latent_dim)


def _decoder(w: Weights, config: VibeVoiceConfig) -> Declared[Network]:
    contexts, k, stem = Contexts(), config.kernel, w.sub("stem")
    depths, C = config.depths[::-1], config.filters * 2 ** len(config.ratios)
    layers: list[Declared[ConvLayer]] = [contexts.conv(stem.sub("conv"), "conv", config.latent_dim, C, k)]
    layers += _stage(stem, contexts, C, depths[0], config)
    for i, stride in enumerate(reversed(config.ratios)):
        part, up = w.sub(f"conv_layers.{i}"), {"stride": stride, "transposed": True}
        layers.append(contexts.conv(part.sub("convtr"), "convtr", C, C // 2, 2 * stride, **up))
        C //= 2
        layers += _stage(part, contexts, C, depths[i + 1], config)
    layers.append(contexts.conv(w.sub("head"), "conv", C, config.channels, k))
    return Build(Network, layers, contexts.sizes, config.channels)
