"""Checkpoint files that are missing, cut short or corrupt: one clear error each."""

import errno
import io
import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file

from mingcore.errors import CheckpointError
from mingcore.model import load
from mingcore.model.headers import read_headers
from mingcore.runtime.locate import locate
from mingcore.testing.synthetic import write_checkpoint


def test_missing_files(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no folder"):
        load(tiny[0] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load(tmp_path)
    shutil.copy(tiny[0] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*index.json"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        read_headers(tmp_path / "nowhere")


def edit_header(raw, change):
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def raw_header(raw, change):
    (length,) = struct.unpack("<Q", raw[:8])
    text = change(raw[8 : 8 + length])
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def moved(entry, begin):
    first, last = entry["data_offsets"]
    entry["data_offsets"] = [begin, begin + last - first]


def set_header(name, key, value):
    return lambda raw: edit_header(raw, lambda header: header[name].update({key: value}))


BYTES = {
    "empty": (lambda raw: b"", "truncated: 0 bytes hold no safetensors header"),
    "seven bytes": (lambda raw: raw[:7], "truncated: 7 bytes"),
    "half a header": (lambda raw: raw[:1000], "truncated or no safetensors file: its header"),
    "half the data": (lambda raw: raw[: len(raw) // 2], "truncated: its tensors need"),
    "one byte short": (lambda raw: raw[:-1], "truncated: its tensors need"),
    "another file": (lambda raw: b"PK\x03\x04" * 4096, "truncated or no safetensors file"),
    "garbled header": (lambda raw: raw[:8] + b"\xff" * 64 + raw[72:], "corrupt header"),
    "header of a list": (lambda raw: struct.pack("<Q", 2) + b"[]", "corrupt header: no mapping of tensors"),
    "unknown dtype": (set_header("stop_head.bias", "dtype", "Q4"), "stop_head.bias has dtype Q4"),
    "offsets against shape": (
        set_header("stop_head.bias", "shape", [3]),
        r"corrupt header: stop_head.bias of F32 \[3\] needs 12 bytes, its entry covers 8",
    ),
    "bytes behind": (lambda raw: raw + b"\0" * 3, "has 3 bytes behind its last tensor"),
    "overlap": (
        lambda raw: edit_header(raw, lambda h: moved(h["stop_head.weight"], h["stop_head.bias"]["data_offsets"][0])),
        "corrupt header: stop_head.(bias|weight) overlaps stop_head.(bias|weight)",
    ),
    "hole": (
        lambda raw: edit_header(raw, lambda h: h.pop("stop_head.bias")),
        "corrupt header: 8 bytes between .* belong to no tensor",
    ),
    "tensor twice": (
        lambda raw: raw_header(raw, lambda text: text.replace(b'"stop_head.bias"', b'"stop_head.weight"')),
        "stop_head.weight is there twice",
    ),
    "header beyond the format's limit": (
        lambda raw: struct.pack("<Q", 100_000_001) + b" " * 100_000_001,
        "it claims 100000001 bytes, the format allows 100000000",
    ),
    "nested beyond reason": (lambda raw: struct.pack("<Q", 200_000) + b"[" * 200_000, "corrupt header"),
    "negative shape": (set_header("stop_head.bias", "shape", [-2]), "the entry of stop_head.bias"),
    "no offsets": (
        lambda raw: edit_header(raw, lambda h: h["stop_head.bias"].pop("data_offsets")),
        "the entry of stop_head.bias",
    ),
}


@pytest.mark.parametrize("damage", BYTES)
def test_damaged_files(tiny, tmp_path, damage):
    change, message = BYTES[damage]
    shutil.copy(tiny[0] / "config.json", tmp_path)
    raw = (tiny[0] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(change(raw))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.fixture
def shards(tiny, tmp_path):
    config = json.loads((tiny[0] / "config.json").read_text())
    return write_checkpoint(tmp_path, config, shard_bytes=2 << 20)


def index_of(folder):
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


def test_missing_shards(shards):
    names = sorted(shards.glob("model-*.safetensors"))
    names[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 are missing: {names[1].name}"):
        load(shards)


def test_truncated_shard(shards):
    path = sorted(shards.glob("model-*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
        load(shards)


def test_index_against_its_shards(shards):
    path, index = index_of(shards)
    index["weight_map"]["ghost"] = index["weight_map"]["stop_head.bias"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"puts ghost in .*, which lacks it"):
        load(shards)


def test_tensor_in_two_shards(shards):
    extra = {"stop_head.bias": torch.zeros(2)}
    save_file(extra, shards / "model-extra.safetensors")
    path, index = index_of(shards)
    index["weight_map"]["stop_head.bias"] = "model-extra.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"stop_head.bias is in"):
        load(shards)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_broken_index(shards, content):
    index_of(shards)[0].write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json (cannot be read as JSON|has no weight)"):
        load(shards)


def test_shards_stay_in_their_folder(shards):
    path, index = index_of(shards)
    index["weight_map"]["stop_head.bias"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(shards)


def test_tensor_that_the_index_does_not_list(shards):
    path, index = index_of(shards)
    shard = index["weight_map"].pop("stop_head.bias")
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{shard} holds stop_head.bias, which .*index.json does not list"):
        load(shards)


def test_index_that_swaps_two_shards(shards):
    path, index = index_of(shards)
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"]["stop_head.bias"] = next(n for n in names if n != index["weight_map"]["stop_head.bias"])
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="which lacks it; it is in model-"):
        load(shards)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def tiny_copy(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(locate("tiny"), folder)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_what_stands_where_a_file_should_be(tiny_copy, name):
    path = tiny_copy / name
    path.unlink()
    path.write_bytes(LFS)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, .*`git lfs pull`"):
        load(tiny_copy)
    path.unlink()
    path.symlink_to("nowhere/blob")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to nowhere/blob, which does not exist"):
        load(tiny_copy)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} is a folder, it must be a file"):
        load(tiny_copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_files_that_cannot_be_read(tiny_copy, name, number, monkeypatch):
    """As for a user who may not read them; the tests may run as root, who may."""
    original = io.open

    def refusing(file, *args, **options):
        if str(file).endswith(name):
            raise OSError(number, os.strerror(number), str(file))
        return original(file, *args, **options)

    monkeypatch.setattr(io, "open", refusing)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \({os.strerror(number)}\)"):
        load(tiny_copy)


def test_weights_that_fail_while_they_are_read(tiny_copy, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        load(tiny_copy)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pytorch_model.bin"], "but pytorch_model.bin: weights in PyTorch's own format; convert"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "shards need their index"),
        (["a.gguf"], "a.gguf: weights for llama.cpp"),
        ([f"consolidated.{i}.pth" for i in range(4)], "consolidated.0.pth, consolidated.1.pth and 2 more: "),
        (["model.onnx"], "another framework"),
        ([], r"index.json$"),
    ],
)
def test_other_weights_are_named(tiny, tmp_path, names, message):
    shutil.copy(tiny[0] / "config.json", tmp_path)
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor .*" + message):
        load(tmp_path)
