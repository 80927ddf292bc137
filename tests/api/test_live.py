"""Sound encoded and decoded as it comes."""

import random

import numpy as np
import pytest
import torch

from mingcore.audio import resample
from mingcore.errors import InputError

LIMIT = 1e-5


def sound(L, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, L).astype(np.float32)


@pytest.fixture(scope="module")
def take():
    return sound(9123)


@pytest.mark.parametrize("seed", range(4))
def test_encode_stream_is_encode(ming, take, seed):
    pick, chunks, rest = random.Random(seed), [], take
    while rest.size:
        size = pick.choice((0, 1, 160, 1600, 5000))
        chunks.append(rest[:size] if pick.random() < 0.5 else torch.from_numpy(rest[:size]))
        rest = rest[size:]
    pieces = list(ming.encode_stream(chunks))
    assert all(p.dtype == np.float32 and p.shape[0] >= 1 and p.shape[1] == 64 for p in pieces)
    expected = ming.encode((take, 16000))
    assert np.abs(np.concatenate(pieces) - expected).max() <= LIMIT * np.abs(expected).max()


def test_latents_come_before_the_next_chunk_is_asked_for(ming, take):
    asked = []

    def microphone():
        for i in range(4):
            asked.append(i)
            yield take[i * 1600 : (i + 1) * 1600]

    stream = ming.encode_stream(microphone())
    for i in range(4):
        assert next(stream).shape == (5, 64) and asked == list(range(i + 1))
    assert list(stream) == []


def test_another_rate_is_resampled_as_it_comes(ming, take):
    chunks = np.array_split(take, 13)
    got = np.concatenate(list(ming.encode_stream(chunks, 24000)))
    expected = ming.encode((resample(take, 24000, 16000), 16000))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_draw_of_the_posterior(ming, take):
    chunks = np.array_split(take, 5)
    one, two, other = (
        np.concatenate(list(ming.encode_stream(chunks, sample=True, seed=s))) for s in (1, 1, 2)
    )
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert not np.array_equal(one, ming.encode((take, 16000)))


@pytest.mark.parametrize(
    "chunks, words",
    [
        ([], "held no samples"),
        ([np.zeros(0, "f4")], "held no samples"),
        ([np.zeros((2, 9), "f4")], r"chunk 0 must be float \[l\]"),
        ([np.zeros(9, "f4"), np.zeros(9, "i2")], "chunk 1 must be float"),
        ([np.full(9, np.nan, "f4")], "chunk 0 holds NaN"),
    ],
)
def test_chunks_that_are_none(ming, chunks, words):
    with pytest.raises(InputError, match=words):
        list(ming.encode_stream(chunks))
    with pytest.raises(InputError, match="sample_rate"):
        ming.encode_stream([], 12)


def test_sound_comes_before_the_next_latents_are_asked_for(ming, take):
    latents, asked = ming.encode((take, 16000)), []

    def microphone():
        for i in range(5):
            asked.append(i)
            yield latents[i * 5 : i * 5 + 5]

    stream = ming.decode_stream(microphone())
    for i in range(5):
        assert next(stream).samples.size == (1120 if i == 0 else 1600) and len(asked) == i + 1
    assert [piece.samples.size for piece in stream] == [480]
