"""Random weights of convolutional VAEs, by the names and shapes of their official state dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# small, with every kind of layer: odd and even rates, dense and depthwise
VOXCPM = {
    "encoder_dim": 8,
    "encoder_rates": [2, 3],
    "latent_dim": 6,
    "decoder_dim": 24,
    "decoder_rates": [3, 2],
    "depthwise": True,
    "sample_rate": 16000,
    "use_noise_block": False,
}
VOXCPM2 = {
    **VOXCPM,
    "encoder_rates": [2, 1, 3],
    "out_sample_rate": 48000,
    "sr_bin_boundaries": [20000, 30000, 40000],
    "cond_type": "scale_bias",
    "cond_dim": 5,
    "cond_out_layer": False,
}
VIBEVOICE = {
    "channels": 1,
    "hidden_size": 6,
    "kernel_size": 7,
    "rms_norm_eps": 1e-5,
    "num_filters": 4,
    "downsampling_ratios": [2, 1, 3],
    "depths": [1, 2, 0, 2],
    "hidden_act": "gelu",
    "ffn_expansion": 4,
    "vae_std": 0.625,
}

REAL_VOXCPM = {  # the packages' own defaults
    **VOXCPM,
    "encoder_dim": 128,
    "encoder_rates": [2, 5, 8, 8],
    "latent_dim": 64,
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 5, 2],
}
REAL_VOXCPM2 = {
    **VOXCPM2,
    "encoder_dim": 128,
    "encoder_rates": [2, 5, 8, 8],
    "latent_dim": 64,
    "decoder_dim": 2048,
    "decoder_rates": [8, 6, 5, 2, 2, 2],
    "cond_dim": 128,
}
REAL_VIBEVOICE = {
    **VIBEVOICE,
    "hidden_size": 64,
    "num_filters": 32,
    "downsampling_ratios": [2, 2, 4, 5, 5, 8],
    "depths": [3, 3, 3, 3, 3, 3, 8],
}


def voxcpm_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state dict of VoxCPM's AudioVAE; with `out_sample_rate` that of version 2."""
    shapes = [*_voxcpm_encoder(config), *_voxcpm_decoder(config)]
    tensors = _random(shapes, seed)
    if _bounds(config) is not None:
        bounds = torch.tensor(_bounds(config), dtype=torch.int32)
        tensors["decoder.sr_bin_boundaries"] = bounds
    return tensors


def vibevoice_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state dict of transformers' VibeVoiceAcousticTokenizerModel."""
    return _random([*_vibevoice(config, "encoder"), *_vibevoice(config, "decoder")], seed)


