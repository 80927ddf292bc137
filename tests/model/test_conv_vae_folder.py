"""Convolutional VAEs from folders in every layout in which they are published."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from mingcore.errors import CheckpointError
from mingcore.model.vae import conv
from mingcore.testing.conv_checkpoints import VIBEVOICE, VOXCPM, VOXCPM2, vibevoice_tensors, voxcpm_tensors

LATENTS = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))
PUBLISHED = {
    "channels": 1,
    "vae_dim": 6,
    "encoder_n_filters": 4,
    "encoder_ratios": [3, 1, 2],
    "encoder_depths": "1-2-0-2",
    "decoder_depths": None,
    "decoder_n_filters": 4,
    "decoder_ratios": [3, 1, 2],
    "fix_std": 0.5,
    "layernorm": "RMSNorm",
    "layernorm_eps": 1e-5,
    "mixer_layer": "depthwise_conv",
    "causal": True,
}


def as_published(name: str) -> str:
    """transformers' name of a tensor -> the published one, below `model.acoustic_tokenizer.`."""
    side, _, rest = name.partition(".")
    rest = rest.replace("mixer.conv.", "mixer.conv.conv.conv.")
    place = re.match(r"(stem|conv_layers\.(\d+))\.(.*)", rest)
    if place is None:
        return f"{side}.{rest.replace('head.conv.', 'head.conv.conv.')}"
    stage, inner = int(place[2] or -1) + 1, place[3]
    if inner.startswith("stage."):
        return f"{side}.stages.{stage}.{inner.removeprefix('stage.')}"
    layers = "downsample_layers" if side == "encoder" else "upsample_layers"
    return f"{side}.{layers}.{stage}.0.{inner}"


def write(folder, config, tensors, name="model.safetensors", **files):
    (folder / "config.json").write_text(json.dumps(config))
    for file, values in files.items():
        (folder / f"{file}.json").write_text(json.dumps(values))
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    (torch.save if name.endswith(".pth") else save_file)(tensors, folder / name)
    return folder


@pytest.mark.parametrize("file", ["audiovae.safetensors", "audiovae.pth"])
@pytest.mark.parametrize(("architecture", "config"), [("voxcpm", VOXCPM), ("VoxCPM2", VOXCPM2)])
def test_voxcpm(tmp_path, file, architecture, config):
    tensors = voxcpm_tensors(config)
    whole = {"architecture": architecture, "audio_vae_config": config, "lm_config": {}}
    vae = conv.load(write(tmp_path, whole, tensors, file))
    expected = conv.VoxCPMVAE.from_state_dict(tensors, config).decode(LATENTS)[0]
    assert torch.equal(vae.decode(LATENTS)[0], expected)
    assert vae.config.version == (2 if config is VOXCPM2 else 1)


def test_voxcpm_pth_with_more_around_the_state_dict(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"audio_vae_config": VOXCPM}))
    torch.save({"state_dict": voxcpm_tensors(VOXCPM), "step": 3}, tmp_path / "audiovae.pth")
    assert conv.load(tmp_path).config.encoder_rates == (2, 3)


def test_voxcpm_without_a_config_of_its_vae_has_the_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "voxcpm"}))
    save_file(voxcpm_tensors(VOXCPM), tmp_path / "audiovae.safetensors")
    with pytest.raises(CheckpointError, match=r"alpha of shape \[1, 512, 1\]"):
        conv.load(tmp_path)


LAYOUTS = {
    "alone": ({"model_type": "vibevoice_acoustic_tokenizer", **VIBEVOICE}, "", str),
    "within": ({"model_type": "vibevoice", "audio_config": VIBEVOICE}, "model.audio_tower.", str),
    "published": (
        {"model_type": "vibevoice", "acoustic_tokenizer_config": PUBLISHED},
        "model.acoustic_tokenizer.",
        as_published,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vibevoice(tmp_path, layout):
    config, prefix, rename = LAYOUTS[layout]
    tensors = vibevoice_tensors(VIBEVOICE)
    stored = {prefix + rename(name): value for name, value in tensors.items()}
    assert len(stored) == len(tensors)
    if prefix:
        stored["model.language_model.norm.weight"] = torch.ones(3)
    write(tmp_path, config, stored, preprocessor_config={"sampling_rate": 16000})
    vae = conv.load(tmp_path)
    expected = conv.VibeVoiceVAE.from_state_dict(tensors, VIBEVOICE)
    assert torch.equal(vae.decode(LATENTS)[0], expected.decode(LATENTS)[0])
    samples = torch.randn(1, 30)
    assert torch.equal(vae.encode(samples)[0], expected.encode(samples)[0])
    assert vae.sample_rate == 16000 and vae.config.vae_std == 0.625


def test_published_names_are_the_documented_ones():
    names = {
        "encoder.stem.conv.conv.weight": "encoder.downsample_layers.0.0.conv.conv.weight",
        "encoder.conv_layers.1.conv.conv.bias": "encoder.downsample_layers.2.0.conv.conv.bias",
        "encoder.stem.stage.0.mixer.conv.bias": "encoder.stages.0.0.mixer.conv.conv.conv.bias",
        "decoder.conv_layers.0.convtr.convtr.b": "decoder.upsample_layers.1.0.convtr.convtr.b",
        "decoder.conv_layers.1.stage.2.gamma": "decoder.stages.2.2.gamma",
        "decoder.head.conv.weight": "decoder.head.conv.conv.weight",
    }
    for name, published in names.items():
        assert as_published(name) == published


@pytest.mark.parametrize("damage", ["truncated", "lacks", "no weights", "no config", "not json"])
def test_damaged_folders(tmp_path, damage):
    tensors, config = voxcpm_tensors(VOXCPM), {"audio_vae_config": VOXCPM}
    file = "audiovae.pth" if damage == "truncated" else "audiovae.safetensors"
    if damage == "lacks":
        del tensors["decoder.model.0.bias"]
    write(tmp_path, config, tensors, file)
    match = "cannot be read"
    if damage == "truncated":
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    elif damage == "lacks":
        match = r"audiovae.safetensors does not fit .*missing key decoder.model.0.bias"
    elif damage == "no weights":
        (tmp_path / file).unlink()
        match = "holds neither audiovae.safetensors nor audiovae.pth"
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=match):
        conv.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "llama"}, "neither VoxCPM's nor VibeVoice's"),
        ({"acoustic_tokenizer_config": {**PUBLISHED, "causal": False}}, "causal must be True"),
        ({"acoustic_tokenizer_config": {**PUBLISHED, "encoder_depths": "3-x"}}, "joined by '-'"),
        ({"acoustic_tokenizer_config": {**PUBLISHED, "decoder_ratios": [2]}}, "decoder_ratios"),
        ({"acoustic_tokenizer_config": []}, "must be a mapping"),
        ({"audio_config": VIBEVOICE}, "missing key encoder.stem.conv.conv.weight"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, config, match):
    write(tmp_path, config, {"other.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=match):
        conv.load(tmp_path)


def test_a_pickle_that_is_no_state_dict(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"audio_vae_config": VOXCPM}))
    torch.save({"state_dict": [1, 2]}, tmp_path / "audiovae.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        conv.load(tmp_path)
