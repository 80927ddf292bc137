"""`roundtrip`: the distances of the reconstruction, and the picture of both spectrograms."""

import json
import sys

import numpy as np
import pytest
import soundfile

from mingcore import MingAudio
from mingcore.fidelity import log_spectral_distance, si_snr

DEVICE = ("--device", "cpu")


def test_figures(mingcore, wav):
    done = mingcore("roundtrip", wav, *DEVICE, "--json", "--out", "x.wav", "--subtype", "float32")
    assert done.status == 0, done.err
    data = json.loads(done.out)
    original, again = (soundfile.read(name, dtype="float32")[0] for name in (wav, "x.wav"))
    ming = MingAudio.from_pretrained("tiny", device="cpu")
    assert np.array_equal(again, ming.decode(ming.encode(wav)).samples[:8000])
    assert data["seconds"] == 0.5 and data["frames"] == 25 and data["sample_rate"] == 16000
    assert data["si_snr_db"] == pytest.approx(si_snr(original, again))
    distance = log_spectral_distance(original, again)
    assert data["log_spectral_distance_db"] == pytest.approx(distance)
    assert data["encode_real_time_factor"] > 0 and data["decode_real_time_factor"] > 0
    shown = mingcore("roundtrip", wav, *DEVICE)
    assert f"{distance:.2f} dB" in shown.out and "SI-SNR" in shown.out
    assert "digits" in shown.err


def test_silence_is_json_all_the_same(mingcore, tmp_path):
    soundfile.write(tmp_path / "0.wav", np.zeros(4001), 16000)
    data = json.loads(mingcore("roundtrip", "0.wav", *DEVICE, "--json").out)
    assert data["si_snr_db"] is None and data["log_spectral_distance_db"] > 0


def test_a_picture(mingcore, wav):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    done = mingcore("roundtrip", wav, *DEVICE, "--plot", "x.png")
    assert done.status == 0, done.err
    picture = imread("x.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and picture.std() > 0.1


def test_refused(mingcore, wav, tmp_path, monkeypatch):
    mingcore("roundtrip", "no.wav").refused("no.wav", "no such file")
    mingcore("roundtrip", wav, "--plot", "x.jpg").refused("x.jpg", ".png")
    mingcore("roundtrip", wav, "--plot", "no/such/x.png").refused("no/such/x.png")
    mingcore("roundtrip", wav, "--out", "-").refused("standard output")
    mingcore("roundtrip", wav, "--out", "x.mp3").refused("x.mp3")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    mingcore("roundtrip", wav, "--plot", "x.png").refused("matplotlib", "mingcore[plot]")
    assert not list(tmp_path.iterdir())
