"""Audio files, streams and arrays to mono float32 samples, and back.

soundfile (libsndfile) is imported when a file is read or written, soxr when a rate differs.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from .containers import Riff, decode_foreign, foreign_format, riff_of

logger = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_PEAK = 1e10  # what is further beyond full scale is no sound, and overflows in the encoder
# WAVEFORMATEXTENSIBLE's order of channels; the usual ones by number of channels; their share in a mono mix
_SPEAKERS = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")
_LAYOUTS = {6: ("FL", "FR", "FC", "LFE", "BL", "BR"), 8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")}
_WEIGHTS = dict.fromkeys(("FL", "FR", "FLC", "FRC", "BC"), 0.5) | {"FC": 0.7071, "LFE": 0.0}
_WEIGHTS |= dict.fromkeys(("BL", "BR", "SL", "SR"), 0.35355)
CLIP_RUN = 4  # consecutive samples at full scale from which a peak counts as clipped
_BLOCK_FRAMES = 1 << 18
# suffix → container; "pcm" and "raw" are headerless little-endian samples
SUFFIXES = {".wav": "wav", ".flac": "flac", ".pcm": "pcm", ".raw": "pcm"}
FORMATS = ("wav", "flac", "pcm")
SUBTYPES = ("int16", "float32")


def read_audio(source: Any, sample_rate: int = 16000, *, name: str = "audio") -> np.ndarray:
    """Reads `source` as mono samples [L] float32 at `sample_rate` Hz.

    `source`: a path, "-" (standard input), bytes, a binary file object, a `Speech`, or a pair (samples, rate) with
    samples [L], [L, channels] or [channels, L] of NumPy or PyTorch (integers are divided by full scale, floats are
    unchanged).
    Channels are mixed down by their layout (`mix`); another rate is resampled by soxr at quality HQ. What libsndfile
    does not read is decoded by ffmpeg where that is installed. Raises InputError, naming `name`, when the source is no
    audio, is empty, holds NaN or infinity, or values far beyond full scale.
    """
    if hasattr(source, "samples") and hasattr(source, "sample_rate"):
        # a result, such as a `Speech`: audio with its own rate
        source = (source.samples, source.sample_rate)
    if isinstance(source, tuple):
        samples, rate = _from_pair(source, name)
    else:
        samples, rate = _from_file(source, name)
        if isinstance(source, str | os.PathLike) and source != "-":
            name = f"{name} {str(source)!r}"
    if samples.size == 0:
        raise InputError(f"{name}: holds no samples")
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise InputError(f"{name}: sample {bad} of {samples.size} is {samples[bad]}, not a number")
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        raise InputError(f"{name}: samples reach {peak:.3g}; floats must be within full scale, about [-1, 1]")
    _warn_of_clipping(samples, name)
    return resample(samples, rate, sample_rate)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples [L] float32 at `rate` Hz → [about L·new_rate/rate] at `new_rate` Hz (soxr HQ)."""
    if rate == new_rate:
        return samples
    import soxr

    return soxr.resample(samples, rate, new_rate, quality="HQ").astype(np.float32, copy=False)


def require_samples(samples: np.ndarray, min_samples: int, what: str, *, name: str = "audio") -> None:
    """Raises InputError unless `samples` [L] at 16 kHz holds at least `min_samples`."""
    if samples.size < min_samples:
        raise InputError(
            f"{name}: must last at least {what} ({min_samples} samples, {min_samples / 16:.0f} ms at 16 kHz), "
            f"got {samples.size} samples"
        )


def _from_pair(pair: tuple, name: str) -> tuple[np.ndarray, int]:
    if len(pair) != 2:
        raise InputError(f"{name}: a tuple must be (samples, rate), got {len(pair)} items")
    samples, rate = pair
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu()
        # NumPy has no bfloat16
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    samples = np.asarray(samples)
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.integer | np.floating):
        raise InputError(f"{name}: the rate must be a number of Hz, got {rate!r}")
    if not np.isfinite(rate) or rate != int(rate):
        raise InputError(f"{name}: the rate must be a whole number of Hz, got {rate!r}")
    _check_rate(int(rate), name)
    return _mono(to_float(samples, name), name), int(rate)


