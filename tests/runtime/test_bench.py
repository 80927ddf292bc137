"""`mingcore.benchmark`: what it says of requests, and what it refuses to time."""

import importlib.util
import json
from collections import Counter

import pytest
import torch

from mingcore.benchmark import floors, lockstep, measure, serving
from mingcore.benchmark.subject import Subject
from mingcore.cli import bench_tables as show
from mingcore.errors import InputError, NotEnoughMemory
from mingcore.model import memory_plan
from mingcore.model.memory import Memory
from mingcore.ops._core.layouts import tensors_in
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
    assert serving.percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0, "p99": 3.0, "max": 3.0, "count": 3}
    found = serving.percentiles([float(i) for i in range(1, 201)])
    assert (found["p50"], found["p95"], found["p99"], found["max"]) == (100.5, 190, 198, 200)


def test_playback_waits_where_a_chunk_is_late():
    listener = serving.TimingSink(0.0, times=[1.0, 1.1, 1.45, 1.5], samples=[100, 100, 100, 100])
    # due at 1.0, 1.1, 1.2 (0.25 late), 1.55
    count, silence = serving.playback(listener, 1000)
    assert count == 1 and silence == pytest.approx(0.25)
    assert serving.playback(serving.TimingSink(0.0, [5.0], [1]), 1000) == (0, 0.0)


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


def test_work_is_counted_stage_by_stage(pair):
    """Against the weights of the parts, which a token reads whole (a layer's experts but once)."""
    ours, eager = pair
    done = floors.work(ours, 1)
    assert list(done) == list(lockstep.STAGES)
    head, steps = ours.flow.packed, 10
    read = sum(t.nbytes for t in head.matrices[1:])
    assert steps * read < done["flow"].nbytes < 1.2 * steps * read
    assert read < done["flow"].touched < 1.5 * sum(t.nbytes for t in tensors_in(head))
    weights = eager.audio.decoder.semantic_model.state_dict().values()
    semantic = sum(t.nbytes for t in weights)
    assert semantic < done["semantic"].touched < 2 * semantic  # its cache is among that
    for work in done.values():
        assert work.touched <= work.nbytes and set(work.flops) == {"fp32"} and work.flops["fp32"]
    double = floors.work(ours, 2)["flow"].flops["fp32"] / done["flow"].flops["fp32"]
    assert double == pytest.approx(2, rel=0.01)


def test_floors_are_the_longer_of_bytes_and_operations_and_bytes_only_where_no_cache_holds_them():
    def work(nbytes, touched, **flops):
        return floors.Work(nbytes, touched, Counter(flops))

    done = {
        "flow": work(1e9, 1e8, int8=4e9, fp32=1e8),
        "decode": work(5e7, 5e7, fp32=1e9),
        "semantic": work(2e7, 1e7, fp32=1e6),
        "llm": work(1e8, 1e8, fp32=1e6),
    }
    products = {k: {"tflops": v, "way": "a"} for k, v in (("fp32", 0.5), ("bf16", 1), ("int8", 2))}
    ours = {"stages_ms": {name: {"median": 30.0} for name in done}, "patch_ms": {"median": 90.0}}
    rates = floors.Rates(50.0, products, 1 << 25)
    found = floors.floors(done, rates, ours, "int8")
    stages = found["stages"]
    assert [stages[name]["bound"] for name in done] == ["bytes", "operations", "bytes", "bytes"]
    # what a stage reads again lies in the cache, where it fits
    least = {name: stage["floor_ms"] for name, stage in stages.items()}
    assert least == pytest.approx({"flow": 20.0, "decode": 2.0, "semantic": 0.2, "llm": 2.0})
    assert found["cold"] and found["patch_ms"] == pytest.approx(24.2)
    assert found["times"] == pytest.approx(90 / 24.2) and stages["decode"]["times"] == 15
    assert found["in_bf16"]["patch_ms"] == pytest.approx(20 + 1 + 0.2 + 2)
    small = floors.floors(done, floors.Rates(50.0, products, 1 << 28), ours, "fp32")
    assert not small["cold"] and "in_bf16" not in small
    assert small["patch_ms"] == pytest.approx(2.2 + 2 + 0.002 + 0.002)


def test_floors_are_shown(monkeypatch, capsys):
    found = floors.Rates(50.0, {"fp32": {"tflops": 0.4, "way": "ours"}}, 1 << 16)
    monkeypatch.setattr(measure, "rates", lambda device: found)
    settings = measure.Settings(batches=[1], seconds=0.2, patches=4, baseline=False)
    result = measure.measure(tiny(), settings)
    assert result["floors"] == result["batches"][0]["stages"]["floors"]
    assert json.loads(json.dumps(result)) == result
    (line,) = [line for line in show.lines(result) if "times its stages' floors" in line]
    assert "read 50 GB/s" in line and "from memory" in line
    for table in show.tables(result):
        show.console().print(table)
    assert "floor" in capsys.readouterr().out
    if importlib.util.find_spec("matplotlib"):
        assert show.chart(result).startswith(b"\x89PNG")


def test_a_shape_that_cannot_fit_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(memory_plan, "device_memory", lambda device: Memory(8 << 30, 16 << 30))
    subject = Subject.of(None, "ming-uniaudio-16b", CPU, torch.bfloat16)
    with pytest.raises(NotEnoughMemory, match="random ming-uniaudio-16b: weights in bf16 and a"):
        subject.load(None)


def test_a_baseline_that_cannot_fit_is_left_out_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr("mingcore.benchmark.subject.device_memory", lambda device: Memory(1, 2))
    settings = measure.Settings(batches=[2], seconds=0.2, patches=1)
    told = []
    found = measure.measure(tiny(), settings, told.append)
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
    found = measure.measure(tiny(), measure.Settings(batches=[1], limit_s=1e-9))
    assert found["left_out"] == ["1 at once: no time was left"] and found["batches"] == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Subject.of(None, "large", CPU, None), "--random-weights: must be one of tiny"),
        (lambda: Subject.of("tiny", "mid", CPU, None), "takes the place of a checkpoint"),
        (lambda: measure.Settings(batches=[0]), "batch: must be from 1 to 1024"),
        (lambda: measure.Settings(patches=0), "patches: must be from 1 to 1024"),
        (lambda: measure.Settings(seconds=-1), "seconds: must be more than 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
