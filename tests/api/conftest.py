"""Fixtures: the bundled checkpoint, and recordings."""

import numpy as np
import pytest

from mingcore import MingAudio


@pytest.fixture(scope="session")
def ming() -> MingAudio:
    return MingAudio.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """0.65 s at 16 kHz: a sine sweep with noise, [10400] float32 within ±0.5."""
    rng = np.random.default_rng(3)
    t = np.arange(10400) / 16000
    glide = np.sin(2 * np.pi * (180 + 120 * t) * t)
    return (0.4 * glide + 0.02 * rng.standard_normal(t.size)).astype(np.float32)