def to_float(samples: np.ndarray, name: str) -> np.ndarray:
    """Samples as float32: integers divided by full scale, unsigned 8-bit ones centred at 128 as in wav files.

    Raises InputError, naming `name`, for another type.
    """
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return (samples / float(2 ** (8 * samples.dtype.itemsize - 1))).astype(np.float32)
    raise InputError(f"{name}: samples must be float or signed integer, got {samples.dtype}")


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    """[L], [L, channels] or [channels, L] → [L]; the shorter axis holds the channels."""
    if samples.ndim == 1:
        return np.ascontiguousarray(samples)
    if samples.ndim != 2:
        raise InputError(f"{name}: samples must be [L], [L, channels] or [channels, L], got {list(samples.shape)}")
    axis = int(np.argmin(samples.shape))
    channels = samples.shape[axis]
    if channels > MAX_CHANNELS:
        raise InputError(f"{name}: samples must have at most {MAX_CHANNELS} channels, got {list(samples.shape)}")
    if channels == 0:
        return np.zeros(0, np.float32)
    return mix([np.moveaxis(samples, axis, 1)], None, name)


def mix(blocks: Iterable[np.ndarray], mask: int | None, name: str) -> np.ndarray:
    """Blocks of samples [n, channels] float32 mixed down to [L].

    Mono and stereo are averaged, as is a number of channels without a usual layout. Of 5.1, 7.1 and what a WAV's
    channel mask names, the two sides of ITU-R BS.775's stereo are averaged: the centre at 0.707, the surrounds at half
    of that, low frequencies left out; scaled down where that would be louder than the loudest channel. Warns where
    channels cancel each other.
    """
    mixed, there, weights = [], 0.0, None
    for block in blocks:
        weights = _mix_weights(block.shape[1], mask)
        mixed.append(block.mean(axis=1, dtype=np.float32) if weights is None else block @ weights)
        there = there + np.square(block, dtype=np.float64).sum(axis=0)
    samples = np.concatenate(mixed) if mixed else np.zeros(0, np.float32)
    heard = float(np.square(samples, dtype=np.float64).sum())
    loudest, channels = float(np.max(there)), np.size(there)
    if weights is not None and 0 < loudest < heard:
        samples *= np.float32(np.sqrt(loudest / heard))
    if channels > 1 and np.isfinite(loudest) and loudest > 1e-8 * len(samples) and heard < 0.01 * loudest:
        logger.warning(
            "%s: its channels cancel each other (%.0f dB left); pass one of them", name, _db(heard / loudest)
        )
    return samples


def _db(ratio: float) -> float:
    return 10 * float(np.log10(max(ratio, 1e-20)))


def _mix_weights(channels: int, mask: int | None) -> np.ndarray | None:
    if channels < 3:
        return None
    names = [name for bit, name in enumerate(_SPEAKERS) if mask is not None and mask >> bit & 1]
    if len(names) != channels:
        names = _LAYOUTS.get(channels, [])
    if not names:
        return None
    return np.array([_WEIGHTS[name] for name in names], np.float32)


def _from_file(source: Any, name: str) -> tuple[np.ndarray, int]:
    import soundfile

    handle, label = _open(source, name)
    try:
        if handle.seek(0, os.SEEK_END) == 0:
            raise InputError(f"{label}: is empty")
        handle.seek(0)
        foreign = foreign_format(handle.read(16))
        handle.seek(0)
        if foreign is not None:
            return decode_foreign(handle, foreign, label)
        riff = riff_of(handle)
        with soundfile.SoundFile(handle) as file:
            _check_rate(file.samplerate, label)
            rate = file.samplerate
            samples = mix(_blocks(file), None if riff is None else riff.mask, label)
        if riff is not None:
            _note_lengths(riff, label)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{label}: not an audio file that libsndfile reads ({str(error.error_string).rstrip('.')})"
        ) from None
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{label}: cannot be read as audio ({error})") from None
    finally:
        if isinstance(source, str | os.PathLike):
            handle.close()
    return samples, rate


def _blocks(file: Any) -> Iterator[np.ndarray]:
    """`blocks` of soundfile wants to seek, which GSM cannot."""
    while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        yield block


def _note_lengths(riff: Riff, label: str) -> None:
    if riff.declared in (0, 0xFFFFFFFF) or riff.declared > riff.available:
        logger.warning(
            "%s: its header says %d bytes of samples, the file has %d; these are read",
            label,
            riff.declared,
            riff.available,
        )
    elif riff.behind > 1 and riff.available - riff.declared > 8:
        logger.warning("%s: %d bytes behind the end that its header gives are not read", label, riff.behind)


