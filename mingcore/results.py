"""What a request gives back: Speech, Transcript, and the Voice that speech borrows."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .audio.files import write_audio
from .errors import InputError
from .runtime.stats import Stats

VOICE_FORMAT = "mingcore-voice-1"


@dataclass
class Speech:
    """Sound, or a piece of it: `samples` [L] float32 in about [−1, 1], at `sample_rate` Hz.

    `text` is what an edit wrote before it spoke (a piece of it in a stream), else None.
    """

    samples: np.ndarray
    sample_rate: int
    stats: Stats = field(default_factory=Stats)
    text: str | None = None

    @property
    def seconds(self) -> float:
        return self.samples.size / self.sample_rate

    def save(self, path: Any, *, format: str | None = None, subtype: str = "int16") -> None:
        """Writes .wav, .flac, .pcm or .raw by its suffix, "-" or a file object as wav.

        `subtype`: "int16", or "float32" for wav and pcm. Raises InputError for what cannot be
        written.
        """
        write_audio(path, self.samples, self.sample_rate, format=format, subtype=subtype)


@dataclass
class Transcript:
    """What was understood, or a piece of it in a stream; `language` as the model named it."""

    text: str
    stats: Stats = field(default_factory=Stats)
    language: str | None = None


class LanguageTag:
    """Splits "Chinese\\t今天…" as it streams: recognition answers with the language first."""

    LONGEST = 24

    def __init__(self) -> None:
        self.language: str | None = None
        self._held: str | None = ""

    def push(self, text: str) -> str:
        """The part of `text` that belongs to the transcript."""
        if self._held is None:
            return text
        self._held += text
        tag, tab, rest = self._held.partition("\t")
        if tab and len(tag) <= self.LONGEST:
            self.language, self._held = tag.strip() or None, None
            return rest
        return self.flush() if len(tag) > self.LONGEST or "\n" in tag else ""

    def flush(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, None
        return held or ""


@dataclass(frozen=True)
class Voice:
    """A reference voice, encoded: latents [n·5, 64] float32 and what is said in them.

    `checkpoint` is the fingerprint of the audio tokenizer that made it; another one's latents
    mean nothing. Empty: unknown, used unchecked.
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

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file, at once or not at all. Raises InputError if it cannot."""
        from safetensors.numpy import save

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
        from safetensors import SafetensorError, safe_open

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
