"""The convolutions, the overlap-add and the spectrum head on every instruction set."""

import random

import pytest
import torch

from mingcore import _cpu, ops
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops._core.packing import FORMATS
from mingcore.ops.conv.packing import FEW
from mingcore.testing import compare, streaming
from tests.ops.support import refusal
from tests.ops.test_streams import any_call, conv_call

OPS = [op + tail for op in streaming.INPUT for tail in ("", "_")] + ["frame_embed"]
CONVS = ("causal_conv1d", "causal_conv_transpose1d")
ACTS = ("silu", "elu", "gelu", "gelu_tanh", "tanh", "snake")


def packed(op: str, call: dict, format: str | None = None) -> dict:
    shape = {name: call[name] for name in ("stride", "dilation", "groups") if name in call}
    weight = ops.pack_conv(call["weight"], transposed="transpose" in op, format=format, backend="cpu", **shape)
    return {**call, "weight": weight}


@pytest.mark.parametrize("op", CONVS)
@pytest.mark.parametrize("seed", range(40))
def test_any_convolution(isa, threads, op, seed):
    call = {**conv_call(op, seed), "state": None, "last": seed % 2 == 1}
    for form in (call, packed(op, call)):
        with nan_poisoned():
            got = compare.run(op, form, backend="cpu")
        compare.check_op(op, call, got)


@pytest.mark.parametrize("op", CONVS)
@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("L", [1, 3, 31, 40, 100, 301])
def test_every_length_and_weight(isa, threads, op, format, L):
    """Few times go by panels, many by lanes of time; both in pieces, with K in several blocks."""
    draw = random.Random(L)
    C, N, k, stride = 70, 45, draw.choice((3, 4)), draw.choice((1, 3))
    torch.manual_seed(L)
    shape = (C, N, k) if "transpose" in op else (N, C, k)
    weight = torch.randn(shape).div(15).to(FORMATS[format])
    call = {"x": torch.randn(2, C, L), "weight": weight, "bias": torch.randn(N), "stride": stride}
    call |= {"activation": "silu", "activation_before": "elu"}
    with nan_poisoned():
        got = compare.run(op, packed(op, call), backend="cpu")
    compare.check_op(op, call, got)


@pytest.mark.parametrize("L", [48, 4096, 4112])
def test_pointwise_in_place_and_copied(isa, threads, L):
    torch.manual_seed(L)
    call = {"x": torch.randn(2, 40, L), "weight": torch.randn(37, 40, 1), "bias": torch.randn(37)}
    call["residual"] = torch.randn(2, 37, L)
    with nan_poisoned():
        got = compare.run("causal_conv1d", packed("causal_conv1d", call), backend="cpu")
    compare.check_op("causal_conv1d", call, got)


