"""The public class: speak, transcribe, edit, encode and decode with one checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from ..text import normalize as norm
from .batch import whole, whole_batch
from .codec import Codec

__all__ = ["MingAudio", "RoundTrip", "Speech", "Transcript", "Voice"]


class MingAudio(Codec):
    """A checkpoint, ready to use. Requests run one at a time, those of `tts_batch` and its like in
    step; `AsyncMingAudio` serves many at once.

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
        kernels: str | Path | None = None,
    ) -> "MingAudio":
        """Loads a folder, a hub id ("owner/name") or a bundled checkpoint ("tiny").

        `device`: by default a GPU if there is one. `weights`: the format of the large matrices,
        "fp32", "fp16", "bf16", or quantised while they are read, "int8", "int8_dyn" (activations
        too: the fastest on a CPU) or "fp8"; by default that of `dtype`. `dtype`, of weights that
        are not quantised: by default float32 on a CPU, bfloat16 on a GPU and beside quantised ones.
        `kernels`: a bundle that `mingcore compile` made for this checkpoint and GPU; nothing is
        compiled then, and `stats.kernels` of every request says so.
        Raises InputError when there is no such checkpoint or device, CheckpointError when its files
        are damaged, KernelBundleError, with the reason, when the bundle does not fit.
        """
        device, dtype = as_device(device), as_dtype(dtype)
        folder = locate(name_or_path)
        if kernels is not None and device.type != "cuda":
            raise InputError(f"kernels: a bundle holds kernels of a GPU, the device is {device}")
        model = load(folder, device=device, dtype=dtype, weights=weights)
        if kernels is not None:
            from ..aot.serve import serve

            serve(kernels, model)
        return cls(model, folder)

    def voice(self, audio: Any, transcript: str = "", *, seed: int = 0) -> Voice:
        """Encodes a recording of someone saying `transcript`, for `tts` to speak like it.

        The latents are sampled, as in training; `seed` fixes them.
        """
        if not isinstance(transcript, str):
            raise InputError(f"transcript: must be a string, got {type(transcript).__name__}")
        noise = SeededNoise(draw_seed(seed), self.device)
        samples = self._read(audio, self._patch_samples, "one patch")
        latents = prefill.posterior_latents(self.model, samples, noise)
        return Voice(to_numpy(latents[0]), transcript.strip(), self._fingerprint)

    @property
    def voices(self) -> list[str]:
        """Names of the voices that come with the checkpoint."""
        folder = self.folder
        return [] if folder is None else sorted(p.stem for p in folder.glob("voices/*.safetensors"))

    def tts(self, text: str, voice: Voice | str | Path | None = None, **options: Any) -> Speech:
        """Speaks `text`: everything that `tts_stream` gives, in one; the same options."""
        return whole(self.tts_stream(text, voice, **options))

    def tts_stream(self, text: str, voice: Voice | str | Path | None = None, **options: Any) -> Iterator[Speech]:
        """Speaks `text` in chunks of about 100 ms, each as soon as it is made.

        The options are those of `speech_request`. All chunks share one `stats`. Closing the
        iterator frees the request's memory.
        """
        return results(self.model, self.speech_request(text, voice, **options))

    def tts_batch(self, requests: Sequence[str | Mapping[str, Any]], *, slots: int = 8, **options: Any) -> list[Speech]:
        """Speaks many texts, up to `slots` at a time in step: each as `tts` alone would.

        A request is a text, or a mapping of the arguments of `tts`; `options` are those of all,
        and of `batch.together` (`batch_invariant`, `errors`).
        """
        return whole_batch(self, requests, slots=slots, **options)

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
        keep_context: bool = False,
        context_seconds: float | None = None,
        context_format: str | None = None,
        progress: Progress | None = None,
    ) -> SpeechRequest:
        """What `tts` and its kin speak, with everything checked.

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
        hears; `context_format` "int8" keeps that in 8 bits. With any of them a request does not
        share a batch, but runs beside it. `progress` is told the seconds made so far. Raises
        InputError.
        """
        flow = FlowParams(steps, guidance, temperature, sigma, noise)
        low, high = seconds_range(min_seconds, max_seconds)
        pause = number("pause_seconds", pause_seconds, 0, 60)
        context = ContextParams(keep_context, context_seconds, context_format)
        texts = norm.segments(text, language, normalized=bool(normalize))
        self._require_tokenizer()
        return SpeechRequest(
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

    def transcribe(self, audio: Any, instruction: str | None = None, **options: Any) -> Transcript:
        """What `audio` says, or the answer to `instruction`; the options of `transcribe_stream`."""
        return whole(self.transcribe_stream(audio, instruction, **options))

    def transcribe_stream(self, audio: Any, instruction: str | None = None, **options: Any) -> Iterator[Transcript]:
        """Text about `audio` in pieces, none with half a character; the last one may be empty.

        The options are those of `understand_request`. Closing the iterator frees the request's
        memory.
        """
        return results(self.model, self.understand_request(audio, instruction, **options))

    def transcribe_batch(self, requests: Sequence[Any], *, slots: int = 8, **options: Any) -> list[Transcript]:
        """Text about many recordings, up to `slots` at a time in step: each as `transcribe` alone.

        A request is audio, or a mapping of the arguments of `transcribe`; `options` as in
        `tts_batch`.
        """
        return whole_batch(self, requests, task="transcribe", slots=slots, **options)

    def understand_request(
        self,
        audio: Any,
        instruction: str | None = None,
        *,
        language: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> UnderstandRequest:
        """What `transcribe` and its kin hear, with everything checked.

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
        return UnderstandRequest(samples, instruction, language, params, seed)

    def edit(self, audio: Any, instruction: str, **options: Any) -> Speech:
        """`audio` changed as `instruction` says: everything that `edit_stream` gives, in one."""
        return whole(self.edit_stream(audio, instruction, **options))

    def edit_stream(self, audio: Any, instruction: str, **options: Any) -> Iterator[Speech]:
        """First pieces of text (`.text`, no samples), then sound in chunks of about 100 ms.

        The options are those of `edit_request`. Closing the iterator frees the request's memory.
        """
        return results(self.model, self.edit_request(audio, instruction, **options))

    def edit_batch(self, requests: Sequence[Any], *, slots: int = 8, **options: Any) -> list[Speech]:
        """Many edits, up to `slots` at a time in step: each as `edit` alone would.

        A request is a mapping of the arguments of `edit`, or audio, with `instruction` among the
        `options`, which are else as in `tts_batch`.
        """
        return whole_batch(self, requests, task="edit", slots=slots, **options)

    def edit_request(
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
    ) -> EditRequest:
        """What `edit` and its kin make, with everything checked.

        `instruction`: such as "insert 'really' before the third word". `reasoning`: the model
        first writes what it will say. `max_seconds`: None allows twice the input and ten more;
        `min_seconds`: None is 1.7 s, as trained. When the model's text ends, or reaches
        `max_new_tokens`, without asking for sound, that is logged and sound follows anyway.
        `context_seconds`, `context_format`: as in `speech_request`.
        """
        flow = FlowParams(steps, guidance, temperature, sigma, noise)
        params = TextParams(max_new_tokens)
        low, high = seconds_range(min_seconds, max_seconds)
        context = ContextParams(False, context_seconds, context_format)
        _check_text("instruction", instruction)
        self._require_tokenizer()
        seed = draw_seed(seed)
        samples = self._read(audio, self._patch_samples, "one patch")
        return EditRequest(samples, instruction, bool(reasoning), params, flow, seed, low, high, progress, context)

    @property
    def _patch_samples(self) -> int:
        return self.model.config.patch_frames * self.model.config.hop_samples

    def _require_tokenizer(self) -> None:
        if self.model.tokenizer is None:
            raise CheckpointError(f"checkpoint {self.folder}: has no tokenizer.json")

    def _voice_latents(self, voice: Voice | str | Path | None) -> tuple[Tensor, str]:
        """([1, n·P, 64] on the device, transcript) of a Voice, a voice file or a known name."""
        voice = self._resolve_voice(voice)
        if voice.checkpoint and self._fingerprint and voice.checkpoint != self._fingerprint:
            raise InputError(
                f"voice: was made with another checkpoint ({voice.checkpoint}), this one is {self._fingerprint}"
            )
        latents = self._latents("voice", voice.latents)
        return prefill.whole_patches(self.model, latents), voice.transcript

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
            raise self.no_voice(voice, "is no voice file (.safetensors)")
        return Voice.load(voice)

    def no_voice(self, name: str | Path, what: str) -> InputError:
        """What to raise for a voice that is not known; it says which there are."""
        known = f"its voices are {', '.join(self.voices)}" if self.voices else "it has none"
        return InputError(
            f"voice {str(name)!r}: {what}, and no voice of this checkpoint ({known}); give one of "
            "those, a voice file (.safetensors), or a recording: a path on the command line, "
            "`voice(...)` of it in Python"
        )


# the streams take what the requests take
for _stream, _request, _piece in (
    (MingAudio.tts_stream, MingAudio.speech_request, Speech),
    (MingAudio.transcribe_stream, MingAudio.understand_request, Transcript),
    (MingAudio.edit_stream, MingAudio.edit_request, Speech),
):
    _stream.__signature__ = signature(_request).replace(return_annotation=Iterator[_piece])


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name}: must be a text that is not empty, got {text!r}")
