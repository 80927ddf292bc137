"""VoxCPM's AudioVAE: Snake, dilated and transposed convolutions under weight norm.

Encoder: conv 7, then per rate three residual units (dilation 1, 3, 9) and a strided convolution of
twice the rate, channels doubling; two convolutions of 3 give mean and log-variance. Decoder: its
mirror image with transposed convolutions, then Snake, conv 7, tanh. Every Snake is computed by the
convolution it meets, every residual by the one that ends its unit.

Versions: 1 pads odd strides on the left by stride + 1, 2 by stride. 2 also may condition the
decoder on the output's sample rate, between the blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ....errors import InputError
from ...declared import Build, Declared
from ...sources import DictTensors, FileTensors
from ...weights import Weights, assemble
from .codec import ConvVAE
from .config import VoxCPMConfig
from .layers import Contexts, Conv, ConvLayer, Network, snake
from .stream import Chunk, CodecState

VERSION_2_KEYS = ("out_sample_rate", "sr_bin_boundaries", "cond_type", "cond_dim", "cond_out_layer")


class VoxCPMVAE(ConvVAE):
    """VoxCPM's AudioVAE: 16 kHz in, 25 latents of 64 a second; 16 kHz (version 2: 48 kHz) out."""

    def __init__(self, encoder: Network, decoder: Network, config: VoxCPMConfig, **kinds):
        super().__init__(
            encoder,
            decoder,
            channels=1,
            latent_dim=config.latent_dim,
            hop_samples=config.hop_samples,
            out_hop_samples=config.out_hop_samples,
            sample_rate=config.sample_rate,
            out_sample_rate=config.out_sample_rate,
            **kinds,
        )
        self.config = config

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        *,
        version: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        activation_dtype: torch.dtype | None = None,
    ) -> VoxCPMVAE:
        """From the names that the AudioVAE's state dict has, with weight norm or folded.

        config: the mapping of its AudioVAEConfig. version None: 2 where config or tensors have what
        only that one has, else 1. Raises CheckpointError for a config that contradicts itself and
        for keys that are missing, unexpected or misshapen.
        """
        if version is None:
            has = "decoder.sr_bin_boundaries" in tensors or any(key in config for key in VERSION_2_KEYS)
            version = 2 if has else 1
        source = DictTensors(tensors, "VoxCPM's AudioVAE")
        parsed = VoxCPMConfig.from_json(config, version)
        return cls.from_source(source, parsed, device, dtype, activation_dtype)

    @classmethod
    def from_source(
        cls,
        source: FileTensors | DictTensors,
        config: VoxCPMConfig,
        device: str | torch.device,
        dtype: torch.dtype,
        activation_dtype: torch.dtype | None,
    ) -> VoxCPMVAE:
        def declare(w: Weights) -> Declared[VoxCPMVAE]:
            parts = _encoder(w.sub("encoder"), config), _decoder(w.sub("decoder"), config)
            return Build(cls, *parts, config, device=w.device, dtype=w.activation_dtype)

        kinds = {"device": device, "dtype": dtype, "activation_dtype": activation_dtype}
        return assemble(source, declare, **kinds)

    def decode(
        self,
        latents: Tensor,
        state: CodecState | None = None,
        last: bool | Tensor = True,
        valid: Tensor | None = None,
        *,
        sample_rate: int | Sequence[int] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, CodecState]:
        """As `ConvVAE.decode`.

        sample_rate: what version 2 is conditioned on, one or one per row, None the config's
        out_sample_rate; the same for a whole stream. noise: what `draw_noise` gives, where the
        config has noise blocks.
        """
        condition = self._condition(sample_rate, latents.shape[0])
        shapes = self.noise_shapes(*latents.shape[:2])
        got = None if noise is None else [tuple(part.shape) for part in noise]
        if (got or []) != shapes:
            raise InputError(f"vae.decode: noise must be tensors {shapes}, got {got}")
        noise = [part.to(self.device, self.activation_dtype) for part in noise or ()]
        return self._decode(latents, state, last, valid, condition, noise)

    def noise_shapes(self, batch: int, frames: int) -> list[tuple[int, int]]:
        """[B, T'] for each noise block of the decoder, none where there are none."""
        rates = self.config.decoder_rates if self.config.use_noise_block else ()
        return [(batch, frames * prod(rates[: i + 1])) for i in range(len(rates))]

    def draw_noise(self, batch: int, frames: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Normal noise for `decode` of latents [batch, frames, C]: float32, on the CPU."""
        shapes = self.noise_shapes(batch, frames)
        return [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]

    def _posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = y.split(self.latent_dim, dim=2)
        return mean, (0.5 * log_variance).exp()

    def _condition(self, sample_rate, batch: int) -> int | Tensor | None:
        """The bucket of a sample rate, or of each row's."""
        bounds = self.config.boundaries
        if not bounds:
            if sample_rate is not None:
                raise InputError(f"vae.decode: sample_rate must be None for this VAE, got {sample_rate}")
            return None
        if sample_rate is None or isinstance(sample_rate, int):
            return bisect_left(bounds, sample_rate or self.config.out_sample_rate)
        if len(sample_rate) != batch:
            raise InputError(f"vae.decode: sample_rate must be one or {batch}, got {len(sample_rate)}")
        return torch.tensor([bisect_left(bounds, r) for r in sample_rate], device=self.device)


class ResidualUnit:
    """Snake, dilated 7, Snake within one convolution; 1x1 and the sum in one."""

    def __init__(self, dilated: Conv, mix: Conv):
        self.dilated, self.mix = dilated, mix

    @classmethod
    def declare(cls, w: Weights, contexts: Contexts, C: int, dilation: int, groups: int) -> Declared[ResidualUnit]:
        b = w.sub("block")
        acts = {"before": snake(b, "0", C), "after": snake(b, "2", C)}
        dilated = contexts.conv(b, "1", C, C, 7, dilation=dilation, groups=groups, **acts)
        return Build(cls, dilated, contexts.conv(b, "3", C, C))

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        return self.mix(self.dilated(x, chunk), chunk, residual=x)


class NoiseBlock:
    """x + noise * linear(x), one noise for all channels; `rate` columns are a latent."""

    def __init__(self, linear: Conv, index: int, rate: int):
        self.linear, self.index, self.rate = linear, index, rate

    @classmethod
    def declare(cls, w: Weights, contexts: Contexts, C: int, index: int, rate: int) -> Declared[NoiseBlock]:
        return Build(cls, contexts.conv(w, "linear", C, C, bias=False), index, rate)

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        noise = chunk.noise[self.index].narrow(1, chunk.start * self.rate, x.shape[2])
        return torch.addcmul(x, noise.unsqueeze(1), self.linear(x, chunk))


class SampleRateCondition:
    """What the output's sample rate changes before a block of the decoder: x * scale + bias, or
    `extra` channels behind those of x; then `out`. Tables [buckets, C], or None.
    """

    def __init__(
        self,
        *,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        extra: Tensor | None = None,
        out: Conv | None = None,
    ):
        self.scale, self.bias, self.extra, self.out = scale, bias, extra, out

    @classmethod
    def declare(cls, w: Weights, contexts: Contexts, C: int, config: VoxCPMConfig) -> Declared[SampleRateCondition]:
        buckets, kind, parts = len(config.boundaries) + 1, config.cond_type, {}
        if kind == "add":
            parts["bias"] = w.float32("cond_embed.weight", buckets, C)
        elif kind == "concat":
            parts["extra"] = w.float32("cond_embed.weight", buckets, config.cond_dim)
        else:
            parts["scale"] = w.float32("scale_embed.weight", buckets, C)
            parts["bias"] = w.float32("bias_embed.weight", buckets, C)
        if config.cond_out_layer:
            inputs = C + config.cond_dim if kind == "concat" else C
            o = w.sub("out_layer")
            parts["out"] = contexts.conv(o, "1", inputs, C, before=snake(o, "0", inputs))
        return Build(cls, **parts)

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        def row(table: Tensor) -> Tensor:  # [C, 1], or [B, C, 1]
            return table[chunk.condition].to(x.dtype).unsqueeze(-1)

        if self.scale is not None:
            x = torch.addcmul(row(self.bias), x, row(self.scale))
        elif self.bias is not None:
            x = x + row(self.bias)
        else:
            x = torch.cat((x, row(self.extra).expand(x.shape[0], -1, x.shape[2])), dim=1)
        return x if self.out is None else self.out(x, chunk)


def _units(w: Weights, contexts: Contexts, C: int, first: int, depthwise: bool) -> list[Declared[ConvLayer]]:
    groups = C if depthwise else 1
    return [ResidualUnit.declare(w.sub(str(first + i)), contexts, C, 3**i, groups) for i in range(3)]


def _encoder(w: Weights, config: VoxCPMConfig) -> Declared[Network]:
    contexts, blocks, C = Contexts(), w.sub("block"), config.encoder_dim
    layers: list[Declared[ConvLayer]] = [contexts.conv(blocks, "0", 1, C, 7)]
    for i, stride in enumerate(config.encoder_rates):
        b = blocks.sub(str(i + 1)).sub("block")
        layers += _units(b, contexts, C, 0, config.depthwise)
        odd = stride % 2 if config.version == 1 else 0
        down = contexts.conv(
            b, "4", C, 2 * C, 2 * stride, stride=stride, left_pad=stride + odd, before=snake(b, "3", C)
        )
        layers.append(down)
        C *= 2
    layers.append(contexts.conv(w, ("fc_mu", "fc_logvar"), C, config.latent_dim, 3))
    return Build(Network, layers, contexts.sizes, 2 * config.latent_dim)


def _decoder(w: Weights, config: VoxCPMConfig) -> Declared[Network]:
    contexts, model, C, latent = Contexts(), w.sub("model"), config.decoder_dim, config.latent_dim
    layers: list[Declared[ConvLayer]] = []
    if config.depthwise:
        layers.append(contexts.conv(model, "0", latent, latent, 7, groups=latent))
        layers.append(contexts.conv(model, "1", latent, C))
    else:
        layers.append(contexts.conv(model, "0", latent, C, 7))
    if config.boundaries:
        w.check_integers("sr_bin_boundaries", config.boundaries, "the config states them")
    first, noisy = len(layers), config.use_noise_block
    for i, stride in enumerate(config.decoder_rates):
        at, out = str(first + i), config.decoder_dim // 2 ** (i + 1)
        if config.boundaries:
            layers.append(SampleRateCondition.declare(w.sub("sr_cond_model").sub(at), contexts, C, config))
        b = model.sub(at).sub("block")
        layers.append(
            contexts.conv(b, "1", C, out, 2 * stride, stride=stride, transposed=True, before=snake(b, "0", C))
        )
        if noisy:
            layers.append(NoiseBlock.declare(b.sub("2"), contexts, out, i, prod(config.decoder_rates[: i + 1])))
        layers += _units(b, contexts, out, 3 if noisy else 2, config.depthwise)
        C = out
    last = first + len(config.decoder_rates)
    end = {"before": snake(model, str(last), C), "after": "tanh"}
    layers.append(contexts.conv(model, str(last + 1), C, 1, 7, **end))
    return Build(Network, layers, contexts.sizes, 1)
