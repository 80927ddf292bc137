"""Audio input and output: every format, invalid input, and atomic writes."""

import io
import os
import sys
import threading
import wave

import numpy as np
import pytest
import soundfile
import torch

from mingcore.audio.files import (
    AudioWriter,
    check_writable,
    read_audio,
    require_samples,
    resample,
    to_int16,
    write_audio,
)
from mingcore.errors import InputError


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("f4")


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 1 / 127),
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-22),
        ("wav", "PCM_32", 1e-6),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 1e-7),
        ("flac", "PCM_16", 2**-15),
        ("flac", "PCM_24", 2**-22),
        ("ogg", "VORBIS", 0.05),
        ("aiff", "PCM_S8", 1 / 127),
        ("wav", "ULAW", 0.02),
    ],
)
def test_depths(tmp_path, suffix, subtype, tolerance):
    path, x = tmp_path / f"a.{suffix}", tone(16000)
    soundfile.write(path, x, 16000, subtype=subtype)
    got = read_audio(path)
    assert got.dtype == np.float32 and got.shape == x.shape
    assert np.abs(got - x).max() <= tolerance


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000])
def test_rates(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate), rate, subtype="FLOAT")
    got, wanted = read_audio(str(path)), tone(16000)
    assert abs(got.size - wanted.size) <= 1
    middle = slice(800, -800)
    assert np.abs(got[middle] - wanted[: got.size][middle]).max() < 1e-3


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_channels_are_averaged(tmp_path, channels):
    path = tmp_path / "a.wav"
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, channels)).astype("f4")
    soundfile.write(path, x, 16000, subtype="FLOAT")
    wanted = x.mean(axis=1)
    for source in (path, (x, 16000), (x.T, 16000), (torch.from_numpy(x), 16000)):
        np.testing.assert_allclose(read_audio(source), wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "float64", "float16"])
def test_arrays(dtype):
    x = tone(16000)
    given = {"int16": x * 32767, "int32": x.astype("f8") * (2**31 - 1), "uint8": x * 127 + 128}
    got = read_audio((given.get(dtype, x).astype(dtype), np.int64(16000)))
    assert np.abs(got - x).max() < 0.02 and got.dtype == np.float32
    half = torch.from_numpy(x).bfloat16()
    assert np.abs(read_audio((half, 16000.0)) - x).max() < 0.01


def test_streams_and_bytes(tmp_path, monkeypatch):
    x, buffer = tone(16000), io.BytesIO()
    soundfile.write(buffer, x, 16000, format="WAV", subtype="FLOAT")
    data = buffer.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    for source in (data, io.BytesIO(data), "-"):
        np.testing.assert_array_equal(read_audio(source), x)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    np.testing.assert_array_equal(read_audio(pipe), x)
    writer.join()


def cut_short(path, keep: int) -> None:
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[:keep])


def test_a_truncated_file_gives_what_is_there(tmp_path):
    path = tmp_path / "a.wav"
    cut_short(path, 2044)
    assert read_audio(path).size == 1000


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("text.wav", lambda p: p.write_text("This is no sound.\n"), "not an audio file"),
        ("empty.wav", lambda p: p.touch(), "is empty"),
        ("headless.wav", lambda p: cut_short(p, 20), "not an audio file"),
        ("silent.wav", lambda p: soundfile.write(p, np.zeros(0), 16000), "holds no samples"),
        ("missing.wav", lambda p: None, "no such file"),
        ("folder.wav", lambda p: p.mkdir(), "is a folder"),
        ("nan.wav", lambda p: soundfile.write(p, [0.0, np.nan], 16000, "FLOAT"), "sample 1 of 2"),
        ("inf.wav", lambda p: soundfile.write(p, [np.inf, 0.0], 16000, "FLOAT"), "is inf"),
        ("slow.wav", lambda p: soundfile.write(p, tone(16000), 500), "1000 to 768000 Hz, got 500"),
        ("fast.wav", lambda p: soundfile.write(p, tone(16000), 10**6), "got 1000000"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, make, message):
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=message) as error:
        read_audio(path)
    assert "\n" not in str(error.value) and str(error.value).startswith("audio")


