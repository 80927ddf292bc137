"""Invalid arguments raise a one-line InputError that names them, before anything expensive runs."""

import numpy as np
import pytest
import soundfile

from mingcore import InputError, MingAudio, Voice

NAN = float("nan")
SOUND = (np.full(4000, 0.1, np.float32), 16000)


@pytest.fixture
def idle(ming, monkeypatch):
    """A model that must not run: errors must come before it."""

    def refuse(*args, **kwargs):
        raise AssertionError("the model ran")

    for owner in (ming.model.llm, ming.model.flow, ming.model.vae):
        for name in ("__call__", "encode", "unify", "decode", "sample", "embed"):
            if hasattr(type(owner), name):
                monkeypatch.setattr(type(owner), name, refuse)
    return ming


def raises(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -3}, "^steps: must be a whole number from 1 to 1000, got -3$"),
        ({"steps": 0}, "^steps: "),
        ({"steps": 1.5}, "^steps: "),
        ({"guidance": NAN}, "^guidance: must be a number from 0 to 1000, got nan$"),
        ({"guidance": -1}, "^guidance: "),
        ({"guidance": "high"}, "^guidance: "),
        ({"temperature": NAN}, "^temperature: "),
        ({"temperature": -0.5}, "^temperature: "),
        ({"sigma": float("inf")}, "^sigma: "),
        ({"seed": -1}, "^seed: "),
        ({"seed": 0.5}, "^seed: "),
        ({"noise": "pink"}, "^noise: must be one of "),
        ({"max_seconds": 0}, "^max_seconds: "),
        ({"max_seconds": -1}, "^max_seconds: "),
        ({"max_seconds": NAN}, "^max_seconds: "),
        ({"min_seconds": -1}, "^min_seconds: "),
        ({"min_seconds": 5, "max_seconds": 4}, "^min_seconds: must not exceed"),
    ],
)
def test_settings_of_speech_and_editing(idle, options, message):
    raises(lambda: idle.tts_stream("hello", **options), message)
    raises(lambda: idle.edit_stream(SOUND, "x", **options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "fr"}, "^language: must be one of auto, zh, en"),
        ({"pause_seconds": -1}, "^pause_seconds: "),
        ({"pause_seconds": NAN}, "^pause_seconds: "),
        ({"voice": "nobody"}, "^voice 'nobody': is no voice file .* no voice of this checkpoint"),
        ({"voice": "nobody.safetensors"}, "^voice 'nobody.safetensors': no such file"),
        ({"voice": 7}, "^voice: must be a Voice or a path, got int"),
        ({"voice": Voice(np.zeros((4, 64), np.float32))}, "at least one patch of 5 frames, got 4"),
        ({"voice": Voice(np.zeros((5, 32), np.float32))}, r"voice: latents must be \[T, 64\]"),
    ],
)
def test_settings_of_speech(idle, options, message):
    raises(lambda: idle.tts_stream("hello", **options), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^text: is empty"),
        ("  \n ", "^text: is empty"),
        ("😀👍", "^text: nothing to speak"),
        ("...", "^text: nothing to speak"),
        (None, "^text: must be a string, got NoneType"),
        (b"hello", "^text: must be a string, got bytes"),
        ("\ud800", "^text: nothing to speak"),
    ],
)
def test_texts(idle, text, message):
    raises(lambda: idle.tts_stream(text), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "^max_new_tokens: "),
        ({"temperature": NAN}, "^temperature: "),
        ({"temperature": -1}, "^temperature: "),
        ({"seed": "x"}, "^seed: "),
        ({"language": ""}, "^language: "),
        ({"language": 5}, "^language: "),
        ({"instruction": ""}, "^instruction: "),
        ({"instruction": 5}, "^instruction: "),
    ],
)
def test_settings_of_recognition(idle, options, message):
    raises(lambda: idle.transcribe_stream(SOUND, **options), message)


@pytest.mark.parametrize("instruction", ["", " ", None, 3])
def test_instructions_of_editing(idle, instruction):
    raises(lambda: idle.edit_stream(SOUND, instruction), "^instruction: must be a text")


def takers(ming: MingAudio) -> list:
    """Every method that takes a recording."""
    return [ming.voice, ming.encode, ming.transcribe_stream, lambda a: ming.edit_stream(a, "x")]


def test_recordings_that_cannot_be_used(idle, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("RIFF is what I would like to be")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16000)
    bad = [
        (text, "not an audio file"),
        (tmp_path / "none.wav", "no such file"),
        (tmp_path, "is a folder"),
        (empty, "holds no samples"),
        (b"", "is empty"),
        ((np.array([]), 16000), "holds no samples"),
        ((np.array([0.1, NAN] * 2000), 16000), "sample 1 of 4000 is nan"),
        ((np.array([np.inf] * 4000), 16000), "is inf"),
        (None, "got NoneType"),
        ((SOUND[0], 0), "must be 1000 to"),
        ((SOUND[0][:319], 16000), "must last at least one"),
    ]
    for source, message in bad:
        for take in takers(idle):
            raises(lambda take=take, source=source: take(source), f"^audio.*{message}")


