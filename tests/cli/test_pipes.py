"""`encode` and `decode` between pipes: latency, completeness, and every kind of end."""

import os
import signal
import subprocess
import sys
from io import BytesIO
from itertools import chain

import numpy as np
import pytest
import soundfile

from mingcore import MingAudio
from mingcore.audio.latents import latents_to_bytes, load_latents, read_latents
from mingcore.errors import InputError

DEVICE = ("--device", "cpu")


@pytest.fixture(scope="module")
def ming():
    return MingAudio.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def take():
    """0.7 s, not a whole number of frames; int16."""
    return np.random.default_rng(1).integers(-9000, 9000, 11111).astype("<i2")


def as_float(values):
    return values.astype("f4") / 32768, 16000


def same(a, b, limit=2e-5):
    assert a.shape == b.shape and np.abs(a - b).max() <= limit * np.abs(b).max()


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """`stdin(data)`: what the command in this process reads."""

    path, files = tmp_path.parent / f"{tmp_path.name}.stdin", []

    def give(data: bytes) -> None:
        path.write_bytes(data)
        files.append(path.open())
        monkeypatch.setattr(sys, "stdin", files[-1])

    yield give
    for file in files:
        file.close()


@pytest.fixture
def start(command, tmp_path):
    """Starts a command as a process of its own with pipes around it."""
    running = []

    def run(*arguments, source=subprocess.PIPE):
        process = subprocess.Popen(
            [*command, *map(str, arguments), *DEVICE],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


def send(process, data):
    process.stdin.write(data)
    process.stdin.flush()


def test_sound_flows_through_before_the_input_ends(start, ming, take):
    """microphone | encode - | decode - | player; in the end the input is cut within a sample."""
    encoder = start("encode", "-", "--format", "s16le")
    decoder = start("decode", "-", source=encoder.stdout)
    encoder.stdout.close()
    send(encoder, take[:5000].tobytes())
    header = 44
    begin = decoder.stdout.read(header + 2 * (3 * 1600 - 480))  # three patches are whole
    send(encoder, take[5000:].tobytes() + b"\0")
    encoder.stdin.close()
    sound, rate = soundfile.read(BytesIO(begin + decoder.stdout.read()), dtype="int16")
    errors = encoder.stderr.read().decode().splitlines()
    assert encoder.wait(60) == 2 and decoder.wait(60) == 0
    assert len(errors) == 1 and "ends within a sample, 1 of 2 bytes" in errors[0]
    expected = ming.decode(ming.encode(as_float(take))).samples * 32767
    assert rate == 16000 and sound.shape == expected.shape
    assert np.abs(sound - expected).max() < 2


def test_ctrl_c_ends_a_recording_and_keeps_it(start, ming, take):
    encoder = start("encode", "-")
    file = BytesIO()
    soundfile.write(file, take, 16000, format="WAV")
    send(encoder, file.getvalue()[:-500])  # the recorder would go on
    pieces = read_latents(encoder.stdout)
    first = next(pieces)
    encoder.send_signal(signal.SIGINT)
    latents = np.concatenate([first, *pieces])  # to the end mark
    assert encoder.wait(60) == 130 and encoder.stderr.read() == b""
    same(latents, ming.encode(as_float(take[:-250])))


@pytest.mark.slow
def test_a_listener_that_leaves(start, take):
    encoder = start("encode", "-", "--format", "s16le")
    send(encoder, take.tobytes())
    assert encoder.stdout.read(9)
    encoder.stdout.close()
    send(encoder, take.tobytes())
    assert encoder.wait(60) == 141 and encoder.stderr.read() == b""


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("wav", ()),
        ("wav24", ()),
        ("flac", ()),
        ("s16le", ("--format", "s16le")),
        ("f32le", ("--format", "f32le", "--rate", "16000")),
        ("stereo", ("--format", "s16le", "--channels", "2")),
    ],
)
def test_what_standard_input_may_hold(mingcore, stdin, ming, take, name, arguments):
    file = BytesIO()
    if name in ("wav", "wav24", "flac"):
        subtype, container = "PCM_24" if name == "wav24" else "PCM_16", name.removesuffix("24")
        soundfile.write(file, take, 16000, subtype, format=container.upper())
        data = file.getvalue()
    elif name == "f32le":
        data = as_float(take)[0].tobytes()
    else:
        data = (np.repeat(take, 2) if name == "stereo" else take).tobytes()
    stdin(data)
    done = mingcore("encode", "-", *arguments, "--out", "l.safetensors", *DEVICE)
    assert done.status == 0 and "35 frames" in done.err, done.err
    same(load_latents("l.safetensors"), ming.encode(as_float(take)))


