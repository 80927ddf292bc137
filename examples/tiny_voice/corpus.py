"""A training corpus, synthesised by flite (Debian package `flite`).

    python examples/tiny_voice/corpus.py FOLDER [--count N]

Writes FOLDER/samples.i16 (16 kHz, 16 bits, the utterances one after the other) and
FOLDER/index.json (text, voice, stretch, first sample, length and phones of each). The same bytes
each time for one version of flite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from sentences import text as random_text

RATE = 16000
VOICES = ("slt", "rms", "awb")
STRETCHES = (0.85, 1.0, 1.2)  # of the duration: below 1 is faster
COUNT = 36000
LOUDNESS = 0.1  # root mean square of every utterance
MARGIN = RATE * 6 // 100  # silence kept before and after
PHONES = (
    "aa",
    "ae",
    "ah",
    "ao",
    "aw",
    "ax",
    "ay",
    "b",
    "ch",
    "d",
    "dh",
    "eh",
    "er",
    "ey",
    "f",
    "g",
    "hh",
    "ih",
    "iy",
    "k",
    "l",
    "m",
    "n",
    "ng",
    "ow",
    "oy",
    "p",
    "pau",
    "r",
    "s",
    "sh",
    "t",
    "th",
    "uh",
    "uw",
    "v",
    "w",
    "y",
    "z",
    "zh",
)
SILENCE = "pau"
HELD_OUT = 64  # utterances at the end, which are not learned


# a phone, the sample at which it ends, and how many words are over before it
Phone = tuple[str, int, int]


@dataclass
class Utterance:
    """One line of the index."""

    text: str
    voice: str
    stretch: float
    start: int = 0
    length: int = 0
    phones: tuple[Phone, ...] = ()


def synthesise(text: str, voice: str, stretch: float) -> np.ndarray:
    """Speech by flite, float32 at 16 kHz, silence cut to a short margin, at one loudness."""
    return spoken(text, voice, stretch)[0]


def spoken(text: str, voice: str, stretch: float) -> tuple[np.ndarray, list[Phone]]:
    """`synthesise`, and its phones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur"]
        done = subprocess.run([*command, "-t", text, "-o", str(path)], check=True, capture_output=True, text=True)
        with wave.open(str(path)) as file:
            if file.getframerate() != RATE:
                raise ValueError(f"flite's voice {voice} speaks at {file.getframerate()} Hz")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    first = max(0, int(loud[0]) - MARGIN)
    samples = samples[first : loud[-1] + MARGIN]
    gain = LOUDNESS / np.sqrt(np.mean(samples**2))
    parts = [part.split(":") for part in done.stdout.split()]
    names, ends = zip(*parts)
    ends = (round(float(end) * RATE) - first for end in ends)
    phones = list(zip(names, ends, words_before(text, names)))
    return samples * min(gain, 0.95 / np.abs(samples).max()), phones


@cache
def count_phones(word: str) -> int:
    """Of a word by itself."""
    command = ["flite", "-ps", "-t", word, "-o", "/dev/null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return sum(name != SILENCE for name in done.stdout.split())


def words_before(text: str, names: Sequence[str]) -> list[int]:
    """How many words are over before each phone; before a silence, the words up to it."""
    counts = [count_phones(word) for word in text.split()]
    over = [word for word, count in enumerate(counts) for _ in range(count)] + [len(counts)]
    said = list(itertools.accumulate((name != SILENCE for name in names), initial=0))
    if said[-1] != sum(counts):
        raise ValueError(f"{text!r} has {sum(counts)} phones word by word, and {said[-1]} in one")
    return [over[n] for n in said[:-1]]


def plan(count: int, seed: int = 0) -> list[Utterance]:
    """The texts, voices and speeds of the utterances, before synthesis."""
    rng = random.Random(seed)
    return [Utterance(random_text(rng), rng.choice(VOICES), rng.choice(STRETCHES)) for _ in range(count)]


def make(folder: Path, count: int) -> None:
    """Write `count` utterances to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    index, start = plan(count), 0
    with ThreadPoolExecutor(4) as pool, (folder / "samples.i16").open("wb") as file:
        made = pool.map(lambda u: spoken(u.text, u.voice, u.stretch), index)
        for u, (samples, phones) in zip(index, made):
            u.start, u.length, u.phones = start, len(samples), phones
            start += u.length
            file.write(np.round(samples * 32767).astype("<i2").tobytes())
    (folder / "index.json").write_text(json.dumps([asdict(u) for u in index]))
    print(f"{count} utterances, {start / RATE / 3600:.1f} hours")


class Corpus:
    """The utterances of a folder, memory-mapped."""

    def __init__(self, folder: Path):
        self.samples = np.memmap(folder / "samples.i16", dtype="<i2", mode="r")
        self.index = [Utterance(**u) for u in json.loads((folder / "index.json").read_text())]

    def split(self) -> tuple[range, range]:
        """Utterances to learn and utterances that are held out."""
        count = len(self.index)
        return range(count - HELD_OUT), range(count - HELD_OUT, count)

    def speech(self, i: int) -> np.ndarray:
        """Utterance i, float32."""
        u = self.index[i]
        return self.samples[u.start : u.start + u.length].astype(np.float32) / 32767


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="speech for the tiny voice, by flite")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    args = parser.parse_args()
    make(args.folder, args.count)
