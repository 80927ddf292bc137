"""Rotary position embedding: positions to the cos and sin tables that `ops.rope` takes.

Angles are position times inverse frequency, the frequencies rounded to float32 as LLaMA has them,
the product in float64: so an hour of audio keeps its precision. They are computed once a step and
shared by all layers. Formulas: LLaMA's rope_scaling (linear, dynamic NTK, YaRN arXiv 2309.00071);
3-D: docs/model.md section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.model_config import RopeConfig


def inverse_frequencies(theta: float, head_dim: int) -> Tensor:
    """theta^(-2i/D) for i = 0..D/2-1, float32 [D/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (theta**exponent)


def tables(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """positions [B,T], inv_freq float64 [D/2] -> cos, sin float32 [B,T,D/2]."""
    angles = positions[..., None].double() * inv_freq
    return angles.cos().float(), angles.sin().float()


class Rope:
    """1-D RoPE without scaling: the AudioVAE's, rotate-half or interleaved alike."""

    def __init__(self, theta: float, head_dim: int, device: torch.device):
        self.inv_freq = inverse_frequencies(theta, head_dim).double().to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return tables(positions, self.inv_freq)


class ScaledRope:
    """The LLM's RoPE, by its `rope_scaling`."""

    def __init__(self, config: RopeConfig, device: torch.device):
        self.config = config
        inv_freq = inverse_frequencies(config.theta, config.head_dim)
        if config.kind == "linear":
            inv_freq = inv_freq / config.factor
        elif config.kind == "yarn":
            inv_freq = _yarn(config, inv_freq)
        self.attention_factor = _attention_factor(config)
        self.inv_freq = inv_freq.double().to(device)
        stream = torch.arange(len(config.sections)).repeat_interleave(torch.tensor(config.sections))
        self.stream = stream.to(device)

    def __call__(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B,T] or [3,B,T]; lengths [B] after this step -> cos, sin [B,T,D/2].

        Three streams: pair i is rotated by the stream of its section, 16 pairs by the first, 24 by the
        second, 24 by the third. Without 3-D RoPE the first stream counts.
        """
        inv_freq = self.inv_freq
        if self.config.kind == "dynamic":
            inv_freq = self._dynamic(lengths)[:, None]
        if positions.dim() == 3:
            if self.config.kind == "3d":
                positions = positions[self.stream].movedim(0, -1)
                angles = positions.double() * inv_freq
                return angles.cos().float(), angles.sin().float()
            positions = positions[0]
        cos, sin = tables(positions, inv_freq)
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos, sin

    def _dynamic(self, lengths: Tensor) -> Tensor:
        """NTK: beyond the trained length, theta grows with the row's own length. -> [B,D/2]."""
        c = self.config
        ratio = lengths.double() / c.original_max_positions
        growth = (c.factor * ratio - (c.factor - 1)).clamp(min=1.0)
        theta = c.theta * growth ** (c.head_dim / (c.head_dim - 2))
        exponent = torch.arange(0, c.head_dim, 2, device=lengths.device).double() / c.head_dim
        return theta[:, None] ** -exponent


def _yarn(c: RopeConfig, inv_freq: Tensor) -> Tensor:
    """YaRN: low frequencies are interpolated, high ones are not, with a linear ramp between."""

    def pair_of(rotations: float) -> float:
        ratio = c.original_max_positions / (rotations * 2 * math.pi)
        return c.head_dim * math.log(ratio) / (2 * math.log(c.theta))

    low = max(math.floor(pair_of(c.beta_fast)), 0)
    high = min(math.ceil(pair_of(c.beta_slow)), c.head_dim - 1)
    width = max(high - low, 0.001)
    ramp = ((torch.arange(c.head_dim // 2).float() - low) / width).clamp(0, 1)
    return inv_freq / c.factor * ramp + inv_freq * (1 - ramp)


def _attention_factor(c: RopeConfig) -> float:
    if c.kind != "yarn":
        return 1.0
    if c.attention_factor is not None:
        return c.attention_factor

    def scale(m: float) -> float:
        return 0.1 * m * math.log(c.factor) + 1.0

    if c.mscale and c.mscale_all_dim:
        return scale(c.mscale) / scale(c.mscale_all_dim)
    return scale(c.mscale or 1.0)
