"""The bundled voice says its text, by its own recognition of it.

tests/quality uses an independent recogniser; this test is quick and needs only the package.
"""

import pytest

from mingcore.testing.compare import edit_distance

SAID = (
    ("seven two zero", "slt"),
    ("three six one nine", "rms"),
    ("five zero eight", "awb"),
    ("Hello, this is Ming speaking from a plain CPU.", "slt"),
    ("The weather is good today.", "rms"),
)


def words(text: str) -> list[str]:
    return text.lower().replace(",", "").replace(".", "").split()


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}, {"weights": "int8_dyn"}], ids=str)
def test_it_hears_what_it_says(options):
    from mingcore import MingAudio

    ming = MingAudio.from_pretrained("tiny", device="cpu", **options)
    errors = 0
    for seed, (text, voice) in enumerate(SAID):
        speech = ming.tts(text, voice, seed=seed, min_seconds=0.3, max_seconds=6)
        assert speech.stats.ended_by == "stop"
        heard = ming.transcribe((speech.samples, speech.sample_rate))
        errors += edit_distance(words(text), words(heard.text))
    assert errors <= 5, errors  # of 24 words


def test_results_compare_and_print_short():
    import numpy as np

    from mingcore import Speech, Voice

    x = np.linspace(-1, 1, 16000, dtype=np.float32)
    assert Speech(x, 16000) == Speech(x.copy(), 16000) != Speech(x, 8000)
    assert Speech(x, 16000) != Speech(x[:-1], 16000) and Speech(x, 16000) != "x"
    assert repr(Speech(x, 16000, text="hi")) == "Speech(1.00 s at 16000 Hz, text='hi')"
    latents = np.zeros((5, 64), np.float32)
    voice = Voice(latents, "one")
    assert voice == Voice(latents.copy(), "one") != Voice(latents, "two") and len({voice, Voice(latents, "one")}) == 1
    assert repr(voice) == "Voice(5 frames, transcript='one')"


def test_the_default_dtype_does_not_matter():
    """`torch.set_default_dtype` of a caller changes neither loading nor any result."""
    import numpy as np
    import torch

    from mingcore import MingAudio

    def results():
        ming = MingAudio.from_pretrained("tiny", device="cpu")
        speech = ming.tts("one two", max_seconds=0.4, seed=1)
        edited = ming.edit(speech, "insert 'a'", max_seconds=0.2, max_new_tokens=4, seed=2)
        latents = ming.encode(speech, sample=True, seed=3)
        heard = ming.transcribe(speech, max_new_tokens=4, temperature=0.7, seed=4)
        return [speech.samples, edited.samples, latents, ming.decode(latents).samples], heard.text

    arrays, text = results()
    torch.set_default_dtype(torch.float64)
    try:
        others, other = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert text == other
    for a, b in zip(arrays, others, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
