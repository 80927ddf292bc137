"""The results of requests: Speech, Transcript and their Stats, and the Voice that speech imitates."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .audio.files import write_audio
from .errors import InputError

VOICE_FORMAT = "mingcore-voice-1"


@dataclass
class Stats:
    """Figures of one request; None where they do not apply.

    `compute_seconds`: without the time of a stream's consumer; of a request in a batch the time from when it got its
    slot, in which all requests of the batch advance. `peak_memory_bytes`: of the device's allocator on a GPU, of the
    process on a CPU. `ended_by`: "stop" (the model ended), "limit" (a duration or token limit), None while running or
    when cancelled. `kernels`: with a bundle of compiled kernels, which one, how many kernels are from it, and how many
    were compiled nevertheless (`aot.install.InstalledBundle`). `suspect`: of speech, what
    sounds wrong with it, None where nothing does: "silent", "too_short", "too_long" or "clipped"
    (`runtime.suspect.SpeechJudge`). `attempts`: how often it was spoken (`retries`); `seed` is that of the one kept.
    """

    seed: int | None = None
    audio_seconds: float = 0.0
    compute_seconds: float = 0.0
    time_to_first_audio: float | None = None
    patches: int = 0
    segments: int = 0
    prompt_tokens: int = 0
    text_tokens: int = 0
    peak_memory_bytes: int = 0
    ended_by: str | None = None
    kernels: dict | None = None
    suspect: tuple[str, ...] | None = None
    attempts: int = 1

    @property
    def real_time_factor(self) -> float | None:
        """Compute seconds per second of audio; below 1 is faster than real time."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else None

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return asdict(self) | {"real_time_factor": self.real_time_factor}

    def __str__(self) -> str:
        parts = [f"{self.audio_seconds:.2f} s of audio in {self.compute_seconds:.2f} s"]
        if self.real_time_factor is not None:
            parts.append(f"real-time factor {self.real_time_factor:.3f}")
        if self.time_to_first_audio is not None:
            parts.append(f"first audio after {1000 * self.time_to_first_audio:.0f} ms")
        if self.patches:
            parts.append(f"{self.patches} patches")
        if self.text_tokens:
            parts.append(f"{self.text_tokens} text tokens")
        if self.kernels:
            given = f"{self.kernels['triton']} of Triton, {self.kernels['cuda']} ops of CUDA"
            parts.append(f"kernels from a bundle ({given}; {self.kernels['compiled']} compiled)")
        parts.append(f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.attempts > 1:
            parts.append(f"{self.attempts} attempts")
        if self.suspect:
            parts.append(f"suspect: {', '.join(self.suspect).replace('_', ' ')}")
        return ", ".join(parts)


@dataclass(eq=False)
class Speech:
    """Audio, or a piece of it: `samples` [L] float32 in about [−1, 1], at `sample_rate` Hz.

    `text` is the text that an edit wrote before its audio (a piece of it in a stream), else None. `spans`: that text in
    parts, each with whether the edit changed it, where the model marked them; with the last piece of text in a stream.
    """

    samples: np.ndarray
    sample_rate: int
    stats: Stats = field(default_factory=Stats)
    text: str | None = None
    spans: tuple[tuple[str, bool], ...] | None = None

    @property
    def seconds(self) -> float:
        return self.samples.size / self.sample_rate

    def __eq__(self, other: object) -> bool:
        """Whether sound and text are the same; what it took does not count."""
        if not isinstance(other, Speech):
            return NotImplemented
        same = (self.sample_rate, self.text) == (other.sample_rate, other.text)
        return same and np.array_equal(self.samples, other.samples)

    __hash__ = None

    def __repr__(self) -> str:
        text = "" if self.text is None else f", text={self.text!r}"
        return f"Speech({self.seconds:.2f} s at {self.sample_rate} Hz{text})"

    def save(self, path: Any, *, format: str | None = None, subtype: str = "int16") -> None:
        """Writes .wav, .flac, .pcm or .raw by the suffix of `path`; "-" (standard output) and a file object as wav.

        `format`: "wav", "flac" or "pcm", in place of the suffix. `subtype`: "int16", or "float32" for wav and pcm.
        Raises InputError when it cannot be written.
        """
        write_audio(path, self.samples, self.sample_rate, format=format, subtype=subtype)


@dataclass
class Transcript:
    """A transcript or an answer, or a piece of it in a stream; `language` as the model named it, or None."""

    text: str
    stats: Stats = field(default_factory=Stats)
    language: str | None = None


class LanguageTag:
    """Separates the language from a streamed transcript such as "Chinese\\t今天…"."""

    MAX_LENGTH = 24

    def __init__(self) -> None:
        self.language: str | None = None
        self._held: str | None = ""

    def push(self, text: str) -> str:
        """The part of `text` that belongs to the transcript."""
        if self._held is None:
            return text
        self._held += text
        tag, tab, rest = self._held.partition("\t")
        if tab and len(tag) <= self.MAX_LENGTH:
            self.language, self._held = tag.strip() or None, None
            return rest
        return self.flush() if len(tag) > self.MAX_LENGTH or "\n" in tag else ""

    def flush(self) -> str:
        """The text held back so far, when no language comes."""
        held, self._held = self._held, None
        return held or ""


@dataclass(frozen=True, eq=False)
class Voice:
    """A reference voice, encoded: latents [n·5, 64] float32 and their transcript.

    `checkpoint`: fingerprint of the audio tokenizer that encoded it; another tokenizer's latents are meaningless.
    Empty: unknown, not checked. Raises InputError for other shapes and dtypes, NaN or infinity.
    """

    latents: np.ndarray
    transcript: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        latents = self.latents
        if latents.ndim != 2 or latents.dtype != np.float32 or latents.shape[0] == 0:
            raise InputError(
                f"voice: latents must be [frames, channels] float32, got {list(latents.shape)} {latents.dtype}"
            )
        if not np.isfinite(latents).all():
            raise InputError("voice: latents hold NaN or infinity")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Voice):
            return NotImplemented
        same = (self.transcript, self.checkpoint) == (other.transcript, other.checkpoint)
        return same and np.array_equal(self.latents, other.latents)

    def __hash__(self) -> int:
        return hash((self.latents.tobytes(), self.transcript, self.checkpoint))

    def __repr__(self) -> str:
        return f"Voice({self.latents.shape[0]} frames, transcript={self.transcript!r})"

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file atomically. Raises InputError if it cannot be written."""
        metadata = {"format": VOICE_FORMAT, "transcript": self.transcript, "checkpoint": self.checkpoint}
        data = save({"latents": np.ascontiguousarray(self.latents)}, metadata)
        path = Path(path)
        partial = path.with_name(f".mingcore.{os.getpid()}.{os.urandom(4).hex()}.part")
        try:
            if path.is_dir():
                raise IsADirectoryError(21, "is a folder")
            with partial.open("xb") as file:
                file.write(data)
            os.replace(partial, path)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                partial.unlink()
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"voice {str(path)!r}: cannot be written ({reason})") from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Voice":
        """Reads a file that `save` wrote. Raises InputError for anything else."""
        label = f"voice {str(path)!r}"
        try:
            is_file = Path(path).is_file()
        except (OSError, ValueError) as error:
            raise InputError(f"{label}: cannot be read ({error})") from None
        if not is_file:
            raise InputError(f"{label}: no such file")
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
                if metadata.get("format") != VOICE_FORMAT or names != {"latents"}:
                    raise InputError(f"{label}: is no voice file; make one with `voice(...).save`")
                latents = file.get_tensor("latents")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{label}: is no voice file ({error})") from None
        return cls(latents, metadata.get("transcript", ""), metadata.get("checkpoint", ""))
