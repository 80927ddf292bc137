"""The bundled voice is intelligible, stops, is recognised by itself, and tolerates the engine's approximations."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OPTIONS = {"min_seconds": 0.3, "max_seconds": 8}
MARGIN = 10.0  # percentage points of word error rate above that of the synthesiser itself
TAKES = 3  # of every string, where two settings are compared: one take's chance is worth 3 points


def error_rate(ear, held_out, samples_of) -> float:
    """Word error rate in percent."""
    words = wrong = 0
    for i, (text, voice) in enumerate(held_out):
        said = text.split()
        words += len(said)
        wrong += ear.errors(said, ear.digits_heard(samples_of(i, text, voice)))
    return 100 * wrong / words


def spoken(ming, **options):
    return lambda i, text, voice: ming.tts(text, voice, seed=i, **OPTIONS, **options).samples


@pytest.fixture(scope="module")
def floor(ear, held_out) -> float:
    """The recogniser's error rate on the synthesiser."""
    from corpus import synthesise

    return error_rate(ear, held_out, lambda i, text, voice: synthesise(text, voice, 1.0))


@pytest.fixture(scope="module")
def takes(held_out) -> list[tuple[str, str]]:
    return held_out * TAKES


@pytest.fixture(scope="module")
def usual(ear, takes, ming) -> float:
    """The recogniser's error rate on the voice with default options."""
    return error_rate(ear, takes, spoken(ming))


def test_the_ear_hears(ear, held_out, floor):
    assert floor < 15
    noise = np.random.default_rng(0).standard_normal(24000).astype(np.float32) * 0.1
    assert error_rate(ear, held_out[:10], lambda *_: noise) > 60


def test_digits_are_understood(ear, held_out, ming, floor):
    voice = error_rate(ear, held_out, spoken(ming))
    print(f"word error rate: synthesiser {floor:.1f} %, voice {voice:.1f} %")
    assert voice <= floor + MARGIN


@pytest.mark.parametrize(
    "options",
    [{"steps": 5}, {"steps": 7}, {"guidance": 1.0}, {"guidance": 3.0}, {"temperature": 0.0}, {"noise": "per_request"}],
    ids=str,
)
def test_the_samplers_settings_keep_it(ear, takes, ming, usual, options):
    assert error_rate(ear, takes, spoken(ming, **options)) <= usual + 3


@pytest.mark.parametrize(
    "options", [{"dtype": "bf16"}, {"dtype": "fp16"}, {"weights": "int8"}, {"weights": "int8_dyn"}], ids=str
)
def test_other_weights_keep_it(ear, takes, usual, options):
    from mingcore import MingAudio

    other = MingAudio.from_pretrained("tiny", device="cpu", **options)
    assert error_rate(ear, takes, spoken(other)) <= usual + 3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_backend_keeps_it(ear, takes, ming, usual, backend):
    from mingcore import ops

    with ops.use_backend(backend):
        assert error_rate(ear, takes, spoken(ming)) <= usual + 3


def test_it_stops_by_itself(ming, learned):
    """As long as the synthesiser takes, give or take 30 %, for 48 of 50 sentences."""
    import random

    from corpus import RATE, VOICES, synthesise
    from sentences import sentence

    rng, right, ratios = random.Random(30_000), 0, []
    for i in range(50):
        text, voice = sentence(rng), VOICES[i % len(VOICES)]
        wanted = len(synthesise(text, voice, 1.0)) / RATE
        speech = ming.tts(text, voice, seed=i, min_seconds=0.3, max_seconds=4 * wanted)
        ratios.append(len(speech.samples) / RATE / wanted)
        right += 0.7 <= ratios[-1] <= 1.3
    assert right >= 48, sorted(ratios)


def test_it_writes_down_what_it_said(ear, ming, held_out):
    """Recognition by the same model of its own speech: fewer than a fifth of the words wrong."""
    wrong = words = 0
    for i, (text, voice) in enumerate(held_out[:20]):
        heard = ming.transcribe((ming.tts(text, voice, seed=i, **OPTIONS).samples, 16000)).text
        said = text.split()
        words, wrong = words + len(said), wrong + ear.errors(said, heard.split())
    assert wrong / words < 0.2


