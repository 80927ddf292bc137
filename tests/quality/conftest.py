"""Fixtures: the bundled voice, the synthesiser it was trained on, and an independent recogniser."""

import random
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "tiny_voice"))

STRINGS, SENTENCES = 50, 50


@pytest.fixture(scope="session")
def ear():
    """The recogniser of digits. Skips where PocketSphinx or flite is missing."""
    pytest.importorskip("pocketsphinx", reason="pip install 'mingcore[quality]'")
    if shutil.which("flite") is None:
        pytest.skip("the synthesiser flite is not installed")
    import judge

    return judge


@pytest.fixture(scope="session")
def ming():
    from mingcore import MingAudio

    return MingAudio.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def learned() -> set[str]:
    """Every text of the training corpus."""
    import corpus

    return {u.text for u in corpus.plan(corpus.COUNT)}


@pytest.fixture(scope="session")
def held_out(learned) -> list[tuple[str, str]]:
    """Strings of three to six digits that were not learned, and the voice for each."""
    import corpus
    import sentences

    rng, out = random.Random(20_000), []
    while len(out) < STRINGS:
        text = sentences.digits(rng, 3, 6)
        if text not in learned:
            out.append((text, corpus.VOICES[len(out) % len(corpus.VOICES)]))
    return out
