"""The sampler beyond the golden cases: guidance, history, options of the head, bad numbers."""

import pytest
import torch

from mingcore import ops
from mingcore.errors import CheckpointError, InputError
from mingcore.model.flow import FlowHead
from mingcore.model.layers import Linear
from mingcore.ops._core.layouts import tensors_in
from mingcore.testing.compare import max_relative
from mingcore.testing.eager.flow import EagerFlow
from mingcore.testing.synthetic import random_tensor


def close(a, b, limit=1e-5):
    assert max_relative(a, b) <= limit


def pair(cond=48, seed=0, **config):
    """A random head here and in eager form, with the same weights."""
    config = {"hidden_size": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 4.0, **config}
    eager = EagerFlow(config, cond).requires_grad_(False)
    state = {k: random_tensor(k, tuple(v.shape), seed) for k, v in eager.state_dict().items()}
    eager.load_state_dict(state)
    ours = FlowHead.from_state_dict(state, num_heads=config["num_heads"], pe_attn_head=config.get("pe_attn_head"))
    return ours, eager


def inputs(B=2, N=5, P=5, S=10, cond=48, seed=1):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, cond, generator=g),
        torch.randn(B, N, 64, generator=g),
        torch.randn(S + 1, B, P, 64, generator=g),
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"qk_norm": "rms_norm"},
        {"pe_attn_head": 1},
        {"qk_norm": "rms_norm", "pe_attn_head": 2},
        {"mlp_ratio": 2.5},
        {"depth": 1},
        {"num_heads": 6},
    ],
    ids=str,
)
def test_options_of_the_head(config):
    ours, eager = pair(**config)
    cond, history, noise = inputs()
    t = torch.tensor([0.1, 0.8])
    close(ours.velocity(noise[0], t, cond, history), eager.velocity(noise[0], t, cond, history))
    close(ours.sample(cond, history, noise), eager.sample(cond, history, noise))


@pytest.mark.parametrize("N, P", [(0, 5), (1, 1), (32, 4), (3, 9)])
def test_any_history_and_any_patch(N, P):
    ours, eager = pair()
    cond, history, noise = inputs(N=N, P=P)
    close(ours.sample(cond, history, noise), eager.sample(cond, history, noise))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1e-6, 4.0])
def test_any_guidance(guidance):
    ours, eager = pair()
    cond, history, noise = inputs()
    out = ours.sample(cond, history, noise, guidance=guidance)
    close(out, eager.sample(cond, history, noise, guidance=guidance))


def test_guidance_zero_is_half_the_work(monkeypatch):
    ours, _ = pair()
    cond, history, noise = inputs()
    rows, asked = [], []
    network, sample = ours.network, ops.flow_sample
    monkeypatch.setattr(ours, "network", lambda x, *rest: (rows.append(x.shape[0]), network(x, *rest))[1])
    monkeypatch.setattr(ops, "flow_sample", lambda *a, **kw: (asked.append(kw["guided"]), sample(*a, **kw))[1])
    for guidance, count in ((0, 2), ([0.0, 0.0], 2), ([0.0, 1.0], 4), (2.0, 4)):
        rows.clear()
        ours.sample(cond, history, noise, guidance=guidance, trace=[])
        assert rows == [count] * 10
        ours.sample(cond, history, noise, guidance=guidance)
    assert asked == [False, False, True, True]


def test_guidance_per_row():
    ours, _ = pair()
    cond, history, noise = inputs(B=3)
    mixed = ours.sample(cond, history, noise, guidance=torch.tensor([0.0, 2.0, 3.5]))
    for b, g in enumerate((0.0, 2.0, 3.5)):
        close(mixed[b : b + 1], ours.sample(cond[b : b + 1], history[b : b + 1], noise[:, b : b + 1], guidance=g))


def test_last_draw_is_not_used():
    ours, _ = pair()
    cond, history, noise = inputs()
    other = noise.clone()
    other[-1] = torch.nan
    out = ours.sample(cond, history, noise)
    assert torch.equal(out, ours.sample(cond, history, other))
    assert torch.equal(out, ours.sample(cond, history, noise[:-1]))
    other = noise.clone()
    other[-2] += 1
    assert not torch.equal(out, ours.sample(cond, history, other))


def test_temperature_zero_uses_no_noise():
    ours, _ = pair()
    cond, history, noise = inputs()
    other = noise.clone()
    other[1:] = torch.nan
    a = ours.sample(cond, history, noise, temperature=0.0)
    assert torch.equal(a, ours.sample(cond, history, other, sigma=0.0))


def test_time_embeddings_are_computed_once(monkeypatch):
    ours, _ = pair()
    cond, history, noise = inputs()
    calls, kind = [], type(ours.packed)
    embed = kind.time_embedding
    monkeypatch.setattr(kind, "time_embedding", lambda self, t: (calls.append(len(t)), embed(self, t))[1])
    for _ in range(3):
        ours.sample(cond, history, noise)
    assert calls == [10]
    ours.sample(cond, history, noise, temperature=0.0)
    assert calls == [10]
    ours.sample(cond, history, noise[:9], steps=8)
    assert calls == [10, 8]


