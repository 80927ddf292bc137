"""The batch-invariant mode: the same bits whoever joins and leaves, in any row, on any backend."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mingcore
from mingcore import ops
from mingcore.model import load
from mingcore.runtime.engine import Engine
from mingcore.runtime.graphs import Graphs
from mingcore.runtime.params import FlowParams
from mingcore.testing.synthetic import model_config, write_checkpoint
from tests.runtime.engine_support import MIXED, REQUESTS, Sink, replayed_by_calling, request, run, said

TINY = Path(mingcore.__file__).parent / "checkpoints" / "tiny"
FORMATS = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"weights": "int8"},
    "int8_dyn": {"weights": "int8_dyn"},
}


def endless(folder, **options):
    """A model that never stops but by a limit."""
    model = load(folder, **options)
    model.stop_head.linear.bias.copy_(torch.tensor([50.0, -50.0]))
    return model


def joining(engine: Engine, plan) -> list[Sink]:
    """Requests as (round, request), each submitted in its round."""
    sinks, waiting, rounds = [Sink() for _ in plan], list(zip(plan, range(len(plan)))), 0
    busy = True
    while waiting or busy:
        while waiting and waiting[0][0][0] <= rounds:
            (_, one), i = waiting.pop(0)
            engine.submit(one, sinks[i])
        busy, rounds = engine.step(), rounds + 1
    assert all(sink.over for sink in sinks)
    return sinks


def make(model, slots: int) -> Engine:
    return Engine(model, slots, batch_invariant=True)


def make_with_graphs(model, slots: int) -> Engine:
    return Engine(
        model,
        slots,
        batch_invariant=True,
        lookahead=1,
        graphs=Graphs(replayed_by_calling),
        flows=(FlowParams(steps=2), FlowParams(steps=3)),
    )


def same(pieces, others) -> bool:
    """The same text and samples."""
    (text, samples, _), (other_text, other_samples, _) = said(pieces), said(others)
    return text == other_text and np.array_equal(samples, other_samples)


def check(model, requests, trials: int, make=make) -> None:
    """Alone in an engine of four slots and of one, and in company that comes and goes."""
    draw, engine = random.Random(7), make(model, 4)
    alone = {one.seed: run(engine, [one])[0].pieces for one in requests}
    (single,) = run(make(model, 1), requests[:1])
    assert same(single.pieces, alone[requests[0].seed])
    for _ in range(trials):
        chosen = draw.sample(requests, draw.randrange(2, len(requests) + 1))
        plan = sorted(((draw.randrange(5), one) for one in chosen), key=lambda p: p[0])
        for (_, one), sink in zip(plan, joining(engine, plan)):
            assert sink.error is None, sink.error
            assert same(sink.pieces, alone[one.seed]), one.seed


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_company_changes_no_bit(backend):
    with ops.use_backend(backend):
        check(endless(TINY), REQUESTS[:3], 1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("format", FORMATS)
def test_company_changes_no_bit_in_any_format(backend, format):
    with ops.use_backend(backend):
        check(endless(TINY, **FORMATS[format]), [*MIXED, *REQUESTS[1:7]], 4)


@pytest.mark.slow
def test_company_changes_no_bit_in_graphs():
    with ops.use_backend("reference"):
        check(endless(TINY), REQUESTS[:4], 2, make_with_graphs)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_company_changes_no_bit_of_a_larger_random_model(backend, tmp_path):
    write_checkpoint(tmp_path, model_config("tiny"))
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    with ops.use_backend(backend):
        check(endless(tmp_path), REQUESTS[:5], 2)


def test_without_the_mode_the_formulas_agree_to_rounding_only():
    """What the mode is for; where this fails, PyTorch's products have become invariant."""
    model, requests = endless(TINY), [request(seed, 4) for seed in (1, 2, 3)]
    with ops.use_backend("reference"):
        together = run(Engine(model, 3), requests)
        singles = [run(Engine(model, 3), [one])[0] for one in requests]
    errors = [np.abs(a.samples - b.samples).max() / np.abs(b.samples).max() for a, b in zip(together, singles)]
    assert 0 < max(errors) < 1e-3, errors