def require_other_file(source: Any, target: Any) -> None:
    """Raises InputError where writing `target` would overwrite `source`, by any of its names."""
    if not all(isinstance(each, str | os.PathLike) and str(each) != "-" for each in (source, target)):
        return
    try:
        same = os.path.samefile(source, target)
    except (OSError, ValueError):
        return
    if same and Path(source).is_file():
        raise InputError(f"output {str(target)!r}: is the input {str(source)!r}; name another file")


def free_name(path: str) -> str:
    """`path`, or where there is such a file already the first free of "name-2.wav", "name-3.wav", ..."""
    found, number = Path(path), 1
    while found.exists() or found.is_symlink():
        number += 1
        found = Path(path).with_stem(f"{Path(path).stem}-{number}")
    return str(found)


def _open(source: Any, name: str) -> tuple[BinaryIO, str]:
    """(a seekable binary file, its name in error messages)."""
    if isinstance(source, str) and source == "-":
        return BytesIO(sys.stdin.buffer.read()), f"{name} (standard input)"
    if isinstance(source, str) and not source.strip():
        raise InputError(f"{name} {source!r}: the name is empty")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        label = f"{name} {str(path)!r}"
        try:
            handle = path.open("rb")
            if handle.seekable():
                return handle, label
            with handle:
                return BytesIO(handle.read()), label
        except FileNotFoundError:
            raise InputError(f"{label}: no such file") from None
        except IsADirectoryError:
            raise InputError(f"{label}: is a folder, not an audio file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{label}: cannot be read ({reason})") from None
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source), f"{name} (bytes)"
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise InputError(f"{name}: the file object must be opened in binary mode")
        return BytesIO(data), f"{name} {getattr(source, 'name', '(file object)')!r}"
    raise InputError(
        f"{name}: must be a path, a binary file object, bytes or (samples, rate), got {type(source).__name__}"
    )


def _check_rate(rate: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name}: the rate must be {MIN_RATE} to {MAX_RATE} Hz, got {rate}")


def _warn_of_clipping(samples: np.ndarray, name: str) -> None:
    """Logs a warning for peaks cut flat at full scale and for floats beyond it."""
    peak = float(np.abs(samples).max())
    if peak > 1.0:
        logger.warning("%s: samples reach %.3g, more than full scale (1.0)", name, peak)
    if peak < 1.0 - 2**-7:
        return
    # 8-bit full scale is 1 − 2⁻⁷
    full = np.abs(samples) >= min(peak, 1.0)
    starts = np.flatnonzero(np.diff(np.concatenate(([False], full, [False])).astype(np.int8)))
    runs = starts[1::2] - starts[::2]
    if (runs >= CLIP_RUN).any():
        logger.warning("%s: clipped, %d peaks are cut flat at full scale", name, int((runs >= CLIP_RUN).sum()))


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [−1, 1) → int16: x · 32768, rounded to nearest even and clamped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def output_format(target: Any, format: str | None = None) -> str:
    """The container of `target`: `format` if given, else by its suffix, else wav.

    Raises InputError for an unknown format or suffix.
    """
    if format is not None:
        if format not in FORMATS:
            raise InputError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")
        return format
    if isinstance(target, str | os.PathLike) and str(target) != "-":
        suffix = Path(target).suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"output {str(target)!r}: must end in {', '.join(SUFFIXES)} unless a format is given")
        return SUFFIXES[suffix]
    return "wav"


def check_writable(target: Any, format: str | None = None, subtype: str = "int16") -> None:
    """Raises InputError if `target` cannot be written: a check before expensive work."""
    _check_subtype(output_format(target, format), subtype)
    if not isinstance(target, str | os.PathLike) or str(target) == "-":
        return
    path = _real(target)
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a device or a pipe: opened when written
    file, partial = _create_partial(path)
    file.close()
    partial.unlink()


def _real(target: str | os.PathLike) -> Path:
    """`target` with symbolic links resolved, so that renaming replaces the file that a link points to."""
    try:
        path = Path(os.path.realpath(target))
        path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"output {str(target)!r}: cannot be written ({reason})") from None
    return path