def test_another_rate_and_a_file_of_headerless_samples(mingcore, tmp_path, ming):
    slow = np.random.default_rng(2).integers(-9000, 9000, 8000).astype("<i2")
    (tmp_path / "x.raw").write_bytes(slow.tobytes())
    done = mingcore("encode", "x.raw", "--format", "s16le", "--rate", 8000, *DEVICE, "--json")
    assert '"frames": 50' in done.out
    expected = ming.encode((slow.astype("f4") / 32768, 8000))
    same(load_latents("latents.safetensors"), expected, 1e-4)


def test_damaged_latents_sound_up_to_the_damage(mingcore, stdin, ming, take):
    latents = ming.encode(as_float(take))
    data = latents_to_bytes(latents[:20], more=True) + latents_to_bytes(latents[20:], more=True)
    for damaged, frames in ((data, 35), (data[:-9], 20)):
        stdin(damaged)
        done = mingcore("decode", "-", "--out", "x.wav", *DEVICE)
        done.refused("standard input", "cut off")
        sound = soundfile.read("x.wav")[0]
        assert np.abs(sound - ming.decode(latents[:frames]).samples).max() < 1e-4


@pytest.mark.parametrize(
    "data, arguments, words",
    [
        (b"", (), ("standard input", "empty")),
        (b"", ("--format", "s16le"), ("no samples",)),
        (b"\0" * 99, (), ("libsndfile", "--format")),
        (b"RIFF\0\0\0\0WAVE", (), ("WAV header",)),
        (b"\0" * 99, ("--format", "s8"), ("format", "s16le", "s8")),
        (b"\0" * 99, ("--format", "s16le", "--rate", "1"), ("rate", "1")),
    ],
    ids=["empty", "nothing", "headerless", "header", "format", "rate"],
)
def test_refused(mingcore, stdin, tmp_path, data, arguments, words):
    stdin(data)
    mingcore("encode", "-", "--out", "l.safetensors", *arguments, *DEVICE).refused(*words)
    assert not list(tmp_path.iterdir())


def test_the_stream_of_latents():
    """Concatenated pieces, split anywhere; a file is a stream of one piece."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 64)).astype("f4") for n in (3, 1, 7, 0)]
    data = b"".join(latents_to_bytes(p, more=i < 3) for i, p in enumerate(parts))
    read, write = os.pipe()
    with open(read, "rb") as pipe, open(write, "wb", buffering=0) as out:
        pieces = read_latents(pipe)
        out.write(data[: len(data) // 2])
        first = next(pieces)  # nothing waits for the rest
        out.write(data[len(data) // 2 :])
        out.close()
        for got, sent in zip(chain([first], pieces), parts, strict=True):
            assert np.array_equal(got, sent)
    assert [len(p) for p in read_latents(BytesIO(latents_to_bytes(parts[0])))] == [3]
    other = latents_to_bytes(np.zeros((2, 5), "f4"))
    for bad, words in (
        (data[:-1], "cut off"),
        (data + b"x", "goes on"),
        (latents_to_bytes(parts[0], more=True) + other, "same in all pieces"),
        (other[:30], "cut off within its header"),
        (b"", "no safetensors file"),
    ):
        with pytest.raises(InputError, match=words):
            list(read_latents(BytesIO(bad)))
