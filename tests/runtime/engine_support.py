"""What the tests of several requests at once share."""

from __future__ import annotations

import numpy as np
import torch

from mingcore.runtime.engine import Engine
from mingcore.runtime.params import FlowParams
from mingcore.runtime.speaking import SpeechRequest

LATENTS = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(5))


def request(
    seed: int, patches: int, *, texts=("hello",), voice: int = 15, progress=None, **flow
) -> SpeechRequest:
    flow = FlowParams(**{"steps": 2} | flow)
    seconds = patches / 10
    return SpeechRequest(
        tuple((text, 1.0) for text in texts),
        LATENTS[:, :voice],
        "hi.",
        flow,
        seed,
        min(seconds, 1.0),
        seconds,
        0.05,
        progress,
    )


# lengths, voices, seeds, schedules, guidances and orders of noise, none like another
MIXED = (
    request(1, 5),
    request(2, 9, voice=20, guidance=0),
    request(3, 3, temperature=0.5),
    request(4, 7, steps=3, noise="per_request"),
    request(5, 1, guidance=1.0),
    request(6, 12, voice=30),
    request(7, 4, sigma=0),
)


class Sink:
    """An outlet that keeps everything; `limit` pieces at most until they are taken."""

    def __init__(self, limit: int = 1000):
        self.limit, self.pieces, self.over, self.error = limit, [], False, None

    def room(self) -> int:
        return self.limit - len(self.pieces)

    def put(self, piece) -> None:
        assert not self.over
        self.pieces.append(piece)

    def end(self, error) -> None:
        assert not self.over
        self.over, self.error = True, error

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate([piece.samples for piece in self.pieces])


def replayed_by_calling(function):
    """Stands in for a CUDA graph: a replay changes the results of the first run in place."""
    result = function()

    def replay() -> None:
        for old, new in zip(tensors_of(result), tensors_of(function())):
            old.copy_(new)

    return replay, result


def tensors_of(result) -> list[torch.Tensor]:
    if result is None or isinstance(result, torch.Tensor):
        return [] if result is None else [result]
    return list(result) if isinstance(result, tuple) else list(vars(result).values())


def run(engine: Engine, requests, *, most: int = 400) -> list[Sink]:
    sinks = [Sink() for _ in requests]
    for one, sink in zip(requests, sinks):
        engine.submit(one, sink)
    for _ in range(most):
        if not engine.tick():
            break
    assert all(sink.over for sink in sinks) and not engine.jobs
    return sinks


def same(alone, requests, sinks) -> None:
    for one, sink in zip(requests, sinks):
        assert sink.error is None, sink.error
        assert np.array_equal(sink.samples, alone(one)), one.seed
