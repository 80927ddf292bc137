"""Audio in a pipe: samples of a binary stream as they arrive, and a WAV header without a length.

Nothing waits for the end of a stream. WAV headers are parsed here, because libsndfile needs to seek; without a header
the bytes are little-endian samples of a format that the caller names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from .files import MAX_CHANNELS, MAX_RATE, MIN_RATE

PIECE = 1 << 15  # bytes per read, at most
UNKNOWN_FROM = 0x7F000000  # a length from here on, or 0, is unknown: a recorder that writes to a pipe does not know it
MAX_HEADER = 1 << 20
# ffmpeg's names -> NumPy types
RAW = {"s16le": "<i2", "f32le": "<f4"}
NAME = "audio (standard input)"
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_KINDS = {
    (_PCM, 8): "u1",
    (_PCM, 16): "<i2",
    (_PCM, 24): "i3",
    (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4",
    (_FLOAT, 64): "<f8",
}


@dataclass
class Layout:
    """The sample format of a stream; `kind` is a NumPy type, or "i3" for 24 bits."""

    rate: int
    channels: int
    kind: str

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * (3 if self.kind == "i3" else np.dtype(self.kind).itemsize)

    def mono(self, data: bytes) -> np.ndarray:
        """Whole frames of bytes -> [l] float32, channels averaged."""
        if self.kind == "i3":
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            samples = wide.view("<i4")[:, 0] / 2.0**31
        elif self.kind == "u1":
            samples = (np.frombuffer(data, "u1") - 128.0) / 128
        else:
            samples = np.frombuffer(data, self.kind)
            if samples.dtype.kind == "i":
                samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
        frames = samples.astype(np.float32, copy=False).reshape(-1, self.channels)
        return frames.mean(axis=1, dtype=np.float32)


def read_raw(pipe: BinaryIO, format: str, rate: int, channels: int = 1, name: str = NAME) -> Iterator[np.ndarray]:
    """Mono samples [l] float32 of headerless interleaved samples, as they arrive.

    `format`: "s16le" or "f32le"; `rate` in Hz. Raises InputError at once for another format, rate or number of
    channels; when the stream ends within a sample, or at NaN or infinity, after everything before it was yielded; and
    at the end of an empty stream.
    """
    if format not in RAW:
        raise InputError(f"format: must be one of {', '.join(RAW)}, got {format!r}")
    return _samples(pipe, _layout(rate, channels, RAW[format], "audio"), None, name)


def read_wav(pipe: BinaryIO, name: str = NAME) -> tuple[Iterator[np.ndarray], int]:
    """(mono samples [l] float32 as they arrive, their rate in Hz) of a WAV stream; see `read_raw`.

    8 to 32 bits and float; RF64 too. A length of 0, or of 2 GB and more outside RF64, is unknown: to the end of the
    stream. Raises InputError at once for other content, and for a stream shorter than its header says after its
    samples.
    """
    if exactly(pipe, 4) not in (b"RIFF", b"RF64") or exactly(pipe, 8)[4:] != b"WAVE":
        raise InputError(f"{name}: is no WAV stream")
    layout, long = None, 0
    while True:
        head = exactly(pipe, 8)
        if len(head) < 8:
            raise InputError(f"{name}: is cut off within its WAV header")
        mark, length = struct.unpack("<4sI", head)
        if mark == b"data":
            break
        if length > MAX_HEADER:
            raise InputError(f"{name}: a WAV header with a part of {length} bytes")
        body = exactly(pipe, length + length % 2)
        if len(body) < length:
            raise InputError(f"{name}: is cut off within its WAV header")
        if mark == b"ds64" and len(body) >= 16:
            (long,) = struct.unpack("<Q", body[8:16])
        elif mark == b"fmt ":
            layout = _wav_layout(body, name)
    if layout is None:
        raise InputError(f"{name}: a WAV header without its format")
    left = None if length == 0 or length >= UNKNOWN_FROM else length
    if length == 0xFFFFFFFF and long:
        left = long
    return _samples(pipe, layout, left, name), layout.rate


def wav_header(rate: int, subtype: str) -> bytes:
    """The header of a mono WAV stream of unknown length: 0xFFFFFFFF, as ffmpeg writes it.

    `subtype`: "int16" or "float32". Players and libsndfile then read to the end of the stream.
    """
    tag, width = {"int16": (_PCM, 2), "float32": (_FLOAT, 4)}[subtype]
    form = struct.pack("<HHIIHH", tag, 1, rate, rate * width, width, 8 * width)
    unknown = struct.pack("<I", 0xFFFFFFFF)
    return b"RIFF%bWAVEfmt %b%bdata%b" % (unknown, struct.pack("<I", len(form)), form, unknown)


def exactly(pipe: BinaryIO, count: int) -> bytes:
    """`count` bytes; fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < count:
        more = some(pipe, count - len(data))
        if not more:
            break
        data += more
    return bytes(data)


def some(pipe: BinaryIO, max_bytes: int) -> bytes:
    """The bytes that are available, up to `max_bytes`; none only at the end of the stream."""
    return pipe.read1(max_bytes) if hasattr(pipe, "read1") else pipe.read(max_bytes)


def _samples(pipe: BinaryIO, layout: Layout, left: int | None, name: str) -> Iterator[np.ndarray]:
    """`left`: bytes of samples to read (None: to the end of the stream)."""
    size, buffer, given = layout.frame_bytes, b"", 0
    while left != 0:
        data = some(pipe, PIECE if left is None else min(PIECE, left))
        if not data:
            break
        left = None if left is None else left - len(data)
        buffer += data
        complete = len(buffer) // size * size
        if complete:
            samples = layout.mono(buffer[:complete])
            buffer = buffer[complete:]
            finite = np.isfinite(samples)
            if not finite.all():
                bad = int(finite.argmin())
                if bad:
                    yield samples[:bad]
                raise InputError(f"{name}: sample {given + bad} is {samples[bad]}, not a number")
            given += samples.size
            yield samples
    if buffer:
        raise InputError(f"{name}: ends within a sample, {len(buffer)} of {size} bytes")
    if left:
        raise InputError(f"{name}: is cut off, {left} bytes before the end that its header says")
    if not given:
        raise InputError(f"{name}: holds no samples")


def _wav_layout(body: bytes, name: str) -> Layout:
    if len(body) < 16:
        raise InputError(f"{name}: a WAV format of {len(body)} bytes")
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack("<H", body[24:26])
    if (tag, bits) not in _KINDS:
        raise InputError(f"{name}: WAV of format {tag} with {bits} bits cannot be streamed")
    return _layout(rate, channels, _KINDS[tag, bits], name)


def _layout(rate: int, channels: int, kind: str, name: str) -> Layout:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name}: the rate must be {MIN_RATE} to {MAX_RATE} Hz, got {rate}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(f"{name}: there must be 1 to {MAX_CHANNELS} channels, got {channels}")
    return Layout(rate, channels, kind)
