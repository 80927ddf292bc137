"""The tasks, each a generator that validates nothing: what it is given was checked before.

A request's memory belongs to its generator: closing that frees it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model import text as prompts
from ..results import LanguageTag, Speech, Transcript
from . import generate
from .noise import NoiseSource, SeededNoise, noise_source
from .params import MIN_EDIT_PATCHES, MIN_TTS_PATCHES, FlowParams, PatchLimits, TextParams
from .stats import Meter

logger = logging.getLogger(__name__)

Progress = Callable[[float], None]

# the names by which recognition's answers begin; other languages are passed on as given
ANSWER_LANGUAGES = {"zh": "Chinese", "en": "English"}
# a run that never stops ends after this many times what its text should take, and a bit
LIMIT_FACTOR, LIMIT_EXTRA_SECONDS = 4.0, 5.0
# an edit that never stops ends after this many times its input, and a bit
EDIT_FACTOR, EDIT_EXTRA_SECONDS = 2.0, 10.0
# room for text in the caches at the start; they grow
EXPECTED_TOKENS = 256


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


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy on the host, float32."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def patch_seconds(config) -> float:
    """Seconds of sound in one patch."""
    return config.patch_frames * config.hop_samples / config.sample_rate


def say(model, request: SpeechRequest, noise: NoiseSource | None = None) -> Iterator[Speech]:
    """Speaks the segments one after the other, each a run of its own in the same voice."""
    meter = _meter(model, request.seed)
    stats, rate = meter.stats, model.config.sample_rate
    noise = noise or noise_source(request.flow.noise, request.seed, model.llm.device)
    gap = np.zeros(0, np.float32)
    ended = "stop"
    for i in range(len(request.texts)):
        limits = _segment_limits(model, request, i, stats.audio_seconds + gap.size / rate)
        if limits is None:
            ended = "limit"
            break
        patches = _segment(model, request, i, limits, noise, stats)
        with closing(patches):
            for patch in patches:
                samples = to_numpy(patch.samples[0])
                if gap.size:
                    samples, gap = np.concatenate((gap, samples)), gap[:0]
                if patch.last and not patch.stopped:
                    ended = "limit"
                yield from _deliver(model, samples, meter, request.progress)
        gap = np.zeros(round(request.pause_seconds * rate), np.float32)
    stats.ended_by = ended
    meter.pause()


def _segment_limits(model, request: SpeechRequest, i: int, done: float) -> PatchLimits | None:
    """Limits of segment `i` after `done` seconds; None when nothing is left for it.

    The least binds the last segment only; the most is of the whole.
    """
    seconds = patch_seconds(model.config)
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


def _segment(
    model, request: SpeechRequest, i: int, limits: PatchLimits, noise: NoiseSource, stats
) -> Iterator[generate.Patch]:
    """One segment's patches; its semantic cache starts anew at the voice."""
    voice = generate.embed_audio(model, request.latents, expected_patches=limits.expected)
    text = request.texts[i][0]
    prompt = prompts.tts_prompt(model.tokenizer, text, request.transcript, voice.patches)
    hidden, llm = generate.prefill(
        model, prompt, [voice.projected], audio_router=False, expected_tokens=limits.expected
    )
    stats.segments += 1
    stats.prompt_tokens += len(prompt.ids)
    history = request.latents[:, -model.config.patch_frames :]
    context = generate.Context(hidden[:, -1], llm, voice.semantic, history)
    return generate.speak(model, context, noise, request.flow, limits)


def understand(
    model, request: UnderstandRequest, noise: NoiseSource | None = None
) -> Iterator[Transcript]:
    """Text about a recording, piece by piece; the last piece ends the transcript."""
    meter = _meter(model, request.seed)
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
    meter = _meter(model, request.seed)
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
    audio = generate.embed_audio(model, latents, expected_patches=limits.expected)
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
            yield from _deliver(model, to_numpy(patch.samples[0]), meter, request.progress)
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


def _meter(model, seed: int) -> Meter:
    meter = Meter(model.llm.device)
    meter.stats.seed = seed
    return meter


def _deliver(
    model, samples: np.ndarray, meter: Meter, progress: Progress | None
) -> Iterator[Speech]:
    """One chunk goes out; the clock rests while its consumer has it."""
    meter.stats.patches += 1
    meter.heard(samples.size, model.config.sample_rate)
    meter.pause()
    if progress is not None:
        progress(meter.stats.audio_seconds)
    yield Speech(samples, model.config.sample_rate, meter.stats)
    meter.resume()
