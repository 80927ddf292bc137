"""A recording changed as an instruction says: text first, then sound."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..results import Speech
from ..text import prompts
from . import prefill
from .noise import NoiseSource, noise_source
from .params import AS_REFERENCE, MIN_EDIT_PATCHES, ContextParams, FlowParams, PatchLimits, TextParams
from .run import Progress, Segment, TextPlan, TextStream, delivered, new_meter, patch_seconds

logger = logging.getLogger(__name__)

# an edit that never stops ends after this many times its input, and a bit
EDIT_FACTOR, EDIT_EXTRA_SECONDS = 2.0, 10.0


@dataclass(frozen=True)
class EditRequest:
    """`samples` [1,L] and an instruction; `reasoning`: the model first writes what it will say."""

    samples: Tensor
    instruction: str
    reasoning: bool
    params: TextParams
    flow: FlowParams
    seed: int
    least_seconds: float | None = None
    most_seconds: float | None = None
    progress: Progress | None = None
    context: ContextParams = AS_REFERENCE


class Editing:
    """A `work.Run` of one segment: pieces of text and of sound, each with the other empty."""

    def __init__(self, model, request: EditRequest, noise: NoiseSource | None = None):
        self.model, self.request, self.flow = model, request, request.flow
        self.meter = new_meter(model, request.seed)
        self.stats = self.meter.stats
        self.noise = noise or noise_source(self.flow.noise, request.seed, model.llm.device)
        self._text: TextStream | None = None
        self._start = model.tokenizer.special(prompts.GEN_AUDIO, "editing")
        self._ended = ""

    def next(self) -> Segment | None:
        """See `work.Run`."""
        if self._text is not None:
            self.stats.ended_by = self._ended
            return None
        model, request, config = self.model, self.request, self.model.config
        self._text = TextStream(model, self.meter, request.params.temperature)
        seconds = request.samples.shape[1] / config.sample_rate
        limits = PatchLimits.from_seconds(
            request.least_seconds,
            request.most_seconds or EDIT_FACTOR * seconds + EDIT_EXTRA_SECONDS,
            patch_seconds(config),
            least=MIN_EDIT_PATCHES,
            expected_seconds=1.2 * seconds + 2,
        )
        patches = prefill.patches_of(model, request.samples)
        prompt = prompts.edit_prompt(model.tokenizer, request.instruction, patches, reasoning=request.reasoning)
        self.stats.segments, self.stats.prompt_tokens = 1, len(prompt.ids)
        stops = (self._start, model.tokenizer.special(prompts.END_OF_TEXT, "editing"))
        params = request.params
        plan = TextPlan(params.max_new_tokens, params.temperature, stops, then=self._start)
        return Segment(prompt, limits, plan, patches * config.patch_frames)

    def filling(
        self, segment: Segment, llm: Any = None, semantic: Any = None, reader: prefill.Reader = prefill.PLAIN
    ) -> Iterator[int | prefill.Context]:
        """See `work.Run`."""
        model, frames = self.model, self.model.config.patch_frames
        yield segment.heard // frames
        latents = prefill.sample_latents(model, self.request.samples, self.noise)
        expected = segment.limits.expected
        if semantic is None:
            semantic = self.request.context.state(model, segment.heard + expected * frames)
        for audio in prefill.hearing(model, latents, state=semantic, reader=reader):
            if isinstance(audio, int):
                yield audio
        read = prefill.reading(
            model,
            segment.prompt,
            [audio.projected],
            audio_router=False,
            expected_tokens=expected + segment.text.expected,
            state=llm,
            reader=reader,
        )
        for result in read:
            if isinstance(result, int):
                yield result
        hidden, llm = result
        history = torch.zeros_like(latents[:, :frames])
        yield prefill.Context(hidden[:, -1], llm, audio.semantic, history)

    def draws(self) -> Tensor | None:
        """See `work.Run`."""
        return self._text.draws()

    def wrote(self, token: int, *, last: bool, stopped: bool) -> Iterator[Speech]:
        """See `work.Run`."""
        silence = np.zeros(0, np.float32)
        for text in self._text.push(token, last=last, stopped=stopped):
            if text:
                yield Speech(silence, self.model.config.sample_rate, self.stats, text)
        if last and token != self._start:
            logger.warning("edit: the text ended without %s; sound follows anyway", prompts.GEN_AUDIO)

    def deliver(self, samples: np.ndarray, *, last: bool, stopped: bool) -> Speech:
        """See `work.Run`."""
        self._ended = "stop" if stopped else "limit"
        return delivered(self.model, samples, self.meter, self.request.progress)

    def heard(self, latents: Tensor) -> None:
        """See `work.Run`: nothing goes on from here."""
