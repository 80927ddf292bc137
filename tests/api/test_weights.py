"""Every weight format through the tasks, on the backends that support it."""

import json

import numpy as np
import pytest

from mingcore import BackendError, MingAudio, cli, ops
from mingcore.model.formats import WEIGHTS


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_speech_and_recognition(sound, weights, backend):
    with ops.use_backend(backend):
        if (weights, backend) == ("fp8", "cpu"):
            with pytest.raises(BackendError, match="the cpu backend does not pack fp8 weights"):
                MingAudio.from_pretrained("tiny", device="cpu", weights=weights)
            return
        ming = MingAudio.from_pretrained("tiny", device="cpu", weights=weights)
        assert ming.model.weights == weights
        speech = ming.tts("Hi.", seed=1, max_seconds=0.3, steps=1)
        assert speech.samples.shape == (4800,) and np.isfinite(speech.samples).all()
        again = ming.tts("Hi.", seed=1, max_seconds=0.3, steps=1)
        assert np.array_equal(speech.samples, again.samples)
        heard = ming.transcribe((sound, 16000), max_new_tokens=3)
        assert heard.stats.text_tokens == 3


def test_kernels_and_formulas_give_the_same(sound):
    for weights in ("int8", "int8_dyn"):
        latents = []
        for backend in ("cpu", "reference"):
            with ops.use_backend(backend):
                ming = MingAudio.from_pretrained("tiny", device="cpu", weights=weights)
                latents.append(ming.encode((sound, 16000)))
        a, b = latents
        assert np.abs(a - b).max() < 2e-2 * np.abs(b).max(), weights


def test_the_commands(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    options = ["--weights", "int8_dyn", "--device", "cpu", "--json"]
    assert cli.run(["tts", "Hi.", "--max-seconds", "0.4", "--out", "a.wav", *options]) == 0
    assert json.loads(capfd.readouterr().out)["seconds"] == 0.4
    assert cli.run(["asr", "a.wav", "--max-tokens", "2", *options]) == 0
    assert json.loads(capfd.readouterr().out)["stats"]["text_tokens"] == 2
    assert cli.run(["encode", "a.wav", *options]) == 0
    assert cli.run(["decode", "latents.safetensors", *options]) == 0
    capfd.readouterr()
    assert cli.run(["tts", "Hi.", "--weights", "int3"]) == 2
    assert "weights: must be one of fp32" in capfd.readouterr().err
    assert cli.run(["tts", "Hi.", "--weights", "int8", "--context-format", "fp8"]) == 2
    assert "context_format: must be None or 'int8'" in capfd.readouterr().err
