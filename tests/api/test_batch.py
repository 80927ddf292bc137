"""Batches of requests in one call: each result equals that of the request alone."""

import numpy as np
import pytest

from mingcore import InputError
from mingcore.api.batch import together

QUICK = {"steps": 2, "max_seconds": 0.4}


def test_each_as_if_it_were_alone(ming, sound):
    voice = ming.voice((sound, 16000), transcript="hum")
    requests = [
        "Hello.",
        {"text": "Something longer.", "voice": voice, "seed": 7, "max_seconds": 0.7},
        {"text": "Hello.", "seed": 8, "steps": 3, "guidance": 0},
    ]
    speeches = ming.tts_batch(requests, slots=2, seed=1, **QUICK)
    assert [s.stats.seed for s in speeches] == [1, 7, 8]
    alone = [ming.tts(**{"seed": 1, **QUICK, **(r if isinstance(r, dict) else {"text": r})}) for r in requests]
    for together_, one in zip(speeches, alone):
        assert np.array_equal(together_.samples, one.samples)
        assert together_.stats.patches == one.stats.patches
        assert together_.stats.ended_by == one.stats.ended_by
        assert 0 < together_.stats.time_to_first_audio <= together_.stats.compute_seconds
    assert ming.tts_batch([]) == []


def test_chunks_come_while_they_are_made(ming):
    seen = [(i, None if c is None else c.samples.size) for i, c in together(ming, ["One.", "Two."], seed=1, **QUICK)]
    assert seen[:4] == [(0, 1120), (0, 1600), (1, 1120), (0, 1600)]
    assert [i for i, size in seen if size is None] == [0, 1]
    assert sum(size for i, size in seen if i == 1 and size) == 6400


def test_errors_where_they_are_wanted(ming):
    def fails(seconds):
        raise OSError("no disk")

    requests = [
        "One.",
        {"text": "Two.", "voice": "gone.safetensors"},
        {"text": ""},
        {"text": "Four.", "progress": fails},
    ]
    with pytest.raises(InputError, match=r"requests\[1\]: voice 'gone.safetensors': no such file"):
        ming.tts_batch(requests, **QUICK)
    with pytest.raises(OSError, match="no disk"):
        ming.tts_batch([requests[0], requests[3]], **QUICK)
    one, two, three, four = ming.tts_batch(requests, seed=1, errors="return", **QUICK)
    assert np.array_equal(one.samples, ming.tts("One.", seed=1, **QUICK).samples)
    assert isinstance(two, InputError) and isinstance(three, InputError)
    assert isinstance(four, OSError)


@pytest.mark.parametrize(
    ("requests", "options", "message"),
    [
        ("a text", {}, r"requests: must be a list, each text .* got 'a text'"),
        ([3], {}, r"requests\[0\]: must be text or a mapping with it, got 3"),
        ([{"voice": None}], {}, r"requests\[0\]: must be text"),
        (["a"], {"slots": 0}, "slots: must be a whole number from 1 to 1024, got 0"),
        (["a"], {"errors": "ignore"}, "errors: must be raise or return, got 'ignore'"),
        (["a"], {"steps": 0}, r"requests\[0\]: steps: must be"),
    ],
)
def test_bad_input(ming, requests, options, message):
    with pytest.raises(InputError, match=message):
        ming.tts_batch(requests, **options)


def test_recordings_at_once(ming, sound):
    audio = (sound, 16000)
    requests = [audio, {"audio": audio, "max_new_tokens": 2}, {"audio": audio, "language": "en"}]
    found = ming.transcribe_batch(requests, slots=2, max_new_tokens=4, temperature=2.0, seed=3)
    for request, got in zip(requests, found):
        request = request if isinstance(request, dict) else {"audio": request}
        wanted = ming.transcribe(**{"max_new_tokens": 4, "temperature": 2.0, "seed": 3} | request)
        assert (got.text, got.language) == (wanted.text, wanted.language)
        assert got.stats.text_tokens == wanted.stats.text_tokens
        assert got.stats.peak_memory_bytes > 0 and got.stats.ended_by == wanted.stats.ended_by


def test_edits_at_once(ming, sound):
    audio, quick = (sound, 16000), {"max_new_tokens": 2, "seed": 4} | QUICK
    requests = [{"audio": audio, "instruction": "louder"}, audio, {"audio": audio, "seed": 5}]
    found = ming.edit_batch(requests, instruction="slower", **quick)
    for request, got in zip(requests, found):
        request = request if isinstance(request, dict) else {"audio": request}
        wanted = ming.edit(**{"instruction": "slower"} | quick | request)
        assert got.text == wanted.text and np.array_equal(got.samples, wanted.samples)


def test_bad_input_of_recordings(ming, sound):
    for call, message in (
        (lambda: ming.transcribe_batch(b"RIFF"), "requests: must be a list, each audio"),
        (lambda: ming.transcribe_batch([{"text": "a"}]), r"requests\[0\]: must be audio or a"),
        (lambda: ming.transcribe_batch(["gone.wav"]), r"requests\[0\]: audio 'gone.wav': no such"),
        (lambda: list(together(ming, [], task="sing")), "task: must be one of tts, transcribe"),
    ):
        with pytest.raises(InputError, match=message):
            call()
