"""What every kind of request is to those who run it: segments, each of a prompt, text and patches.

Speech (speaking.py) has segments that are prompts and patches; recognition (understanding.py) one
of a prompt and text; an edit (editing.py) one of all three. requests.py runs one by itself,
engine.py many in step. Nothing is validated here, as that was done before.
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
from . import prefill
from .noise import NoiseSource
from .params import FlowParams, PatchLimits
from .sampling import Draws, TextPlan
from .stats import Meter

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Segment:
    """One run of the model: a prompt, then text, patches, or text and patches.

    heard: frames of latents that the patches go on from; 0 where there are none.
    """

    prompt: Prompt
    limits: PatchLimits | None
    text: TextPlan | None = None
    heard: int = 0

    @property
    def tokens(self) -> int:
        """The most that the LLM reads."""
        text = 0 if self.text is None else self.text.most + (self.text.then is not None)
        return len(self.prompt.ids) + text + self.patches

    @property
    def patches(self) -> int:
        """The most that are made."""
        return 0 if self.limits is None else max(self.limits.most, 1)


class Run(Protocol):
    """A request on its way. In turn: `next`; `filling`; tokens that it `wrote`; patches to
    `deliver`; `next` again, until that is None."""

    meter: Meter
    flow: FlowParams
    noise: NoiseSource

    def next(self) -> Segment | None:
        """The next segment; None, and complete stats, when there is none."""

    def filling(
        self, segment: Segment, llm: Any = None, semantic: Any = None, reader: prefill.Reader = prefill.PLAIN
    ) -> Iterator[int | prefill.Context]:
        """Runs all that is heard and the prompt into empty states of one row (None: makes them),
        piece by piece: before each, how many tokens or patches; at last the context."""

    def draws(self) -> Tensor | None:
        """What the choice of the next token takes (`text_rows.choose`)."""

    def wrote(self, token: int, *, last: bool, stopped: bool) -> Iterator[Any]:
        """A token of the text -> what goes out of it. last: the text ends; stopped: by a stop."""

    def deliver(self, samples: np.ndarray, *, last: bool, stopped: bool) -> Speech:
        """The sound [L] of one patch as it goes out."""

    def heard(self, latents: Tensor) -> None:
        """The last patch of a segment, which nothing followed."""


class TextStream:
    """The text of a request: `draws` for its tokens, and these as text without half characters."""

    def __init__(self, model, meter: Meter, temperature: float):
        self._stats, self._stream = meter.stats, model.tokenizer.stream()
        vocabulary, device = model.config.llm.vocab_size, model.llm.device
        self.draws = Draws(meter.stats.seed, vocabulary, temperature, device)
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
