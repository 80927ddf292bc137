"""Profiles of requests to the bundled checkpoint: the trace and the table."""

import gzip
import json

import pytest
import torch

from mingcore import MingAudio, ops
from mingcore.errors import MingError
from mingcore.profiling import OTHER, STAGES, perfetto, profile

SPOKEN = [stage for stage in STAGES if stage != "vae encode"] + [OTHER]


@pytest.fixture(scope="module")
def ming():
    return MingAudio.from_pretrained("tiny")


def speech(ming):
    return ming.tts_stream("one two", seed=3, steps=2, max_seconds=0.3)


class Nvtx:
    def __init__(self):
        self.pushed, self.depth, self.deepest = [], 0, 0

    def range_push(self, name):
        self.pushed.append(name)
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)

    def range_pop(self):
        self.depth -= 1


@pytest.fixture(scope="module")
def spoken(ming):
    nvtx = Nvtx()
    return profile(ming, speech, nvtx=nvtx), nvtx


def test_every_stage_of_speech_is_there_and_times_add_up(spoken):
    found, _ = spoken
    assert [row.stage for row in found.stages] == SPOKEN
    rows = {row.stage: row for row in found.stages}
    assert rows["flow"].calls == rows["stop head"].calls == rows["vae decode"].calls == 3
    total = 1e3 * found.profiled_seconds
    assert sum(row.ms for row in found.stages) == pytest.approx(total, rel=1e-6)
    for row in found.stages:
        assert row.gap_ms == pytest.approx(row.ms - row.ours_ms, abs=1e-6)
        assert 0 <= row.torch_ms <= row.gap_ms + 1e-6
        assert (row.nbytes > 0 and row.flops > 0) == (row.stage != OTHER), row
    assert {call.stage for call in found.calls} == set(SPOKEN) - {OTHER}
    assert {call.backend for call in found.calls} == {"cpu"}
    by_stage = [sum(c.nbytes for c in found.calls if c.stage == s) for s in SPOKEN]
    assert by_stage == [row.nbytes for row in found.stages]


def test_the_bytes_of_the_flow_are_its_weights_once_per_evaluation(ming, spoken):
    found, _ = spoken
    (nbytes,) = {call.nbytes for call in found.calls if call.op == "flow_sample"}
    head = ming.model.flow.packed
    blocks = sum(t.nbytes for t in (*head.matrices[1:-1], *head.biases[1:-1]))
    assert 2 * blocks < nbytes < 2 * head.nbytes + 40_000


def test_nvtx_ranges_name_stages_and_ops(spoken):
    _, nvtx = spoken
    assert nvtx.depth == 0 and nvtx.deepest == 3
    assert nvtx.pushed[0] == "mingcore.request"
    stages = {n.split(":")[1] for n in nvtx.pushed if n.startswith("mingcore.stage:")}
    assert stages == set(SPOKEN) - {OTHER}
    assert "mingcore.op:flow_sample" in nvtx.pushed


@pytest.mark.parametrize("name", ("trace.json", "trace.json.gz"))
def test_the_trace_loads_has_a_track_per_stage_and_its_slices_nest(spoken, tmp_path, name):
    found, _ = spoken
    perfetto.write(found, tmp_path / name, {"task": "tts"})
    data = (tmp_path / name).read_bytes()
    trace = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
    assert trace["otherData"]["task"] == "tts"
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert sorted(tracks.values()) == sorted(SPOKEN)
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    spent = dict.fromkeys(SPOKEN, 0.0)
    for track, stage in tracks.items():
        own = [e for e in slices if (e["pid"], e["tid"]) == track]
        open_ends = []
        for e in sorted(own, key=lambda e: (e["ts"], -e["dur"])):
            begin, end = e["ts"], round(e["ts"] + e["dur"], 3)
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], e
            if not open_ends:
                assert e["cat"] == "stage", e
                spent[stage] += e["dur"] / 1e3
            open_ends.append(end)
    for row in found.stages:
        assert spent[row.stage] == pytest.approx(row.ms, abs=0.05)
    ops_ = [e for e in slices if e["cat"] == "op"]
    assert all(e["args"]["nbytes"] > 0 and e["args"]["backend"] == "cpu" for e in ops_)


def test_recognition_has_the_encoders_stage(ming):
    sound = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    found = profile(ming, lambda m: m.transcribe_stream((sound, 16000), seed=0, max_new_tokens=3))
    stages = [row.stage for row in found.stages]
    assert stages == ["llm", "semantic", "pooling", "vae encode", OTHER]
    names = {s.name for s in found.slices if s.kind == "stage" and s.stage == "llm"}
    assert {"embed", "logits"} <= names and any(n.startswith("prefill of ") for n in names)


def test_nothing_is_left_behind_and_nothing_is_heard(ming, spoken):
    """Model and ops are unchanged afterwards, and the audio has the same bits."""
    before = {name: getattr(ops, name) for name in ops.__all__}
    model, heard = ming.model, []

    def request(served):
        for chunk in speech(served):
            heard.append(torch.from_numpy(chunk.samples))
            yield chunk

    profile(ming, request)
    assert ming.model is model and type(model.llm).__name__ == "LLM"
    assert {name: getattr(ops, name) for name in ops.__all__} == before
    n = len(heard) // 3
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(heard[:n], heard[n : 2 * n], heard[2 * n :]))

    def broken(served):
        yield from speech(served)
        raise MingError("enough")

    with pytest.raises(MingError, match="enough"):
        profile(ming, broken)
    assert {name: getattr(ops, name) for name in ops.__all__} == before


def test_a_request_without_a_seed_of_its_own_is_refused_when_it_differs(ming):
    steps = iter((1, 1, 2))
    with pytest.raises(MingError, match="not the same in two runs"):
        profile(ming, lambda m: m.tts_stream("one", seed=0, max_seconds=0.1 * next(steps)))
