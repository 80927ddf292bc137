"""Distances between audio and its reconstruction, in dB, computed in float64.

log_spectral_distance: Gray and Markel, "Distance measures for speech processing", IEEE Trans. ASSP
24(5), 1976, on short-time spectra, averaged over time. si_snr: Luo and Mesgarani, "TasNet", ICASSP
2018; with Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, who call it SI-SDR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError

WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.008
FLOOR_DB = -100.0  # relative to a sine at full scale; quieter bands count as this loud


@dataclass(frozen=True)
class RoundTrip:
    """Audio [L] float32, its reconstruction [L], and the seconds that encoding and decoding took."""

    original: np.ndarray
    reconstruction: np.ndarray
    sample_rate: int
    frames: int
    encode_seconds: float
    decode_seconds: float

    @property
    def seconds(self) -> float:
        return self.original.size / self.sample_rate

    @property
    def log_spectral_distance(self) -> float:
        """`log_spectral_distance` in dB; 0 is equal."""
        return log_spectral_distance(self.original, self.reconstruction, self.sample_rate)

    @property
    def si_snr(self) -> float:
        """`si_snr` in dB; inf is equal up to a factor."""
        return si_snr(self.original, self.reconstruction)

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON: infinite and undefined ones are None."""
        figures = {
            "seconds": self.seconds,
            "sample_rate": self.sample_rate,
            "frames": self.frames,
            "log_spectral_distance_db": self.log_spectral_distance,
            "si_snr_db": self.si_snr,
            "encode_real_time_factor": self.encode_seconds / self.seconds,
            "decode_real_time_factor": self.decode_seconds / self.seconds,
        }
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def si_snr(reference: Any, estimate: Any) -> float:
    """The scale-invariant signal-to-noise ratio of two signals [L], in dB.

    10 log10(|a s|^2 / |e - a s|^2) with a = <e, s> / |s|^2, after both means are subtracted. inf: e is s up to a
    factor; -inf: e is orthogonal to s; nan: s is silent. It depends on phase: a codec that reconstructs the spectrum
    but not the phase has a low one. Raises InputError for other shapes.
    """
    s, e = _pair(reference, estimate)
    s, e = s - s.mean(), e - e.mean()
    power = s @ s
    if power == 0:
        return math.nan
    target = (e @ s / power) * s
    noise = e - target
    signal, rest = float(target @ target), float(noise @ noise)
    if signal == 0:
        return -math.inf
    return math.inf if rest == 0 else 10 * math.log10(signal / rest)


def log_spectral_distance(reference: Any, estimate: Any, sample_rate: int = 16000) -> float:
    """The log-spectral distance of two signals [L], in dB.

    The mean over time of sqrt(mean over frequency of (P - Q)^2), P and Q the spectra of `power_db`
    in dB. 0: equal; 6: every band differs by a factor of two in amplitude. Phase is ignored.
    Raises InputError for other shapes.
    """
    s, e = _pair(reference, estimate)
    difference = power_db(s, sample_rate) - power_db(e, sample_rate)
    return float(np.sqrt((difference**2).mean(axis=1)).mean())


def power_db(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Short-time power spectra [T, F] of samples [L], in dB; a sine at full scale is 0.

    Hann windows of 32 ms every 8 ms, the end padded with zeros; nothing is below -100 dB.
    """
    size, hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    window = np.hanning(size + 1)[:-1]
    count = max(-(-(samples.size - size) // hop), 0) + 1
    padded = np.zeros((count - 1) * hop + size)
    padded[: samples.size] = samples
    floor = 10 ** (FLOOR_DB / 10)
    spectra = np.empty((count, size // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    for i in range(0, count, 4096):
        power = np.abs(np.fft.rfft(frames[i : i + 4096] * window)) ** 2
        spectra[i : i + 4096] = 10 * np.log10(np.maximum(power / (window.sum() / 2) ** 2, floor))
    return spectra


def _pair(reference: Any, estimate: Any) -> tuple[np.ndarray, np.ndarray]:
    s, e = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    if s.ndim != 1 or s.size == 0 or s.shape != e.shape:
        raise InputError(f"estimate: both sounds must be [L], of one length, got {list(s.shape)} and {list(e.shape)}")
    return s, e