SPEED = """
import json, resource, time
from mingcore import MingAudio
ming = MingAudio.from_pretrained("tiny", device="cpu")
ming.tts("one two", seed=0, max_seconds=2)
begin, first, samples = time.perf_counter(), None, 0
for chunk in ming.tts_stream("My friend likes the small dog in the garden.", seed=0, max_seconds=6):
    first = first or time.perf_counter() - begin
    samples += len(chunk.samples)
spent = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"first": first, "factor": spent / (samples / 16000), "peak": peak}))
"""


def test_it_is_faster_than_real_time_and_small():
    done = subprocess.run([sys.executable, "-c", SPEED], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["first"] < 0.5 and said["factor"] < 1 and said["peak"] < 600, said


def test_its_codec_keeps_the_sound(ear, ming, held_out, floor):
    """Round trip: log-spectral distance, and the recogniser's error rate."""
    from corpus import RATE, synthesise

    def again(i, text, voice):
        return ming.decode(ming.encode((synthesise(text, voice, 1.0), RATE))).samples

    assert error_rate(ear, held_out, again) <= floor + 5
    distances = []
    for text, voice in held_out[:10]:
        x = synthesise(text, voice, 1.0)
        y = ming.decode(ming.encode((x, RATE))).samples
        distances.append(log_spectral_distance(x, y[: len(x)]))
    assert np.mean(distances) < 8, distances


def log_spectral_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over frames of the root mean square difference of 40 mel bands, in dB."""
    import torch
    from codec import mel_filters

    filters, window = mel_filters(257, 40), torch.hann_window(512)

    def bands(s: np.ndarray) -> torch.Tensor:
        z = torch.stft(torch.from_numpy(s.copy()), 512, 160, window=window, return_complex=True)
        return 20 * torch.log10((filters @ z.abs()).clamp_min(1e-2))

    n = min(len(x), len(y))
    return float((bands(x[:n]) - bands(y[:n])).square().mean(0).sqrt().mean())


def mel_cepstral_distance(x: np.ndarray, y: np.ndarray) -> float:
    """10 sqrt(2) / ln 10 times the mean distance of 12 mel cepstra on the best time alignment."""
    import torch
    from codec import mel_filters

    filters, window = mel_filters(257, 40), torch.hann_window(512)
    order = torch.arange(1, 13)[:, None] * (torch.arange(40)[None] + 0.5)
    cosine = torch.cos(math.pi / 40 * order) * math.sqrt(2 / 40)

    def cepstra(s: np.ndarray) -> np.ndarray:
        z = torch.stft(torch.from_numpy(s.copy()), 512, 160, window=window, return_complex=True)
        return (cosine @ (filters @ z.abs()).clamp_min(1e-2).log()).T.numpy()

    a, b = cepstra(x), cepstra(y)
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    steps = np.zeros_like(total)
    total[0, 0] = 0
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            before = min((total[i - 1, j - 1], i - 1, j - 1), (total[i - 1, j], i - 1, j), (total[i, j - 1], i, j - 1))
            total[i, j] = before[0] + cost[i - 1, j - 1]
            steps[i, j] = steps[before[1], before[2]] + 1
    return 10 * math.sqrt(2) / math.log(10) * total[-1, -1] / steps[-1, -1]


def test_it_sounds_like_the_synthesiser(ear, ming, held_out):
    """Nearer to the same words by the same voice than other words are."""
    from corpus import synthesise

    same, other = [], []
    for i, (text, voice) in enumerate(held_out[:9]):
        y = ming.tts(text, voice, seed=i, **OPTIONS).samples
        same.append(mel_cepstral_distance(synthesise(text, voice, 1.0), y))
        elsewhere = held_out[(i + 3) % len(held_out)][0]
        other.append(mel_cepstral_distance(synthesise(elsewhere, voice, 1.0), y))
    assert np.mean(same) < 0.8 * np.mean(other), (same, other)
