"""Convolutional VAEs one-shot: pad, F.conv1d and an op for every step, from a state dict.

The type computed in is that of the tensors, so float64 tensors give an oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]


def voxcpm_encode(t: Tensors, config: Mapping[str, Any], samples: Tensor) -> tuple[Tensor, Tensor]:
    """samples [B, L], L a multiple of the hop -> mean, log-variance [B, T, C]."""
    second = "out_sample_rate" in config
    x = _conv(t, "encoder.block.0", samples.unsqueeze(1), 6)
    for i, rate in enumerate(config["encoder_rates"], 1):
        name = f"encoder.block.{i}.block"
        x = _snake(t, f"{name}.3", _units(t, name, 0, x))
        x = _conv(t, f"{name}.4", x, rate if second else 2 * -(-rate // 2), stride=rate)
    parts = (_conv(t, f"encoder.{name}", x, 2) for name in ("fc_mu", "fc_logvar"))
    return tuple(part.transpose(1, 2) for part in parts)


def voxcpm_decode(
    t: Tensors, config: Mapping[str, Any], latents: Tensor, buckets: Sequence[int] = (), noise: Sequence[Tensor] = ()
) -> Tensor:
    """latents [B, T, C] -> samples [B, L]. buckets: that of each row's sample rate."""
    model, x, at = "decoder.model", latents.transpose(1, 2), 1
    x = _conv(t, f"{model}.0", x, 6)
    if config["depthwise"]:
        x, at = _conv(t, f"{model}.1", x, 0), 2
    for i, rate in enumerate(config["decoder_rates"]):
        name, first = f"{model}.{at}.block", 2
        if buckets:
            x = _condition(t, f"decoder.sr_cond_model.{at}", x, torch.tensor(buckets))
        L = x.shape[2]
        weight, bias = _weight(t, f"{name}.1"), t[f"{name}.1.bias"]
        x = F.conv_transpose1d(_snake(t, f"{name}.0", x), weight, bias, rate)[:, :, : L * rate]
        if config["use_noise_block"]:
            first = 3
            x = x + noise[i].to(x.dtype).unsqueeze(1) * _conv(t, f"{name}.2.linear", x, 0)
        x = _units(t, name, first, x)
        at += 1
    return _conv(t, f"{model}.{at + 1}", _snake(t, f"{model}.{at}", x), 6).tanh()[:, 0]


def vibevoice_encode(t: Tensors, config: Mapping[str, Any], samples: Tensor) -> Tensor:
    """samples [B, channels, L], L a multiple of the hop -> latents [B, T, C]."""
    x = _stage(t, config, "encoder.stem", _conv(t, "encoder.stem.conv.conv", samples))
    for i, ratio in enumerate(config["downsampling_ratios"]):
        name = f"encoder.conv_layers.{i}"
        x = _conv(t, f"{name}.conv.conv", x, ratio, stride=ratio)
        x = _stage(t, config, name, x)
    return _conv(t, "encoder.head.conv", x).transpose(1, 2)


def vibevoice_decode(t: Tensors, config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """latents [B, T, C] -> samples [B, channels, L]."""
    x = _conv(t, "decoder.stem.conv.conv", latents.transpose(1, 2))
    x = _stage(t, config, "decoder.stem", x)
    for i, ratio in enumerate(reversed(config["downsampling_ratios"])):
        name = f"decoder.conv_layers.{i}"
        weight, bias = t[f"{name}.convtr.convtr.weight"], t[f"{name}.convtr.convtr.bias"]
        x = F.conv_transpose1d(x, weight, bias, ratio)[:, :, : x.shape[2] * ratio]
        x = _stage(t, config, name, x)
    return _conv(t, "decoder.head.conv", x)


def _weight(t: Tensors, name: str) -> Tensor:
    if f"{name}.weight" in t:
        return t[f"{name}.weight"]
    g, v = t[f"{name}.weight_g"], t[f"{name}.weight_v"]
    return g * v / v.square().sum(dim=(1, 2), keepdim=True).sqrt()


def _conv(t: Tensors, name: str, x: Tensor, pad: int | None = None, stride: int = 1, dilation: int = 1) -> Tensor:
    """pad: zeros on the left, None as many as the kernel reaches back."""
    weight = _weight(t, name)
    pad = (weight.shape[2] - 1) * dilation if pad is None else pad
    groups = x.shape[1] // weight.shape[1]
    x = F.pad(x, (pad, 0))
    return F.conv1d(x, weight, t.get(f"{name}.bias"), stride, 0, dilation, groups)


def _snake(t: Tensors, name: str, x: Tensor) -> Tensor:
    alpha = t[f"{name}.alpha"]
    return x + (alpha * x).sin().square() / (alpha + 1e-9)


def _units(t: Tensors, name: str, first: int, x: Tensor) -> Tensor:
    for i in range(3):
        block = f"{name}.{first + i}.block"
        y = _conv(t, f"{block}.1", _snake(t, f"{block}.0", x), 6 * 3**i, dilation=3**i)
        x = x + _conv(t, f"{block}.3", _snake(t, f"{block}.2", y), 0)
    return x


def _condition(t: Tensors, name: str, x: Tensor, bucket: Tensor) -> Tensor:
    def embed(kind: str) -> Tensor:
        return t[f"{name}.{kind}_embed.weight"][bucket].unsqueeze(2)

    if f"{name}.scale_embed.weight" in t:
        x = x * embed("scale") + embed("bias")
    elif embed("cond").shape[1] == x.shape[1]:
        x = x + embed("cond")
    else:
        extra = embed("cond").expand(x.shape[0], -1, x.shape[2])
        x = torch.cat((x, extra), dim=1)
    if f"{name}.out_layer.0.alpha" in t:
        x = _conv(t, f"{name}.out_layer.1", _snake(t, f"{name}.out_layer.0", x), 0)
    return x


def _stage(t: Tensors, config: Mapping[str, Any], name: str, x: Tensor) -> Tensor:
    eps, i = config["rms_norm_eps"], 0
    approximate = "none" if config["hidden_act"] == "gelu" else "tanh"
    while f"{name}.stage.{i}.gamma" in t:
        b = f"{name}.stage.{i}"
        h = _rms(x.transpose(1, 2), t[f"{b}.norm.weight"], eps).transpose(1, 2)
        x = x + t[f"{b}.gamma"].unsqueeze(1) * _conv(t, f"{b}.mixer.conv", h)
        h = _rms(x.transpose(1, 2), t[f"{b}.ffn_norm.weight"], eps)
        h = F.linear(h, t[f"{b}.ffn.linear1.weight"], t[f"{b}.ffn.linear1.bias"])
        h = F.gelu(h, approximate=approximate)
        h = F.linear(h, t[f"{b}.ffn.linear2.weight"], t[f"{b}.ffn.linear2.bias"])
        x = x + (t[f"{b}.ffn_gamma"] * h).transpose(1, 2)
        i += 1
    return x


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
