"""Speech: its segments one after the other, all in the same voice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..results import Speech
from ..text import prompts
from .noise import NoiseSource, noise_source
from .params import AS_REFERENCE, MIN_TTS_PATCHES, ContextParams, FlowParams, PatchLimits
from .prefill import ALONE, AudioPrefill, EncodedAudio, Prefill, PrefillResult, PrefillTarget, PromptPrefill, patches_of
from .suspect import SpeechJudge
from .task import Patch, Progress, Segment, new_meter, patch_seconds, speech_of

# a run that never stops ends after this many times what its text should take, and a bit
LIMIT_FACTOR, LIMIT_EXTRA_SECONDS = 4.0, 5.0


@dataclass(frozen=True)
class SpeechRequest:
    """`texts`: the segments with how many seconds each should take. `latents` [1,n·P,C]: the voice,
    of no patches where there is none: then the model chooses a voice, and keeps it over segments.

    `min_seconds`, `max_seconds`: of the whole, None for the defaults.
    """

    texts: tuple[tuple[str, float], ...]
    latents: Tensor
    transcript: str
    flow: FlowParams
    seed: int
    min_seconds: float | None = None
    max_seconds: float | None = None
    pause_seconds: float = 0.0
    progress: Progress | None = None
    context: ContextParams = AS_REFERENCE
    pauses: tuple[float | None, ...] = ()  # seconds behind each segment; None: pause_seconds
    prepare_seconds: float = 0.0  # what making the request took: its text, its voice

    def pause_after(self, i: int) -> float:
        """Seconds of silence behind segment `i`."""
        pause = self.pauses[i] if i < len(self.pauses) else None
        return self.pause_seconds if pause is None else pause


class Speaking:
    """A `Task` of a segment for each of the request's texts."""

    def __init__(self, model, request: SpeechRequest, noise: NoiseSource | None = None):
        self.model, self.request = model, request
        self.meter = new_meter(model, request.seed, request.prepare_seconds)
        self.stats = self.meter.stats
        self.flow = request.flow
        self.noise = noise or noise_source(self.flow.noise, request.seed, model.llm.device)
        self._gap = np.zeros(0, np.float32)
        self._ended_by, self._next = "stop", 0
        self._voice: EncodedAudio | None = None  # of a context that is kept over segments
        self._judge = SpeechJudge(model.config.sample_rate)
        self._first: list[np.ndarray] = []  # the sound of the first segment: the voice of those that follow
        self._last_latents: Tensor | None = None  # the last patch of a segment, which the kept context lacks

    def next_segment(self) -> Segment | None:
        """See `Task`."""
        self._keep_last_patch()
        i, rate = self._next, self.model.config.sample_rate
        limits = None
        if i < len(self.request.texts):
            limits = self._limits(i, self.stats.audio_seconds + self._gap.size / rate)
            self._ended_by = "limit" if limits is None else self._ended_by
        if limits is None:
            self.stats.ended_by = self._ended_by
            return None
        self._next += 1
        text, transcript = self.request.texts[i][0], self.request.transcript
        if self._own_voice:
            patches, transcript = patches_of(self.model, self._first_samples()), self.request.texts[0][0]
        else:
            patches = self.request.latents.shape[1] // self.model.config.patch_frames
        prompt = prompts.tts_prompt(self.model.tokenizer, text, transcript, patches)
        return Segment(prompt, limits, audio_frames=patches * self.model.config.patch_frames)

    @property
    def _own_voice(self) -> bool:
        """Whether a segment is spoken in the voice of the first one, as the request brings none."""
        return self.request.latents.shape[1] == 0 and len(self._first) > 0 and not self.request.context.keep

    def _first_samples(self) -> Tensor:
        return torch.from_numpy(np.concatenate(self._first))[None].to(self.model.llm.device)

    def prefill(self, segment: Segment, target: PrefillTarget = ALONE) -> Prefill:
        """See `Task`.

        The semantic state of a segment starts anew at the voice, unless the request keeps it.
        """
        model, latents, request = self.model, self.request.latents, self.request
        if target.semantic is not None and request.context != AS_REFERENCE:
            raise InputError("context: requests that share a batch hear as the reference does")
        expected, frames = segment.limits.expected, model.config.patch_frames

        def voice() -> EncodedAudio:
            return self._voice or audio.result()

        heard = {"samples": self._first_samples(), "noise": self.noise} if self._own_voice else {"latents": latents}
        audio = AudioPrefill(
            model,
            lambda: request.context.state(model, segment.audio_frames + expected * frames),
            **heard,
            target=target,
        )
        prompt = PromptPrefill(
            model,
            segment.prompt,
            lambda: [voice().projected] if segment.audio_frames else [],
            audio_router=False,
            expected_tokens=expected,
            target=target,
        )

        def result() -> PrefillResult:
            self.stats.segments += 1
            self.stats.prompt_tokens += len(segment.prompt.ids)
            found, history = voice(), audio.latents[:, -frames:]
            if history.shape[1] == 0:
                history = latents.new_zeros(1, frames, latents.shape[2])
            if request.context.keep:
                self._voice = found
            return PrefillResult(prompt.hidden[:, -1], prompt.state, found.semantic, history)

        chunks = audio.chunks() if self._voice is None else []
        return Prefill([*chunks, *prompt.chunks()], result)

    @torch.no_grad()
    def _keep_last_patch(self) -> None:
        """A kept context goes on behind the last patch of the segment before."""
        latents, self._last_latents = self._last_latents, None
        if latents is not None:
            self.model.vae.unify(latents, self._voice.semantic)

    def sampling_noise(self) -> Tensor | None:
        """See `Task`; there is no text."""

    def on_token(self, token: int, *, last: bool, stopped: bool) -> Iterator[Any]:
        """See `Task`; there are none."""
        raise AssertionError("speech writes no text")

    def on_patch(self, patch: Patch) -> Speech:
        """See `Task`; segments are a pause apart."""
        rate, samples = self.model.config.sample_rate, patch.samples[0].numpy()
        self._judge.hear(samples)
        if self._next == 1 and len(self.request.texts) > 1 and self.request.latents.shape[1] == 0:
            self._first.append(samples)
        if self._gap.size:
            samples, self._gap = np.concatenate((self._gap, samples)), self._gap[:0]
        if patch.last:
            self._gap = np.zeros(round(self.request.pause_after(self._next - 1) * rate), np.float32)
            self._ended_by = self._ended_by if patch.stopped else "limit"
            expected, limited = self.request.texts[self._next - 1][1], self.request.max_seconds is not None
            self._judge.end_segment(expected, stopped=patch.stopped, limited=limited)
            self.stats.suspect = self._judge.reasons()
            if self._voice is not None:
                self._last_latents = patch.latents
        return speech_of(self.model, samples, self.meter, self.request.progress)

    def _limits(self, i: int, done: float) -> PatchLimits | None:
        """Limits of segment `i` after `done` seconds; None when nothing is left for it.

        The minimum binds the last segment only; the maximum is of the whole.
        """
        seconds, request = patch_seconds(self.model.config), self.request
        expected = request.texts[i][1]
        low, high = request.min_seconds, request.max_seconds
        if high is not None:
            high -= done
            if high < seconds and i:
                return None
        if low is not None:
            short = min(low, MIN_TTS_PATCHES * seconds)
            low = max(short, low - done) if i + 1 == len(request.texts) else short
        if high is None:
            high = max(LIMIT_FACTOR * expected + LIMIT_EXTRA_SECONDS, low or 0.0)
        return PatchLimits.from_seconds(
            low, high, seconds, min_patches=MIN_TTS_PATCHES, expected_seconds=1.5 * expected + 2
        )