@pytest.mark.parametrize("groups", [1, 700])
def test_a_context_that_several_threads_carry(isa, groups):
    """More inputs than one thread copies, in place as well: as long as the chunk and longer."""
    torch.manual_seed(0)
    weight = torch.randn(700 if groups > 1 else 8, 700 // groups, 7) / 50
    call = {"x": torch.randn(1, 700, 150), "weight": weight, "dilation": 9, "groups": groups}
    expected = streaming.once("causal_conv1d", call, "cpu")
    sizes = [1, 60, 54, 30, 5]
    assert torch.equal(streaming.chunked("causal_conv1d", call, sizes, "cpu"), expected)
    state = ops.ConvState.start(1, 700, 54)
    out = torch.full_like(expected, torch.nan)
    pieces = zip(call.pop("x").split(sizes, 2), out.split(sizes, 2), strict=True)
    for x, y in pieces:
        ops.causal_conv1d_(x.contiguous(), y, **call, state=state, backend="cpu")
    assert torch.equal(out, expected)


def test_bits_do_not_depend_on_the_way_or_the_threads(isa):
    torch.manual_seed(0)
    weight = torch.randn(40, 50, 7)
    call = {"x": torch.randn(1, 50, 300), "weight": ops.pack_conv(weight, backend="cpu")}
    expected = streaming.once("causal_conv1d", call, "cpu")
    sizes = [1, 2, 30, 5, 100, 64, 3, 95]
    assert torch.equal(streaming.chunked("causal_conv1d", call, sizes, "cpu"), expected)
    assert torch.equal(streaming.once("causal_conv1d", {**call, "weight": weight}, "cpu"), expected)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(streaming.once("causal_conv1d", call, "cpu"), expected)
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", streaming.INPUT)
@pytest.mark.parametrize("seed", range(8))
def test_streams(isa, op, seed):
    call = any_call(op, 100 + seed, batch=3, length=40)
    name, dim = streaming.INPUT[op]
    expected = streaming.once(op, call, "cpu")
    sizes = streaming.split(call[name].shape[dim], seed)
    for run in (streaming.chunked, streaming.in_place):
        streaming.assert_same(run(op, call, sizes, "cpu"), expected, str(sizes))
    for mine, alone in zip(*streaming.by_rows(op, call, seed, "cpu"), strict=True):
        streaming.assert_same(mine, alone, "rows")


@pytest.mark.parametrize("activation", ACTS)
def test_activations_over_their_whole_range(isa, activation):
    wide = torch.cat((torch.linspace(-20, 20, 4001), torch.logspace(-6, 6, 400)))
    x = torch.cat((wide, -wide, torch.tensor([0.0, 9999.0, 1e4, 1e8, -3e30]))).view(1, 1, -1)
    if activation in ("gelu", "gelu_tanh"):
        x = x.clamp(-1e4, 1e4)
    call = {"x": x, "weight": torch.ones(1, 1, 1), "activation": activation}
    if activation == "snake":
        call["snake"] = (torch.tensor([1.0]), torch.tensor([1.0]))
    for name in ("activation", "activation_before"):
        form = {**call, "activation": None, "snake": None, name: activation}
        if activation == "snake":
            form["snake" if name == "activation" else "snake_before"] = call["snake"]
        got = compare.run("causal_conv1d", form, backend="cpu")[0]
        exact = compare.oracle("causal_conv1d", form)[0]
        error = (got.double() - exact).abs()
        assert (error <= 3e-7 * exact.abs() + 1.5e-7 * x.abs().clamp(max=6)).all()


@pytest.mark.parametrize("activation", ACTS)
def test_nan_goes_through_and_stays_where_it_is(isa, activation):
    x = torch.randn(1, 3, 60)
    x[0, 1, 20] = torch.nan
    snake = (torch.ones(3), torch.ones(3)) if activation == "snake" else None
    call = {"x": x, "weight": torch.randn(3, 1, 3), "groups": 3}
    call |= {"activation_before": activation, "snake_before": snake}
    y = ops.causal_conv1d(**call, backend="cpu")[0]
    bad = torch.zeros_like(y, dtype=torch.bool)
    bad[0, 1, 20:23] = True
    assert torch.equal(y.isnan(), bad)


@pytest.mark.parametrize("size", [2, 4, 6, 10, 14, 16, 48, 70, 90, 420, 1280, 3528])
def test_the_inverse_transform(isa, size):
    torch.manual_seed(size)
    hidden, weight = torch.randn(2, 3, 5), torch.randn(size + 2, 5).mul(0.5)
    window = torch.ones(size)
    args = {"hidden": hidden, "weight": weight, "bias": torch.randn(size + 2), "window": window}
    args |= {"hop": size, "state": None, "last": True}
    compare.check_op("spectrum_head", args, compare.run("spectrum_head", args, backend="cpu"))


def test_phases_far_from_zero(isa):
    weight = torch.zeros(34, 1)
    weight[17:] = torch.logspace(0, 7, 17).unsqueeze(1)
    args = {"hidden": torch.tensor([[[1.0], [-0.3]]]), "weight": weight, "bias": None}
    args |= {"window": torch.ones(32), "hop": 32, "state": None, "last": True}
    compare.check_op("spectrum_head", args, compare.run("spectrum_head", args, backend="cpu"))


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16"])
def test_pack_and_unpack_round_trip(format):
    for seed in range(60):
        op = CONVS[seed % 2]
        call = conv_call(op, seed)
        pack = packed(op, call, format).pop("weight")
        assert torch.equal(pack.unpack(), call["weight"].to(FORMATS[format]))
        outputs = pack.out_channels // pack.groups * (pack.stride if pack.transposed else 1)
        assert pack.layout == ("rows" if outputs <= FEW else "conv_panels")


def test_bad_counters_are_named():
    call = {"x": torch.randn(1, 2, 4), "weight": torch.randn(3, 2, 2), "backend": "cpu"}
    with pytest.raises(ValueError, match=r"causal_conv: valid must be in 0\.\.4, got 5"):
        ops.causal_conv1d(**call, valid=torch.tensor([5]))
    state = ops.ConvState.start(1, 2, 1)
    state.lengths -= 1
    with pytest.raises(ValueError, match="lengths must be >= 0, got -1"):
        ops.causal_conv1d(**call, state=state)


def test_the_reason_is_named():
    x, w = torch.randn(1, 2, 4), torch.randn(3, 2, 2)
    assert refusal("causal_conv1d", "cpu", x, w) is None
    assert "float64" in refusal("causal_conv1d", "cpu", x.double(), w)
    assert "gradient" in refusal("causal_conv1d", "cpu", x, w.clone().requires_grad_())
    hidden, weight = torch.randn(1, 2, 4), torch.randn(24, 4)
    reason = refusal("spectrum_head", "cpu", hidden, weight, None, torch.ones(22), 2, None, False)
    assert reason == "the window has 22 points; it takes twice a product of 2, 3, 5 and 7"
    assert _cpu.isa() in _cpu.isas()


def test_a_value_has_the_same_bits_whatever_stands_beside_it(isa):
    """Snake far from zero goes another way, but not for neighbours or what the scratch held."""
    torch.manual_seed(0)
    C, L = 12, 15
    x, weight, bias = torch.randn(1, C, L), torch.randn(C, 1, 7), torch.randn(C)
    pair = (0.5 + torch.rand(C), torch.rand(C))
    both = {"activation_before": "snake", "snake_before": pair, "activation": "snake", "snake": pair}

    def run(x):
        return ops.causal_conv1d(x, weight, bias, groups=C, **both, backend="cpu")[0]

    run(torch.zeros(1, C, 200))
    expected = run(x)
    for value in (1e30, 1e5, torch.nan):
        run(torch.full((1, C, 200), value))
        assert torch.equal(run(x), expected)
        changed = x.clone()
        changed[:, :, 9] = value
        assert torch.equal(run(changed)[:, :, :9], expected[:, :, :9])