def test_integration_stays_in_float32():
    """A 16-bit head: the state between steps keeps float32, and the result is near float32's."""
    ours, eager = pair()
    narrow = FlowHead.from_state_dict(eager.state_dict(), 3, dtype=torch.bfloat16, activation_dtype=torch.bfloat16)
    cond, history, noise = inputs()
    trace = []
    out = narrow.sample(cond, history, noise, trace=trace)
    assert out.dtype == torch.float32 and all(x.dtype == torch.float32 for x in trace)
    assert torch.equal(trace[0], noise[0]) and not torch.equal(out, out.bfloat16().float())
    close(out, ours.sample(cond, history, noise), 0.05)
    weights_only = FlowHead.from_state_dict(eager.state_dict(), 3, dtype=torch.bfloat16)
    assert weights_only.activation_dtype == torch.float32
    close(weights_only.sample(cond, history, noise), ours.sample(cond, history, noise), 0.05)


@pytest.mark.parametrize("hidden", [96, 60])  # 60: matrices that panels cannot be cut from
@pytest.mark.parametrize("guidance", [0.0, 2.0, [0.0, 7.0]])
@pytest.mark.parametrize("solver", ["euler_maruyama", "euler", "midpoint"])
def test_one_call_equals_the_steps(hidden, guidance, solver):
    """And after every step; the noise of each request at its own scale."""
    ours, _ = pair(hidden_size=hidden, qk_norm="rms_norm")
    cond, history, noise = inputs(S=6)
    schedule = ops.FlowSchedule.make(6, solver=solver)
    options = {"guidance": guidance, "noise_scale": torch.tensor([1.0, 0.5])}
    trace = []
    out = ours.sample(cond, history, noise, schedule=schedule, trace=trace, **options)
    assert len(trace) == 7 and torch.equal(trace[0], noise[0]) and torch.equal(trace[-1], out)
    for steps in range(1, 7):
        part = schedule.prefix(steps)
        got = ours.sample(cond, history, noise[: steps + 1], schedule=part, **options)
        close(got, trace[steps])


def test_weights_are_held_once():
    """The blocks are views of the packed head."""
    ours, _ = pair()
    held = {t.untyped_storage().data_ptr() for t in tensors_in(ours.packed)}
    views = [b.__dict__ for b in ours.blocks] + [ours.x_embedder, ours.cond_embedder, ours.final]
    weights = []
    for layer in views:
        parts = layer.values() if isinstance(layer, dict) else [layer]
        for part in parts:
            for linear in part if isinstance(part, tuple) else (part,):
                if isinstance(linear, Linear):
                    weights.append(linear.weight.weight)
    assert len(weights) == 4 * len(ours.blocks) + 1 + 3
    assert all(w.untyped_storage().data_ptr() in held for w in weights)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"guidance": -1.0}, "guidance must be finite and >= 0"),
        ({"guidance": float("nan")}, "guidance must be finite"),
        ({"guidance": float("inf")}, "guidance must be finite"),
        ({"guidance": [1.0]}, r"guidance must be a number or \[2\]"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"sigma": float("nan")}, "sigma"),
        ({"steps": 9, "schedule": ops.FlowSchedule.make(10)}, "steps is 9"),
        ({"steps": 12}, r"noise must be \[S\+1, B, P, C\] = \[13, 2, P, 64\]"),
        ({"cond": torch.zeros(2, 47)}, r"cond must be \[2, 48\]"),
        ({"cond": torch.zeros(2, 1, 48)}, "cond must be"),
        ({"history": torch.zeros(2, 5, 63)}, r"history must be \[2, N, 64\]"),
        ({"noise": torch.zeros(11, 2, 5, 63)}, r"x must be \[B, P, 64\]"),
    ],
)
def test_bad_numbers(change, message):
    ours, _ = pair()
    cond, history, noise = inputs()
    arguments = {"cond": cond, "history": history, "noise": noise, **change}
    with pytest.raises(InputError, match=message):
        ours.sample(**arguments)


def test_velocity_checks_t():
    ours, _ = pair()
    cond, history, noise = inputs()
    with pytest.raises(InputError, match=r"t must be \[2\]"):
        ours.velocity(noise[0], torch.tensor([0.1]), cond, history)


def broken(**change):
    _, eager = pair()
    state = eager.state_dict()
    state.update(change)
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize(
    "state, heads, message",
    [
        (broken(), 4, "num_heads is 4, but width 96 and 16 inverse frequencies make 3 heads of 32"),
        (broken(**{"x_embedder.bias": None}), 3, r"missing key x_embedder.bias of shape \[96\]"),
        (broken(**{"x_embedder.weight": None}), 3, "x_embedder.weight is missing"),
        (
            broken(**{"blocks.1.attn.to_k.weight": torch.zeros(96, 95)}),
            3,
            r"blocks.1.attn.to_k.weight must be \[96, 96\], got \[96, 95\]",
        ),
        (broken(**{"blocks.1.extra": torch.zeros(3)}), 3, r"unexpected key blocks.1.extra"),
        (broken(**{"rotary_embed.inv_freq": torch.ones(16)}), 3, "rotary_embed.inv_freq differs from the computed"),
        (broken(**{"blocks.0.attn.q_norm.weight": torch.ones(32)}), 3, "missing key blocks.0.attn.k_norm.weight"),
        ({}, 3, "x_embedder.weight is missing"),
    ],
)
def test_state_dicts_that_do_not_fit(state, heads, message):
    with pytest.raises(CheckpointError, match=message):
        FlowHead.from_state_dict(state, num_heads=heads)