X = np.ones(1000, np.float32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((np.zeros(0), 16000), "holds no samples"),
        ((X,), r"must be \(samples, rate\)"),
        ((X, 16000, 1), "got 3 items"),
        ((X, None), "rate must be a number"),
        ((X, "16000"), "rate must be a number"),
        ((X, True), "rate must be a number"),
        ((X, float("nan")), "whole number of Hz"),
        ((X, 0), "1000 to 768000"),
        ((X, -16000), "1000 to 768000"),
        ((X, float("inf")), "whole number"),
        ((X * np.nan, 16000), "sample 0 of 1000 is nan"),
        ((X > 0, 16000), "float or signed"),
        ((X.astype("c8"), 16000), "float or signed"),
        ((X[None, None], 16000), r"must be \[L\]"),
        ((np.ones((300, 300), "f4"), 16000), "at most 64 channels"),
        (5, "got int"),
        (None, "got NoneType"),
        (b"", "is empty"),
        (b"no sound", "not an audio file"),
        (io.StringIO("x"), "binary mode"),
        ("a\0b.wav", "cannot be read"),
        (np.ones((0, 2), "f4").T, "got ndarray"),
        ((np.ones((0, 5)), 16000), "no samples"),
    ],
)
def test_sources_that_cannot_be_used(source, message):
    with pytest.raises(InputError, match=message) as error:
        read_audio(source)
    assert "\n" not in str(error.value)


def test_too_short_says_how_long():
    with pytest.raises(InputError, match=r"at least one patch \(1600 samples, 100 ms"):
        require_samples(np.zeros(1599, "f4"), 1600, "one patch")
    require_samples(np.zeros(1600, "f4"), 1600, "one patch")


def test_clipping_is_noted(caplog):
    loud = np.clip(tone(16000) * 4, -1, 1)
    read_audio((loud, 16000))
    assert "clipped" in caplog.text
    caplog.clear()
    read_audio((tone(16000) * 4, 16000))
    assert "more than full scale" in caplog.text
    caplog.clear()
    read_audio((tone(16000) * 1.99, 16000))
    read_audio((tone(16000), 16000))
    assert caplog.text == ""


def test_no_resampling_without_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert resample(X, 16000, 16000) is X
    assert read_audio((X, 16000)).size == 1000


@pytest.mark.parametrize("suffix", ["wav", "flac", "pcm", "raw"])
def test_16_bits_survive_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    values = np.array([-32768, -1, 0, 1, 32767, 1234], np.int16)
    write_audio(path, values / 32768, 16000)
    if suffix in ("pcm", "raw"):
        back = np.frombuffer(path.read_bytes(), "<i2")
    else:
        back, rate = soundfile.read(path, dtype="int16")
        assert rate == 16000
    np.testing.assert_array_equal(back, values)


def test_loud_samples_are_held_at_full_scale():
    np.testing.assert_array_equal(to_int16(np.array([2.0, -2.0, 1.0])), [32767, -32768, 32767])


def test_float_output(tmp_path):
    x = tone(16000) * 3
    write_audio(tmp_path / "a.wav", torch.from_numpy(x), 16000, subtype="float32")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], x)
    write_audio(tmp_path / "a.pcm", x, 16000, subtype="float32")
    np.testing.assert_array_equal(np.frombuffer((tmp_path / "a.pcm").read_bytes(), "<f4"), x)