def _random(shapes: list[tuple[str, tuple[int, ...]]], seed: int) -> dict[str, Tensor]:
    """Random values that keep activations at unit scale and every branch significant: alphas, norms, gammas near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes:
        x = torch.randn(shape, generator=generator)
        last = name.rsplit(".", 1)[1]
        if last == "weight_g" and name.endswith("block.3.weight_g"):
            x = 0.1 + x.abs() / 10  # what a residual unit adds
        elif last in ("alpha", "weight_g", "gamma", "ffn_gamma") or "norm.weight" in name:
            x = 0.5 + x.abs() / 2
        elif last == "bias":
            x = x / 10
        elif "scale_embed" in name:
            x = 1 + x / 5
        elif "bias_embed" in name:
            x = x / 5
        elif "cond_embed" not in name:
            # a transposed convolution of twice its stride adds two inputs at every output
            upward = "decoder" in name and (".convtr." in name or name.endswith("block.1.weight_v"))
            fan = 2 * shape[0] if upward and len(shape) == 3 else x[0].numel()
            x = x / fan**0.5
        tensors[name] = x
    return tensors


def _normed(name: str, *shape: int, bias: int = 0) -> Shapes:
    if bias:
        yield f"{name}.bias", (bias,)
    yield f"{name}.weight_g", (shape[0], 1, 1)
    yield f"{name}.weight_v", shape


def _units(name: str, first: int, C: int, depthwise: bool) -> Shapes:
    for i in range(first, first + 3):
        yield f"{name}.{i}.block.0.alpha", (1, C, 1)
        yield from _normed(f"{name}.{i}.block.1", C, 1 if depthwise else C, 7, bias=C)
        yield f"{name}.{i}.block.2.alpha", (1, C, 1)
        yield from _normed(f"{name}.{i}.block.3", C, C, 1, bias=C)


def _voxcpm_encoder(config: Mapping[str, Any]) -> Shapes:
    C, latent = config["encoder_dim"], config["latent_dim"]
    yield from _normed("encoder.block.0", C, 1, 7, bias=C)
    for i, rate in enumerate(config["encoder_rates"], 1):
        name = f"encoder.block.{i}.block"
        yield from _units(name, 0, C, config["depthwise"])
        yield f"{name}.3.alpha", (1, C, 1)
        yield from _normed(f"{name}.4", 2 * C, C, 2 * rate, bias=2 * C)
        C *= 2
    for name in ("fc_mu", "fc_logvar"):
        yield from _normed(f"encoder.{name}", latent, C, 3, bias=latent)


def _bounds(config: Mapping[str, Any]) -> list[int] | None:
    return config["sr_bin_boundaries"] if "out_sample_rate" in config else None


def _voxcpm_decoder(config: Mapping[str, Any]) -> Shapes:
    model, latent, C = "decoder.model", config["latent_dim"], config["decoder_dim"]
    depthwise, at = config["depthwise"], 1
    if depthwise:
        yield from _normed(f"{model}.0", latent, 1, 7, bias=latent)
        yield from _normed(f"{model}.1", C, latent, 1, bias=C)
        at = 2
    else:
        yield from _normed(f"{model}.0", C, latent, 7, bias=C)
    for rate in config["decoder_rates"]:
        name, first = f"{model}.{at}.block", 2
        if _bounds(config) is not None:
            yield from _condition(f"decoder.sr_cond_model.{at}", C, config)
        yield f"{name}.0.alpha", (1, C, 1)
        yield from _normed(f"{name}.1", C, C // 2, 2 * rate, bias=C // 2)
        C //= 2
        if config["use_noise_block"]:
            yield from _normed(f"{name}.2.linear", C, C, 1)
            first = 3
        yield from _units(name, first, C, depthwise)
        at += 1
    yield f"{model}.{at}.alpha", (1, C, 1)
    yield from _normed(f"{model}.{at + 1}", 1, C, 7, bias=1)


def _condition(name: str, C: int, config: Mapping[str, Any]) -> Shapes:
    buckets, kind, inputs = len(config["sr_bin_boundaries"]) + 1, config["cond_type"], C
    if kind == "concat":
        inputs = C + config["cond_dim"]
        yield f"{name}.cond_embed.weight", (buckets, config["cond_dim"])
    elif kind == "add":
        yield f"{name}.cond_embed.weight", (buckets, C)
    else:
        yield f"{name}.scale_embed.weight", (buckets, C)
        yield f"{name}.bias_embed.weight", (buckets, C)
    if config["cond_out_layer"]:
        yield f"{name}.out_layer.0.alpha", (1, inputs, 1)
        yield from _normed(f"{name}.out_layer.1", C, inputs, 1, bias=C)


def _vibevoice(config: Mapping[str, Any], side: str) -> Shapes:
    up, k, widest = side == "decoder", config["kernel_size"], len(config["downsampling_ratios"])
    ratios, depths = list(config["downsampling_ratios"]), list(config["depths"])
    C, inputs, outputs = config["num_filters"], config["channels"], config["hidden_size"]
    if up:
        ratios, depths = ratios[::-1], depths[::-1]
        C, inputs, outputs = C * 2**widest, outputs, inputs

    def stage(name: str, depth: int) -> Shapes:
        wide = config["ffn_expansion"] * C
        for i in range(depth):
            block = f"{name}.stage.{i}"
            for vector in ("gamma", "ffn_gamma", "norm.weight", "ffn_norm.weight"):
                yield f"{block}.{vector}", (C,)
            yield f"{block}.ffn.linear1.weight", (wide, C)
            yield f"{block}.ffn.linear1.bias", (wide,)
            yield f"{block}.ffn.linear2.weight", (C, wide)
            yield f"{block}.ffn.linear2.bias", (C,)
            yield f"{block}.mixer.conv.weight", (C, 1, k)
            yield f"{block}.mixer.conv.bias", (C,)

    yield f"{side}.stem.conv.conv.weight", (C, inputs, k)
    yield f"{side}.stem.conv.conv.bias", (C,)
    yield from stage(f"{side}.stem", depths[0])
    for i, ratio in enumerate(ratios):
        name = f"{side}.conv_layers.{i}"
        if up:
            yield f"{name}.convtr.convtr.weight", (C, C // 2, 2 * ratio)
            C //= 2
            yield f"{name}.convtr.convtr.bias", (C,)
        else:
            yield f"{name}.conv.conv.weight", (2 * C, C, 2 * ratio)
            C *= 2
            yield f"{name}.conv.conv.bias", (C,)
        yield from stage(name, depths[i + 1])
    yield f"{side}.head.conv.weight", (outputs, C, k)
    yield f"{side}.head.conv.bias", (outputs,)
