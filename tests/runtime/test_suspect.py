"""What sounds wrong is said, and spoken again: silence, early stops, runaways, clipping."""

import asyncio

import numpy as np
import pytest
import torch

from mingcore import AsyncMingAudio, InputError, MingAudio
from mingcore.runtime.suspect import SpeechJudge

RATE = 16000


@pytest.fixture(scope="module")
def ming():
    return MingAudio.from_pretrained("tiny", device="cpu")


def tone(seconds, gain=0.3):
    return (gain * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.float32)


@pytest.mark.parametrize(
    ("sound", "expected", "stopped", "limited", "wanted"),
    [
        (tone(2), 2.0, True, False, None),
        (tone(2, 1e-4), 2.0, True, False, ("silent",)),
        (np.zeros(RATE, np.float32), 1.0, True, False, ("silent",)),
        (tone(1), 10.0, True, False, ("too_short",)),
        (tone(1), 1.5, True, False, None),
        (tone(30), 3.0, False, False, ("too_long",)),
        (tone(3), 10.0, False, True, None),
        (np.clip(tone(2, 5.0), -1, 1), 2.0, True, False, ("clipped",)),
        (np.clip(tone(1, 5.0), -1, 1), 10.0, True, False, ("too_short", "clipped")),
    ],
)
def test_the_judge(sound, expected, stopped, limited, wanted):
    judge = SpeechJudge(RATE)
    for piece in np.array_split(sound, 7):
        judge.hear(piece)
    judge.end_segment(expected, stopped=stopped, limited=limited)
    assert judge.reasons() == wanted
    # a good segment behind it does not hide it
    judge.hear(tone(2))
    judge.end_segment(2.0, stopped=True, limited=False)
    assert judge.reasons() == wanted or wanted == ("clipped",)


def decoded_as(monkeypatch, ming, change):
    """Every sound that the decoder makes, changed."""
    original = ming.model.vae.decode
    monkeypatch.setattr(ming.model.vae, "decode", lambda *a, **k: (change((found := original(*a, **k))[0]), *found[1:]))


def test_good_speech_is_not_suspect(ming):
    speech = ming.tts("one two three", seed=1)
    assert speech.stats.suspect is None and speech.stats.attempts == 1 and "suspect" not in str(speech.stats)


@pytest.mark.parametrize(
    ("change", "reason"), [(torch.zeros_like, "silent"), (lambda x: (100 * x).clamp(-1, 1), "clipped")]
)
def test_sound_made_wrong(ming, monkeypatch, change, reason):
    decoded_as(monkeypatch, ming, change)
    speech = ming.tts("one two three", seed=1)
    assert reason in speech.stats.suspect and f"suspect: {reason}" in str(speech.stats)
    assert speech.stats.as_dict()["suspect"] == speech.stats.suspect


def test_ends_made_wrong(ming, monkeypatch):
    text = "one two three four five six seven eight nine ten " * 3
    monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    assert ming.tts(text, seed=1).stats.suspect == ("too_short",)
    monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor([50.0, -50.0]))
    assert ming.tts("one", seed=1).stats.suspect == ("too_long",)
    assert ming.tts("one", seed=1, max_seconds=2).stats.suspect is None


def test_retries_take_the_next_seed(ming, monkeypatch):
    good, tried = ming.tts("one two", seed=12).samples, []
    original = ming.speech_request

    def request(*args, seed=None, **options):
        tried.append(seed)
        return original(*args, seed=seed, **options)

    monkeypatch.setattr(ming, "speech_request", request)
    # silent until the third attempt
    decoded_as(monkeypatch, ming, lambda x: x if tried[-1] == 12 else torch.zeros_like(x))
    speech = ming.tts("one two", seed=10, retries=5)
    assert tried == [10, 11, 12] and (speech.stats.seed, speech.stats.attempts) == (12, 3)
    assert np.array_equal(speech.samples, good) and "3 attempts" in str(speech.stats)
    tried.clear()
    speech = ming.tts("one two", seed=10, retries=1)
    assert tried == [10, 11] and speech.stats.suspect == ("silent",) and speech.stats.seed == 10

    async def main():
        async with AsyncMingAudio(ming, slots=2) as engine:
            return await engine.tts("one two", seed=10, retries=5)

    tried.clear()
    assert asyncio.run(main()).stats.seed == 12
    for bad in (-1, 1.5, "2"):
        with pytest.raises(InputError, match="retries"):
            ming.tts("one", retries=bad)
