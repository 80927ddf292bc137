"""The batch on a GPU: through CUDA graphs and without, the same bits. `make gpu` runs it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mingcore import MingAudio
from mingcore.runtime.engine import Engine
from mingcore.runtime.params import FlowParams
from tests.runtime.engine_support import FEW, MIXED, REQUESTS, Sink, said

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(scope="module")
def model():
    return MingAudio.from_pretrained("tiny", device="cuda").model


def spoken(model, requests, **options) -> list[tuple]:
    engine, sinks = Engine(model, 4, seconds=3, **options), [Sink() for _ in requests]
    for request, sink in zip(requests, sinks):
        moved = {k: v.cuda() for k, v in vars(request).items() if isinstance(v, torch.Tensor)}
        engine.submit(replace(request, **moved), sink)
    while engine.step():
        pass
    assert all(sink.over and sink.error is None for sink in sinks), [s.error for s in sinks]
    torch.cuda.synchronize()
    return [said(sink.pieces) for sink in sinks]


def equal(some, others) -> bool:
    """The same text, samples and languages."""
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(some, others))


def test_graphs_change_no_bit(model):
    flows = tuple({request.flow for request in MIXED} | {FEW, FlowParams(steps=3)})
    for requests in (MIXED, REQUESTS):
        with_graphs = spoken(model, requests, flows=flows)
        assert equal(with_graphs, spoken(model, requests, graphs=False))


def test_who_else_is_there_changes_no_bit_in_the_batch_invariant_mode(model):
    for requests in (MIXED[:4], REQUESTS[:4]):
        together = spoken(model, requests, batch_invariant=True, graphs=False)
        alone = [spoken(model, [one], batch_invariant=True, graphs=False)[0] for one in requests]
        assert equal(together, alone)
