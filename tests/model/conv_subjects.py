"""Convolutional VAEs of several shapes, inputs for them, and the formula they are held to."""

import pytest
import torch

from mingcore.model.vae.conv import VibeVoiceVAE, VoxCPMVAE
from mingcore.testing.conv_checkpoints import VIBEVOICE, VOXCPM, VOXCPM2, vibevoice_tensors, voxcpm_tensors
from mingcore.testing.eager import conv_vae

NETWORK = 1e-5  # chunked against one-shot, and against the formula: max |a - b| / max |b|
VARIANTS = {
    "voxcpm": VOXCPM,
    "voxcpm-dense": {**VOXCPM, "depthwise": False, "encoder_rates": [5, 2], "decoder_rates": [1]},
    "voxcpm-noise": {**VOXCPM, "use_noise_block": True},
    "voxcpm2": VOXCPM2,
    "voxcpm2-plain": {**VOXCPM2, "sr_bin_boundaries": None, "depthwise": False},
    "voxcpm2-add": {**VOXCPM2, "cond_type": "add", "cond_out_layer": True},
    "voxcpm2-concat": {**VOXCPM2, "cond_type": "concat", "cond_out_layer": True, "use_noise_block": True},
    "vibevoice": VIBEVOICE,
    "vibevoice-other": {**VIBEVOICE, "channels": 2, "kernel_size": 3, "hidden_act": "gelu_pytorch_tanh"},
    "vibevoice-pointwise": {**VIBEVOICE, "kernel_size": 1, "downsampling_ratios": [5, 2, 2]},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
RATES = [8000, 44100]  # of the rows, where a decoder is conditioned on them


class Subject:
    """A VAE, inputs for it, and what the formula makes of them."""

    def __init__(self, name):
        self.config = config = VARIANTS[name]
        self.vox = "encoder_dim" in config
        self.tensors = (voxcpm_tensors if self.vox else vibevoice_tensors)(config, seed=1)
        kind = VoxCPMVAE if self.vox else VibeVoiceVAE
        self.vae = kind.from_state_dict(self.tensors, config)
        self.options = {"sample_rate": RATES} if config.get("sr_bin_boundaries") else {}

    def samples(self, L, seed=0, B=2):
        several = (self.vae.channels,) if self.vae.channels > 1 else ()
        return torch.randn(B, *several, L, generator=torch.Generator().manual_seed(seed))

    def latents(self, T, seed=0, B=2):
        shape = (B, T, self.vae.latent_dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def noise(self, T, B=2):
        if not self.vox or not self.config["use_noise_block"]:
            return None
        return self.vae.draw_noise(B, T, torch.Generator().manual_seed(5))

    def decode(self, latents, state=None, last=True, valid=None, noise=None):
        more = {**self.options, "noise": noise} if self.vox else {}
        return self.vae.decode(latents, state, last, valid, **more)

    def formula_encode(self, samples, dtype):
        t = {k: v.to(dtype) for k, v in self.tensors.items()}
        if self.vox:
            mean, log_variance = conv_vae.voxcpm_encode(t, self.config, samples.to(dtype))
            return mean, (log_variance / 2).exp()
        samples = samples if samples.dim() == 3 else samples.unsqueeze(1)
        mean = conv_vae.vibevoice_encode(t, self.config, samples.to(dtype))
        return mean, torch.full_like(mean, self.config["vae_std"])

    def formula_decode(self, latents, dtype, noise=None):
        t = {k: v.to(dtype) for k, v in self.tensors.items()}
        if self.vox:
            buckets = (0, 3) if self.options else ()
            return conv_vae.voxcpm_decode(t, self.config, latents.to(dtype), buckets, noise)
        y = conv_vae.vibevoice_decode(t, self.config, latents.to(dtype))
        return y[:, 0] if self.vae.channels == 1 else y


MADE: dict[str, Subject] = {}


def made(name: str) -> Subject:
    """The one of this name, built once."""
    if name not in MADE:
        MADE[name] = Subject(name)
    return MADE[name]
