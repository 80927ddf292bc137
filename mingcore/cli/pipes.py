"""`encode` and `decode` between pipes: sound to latents and back while they are made.

Sound and latents go in by patches, 100 ms, however they dribble in: the delay is one patch, and a
step of one frame takes nearly as long (encoder at the real size, bfloat16 weights, on two cores of
an AMD EPYC: 28 ms per patch, 26 ms per frame, of which there are 50 in a second). What ends a
stream, be it damage or Ctrl-C, is told after everything before it has gone out.
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
from ..audio.streams import Background, Ending, regrouped
from ..errors import InputError
from . import terminal
from .options import save

if TYPE_CHECKING:
    from ..api.ming_audio import MingAudio
    from ..results import Speech

PATCHES = 10  # at most in one step


class _Whole(BytesIO):
    name = "standard input"


def live_sound(audio: str, format: str | None, rate: int, channels: int) -> tuple[Iterator[np.ndarray], int] | Any:
    """(chunks of mono samples as they come, their rate), or else what `MingAudio.encode` takes.

    `format`: of headerless samples in `audio`; None: a WAV stream on standard input comes as it
    is made, anything else there is read to its end, and a file is left to libsndfile.
    """
    if audio != "-":
        if format is None:
            return audio
        return _raw_file(audio, format, rate, channels), rate
    pipe = Background(sys.stdin.fileno())
    if format is not None:
        return read_raw(pipe, format, rate, channels), rate
    start = pipe.peek(4)
    if not start:
        raise InputError(f"{NAME}: is empty")
    return read_wav(pipe) if start in (b"RIFF", b"RF64") else _Whole(pipe.read())


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
    """Writes the latents of `audio` to a file or, for "-", standard output; how many frames.

    `options`: of `MingAudio.encode`. What damaged a live source or interrupted it is raised at the
    end.
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
    kept, frames = [], 0
    with Ending() as ending:
        grouped = regrouped(ending.chunks(chunks), rate // 10, PATCHES * (rate // 10))
        try:
            for latents in ming.encode_stream(grouped, rate, **options):
                frames += len(latents)
                if target == "-":
                    write_piece(latents)
                else:
                    kept.append(latents)
        except InputError:
            ending.settle()  # what ended the source tells more
            raise
        if target == "-":
            write_piece(latents[:0])
        else:
            terminal.write_bytes(target, latents_to_bytes(np.concatenate(kept)))
    ending.settle()
    return frames


def write_piece(latents: np.ndarray) -> None:
    """A piece of a stream of latents to standard output, at once; without frames it is the last."""
    sys.stdout.buffer.write(latents_to_bytes(latents, more=len(latents) > 0))
    sys.stdout.buffer.flush()


def decode(ming: MingAudio, target: str, format: str | None, subtype: str) -> dict[str, Any]:
    """What `options.save` says of the sound of the latents on standard input, written as it comes.

    WAV on standard output has no length in its header.
    """
    rate, frames = ming.sample_rate, ming.model.config.patch_frames
    with Ending() as ending:
        pieces = ending.chunks(read_latents(Background(sys.stdin.fileno())))
        chunks = ming.decode_stream(regrouped(pieces, frames, PATCHES * frames))
        if target == "-" and output_format(target, format) == "wav":
            chunks, format = _behind_header(chunks, wav_header(rate, subtype)), "pcm"
        try:
            result = save(chunks, rate, target, format, subtype)
        except InputError:
            ending.settle()
            raise
    ending.settle()
    return result


def _behind_header(chunks: Iterator[Speech], header: bytes) -> Iterator[Speech]:
    for chunk in chunks:
        sys.stdout.buffer.write(header)
        header = b""
        yield chunk


def output(source: str, out: str | None, default: str) -> str:
    """Where results go: `out`; else standard output for what came on standard input; else a file.

    Raises InputError where bytes would go to a terminal that nobody asked for.
    """
    if out is not None or source != "-":
        return out or default
    if sys.stdout.isatty():
        raise InputError("output: standard output is a terminal; name a file with --out")
    return "-"
