"""Prompts between the patches of others: piece by piece, and in graphs, with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mingcore.model import load
from mingcore.runtime import graph_prefill, prefill
from mingcore.runtime.engine import Engine
from mingcore.runtime.graphs import Graphs
from tests.runtime.engine_support import MIXED, Sink, replayed_by_calling, request, run, same

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LONG = request(50, 4, texts=("a long prompt " * 12,), voice=30)


@pytest.fixture
def small_pieces(monkeypatch, alone):
    """Eight tokens at a time; what requests give alone was made of whole prompts."""
    for one in (*MIXED, LONG):
        alone(one)
    monkeypatch.setattr(prefill, "CHUNK", 8)


def test_pieces_are_few_and_alike():
    for n in (1, 2, 255, 256, 257, 512, 1000):
        parts = prefill.chunks_of(n)
        assert [i for part in parts for i in part] == list(range(n))
        lengths = [len(part) for part in parts]
        assert len(parts) == -(-n // 256) and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("way", [{}, {"lookahead": 2}, {"graphs": True, "lookahead": 1}])
def test_a_long_prompt_stalls_nobody(endless, alone, small_pieces, monkeypatch, way):
    """The patches of one request go on while the prompt of another is run."""
    if way.get("graphs"):
        way = {**way, "graphs": Graphs(replayed_by_calling)}
    engine = Engine(endless, 3, **way)
    sinks = [Sink(), Sink()]
    speaking = request(51, 60)
    engine.submit(speaking, sinks[0])
    while not sinks[0].pieces:
        engine.step()
    at_once = []
    for part in ("pool", "llm"):
        watch(monkeypatch, endless, part, at_once)
    engine.submit(LONG, sinks[1])
    rounds = 0
    while not sinks[1].pieces:
        before = len(sinks[0].pieces)
        engine.step()
        rounds += 1
        assert len(sinks[0].pieces) == before + 1
    assert rounds > 20 and max(at_once) <= 32  # a bucket where there are graphs
    while engine.step():
        pass
    same(alone, [speaking, LONG], sinks)


def watch(monkeypatch, model, part, seen):
    """Takes down how many tokens each call of a part of the model gets."""
    kind = type(getattr(model, part))
    name = "forward" if hasattr(kind, "forward") else "__call__"
    original = getattr(kind, name)

    def watched(self, x, *args, **kwargs):
        seen.append(x.shape[1] if name == "forward" else x.shape[1] // 5)
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(kind, name, watched)


@pytest.mark.parametrize("rounds", range(0, 12, 3))
def test_a_prompt_is_cancelled_at_any_piece_and_others_take_its_place(endless, alone, small_pieces, rounds):
    engine = Engine(endless, 3)
    sinks = [Sink() for _ in range(4)]
    sequences = [engine.submit(one, sink) for one, sink in zip((MIXED[2], LONG, MIXED[0], MIXED[1]), sinks)]
    while not sinks[0].pieces:
        engine.step()
    for _ in range(rounds):
        engine.step()
    engine.cancel(sequences[1])
    while engine.step():
        pass
    assert not sinks[1].over and not sinks[1].pieces and not engine.sequences
    same(alone, (MIXED[2], MIXED[0], MIXED[1]), [sinks[0], *sinks[2:]])


def test_who_leaves_while_a_prompt_is_run_does_not_move_it(endless, alone, small_pieces):
    """The first slot is free again before the second has begun, and the third goes there."""
    requests = [MIXED[4], MIXED[0], LONG, MIXED[5], MIXED[2]]
    for way in ({}, {"batch_invariant": True}, {"graphs": Graphs(replayed_by_calling)}):
        same(alone, requests, run(Engine(endless, 4, **way), requests))


def test_an_error_in_a_later_piece_is_its_own_requests(endless, alone, small_pieces, monkeypatch):
    calls = 0
    read = prefill.EagerPrefillRunner.run_llm

    def fail(self, model, embeds, state, mask):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("the voice file vanished")
        return read(self, model, embeds, state, mask)

    monkeypatch.setattr(prefill.EagerPrefillRunner, "run_llm", fail)
    engine, sinks = Engine(endless, 2), [Sink(), Sink()]
    for one, sink in zip((LONG, MIXED[0]), sinks):
        engine.submit(one, sink)
    while engine.step():
        pass
    assert str(sinks[0].error) == "the voice file vanished" and not sinks[0].pieces
    same(alone, MIXED[:1], sinks[1:])


def test_segments_are_prompts_like_others(endless, alone, small_pieces, monkeypatch):
    monkeypatch.setattr(endless.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    three = replace(request(52, 40, texts=("abc", "de", "f")), min_seconds=0.3)
    sinks = run(Engine(endless, 2, lookahead=1), [three, replace(three, seed=53)])
    same(alone, [three, replace(three, seed=53)], sinks)
    assert sinks[0].pieces[-1].stats.segments == 3


def test_what_is_longer_than_the_graphs_reach_is_run_without(endless, alone, monkeypatch):
    monkeypatch.setattr(graph_prefill, "CAPACITY", 40)
    engine = Engine(endless, 2, graphs=Graphs(replayed_by_calling))
    used = []
    monkeypatch.setattr(
        prefill.EagerPrefillRunner,
        "run_llm",
        lambda self, *args, read=prefill.EagerPrefillRunner.run_llm: used.append(1) or read(self, *args),
    )
    requests = [LONG, MIXED[0]]
    same(alone, requests, run(engine, requests))
    assert used


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int8_dyn"])
def test_a_prompt_in_pieces_by_format(weights):
    """On the CPU's kernels every row is computed for itself: the same bits in every format."""
    model = load(GOLDEN, weights=weights)
    for n in (40, 70, 270):
        embeds = torch.randn(1, n, model.config.llm.hidden_size)
        with torch.no_grad():
            whole, _ = model.llm(embeds, model.llm.new_state(1, 512))
            state, parts = model.llm.new_state(1, 512), []
            for start in range(0, n, 32):
                parts.append(model.llm(embeds[:, start : start + 32], state)[0])
        assert torch.equal(torch.cat(parts, dim=1), whole), n
