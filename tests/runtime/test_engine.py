"""Several requests at once: the same bits as alone, whoever joins, leaves, stalls or fails."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace

import psutil
import pytest
import torch

from mingcore.model.state import KVState
from mingcore.runtime import model_runner, speaking
from mingcore.runtime.engine import Engine
from mingcore.runtime.graphs import Graphs
from mingcore.runtime.params import ContextParams, FlowParams
from tests.runtime.engine_support import MIXED, Sink, replayed_by_calling, request, run, same

WAYS = {
    "one slot": {"slots": 1},
    "three slots": {"slots": 3},
    "a slot each": {"slots": len(MIXED)},
    "padded": {"slots": 4, "batch_invariant": True},
    "lookahead": {"slots": 3, "lookahead": 2},
    "graphs": {"slots": 3, "lookahead": 2, "graphs": True},
    "short slots": {"slots": 3, "seconds": 0.1},
    "graphs, short slots": {"slots": 2, "lookahead": 1, "graphs": True, "seconds": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_as_alone(endless, alone, way):
    options = dict(WAYS[way])
    if options.get("graphs"):
        options["graphs"] = Graphs(replayed_by_calling)
        options["flows"] = (FlowParams(steps=2), FlowParams(steps=3))
    engine = Engine(endless, **options)
    same(alone, MIXED, run(engine, MIXED))
    if "graphs" in options:
        assert len(engine.runner.graphs) > 0
    # and the slots it leaves behind are as good as new
    same(alone, MIXED[:2], run(engine, MIXED[:2]))


def test_runs_end_by_the_stop_head(endless, monkeypatch):
    monkeypatch.setattr(endless.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    requests = [request(seed, patches) for seed, patches in ((1, 30), (2, 40), (3, 2))]
    sinks = run(Engine(endless, 2, lookahead=1), requests)
    # their least is a second, or all there may be
    assert [len(sink.pieces) for sink in sinks] == [10, 10, 2]
    assert [sink.pieces[-1].stats.ended_by for sink in sinks] == ["stop"] * 3


@pytest.mark.parametrize("way", ["three slots", "lookahead"])
def test_segments_follow_one_another_in_the_same_slot(endless, alone, monkeypatch, way):
    monkeypatch.setattr(endless.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    short = {"min_seconds": 0.3}
    requests = [
        replace(request(20, 40, texts=("abc", "de", "f")), **short),
        replace(request(21, 8, texts=("abc", "de", "f"), noise="per_request"), **short),
        replace(request(22, 40), **short),
        replace(request(23, 40, texts=("hello", "abc")), **short),
    ]
    sinks = run(Engine(endless, **WAYS[way]), requests)
    same(alone, requests, sinks)
    assert [sink.pieces[-1].stats.segments for sink in sinks] == [3, 2, 1, 2]


def test_a_context_of_its_own_runs_beside_the_others(endless, alone):
    own = ContextParams(keep=True, seconds=1.0)
    requests = [MIXED[0], replace(request(40, 6), context=own), MIXED[1]]
    engine = Engine(endless, 2)
    same(alone, requests, run(engine, requests))


def test_an_error_in_a_later_segment(endless, alone, monkeypatch):
    monkeypatch.setattr(endless.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    original = speaking.Speaking.prefill
    monkeypatch.setattr(
        speaking.Speaking, "prefill", lambda self, *args: boom() if self.stats.segments == 1 else original(self, *args)
    )
    wrong, right = request(30, 40, texts=("abc", "worse")), request(31, 12)
    engine, sinks = Engine(endless, 2), [Sink(), Sink()]
    for one, sink in zip((wrong, right), sinks):
        engine.submit(one, sink)
    while engine.step():
        pass
    assert str(sinks[0].error) == "the voice file vanished" and len(sinks[0].pieces) == 10
    monkeypatch.setattr(speaking.Speaking, "prefill", original)
    same(alone, [right], sinks[1:])


@pytest.mark.parametrize("lookahead", [0, 2])
def test_a_consumer_that_stops_reading_pauses_its_own_request(endless, alone, lookahead):
    engine = Engine(endless, 3, lookahead=lookahead)
    sinks = [Sink(), Sink(limit=2), Sink()]
    for one, sink in zip(MIXED, sinks):
        engine.submit(one, sink)
    while engine.step():
        assert len(sinks[1].pieces) <= 2
    assert [sink.over for sink in sinks] == [True, False, True] and len(sinks[1].pieces) == 2
    stats = sinks[1].pieces[0].stats
    worked = stats.compute_seconds
    assert not engine.step() and stats.compute_seconds == worked
    sinks[1].limit = 1000
    while engine.step():
        pass
    same(alone, MIXED[:3], sinks)


@pytest.mark.parametrize("lookahead", [0, 2])
@pytest.mark.parametrize("rounds", [0, 1, 2, 4])
def test_cancelling_frees_the_slot_and_leaves_the_others_alone(endless, alone, lookahead, rounds):
    engine = Engine(endless, 2, lookahead=lookahead)
    sinks = [Sink() for _ in range(3)]
    sequences = [engine.submit(one, sink) for one, sink in zip(MIXED, sinks)]
    for _ in range(rounds):
        engine.step()
    engine.cancel(sequences[0])
    engine.cancel(sequences[0])
    while engine.step():
        pass
    assert not sinks[0].over and not engine.sequences
    same(alone, MIXED[1:3], sinks[1:])
    assert all(not row for row in engine.runner.state.open.tolist())


def boom(*_, **__):
    raise OSError("the voice file vanished")


def test_an_error_ends_its_own_request_alone(endless, alone, monkeypatch):
    class Broken(Sink):
        def put(self, piece):
            boom()

    class Silent:
        def patch(self, *shape):
            return boom()

    tts_prompt = speaking.prompts.tts_prompt
    monkeypatch.setattr(
        speaking.prompts,
        "tts_prompt",
        lambda tokenizer, text, *rest: boom() if text == "worse" else tts_prompt(tokenizer, text, *rest),
    )
    monkeypatch.setattr(
        speaking,
        "noise_source",
        lambda order, seed, device, make=speaking.noise_source: Silent() if seed == 90 else make(order, seed, device),
    )
    bad = {
        "progress": request(80, 9, progress=boom),
        "tokens": request(81, 9, texts=("worse",)),
        "noise": request(90, 9),
        "sink": request(83, 9),
    }
    engine = Engine(endless, 3)
    good = [Sink() for _ in MIXED[:4]]
    sinks = {name: Broken() if name == "sink" else Sink() for name in bad}
    for (name, wrong), right, sink in zip(bad.items(), MIXED, [*good, None]):
        engine.submit(wrong, sinks[name])
        if sink is not None:
            engine.submit(right, sink)
    while engine.step():
        pass
    same(alone, MIXED[:4], good)
    for name, sink in sinks.items():
        assert sink.over and str(sink.error) == "the voice file vanished", name
    assert not engine.sequences


def test_a_step_that_fails_ends_those_in_it(endless, alone, monkeypatch):
    engine = Engine(endless, 2)
    sinks = [Sink() for _ in range(3)]
    for one, sink in zip(MIXED, sinks):
        engine.submit(one, sink)
    engine.step(), engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(endless, "stop_head", boom)
        engine.step()
    assert [isinstance(sink.error, OSError) for sink in sinks] == [True, True, False]
    while engine.step():
        pass
    same(alone, MIXED[2:3], sinks[2:])


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("operation not permitted when stream is capturing"),
    ],
)
def test_what_cannot_be_captured_runs_without_a_graph(endless, alone, caplog, error):
    def refuse(function):
        raise error

    with caplog.at_level(logging.WARNING):
        engine = Engine(endless, 2, graphs=Graphs(refuse))
    assert len(caplog.records) == 1 and not len(engine.runner.graphs)
    assert "no CUDA graph of " in caplog.text and str(error) in caplog.text
    same(alone, MIXED[:3], run(engine, MIXED[:3]))


def test_a_run_too_long_for_memory_is_refused_alone(endless, alone, monkeypatch):
    def ensure(state, capacity, ensure=KVState.ensure):
        if capacity > 1600:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        ensure(state, capacity)

    engine = Engine(endless, 2, seconds=1)
    monkeypatch.setattr(KVState, "ensure", ensure)
    sinks = [Sink(), Sink()]
    engine.submit(MIXED[0], sinks[0])
    engine.submit(request(1, 4000), sinks[1])
    while engine.step():
        pass
    same(alone, MIXED[:1], sinks[:1])
    assert "out of memory" in str(sinks[1].error) and not sinks[1].pieces


def test_patches_launched_behind_the_end_find_room(endless, alone, monkeypatch):
    """A run that fills its slot to the last token, with steps launched ahead of its end."""
    monkeypatch.setattr(model_runner, "PROMPT_TOKENS", 64)
    engine = Engine(endless, 1, seconds=6.4, lookahead=3)
    capacity = engine.runner.state.llm.capacity
    prompt = len(speaking.Speaking(endless, MIXED[0]).next_segment().prompt.ids)
    tight = request(50, capacity - prompt, steps=1)
    same(alone, [tight], run(engine, [tight]))


def test_memory_stays_where_it_is_and_goes_with_the_engine(endless):
    engine = Engine(endless, 2, seconds=5)
    before = engine.runner.memory()
    run(engine, [request(1, 40), request(2, 30)])
    assert engine.runner.memory() == before
    sink = Sink()
    engine.submit(MIXED[0], sink)
    engine.step()
    gone = weakref.ref(engine.runner.state)
    gc.collect()
    gc.disable()
    try:
        engine.close()
        del engine
        assert gone() is None, "must not wait for the collector"
    finally:
        gc.enable()


def test_slots_take_no_memory_before_they_are_used(endless):
    before = psutil.Process().memory_info().rss
    engine = Engine(endless, 64, seconds=600)
    assert engine.runner.state.nbytes > 1 << 30
    assert psutil.Process().memory_info().rss - before < 32 << 20


@pytest.mark.slow
def test_long_speech_does_not_grow(endless):
    """Ten minutes in forty requests: the process stays as large as after the first."""
    process = psutil.Process()
    engine = Engine(endless, 3, seconds=20)
    sizes, patches = [], 0

    class Swallow(Sink):
        def put(self, piece):
            nonlocal patches
            patches += 1
            if patches % 200 == 0:
                sizes.append(process.memory_info().rss)

    for seed in range(40):
        engine.submit(request(seed, 150, steps=1), Swallow())
    while engine.step():
        pass
    assert patches == 6000 and len(sizes) == 30
    assert sizes[-1] - sizes[0] < 4 << 20, sizes


def test_the_batch_invariant_mode_always_computes_all_slots(endless):
    padded, other = (Engine(endless, 5, batch_invariant=mode).runner for mode in (True, False))
    assert [padded.bucket(used) for used in (1, 3, 5)] == [5, 5, 5]
    assert [other.bucket(used) for used in (1, 3, 5)] == [1, 3, 5]
    graphs = Engine(endless, 5, graphs=Graphs(replayed_by_calling)).runner
    assert [graphs.bucket(used) for used in (1, 2, 3, 5)] == [1, 2, 4, 5]
