"""A request in progress: segments, each of a prompt, then text, patches, or text and patches.

Speech (speaking.py) has segments of a prompt and patches; recognition (understanding.py) one of a prompt and text; an
edit (editing.py) one of all three. engine.py drives them. Nothing is validated here: that was done before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..results import Speech
from ..text.prompts import Prompt
from .noise import NoiseSource
from .params import FlowParams, PatchLimits
from .prefill import ALONE, Prefill, PrefillTarget
from .sampling import SamplingNoise, TextPlan
from .stats import Meter

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Segment:
    """A prompt, then text, patches, or text and patches.

    audio_frames: frames of latents in the prompt that the patches go on from; 0 where there are none.
    """

    prompt: Prompt
    limits: PatchLimits | None
    text: TextPlan | None = None
    audio_frames: int = 0

    @property
    def max_tokens(self) -> int:
        """The most that the LLM is fed."""
        text = 0 if self.text is None else self.text.max_tokens + (self.text.then is not None)
        return len(self.prompt.ids) + text + self.max_patches

    @property
    def max_patches(self) -> int:
        """The most that are generated."""
        return 0 if self.limits is None else max(self.limits.max_patches, 1)


@dataclass(frozen=True)
class Patch:
    """One patch of a sequence: its sound [1,L] float32 on the host, and whether it is the last, by the stop head.

    Of a sequence by itself also what made it: latents [1,P,C] float32; `condition` [1,H] and `history` [1,P,C], the
    flow head's inputs; `stop_probability` [1] of `condition`, None where it could not have ended. None in a batch,
    whose next step may have changed them.
    """

    index: int
    samples: Tensor
    last: bool
    stopped: bool
    latents: Tensor | None = None
    condition: Tensor | None = None
    history: Tensor | None = None
    stop_probability: Tensor | None = None


class Task(Protocol):
    """A request in progress. In turn: `next_segment`; `prefill`; tokens by `on_token`; patches by `on_patch`;
    `next_segment` again, until that is None."""

    meter: Meter
    flow: FlowParams
    noise: NoiseSource

    def next_segment(self) -> Segment | None:
        """The next segment; None, and complete stats, when there is none."""

    def prefill(self, segment: Segment, target: PrefillTarget = ALONE) -> Prefill:
        """The segment's audio and prompt, to be run into the target's states."""

    def sampling_noise(self) -> Tensor | None:
        """What sampling the next token takes (`sampling.choose`)."""

    def on_token(self, token: int, *, last: bool, stopped: bool) -> Iterator[Any]:
        """A token of the text -> the results that go out. last: the text ends; stopped: by a stop token."""

    def on_patch(self, patch: Patch) -> Any:
        """A patch -> the result that goes out."""


class TextStream:
    """The text of a request: noise for its tokens, and these as text without half characters."""

    def __init__(self, model, meter: Meter, temperature: float):
        self._stats, self._stream = meter.stats, model.tokenizer.stream()
        vocabulary, device = model.config.llm.vocab_size, model.llm.device
        self.noise = SamplingNoise(meter.stats.seed, vocabulary, temperature, device)
        self._stats.ended_by = "limit"

    def push(self, token: int, *, last: bool, stopped: bool) -> Iterator[str]:
        """The text that a token completes; behind the last one, what was held back."""
        self._stats.text_tokens += 1
        if stopped:
            self._stats.ended_by = "stop"
        else:
            yield self._stream.push(token)
        if last:
            yield self._stream.flush()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the host, float32."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def patch_seconds(config) -> float:
    """Seconds of sound in one patch."""
    return config.patch_frames * config.hop_samples / config.sample_rate


def new_meter(model, seed: int, prepare_seconds: float) -> Meter:
    """A running meter of a request with this seed, whose preparation took so long."""
    meter = Meter(model.llm.device, prepare_seconds=prepare_seconds)
    meter.stats.seed = seed
    return meter


def speech_of(model, samples: np.ndarray, meter: Meter, progress: Progress | None) -> Speech:
    """One patch's samples [L] as a result, counted and reported to `progress`."""
    meter.stats.patches += 1
    meter.count_audio(samples.size, model.config.sample_rate)
    if progress is not None:
        with meter.paused():
            progress(meter.stats.audio_seconds)
    return Speech(samples, model.config.sample_rate, meter.stats)
