"""Invalid input gives one line and exit status 2, and leaves no file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

TINY = Path(__file__).resolve().parents[2] / "mingcore" / "checkpoints" / "tiny"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("tts", ""), ("text", "empty")),
        (("tts", "  \n "), ("text", "empty")),
        (("tts", "\U0001f389"), ("text",)),
        (("tts",), ("TEXT",)),
        (("tts", "hi", "--steps", "-1"), ("steps", "-1")),
        (("tts", "hi", "--steps", "many"), ("--steps",)),
        (("tts", "hi", "--guidance", "nan"), ("guidance", "nan")),
        (("tts", "hi", "--guidance", "-1"), ("guidance", "-1")),
        (("tts", "hi", "--temperature", "inf"), ("temperature", "inf")),
        (("tts", "hi", "--seed", "-5"), ("seed", "-5")),
        (("tts", "hi", "--max-seconds", "0"), ("max_seconds", "0")),
        (("tts", "hi", "--min-seconds", "9", "--max-seconds", "1"), ("min_seconds", "9")),
        (("tts", "hi", "--language", "xx"), ("language", "xx")),
        (("tts", "hi", "--voice", "nobody"), ("nobody", "default", ".safetensors", "recording")),
        (("tts", "hi", "--voice", "no.safetensors"), ("no.safetensors", "no such file")),
        (("tts", "hi", "--voice", "no.wav"), ("no.wav", "no such file")),
        (("tts", "hi", "--transcript", "hi"), ("--transcript", "--voice")),
        (("tts", "hi", "--out", "x.mp3"), ("x.mp3",)),
        (("tts", "hi", "--out", "no/such/folder.wav"), ("no/such/folder.wav",)),
        (("tts", "hi", "--format", "ogg"), ("format", "ogg")),
        (("tts", "hi", "--subtype", "int8"), ("subtype", "int8")),
        (("tts", "hi", "--format", "flac", "--subtype", "float32", "--out", "x.flac"), ("flac",)),
        (("tts", "hi", "--model", "nothing"), ("nothing", "tiny")),
        (("tts", "hi", "--device", "abacus"), ("device", "abacus")),
        (("tts", "hi", "--dtype", "int3"), ("dtype", "int3")),
        (("tts", "hi", "--backend", "abacus"), ("backend", "abacus")),
        (("tts", "hi", "--bogus"), ("--bogus",)),
        (("asr", "no.wav"), ("no.wav", "no such file")),
        (("asr", "."), ("folder",)),
        (("asr", "SOUND", "--max-tokens", "0"), ("max_new_tokens", "0")),
        (("asr", "SOUND", "--instruction", ""), ("instruction",)),
        (("edit", "SOUND", ""), ("instruction",)),
        (("edit", "SOUND"), ("INSTRUCTION",)),
        (("edit", "-", "-"), ("standard input",)),
        (("encode", "SOUND", "--out", "no/such/l.safetensors"), ("no/such/l.safetensors",)),
        (("decode", "no.safetensors"), ("no.safetensors", "No such file")),
        (("decode", "SOUND"), ("safetensors",)),
        (("info", "nothing"), ("nothing", "tiny")),
        (("info", "."), ("config.json",)),
        (("profile", "hi", "--task", "sing"), ("--task", "tts, asr", "sing")),
        (("profile", "--task", "asr"), ("AUDIO",)),
        (("profile", "no.wav", "--task", "asr"), ("no.wav", "no such file")),
        (("profile", ""), ("text", "empty")),
        (("profile", "hi", "--out", "no/such/trace.json"), ("no/such/trace.json",)),
        (("profile", "hi", "--out", "."), ("'.'", "folder")),
        (("profile", "hi", "--steps", "0"), ("steps", "0")),
        (("profile", "hi", "--seed", "-1"), ("seed", "-1")),
        (("profile", "hi", "--backend", "abacus"), ("backend", "abacus")),
        (("sing", "hi"), ("sing",)),
    ],
)
def test_refused(mingcore, wav, tmp_path, arguments, words):
    arguments = [str(wav) if a == "SOUND" else a for a in arguments]
    line = mingcore(*arguments).refused()
    for word in words:
        assert word.lower() in line.lower(), line
    assert not list(tmp_path.iterdir())


def test_refused_sounds(mingcore, tmp_path):
    files = {
        "text.wav": (lambda p: p.write_text("not a sound"), "libsndfile"),
        "empty.wav": (lambda p: p.write_bytes(b""), "empty"),
        "none.wav": (lambda p: soundfile.write(p, np.zeros(0), 16000), "no samples"),
        "short.wav": (lambda p: soundfile.write(p, np.zeros(100), 16000), "at least"),
        "nan.wav": (lambda p: soundfile.write(p, np.full(9000, np.nan, "f4"), 16000, "FLOAT"), "sample 0"),
    }
    for name, (make, words) in files.items():
        make(tmp_path / name)
        mingcore("asr", name).refused(words)


def test_refused_latents(mingcore, tmp_path):
    from safetensors.numpy import save_file

    cases = {
        "name": ({"codes": np.zeros((5, 64), "f4")}, "latents"),
        "channels": ({"latents": np.zeros((5, 63), "f4")}, "64"),
        "empty": ({"latents": np.zeros((0, 64), "f4")}, "latents"),
        "nan": ({"latents": np.full((5, 64), np.nan, "f4")}, "latents"),
    }
    for name, (tensors, word) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        mingcore("decode", f"{name}.safetensors").refused(word)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    mingcore("decode", "cut.safetensors").refused("cut.safetensors")


def test_refused_checkpoints(mingcore, tmp_path):
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(TINY, tmp_path / name))

    folder = damaged("truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for command in (("info", folder), ("tts", "hi", "--model", folder)):
        mingcore(*command).refused("truncated")

    folder = damaged("missing")
    (folder / "model.safetensors").unlink()
    for command in (("info", folder), ("tts", "hi", "--model", folder)):
        mingcore(*command).refused("model.safetensors")

    folder = damaged("config")
    (folder / "config.json").write_text("{")
    for command in (("info", folder), ("tts", "hi", "--model", folder)):
        mingcore(*command).refused("config.json")

    folder = damaged("dims")
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["hidden_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    mingcore("tts", "hi", "--model", folder).refused("128")

    folder = damaged("speechless")
    (folder / "tokenizer.json").unlink()
    mingcore("tts", "hi", "--model", folder).refused("tokenizer")

    folder = damaged("voiceless")
    shutil.rmtree(folder / "voices")
    mingcore("tts", "hi", "--model", folder, "--voice", "default").refused("default")
