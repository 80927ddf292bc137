"""Recognition and edits in step with speech: the same text and sound as alone."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from mingcore.runtime import prefill
from mingcore.runtime.editing import Editing
from mingcore.runtime.engine import Engine
from mingcore.runtime.graphs import Graphs
from mingcore.runtime.params import ContextParams, FlowParams
from mingcore.runtime.requests import new_task
from mingcore.runtime.single import generate_tokens, results
from tests.runtime.engine_support import FEW, MIXED, REQUESTS, Sink, edit, recognise, replayed_by_calling, run, said

WAYS = {
    "one slot": {"slots": 1},
    "three slots": {"slots": 3},
    "a slot each": {"slots": len(REQUESTS)},
    "padded": {"slots": 4, "batch_invariant": True},
    "lookahead": {"slots": 3, "lookahead": 2},
    "graphs": {"slots": 3, "lookahead": 2, "graphs": True},
    "short slots, beside which all that hears runs": {"slots": 3, "seconds": 0.1},
}


@pytest.fixture
def alone(endless):
    """Request -> what it gives when it is the only one, by the loop of one request."""
    kept: dict[int, tuple] = {}

    def pieces(one) -> list:
        if id(one) not in kept:
            kept[id(one)] = one, list(results(endless, one))  # its id is not another's
        return kept[id(one)][1]

    return pieces


def same(alone, requests, sinks) -> None:
    for one, sink in zip(requests, sinks):
        assert sink.error is None, sink.error
        wanted, got = alone(one), sink.pieces
        assert [said([p])[0] for p in got] == [said([p])[0] for p in wanted], one.seed
        assert said(got)[2] == said(wanted)[2]
        assert np.array_equal(said(got)[1], said(wanted)[1]), one.seed
        counts = [
            (s.text_tokens, s.patches, s.prompt_tokens, s.ended_by, s.audio_seconds)
            for s in (got[-1].stats, wanted[-1].stats)
        ]
        assert counts[0] == counts[1], one.seed


@pytest.mark.parametrize("way", WAYS)
def test_the_same_text_and_sound_as_alone(endless, alone, way):
    options = dict(WAYS[way])
    if options.get("graphs"):
        options["graphs"] = Graphs(replayed_by_calling)
        options["flows"] = (FEW, FlowParams(steps=3))
    engine = Engine(endless, **options)
    before = engine.runner.memory()
    same(alone, REQUESTS, run(engine, REQUESTS))
    assert not engine.runner.state.text.writing.any() and not engine.runner.state.open.any()
    if options["slots"] != 3 or "seconds" not in options:
        assert engine.runner.memory() == before
    # and the slots it leaves behind are as good as new
    same(alone, REQUESTS[:3], run(engine, REQUESTS[:3]))


def test_text_is_written_in_step(endless, monkeypatch):
    """Three recognitions and a speech: one pass of the LLM for each token of all of them."""
    passes = []
    forward = type(endless.llm).forward

    def counted(self, embeds, *args, **kwargs):
        passes.append(tuple(embeds.shape[:2]))
        return forward(self, embeds, *args, **kwargs)

    monkeypatch.setattr(type(endless.llm), "forward", counted)
    requests = [recognise(seed, 30, temperature=9.0, instruction="?") for seed in (61, 62, 63)]
    engine = Engine(endless, 4)
    sinks = run(engine, [*requests, MIXED[5]])
    tokens = [sink.pieces[-1].stats.text_tokens for sink in sinks[:3]]
    steps = [B for B, T in passes if T == 1]
    assert max(steps) == 4 and len(steps) <= max(tokens) + 6, (tokens, steps)


def stop_at(monkeypatch, endless, requests, at: dict[int, int]) -> dict[int, int]:
    """Makes the token that a request writes at `at` by itself end its text -> where it is first."""
    first, stops = {}, {}
    for one in requests:
        begun = new_task(endless, one)
        segment = begun.next_segment()
        result = begun.prefill(segment).run()
        tokens = list(generate_tokens(endless, result, segment.text, begun.sampling_noise))
        stops[one.seed] = tokens[at[one.seed]]
        first[one.seed] = tokens.index(stops[one.seed])
    for kind in {type(new_task(endless, one)) for one in requests}:

        def planned(task, plan=kind.next_segment):
            segment = plan(task)
            if segment is None:
                return None
            text = replace(segment.text, stops=(stops[task.request.seed],))
            return replace(segment, text=text)

        monkeypatch.setattr(kind, "next_segment", planned)
    return first


@pytest.mark.parametrize("lookahead", [0, 2])
def test_text_ends_by_a_stop_token(endless, alone, monkeypatch, lookahead, caplog):
    requests = [recognise(s, 12, temperature=5.0, instruction="?") for s in (71, 72, 73)]
    requests += [edit(74, 12, 3), edit(75, 12, 4), MIXED[0]]
    first = stop_at(monkeypatch, endless, requests[:-1], {71: 2, 72: 3, 73: 4, 74: 0, 75: 6})
    with caplog.at_level(logging.WARNING):
        sinks = run(Engine(endless, 3, lookahead=lookahead), requests)
    assert caplog.text.count("the text ended without <gen_audio>") == 2
    same(alone, requests, sinks)
    for one, sink in zip(requests[:-1], sinks):
        assert sink.pieces[-1].stats.text_tokens == first[one.seed] + 1
    assert [sink.pieces[-1].stats.ended_by for sink in sinks[:3]] == ["stop"] * 3


@pytest.mark.parametrize("lookahead", [0, 2])
def test_a_consumer_that_stops_reading_pauses_its_own_text(endless, alone, lookahead):
    engine = Engine(endless, 3, lookahead=lookahead)
    requests = [recognise(81, 20, temperature=9.0, instruction="?"), edit(82, 12, 6), MIXED[0]]
    sinks = [Sink(limit=2), Sink(limit=1), Sink()]
    for one, sink in zip(requests, sinks):
        engine.submit(one, sink)
    while engine.step():
        assert len(sinks[1].pieces) <= 1
    # a token may complete a piece and end the text
    assert not sinks[0].over and not sinks[1].over and sinks[2].over
    for sink in sinks:
        sink.limit = 1000
    while engine.step():
        pass
    same(alone, requests, sinks)


@pytest.mark.parametrize("lookahead", [0, 2])
@pytest.mark.parametrize("rounds", range(0, 12, 2))
def test_cancelled_at_every_stage(endless, alone, lookahead, rounds):
    engine = Engine(endless, 2, lookahead=lookahead)
    requests = [edit(91, 3, 3), recognise(92, 8, temperature=2.0), edit(93, 2, 2), MIXED[0]]
    sinks = [Sink() for _ in requests]
    sequences = [engine.submit(one, sink) for one, sink in zip(requests, sinks)]
    for _ in range(rounds):
        engine.step()
    ended = sinks[0].over
    engine.cancel(sequences[0])
    engine.cancel(sequences[2])
    while engine.step():
        pass
    assert sinks[0].over == ended and not engine.sequences
    same(alone, [requests[1], requests[3]], [sinks[1], sinks[3]])
    rows = engine.runner.state
    assert not (rows.open | rows.text.writing).any()


def test_an_error_ends_its_own_request_alone(endless, alone, monkeypatch):
    class Broken(Sink):
        def put(self, piece):
            raise OSError("the loop is gone")

    def fails(seconds):
        raise OSError("no disk")

    sampled = prefill.posterior_latents

    def sample(model, samples, noise):
        if samples.shape[1] == 4800:
            raise OSError("the recording vanished")
        return sampled(model, samples, noise)

    monkeypatch.setattr(prefill, "posterior_latents", sample)
    bad = [
        (recognise(101, 3, instruction="?"), Broken(), "the loop is gone"),
        (edit(102, 3, 3, progress=fails), Sink(), "no disk"),
        (recognise(103, 3, samples=4800), Sink(), "the recording vanished"),
        (edit(104, 3, 3, samples=4800), Sink(), "the recording vanished"),
    ]
    good = [recognise(105, 6, temperature=3.0), edit(106, 2, 3), MIXED[2]]
    engine, sinks = Engine(endless, 3), [Sink() for _ in good]
    for (wrong, sink, _), right, right_sink in zip(bad, [*good, None], [*sinks, None]):
        engine.submit(wrong, sink)
        if right is not None:
            engine.submit(right, right_sink)
    while engine.step():
        pass
    same(alone, good, sinks)
    for _, sink, message in bad:
        assert sink.over and str(sink.error) == message
    assert not engine.sequences


def test_what_is_too_long_or_hears_otherwise_runs_beside(endless, alone):
    engine = Engine(endless, 2, seconds=1)
    own = edit(111, 2, 3, context=ContextParams(seconds=0.5))
    long = recognise(112, 5000, temperature=9.0, samples=24000)
    before, beside = engine.runner.memory(), []
    sinks = [Sink(), Sink(limit=4), Sink()]
    for one, sink in zip((own, long, MIXED[0]), sinks):
        engine.submit(one, sink)
    while engine.step():
        beside.append(len(engine._unbatched))
    assert max(beside) == 2 and engine.runner.memory() == before
    same(alone, [own, MIXED[0]], [sinks[0], sinks[2]])
    first = []
    for piece in results(endless, long):
        first.append(piece)
        if len(first) == 4:
            break
    assert said(sinks[1].pieces)[0] == said(first)[0]
    engine.close()
    assert isinstance(new_task(endless, own), Editing)
