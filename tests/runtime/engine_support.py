"""What the tests of several requests at once share."""

from __future__ import annotations

import numpy as np
import torch

from mingcore.runtime.editing import EditRequest
from mingcore.runtime.engine import Engine
from mingcore.runtime.params import FlowParams, TextParams
from mingcore.runtime.speaking import SpeechRequest
from mingcore.runtime.understanding import UnderstandRequest

LATENTS = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(5))


def request(seed: int, patches: int, *, texts=("hello",), voice: int = 15, progress=None, **flow) -> SpeechRequest:
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


RECORDINGS = 0.1 * torch.randn(4, 24000, generator=torch.Generator().manual_seed(6))
FEW = FlowParams(steps=2)


def recognise(seed: int, tokens: int, *, temperature: float = 0.0, samples: int = 8000, **kinds):
    kinds = {"instruction": None, "language": None} | kinds
    recording = RECORDINGS[seed % 4 : seed % 4 + 1, :samples]
    params = TextParams(tokens, temperature)
    return UnderstandRequest(recording, **kinds, params=params, seed=seed)


def edit(seed: int, tokens: int, patches: int, *, samples: int = 8000, **kinds) -> EditRequest:
    recording = RECORDINGS[seed % 4 : seed % 4 + 1, :samples]
    limits = {"min_seconds": 0.1, "max_seconds": patches / 10}
    kinds = {"reasoning": True, "flow": FEW} | limits | kinds
    return EditRequest(recording, f"louder {seed}", params=TextParams(tokens), seed=seed, **kinds)


REQUESTS = (
    MIXED[0],
    recognise(51, 9, temperature=1.0),
    edit(52, 3, 4),
    recognise(53, 1, instruction="who?"),
    MIXED[2],
    edit(54, 7, 2, samples=4000, reasoning=False, flow=FlowParams(steps=3)),
    recognise(55, 20, samples=24000, language="en"),
    MIXED[4],
    edit(56, 1, 9, flow=FlowParams(steps=2, noise="per_request", guidance=0)),
    recognise(57, 5, temperature=5.0, instruction="what?"),
)


class Sink:
    """An output sink that keeps everything; `limit` pieces at most until they are taken."""

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


def said(pieces) -> tuple[str, np.ndarray, str | None]:
    """All text, all samples, the language."""
    text = "".join(getattr(p, "text", None) or "" for p in pieces)
    samples = [p.samples for p in pieces if hasattr(p, "samples")]
    language = getattr(pieces[-1], "language", None)
    return text, np.concatenate(samples) if samples else np.zeros(0), language


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
        if not engine.step():
            break
    assert all(sink.over for sink in sinks) and not engine.sequences
    return sinks


def same(alone, requests, sinks) -> None:
    for one, sink in zip(requests, sinks):
        assert sink.error is None, sink.error
        assert np.array_equal(sink.samples, alone(one)), one.seed
