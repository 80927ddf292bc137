"""The public class: speak, transcribe, edit, encode and decode with one checkpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..aot import install_bundle
from ..config.devices import as_device, as_dtype
from ..errors import CheckpointError, InputError
from ..fidelity import RoundTrip
from ..model import load
from ..results import Speech, Transcript, Voice
from ..runtime import prefill
from ..runtime.editing import EditRequest
from ..runtime.fingerprint import fingerprint
from ..runtime.locate import locate
from ..runtime.noise import SeededNoise
from ..runtime.params import ContextParams, FlowParams, TextParams, draw_seed, number, seconds_range
from ..runtime.single import results
from ..runtime.speaking import SpeechRequest
from ..runtime.task import Progress, to_numpy
from ..runtime.understanding import UnderstandRequest
from ..text import edits
from ..text import normalize as norm
from .batch import Attempts, combine, run_batch
from .codec import Codec

__all__ = ["MingAudio", "RoundTrip", "Speech", "Transcript", "Voice"]


class MingAudio(Codec):
    """A loaded checkpoint: speech, transcription, edits, and the codec.

    Requests run one at a time, those of `tts_batch`, `transcribe_batch` and `edit_batch` as a batch;
    `AsyncMingAudio` runs many concurrently.

    Every method that makes audio or text takes `seed` (drawn at random and recorded in `.stats` when not given): the
    same seed gives the same bits on one device. Wrong arguments raise InputError before anything expensive starts.
    Input audio is a path, "-" (standard input), bytes, a binary file object, a `Speech`, or (samples, rate).
    """

    def __init__(self, model: Any, folder: Path | None = None, adapters: Sequence[Path] = ()):
        self.model, self.folder = model, folder
        self._fingerprint = "" if folder is None else fingerprint(folder, adapters)
        self._default_voice: Voice | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        weights: str | None = None,
        kernels: str | Path | None = None,
        *,
        adapter: str | Path | Sequence[str | Path] | None = None,
        revision: str | None = None,
        strict: bool = True,
    ) -> "MingAudio":
        """Loads a folder, a hub id ("owner/name", "owner/name@revision") or a bundled checkpoint ("tiny").

        device: by default a GPU if there is one. weights: the format of the large matrices: "fp32", "fp16", "bf16",
        or quantised while they are read: "int8", "int8_dyn" (activations too; the fastest on a CPU) or "fp8"; by
        default that of `dtype`. dtype: of weights that are not quantised; by default float32 on a CPU, bfloat16 on a
        GPU and beside quantised ones. kernels: a bundle that `mingcore compile` made for this checkpoint and GPU;
        then nothing is compiled, and `stats.kernels` of every request says so. adapter: a LoRA adapter of PEFT (a
        folder or a hub id), or several, merged in this order while the weights are read. revision: of a hub id: a
        branch, a tag or a commit. strict: False skips tensors that nothing uses, with one warning in the log.

        Raises InputError when there is no such checkpoint or device, CheckpointError when its files are damaged,
        NotEnoughMemory when it does not fit, KernelBundleError, with the reason, when the bundle does not fit.
        """
        device, dtype = as_device(device), as_dtype(dtype)
        folder = locate(name_or_path, revision)
        adapters = [locate(each, kind="adapter") for each in _adapters(adapter)]
        if kernels is not None and device.type != "cuda":
            raise InputError(f"kernels: a bundle holds kernels of a GPU, the device is {device}")
        model = load(folder, device=device, dtype=dtype, weights=weights, strict=strict, adapters=adapters)
        if kernels is not None:
            install_bundle(kernels, model)
        return cls(model, folder, adapters)

    def voice(self, audio: Any, transcript: str = "", *, seed: int = 0) -> Voice:
        """A reference voice for `tts`: a recording, encoded, and its transcript.

        The latents are sampled from the posterior, as in training, with the noise of `seed`. Raises InputError.
        """
        if not isinstance(transcript, str):
            raise InputError(f"transcript: must be a string, got {type(transcript).__name__}")
        noise = SeededNoise(draw_seed(seed), self.device)
        samples = self._read(audio, self._patch_samples, "one patch")
        latents = prefill.posterior_latents(self.model, samples, noise)
        return Voice(to_numpy(latents[0]), transcript.strip(), self._fingerprint)

    @property
    def voices(self) -> list[str]:
        """Names of the voices in the checkpoint's folder."""
        folder = self.folder
        return [] if folder is None else sorted(p.stem for p in folder.glob("voices/*.safetensors"))

    def tts(self, text: str, voice: Voice | str | Path | None = None, *, retries: int = 0, **options: Any) -> Speech:
        """Speaks `text`: the chunks of `tts_stream`, concatenated; the same options.

        retries: speech that is `stats.suspect` is spoken again with the next seed, so many times at most; the best is
        returned (`stats.attempts`). Streams cannot take back what they gave.
        """
        attempts = Attempts(retries, options)
        while (chosen := attempts.next_options()) is not None:
            attempts.add(combine(self.tts_stream(text, voice, **chosen)))
        return attempts.best()

    def tts_stream(self, text: str, voice: Voice | str | Path | None = None, **options: Any) -> Iterator[Speech]:
        """Speaks `text` in chunks of about 100 ms, each as soon as it is decoded.

        The options are those of `speech_request`. All chunks share one `stats`. Closing the
        iterator frees the request's memory.
        """
        return results(self.model, self.speech_request(text, voice, **options))

    def tts_batch(self, requests: Sequence[str | Mapping[str, Any]], *, slots: int = 8, **options: Any) -> list[Speech]:
        """Speaks many texts, up to `slots` at a time as a batch; each result is that of `tts`.

        A request is a text, or a mapping of the arguments of `tts`; `options` apply to all requests, or are those of
        `batch.together` (`batch_invariant`, `errors`).
        """
        return run_batch(self, requests, slots=slots, **options)

    def speech_request(
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
        pronunciations: Mapping[str, str] | None = None,
        keep_context: bool = False,
        context_seconds: float | None = None,
        context_format: str | None = None,
        progress: Progress | None = None,
    ) -> SpeechRequest:
        """The checked request of `tts`, `tts_stream` and `tts_batch`.

        voice: a Voice, a voice file, or a name in `voices`; None is the checkpoint's default, and where it brings
        none (released ones) a voice of the model's choice, which all segments of a text share. steps, guidance,
        temperature, sigma: of the flow sampler. noise: the order in which its noise is drawn, "reference" or
        "per_request", which does not depend on device or batch. min_seconds: the earliest end (None: 1.8 s, as
        trained). max_seconds: the latest end (None: several times the expected duration). normalize: numbers, dates
        and units in words, in `language` ("zh", "en", None: detected by sentence), and SSML's breaks, substitutions and
        say-as are followed (docs/text.md). pronunciations: word -> spelling. progress: called with the seconds
        made so far.

        Long texts are spoken in segments cut at sentence ends, with pauses of `pause_seconds`; each starts again from
        the voice alone, so memory is bounded by the longest segment. Three options depart from the reference
        (`mingcore.precision.measure_context` gives their error): keep_context keeps the semantic module's cache
        over segments, and memory grows; context_seconds bounds it to a sliding window; context_format "int8" quantises
        it. A request with any of them runs unbatched. Raises InputError.
        """
        started = time.perf_counter()
        flow = FlowParams(steps, guidance, temperature, sigma, noise)
        low, high = seconds_range(min_seconds, max_seconds)
        pause = number("pause_seconds", pause_seconds, 0, 60)
        context = ContextParams(keep_context, context_seconds, context_format)
        spoken = norm.spoken_segments(text, language, normalized=bool(normalize), pronunciations=pronunciations)
        self._require_tokenizer()
        return SpeechRequest(
            tuple((piece.text, norm.speaking_seconds(piece.text)) for piece in spoken),
            *self._voice_latents(voice),
            flow,
            draw_seed(seed),
            low,
            high,
            pause,
            progress,
            context,
            tuple(piece.pause for piece in spoken),
            time.perf_counter() - started,
        )

    def transcribe(self, audio: Any, instruction: str | None = None, **options: Any) -> Transcript:
        """What `audio` says, or the answer to `instruction`; the options of `transcribe_stream`."""
        return combine(self.transcribe_stream(audio, instruction, **options))

    def transcribe_stream(self, audio: Any, instruction: str | None = None, **options: Any) -> Iterator[Transcript]:
        """Text about `audio` in pieces of complete characters; the last piece may be empty.

        The options are those of `understand_request`. Closing the iterator frees the request's
        memory.
        """
        return results(self.model, self.understand_request(audio, instruction, **options))

    def transcribe_batch(self, requests: Sequence[Any], *, slots: int = 8, **options: Any) -> list[Transcript]:
        """Text about many recordings, up to `slots` at a time as a batch; each result is that of `transcribe`.

        A request is audio, or a mapping of the arguments of `transcribe`; `options` as in
        `tts_batch`.
        """
        return run_batch(self, requests, task="transcribe", slots=slots, **options)

    def understand_request(
        self,
        audio: Any,
        instruction: str | None = None,
        *,
        language: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
        sample: bool | None = None,
        hotwords: Sequence[str] | None = None,
    ) -> UnderstandRequest:
        """The checked request of `transcribe`, `transcribe_stream` and `transcribe_batch`.

        instruction: None recognises the language and transcribes; a question is answered. language: of the answer, if
        known: a tag or a name of `text.prompts.LANGUAGES` ("zh", "yue", "川渝"), or another name. temperature: 0 takes
        the likeliest token. sample: whether the recording's latents are sampled; False takes the posterior's mean, so
        that at temperature 0 the same recording gives the same text; None samples if a seed is given. hotwords: words
        or phrases that the recording may hold. The audio is processed in one piece:
        memory grows with its length. Raises InputError.
        """
        started = time.perf_counter()
        params = TextParams(max_new_tokens, temperature)
        if instruction is not None:
            _check_text("instruction", instruction)
        if language is not None:
            _check_text("language", language)
        self._require_tokenizer()
        words = _hotwords(hotwords)
        sample = seed is not None if sample is None else bool(sample)
        seed = draw_seed(seed)
        samples = self._read(audio, self._patch_samples, "one patch")
        return UnderstandRequest(
            samples, instruction, language, params, seed, sample, words, time.perf_counter() - started
        )

    def edit(self, audio: Any, instruction: str, **options: Any) -> Speech:
        """`audio` changed as `instruction` says: the pieces of `edit_stream`, concatenated."""
        return combine(self.edit_stream(audio, instruction, **options))

    def edit_stream(self, audio: Any, instruction: str, **options: Any) -> Iterator[Speech]:
        """First pieces of text (`.text`, no samples), then audio in chunks of about 100 ms.

        The options are those of `edit_request`. Closing the iterator frees the request's memory.
        """
        return results(self.model, self.edit_request(audio, instruction, **options))

    def edit_batch(self, requests: Sequence[Any], *, slots: int = 8, **options: Any) -> list[Speech]:
        """Many edits, up to `slots` at a time as a batch; each result is that of `edit`.

        A request is a mapping of the arguments of `edit`, or audio with `instruction` among the `options`, which are
        otherwise as in `tts_batch`.
        """
        return run_batch(self, requests, task="edit", slots=slots, **options)

    def edit_request(
        self,
        audio: Any,
        instruction: str,
        *,
        reasoning: bool | None = None,
        prefix: bool = True,
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
    ) -> EditRequest:
        """The checked request of `edit`, `edit_stream` and `edit_batch`.

        instruction: such as "insert 'really' before the third word". prefix: official instructions begin with
        `text.edits.PREFIX`, which is added where it is missing; False leaves the instruction as it is. reasoning: the
        model first writes the new text; None decides by `text.edits.kind_of`: for content edits, not for acoustic ones.
        max_seconds: None is twice the input's duration plus 10 s. min_seconds: None is 1.7 s, as trained. When the
        model's text ends, or reaches `max_new_tokens`, without the token that starts audio, that is logged and audio
        is generated anyway. context_seconds, context_format: as in `speech_request`. Raises InputError.
        """
        started = time.perf_counter()
        flow = FlowParams(steps, guidance, temperature, sigma, noise)
        params = TextParams(max_new_tokens)
        low, high = seconds_range(min_seconds, max_seconds)
        context = ContextParams(False, context_seconds, context_format)
        _check_text("instruction", instruction)
        self._require_tokenizer()
        seed = draw_seed(seed)
        samples = self._read(audio, self._patch_samples, "one patch")
        if reasoning is None:
            reasoning = edits.kind_of(instruction) == "content"
        if prefix:
            instruction = edits.with_prefix(instruction)
        took = time.perf_counter() - started
        return EditRequest(
            samples, instruction, bool(reasoning), params, flow, seed, low, high, progress, context, took
        )

    @property
    def _patch_samples(self) -> int:
        return self.model.config.patch_frames * self.model.config.hop_samples

    def _require_tokenizer(self) -> None:
        if self.model.tokenizer is None:
            raise CheckpointError(f"checkpoint {self.folder}: has no tokenizer.json")

    def _voice_latents(self, voice: Voice | str | Path | None) -> tuple[Tensor, str]:
        """(latents [1, n·P, 64] on the device, transcript) of a Voice, a voice file or a known name."""
        voice = self._resolve_voice(voice)
        if voice is None:
            return torch.zeros(1, 0, self.model.config.latent_dim, dtype=torch.float32, device=self.device), ""
        if voice.checkpoint and self._fingerprint and voice.checkpoint != self._fingerprint:
            raise InputError(
                f"voice: was made with another checkpoint ({voice.checkpoint}), this one is {self._fingerprint}"
            )
        latents = self._latents("voice", voice.latents)
        return prefill.whole_patches(self.model, latents), voice.transcript

    def _resolve_voice(self, voice: Voice | str | Path | None) -> Voice | None:
        if isinstance(voice, Voice):
            return voice
        if voice is None:
            if self._default_voice is None:
                if "default" not in self.voices:
                    return None
                self._default_voice = Voice.load(self.folder / "voices" / "default.safetensors")
            return self._default_voice
        if not isinstance(voice, str | Path):
            raise InputError(f"voice: must be a Voice or a path, got {type(voice).__name__}")
        if str(voice) in self.voices:
            return Voice.load(self.folder / "voices" / f"{voice}.safetensors")
        if Path(voice).suffix != ".safetensors":
            raise self.no_voice(voice, "is no voice file (.safetensors)")
        return Voice.load(voice)

    def no_voice(self, name: str | Path, what: str) -> InputError:
        """The error for an unknown voice; it lists the known ones."""
        known = f"its voices are {', '.join(self.voices)}" if self.voices else "it has none"
        return InputError(
            f"voice {str(name)!r}: {what}, and no voice of this checkpoint ({known}); give one of "
            "those, a voice file (.safetensors), or a recording: a path on the command line, "
            "`voice(...)` of it in Python"
        )


# the signatures of the streams are those of the requests
for _stream, _request, _piece in (
    (MingAudio.tts_stream, MingAudio.speech_request, Speech),
    (MingAudio.transcribe_stream, MingAudio.understand_request, Transcript),
    (MingAudio.edit_stream, MingAudio.edit_request, Speech),
):
    _stream.__signature__ = signature(_request).replace(return_annotation=Iterator[_piece])


def _hotwords(words: Any) -> tuple[str, ...]:
    if words is None:
        return ()
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise InputError(f"hotwords: must be a list of texts, got {type(words).__name__}")
    for i, word in enumerate(words):
        _check_text(f"hotwords[{i}]", word)
        if any(c in word for c in ",\n\r"):
            raise InputError(f"hotwords[{i}]: must hold no comma and no line break, got {word!r}")
    return tuple(word.strip() for word in words)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name}: must be a text that is not empty, got {text!r}")


def _adapters(adapter: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if adapter is None:
        return []
    if isinstance(adapter, str | Path):
        return [adapter]
    if not isinstance(adapter, Sequence):
        raise InputError(f"adapter: must be a path, a hub id or several, got {type(adapter).__name__}")
    return list(adapter)
