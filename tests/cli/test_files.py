"""Files that commands write: nothing is overwritten unasked, no recording by its own result."""

import json
import os
import subprocess

import pytest
import soundfile

SPEAK = ("--max-seconds", "0.2", "--seed", "1", "--quiet")


def test_a_default_name_never_overwrites(mingcore, tmp_path):
    for name in ("speech.wav", "speech-2.wav", "speech-3.wav"):
        done = mingcore("tts", "one", *SPEAK[:-1])
        assert done.status == 0 and done.err.splitlines()[-1].startswith(f"{name}: "), done.err
    assert len({(tmp_path / f"speech{n}.wav").read_bytes() for n in ("", "-2", "-3")}) == 1
    # a name that was given is meant
    before = (tmp_path / "speech.wav").stat().st_size
    assert mingcore("tts", "one", "-o", "speech.wav", "--max-seconds", "0.4", "--seed", "1").status == 0
    assert (tmp_path / "speech.wav").stat().st_size > before


def test_stream_and_out_write_the_file(mingcore, tmp_path):
    assert mingcore("tts", "one", "--stream", "--out", "x.wav", *SPEAK).status == 0
    assert mingcore("tts", "one", "--out", "y.wav", *SPEAK).status == 0
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()
    assert soundfile.info("x.wav").duration > 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "{}", "-o", "a.wav"),
        ("roundtrip", "{}", "-o", "a.wav"),
        ("edit", "{}", "insert 'x'", "-o", "a.wav"),
        ("tts", "one", "--voice", "{}", "-o", "a.wav"),
    ],
)
@pytest.mark.parametrize("way", ["the same name", "another spelling", "a symbolic link", "a hard link"])
def test_a_recording_is_not_overwritten_by_its_result(mingcore, tmp_path, wav, arguments, way):
    recording = tmp_path / "a.wav"
    recording.write_bytes(wav.read_bytes())
    source = {"the same name": "a.wav", "another spelling": f"./../{tmp_path.name}/a.wav"}.get(way, "b.wav")
    if way == "a symbolic link":
        os.symlink("a.wav", "b.wav")
    elif way == "a hard link":
        os.link("a.wav", "b.wav")
    mingcore(*(a.format(source) for a in arguments)).refused("is the input", "name another file")
    assert recording.read_bytes() == wav.read_bytes()


def test_python_m_mingcore(command):
    """The module runs the same command."""
    run = "import runpy; runpy.run_module('mingcore', run_name='__main__')"
    code = command[2].replace("from mingcore.cli import main; main()", run)
    done = subprocess.run([command[0], "-c", code, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "speak, transcribe" in done.stdout
    assert "--install-completion" in done.stdout


def test_arguments_that_are_no_text_no_name_or_look_like_options(mingcore, tmp_path):
    mingcore("tts", "a\udcffb").refused("text: is not UTF-8 at byte 1")
    mingcore("asr", "").refused("audio '': the name is empty")
    mingcore("tts", "-5 degrees").refused("No such option", "goes behind --")
    assert mingcore("tts", "-o", "a.wav", "--max-seconds", "0.2", "--", "-5 degrees").status == 0


def test_decode_of_other_safetensors(mingcore, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({f"w{i}": torch.zeros(2, dtype=torch.bfloat16) for i in range(5)}, "w.safetensors")
    mingcore("decode", "w.safetensors").refused("must hold one tensor, 'latents', got w0, w1, w2 and 2 more")
    save_file({"latents": torch.zeros(5, 64, dtype=torch.bfloat16)}, "l.safetensors")
    mingcore("decode", "l.safetensors").refused("latents must be one of F32, F16, F64, got 'BF16'")


def test_voice_makes_a_file_that_tts_takes(mingcore, tmp_path, wav):
    done = mingcore("voice", wav, "-o", "me.safetensors", "--transcript", "one two", "--json")
    assert json.loads(done.out) == {"out": "me.safetensors", "seconds": 0.5, "transcript": "one two"}
    assert mingcore("tts", "one", "--voice", "me.safetensors", "-o", "a.wav", *SPEAK).status == 0
    spoken = ("--voice", wav, "--transcript", "one two", "-o", "b.wav")
    assert mingcore("tts", "one", *spoken, *SPEAK).status == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    mingcore("voice", wav, "-o", "me.wav").refused("must end in .safetensors")