def _check_subtype(container: str, subtype: str) -> None:
    if subtype not in SUBTYPES:
        raise InputError(f"subtype: must be one of {', '.join(SUBTYPES)}, got {subtype!r}")
    if container == "flac" and subtype == "float32":
        raise InputError("subtype: flac holds integers only, got 'float32'")


def _create_partial(path: Path) -> tuple[BinaryIO, Path]:
    """A new temporary file beside `path`, with the permissions that `path` would get."""
    if path.is_dir():
        raise InputError(f"output {str(path)!r}: is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"output {str(path)!r}: cannot be written (Permission denied)")
    partial = path.with_name(f".mingcore.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        return partial.open("xb"), partial
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written ({error.strerror})") from None


class AudioWriter:
    """Writes mono samples chunk by chunk to a file, "-" (standard output) or a file object.

    A path is written to a temporary file beside it, which is renamed at the end; leaving the `with` block by an
    exception removes it. A stream gets headerless pcm chunk by chunk, but wav and flac at the end, because their
    headers hold the length.
    """

    def __init__(self, target: Any, sample_rate: int = 16000, *, format: str | None = None, subtype: str = "int16"):
        self.container = output_format(target, format)
        _check_subtype(self.container, subtype)
        self.subtype = subtype
        self._partial = self._path = self._stream = None
        if isinstance(target, str | os.PathLike) and str(target) != "-":
            self._open_path(_real(target))
        elif target == "-":
            self._stream = sys.stdout.buffer
        elif hasattr(target, "write"):
            self._stream = target
        else:
            raise InputError(f"output: must be a path, '-' or a binary file object, got {type(target).__name__}")
        self._buffer = None
        if self.container != "pcm" and self._stream is not None:
            self._buffer = BytesIO()
        self._sound = None
        if self.container != "pcm":
            import soundfile

            self._sound = soundfile.SoundFile(
                self._file if self._buffer is None else self._buffer,
                "w",
                sample_rate,
                1,
                {"int16": "PCM_16", "float32": "FLOAT"}[subtype],
                format=self.container.upper(),
            )

    def _open_path(self, path: Path) -> None:
        self._path = path
        if path.exists() and not path.is_file() and not path.is_dir():
            try:
                self._stream = self._device = path.open("wb")
            except OSError as error:
                raise InputError(f"output {str(path)!r}: cannot be written ({error.strerror})") from None
        else:
            self._file, self._partial = _create_partial(path)

    def write(self, samples: Any) -> None:
        """Appends float samples [L] of NumPy or PyTorch. Raises InputError for another shape, NaN or infinity."""
        if hasattr(samples, "detach"):
            samples = samples.detach().cpu().float().numpy()
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise InputError(f"samples: must be [L], got {list(samples.shape)}")
        if not np.isfinite(samples).all():
            raise InputError("samples: hold NaN or infinity, nothing to write")
        data = to_int16(samples) if self.subtype == "int16" else samples
        if self._sound is not None:
            self._sound.write(data)
            return
        raw = data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
        (self._file if self._stream is None else self._stream).write(raw)
        if self._stream is not None:
            self._stream.flush()

    def close(self) -> None:
        """Finishes the header and renames the file to its path."""
        if self._sound is not None:
            self._sound.close()
        if self._buffer is not None:
            self._stream.write(self._buffer.getvalue())
            self._stream.flush()
        if self._partial is not None:
            self._file.close()
            os.replace(self._partial, self._path)
            self._partial = None
        elif self._path is not None:
            self._device.close()

    def abort(self) -> None:
        """Removes what was written to a path; what a stream got remains."""
        if self._sound is not None:
            self._sound.close()
        if self._partial is not None:
            self._file.close()
            self._partial.unlink()
            self._partial = None
        elif self._path is not None:
            self._device.close()

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_audio(
    target: Any, samples: Any, sample_rate: int = 16000, *, format: str | None = None, subtype: str = "int16"
) -> None:
    """Writes mono samples [L] as wav, flac or headerless pcm; 16-bit, or 32-bit float.

    The container follows the suffix unless `format` names one; paths are written atomically.
    Raises InputError for a target that cannot be written.
    """
    with AudioWriter(target, sample_rate, format=format, subtype=subtype) as writer:
        writer.write(samples)
