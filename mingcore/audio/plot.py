"""A picture of the spectrograms of audio and its reconstruction. Needs matplotlib."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from ..errors import InputError
from ..fidelity import FLOOR_DB, RoundTrip, power_db

COLUMNS = 2000  # of a picture, at most; of longer audio neighbouring spectra are merged by their maximum


def require_matplotlib() -> None:
    """Raises InputError, naming the extra, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("plot: needs matplotlib; pip install 'mingcore[plot]'") from None


def spectrograms(trip: RoundTrip) -> bytes:
    """A PNG: the original above, the reconstruction below, on one colour scale."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    sounds = {"original": trip.original, "reconstruction": trip.reconstruction}
    spectra = [_drawn(power_db(samples, trip.sample_rate)) for samples in sounds.values()]
    loudest = max(float(s.max()) for s in spectra)
    extent = (0.0, trip.seconds, 0.0, trip.sample_rate / 2000)
    for axis, name, spectrum in zip(axes, sounds, spectra, strict=True):
        image = axis.imshow(
            spectrum.T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=extent,
            vmin=max(loudest + FLOOR_DB, FLOOR_DB),
            vmax=max(loudest, FLOOR_DB + 1),
            interpolation="nearest",
        )
        axis.set_title(name, loc="left")
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="dB; a sine at full scale is 0")
    figure.suptitle(f"log-spectral distance {trip.log_spectral_distance:.1f} dB, SI-SNR {trip.si_snr:.1f} dB")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _drawn(spectra: np.ndarray) -> np.ndarray:
    step = -(-len(spectra) // COLUMNS)
    return np.maximum.reduceat(spectra, np.arange(0, len(spectra), step), axis=0)
