"""An independent recogniser of digits: PocketSphinx (PyPI `pocketsphinx`)."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from sentences import DIGITS

from mingcore.testing.compare import edit_distance

GRAMMAR = "#JSGF V1.0;\ngrammar digits;\npublic <digits> = ( {} )+;\n"
INSERTION = 1e-3  # word insertion penalty: the default inserts digits into pauses
DITHER = 2e-4  # digital silence upsets its noise estimate


@cache
def _decoder():
    from pocketsphinx import Decoder

    path = Path(tempfile.mkdtemp()) / "digits.jsgf"
    path.write_text(GRAMMAR.format(" | ".join(DIGITS)))
    return Decoder(jsgf=str(path), wip=INSERTION, loglevel="FATAL")


def digits_heard(samples: np.ndarray) -> list[str]:
    """The digits that PocketSphinx recognises in 16 kHz float samples."""
    decoder = _decoder()
    margin = np.zeros(4000, np.float32)
    x = np.concatenate((margin, samples, margin))
    x = x + np.random.default_rng(0).standard_normal(len(x)).astype(np.float32) * DITHER
    decoder.start_utt()
    pcm = (np.clip(x, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return found.hypstr.split() if found else []


def errors(said: list[str], heard: list[str]) -> int:
    """How many words are wrong, missing or too many."""
    return edit_distance(said, heard)
