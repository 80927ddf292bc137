"""`info`, `encode` and `decode` on other checkpoints: golden, sharded, huge, on a hub."""

import json
import math
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file, save_file

from mingcore.api import info
from mingcore.audio.latents import load_latents
from mingcore.runtime.locate import locate
from mingcore.testing.synthetic import model_config, tensor_shapes, write_checkpoint, write_headers

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def relative(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_encode_and_decode_give_what_the_reference_gives(mingcore, tmp_path):
    a, c = (load_file(GOLDEN / f"{name}.safetensors") for name in ("a_encode", "c_decode"))
    for case in ("n16000", "n16037"):
        soundfile.write("in.wav", a[f"{case}.waveform"][0], 16000, "FLOAT")
        assert mingcore("encode", "in.wav", "--model", GOLDEN, "--device", "cpu").status == 0
        assert relative(load_latents("latents.safetensors"), a[f"{case}.sdpa.mean"][0]) < 2e-5
    save_file({"latents": c["latent"][0]}, "l.safetensors")
    done = mingcore("decode", "l.safetensors", "--model", GOLDEN, "--device", "cpu", "--subtype", "float32")
    assert done.status == 0, done.err
    sound = soundfile.read("decoded.wav", dtype="float32")[0]
    assert relative(sound, c["sdpa.oneshot"][0, 0]) < 2e-5


def test_a_checkpoint_without_tokenizer_or_voice_says_so(mingcore, wav):
    mingcore("tts", "hi", "--model", GOLDEN).refused("tokenizer")
    mingcore("asr", wav, "--model", GOLDEN).refused("tokenizer")


def test_info_counts_parameters(mingcore):
    facts = json.loads(mingcore("info", GOLDEN, "--json").out)
    tensors = load_file(GOLDEN / "model.safetensors")
    assert facts["parameters"] == sum(t.size for t in tensors.values())
    assert facts["bytes"] == sum(t.nbytes for t in tensors.values())
    experts = sum(t.size for name, t in tensors.items() if ".mlp.experts." in name)
    assert facts["active_parameters"] == facts["parameters"] - experts * 6 // 8
    assert facts["dtypes"] == {"F32": facts["parameters"]}
    assert facts["warning"] is None and not facts["tokenizer"] and facts["voices"] == []
    assert facts["dims"]["audio decoder"]["window frames"] == 8
    assert facts["dims"]["flow head"] == {"depth": 2, "hidden": 64, "heads": 2}
    assert mingcore("info", GOLDEN).status == 0


def test_info_of_shards(mingcore, tmp_path):
    config = model_config("tiny")
    one = write_checkpoint(tmp_path / "one", config)
    many = write_checkpoint(tmp_path / "many", config, stacked=True, shard_bytes=2 << 20)
    a, b = (json.loads(mingcore("info", folder, "--json").out) for folder in (one, many))
    assert a["files"] == 1 and b["files"] > 3
    for key in ("parameters", "active_parameters", "bytes", "dims", "rates"):
        assert a[key] == b[key], key
    next(many.glob("model-00002*")).unlink()
    mingcore("info", many).refused("model-00002", "missing")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The layout of a released checkpoint at its size: eight sparse bfloat16 shards, five unused tensors."""
    config = model_config("real", multi_gate=True)
    total = 2 * sum(math.prod(shape) for shape in tensor_shapes(config, released=True).values())
    return write_headers(tmp_path_factory.mktemp("released"), config, shard_bytes=int(total / 7.5))


def test_info_of_the_released_layout_reads_headers_only(mingcore, released):
    names = sorted(path.name for path in released.glob("*.safetensors"))
    assert len(names) == 8 and names[0] == "model-00001-of-00008.safetensors"
    start = time.monotonic()
    facts = json.loads(mingcore("info", released, "--json").out)
    assert time.monotonic() - start < 10
    assert facts["bytes"] > 30e9 and facts["files"] == 8
    llm = [p["parameters"] for p in facts["parts"] if p["part"].startswith("LLM")]
    assert 16.5e9 < sum(llm) < 17.1e9
    parts = {p["part"]: p["parameters"] for p in facts["parts"]}
    assert parts["flow head"] == 104297568
    # two 24-layer backbones and the 32-layer semantic module: 1.35 B in the technical report
    codec = parts["audio encoder"] + parts["semantic module"] + parts["audio decoder"]
    assert 1.34e9 < codec < 1.36e9
    assert facts["rates"]["semantic_cache_bytes_per_second"] == 8192000
    assert facts["dims"]["LLM"]["routers"] == 3


def test_plan_of_the_released_layout(mingcore, released):
    for weights in ("bf16", "int8_dyn"):
        plan = json.loads(mingcore("info", released, "--plan", "--weights", weights, "--device", "cpu", "--json").out)
        assert plan["weights_bytes"] > (30e9 if weights == "bf16" else 15e9)


def test_the_released_layout_loads_and_runs(mingcore, tmp_path):
    """At small width, from shards in bfloat16: speech, recognition and an edit."""
    folder = write_checkpoint(
        tmp_path / "small",
        model_config("tiny", multi_gate=True),
        dtype=torch.bfloat16,
        released=True,
        shard_bytes=1 << 20,
    )
    shutil.copy(locate("tiny") / "tokenizer.json", folder)
    out = tmp_path / "speech.wav"
    mingcore("tts", "one two", "-m", folder, "-o", out, "--max-seconds", "0.5", "--seed", "1", "--quiet")
    assert 0.3 < soundfile.info(out).duration <= 0.6
    text = mingcore("asr", out, "-m", folder, "--max-tokens", "4", "--json").out
    assert json.loads(text)["stats"]["text_tokens"] <= 4
    edited = tmp_path / "edited.wav"
    mingcore("edit", out, "insert 'a'", "-m", folder, "-o", edited, "--max-seconds", "0.3", "--max-tokens", "3")
    assert edited.stat().st_size > 44


def test_no_strict_skips_unknown_tensors(mingcore, tmp_path, caplog):
    folder = write_checkpoint(tmp_path / "more", model_config("tiny"))
    tensors = load_file(folder / "model.safetensors") | {f"extra.{i}": np.zeros(1, np.float32) for i in range(6)}
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(locate("tiny") / "tokenizer.json", folder)
    arguments = ("tts", "one", "-m", folder, "-o", tmp_path / "a.wav", "--max-seconds", "0.2")
    mingcore(*arguments).refused("unexpected key extra.0", "--no-strict")
    assert mingcore(*arguments, "--no-strict").status == 0
    assert "skipped 6 unexpected tensors: extra.0, extra.1, extra.2, extra.3, extra.4 and 1 more" in caplog.text


class Hub:
    """A fake of the hub with the golden checkpoint's headers, without its weights."""

    def __init__(self, missing: bool = False):
        self.missing = missing

    def HfApi(self):
        return self

    def list_repo_files(self, repo):
        if self.missing:
            raise OSError("404: no such repository\nmore lines")
        return ["config.json", "model.safetensors", "tokenizer.json", "voices/a.safetensors"]

    def hf_hub_download(self, repo, name):
        assert name == "config.json"
        return str(GOLDEN / name)

    def get_safetensors_metadata(self, repo):
        with open(GOLDEN / "model.safetensors", "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__")
        tensors = {name: SimpleNamespace(dtype=t["dtype"], shape=t["shape"]) for name, t in header.items()}
        return SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})


