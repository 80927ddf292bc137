"""Flow heads of other projects on the sampler: a plain PyTorch module, by the names of its tensors."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mingcore import ops
from mingcore.errors import CheckpointError, InputError
from mingcore.integrations import flow_head
from mingcore.testing import compare

PATH = Path(__file__).parents[2] / "examples" / "flow_head.py"
spec = importlib.util.spec_from_file_location("flow_head_example", PATH)
example = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = example
spec.loader.exec_module(example)


@pytest.fixture
def mine():
    torch.manual_seed(3)
    return example.MyFlowHead().eval()


def config(mine, **changes) -> flow_head.FlowHeadConfig:
    return flow_head.FlowHeadConfig(heads=4, rope="half", embed=mine.time, **changes)


def packed(mine, names=example.NAMES, **changes):
    kind = replace(config(mine), **changes)
    return flow_head.pack(mine.state_dict(), names, kind, ignore=["clock.*"])


def sampled(velocity, schedule, condition, history, noise, guidance):
    """The sampler by its formula, on the head's own velocity."""
    x, nothing = noise[0], torch.zeros_like(condition)
    B = x.shape[0]
    for i, e in enumerate(schedule.evaluations):
        t = torch.full((B,), e.t, dtype=x.dtype)
        v = velocity(x, t, condition, history)
        # the sampler's unconditional branch: a condition of zeros before its embedding
        v = v + guidance * (v - velocity(x, t, nothing, history))
        x = x + e.dt * v + e.noise_scale * noise[i + 1]
    return x


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("past", [0, 5])
def test_velocity_and_samples_are_the_modules_own(mine, frames, past):
    head, draw = packed(mine), torch.Generator().manual_seed(1)
    condition = torch.randn(2, 96, generator=draw)
    history = torch.randn(2, past, 16, generator=draw)
    x = torch.randn(2, frames, 16, generator=draw)
    wide = example.MyFlowHead().double()
    wide.load_state_dict(mine.state_dict())
    with torch.no_grad():
        for t in (0.0, 0.37):
            times = torch.full((2,), t)
            own = mine(x, times, condition, history)
            exact = wide(x.double(), times.double(), condition.double(), history.double())
            got = flow_head.velocity_of(head, x, t, condition, history)
            compare.assert_within(got, own, exact)
        schedule = ops.FlowSchedule.make(5)
        noise = torch.randn(6, 2, frames, 16, generator=draw)
        args = (schedule, condition, history, noise, 1.5)
        doubles = (a.double() if isinstance(a, torch.Tensor) else a for a in args)
        exact, own = sampled(wide, *doubles), sampled(mine, *args)
        got = ops.flow_sample(head, schedule, condition, history, noise, 1.5)
        compare.assert_within(got, own, exact)


def test_a_wrong_mapping_shows_in_the_deviation(mine):
    assert flow_head.deviation(packed(mine), mine) < 5e-6
    for wrong in ({"rope": "interleaved"}, {"rope": "none"}, {"theta": 500.0}, {"heads": 2}):
        assert flow_head.deviation(packed(mine, **wrong), mine) > 1e-3, wrong
    swapped = example.NAMES | {"qkv": ("layers.{}.k", "layers.{}.v", "layers.{}.q")}
    assert flow_head.deviation(packed(mine, swapped), mine) > 1e-3


def test_fused_transposed_normed_and_centred_otherwise(mine):
    """The same head stored in another way gives the same."""
    tensors, names = {}, dict(example.NAMES, qkv="layers.{}.qkv")
    for name, value in mine.state_dict().items():
        tensors[name] = value.T.contiguous() if value.dim() == 2 else value - 1 * ("ln" in name)
    for i in range(3):
        parts = [tensors.pop(f"layers.{i}.{n}.weight") for n in "qkv"]
        tensors[f"layers.{i}.qkv.weight"] = torch.cat(parts, dim=1)
    kind = config(mine, transposed=True, zero_centred_norms=True)
    head = flow_head.pack(tensors, names, kind, ignore=["clock.*"])
    assert flow_head.deviation(head, mine) < 5e-6
    int8 = flow_head.pack(tensors, names, kind, ignore=["clock.*"], format="int8")
    assert int8.format == "int8" and 1e-4 < flow_head.deviation(int8, mine) < 0.1
    assert flow_head.deviation(int8.unpack(), mine) < 0.1


