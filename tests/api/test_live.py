"""Audio encoded and decoded while it arrives."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from mingcore.audio.files import resample
from mingcore.audio.streams import DeferredEnd, ReadAhead, regrouped
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


def test_integers_are_samples_by_their_full_scale(ming, take):
    values = (take * 32767).astype("i2")
    chunks = [values[:4000], torch.from_numpy(values[4000:])]
    expected = np.concatenate(list(ming.encode_stream([values / np.float32(32768)])))
    assert np.abs(np.concatenate(list(ming.encode_stream(chunks))) - expected).max() < 1e-5


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
    one, two, other = (np.concatenate(list(ming.encode_stream(chunks, sample=True, seed=s))) for s in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert not np.array_equal(one, ming.encode((take, 16000)))


@pytest.mark.parametrize(
    "chunks, words",
    [
        ([], "held no samples"),
        ([np.zeros(0, "f4")], "held no samples"),
        ([np.zeros((2, 9), "f4")], r"chunk 0 must be samples \[l\], got \[2, 9\]"),
        ([np.zeros(9, "f4"), np.zeros(9, "c8")], "chunk 1: samples must be float"),
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


@pytest.mark.parametrize("seed", range(5))
def test_regrouped_in_steps(seed):
    pick = random.Random(seed)
    sizes = [pick.choice((0, 1, 3, 5, 40)) for _ in range(30)]
    rows = np.arange(sum(sizes) * 2).reshape(-1, 2)
    chunks = np.split(rows, np.cumsum(sizes)[:-1])
    taken = 0

    def counted():
        nonlocal taken
        for chunk in chunks:
            taken += len(chunk)
            yield chunk

    pieces, given = [], 0
    for piece in regrouped(counted(), 5, 20):
        pieces.append(piece)
        given += len(piece)
        assert 1 <= len(piece) <= 20 and (len(piece) % 5 == 0 or given == len(rows))
    assert np.array_equal(np.concatenate(pieces), rows) and given == taken
    assert list(regrouped([], 5, 20)) == []


def test_read_ahead_holds_what_it_may_and_loses_nothing():
    data = random.Random(0).randbytes(300_000)
    read, write = os.pipe()
    ahead = ReadAhead(read, max_bytes=100_000)
    sent = 0
    os.set_blocking(write, False)
    while sent < len(data):  # nothing is consumed: the writer must block in the end
        try:
            sent += os.write(write, data[sent : sent + 4096])
        except BlockingIOError:
            if sent > 100_000:
                break
    assert sent < 100_000 + (1 << 15) + (1 << 17)  # in the buffer, in the chunk being read, in the pipe
    assert ahead.peek(4) == data[:4] and ahead.peek(2) == data[:2]
    got = bytearray()
    os.set_blocking(write, True)
    while sent < len(data):
        got += ahead.read1(5000)
        sent += os.write(write, data[sent : sent + 4096])
    os.close(write)
    got += ahead.read()
    assert bytes(got) == data and ahead.read1(9) == b"" and ahead.peek(4) == b""
    os.close(read)


def test_ctrl_c_ends_the_chunks_and_a_second_one_all():
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def source(at):
        for i in range(9):
            if i == at:
                interrupt()
            yield i

    with DeferredEnd() as ending:  # while it waits for a chunk
        assert list(ending.chunks(source(4))) == [0, 1, 2, 3]
        with pytest.raises(KeyboardInterrupt):
            ending.reraise()
    with DeferredEnd() as ending:  # while the last chunk is worked on
        seen = []
        for chunk in ending.chunks(range(9)):
            if chunk == 2:
                interrupt()
            seen.append(chunk)
        assert seen == [0, 1, 2]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_damaged_a_source_is_told_at_the_end():
    def source():
        yield 1
        raise InputError("audio: damaged")

    with DeferredEnd() as ending:
        assert list(ending.chunks(source())) == [1]
    with pytest.raises(InputError, match="damaged"):
        ending.reraise()
    with DeferredEnd() as ending:
        assert list(ending.chunks([1, 2])) == [1, 2]
    ending.reraise()
