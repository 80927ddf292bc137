"""Distances between signals for which the result is known."""

import math

import numpy as np
import pytest

from mingcore.errors import InputError
from mingcore.fidelity import FLOOR_DB, log_spectral_distance, power_db, si_snr


def noise(L=16000, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(L)


def test_equal_sounds():
    s = noise()
    assert log_spectral_distance(s, s) == 0 and si_snr(s, s) == math.inf


@pytest.mark.parametrize("factor", [8.0, -1.0, 3.7])
def test_a_scaled_copy(factor):
    """SI-SNR is invariant to a factor and an offset; the spectra differ by exactly the factor."""
    s = noise()
    assert si_snr(s, factor * s) > 280
    assert si_snr(s, factor * s + 0.2) > 250
    expected = abs(20 * math.log10(abs(factor)))
    assert log_spectral_distance(s, factor * s) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("level", [-20.0, 0.0, 13.0, 60.0])
def test_noise_of_a_known_level(level):
    s, n = noise(seed=1), noise(seed=2)
    s, n = s - s.mean(), n - n.mean()
    n -= (n @ s) / (s @ s) * s  # nothing of the signal is in it
    n *= np.linalg.norm(s) / np.linalg.norm(n) * 10 ** (-level / 20)
    assert si_snr(s, s + n) == pytest.approx(level, abs=1e-9)
    assert si_snr(s, 2.5 * (s + n)) == pytest.approx(level, abs=1e-9)


def test_silence():
    s, nothing = noise(), np.zeros(16000)
    assert math.isnan(si_snr(nothing, s)) and si_snr(s, nothing) == -math.inf
    assert log_spectral_distance(nothing, nothing) == 0
    loud = np.full(16000, 1e3) * np.sign(noise())
    assert 100 < log_spectral_distance(loud, nothing) < 100 + 20 * math.log10(1e3)


def test_a_sine_at_full_scale_is_0_db():
    t = np.arange(16000) / 16000
    spectra = power_db(np.sin(2 * np.pi * 1000 * t), 16000)
    middle = spectra[2:-8]
    assert spectra.shape[1] == 257 and np.abs(middle[:, 32]).max() < 1e-6  # 31.25 Hz a bin
    assert (middle.argmax(axis=1) == 32).all() and spectra.min() >= FLOOR_DB
    assert power_db(np.zeros(5), 16000).shape == (1, 257)  # shorter than a window


def test_it_is_the_formula_as_written():
    """Against a loop over frames, without a vectorised transform."""
    s, e = noise(2000, 4), noise(2000, 5)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    distances = []
    for start in range(0, 2000 - 512 + 128, 128):
        both = []
        for x in (s, e):
            frame = np.zeros(512)
            part = x[start : start + 512]
            frame[: part.size] = part
            k = np.arange(257)[:, None]
            spectrum = (frame * window * np.exp(-2j * np.pi * k * np.arange(512) / 512)).sum(1)
            both.append(10 * np.log10(np.maximum(np.abs(spectrum) ** 2 / 128**2 / 4, 1e-10)))
        distances.append(np.sqrt(((both[0] - both[1]) ** 2).mean()))
    assert log_spectral_distance(s, e) == pytest.approx(np.mean(distances), rel=1e-9)


def test_shapes_that_do_not_fit():
    for s, e in ((np.zeros(3), np.zeros(4)), (np.zeros((1, 3)),) * 2, (np.zeros(0),) * 2):
        with pytest.raises(InputError, match="of one length"):
            si_snr(s, e)
        with pytest.raises(InputError, match="of one length"):
            log_spectral_distance(s, e)