class Normed(example.Block):
    """With RMSNorm on queries and keys."""

    def __init__(self, H, heads, W):
        super().__init__(H, heads, W)
        self.qn, self.kn = (nn.RMSNorm(H // heads, eps=1e-6) for _ in range(2))
        for norm in (self.qn, self.kn):
            nn.init.normal_(norm.weight, 1.0, 0.3)

    def forward(self, x):
        y = self.ln1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        q, k = example.rotate(self.qn(q)), example.rotate(self.kn(k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


def test_normed_queries_and_keys(mine):
    mine.layers = nn.ModuleList(Normed(64, 4, 256) for _ in range(3))
    names = example.NAMES | {"q_norm": "layers.{}.qn", "k_norm": "layers.{}.kn"}
    assert flow_head.deviation(packed(mine, names), mine) < 5e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("layers.1.o.weight"), r"missing layers\.1\.o\.weight"),
        (lambda t: t.pop("layers.0.ln1.weight"), r"no block: layers\.0\.ln1\.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), r"not used: extra; name them in `ignore`"),
        (
            lambda t: t.update({"layers.1.fc1.weight": torch.zeros(9, 64)}),
            r"layers\.1\.fc1\.weight must be \[256, 64\] as in the first block, got \[9, 64\]",
        ),
        (
            lambda t: t.update({f"layers.{i}.fc2.weight": torch.zeros(64, 9) for i in range(3)}),
            r"down \(layers\.\{\}\.fc2\) must be \[64, 256\] with H = 64, got \[64, 9\]",
        ),
        (lambda t: t.update({"ln.bias": torch.zeros(64)}), r"ln\.bias: the sampler's norms"),
        (lambda t: t.update({"cond.weight": torch.zeros(64)}), r"cond\.weight must be a matrix"),
    ],
    ids=["missing", "no_block", "left", "block", "shape", "norm_bias", "matrix"],
)
def test_tensors_that_do_not_fit_are_named(mine, change, said):
    tensors = dict(mine.state_dict())
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        flow_head.pack(tensors, example.NAMES, config(mine), ignore=["clock.*"])


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        ({"norm2": None}, {}, "names lacks norm2"),
        ({"gate": "x"}, {}, "names has gate; the parts are"),
        ({"q_norm": "layers.{}.qn"}, {}, "come together"),
        ({"out": "layers.0.o"}, {}, r"out must have one \{\}"),
        ({"final": "out{}"}, {}, r"final must have no \{\}"),
        ({"qkv": ("a{}", "b{}")}, {}, "qkv must be one name or three"),
        ({}, {"embed": None}, "names lacks time1, time2"),
        ({}, {"rope": "yarn"}, "rope must be one of"),
        ({}, {"heads": 7}, r"heads must make even parts of H = 64 \(ln\), got 7"),
        ({}, {"heads": 0}, "heads must be at least 1"),
        ({}, {"theta": -1.0}, "theta must be a positive number"),
        ({}, {"embed": lambda t: t}, r"embed must give \[M, H\] = \[1, 64\]"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mine, names, changes, said):
    whole = {k: v for k, v in (example.NAMES | names).items() if v is not None}
    with pytest.raises(InputError, match=said):
        flow_head.deviation(packed(mine, whole, **changes), mine)


def test_the_time_embedding_of_the_models_own_kind(golden_head):
    """The released head's names, given as a mapping, give the head that `model.flow` reads."""
    tensors, plain, heads = golden_head
    block = "blocks.{}."
    names = {
        "condition": "c_embedder.cond_embedder",
        "latents": "x_embedder",
        "qkv": tuple(f"{block}attn.to_{n}" for n in "qkv"),
        "out": f"{block}attn.to_out.0",
        "up": f"{block}mlp.ff.0.0",
        "down": f"{block}mlp.ff.2",
        "final": "final_layer.linear",
        "norm1": f"{block}norm1",
        "norm2": f"{block}norm2",
        "final_norm": "final_layer.norm_final",
        "time1": "t_embedder.time_mlp.0",
        "time2": "t_embedder.time_mlp.2",
    }
    head = flow_head.pack(tensors, names, flow_head.FlowHeadConfig(heads), ignore=["rotary*"])
    assert flow_head.deviation(head, plain) < 1e-6


@pytest.fixture
def golden_head():
    from mingcore.model.flow import FlowHead
    from mingcore.testing import synthetic

    config = synthetic.model_config("tiny")
    prefix = "flowloss.cfm.model."
    tensors = {
        name.removeprefix(prefix): synthetic.random_tensor(name, shape, 0)
        for name, shape in synthetic.tensor_shapes(config).items()
        if name.startswith(prefix)
    }
    heads = config["ditar_config"]["num_heads"]
    return tensors, FlowHead.from_state_dict(tensors, heads).velocity, heads


def test_the_example_runs(capsys):
    example.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("velocities differ by") and said[1] == "latents (2, 5, 16)"
