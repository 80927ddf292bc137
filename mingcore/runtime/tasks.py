"""The tasks but speech (speaking.py): generators that validate nothing, as that was done before.

A request's memory belongs to its generator: closing that frees it.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model import text as prompts
from ..results import LanguageTag, Speech, Transcript
from . import generate
from .noise import NoiseSource, SeededNoise, noise_source
from .params import (
    AS_REFERENCE,
    MIN_EDIT_PATCHES,
    ContextParams,
    FlowParams,
    PatchLimits,
    TextParams,
)
from .speaking import Progress, delivered, new_meter, patch_seconds, to_numpy
from .stats import Meter

logger = logging.getLogger(__name__)

# the names by which recognition's answers begin; other languages are passed on as given
ANSWER_LANGUAGES = {"zh": "Chinese", "en": "English"}
# an edit that never stops ends after this many times its input, and a bit
EDIT_FACTOR, EDIT_EXTRA_SECONDS = 2.0, 10.0
# room for text in the caches at the start; they grow
EXPECTED_TOKENS = 256


@dataclass(frozen=True)
class UnderstandRequest:
    """`samples` [1,L] and an instruction; None recognises, in `language` where it is known."""

    samples: Tensor
    instruction: str | None
    language: str | None
    params: TextParams
    seed: int


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


def understand(
    model, request: UnderstandRequest, noise: NoiseSource | None = None
) -> Iterator[Transcript]:
    """Text about a recording, piece by piece; the last piece ends the transcript."""
    meter = new_meter(model, request.seed)
    stats, config, tokenizer = meter.stats, model.config, model.tokenizer
    stats.audio_seconds = request.samples.shape[1] / config.sample_rate
    noise = noise or SeededNoise(request.seed, model.llm.device)
    latents = generate.sample_latents(model, request.samples, noise)
    audio = generate.embed_audio(model, latents).projected
    language = ANSWER_LANGUAGES.get(request.language, request.language)
    parts = [request.instruction or prompts.ASR_INSTRUCTION, prompts.Audio(audio.shape[1])]
    prompt = prompts.understanding_prompt(tokenizer, parts, language)
    stats.prompt_tokens, stats.patches = len(prompt.ids), audio.shape[1]
    hidden, llm = generate.prefill(
        model,
        prompt,
        [audio],
        audio_router=True,
        expected_tokens=min(request.params.max_new_tokens, EXPECTED_TOKENS),
    )
    context = generate.Context(hidden[:, -1], llm, None, latents[:, :0])
    # only recognition in an unknown language answers with a language first
    tag = LanguageTag() if request.instruction is None and language is None else None
    end = tokenizer.special(prompts.END_OF_TEXT, "understanding")
    for _, piece in _write(model, context, request.params, {end}, meter):
        text = tag.push(piece) if tag else piece
        if text:
            meter.pause()
            yield Transcript(text, stats, tag.language if tag else language)
            meter.resume()
    meter.pause()
    yield Transcript(tag.flush() if tag else "", stats, tag.language if tag else language)


def edit(model, request: EditRequest, noise: NoiseSource | None = None) -> Iterator[Speech]:
    """Text first, then sound: pieces of either kind, each with the other empty."""
    meter = new_meter(model, request.seed)
    stats, config, tokenizer = meter.stats, model.config, model.tokenizer
    noise = noise or noise_source(request.flow.noise, request.seed, model.llm.device)
    seconds = request.samples.shape[1] / config.sample_rate
    limits = PatchLimits.from_seconds(
        request.least_seconds,
        request.most_seconds or EDIT_FACTOR * seconds + EDIT_EXTRA_SECONDS,
        patch_seconds(config),
        least=MIN_EDIT_PATCHES,
        expected_seconds=1.2 * seconds + 2,
    )
    latents = generate.sample_latents(model, request.samples, noise)
    frames = latents.shape[1] + limits.expected * config.patch_frames
    audio = generate.embed_audio(model, latents, state=request.context.state(model, frames))
    prompt = prompts.edit_prompt(
        tokenizer, request.instruction, audio.patches, reasoning=request.reasoning
    )
    stats.segments, stats.prompt_tokens = 1, len(prompt.ids)
    hidden, llm = generate.prefill(
        model,
        prompt,
        [audio.projected],
        audio_router=False,
        expected_tokens=limits.expected + min(request.params.max_new_tokens, EXPECTED_TOKENS),
    )
    history = torch.zeros_like(latents[:, : config.patch_frames])
    context = generate.Context(hidden[:, -1], llm, audio.semantic, history)
    del audio
    start = tokenizer.special(prompts.GEN_AUDIO, "editing")
    stops = {start, tokenizer.special(prompts.END_OF_TEXT, "editing")}
    asked = False
    for token, piece in _write(model, context, request.params, stops, meter):
        asked = token == start
        if piece:
            meter.pause()
            yield Speech(np.zeros(0, np.float32), config.sample_rate, stats, piece)
            meter.resume()
    if not asked:
        logger.warning("edit: the text ended without %s; sound follows anyway", prompts.GEN_AUDIO)
    generate.feed(model, context, start)
    patches = generate.speak(model, context, noise, request.flow, limits)
    del context
    with closing(patches):
        for patch in patches:
            ended = "stop" if patch.stopped else "limit"
            speech = delivered(model, to_numpy(patch.samples[0]), meter, request.progress)
            meter.pause()
            yield speech
            meter.resume()
    stats.ended_by = ended
    meter.pause()


def _write(
    model, context: generate.Context, params: TextParams, stops: set[int], meter: Meter
) -> Iterator[tuple[int | None, str]]:
    """(token, text that it completes); the last piece may be what was held back."""
    stream, stats = model.tokenizer.stream(), meter.stats
    generator = torch.Generator(model.llm.device).manual_seed(stats.seed)
    stats.ended_by = "limit"
    token = None
    tokens = generate.write(model, context, params, frozenset(stops), generator)
    with closing(tokens):
        for token in tokens:
            stats.text_tokens += 1
            if token in stops:
                stats.ended_by = "stop"
                break
            yield token, stream.push(token)
    yield token, stream.flush()
