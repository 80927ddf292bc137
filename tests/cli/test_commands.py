"""Every command on the bundled checkpoint, in this process."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mingcore.audio.latents import load_latents
from mingcore.results import Voice

SHORT = ("--max-seconds", "0.5", "--seed", "3")


def test_tts_writes_what_the_seed_decides(mingcore):
    first = mingcore("tts", "Hello.", *SHORT, "--out", "a.wav")
    assert first.status == 0 and first.out == "", first.err
    assert "a.wav" in first.err and "0.50 s of audio" in first.err
    assert "digits" in first.err  # the bundled checkpoint says what it is
    mingcore("tts", "Hello.", *SHORT, "--out", "b.wav")
    mingcore("tts", "Hello.", "--max-seconds", "0.5", "--seed", "4", "--out", "c.wav")
    a, b, c = (soundfile.read(f"{n}.wav", dtype="int16") for n in "abc")
    assert a[1] == 16000 and len(a[0]) == 8000
    assert np.array_equal(a[0], b[0])
    assert not np.array_equal(a[0], c[0])


def test_tts_options_change_the_sound(mingcore):
    plain = mingcore("tts", "Hello.", *SHORT, "-q", "--out", "0.wav")
    assert plain.err == ""
    reference = soundfile.read("0.wav")[0]
    changes = (
        ("--steps", 4),
        ("--guidance", 0),
        ("--temperature", 0),
        ("--language", "zh", "-q"),
        ("--no-normalize", "-q"),
    )
    for n, change in enumerate(changes, 1):
        assert mingcore("tts", "It is 5.", *SHORT, *change, "--out", f"{n}.wav").status == 0, change
        assert not np.array_equal(soundfile.read(f"{n}.wav")[0], reference), change


@pytest.mark.parametrize(
    "name, options, subtype",
    [
        ("x.wav", (), "PCM_16"),
        ("x.wav", ("--subtype", "float32"), "FLOAT"),
        ("x.flac", (), "PCM_16"),
        ("x.bin", ("--format", "flac"), "PCM_16"),
    ],
)
def test_tts_formats(mingcore, name, options, subtype):
    assert mingcore("tts", "Hello.", *SHORT, *options, "--out", name).status == 0
    found = soundfile.info(name)
    assert (found.samplerate, found.channels, found.frames) == (16000, 1, 8000)
    assert found.subtype == subtype


def test_tts_pcm(mingcore):
    assert mingcore("tts", "Hello.", *SHORT, "--out", "x.pcm").status == 0
    assert mingcore("tts", "Hello.", *SHORT, "--out", "x.wav").status == 0
    samples = np.fromfile("x.pcm", "<i2")
    assert np.array_equal(samples, soundfile.read("x.wav", dtype="int16")[0])


def test_tts_json(mingcore):
    done = mingcore("tts", "Hello.", *SHORT, "--json", "--out", "x.wav")
    data = json.loads(done.out)
    assert data["out"] == "x.wav" and data["seconds"] == 0.5 and data["sample_rate"] == 16000
    stats = data["stats"]
    assert stats["seed"] == 3 and stats["patches"] == 5 and stats["ended_by"] == "limit"
    assert stats["real_time_factor"] > 0 and stats["time_to_first_audio"] > 0


def test_tts_in_the_voice_of_a_recording_and_of_its_file(mingcore, wav):
    recorded = mingcore("tts", "Hello.", *SHORT, "--voice", wav, "--transcript", "hm", "--out", "a.wav")
    assert recorded.status == 0, recorded.err
    from mingcore import MingAudio

    MingAudio.from_pretrained("tiny", device="cpu").voice(wav, "hm").save("v.safetensors")
    assert Voice.load("v.safetensors").transcript == "hm"
    assert mingcore("tts", "Hello.", *SHORT, "--voice", "v.safetensors", "--out", "b.wav").status == 0
    assert mingcore("tts", "Hello.", *SHORT, "--voice", "default", "--out", "c.wav").status == 0
    a, b, c = (soundfile.read(f"{n}.wav", dtype="int16")[0] for n in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_asr_of_many(mingcore, wav):
    one = json.loads(mingcore("asr", wav, "--max-tokens", 8, "--json").out)
    done = mingcore("asr", wav, wav, "--max-tokens", 8, "--hotwords", "A,B", "--no-sample", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["audio"] for line in lines] == [str(wav)] * 2 and lines[0]["text"] == lines[1]["text"]
    assert lines[0]["stats"]["prompt_tokens"] > one["stats"]["prompt_tokens"]
    table = mingcore("asr", wav, wav, "--max-tokens", 8)
    said = " ".join(one["text"].split())
    assert table.out.splitlines() == [f"{wav}\t{said}"] * 2
    partly = mingcore("asr", "no.wav", wav, "--max-tokens", 8)
    assert partly.status == 2 and f"{wav}\t{said}" in partly.out and "1 of 2" in partly.err


def test_asr(mingcore, wav):
    plain = mingcore("asr", wav, "--max-tokens", 8, "--seed", 1)
    assert plain.status == 0 and plain.out.endswith("\n") and "text tokens" in plain.err
    done = mingcore("asr", wav, "--max-tokens", 8, "--seed", 1, "--json")
    data = json.loads(done.out)
    assert data["text"] == plain.out[:-1]
    assert data["stats"]["text_tokens"] <= 8 and data["stats"]["audio_seconds"] == 0.5
    asked = mingcore("asr", wav, "--max-tokens", 8, "--seed", 1, "--instruction", "Who speaks?", "--json")
    assert json.loads(asked.out)["stats"]["prompt_tokens"] < data["stats"]["prompt_tokens"]
    named = mingcore("asr", wav, "--max-tokens", 4, "--seed", 1, "--language", "zh", "--json")
    assert json.loads(named.out)["language"] == "Chinese"


def test_edit(mingcore, wav):
    done = mingcore("edit", wav, "make it louder", *SHORT, "--max-tokens", 8, "--json")
    data = json.loads(done.out)
    assert data["out"] == "edited.wav" and data["seconds"] == 0.5
    assert len(soundfile.read("edited.wav")[0]) == 8000
    plain = mingcore("edit", wav, "make it louder", *SHORT, "--max-tokens", 8, "--out", "b.flac")
    assert plain.status == 0 and plain.out.strip() == (data["text"] or "").strip()
    assert len(soundfile.read("b.flac")[0]) == 8000


def test_encode_then_decode(mingcore, wav):
    assert mingcore("encode", wav, "--out", "l.safetensors").status == 0
    latents = load_latents("l.safetensors")
    assert latents.shape == (25, 64) and latents.dtype == np.float32
    data = json.loads(mingcore("encode", wav, "--json", "--sample", "--seed", 1).out)
    assert data == {"out": "latents.safetensors", "frames": 25, "channels": 64}
    drawn = load_latents("latents.safetensors")
    assert drawn.shape == latents.shape and not np.array_equal(drawn, latents)
    assert mingcore("decode", "l.safetensors", "--out", "again.wav").status == 0
    from mingcore import MingAudio

    expected = MingAudio.from_pretrained("tiny", device="cpu").decode(latents).samples
    sound = soundfile.read("again.wav")[0]
    assert len(sound) == 8000 and np.abs(sound - expected).max() < 1e-4
    assert json.loads(mingcore("decode", "l.safetensors", "--json").out)["seconds"] == 0.5


def test_a_named_backend_is_used(mingcore):
    for backend in ("reference", "cpu,reference", "cpu", "triton"):
        done = mingcore("tts", "Hello.", *SHORT, "--backend", backend, "--out", f"{backend}.wav")
        if backend == "triton":  # it serves no CPU tensor, and a named backend never falls back
            done.refused("triton")
        else:
            assert done.status == 0
            assert os.path.getsize(f"{backend}.wav") > 8000


def test_info(mingcore):
    shown = mingcore("info", "tiny")
    assert shown.status == 0 and "150 English words" in shown.out
    facts = json.loads(mingcore("info", "tiny", "--json").out)
    assert facts["warning"] == facts["card"]["note"]
    assert facts["source"] == "bundled" and facts["tokenizer"] and facts["voices"][0] == "awb"
    assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"])
    assert 0 < facts["active_parameters"] < facts["parameters"]
    assert "other" not in {part["part"] for part in facts["parts"]}
    assert facts["rates"]["patches_per_second"] == 10


def test_doctor(mingcore):
    shown = mingcore("doctor")
    assert shown.status == 0 and "moe_mlp" in shown.out and "torch" in shown.out
    facts = json.loads(mingcore("doctor", "--json").out)
    assert facts["packages"]["torch"] and facts["cpu"]["isa"] in facts["cpu"]["isas"]
    assert facts["ops"]["linear"]["reference"] is None and facts["ops"]["linear"]["cpu"] is None
    assert set(facts["backends"]) == {"reference", "cpu", "triton", "cuda", "flash"}


def test_bench(mingcore):
    few = ("--batch", 1, "--batch", 2, "--seconds", 0.2, "--patches", 1)
    done = mingcore("bench", *few, "--json", "--out", "r.json")
    assert done.status == 0 and done.err == "", done.err
    said = json.loads(done.out)
    assert said == json.loads(Path("r.json").read_text()) and said["size"] == "tiny"
    assert not said["random_weights"] and [r["batch"] for r in said["batches"]] == [1, 2]
    assert said["speedup"]["median"] > 0 and said["machine"]["commit"]
    shown = mingcore("bench", "--batch", 1, "--seconds", 0.2, "--patches", 1, "--no-baseline")
    assert shown.status == 0 and "peak memory" in shown.out and "eager" not in shown.out
    assert "tiny: loading" in shown.err


def test_bench_refuses_before_it_measures(mingcore, monkeypatch):
    mingcore("bench", "--random-weights", "huge").refused("--random-weights", "ming-uniaudio-16b")
    mingcore("bench", "tiny", "--random-weights", "mid").refused("name only one")
    mingcore("bench", "--batch", 0).refused("batch", "from 1 to 1024")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    mingcore("bench", "--plot", "x.png").refused("pip install 'mingcore[plot]'")


def test_help_and_version(mingcore):
    from mingcore import __version__

    assert __version__ in mingcore("--version").out
    for arguments in ((), ("--help",), ("-h",)):
        shown = mingcore(*arguments)
        assert shown.status == 0 and "transcribe" in shown.out.lower()
    for name in ("tts", "asr", "edit", "encode", "decode", "info", "doctor", "verify"):
        shown = mingcore(name, "--help")
        assert shown.status == 0 and "--json" in shown.out, name