@pytest.fixture
def hub(monkeypatch):
    def use(stand_in: Hub) -> None:
        import huggingface_hub

        for name in ("HfApi", "hf_hub_download"):
            monkeypatch.setattr(huggingface_hub, name, getattr(stand_in, name))

    return use


def test_info_of_a_hub_id(mingcore, hub):
    hub(Hub())
    local, remote = info.describe(str(GOLDEN)), info.describe("some-one/ming.uni-audio")
    assert remote["source"] == "hub: some-one/ming.uni-audio"
    assert remote["tokenizer"] and remote["voices"] == ["a"]
    for key in ("parameters", "bytes", "parts", "dims", "rates", "dtypes", "files"):
        assert remote[key] == local[key], key


def test_info_of_a_hub_id_from_the_cache(mingcore, hub, monkeypatch):
    import huggingface_hub

    hub(Hub(missing=True))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(GOLDEN / name))
    facts = info.describe("some-one/ming")
    assert facts["source"] == "hub: some-one/ming (cached)"
    assert facts["parameters"] == info.describe(str(GOLDEN))["parameters"]


def test_a_hub_that_cannot_be_reached(command, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    for arguments in (("info", "a/b"), ("tts", "hi", "--model", "a/b")):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200
        )
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("mingcore: checkpoint 'a/b'"), lines


def test_info_of_a_hub_id_that_is_not_there(mingcore, hub):
    hub(Hub(missing=True))
    line = mingcore("info", "some-one/nothing").refused("some-one/nothing", "404")
    assert "more lines" not in line
