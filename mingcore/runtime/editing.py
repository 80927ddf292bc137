"""A recording changed as an instruction says: text first, then sound."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..results import Speech
from ..text import prompts
from ..text.edits import TAGS, EditedText
from . import prefill
from .noise import NoiseSource, noise_source
from .params import AS_REFERENCE, MIN_EDIT_PATCHES, ContextParams, FlowParams, PatchLimits, TextParams
from .prefill import ALONE, Prefill, PrefillResult, PrefillTarget
from .task import Patch, Progress, Segment, TextPlan, TextStream, new_meter, patch_seconds, speech_of

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
    min_seconds: float | None = None
    max_seconds: float | None = None
    progress: Progress | None = None
    context: ContextParams = AS_REFERENCE
    prepare_seconds: float = 0.0  # what making the request took: reading the recording


class Editing:
    """A `Task` of one segment: pieces of text and of sound, each with the other empty."""

    def __init__(self, model, request: EditRequest, noise: NoiseSource | None = None):
        self.model, self.request, self.flow = model, request, request.flow
        self.meter = new_meter(model, request.seed, request.prepare_seconds)
        self.stats = self.meter.stats
        self.noise = noise or noise_source(self.flow.noise, request.seed, model.llm.device)
        self._text: TextStream | None = None
        self._marks = {model.tokenizer.special(tag, "editing"): tag for tag in TAGS if model.tokenizer.has(tag)}
        self._edited = EditedText()
        self._start = model.tokenizer.special(prompts.GEN_AUDIO, "editing")
        self._ended_by = ""

    def next_segment(self) -> Segment | None:
        """See `Task`."""
        if self._text is not None:
            self.stats.ended_by = self._ended_by
            return None
        model, request, config = self.model, self.request, self.model.config
        self._text = TextStream(model, self.meter, request.params.temperature)
        seconds = request.samples.shape[1] / config.sample_rate
        limits = PatchLimits.from_seconds(
            request.min_seconds,
            request.max_seconds or EDIT_FACTOR * seconds + EDIT_EXTRA_SECONDS,
            patch_seconds(config),
            min_patches=MIN_EDIT_PATCHES,
            expected_seconds=1.2 * seconds + 2,
        )
        patches = prefill.patches_of(model, request.samples)
        prompt = prompts.edit_prompt(model.tokenizer, request.instruction, patches, reasoning=request.reasoning)
        self.stats.segments, self.stats.prompt_tokens = 1, len(prompt.ids)
        stops = (self._start, model.tokenizer.special(prompts.END_OF_TEXT, "editing"))
        params = request.params
        plan = TextPlan(params.max_new_tokens, params.temperature, stops, then=self._start)
        return Segment(prompt, limits, plan, patches * config.patch_frames)

    def prefill(self, segment: Segment, target: PrefillTarget = ALONE) -> Prefill:
        """See `Task`."""
        model, frames, expected = self.model, self.model.config.patch_frames, segment.limits.expected
        audio = prefill.AudioPrefill(
            model,
            lambda: self.request.context.state(model, segment.audio_frames + expected * frames),
            samples=self.request.samples,
            noise=self.noise,
            target=target,
        )
        prompt = prefill.PromptPrefill(
            model,
            segment.prompt,
            lambda: [audio.result().projected],
            audio_router=False,
            expected_tokens=expected + segment.text.expected,
            target=target,
        )

        def result() -> PrefillResult:
            history = torch.zeros_like(audio.latents[:, :frames])
            return PrefillResult(prompt.hidden[:, -1], prompt.state, audio.state, history)

        return Prefill([*audio.chunks(), *prompt.chunks()], result)

    def sampling_noise(self) -> Tensor | None:
        """See `Task`."""
        return self._text.noise()

    def on_token(self, token: int, *, last: bool, stopped: bool) -> Iterator[Speech]:
        """See `Task`."""
        silence, rate = np.zeros(0, np.float32), self.model.config.sample_rate
        pieces = list(self._text.push(token, last=last, stopped=stopped))
        text = self._edited.push(self._marks.get(token, "") + "".join(pieces))
        if last:
            text += self._edited.flush()
        spans = self._edited.spans() if last else None
        if text or spans:
            yield Speech(silence, rate, self.stats, text, spans)
        if last and token != self._start:
            logger.warning("edit: the text ended without %s; sound follows anyway", prompts.GEN_AUDIO)

    def on_patch(self, patch: Patch) -> Speech:
        """See `Task`."""
        self._ended_by = "stop" if patch.stopped else "limit"
        return speech_of(self.model, patch.samples[0].numpy(), self.meter, self.request.progress)
