"""RoPE and its scalings, against formulas written out."""

import math

import pytest
import torch

from mingcore.config.rope import RopeConfig
from mingcore.config.sections import Section
from mingcore.model.rope import Rope, ScaledRope

CPU = torch.device("cpu")
D, THETA = 128, 600000.0


def scaled(**values):
    section = {"rope_theta": THETA, "rope_scaling": values or None, "max_position_embeddings": 2048}
    config = RopeConfig.from_json(Section("llm_config", section), D)
    return ScaledRope(config, CPU)


def plain_frequencies(theta=THETA):
    return [theta ** (-2 * i / D) for i in range(D // 2)]


def expect(rope, positions, frequencies, factor=1.0, lengths=None):
    positions = torch.tensor([positions])
    lengths = torch.tensor([int(positions.max()) + 1]) if lengths is None else lengths
    cos, sin = rope(positions, lengths)
    angles = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
    torch.testing.assert_close(cos.double(), angles.cos() * factor, atol=2e-4, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin() * factor, atol=2e-4, rtol=0)
    assert cos.dtype == sin.dtype == torch.float32


POSITIONS = [0, 1, 5, 100, 3000]


def test_default():
    expect(scaled(), POSITIONS, plain_frequencies())


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear(key):
    frequencies = [f / 4 for f in plain_frequencies()]
    expect(scaled(**{key: "linear", "factor": 4.0}), POSITIONS, frequencies)


def test_dynamic_grows_theta_beyond_the_trained_length():
    rope = scaled(type="dynamic", factor=2.0)
    for length in (2, 100, 2048):
        expect(rope, [0, 1, length - 1], plain_frequencies())
    for length in (2049, 5000):
        theta = THETA * (2.0 * length / 2048 - 1.0) ** (D / (D - 2))
        expect(rope, [0, 7, length - 1], plain_frequencies(theta))


def test_dynamic_is_per_row():
    rope = scaled(type="dynamic", factor=2.0)
    positions = torch.tensor([[5], [5]])
    cos, _ = rope(positions, torch.tensor([6, 5000]))
    alone, _ = rope(positions[:1], torch.tensor([5000]))
    assert torch.equal(cos[1:], alone) and not torch.equal(cos[:1], alone)


def yarn_frequencies(factor, original, fast=32.0, slow=1.0):
    """YaRN: pairs turning more than `fast` times over the trained length stay as they are, those
    turning less than `slow` times are interpolated, with a ramp over the pair's index between."""

    def index(turns):
        return D * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), D - 1)
    out = []
    for i, f in enumerate(plain_frequencies()):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(f * (1 - interpolated) + f / factor * interpolated)
    return out


@pytest.mark.parametrize(
    "extra, factor",
    [
        ({}, 0.1 * math.log(4.0) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
    ],
)
def test_yarn(extra, factor):
    rope = scaled(type="yarn", factor=4.0, original_max_position_embeddings=512, **extra)
    expect(rope, POSITIONS, yarn_frequencies(4.0, 512), factor)


def test_yarn_keeps_fast_and_divides_slow_pairs():
    rope = scaled(type="yarn", factor=8.0, beta_fast=16.0, beta_slow=2.0)
    plain = torch.tensor(plain_frequencies(), dtype=torch.float64)
    ratio = plain / rope.inv_freq
    torch.testing.assert_close(ratio[:8], torch.ones(8, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(ratio[-20:], torch.full((20,), 8.0, dtype=torch.float64), atol=1e-4, rtol=0)


def test_3d_takes_each_section_from_its_stream():
    rope, plain = scaled(type="3D", factor=None), scaled()
    streams = torch.tensor([[[3, 4]], [[10, 20]], [[7, 0]]])
    lengths = torch.tensor([2])
    cos, sin = rope(streams, lengths)
    start = 0
    for stream, width in zip(streams, (16, 24, 24)):
        section = slice(start, start + width)
        own = plain(stream, lengths)
        assert torch.equal(cos[..., section], own[0][..., section])
        assert torch.equal(sin[..., section], own[1][..., section])
        start += width
    equal = rope(streams[:1].expand(3, 1, 2), lengths)
    assert all(torch.equal(a, b) for a, b in zip(equal, plain(streams[0], lengths)))


def test_an_hour_of_audio_keeps_its_precision():
    """Frame 180000: rotations relative to each other stay exact to 1e-6."""
    rope = Rope(10000.0, 64, CPU)
    far = torch.arange(180000, 180002)[None]
    cos, sin = rope(far)
    near_cos, near_sin = rope(torch.tensor([[0, 1]]))
    relative = cos[:, 0] * cos[:, 1] + sin[:, 0] * sin[:, 1]
    torch.testing.assert_close(relative, near_cos[:, 1], atol=1e-6, rtol=0)
    assert near_sin[0, 0].abs().max() == 0


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda s: s["type"],
)
def test_scaled_ropes_run_in_the_model(variant, golden_model, scaling):
    """Prefill and decode run, and differ from the unscaled model."""
    llm = variant({"rope_scaling": scaling}).llm
    ids = torch.arange(12)[None]
    x = llm.embed(ids)
    hidden, state = llm(x)
    again, _ = llm(x[:, :1], state)
    assert hidden.isfinite().all() and again.isfinite().all()
    assert not torch.allclose(hidden, golden_model.llm(x)[0], atol=1e-3)
    if scaling["type"] != "dynamic":  # whose angles depend on the length so far
        first, state = llm(x[:, :7])
        second, _ = llm(x[:, 7:], state)
        torch.testing.assert_close(torch.cat((first, second), dim=1), hidden, atol=2e-5, rtol=1e-5)
