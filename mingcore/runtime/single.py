"""One request by itself: the engine's case of one sequence, its results as an iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..text.prompts import Prompt
from .engine import Engine
from .noise import NoiseSource
from .params import FlowParams, PatchLimits
from .prefill import ALONE, Prefill, PrefillResult, PrefillTarget
from .requests import Request
from .sampling import TextPlan
from .stats import Meter
from .task import Patch, Segment, Task


class _Results:
    """An output sink of any size, for a consumer on the engine's thread."""

    def __init__(self) -> None:
        self._pieces: deque[Any] = deque()
        self._error: BaseException | None = None

    def room(self) -> int:
        return 1 << 30

    def put(self, piece: Any) -> None:
        self._pieces.append(piece)

    def end(self, error: BaseException | None) -> None:
        self._error = error

    def drain(self) -> Iterator[Any]:
        """What has gone out since, or the error."""
        while self._pieces:
            yield self._pieces.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def results(model, work: Request | Task) -> Iterator[Any]:
    """All that a request gives, each piece as soon as it is made. Closing the iterator frees the request's memory.

    The consumer has the word between the halves of a step: sound goes out before the next hidden state is computed.
    """
    sink = _Results()
    with closing(Engine.single(model)) as engine:
        sequence = engine.submit(work, sink)
        while not sequence.finished:
            engine.generate()
            for piece in sink.drain():
                sequence.pause()
                yield piece
                sequence.resume()
            engine.advance()
        yield from sink.drain()


class Continuation:
    """A `Task` of one segment whose prompt has been run: gives the tokens of its text, and its patches."""

    def __init__(
        self,
        model,
        result: PrefillResult,
        *,
        noise: NoiseSource | None = None,
        flow: FlowParams | None = None,
        limits: PatchLimits | None = None,
        text: TextPlan | None = None,
        sampling_noise: Callable[[], Tensor | None] | None = None,
    ):
        self.meter, self.noise, self.flow = Meter(model.llm.device), noise, flow or FlowParams()
        self._result: PrefillResult | None = result
        self._segment: Segment | None = Segment(Prompt((), ()), limits, text)
        self._sampling_noise = sampling_noise

    def next_segment(self) -> Segment | None:
        """See `Task`."""
        segment, self._segment = self._segment, None
        return segment

    def prefill(self, segment: Segment, target: PrefillTarget = ALONE) -> Prefill:
        """See `Task`: there is nothing left to run."""
        result, self._result = self._result, None
        return Prefill((), lambda: result)

    def sampling_noise(self) -> Tensor | None:
        """See `Task`."""
        return None if self._sampling_noise is None else self._sampling_noise()

    def on_token(self, token: int, *, last: bool, stopped: bool) -> Iterator[int]:
        """See `Task`."""
        yield token

    def on_patch(self, patch: Patch) -> Patch:
        """See `Task`."""
        return patch


def generate_patches(
    model, result: PrefillResult, noise: NoiseSource, flow: FlowParams, limits: PatchLimits
) -> Iterator[Patch]:
    """Patches behind a prompt, until the stop head ends them, from `limits.min_patches` on, or `limits.max_patches`.

    The last patch flushes the decoder however it ends, so n patches are exactly n·P·hop samples. The result's states
    are filled further, in place. Closing the iterator drops them.
    """
    yield from results(model, Continuation(model, result, noise=noise, flow=flow, limits=limits))


def generate_tokens(
    model, result: PrefillResult, plan: TextPlan, sampling_noise: Callable[[], Tensor | None]
) -> Iterator[int]:
    """Token ids behind a prompt, the stop token included; at most `plan.max_tokens`. No sound follows.

    sampling_noise: what `sampling.choose` takes for the next token. The result's LLM state is filled further, in place.
    """
    plan = replace(plan, then=None)
    yield from results(model, Continuation(model, result, text=plan, sampling_noise=sampling_noise))
