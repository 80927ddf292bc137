"""Finding checkpoints: folders, bundled names, hub ids, and one clear error for the rest."""

import json
from pathlib import Path

import pytest

from mingcore.errors import CheckpointError, InputError
from mingcore.runtime.fingerprint import fingerprint
from mingcore.runtime.locate import bundled, find_folder, locate


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's client without a network, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_bundled():
    assert "tiny" in bundled()
    folder = find_folder("tiny")
    assert (folder / "config.json").is_file() and locate("tiny") == folder


def test_a_folder_beats_nothing_but_a_path(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_folder("tiny") != Path("tiny")
    assert find_folder("./tiny") == Path("tiny") and find_folder(tmp_path / "tiny").is_dir()


@pytest.mark.parametrize("name", ["nosuch", "./nosuch", "a/b/c", "", "x\0y", "~nobody-here/x/y"])
def test_nothing_there(name):
    with pytest.raises(InputError, match=r"^checkpoint '"):
        locate(name)


def test_a_path_is_no_hub_id():
    with pytest.raises(InputError, match="no such folder"):
        locate(Path("owner/name"))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        locate(tmp_path)
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="is a file"):
        locate(tmp_path / "f")


def test_hub_without_network(offline):
    assert find_folder("owner/name") is None
    with pytest.raises(InputError, match="as a hub id: the hub cannot be reached and nothing is"):
        locate("owner/name")


def test_hub_from_the_cache(offline):
    revision = "0" * 40
    repo = offline / "models--owner--name"
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    (snapshot / "config.json").write_text(json.dumps({}))
    assert locate("owner/name") == snapshot


def test_fingerprint_follows_the_audio_tokenizer(tmp_path, golden):
    import torch
    from safetensors.torch import save_file

    tensors = dict(golden("model"))
    folders = {}
    for name, change in (("same", None), ("tuned", "model.model.norm.weight"), ("other", "audio.encoder.fc3.weight")):
        folder = folders[name] = tmp_path / name
        folder.mkdir()
        changed = {change: tensors[change] * 1.5} if change else {}
        save_file(tensors | changed, folder / "model.safetensors")
    halved = tmp_path / "halved"
    halved.mkdir()
    save_file({k: v.to(torch.bfloat16).clone() for k, v in tensors.items()}, halved / "model.safetensors")
    one = fingerprint(folders["same"])
    assert len(one) == 16 and one == fingerprint(folders["tuned"]) == fingerprint(halved)
    assert one != fingerprint(folders["other"])