def test_recordings_shorter_than_a_patch(ming):
    short = (SOUND[0][:1599], 16000)
    for take in (ming.voice, ming.transcribe_stream, lambda a: ming.edit_stream(a, "x")):
        raises(lambda take=take: take(short), r"at least one patch \(1600 samples, 100 ms.* 1599")
    # a frame is enough to encode; at 48 kHz a patch has three times the samples
    assert ming.encode(short).shape == (5, 64)
    raises(lambda: ming.voice((np.ones(4000, "f4"), 48000)), "at least one patch")
    assert ming.voice((np.full(4800, 0.1, "f4"), 48000)).latents.shape == (5, 64)


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [
        (16000, 1, "PCM_U8"),
        (16000, 1, "PCM_24"),
        (16000, 1, "FLOAT"),
        (16000, 2, "PCM_16"),
        (48000, 1, "PCM_16"),
        (44100, 2, "PCM_24"),
        (8000, 6, "DOUBLE"),
    ],
)
def test_every_usual_file_is_read(ming, tmp_path, rate, channels, subtype):
    path = tmp_path / "a.wav"
    t = np.arange(rate // 2) / rate
    tone = np.repeat(0.3 * np.sin(2 * np.pi * 300 * t)[:, None], channels, axis=1)
    soundfile.write(path, tone, rate, subtype)
    wanted = ming.encode((0.3 * np.sin(2 * np.pi * 300 * np.arange(8000) / 16000), 16000))
    got = ming.encode(path)
    assert got.shape == wanted.shape == (25, 64)
    # the same audio except for rounding; resampling rings at the edges
    error = np.abs(got - wanted)[3:-3].max() / np.abs(wanted).max()
    assert error < (0.3 if subtype == "PCM_U8" else 0.1)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((0, 64), "f4"), r"must be \[T, 64\] with T >= 1, got \[0, 64\]"),
        (np.zeros((5, 63), "f4"), r"got \[5, 63\]"),
        (np.zeros(64, "f4"), r"got \[64\]"),
        (np.zeros((2, 5, 64), "f4"), r"got \[2, 5, 64\]"),
        (np.zeros((5, 64), int), "be float"),
        (np.full((5, 64), NAN, "f4"), "NaN or infinity"),
        ("file.wav", "must be float"),
        (None, "must be float"),
    ],
)
def test_latents_that_cannot_be_decoded(idle, latents, message):
    raises(lambda: idle.decode(latents), f"^latents: .*{message}")
    raises(lambda: list(idle.decode_stream([latents])), f"^latents: .*{message}")


def test_a_stream_of_nothing(ming):
    raises(lambda: list(ming.decode_stream([])), "^latents: there is no chunk")


def test_voice_files(ming, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "v.safetensors"
    good = np.zeros((5, 64), np.float32)
    for content, message in ((b"", "is no voice file"), (b"text", "is no voice file"), (b"\xff" * 64, "no voice file")):
        path.write_bytes(content)
        raises(lambda: Voice.load(path), message)
    save_file({"latents": good}, path)
    raises(lambda: ming.tts_stream("a", path), "is no voice file; make one")
    form = {"format": "mingcore-voice-1"}
    save_file({"other": good}, path, form)
    raises(lambda: Voice.load(path), "is no voice file")
    for latents, message in (
        (good[0], r"got \[64\] float32"),
        (good.astype("f8"), "float64"),
        (good[:0], r"got \[0, 64\]"),
        (good + np.inf, "NaN or infinity"),
    ):
        save_file({"latents": np.ascontiguousarray(latents)}, path, form)
        raises(lambda: Voice.load(path), message)
    raises(lambda: Voice.load(tmp_path), "no such file")
    raises(lambda: Voice.load("a\0b"), "cannot be read|no such file")


def test_voices_that_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    voice = Voice(np.zeros((5, 64), np.float32), "x")
    for path in (tmp_path, tmp_path / "no" / "v.safetensors", "a\0b"):
        raises(lambda path=path: voice.save(path), "^voice .*cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_transcripts_must_be_text(idle):
    raises(lambda: idle.voice(SOUND, 5), "^transcript: must be a string, got int")


def test_results_that_cannot_be_saved(ming, tmp_path):
    speech = ming.tts("a", seed=0, steps=1, max_seconds=0.1)
    raises(lambda: speech.save(tmp_path / "no" / "a.wav"), "cannot be written")
    raises(lambda: speech.save(tmp_path / "a.mp3"), "must end in")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_an_error(ming):
    with pytest.raises(TypeError, match="speed"):
        ming.tts("hello", speed=2)
