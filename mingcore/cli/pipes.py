"""`encode` and `decode` on streams: audio to latents and back while they arrive.

Audio and latents are processed by patches of 100 ms, whatever the chunks that arrive: the delay is one patch. A step
of one frame would take nearly as long as one of a patch (encoder at the real size, bfloat16 weights, two cores of an
AMD EPYC: 28 ms per patch, 26 ms per frame, of which there are 50 in a second). An error in a stream, or Ctrl-C, is
reported after everything before it has been written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio.files import output_format
from ..audio.latents import latents_to_bytes, read_latents
from ..audio.pcm import NAME, read_raw, read_wav, wav_header
from ..audio.streams import DeferredEnd, ReadAhead, regrouped
from ..errors import InputError
from . import terminal
from .options import save

if TYPE_CHECKING:
    from ..api.ming_audio import MingAudio
    from ..results import Speech

MAX_PATCHES = 10  # of a step


class _StandardInput(BytesIO):
    name = "standard input"


def live_sound(audio: str, format: str | None, rate: int, channels: int) -> tuple[Iterator[np.ndarray], int] | Any:
    """(chunks of mono samples as they arrive, their rate), or audio for `MingAudio.encode`.

    `format`: of headerless samples in `audio`. None: a WAV stream on standard input is read as it arrives, other
    content there to its end, and a file by libsndfile.
    """
    if audio != "-":
        if format is None:
            return audio
        return _raw_file(audio, format, rate, channels), rate
    pipe = ReadAhead(sys.stdin.fileno())
    if format is not None:
        return read_raw(pipe, format, rate, channels), rate
    start = pipe.peek(4)
    if not start:
        raise InputError(f"{NAME}: is empty")
    return read_wav(pipe) if start in (b"RIFF", b"RF64") else _StandardInput(pipe.read())


def _raw_file(path: str, format: str, rate: int, channels: int) -> Iterator[np.ndarray]:
    try:
        with open(path, "rb") as file:
            yield from read_raw(file, format, rate, channels, f"audio {path!r}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"audio {path!r}: cannot be read ({reason})") from None


def encode(
    ming: MingAudio, audio: str, target: str, *, format: str | None, rate: int, channels: int, **options: Any
) -> int:
    """Writes the latents of `audio` to a file or, for "-", standard output -> the number of frames.

    `options`: of `MingAudio.encode`. An error or an interrupt of a live source is raised after its output is written.
    """
    source = live_sound(audio, format, rate, channels)
    if not isinstance(source, tuple):
        try:
            latents = ming.encode(source, **options)
        except InputError as error:
            if "libsndfile" not in str(error) or audio != "-":
                raise
            raise InputError(f"{error}; headerless samples need --format") from None
        terminal.write_bytes(target, latents_to_bytes(latents))
        return len(latents)
    chunks, rate = source
    pieces, frames = [], 0
    with DeferredEnd() as ending:
        grouped = regrouped(ending.chunks(chunks), rate // 10, MAX_PATCHES * (rate // 10))
        try:
            for latents in ming.encode_stream(grouped, rate, **options):
                frames += len(latents)
                if target == "-":
                    write_piece(latents)
                else:
                    pieces.append(latents)
        except InputError:
            ending.reraise()  # the error of the source is more specific
            raise
        if target == "-":
            write_piece(latents[:0])
        else:
            terminal.write_bytes(target, latents_to_bytes(np.concatenate(pieces)))
    ending.reraise()
    return frames


def write_piece(latents: np.ndarray) -> None:
    """Writes a piece of a stream of latents to standard output and flushes; a piece without frames is the last."""
    sys.stdout.buffer.write(latents_to_bytes(latents, more=len(latents) > 0))
    sys.stdout.buffer.flush()


def decode(ming: MingAudio, target: str, format: str | None, subtype: str) -> dict[str, Any]:
    """Writes the audio of the latents on standard input as they arrive -> the result of `options.save`.

    WAV on standard output has no length in its header.
    """
    rate, frames = ming.sample_rate, ming.model.config.patch_frames
    with DeferredEnd() as ending:
        pieces = ending.chunks(read_latents(ReadAhead(sys.stdin.fileno())))
        chunks = ming.decode_stream(regrouped(pieces, frames, MAX_PATCHES * frames))
        if target == "-" and output_format(target, format) == "wav":
            chunks, format = _after_header(chunks, wav_header(rate, subtype)), "pcm"
        try:
            result = save(chunks, rate, target, format, subtype)
        except InputError:
            ending.reraise()
            raise
    ending.reraise()
    return result


def _after_header(chunks: Iterator[Speech], header: bytes) -> Iterator[Speech]:
    for chunk in chunks:
        sys.stdout.buffer.write(header)
        header = b""
        yield chunk


def output(source: str, out: str | None, default: str) -> str:
    """Where results go: `out`; without it standard output if the input is standard input, else the file `default`.

    Raises InputError when that standard output is a terminal.
    """
    if out is not None or source != "-":
        return out or default
    if sys.stdout.isatty():
        raise InputError("output: standard output is a terminal; name a file with --out")
    return "-"
