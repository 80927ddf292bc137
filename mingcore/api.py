"""The public class: speak, transcribe, edit, encode and decode with one checkpoint."""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import normalize as norm
from .audio import read_audio, require_samples
from .devices import as_device, as_dtype
from .errors import CheckpointError, InputError
from .fidelity import RoundTrip
from .live import resampled
from .model import load
from .results import Speech, Transcript, Voice
from .runtime import generate, tasks
from .runtime.fingerprint import fingerprint
from .runtime.locate import locate
from .runtime.noise import SeededNoise
from .runtime.params import (
    ContextParams,
    FlowParams,
    TextParams,
    draw_seed,
    number,
    seconds_range,
)
from .runtime.speaking import Progress, SpeechRequest, say, to_numpy
from .runtime.stats import Meter

__all__ = ["MingAudio", "RoundTrip", "Speech", "Transcript", "Voice"]

logger = logging.getLogger(__name__)

# audio in is processed whole; beyond this a log line says so
LONG_AUDIO_SECONDS = 600.0


class MingAudio:
    """A checkpoint, ready to use. Requests run one at a time.

    Every method that makes sound or text takes `seed` (drawn and recorded in `.stats` when not
    given): the same seed gives the same bits on one device. What the caller got wrong raises
    InputError before anything expensive starts. Audio in is a path, "-" (standard input), bytes,
    a binary file object, or (samples, rate).
    """

    def __init__(self, model: Any, folder: Path | None = None):
        self.model, self.folder = model, folder
        self._fingerprint = "" if folder is None else fingerprint(folder)
        self._default_voice: Voice | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        weights: str | None = None,
    ) -> "MingAudio":
        """Loads a folder, a hub id ("owner/name") or a bundled checkpoint ("tiny").

        `device`: by default a GPU if there is one. `weights`: the format of the large matrices,
        "fp32", "fp16", "bf16", or quantised while they are read, "int8", "int8_dyn" (activations
        too: the fastest on a CPU) or "fp8"; by default that of `dtype`. `dtype`, of weights that
        are not quantised: by default float32 on a CPU, bfloat16 on a GPU and beside quantised ones.
        Raises InputError when there is no such checkpoint or device,
        CheckpointError when its files are damaged.
        """
        device, dtype = as_device(device), as_dtype(dtype)
        folder = locate(name_or_path)
        return cls(load(folder, device=device, dtype=dtype, weights=weights), folder)

    @property
    def sample_rate(self) -> int:
        """Of all sound that comes out, in Hz."""
        return self.model.config.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.llm.device

    def voice(self, audio: Any, transcript: str = "", *, seed: int = 0) -> Voice:
        """Encodes a recording of someone saying `transcript`, for `tts` to speak like it.

        The latents are sampled, as in training; `seed` fixes them.
        """
        if not isinstance(transcript, str):
            raise InputError(f"transcript: must be a string, got {type(transcript).__name__}")
        noise = SeededNoise(draw_seed(seed), self.device)
        samples = self._read(audio, self._patch_samples, "one patch")
        latents = generate.sample_latents(self.model, samples, noise)
        return Voice(to_numpy(latents[0]), transcript.strip(), self._fingerprint)

    @property
    def voices(self) -> list[str]:
        """Names of the voices that come with the checkpoint."""
        folder = self.folder
        return [] if folder is None else sorted(p.stem for p in folder.glob("voices/*.safetensors"))

    def tts(self, text: str, voice: Voice | str | Path | None = None, **options: Any) -> Speech:
        """Speaks `text`: everything that `tts_stream` gives, in one; the same options."""
        return _whole(self.tts_stream(text, voice, **options))

    def tts_stream(
        self,
        text: str,
        voice: Voice | str | Path | None = None,
        *,
        seed: int | None = None,
        steps: int = 10,
        guidance: float = 2.0,
        temperature: float = 1.5,
        sigma: float = 0.25,
        noise: str = "reference",
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        normalize: bool = True,
        language: str | None = None,
        pause_seconds: float = 0.15,
        keep_context: bool = False,
        context_seconds: float | None = None,
        context_format: str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Speech]:
        """Speaks `text` in chunks of about 100 ms, each as soon as it is made.

        `voice`: a Voice, a voice file, a name in `voices`; None is the checkpoint's default.
        `steps`, `guidance`, `temperature`, `sigma`: the flow sampler's. `noise`: the order of its
        draws, the reference's or "per_request", which does not depend on device or batch.
        `min_seconds`: not to end before (None: 1.8 s, as trained). `max_seconds`: of the whole
        (None: several times what the text should take). `normalize`: numbers, dates and units
        in words, in `language` ("zh", "en", None: detected by sentence). Long texts are spoken in
        segments cut at sentence ends, `pause_seconds` apart, each of which starts anew at the
        voice: memory is bounded by the longest. Three options depart from the reference
        (`mingcore.precision.measure_context` says what they cost): `keep_context` lets the model go
        on hearing what it said over segments, and memory grows; `context_seconds` bounds what it
        hears; `context_format` "int8" keeps that in 8 bits. `progress` is told the seconds made so
        far. All chunks share one `stats`. Closing the iterator frees the request's memory.
        """
        flow = FlowParams(steps, guidance, temperature, sigma, noise)
        low, high = seconds_range(min_seconds, max_seconds)
        pause = number("pause_seconds", pause_seconds, 0, 60)
        context = ContextParams(keep_context, context_seconds, context_format)
        texts = norm.segments(text, language, normalized=bool(normalize))
        self._require_tokenizer()
        request = SpeechRequest(
            tuple((t, norm.speaking_seconds(t)) for t in texts),
            *self._voice_latents(voice),
            flow,
            draw_seed(seed),
            low,
            high,
            pause,
            progress,
            context,
        )
        return say(self.model, request)

    def transcribe(self, audio: Any, instruction: str | None = None, **options: Any) -> Transcript:
        """What `audio` says, or the answer to `instruction`; the options of `transcribe_stream`."""
        pieces = list(self.transcribe_stream(audio, instruction, **options))
        text = "".join(piece.text for piece in pieces)
        return Transcript(text, pieces[-1].stats, pieces[-1].language)

    def transcribe_stream(
        self,
        audio: Any,
        instruction: str | None = None,
        *,
        language: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Transcript]:
        """Text about `audio` in pieces, none with half a character; the last one may be empty.

        `instruction`: None recognises the language and transcribes; a question is answered.
        `language`, when known ("zh", "en" or a name): the answer is in it. `temperature` 0 takes
        the likeliest token. The audio is processed whole: memory grows with its length.
        """
        params = TextParams(max_new_tokens, temperature)
        if instruction is not None:
            _check_text("instruction", instruction)
        if language is not None:
            _check_text("language", language)
        self._require_tokenizer()
        seed = draw_seed(seed)
        samples = self._read(audio, self._patch_samples, "one patch")
        request = tasks.UnderstandRequest(samples, instruction, language, params, seed)
        return tasks.understand(self.model, request)

    def edit(self, audio: Any, instruction: str, **options: Any) -> Speech:
        """`audio` changed as `instruction` says: everything that `edit_stream` gives, in one."""
        return _whole(self.edit_stream(audio, instruction, **options))

    def edit_stream(
        self,
        audio: Any,
        instruction: str,
        *,
        reasoning: bool = True,
        seed: int | None = None,
        steps: int = 10,
        guidance: float = 2.0,
        temperature: float = 1.5,
        sigma: float = 0.25,
        noise: str = "reference",
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        max_new_tokens: int = 512,
        context_seconds: float | None = None,
        context_format: str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Speech]:
        """First pieces of text (`.text`, no samples), then sound in chunks of about 100 ms.

        `instruction`: such as "insert 'really' before the third word". `reasoning`: the model
        first writes what it will say. `max_seconds`: None allows twice the input and ten more;
        `min_seconds`: None is 1.7 s, as trained. When the model's text ends, or reaches
        `max_new_tokens`, without asking for sound, that is logged and sound follows anyway.
        `context_seconds`, `context_format`: as in `tts_stream`.
        """
        flow, params = (
            FlowParams(steps, guidance, temperature, sigma, noise),
            TextParams(max_new_tokens),
        )
        low, high = seconds_range(min_seconds, max_seconds)
        context = ContextParams(False, context_seconds, context_format)
        _check_text("instruction", instruction)
        self._require_tokenizer()
        seed = draw_seed(seed)
        samples = self._read(audio, self._patch_samples, "one patch")
        request = tasks.EditRequest(
            samples, instruction, bool(reasoning), params, flow, seed, low, high, progress, context
        )
        return tasks.edit(self.model, request)

    def encode(self, audio: Any, *, sample: bool = False, seed: int | None = None) -> np.ndarray:
        """Latents [T, 64] float32 of `audio`, 50 a second: the mean, or one draw with `sample`."""
        samples = self._read(audio, self.model.config.hop_samples, "one frame")
        with torch.no_grad():
            mean, std = self.model.vae.encode(samples)
            if sample:
                noise = SeededNoise(draw_seed(seed), self.device).posterior(mean)
                mean = self.model.vae.sample_posterior(mean, std, noise)
        return to_numpy(mean[0])

    def encode_stream(
        self,
        chunks: Iterable[Any],
        sample_rate: int | None = None,
        *,
        sample: bool = False,
        seed: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Latents [t, 64] float32, t ≥ 1, of consecutive chunks of samples, as they come.

        Chunks are [l] of NumPy or PyTorch, any l ≥ 0, float or integers by their full scale, at
        `sample_rate` Hz (None: the checkpoint's). All pieces together equal `encode` of the whole;
        with `sample` the draws come in another order. The last piece is padded to a frame. Memory
        does not grow. Raises InputError for a chunk that is no such samples, and when none of them
        holds any.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        pieces = resampled(chunks, rate, self.sample_rate)
        noise = SeededNoise(draw_seed(seed), self.device) if sample else None
        return self._encode_pieces(pieces, noise)

    def _encode_pieces(
        self, pieces: Iterator[np.ndarray], noise: SeededNoise | None
    ) -> Iterator[np.ndarray]:
        vae, nothing = self.model.vae, np.zeros(0, np.float32)
        state = vae.new_encoder_state(1)
        # the end is a chunk of its own, so that none waits for the next
        for samples, last in chain(zip(pieces, repeat(False)), [(nothing, True)]):
            x = torch.from_numpy(samples).to(self.device)[None]
            with torch.no_grad():
                mean, std, _ = vae.encode_stream(x, state, last)
                if noise is not None and mean.shape[1]:
                    mean = vae.sample_posterior(mean, std, noise.posterior(mean))
            if mean.shape[1]:
                yield to_numpy(mean[0])
        if state.max_length == 0:
            raise InputError("audio: the stream held no samples")

    def decode(self, latents: Any) -> Speech:
        """The sound of latents [T, 64] (NumPy or PyTorch): T · 320 samples."""
        latents = self._latents("latents", latents)
        return next(self._decode_pieces(iter([(latents, True)]), None))

    def decode_stream(self, chunks: Iterable[Any]) -> Iterator[Speech]:
        """The sound of consecutive chunks of latents [t, 64], each t ≥ 1, as they come.

        No chunk waits for the next: the sound that later ones still overlap (60 ms) is held back,
        and the last piece brings what was. All pieces share one `stats`. Memory does not grow.
        Raises InputError for a chunk that is no latents, or when there is none.
        """
        latents = (self._latents("latents", chunk) for chunk in chunks)
        nothing = torch.empty(1, 0, self.model.config.latent_dim, device=self.device)
        pieces = chain(zip(latents, repeat(False)), [(nothing, True)])
        return self._decode_pieces(pieces, self.model.vae.new_decoder_state(1))

    def roundtrip(self, audio: Any, *, sample: bool = False, seed: int | None = None) -> RoundTrip:
        """`audio` through `encode` and `decode`, for a look at what the codec keeps of it."""
        samples = self._read(audio, self.model.config.hop_samples, "one frame")[0].cpu().numpy()
        start = time.perf_counter()
        latents = self.encode((samples, self.sample_rate), sample=sample, seed=seed)
        middle = time.perf_counter()
        again = self.decode(latents).samples[: samples.size]
        end = time.perf_counter()
        return RoundTrip(
            samples, again, self.sample_rate, len(latents), middle - start, end - middle
        )

    def _decode_pieces(self, pieces: Iterator[tuple[Tensor, bool]], state: Any) -> Iterator[Speech]:
        meter, begun = Meter(self.device), False
        meter.pause()
        for latents, last in pieces:
            begun = begun or latents.shape[1] > 0
            if not begun:
                raise InputError("latents: there is no chunk to decode")
            meter.resume()
            with torch.no_grad():
                sound, _ = self.model.vae.decode(latents, state, last)
            samples = to_numpy(sound[0])
            meter.heard(samples.size, self.sample_rate)
            meter.pause()
            meter.stats.ended_by = "stop" if last else None
            if samples.size:
                yield Speech(samples, self.sample_rate, meter.stats)

    @property
    def _patch_samples(self) -> int:
        return self.model.config.patch_frames * self.model.config.hop_samples

    def _read(self, audio: Any, least: int, what: str) -> Tensor:
        """Samples [1, L] on the device, L at least `least`."""
        samples = read_audio(audio, self.sample_rate)
        require_samples(samples, least, what)
        seconds = samples.size / self.sample_rate
        if seconds > LONG_AUDIO_SECONDS:
            logger.warning("audio: %.0f s are processed whole; memory grows with them", seconds)
        return torch.from_numpy(np.ascontiguousarray(samples)).to(self.device)[None]

    def _require_tokenizer(self) -> None:
        if self.model.tokenizer is None:
            raise CheckpointError(f"checkpoint {self.folder}: has no tokenizer.json")

    def _voice_latents(self, voice: Voice | str | Path | None) -> tuple[Tensor, str]:
        """([1, n·P, 64] on the device, transcript) of a Voice, a voice file or a known name."""
        voice = self._resolve_voice(voice)
        if voice.checkpoint and self._fingerprint and voice.checkpoint != self._fingerprint:
            raise InputError(
                f"voice: was made with another checkpoint ({voice.checkpoint}), "
                f"this one is {self._fingerprint}"
            )
        latents = self._latents("voice", voice.latents)
        return generate.whole_patches(self.model, latents), voice.transcript

    def _resolve_voice(self, voice: Voice | str | Path | None) -> Voice:
        if isinstance(voice, Voice):
            return voice
        if voice is None:
            if self._default_voice is None:
                if "default" not in self.voices:
                    raise InputError("voice: this checkpoint brings none; make one with `voice`")
                self._default_voice = Voice.load(self.folder / "voices" / "default.safetensors")
            return self._default_voice
        if not isinstance(voice, str | Path):
            raise InputError(f"voice: must be a Voice or a path, got {type(voice).__name__}")
        if str(voice) in self.voices:
            return Voice.load(self.folder / "voices" / f"{voice}.safetensors")
        if Path(voice).suffix != ".safetensors":
            raise InputError(
                f"voice {str(voice)!r}: is no voice file (.safetensors) and none of this "
                f"checkpoint's ({', '.join(self.voices) or 'it has none'})"
            )
        return Voice.load(voice)

    def _latents(self, name: str, latents: Any) -> Tensor:
        """[T, 64] or [1, T, 64] of NumPy or PyTorch → [1, T, 64] float32 on the device."""
        channels = self.model.config.latent_dim
        if not isinstance(latents, Tensor):
            latents = np.asarray(latents)
            if latents.dtype.kind != "f":
                raise InputError(f"{name}: latents must be float, got {latents.dtype}")
            latents = torch.from_numpy(np.ascontiguousarray(latents, np.float32))
        shape = list(latents.shape)
        if latents.dim() == 3 and shape[0] == 1:
            latents = latents[0]
        if latents.dim() != 2 or latents.shape[1] != channels or latents.shape[0] == 0:
            raise InputError(f"{name}: latents must be [T, {channels}] with T >= 1, got {shape}")
        latents = latents.to(self.device, torch.float32)
        if not bool(latents.isfinite().all()):
            raise InputError(f"{name}: latents hold NaN or infinity")
        return latents[None]


def _whole(chunks: Iterator[Speech]) -> Speech:
    """The chunks of a stream as one Speech."""
    parts = list(chunks)
    texts = [part.text for part in parts if part.text is not None]
    return Speech(
        np.concatenate([part.samples for part in parts]),
        parts[-1].sample_rate,
        parts[-1].stats,
        "".join(texts) if texts else None,
    )


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name}: must be a text that is not empty, got {text!r}")
