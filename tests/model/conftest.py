"""Variants of the golden checkpoint, and the comparison that golden parity means."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingcore.model import load
from mingcore.model.vae import AudioVAE
from mingcore.testing.compare import max_relative
from mingcore.testing.synthetic import model_config, write_checkpoint
from tests.model.conv_subjects import made

TOLERANCE = 2e-5


@pytest.fixture(scope="session")
def golden_config(golden_folder):
    """A fresh copy of the golden config.json, by call."""
    text = (golden_folder / "config.json").read_text()
    return lambda: json.loads(text)


@pytest.fixture(scope="session")
def variant(golden_folder, golden_config, tmp_path_factory):
    """`variant(section={key: value}, ..., load's keywords)`: the golden weights, config changed."""

    def make(llm_config=None, ditar_config=None, **keywords):
        folder = tmp_path_factory.mktemp("variant")
        config = golden_config()
        config["llm_config"].update(llm_config or {})
        config["ditar_config"].update(ditar_config or {})
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").symlink_to(golden_folder / "model.safetensors")
        return load(folder, **keywords)

    return make


@pytest.fixture(scope="session")
def part(golden):
    """`part("audio")`: the golden tensors below a prefix, without it."""

    def tensors(prefix):
        start = prefix + "."
        weights = golden("model")
        return {k[len(start) :]: v for k, v in weights.items() if k.startswith(start)}

    return tensors


@pytest.fixture(scope="session")
def vae_of_kind(part, golden_config):
    """`vae_of_kind("sdpa" | "fa2" | "full")`: the AudioVAE by a meaning of the sliding window."""
    made = {}

    def make(kind):
        if kind not in made:
            config = copy.deepcopy(golden_config()["audio_tokenizer_config"])
            for side in ("enc_kwargs", "dec_kwargs"):
                backbone = config[side]["backbone"]
                if kind == "fa2":
                    backbone["_attn_implementation"] = "flash_attention_2"
                backbone["use_sliding_window"] = kind != "full"
            made[kind] = AudioVAE.from_state_dict(part("audio"), config)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def assert_golden():
    """Floats within 2e-5 of the largest; anything else equal."""

    def check(key, ours, theirs, tolerance=TOLERANCE):
        assert ours.shape == theirs.shape, f"{key}: {list(ours.shape)}, {list(theirs.shape)}"
        if theirs.is_floating_point():
            error = max_relative(ours, theirs)
            assert error <= tolerance, f"{key}: relative error {error:.2e}"
        else:
            assert torch.equal(ours.to(theirs.dtype), theirs), key

    return check


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random tiny checkpoint: its folder, tensors and model."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, model_config("tiny", multi_gate=True))
    return folder, load_file(folder / "model.safetensors"), load(folder)


@pytest.fixture
def rewritten(tiny, tmp_path):
    """`rewritten(change)`: a copy of the tiny checkpoint after change(tensors, config)."""

    def make(change):
        source, tensors, _ = tiny
        tensors = dict(tensors)
        config = json.loads((source / "config.json").read_text())
        change(tensors, config)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.fixture
def subject(name):
    """The convolutional VAE of a test's parameter `name`."""
    return made(name)
