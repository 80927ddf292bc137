"""The configs of convolutional VAEs as validated dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ....config.sections import Section, positive, positive_values, require

VOXCPM, VIBEVOICE = "audio_vae_config", "acoustic_tokenizer"
CONDITIONS = ("scale_bias", "scale_bias_init", "add", "concat")
ACTIVATIONS = {  # as transformers names them -> as the ops do
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class VoxCPMConfig:
    """`audio_vae_config`. boundaries: of the buckets of sample rates, () without conditioning."""

    version: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]
    latent_dim: int
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    depthwise: bool
    sample_rate: int
    out_sample_rate: int
    use_noise_block: bool = False
    boundaries: tuple[int, ...] = ()
    cond_type: str = "scale_bias"
    cond_dim: int = 128
    cond_out_layer: bool = False

    def __post_init__(self) -> None:
        positive(VOXCPM, self, "encoder_dim", "latent_dim", "decoder_dim", "sample_rate", "out_sample_rate", "cond_dim")
        require(self.version in (1, 2), f"{VOXCPM}: version must be 1 or 2, got {self.version}")
        _rates(VOXCPM, encoder_rates=self.encoder_rates, decoder_rates=self.decoder_rates)
        # version 1 pads a stride of 1 so that there are more outputs than inputs
        require(
            self.version == 2 or min(self.encoder_rates) > 1,
            f"{VOXCPM}.encoder_rates must be 2 or more each, got {self.encoder_rates}",
        )
        min_dim = 2 ** len(self.decoder_rates)
        require(
            self.decoder_dim >= min_dim,
            f"{VOXCPM}.decoder_dim must be at least {min_dim}, got {self.decoder_dim}: every entry "
            "of decoder_rates halves it",
        )
        require(self.cond_type in CONDITIONS, f"{VOXCPM}.cond_type must be one of {CONDITIONS}, got {self.cond_type!r}")
        require(
            self.cond_type != "concat" or self.cond_out_layer or not self.boundaries,
            f"{VOXCPM}.cond_out_layer must be true for cond_type 'concat'",
        )
        require(
            sorted(set(self.boundaries)) == list(self.boundaries),
            f"{VOXCPM}.sr_bin_boundaries must increase, got {list(self.boundaries)}",
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], version: int) -> VoxCPMConfig:
        """Keys that are absent have the defaults of that version; there null is no conditioning."""
        s, second = Section(VOXCPM, values), version == 2
        rate = s.get("sample_rate", int, 16000)
        encoder_rates = _ints(s, "encoder_rates", (2, 5, 8, 8))
        encoder_dim = s.get("encoder_dim", int, 128)
        config = cls(
            version=version,
            encoder_dim=encoder_dim,
            encoder_rates=encoder_rates,
            latent_dim=s.get("latent_dim", int, 64),
            decoder_dim=s.get("decoder_dim", int, 2048 if second else 1536),
            decoder_rates=_ints(s, "decoder_rates", (8, 6, 5, 2, 2, 2) if second else (8, 8, 5, 2)),
            depthwise=s.get("depthwise", bool, True),
            sample_rate=rate,
            out_sample_rate=s.get("out_sample_rate", int, 48000) if second else rate,
            use_noise_block=s.get("use_noise_block", bool, False),
            boundaries=_boundaries(s) if second else (),
            cond_type=s.get("cond_type", str, "scale_bias"),
            cond_dim=s.get("cond_dim", int, 128),
            cond_out_layer=s.get("cond_out_layer", bool, False),
        )
        s.done()
        return config

    @property
    def hop_samples(self) -> int:
        return prod(self.encoder_rates)

    @property
    def out_hop_samples(self) -> int:
        return prod(self.decoder_rates)


@dataclass(frozen=True)
class VibeVoiceConfig:
    """The acoustic tokenizer's; `depths` are the blocks of each stage, those of the encoder."""

    channels: int
    latent_dim: int
    kernel: int
    filters: int
    ratios: tuple[int, ...]
    depths: tuple[int, ...]
    ffn_expansion: int
    activation: str
    rms_norm_eps: float
    vae_std: float
    sample_rate: int = 24000

    def __post_init__(self) -> None:
        positive(VIBEVOICE, self, "channels", "latent_dim", "kernel", "filters", "ffn_expansion", "sample_rate")
        _rates(VIBEVOICE, downsampling_ratios=self.ratios)
        require(
            len(self.depths) == len(self.ratios) + 1 and min(self.depths) >= 0,
            f"{VIBEVOICE}.depths must be {len(self.ratios) + 1} numbers, one more than "
            f"downsampling_ratios, got {list(self.depths)}",
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], sample_rate: int = 24000) -> VibeVoiceConfig:
        """By the keys of transformers; absent ones have its defaults."""
        s = Section(VIBEVOICE, values)
        act = s.get("hidden_act", str, "gelu")
        require(act in ACTIVATIONS, f"{VIBEVOICE}.hidden_act must be one of {tuple(ACTIVATIONS)}, got {act!r}")
        config = cls(
            channels=s.get("channels", int, 1),
            latent_dim=s.get("hidden_size", int, 64),
            kernel=s.get("kernel_size", int, 7),
            filters=s.get("num_filters", int, 32),
            ratios=_ints(s, "downsampling_ratios", (2, 2, 4, 5, 5, 8)),
            depths=_ints(s, "depths", (3, 3, 3, 3, 3, 3, 8)),
            ffn_expansion=s.get("ffn_expansion", int, 4),
            activation=ACTIVATIONS[act],
            rms_norm_eps=s.get("rms_norm_eps", float, 1e-5),
            vae_std=s.get("vae_std", float, 0.625),
            sample_rate=sample_rate,
        )
        s.done()
        return config

    @property
    def hop_samples(self) -> int:
        return prod(self.ratios)


def _ints(s: Section, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    values = s.get(key, list, list(default))
    for i, value in enumerate(values):
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, f"{s.name}.{key}[{i}] must be of type int, got {value!r}")
    return tuple(values)


def _boundaries(s: Section) -> tuple[int, ...]:
    key = "sr_bin_boundaries"
    if key in s.values and s.values[key] is None:
        s.seen.add(key)
        return ()
    return _ints(s, key, (20000, 30000, 40000))


def _rates(section: str, **lists: tuple[int, ...]) -> None:
    for name, rates in lists.items():
        require(len(rates) > 0, f"{section}.{name} must not be empty")
        positive_values(section, **{f"{name}[{i}]": rate for i, rate in enumerate(rates)})
