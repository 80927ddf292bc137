"""A checkpoint's model is described once and made once, and the plan says what reading will find."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from mingcore import CheckpointError, MingAudio, NotEnoughMemory
from mingcore.model import headers, load, memory_plan
from mingcore.model.flow import FlowHead
from mingcore.model.formats import resolve
from mingcore.model.llm import LLM
from mingcore.model.memory import Memory
from mingcore.model.ming import declare_parts
from mingcore.model.sources import DictTensors, HeaderTensors
from mingcore.model.weights import plan_load

CPU = torch.device("cpu")


@pytest.fixture
def counts(monkeypatch):
    """How often models are described, modules made and files' headers read."""
    found = Counter()

    def counting(name, function):
        def call(*args, **kw):
            found[name] += 1
            return function(*args, **kw)

        return call

    monkeypatch.setattr(headers, "_read_file", counting("headers", headers._read_file))
    for cls in (LLM, FlowHead):
        name = cls.__name__
        monkeypatch.setattr(cls, "declare", counting(f"{name} declared", cls.declare))
        monkeypatch.setattr(cls, "__init__", counting(f"{name} made", cls.__init__))
    return found


def test_one_description_and_one_build(counts):
    MingAudio.from_pretrained("tiny")
    # the tokenizer's fingerprint reads the headers as well
    assert counts.pop("headers") == 2
    assert set(counts.values()) == {1} and len(counts) == 4


def test_what_is_refused_is_described_once_and_never_made(tiny, monkeypatch, counts):
    monkeypatch.setattr(memory_plan, "device_memory", lambda device: Memory(1000, 1000))
    with pytest.raises(NotEnoughMemory, match="no format fits, the smallest is weights=int8 "):
        load(tiny[0])
    assert counts == {"headers": 1, "LLM declared": 1, "FlowHead declared": 1}


class Watched(DictTensors):
    """A state dict that takes down which of its tensors are read."""

    def __init__(self, tensors, what):
        super().__init__(tensors, what)
        self.read = Counter()

    def fill(self, name, dest, index=None):
        self.read[name] += 1
        return super().fill(name, dest, index)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_every_tensor_that_is_used_is_read_once(tiny, weights):
    _, tensors, model = tiny
    source = Watched(tensors, "tiny")
    plan = plan_load(source, lambda w: declare_parts(w, model.config), device=CPU, formats=resolve(weights, None, CPU))
    assert plan.report.clean and not source.read
    assert plan.used == set(tensors)
    parts = plan.read()
    assert set(source.read) == plan.used - set(plan.report.unused) and set(source.read.values()) == {1}
    assert parts["vae"].semantic.fc1 is parts["vae"].decoder.fc1


def test_a_plan_of_headers_is_the_plan_of_tensors(tiny):
    _, tensors, model = tiny
    found = HeaderTensors({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, "headers")
    plans = [
        plan_load(s, lambda w: declare_parts(w, model.config), device=CPU, formats=resolve("int8", None, CPU))
        for s in (found, DictTensors(tensors, "tiny"))
    ]
    assert plans[0].sizes() == plans[1].sizes() and plans[0].report == plans[1].report
    # and another format's sizes need no other plan
    other = resolve("bf16", None, CPU)
    again = plan_load(found, lambda w: declare_parts(w, model.config), device=CPU, formats=other)
    assert plans[0].sizes(other) == again.sizes()
    with pytest.raises(CheckpointError, match="has no values here, only a header"):
        plans[0].read()


def test_a_gap_is_known_before_anything_is_read(tiny, tmp_path, counts):
    folder, tensors, _ = tiny
    save_file({k: v for k, v in tensors.items() if k != "stop_head.bias"}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())))
    with pytest.raises(CheckpointError, match=r"does not fit its config: missing key stop_head.bias of shape \[2\]"):
        load(tmp_path)
    assert counts["LLM made"] == 0
