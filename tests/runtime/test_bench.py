"""`mingcore.bench`: what it says of requests, and what it refuses to time."""

import json

import pytest
import torch

from mingcore.bench import lockstep, run, serving, show
from mingcore.bench.subject import Subject
from mingcore.errors import InputError, NotEnoughMemory
from mingcore.model import plan
from mingcore.model.memory import Memory
from mingcore.runtime.graphs import Graphs
from mingcore.testing.synthetic import random_state_dict
from tests.runtime.engine_support import replayed_by_calling

CPU = torch.device("cpu")


def tiny(dtype=torch.float32):
    return Subject.of(None, "tiny", CPU, dtype)


@pytest.fixture(scope="module")
def pair():
    return tiny().load(None), tiny().load_baseline()


def test_percentiles_are_of_the_next_rank_up():
    assert serving.percentiles([3.0, 1.0, 2.0]) == {
        "p50": 2.0, "p95": 3.0, "p99": 3.0, "max": 3.0, "count": 3
    }  # fmt: skip
    found = serving.percentiles([float(i) for i in range(1, 201)])
    assert (found["p50"], found["p95"], found["p99"], found["max"]) == (100.5, 190, 198, 200)


def test_playback_waits_where_a_chunk_is_late():
    listener = serving.Listener(0.0, times=[1.0, 1.1, 1.45, 1.5], samples=[100, 100, 100, 100])
    # due at 1.0, 1.1, 1.2 (0.25 late), 1.55
    count, silence = serving.playback(listener, 1000)
    assert count == 1 and silence == pytest.approx(0.25)
    assert serving.playback(serving.Listener(0.0, [5.0], [1]), 1000) == (0, 0.0)


def test_random_weights_are_those_of_the_baseline(pair):
    """Drawn piece by piece into stacked and packed places, and all at once."""
    ours, eager = pair
    written = random_state_dict(tiny().load_baseline().config)
    expert = "model.model.layers.1.mlp.experts.3.down_proj.weight"
    assert torch.equal(eager.state_dict()[expert], written[expert])
    assert torch.equal(ours.llm.embedding, written["model.model.word_embeddings.weight"])
    found = lockstep.compare(ours, eager, 2, patches=1, warm=1, limit=1e-4)
    assert found["speedup"]["rounds"] == 1


def test_what_differs_is_not_timed(pair, monkeypatch):
    ours, eager = pair
    pool = ours.pool
    monkeypatch.setattr(ours, "pool", lambda embedding: 1.5 * pool(embedding))
    with pytest.raises(lockstep.Differs, match="latents of patch 0 differ from the baseline's"):
        lockstep.compare(ours, eager, 1, patches=1, limit=1e-4)


def test_stages_as_graphs_give_the_same(pair, monkeypatch):
    """Against a stand-in of CUDA graphs: captured before any row takes part, then replayed."""
    ours, eager = pair
    monkeypatch.setattr(lockstep, "graphs_for", lambda device: Graphs(replayed_by_calling))
    found = lockstep.compare(ours, eager, 2, patches=2, warm=1, limit=1e-4)
    assert found["ours"]["patch_ms"]["rounds"] == 2


def test_a_shape_that_cannot_fit_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(plan, "device_memory", lambda device: Memory(8 << 30, 16 << 30))
    subject = Subject.of(None, "ming-uniaudio-16b", CPU, torch.bfloat16)
    with pytest.raises(NotEnoughMemory, match="random ming-uniaudio-16b: weights in bf16 and a"):
        subject.load(None)


def test_a_baseline_that_cannot_fit_is_left_out_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("mingcore.bench.subject.device_memory", lambda device: Memory(1, 2))
    settings = run.Settings(batches=[2], seconds=0.2, patches=1)
    told = []
    found = run.measure(tiny(), settings, told.append)
    (line,) = found["left_out"]
    assert line.startswith("the baseline of tiny: needs") and line.endswith("leaves it out")
    assert "speedup" not in found and "eager" not in found["batches"][0]["stages"]
    assert f"left out: {line}" in show.lines(found) and told[0] == "tiny: loading"
    for table in show.tables(found):
        show.console().print(table)
    shown = capsys.readouterr().out
    assert "peak memory" in shown and "semantic" in shown
    assert json.loads(json.dumps(found)) == found


def test_no_time_is_said(pair, monkeypatch):
    monkeypatch.setattr(Subject, "load", lambda self, weights: pair[0])
    found = run.measure(tiny(), run.Settings(batches=[1], limit_s=1e-9))
    assert found["left_out"] == ["1 at once: no time was left"] and found["batches"] == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Subject.of(None, "large", CPU, None), "--random-weights: must be one of tiny"),
        (lambda: Subject.of("tiny", "mid", CPU, None), "takes the place of a checkpoint"),
        (lambda: run.Settings(batches=[0]), "batch: must be from 1 to 1024"),
        (lambda: run.Settings(patches=0), "patches: must be from 1 to 1024"),
        (lambda: run.Settings(seconds=-1), "seconds: must be more than 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
