"""Text about a recording: recognition, and answers to an instruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..results import LanguageTag, Transcript
from ..text import prompts
from . import prefill
from .noise import NoiseSource, SeededNoise
from .params import AS_REFERENCE, FlowParams, TextParams
from .prefill import ALONE, Prefill, PrefillResult, PrefillTarget
from .task import Patch, Segment, TextPlan, TextStream, new_meter


@dataclass(frozen=True)
class UnderstandRequest:
    """`samples` [1,L] and an instruction; None recognises, in `language` where it is known.

    `sample`: whether the recording's posterior is sampled, or its mean taken. `hotwords`: words that it may hold.
    """

    samples: Tensor
    instruction: str | None
    language: str | None
    params: TextParams
    seed: int
    sample: bool = True
    hotwords: tuple[str, ...] = ()
    prepare_seconds: float = 0.0  # what making the request took: reading the recording


class Understanding:
    """A `Task` of one segment; the last piece ends the transcript."""

    flow = FlowParams()  # of patches, which there are none of

    def __init__(self, model, request: UnderstandRequest, noise: NoiseSource | None = None):
        self.model, self.request = model, request
        self.meter = new_meter(model, request.seed, request.prepare_seconds)
        self.stats = self.meter.stats
        self.stats.audio_seconds = request.samples.shape[1] / model.config.sample_rate
        self.noise = noise or SeededNoise(request.seed, model.llm.device)
        self._language = prompts.answer_language(request.language)
        # only recognition in an unknown language answers with a language first
        tagged = request.instruction is None and self._language is None
        self._tag = LanguageTag() if tagged else None
        self._text: TextStream | None = None

    def next_segment(self) -> Segment | None:
        """See `Task`."""
        if self._text is not None:
            return None
        model, params, tokenizer = self.model, self.request.params, self.model.tokenizer
        self._text = TextStream(model, self.meter, params.temperature)
        patches = prefill.patches_of(model, self.request.samples)
        instruction = self.request.instruction or prompts.ASR_INSTRUCTION
        parts = [prompts.with_hotwords(instruction, self.request.hotwords), prompts.Audio(patches)]
        prompt = prompts.understanding_prompt(tokenizer, parts, self._language)
        self.stats.prompt_tokens, self.stats.patches = len(prompt.ids), patches
        end = tokenizer.special(prompts.END_OF_TEXT, "understanding")
        return Segment(prompt, None, TextPlan(params.max_new_tokens, params.temperature, (end,)))

    def prefill(self, segment: Segment, target: PrefillTarget = ALONE) -> Prefill:
        """See `Task`; the semantic state is dropped once the recording is encoded, as no patches follow."""
        model = self.model

        def encoded() -> list[Tensor]:
            projected = audio.result().projected
            audio.state = None
            return [projected]

        audio = prefill.AudioPrefill(
            model,
            lambda: AS_REFERENCE.state(model, prefill.audio_frames(model, segment.prompt)),
            samples=self.request.samples,
            noise=self.noise if self.request.sample else None,
            target=target,
        )
        prompt = prefill.PromptPrefill(
            model, segment.prompt, encoded, audio_router=True, expected_tokens=segment.text.expected, target=target
        )

        def result() -> PrefillResult:
            return PrefillResult(prompt.hidden[:, -1], prompt.state, None, audio.latents[:, :0])

        return Prefill([*audio.chunks(), *prompt.chunks()], result)

    def sampling_noise(self) -> Tensor | None:
        """See `Task`."""
        return self._text.noise()

    def on_token(self, token: int, *, last: bool, stopped: bool) -> Iterator[Transcript]:
        """See `Task`."""
        tag = self._tag
        for piece in self._text.push(token, last=last, stopped=stopped):
            text = tag.push(piece) if tag else piece
            if text:
                yield self._transcript(text)
        if last:
            yield self._transcript(tag.flush() if tag else "")

    def on_patch(self, patch: Patch) -> Any:
        """See `Task`; there are none."""
        raise AssertionError("understanding makes no patches")

    def _transcript(self, text: str) -> Transcript:
        return Transcript(text, self.stats, self._tag.language if self._tag else self._language)
