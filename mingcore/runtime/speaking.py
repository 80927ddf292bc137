"""One speech request on its way: its segments one after the other, and what goes out of each patch.

Who makes the patches is the driver's business: `say` makes those of one request, `engine.py` those
of many in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model import text as prompts
from ..results import Speech
from . import generate
from .noise import NoiseSource, noise_source
from .params import AS_REFERENCE, MIN_TTS_PATCHES, ContextParams, FlowParams, PatchLimits
from .stats import Meter

Progress = Callable[[float], None]

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


@dataclass(frozen=True)
class Segment:
    """One run of the model: its prompt, and how many patches it may make."""

    prompt: prompts.Prompt
    limits: PatchLimits


class Speaking:
    """A request between its patches. In turn: `next`, `fill`, patches to `deliver`; `next`, …"""

    def __init__(self, model, request: SpeechRequest, noise: NoiseSource | None = None):
        self.model, self.request = model, request
        self.meter = new_meter(model, request.seed)
        self.stats = self.meter.stats
        flow, device = request.flow, model.llm.device
        self.noise = noise or noise_source(flow.noise, request.seed, device)
        self._gap = np.zeros(0, np.float32)
        self._ended, self._next = "stop", 0
        self._kept: generate.EncodedAudio | None = None

    def next(self) -> Segment | None:
        """The next segment; None, and complete stats, when there is none."""
        i, rate = self._next, self.model.config.sample_rate
        limits = None
        if i < len(self.request.texts):
            limits = self._limits(i, self.stats.audio_seconds + self._gap.size / rate)
            self._ended = "limit" if limits is None else self._ended
        if limits is None:
            self.stats.ended_by = self._ended
            return None
        self._next += 1
        patches = self.request.latents.shape[1] // self.model.config.patch_frames
        text, transcript = self.request.texts[i][0], self.request.transcript
        prompt = prompts.tts_prompt(self.model.tokenizer, text, transcript, patches)
        return Segment(prompt, limits)

    def fill(self, segment: Segment, llm: Any = None, semantic: Any = None) -> generate.Context:
        """Runs voice and prompt into empty states of one row (None: makes them)."""
        return generate.last(self.filling(segment, llm, semantic))

    def filling(
        self,
        segment: Segment,
        llm: Any = None,
        semantic: Any = None,
        reader: generate.Reader = generate.PLAIN,
    ) -> Iterator[int | generate.Context]:
        """`fill` piece by piece: before each, how many tokens or patches; at last the context.

        The semantic cache of a segment starts anew at the voice, unless the request keeps it.
        """
        model, expected = self.model, segment.limits.expected
        latents, voice = self.request.latents, self._kept
        if voice is None:
            for voice in self._hearing(latents, expected, semantic, reader):
                if isinstance(voice, int):
                    yield voice
        read = generate.reading(
            model, segment.prompt, [voice.projected], audio_router=False,
            expected_tokens=expected, state=llm, reader=reader,
        )  # fmt: skip
        for result in read:
            if isinstance(result, int):
                yield result
        hidden, llm = result
        self.stats.segments += 1
        self.stats.prompt_tokens += len(segment.prompt.ids)
        history = latents[:, -model.config.patch_frames :]
        yield generate.Context(hidden[:, -1], llm, voice.semantic, history)

    def _hearing(
        self, latents: Tensor, expected: int, state: Any, reader: generate.Reader
    ) -> Iterator[int | generate.EncodedAudio]:
        context = self.request.context
        if state is not None and context != AS_REFERENCE:
            raise InputError("context: requests that share a batch hear as the reference does")
        if state is None:
            frames = latents.shape[1] + expected * self.model.config.patch_frames
            state = context.state(self.model, frames)
        for voice in generate.hearing(self.model, latents, state=state, reader=reader):
            if context.keep and not isinstance(voice, int):
                self._kept = voice
            yield voice

    def heard(self, latents: Tensor) -> None:
        """The last patch of a segment, which nothing followed: a kept context goes on behind it."""
        if self._kept is not None:
            with torch.no_grad():
                self.model.vae.unify(latents, self._kept.semantic)

    def deliver(self, samples: np.ndarray, *, last: bool, stopped: bool) -> Speech:
        """The sound [L] of one patch as it goes out; segments are a pause apart."""
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


def say(model, request: SpeechRequest, noise: NoiseSource | None = None) -> Iterator[Speech]:
    """Speaks the segments one after the other, each a run of its own in the same voice."""
    speaking = Speaking(model, request, noise)
    meter = speaking.meter
    while (segment := speaking.next()) is not None:
        context = speaking.fill(segment)
        patches = generate.speak(model, context, speaking.noise, request.flow, segment.limits)
        del context
        with closing(patches):
            for patch in patches:
                sound = to_numpy(patch.samples[0])
                speech = speaking.deliver(sound, last=patch.last, stopped=patch.stopped)
                meter.pause()
                yield speech
                meter.resume()
                if patch.last:
                    speaking.heard(patch.latents)
    meter.pause()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the host, float32."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def patch_seconds(config) -> float:
    """Seconds of sound in one patch."""
    return config.patch_frames * config.hop_samples / config.sample_rate


def new_meter(model, seed: int) -> Meter:
    """A running meter of a request with this seed."""
    meter = Meter(model.llm.device)
    meter.stats.seed = seed
    return meter


def delivered(model, samples: np.ndarray, meter: Meter, progress: Progress | None) -> Speech:
    """One patch's sound, counted and reported."""
    meter.stats.patches += 1
    meter.heard(samples.size, model.config.sample_rate)
    if progress is not None:
        with meter.resting():
            progress(meter.stats.audio_seconds)
    return Speech(samples, model.config.sample_rate, meter.stats)
