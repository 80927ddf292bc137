"""Finding checkpoints: folders, bundled names, hub ids, and one clear error for the rest."""

import json
from pathlib import Path

import pytest

from mingcore.errors import CheckpointError, InputError
from mingcore.runtime.fingerprint import fingerprint
from mingcore.runtime.locate import HubId, bundled, find_folder, hub_id, locate


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


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("owner/name", HubId("owner/name")),
        ("owner/na.me@v1.0", HubId("owner/na.me", None, "v1.0")),
        ("owner/name@refs/pr/1", HubId("owner/name", None, "refs/pr/1")),
        ("owner/name/a/b", HubId("owner/name", "a/b")),
        ("owner/name/a@main", HubId("owner/name", "a", "main")),
        ("name", None),
        ("./owner/name", None),
        ("../name", None),
        ("/owner/name", None),
        ("owner/name@", None),
        ("owner//name", None),
    ],
)
def test_hub_ids(name, wanted):
    assert HubId.parse(name) == wanted


def test_revisions(tmp_path):
    assert hub_id("owner/name", "v1") == hub_id("owner/name@v1", None) == hub_id("owner/name@v1", "v1")
    with pytest.raises(InputError, match="revision: checkpoint 'owner/name@v1' names another one, got 'v2'"):
        hub_id("owner/name@v1", "v2")
    with pytest.raises(InputError, match="revision: must be a branch, a tag or a commit, got ''"):
        hub_id("owner/name", "")
    with pytest.raises(InputError, match="revision: belongs to a hub id, checkpoint 'tiny' is a folder"):
        locate("tiny", "main")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "owner/name is gated: accept its terms on the hub and log in"),
        ("RevisionNotFoundError", "owner/name has no revision 'v1'"),
        ("RepositoryNotFoundError", "there is no repository owner/name, or it is private"),
        ("OSError", "it cannot be stored (No space left on device)"),
        ("ValueError", "one line"),
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_what_the_hub_refuses(monkeypatch, error, words, kind):
    import huggingface_hub
    from huggingface_hub import errors

    kinds = {"OSError": OSError(28, "No space left on device"), "ValueError": ValueError("one line\nand more")}

    def refuse(repo, **options):
        assert repo == "owner/name" and options["revision"] == "v1"
        if error in kinds:
            raise kinds[error]
        found = getattr(errors, error)
        raise found.__new__(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError) as refused:
        locate("owner/name@v1", kind=kind)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{kind} 'owner/name@v1': ")


def test_a_folder_inside_a_repository(monkeypatch, tmp_path):
    import huggingface_hub

    def download(repo, allow_patterns, **options):
        assert repo == "owner/name" and not options and "sub/*.safetensors" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match="has no folder sub"):
        locate("owner/name/sub")
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match=r"has no sub/config.json"):
        locate("owner/name/sub")
    (tmp_path / "sub" / "config.json").write_text("{}")
    assert locate("owner/name/sub") == tmp_path / "sub"
