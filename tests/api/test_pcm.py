"""Binary streams of samples, headerless or with a WAV header."""

import random
import struct
from io import BytesIO

import numpy as np
import pytest
import soundfile

from mingcore.audio.files import read_audio
from mingcore.audio.pcm import read_raw, read_wav, wav_header
from mingcore.errors import InputError


class Pipe:
    """A pipe that gives at most `max_bytes` per read and cannot seek."""

    def __init__(self, data: bytes, max_bytes: int, seed: int = 0):
        self.data, self.max_bytes, self.pick = data, max_bytes, random.Random(seed)

    def read1(self, count: int) -> bytes:
        size = min(count, self.pick.randint(1, self.max_bytes))
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def sound(L, channels=1, seed=0):
    shape = (L, channels) if channels > 1 else L
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


def wav(pipe):
    chunks, rate = read_wav(pipe)
    return np.concatenate(list(chunks)), rate


def raw(pipe, format="s16le", rate=16000, channels=1):
    return np.concatenate(list(read_raw(pipe, format, rate, channels)))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels, container", [(1, "WAV"), (2, "WAVEX"), (3, "RF64")])
def test_wav_is_what_libsndfile_reads(subtype, channels, container):
    file = BytesIO()
    soundfile.write(file, sound(777, channels), 22050, subtype, format=container)
    file.seek(0)
    expected = soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1, dtype=np.float32)
    got, rate = wav(Pipe(file.getvalue(), 50))
    assert rate == 22050 and got.dtype == np.float32
    assert np.abs(got - expected).max() < 1e-7


def test_what_follows_the_samples_of_a_wav_file_is_no_sound():
    file = BytesIO()
    soundfile.write(file, sound(100), 16000, "PCM_16", format="WAV")
    data = file.getvalue()
    assert len(wav(Pipe(data + b"LIST\4\0\0\0abcd", 9))[0]) == 100
    # writers that do not know the length: 0, or the maximum
    for length in (0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF):
        at = data.index(b"data") + 4
        live = data[:at] + struct.pack("<I", length) + data[at + 4 :]
        assert len(wav(Pipe(live, 9))[0]) == 100


@pytest.mark.parametrize("format, kind, scale", [("s16le", "<i2", 32768.0), ("f32le", "<f4", 1.0)])
@pytest.mark.parametrize("length", [1, 2, 5, 30000])
def test_headerless_samples(format, kind, scale, length):
    values = (sound(length) * scale).astype(kind)
    got = raw(Pipe(values.tobytes(), 70), format)
    assert np.array_equal(got, values.astype("f4") / np.float32(scale))
    stereo = np.repeat(values, 2).tobytes()
    assert np.array_equal(raw(Pipe(stereo, 70), format, channels=2), got)


@pytest.mark.parametrize("subtype, kind", [("int16", "<i2"), ("float32", "<f4")])
def test_a_header_without_length_is_read_by_all(subtype, kind):
    values = (sound(500) * (32767 if subtype == "int16" else 1)).astype(kind)
    data = wav_header(22050, subtype) + values.tobytes()
    ours, rate = wav(Pipe(data, 33))
    theirs, same_rate = soundfile.read(BytesIO(data), dtype="float32")
    assert rate == same_rate == 22050 and np.array_equal(ours, theirs) and len(ours) == 500
    assert np.array_equal(read_audio(data, 22050), ours)


def lost_nothing(chunks, words):
    """The samples that were yielded before the error with `words`."""
    parts = []
    with pytest.raises(InputError, match=words):
        for part in chunks:
            parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0)


def test_what_came_before_damage_is_given():
    values = np.arange(-50, 50, dtype="<i2")
    cut = lost_nothing(read_raw(Pipe(values.tobytes()[:-1], 9), "s16le", 8000), "1 of 2 bytes")
    assert np.array_equal(cut * 32768, values[:-1])
    file = BytesIO()
    soundfile.write(file, values, 8000, "PCM_16", format="WAV")
    cut = lost_nothing(read_wav(Pipe(file.getvalue()[:-20], 9))[0], "cut off, 20 bytes before")
    assert np.array_equal(cut * 32768, values[:-10])
    floats = sound(40)
    floats[33] = np.nan
    cut = lost_nothing(read_raw(Pipe(floats.tobytes(), 50), "f32le", 8000), "sample 33 is nan")
    assert np.array_equal(cut, floats[:33])


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "no WAV stream"),
        (b"fLaC" + bytes(99), "no WAV stream"),
        (b"RIFF\0\0\0\0AVI " + bytes(99), "no WAV stream"),
        (b"RIFF\0\0\0\0WAVE", "cut off within its WAV header"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0abcd", "cut off within its WAV header"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "without its format"),
        (b"RIFF\0\0\0\0WAVEfmt \4\0\0\0abcd", "format of 4 bytes"),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\x7f", "part of 2147483647 bytes"),
        (wav_header(8000, "int16"), "holds no samples"),
        (wav_header(8000, "int16").replace(b"\x10\0data", b"\x11\0data"), "with 17 bits"),
    ],
)
def test_refused_wav(data, words):
    with pytest.raises(InputError, match=words):
        wav(Pipe(data, 7))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("s8", 8000), "format: must be one of s16le, f32le, got 's8'"),
        (("s16le", 3), "rate"),
        (("s16le", 8000, 0), "channels"),
        (("s16le", 8000), "holds no samples"),
    ],
)
def test_refused_headerless(arguments, words):
    with pytest.raises(InputError, match=words):
        raw(Pipe(b"", 7), *arguments)
