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
from . import prefill
from .noise import NoiseSource, noise_source
from .params import AS_REFERENCE, MIN_TTS_PATCHES, ContextParams, FlowParams, PatchLimits
from .run import Progress, Segment, delivered, new_meter, patch_seconds

# a run that never stops ends after this many times what its text should take, and a bit
LIMIT_FACTOR, LIMIT_EXTRA_SECONDS = 4.0, 5.0


@dataclass(frozen=True)
class SpeechRequest:
    """`texts`: the segments with how many seconds each should take. `latents` [1,n·P,C]: the voice.

    `least_seconds`, `most_seconds`: of the whole, None for the defaults.
    """

    texts: tuple[tuple[str, float], ...]
    latents: Tensor
    transcript: str
    flow: FlowParams
    seed: int
    least_seconds: float | None = None
    most_seconds: float | None = None
    pause_seconds: float = 0.0
    progress: Progress | None = None
    context: ContextParams = AS_REFERENCE


class Speaking:
    """A `work.Run` of a segment for each of the request's texts."""

    def __init__(self, model, request: SpeechRequest, noise: NoiseSource | None = None):
        self.model, self.request = model, request
        self.meter = new_meter(model, request.seed)
        self.stats = self.meter.stats
        self.flow = request.flow
        self.noise = noise or noise_source(self.flow.noise, request.seed, model.llm.device)
        self._gap = np.zeros(0, np.float32)
        self._ended, self._next = "stop", 0
        self._kept: prefill.EncodedAudio | None = None

    def next(self) -> Segment | None:
        """See `work.Run`."""
        i, rate = self._next, self.model.config.sample_rate
        limits = None
        if i < len(self.request.texts):
            limits = self._limits(i, self.stats.audio_seconds + self._gap.size / rate)
            self._ended = "limit" if limits is None else self._ended
        if limits is None:
            self.stats.ended_by = self._ended
            return None
        self._next += 1
        heard = self.request.latents.shape[1]
        patches = heard // self.model.config.patch_frames
        text, transcript = self.request.texts[i][0], self.request.transcript
        prompt = prompts.tts_prompt(self.model.tokenizer, text, transcript, patches)
        return Segment(prompt, limits, heard=heard)

    def fill(self, segment: Segment, llm: Any = None, semantic: Any = None) -> prefill.Context:
        """Runs voice and prompt into empty states of one row (None: makes them)."""
        return prefill.last(self.filling(segment, llm, semantic))

    def filling(
        self, segment: Segment, llm: Any = None, semantic: Any = None, reader: prefill.Reader = prefill.PLAIN
    ) -> Iterator[int | prefill.Context]:
        """See `work.Run`.

        The semantic cache of a segment starts anew at the voice, unless the request keeps it.
        """
        model, expected = self.model, segment.limits.expected
        latents, voice = self.request.latents, self._kept
        if voice is None:
            for voice in self._hearing(latents, expected, semantic, reader):
                if isinstance(voice, int):
                    yield voice
        read = prefill.reading(
            model,
            segment.prompt,
            [voice.projected],
            audio_router=False,
            expected_tokens=expected,
            state=llm,
            reader=reader,
        )
        for result in read:
            if isinstance(result, int):
                yield result
        hidden, llm = result
        self.stats.segments += 1
        self.stats.prompt_tokens += len(segment.prompt.ids)
        history = latents[:, -model.config.patch_frames :]
        yield prefill.Context(hidden[:, -1], llm, voice.semantic, history)

    def _hearing(
        self, latents: Tensor, expected: int, state: Any, reader: prefill.Reader
    ) -> Iterator[int | prefill.EncodedAudio]:
        context = self.request.context
        if state is not None and context != AS_REFERENCE:
            raise InputError("context: requests that share a batch hear as the reference does")
        if state is None:
            frames = latents.shape[1] + expected * self.model.config.patch_frames
            state = context.state(self.model, frames)
        for voice in prefill.hearing(self.model, latents, state=state, reader=reader):
            if context.keep and not isinstance(voice, int):
                self._kept = voice
            yield voice

    def heard(self, latents: Tensor) -> None:
        """See `work.Run`: a kept context goes on behind it."""
        if self._kept is not None:
            with torch.no_grad():
                self.model.vae.unify(latents, self._kept.semantic)

    def deliver(self, samples: np.ndarray, *, last: bool, stopped: bool) -> Speech:
        """See `work.Run`; segments are a pause apart."""
        rate = self.model.config.sample_rate
        if self._gap.size:
            samples, self._gap = np.concatenate((self._gap, samples)), self._gap[:0]
        if last:
            self._gap = np.zeros(round(self.request.pause_seconds * rate), np.float32)
            self._ended = self._ended if stopped else "limit"
        return delivered(self.model, samples, self.meter, self.request.progress)

    def _limits(self, i: int, done: float) -> PatchLimits | None:
        """Limits of segment `i` after `done` seconds; None when nothing is left for it.

        The least binds the last segment only; the most is of the whole.
        """
        seconds, request = patch_seconds(self.model.config), self.request
        expected = request.texts[i][1]
        least, most = request.least_seconds, request.most_seconds
        if most is not None:
            most -= done
            if most < seconds and i:
                return None
        if least is not None:
            short = min(least, MIN_TTS_PATCHES * seconds)
            least = max(short, least - done) if i + 1 == len(request.texts) else short
        if most is None:
            most = max(LIMIT_FACTOR * expected + LIMIT_EXTRA_SECONDS, least or 0.0)
        return PatchLimits.from_seconds(
            least, most, seconds, least=MIN_TTS_PATCHES, expected_seconds=1.5 * expected + 2
        )
