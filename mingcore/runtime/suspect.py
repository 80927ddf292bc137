"""Whether speech went wrong, by its sound alone: what users of speech models meet and a caller can try again."""

from __future__ import annotations

import numpy as np

REASONS = ("silent", "too_short", "too_long", "clipped")
SILENT_RMS = 1e-3  # -60 dB of full scale
CLIPPED_SHARE, FULL_SCALE = 1e-3, 0.999
SHORT_SHARE, SHORT_FROM_SECONDS = 0.3, 2.0


class SpeechJudge:
    """Hears a request patch by patch, and names what is wrong with it.

    silent: a segment's root mean square is below -60 dB of full scale. too_short: a segment lasts less than 0.3 of what
    its text should take (from 2 s on). too_long: a segment never ended by itself, where nobody asked for a limit.
    clipped: more than a thousandth of all samples are at full scale.
    """

    def __init__(self, sample_rate: int):
        self._rate = sample_rate
        self._found: set[str] = set()
        self._samples = self._all = self._clipped = 0
        self._energy = 0.0

    def hear(self, samples: np.ndarray) -> None:
        """The next samples [n] of the segment, pauses left out."""
        self._samples += samples.size
        self._all += samples.size
        self._energy += float(np.square(samples, dtype=np.float64).sum())
        self._clipped += int((np.abs(samples) >= FULL_SCALE).sum())

    def end_segment(self, expected_seconds: float, *, stopped: bool, limited: bool) -> None:
        """The segment is over. stopped: by the model. limited: the caller gave a maximum, so a cut is meant."""
        seconds = self._samples / self._rate
        if self._samples and self._energy / self._samples < SILENT_RMS**2:
            self._found.add("silent")
        if stopped and expected_seconds >= SHORT_FROM_SECONDS and seconds < SHORT_SHARE * expected_seconds:
            self._found.add("too_short")
        if not stopped and not limited:
            self._found.add("too_long")
        self._samples, self._energy = 0, 0.0

    def reasons(self) -> tuple[str, ...] | None:
        """What is wrong so far, in the order of `REASONS`; None where nothing is."""
        found = set(self._found)
        if self._all and self._clipped > CLIPPED_SHARE * self._all:
            found.add("clipped")
        return tuple(reason for reason in REASONS if reason in found) or None