def test_to_streams(capsysbinary):
    x, buffer = tone(16000, 0.1), io.BytesIO()
    write_audio(buffer, x)
    with wave.open(io.BytesIO(buffer.getvalue())) as w:
        assert (w.getframerate(), w.getnchannels(), w.getnframes()) == (16000, 1, x.size)
    write_audio("-", x, format="pcm")
    assert len(capsysbinary.readouterr().out) == 2 * x.size
    write_audio("-", x)
    assert capsysbinary.readouterr().out == buffer.getvalue()
    write_audio("/dev/null", x, format="wav")
    assert not os.path.isfile("/dev/null")


def test_pcm_goes_out_as_it_comes():
    buffer = io.BytesIO()
    with AudioWriter(buffer, format="pcm") as writer:
        writer.write(X)
        assert len(buffer.getvalue()) == 2000
        writer.write(X[:10])
    assert len(buffer.getvalue()) == 2020


def test_a_path_never_holds_half_a_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("before")
    with pytest.raises(RuntimeError), AudioWriter(path) as writer:
        writer.write(X)
        assert path.read_text() == "before"
        raise RuntimeError
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.wav"]
    with pytest.raises(InputError, match="NaN"):
        write_audio(path, X * np.nan)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.wav"]
    write_audio(path, X)
    assert soundfile.info(path).frames == 1000 and os.listdir(tmp_path) == ["a.wav"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.wav"
    link.symlink_to(tmp_path / "real" / "b.wav")
    write_audio(link, X)
    assert link.is_symlink() and (tmp_path / "real" / "b.wav").is_file()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("no/such/folder/a.wav", {}, "cannot be written"),
        ("folder.wav", {}, "is a folder"),
        ("file.wav/a.wav", {}, "cannot be written"),
        ("a.mp3", {}, r"must end in \.wav"),
        ("a", {}, r"must end in \.wav"),
        ("x" * 300 + ".wav", {}, "cannot be written"),
        ("a\0.wav", {}, "cannot be written"),
        ("a.wav", {"format": "mp3"}, "format: must be one"),
        ("a.wav", {"subtype": "int24"}, "subtype: must be one"),
        ("a.flac", {"subtype": "float32"}, "flac holds integers only"),
    ],
)
def test_targets_that_cannot_be_written(tmp_path, monkeypatch, target, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file.wav").touch()
    for write in (check_writable, lambda t, **o: write_audio(t, X, **o)):
        with pytest.raises(InputError, match=message) as error:
            write(target, **options)
        assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file.wav", "folder.wav"]


def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    folder = "/sys" if os.geteuid() == 0 else tmp_path  # root may write anywhere else
    with pytest.raises(InputError, match="Permission denied|Read-only file system"):
        check_writable(f"{folder}/a.wav")


def test_what_can_be_written_is_left_alone(tmp_path):
    check_writable(tmp_path / "a.wav")
    assert os.listdir(tmp_path) == []
    for target in ("-", io.BytesIO(), "/dev/null"):
        check_writable(target, "wav")


def test_shapes_of_samples(tmp_path):
    with pytest.raises(InputError, match=r"samples: must be \[L\], got \[2, 5\]"):
        write_audio(tmp_path / "a.wav", np.zeros((2, 5)))
    with pytest.raises(InputError, match="must be a path"):
        write_audio(5, X)


def surround(channel, gain=0.3):
    x = np.zeros((16000, 6), np.float32)
    x[:, channel] = gain * np.sin(np.arange(16000) * 0.1)
    return x


def level(x):
    return float(np.sqrt(np.square(x).mean()))


def test_speech_in_the_centre_of_a_surround_recording_stays(tmp_path):
    """ITU-R BS.775: 3 dB less, not the 15.6 of a plain mean; low frequencies are left out."""
    path = tmp_path / "a.wav"
    alone = level(0.3 * np.sin(np.arange(16000) * 0.1))
    for channel, wanted in ((0, 0.5), (1, 0.5), (2, 0.7071), (3, 0.0), (4, 0.35355), (5, 0.35355)):
        soundfile.write(path, surround(channel), 16000, subtype="FLOAT", format="WAVEX")
        for source in (path, (surround(channel), 16000)):
            assert abs(level(read_audio(source)) - wanted * alone) < 1e-4
    # the same in all of them is as loud as one
    same = np.repeat(surround(2)[:, 2:3], 6, axis=1)
    assert abs(level(read_audio((same, 16000))) - alone) < 1e-4


def test_channels_that_cancel_are_said(caplog):
    x = 0.3 * np.sin(np.arange(16000) * 0.1).astype("f4")
    read_audio((np.stack([x, x], axis=1), 16000))
    assert "cancel" not in caplog.text
    read_audio((np.stack([x, -x], axis=1), 16000))
    assert "its channels cancel each other" in caplog.text


def test_samples_far_beyond_full_scale_are_refused(tmp_path):
    """They would overflow in the resampler and the encoder."""
    path = tmp_path / "a.wav"
    for peak in (3.4e38, 1e12):
        x = np.full(16000, 0.1, np.float32)
        x[7000] = peak
        soundfile.write(path, x, 44100, subtype="FLOAT")
        for source in (path, (x, 16000), (x, 44100)):
            with pytest.raises(InputError, match=r"samples reach .*floats must be within full scale"):
                read_audio(source)


def test_gsm_and_lengths_that_lie(tmp_path, caplog):
    x = 0.3 * np.sin(np.arange(16000) * 0.1)
    path = tmp_path / "gsm.wav"
    soundfile.write(path, x, 8000, subtype="GSM610")
    assert abs(read_audio(path).size - 32000) < 700
    path = tmp_path / "a.wav"
    soundfile.write(path, x, 16000)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data") + 4
    for declared in (0xFFFFFFFF, 10**6):
        caplog.clear()
        raw[at : at + 4] = declared.to_bytes(4, "little")
        assert read_audio(bytes(raw)).size == 16000
        assert f"its header says {declared} bytes of samples, the file has 32000" in caplog.text
    raw[at : at + 4] = (32000).to_bytes(4, "little")
    caplog.clear()
    assert read_audio(bytes(raw[:-10000])).size == 11000 and "the file has 22000" in caplog.text


FOREIGN = {
    "MP4": b"\0\0\0\x20ftypM4A \0\0\0\0",
    "webm": b"\x1a\x45\xdf\xa3" + bytes(12),
    "AAC": b"\xff\xf1" + bytes(14),
    "AMR": b"#!AMR\n" + bytes(10),
    "wma": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(8),
    "DSD": b"DSD " + bytes(12),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_formats_without_ffmpeg(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=rf"is .*{name}.*ffmpeg -i INPUT -ac 1 -ar 16000 out.wav"):
        read_audio(FOREIGN[name] + bytes(1000))


def test_foreign_formats_by_ffmpeg(tmp_path, monkeypatch):
    """A stand-in that gives one second at 48 kHz, then one that refuses."""
    tool = tmp_path / "ffmpeg"
    tool.write_text("#!/bin/sh\ncase \"$*\" in *'file,pipe'*) head -c 192000 /dev/zero;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert read_audio(FOREIGN["MP4"] + bytes(1000)).size == 16000
    tool.write_text("#!/bin/sh\necho 'one\ninvalid data' >&2; exit 1\n")
    with pytest.raises(InputError, match=r"is MP4.*ffmpeg does not decode it \(invalid data\)"):
        read_audio(FOREIGN["MP4"] + bytes(1000))


def test_two_copies_of_a_recording_give_the_same_samples():
    """44.1 kHz stereo and 16 kHz mono, within the resampler's error."""
    t = np.arange(44100) / 44100
    x = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 2500 * t)
    u = np.arange(16000) / 16000
    mono = 0.3 * np.sin(2 * np.pi * 440 * u) + 0.1 * np.sin(2 * np.pi * 2500 * u)
    got = read_audio((np.stack([x, x], axis=1).astype("f4"), 44100))
    assert np.abs(got[800:15200] - mono[800:15200]).max() < 1e-4
