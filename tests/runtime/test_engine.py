"""Several requests at once: the same bits as alone, whoever joins, leaves, stalls or fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mingcore.runtime.engine import Engine
from mingcore.runtime.graphs import Graphs
from mingcore.runtime.params import FlowParams
from mingcore.runtime.speaking import SpeechRequest, say

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
    request(6, 12, texts=("abc", "de"), voice=30),
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
        new = function()
        if result is not None:
            for name, tensor in vars(result).items():
                tensor.copy_(getattr(new, name))

    return replay, result


@pytest.fixture
def model(golden_models, monkeypatch):
    model = golden_models()
    # nobody stops but by its limit
    monkeypatch.setattr(model.stop_head.linear, "bias", torch.tensor([50.0, -50.0]))
    return model


@pytest.fixture(scope="module")
def alone(golden_models):
    """Request -> its samples when it is the only one, by the loop of one request."""
    kept = {}

    def samples(request: SpeechRequest) -> np.ndarray:
        if request.seed not in kept:
            kept[request.seed] = np.concatenate(
                [speech.samples for speech in say(golden_models(), request)]
            )
        return kept[request.seed]

    return samples


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


WAYS = {
    "one slot": {"slots": 1},
    "three slots": {"slots": 3},
    "a slot each": {"slots": len(MIXED)},
    "padded": {"slots": 4, "batch_invariant": True},
    "ahead": {"slots": 3, "ahead": 2},
    "graphs": {"slots": 3, "ahead": 2, "graphs": True},
    "short slots": {"slots": 3, "seconds": 0.1},
    "graphs, short slots": {"slots": 2, "ahead": 1, "graphs": True, "seconds": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_as_alone(model, alone, way):
    options = dict(WAYS[way])
    if options.get("graphs"):
        options["graphs"] = Graphs(replayed_by_calling)
        options["flows"] = (FlowParams(steps=2), FlowParams(steps=3))
    engine = Engine(model, **options)
    same(alone, MIXED, run(engine, MIXED))
    if "graphs" in options:
        assert len(engine.slots.graphs) > 0
    # and the slots it leaves behind are as good as new
    same(alone, MIXED[:2], run(engine, MIXED[:2]))
