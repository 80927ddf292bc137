"""Convolutional VAEs from their checkpoints: what is taken, and what is refused by which name."""

import pytest
import torch

from mingcore.errors import CheckpointError, InputError
from mingcore.model.vae import conv
from mingcore.model.vae.conv import VibeVoiceVAE, VoxCPMVAE
from mingcore.testing.compare import max_relative
from mingcore.testing.conv_checkpoints import VIBEVOICE, VOXCPM, VOXCPM2, vibevoice_tensors, voxcpm_tensors
from tests.model.conv_subjects import NETWORK, every_variant, made


@pytest.mark.parametrize("name", ["voxcpm", "voxcpm2"])
def test_weight_norm_in_every_form(subject):
    """By hooks, by parametrizations, or folded already: the same network."""
    config, tensors = subject.config, subject.tensors
    parts = {"weight_g": "original0", "weight_v": "original1"}
    by_parametrization, folded = {}, {}
    for name, value in tensors.items():
        stem, _, last = name.rpartition(".")
        if last not in parts:
            by_parametrization[name] = folded[name] = value
            continue
        by_parametrization[f"{stem}.parametrizations.weight.{parts[last]}"] = value
        folded[f"{stem}.weight"] = torch._weight_norm(tensors[f"{stem}.weight_v"], tensors[f"{stem}.weight_g"], 0)
    z = subject.latents(4)
    expected = subject.decode(z)[0]
    for state_dict in (by_parametrization, folded):
        vae = VoxCPMVAE.from_state_dict(state_dict, config)
        got = vae.decode(z, **subject.options)[0]
        assert max_relative(got, expected) <= NETWORK


@every_variant
def test_tensors_that_do_not_fit_are_named(subject):
    names = [name for name in subject.tensors if name != "decoder.sr_bin_boundaries"]
    gone, bent = names[3], names[-1]
    tensors = {k: v for k, v in subject.tensors.items() if k != gone}
    tensors[bent] = torch.cat((tensors[bent], tensors[bent]))
    tensors["decoder.extra"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as raised:
        type(subject.vae).from_state_dict(tensors, subject.config)
    message = str(raised.value)
    shape = list(subject.tensors[gone].shape)
    assert f"missing key {gone} of shape {shape}" in message
    assert f"{bent} must be {list(subject.tensors[bent].shape)}" in message
    assert "unexpected key decoder.extra of shape [3]" in message


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (VoxCPMVAE, {"encoder_rates": [2, 1]}, "encoder_rates must be 2 or more each"),
        (VoxCPMVAE, {"decoder_rates": []}, "decoder_rates must not be empty"),
        (VoxCPMVAE, {"encoder_rates": [2, "3"]}, r"encoder_rates\[1\] must be of type int"),
        (VoxCPMVAE, {"decoder_dim": 3}, "decoder_dim must be at least 4"),
        (VoxCPMVAE, {"latent_dim": 0}, "latent_dim must be positive"),
        (VoxCPMVAE, {"cond_type": "other"}, "cond_type must be one of"),
        (VoxCPMVAE, {"cond_type": "concat"}, "cond_out_layer must be true"),
        (VoxCPMVAE, {"sr_bin_boundaries": [3, 2]}, "sr_bin_boundaries must increase"),
        (VibeVoiceVAE, {"depths": [1, 2]}, "depths must be 4 numbers"),
        (VibeVoiceVAE, {"hidden_act": "relu"}, "hidden_act must be one of"),
        (VibeVoiceVAE, {"downsampling_ratios": [2, 0, 3]}, "must be positive"),
    ],
)
def test_configs_that_contradict_themselves(kind, change, message):
    config = {**(VOXCPM if kind is VoxCPMVAE else VIBEVOICE), **change}
    with pytest.raises(CheckpointError, match=message):
        kind.from_state_dict({}, config)


def test_other_boundaries_than_the_configs():
    tensors = voxcpm_tensors(VOXCPM2)
    tensors["decoder.sr_bin_boundaries"] += 1
    with pytest.raises(CheckpointError, match=r"sr_bin_boundaries must be .*\[20000, 30000"):
        VoxCPMVAE.from_state_dict(tensors, VOXCPM2)


def test_bad_input():
    plain, second, vibe, noisy = (made(name).vae for name in ("voxcpm", "voxcpm2", "vibevoice-other", "voxcpm-noise"))
    z, x = torch.randn(2, 3, 6), torch.randn(2, 30)
    state = plain.decode(z, last=False)[1]
    calls = [
        (r"latents must be float \[B, T, 6\], got torch.float32 \[2, 3\]", plain.decode, z[..., 0]),
        (r"latents must be float", plain.decode, z.long()),
        (r"samples must be float \[B, L\], got torch.int64", plain.encode, x.long()),
        (r"samples must be float \[B, 2, L\]", vibe.encode, x),
        (r"the state has 2 rows, the input has 1", plain.decode, z[:1], state),
        (r"valid must be torch.int64 \[2\]", plain.decode, z, None, False, torch.ones(2)),
        (r"last must be torch.bool \[2\]", plain.encode_stream, x, None, torch.ones(3).bool()),
        (r"batch must be positive, got 0", plain.new_decoder_state, 0),
        (r"noise must be tensors \[\(2, 9\), \(2, 18\)\], got None", noisy.decode, z),
        (r"noise must be \[2, 3, 6\]", plain.sample_posterior, z, z, z[:1]),
    ]
    for message, function, *args in calls:
        with pytest.raises(InputError, match=message):
            function(*args)
    with pytest.raises(InputError, match="sample_rate must be None for this VAE"):
        plain.decode(z, sample_rate=48000)
    with pytest.raises(InputError, match="sample_rate must be one or 2, got 3"):
        second.decode(z, sample_rate=[48000] * 3)


def test_what_a_vae_says_of_itself():
    vae = conv.VibeVoiceVAE.from_state_dict(vibevoice_tensors(VIBEVOICE), VIBEVOICE, sample_rate=24000)
    assert (vae.hop_samples, vae.latent_rate, vae.latent_dim) == (6, 4000, 6)
    second = made("voxcpm2").vae
    assert (second.sample_rate, second.out_sample_rate) == (16000, 48000)
    assert (second.hop_samples, second.out_hop_samples) == (6, 6)
    mean, std = torch.zeros(1, 2, 6), torch.ones(1, 2, 6)
    noise = torch.randn(1, 2, 6)
    assert torch.equal(vae.sample_posterior(mean, std, noise), noise)
