"""The batch on a GPU: through CUDA graphs and without, the same bits. `make gpu` runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mingcore import MingAudio
from mingcore.runtime.engine import Engine
from tests.runtime.engine_support import MIXED, Sink

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(scope="module")
def model():
    return MingAudio.from_pretrained("tiny", device="cuda").model


def spoken(model, requests, **options) -> list[np.ndarray]:
    engine, sinks = Engine(model, 4, seconds=3, **options), [Sink() for _ in requests]
    for request, sink in zip(requests, sinks):
        moved = {**vars(request), "latents": request.latents.cuda()}
        engine.submit(type(request)(**moved), sink)
    while engine.tick():
        pass
    assert all(sink.over and sink.error is None for sink in sinks), [s.error for s in sinks]
    torch.cuda.synchronize()
    return [sink.samples for sink in sinks]


def test_graphs_change_no_bit(model):
    flows = tuple({request.flow for request in MIXED})
    with_graphs = spoken(model, MIXED, flows=flows)
    without = spoken(model, MIXED, graphs=False)
    assert all(np.array_equal(a, b) for a, b in zip(with_graphs, without))


def test_who_else_is_there_changes_no_bit_in_the_batch_invariant_mode(model):
    together = spoken(model, MIXED[:4], batch_invariant=True, graphs=False)
    alone = [spoken(model, [one], batch_invariant=True, graphs=False)[0] for one in MIXED[:4]]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone))
