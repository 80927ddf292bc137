"""A convolutional VAE from a checkpoint's folder, whichever of the official layouts it has."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ....config.sections import require
from ....errors import CheckpointError
from ...headers import TensorInfo, read_headers
from ...sources import DictTensors, FileTensors
from .codec import ConvVAE
from .config import VibeVoiceConfig, VoxCPMConfig
from .vibevoice import VibeVoiceVAE
from .voxcpm import VoxCPMVAE

VERSIONS = {"voxcpm": 1, "voxcpm2": 2}
VOXCPM_FILES = ("audiovae.safetensors", "audiovae.pth")


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    activation_dtype: torch.dtype | None = None,
) -> ConvVAE:
    """The VAE of a checkpoint's folder, by its config.json; weight norm is folded.

    - VoxCPM and VoxCPM2: `architecture`, `audio_vae_config`; audiovae.safetensors or audiovae.pth.
    - VibeVoice's acoustic tokenizer as transformers keeps it, alone (`model_type`
      "vibevoice_acoustic_tokenizer") or within VibeVoice (`audio_config`), or as VibeVoice was
      published (`acoustic_tokenizer_config`); model.safetensors or its shards.

    dtype: of the weights; activation_dtype: of what flows between the layers, None float32 on a
    CPU and dtype on a GPU. Raises CheckpointError for a missing or corrupt file, a config that
    contradicts itself or is none of these, and tensors that are missing, unexpected or misshapen.
    """
    folder = Path(path)
    config = _json(folder / "config.json")
    kinds = (device, dtype, activation_dtype)
    architecture = str(config.get("architecture", "")).lower()
    if architecture in VERSIONS or "audio_vae_config" in config:
        version = VERSIONS.get(architecture, 1)
        parsed = VoxCPMConfig.from_json(config.get("audio_vae_config") or {}, version)
        return VoxCPMVAE.from_source(_voxcpm_source(folder), parsed, *kinds)
    if config.get("model_type") == "vibevoice_acoustic_tokenizer":
        section, prefixes, rename = config, ("",), str
    elif "acoustic_tokenizer_config" in config:
        section = _published(config["acoustic_tokenizer_config"])
        prefixes, rename = ("model.acoustic_tokenizer.", "acoustic_tokenizer."), _renamed
    elif "audio_config" in config:
        section, prefixes, rename = (config["audio_config"], ("model.audio_tower.", "audio_tower."), str)
    else:
        raise CheckpointError(
            f"{folder / 'config.json'} is neither VoxCPM's nor VibeVoice's: it has none of "
            "architecture 'voxcpm' or 'voxcpm2', audio_vae_config, model_type "
            "'vibevoice_acoustic_tokenizer', acoustic_tokenizer_config, audio_config"
        )
    infos = _below(read_headers(folder), prefixes, rename)
    parsed = VibeVoiceConfig.from_json(section, _sample_rate(folder))
    return VibeVoiceVAE.from_source(FileTensors(infos, str(folder)), parsed, *kinds)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a mapping")
    return values


def _voxcpm_source(folder: Path) -> FileTensors | DictTensors:
    safe, pickled = (folder / name for name in VOXCPM_FILES)
    if safe.is_file():
        return FileTensors(read_headers(safe), str(safe))
    if not pickled.is_file():
        raise CheckpointError(f"{folder} holds neither {safe.name} nor {pickled.name}")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{pickled} cannot be read: {error}") from None
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    values = tensors.values() if isinstance(tensors, dict) else [tensors]
    if not isinstance(tensors, dict) or not all(isinstance(v, torch.Tensor) for v in values):
        raise CheckpointError(f"{pickled} holds no state dict")
    return DictTensors(tensors, str(pickled))


def _below(
    infos: Mapping[str, TensorInfo], prefixes: tuple[str, ...], rename: Callable[[str], str]
) -> dict[str, TensorInfo]:
    """The tensors below the first prefix that any has, renamed."""
    for prefix in prefixes:
        found = {name: info for name, info in infos.items() if name.startswith(prefix)}
        if found:
            return {rename(name[len(prefix) :]): info for name, info in found.items()}
    return {}


def _sample_rate(folder: Path) -> int:
    """preprocessor_config.json's, where there is one: the config does not say it."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return 24000
    values = _json(path)
    for section in (values, values.get("audio_processor"), values.get("feature_extractor")):
        if isinstance(section, dict) and "sampling_rate" in section:
            rate = section["sampling_rate"]
            require(isinstance(rate, int), f"sampling_rate must be of type int, got {rate!r}")
            return rate
    return 24000


def _published(values: Any) -> dict[str, Any]:
    """`acoustic_tokenizer_config` as published, by the keys of transformers."""
    name = "acoustic_tokenizer_config"
    require(isinstance(values, Mapping), f"{name} must be a mapping, got {values!r}")
    fixed = {
        "causal": True,
        "conv_bias": True,
        "conv_norm": "none",
        "disable_last_norm": True,
        "layernorm": "RMSNorm",
        "layernorm_elementwise_affine": True,
        "mixer_layer": "depthwise_conv",
        "pad_mode": "constant",
        "decoder_depths": None,
    }
    for key, expected in fixed.items():
        got = values.get(key, expected)
        require(got == expected, f"{name}.{key} must be {expected!r}, got {got!r}")
    for key, other in (("decoder_n_filters", "encoder_n_filters"), ("decoder_ratios", "encoder_ratios")):
        same = values.get(key) in (None, values.get(other))
        require(same, f"{name}.{key} must be {other}'s {values.get(other)}, got {values.get(key)}")
    depths = values.get("encoder_depths", "3-3-3-3-3-3-8")
    if isinstance(depths, str):
        whole = all(part.isdecimal() for part in depths.split("-"))
        require(whole, f"{name}.encoder_depths must be numbers joined by '-', got {depths!r}")
        depths = [int(part) for part in depths.split("-")]
    std = values.get("fix_std", 0.5)
    require(isinstance(std, int | float), f"{name}.fix_std must be a number, got {std!r}")
    keys = {
        "channels": "channels",
        "vae_dim": "hidden_size",
        "encoder_n_filters": "num_filters",
        "layernorm_eps": "rms_norm_eps",
    }
    return {
        **{ours: values[theirs] for theirs, ours in keys.items() if theirs in values},
        "downsampling_ratios": list(reversed(values.get("encoder_ratios", [8, 5, 5, 4, 2, 2]))),
        "depths": depths,
        "vae_std": std / 0.8,
    }


def _renamed(name: str) -> str:
    """A tensor's name as published -> as transformers has it."""
    side, *parts = name.replace(".mixer.conv.conv.conv.", ".mixer.conv.").split(".")
    if len(parts) < 3 or not (parts[0] == "head" or parts[1].isdecimal()):
        return name
    if parts[0] == "head":  # head.conv.conv.weight
        return ".".join((side, "head", *parts[2:]))
    where = "stem" if parts[1] == "0" else f"conv_layers.{int(parts[1]) - 1}"
    if parts[0] == "stages":  # stages.I.J.gamma
        return ".".join((side, where, "stage", *parts[2:]))
    if parts[0] in ("downsample_layers", "upsample_layers"):  # downsample_layers.I.0.conv.conv.bias
        return ".".join((side, where, *parts[3:]))
    return name
