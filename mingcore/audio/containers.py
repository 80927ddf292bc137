"""What an audio file is by its first bytes, and decoding by ffmpeg of what libsndfile does not read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError

FFMPEG_RATE = 48_000
_LIMIT_SECONDS = 600  # of decoding
_LIMIT_HOURS = 6  # of sound


class Riff(NamedTuple):
    """Of a WAV file's header: bytes of samples as declared and as there are, channel mask, bytes behind the RIFF."""

    declared: int
    available: int
    mask: int | None
    behind: int


# first bytes -> name; of what libsndfile does not read
def foreign_format(start: bytes) -> str | None:
    """The name of a format that ffmpeg reads and libsndfile does not, by its first 16 bytes; None for others."""
    if start[4:8] == b"ftyp":
        return "MP4 (m4a, aac)"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "Matroska (webm, mka)"
    if start[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "AAC (adts)"
    if start[:5] == b"#!AMR":
        return "AMR"
    if start[:4] == b"\x30\x26\xb2\x75":
        return "ASF (wma)"
    if start[:4] == b"FLV\x01":
        return "FLV"
    if start[:4] in (b"DSD ", b"FRM8"):
        return "DSD (dsf, dff)"
    if start[:4] == b"MAC ":
        return "Monkey's Audio (ape)"
    if start[:4] == b"wvpk":
        return "WavPack"
    return None


def decode_foreign(handle: BinaryIO, format: str, label: str) -> tuple[np.ndarray, int]:
    """Mono samples [L] float32 and their rate, by ffmpeg where it is installed.

    Raises InputError that names the format and the command that converts it where it is not, and for what ffmpeg
    refuses.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise InputError(
            f"{label}: is {format}, which needs ffmpeg, which is not installed; "
            "elsewhere `ffmpeg -i INPUT -ac 1 -ar 16000 out.wav` converts it"
        )
    with tempfile.TemporaryDirectory(prefix="mingcore-") as folder:
        path = Path(folder, "input")
        with path.open("wb") as file:
            shutil.copyfileobj(handle, file)
        # a file, not a pipe: MP4 may have its index at the end; and no protocol that could reach a network
        command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", str(path), "-vn"]
        command += ["-t", str(_LIMIT_HOURS * 3600), "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "f32le", "-"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_LIMIT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise InputError(f"{label}: ffmpeg did not decode it in {_LIMIT_SECONDS} s") from None
        except OSError as error:
            raise InputError(f"{label}: ffmpeg cannot be run ({error.strerror})") from None
    if done.returncode or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InputError(f"{label}: is {format}, and ffmpeg does not decode it ({said[-1] if said else 'no sound'})")
    return np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], "<f4").astype(np.float32), FFMPEG_RATE


def riff_of(handle: BinaryIO) -> Riff | None:
    """What a WAV file's chunks say of its samples; None where it is none. The position is kept."""
    start = handle.tell()
    try:
        return _riff(handle)
    finally:
        handle.seek(start)


def _riff(handle: BinaryIO) -> Riff | None:
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    head = handle.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    behind, mask = size - 8 - struct.unpack("<I", head[4:8])[0], None
    while True:
        chunk = handle.read(8)
        if len(chunk) < 8:
            return None
        name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        if name == b"data":
            return Riff(length, size - handle.tell(), mask, behind)
        body = handle.read(length + length % 2)
        if name == b"fmt " and len(body) >= 24 and struct.unpack("<H", body[:2])[0] == 0xFFFE:
            mask = struct.unpack("<I", body[20:24])[0]
