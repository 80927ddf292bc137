"""Quantised experts: numbers by their definition, and the reference against loops in float64."""

import math

import pytest
import torch

import mingcore.ops as ops
from mingcore import InputError
from mingcore.ops._core.layouts import strided, transposed
from mingcore.ops._core.packing import QUANTISED, quantise, quantise_activations
from mingcore.testing.compare import check_op, run
from tests.ops import slow
from tests.ops.support import TOLERANCE, Draw, check, reference

LARGEST = {"int8": 127, "int8_dyn": 127, "fp8": 448}
SCALES = ("gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw_experts(dtype, E=4, H=24, I=10, shared=6, seed=0):
    draw = Draw(dtype, seed)
    pair = (draw.weight(2 * shared, H), draw.weight(H, shared)) if shared else None
    return draw.weight(E, 2 * I, H), draw.weight(E, H, I), pair


def quantised_value(value: float, scale: float, largest: int) -> float:
    """One weight, by the definition."""
    steps = min(max(value / scale, -largest), largest)
    if largest == 127:
        return scale * round(steps)  # Python rounds to even
    return scale * torch.tensor(steps).to(torch.float8_e4m3fn).item()


@pytest.mark.parametrize("format", list(QUANTISED))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, strided, transposed])
def test_numbers_by_their_definition(format, dtype, layout):
    weight = layout(Draw(dtype)(2, 5, 17))
    stored, scale = quantise(weight, format)
    assert stored.dtype == QUANTISED[format] and stored.is_contiguous()
    assert scale.dtype == torch.float32 and scale.shape == (2, 5)
    got = stored.float() * scale[..., None]
    for e in range(2):
        for n in range(5):
            row = weight[e, n].tolist()
            step = max(map(abs, row)) / LARGEST[format]
            assert scale[e, n].item() == pytest.approx(step, rel=1e-6)
            expected = [quantised_value(value, step, LARGEST[format]) for value in row]
            assert got[e, n].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_rows_of_zeros_ties_and_tiny_numbers():
    weight = torch.tensor([[0.0, 0.0], [127.0, 62.5], [127.0, -63.5], [1e-42, -1e-42]])
    stored, scale = quantise(weight, "int8")
    assert stored[:3].tolist() == [[0, 0], [127, 62], [127, -64]]
    assert scale[:3].tolist() == [0.0, 1.0, 1.0]
    assert stored[3].abs().max() <= 127
    for format in QUANTISED:
        assert quantise(torch.zeros(2, 3, 4), format)[0].float().abs().max() == 0
        assert quantise(torch.zeros(0, 3, 4), format)[1].shape == (0, 3)


def test_activations_have_a_scale_per_row():
    x = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [-254.0, 2.0, 1.0]], dtype=torch.bfloat16)
    stored, scale = quantise_activations(x)
    assert stored.dtype == torch.int8 and scale.dtype == torch.float32
    assert stored.tolist() == [[127, -64, 32], [0, 0, 0], [-127, 1, 0]]
    assert scale.tolist() == pytest.approx([1 / 127, 0, 2])


@pytest.mark.parametrize("format", list(QUANTISED))
@pytest.mark.parametrize("shared", [0, 6])
def test_packing_and_unpacking(format, shared):
    gate_up, down, pair = draw_experts(torch.bfloat16, shared=shared)
    kept = gate_up.clone()
    packed = ops.pack_experts(gate_up, down, shared=pair, format=format, backend="reference")
    assert torch.equal(gate_up, kept)
    assert packed.layout == "rows" and packed.format == format and packed.hidden == 24
    scales = dict(zip(SCALES, packed.scales))
    assert scales["gate_up_scale"].shape == (4, 20) and scales["down_scale"].shape == (4, 24)
    if shared:
        assert scales["shared_gate_up_scale"].shape == (12,)
        assert scales["shared_down_scale"].shape == (24,)
    else:
        assert scales["shared_gate_up_scale"] is scales["shared_down_scale"] is None
    weights = gate_up.numel() + down.numel() + (3 * 6 * 24 if shared else 0)
    rows = 4 * (20 + 24) + (12 + 24 if shared else 0)
    assert packed.nbytes == weights + 4 * rows

    wide = packed.unpack()
    assert wide.format == "fp32" and wide.layout == "rows" and wide.scales == (None,) * 4
    originals = (gate_up, down, *(pair or (None, None)))
    for got, original in zip(wide.matrices, originals):
        if original is None:
            assert got is None
            continue
        assert got.dtype == torch.float32
        step = original.float().abs().amax(-1, keepdim=True) / LARGEST[format]
        error = (got - original.float()).abs()
        if format == "fp8":  # three bits after the leading one, down to 2^-6 / 8 steps
            assert (error <= torch.maximum(original.float().abs() / 16, step * 2**-10)).all()
        else:
            assert (error <= 0.5001 * step).all()
        assert error.max() > 0
    assert packed.as_rows().gate_up is packed.gate_up


@pytest.mark.parametrize("format", ["int8", "int8_dyn"])
@pytest.mark.parametrize("shared", [0, 6])
def test_panels_hold_what_rows_hold(format, shared):
    gate_up, down, pair = draw_experts(torch.bfloat16, H=26, shared=shared)
    packed = ops.pack_experts(gate_up, down, shared=pair, format=format)
    rows = ops.pack_experts(gate_up, down, shared=pair, format=format, backend="reference")
    assert packed.hidden == rows.hidden == 26
    back = packed.as_rows()
    for a, b in zip((*back.matrices, *back.scales), (*rows.matrices, *rows.scales)):
        assert a is b is None or torch.equal(a, b)


def test_weights_that_no_scale_holds():
    gate_up, down, _ = draw_experts(torch.float32)
    for bad in (math.nan, math.inf):
        down[2, 3, 4] = bad
        with pytest.raises(InputError, match="every weight must be finite, to be fp8"):
            ops.pack_experts(gate_up, down, format="fp8")


def by_loops(x, experts, weights, ids):
    """`slow.moe_mlp`, with the rows of every product's input quantised for "int8_dyn"."""
    wide = experts.unpack()
    if experts.format != "int8_dyn":
        shared = wide.matrices[2:] if wide.shared_down is not None else None
        return slow.moe_mlp(x, wide.gate_up, wide.down, weights, ids, shared)

    def mlp(row, gate_up, down):
        return slow.linear(rounded(slow.linear(rounded(row), gate_up, activation="swiglu")), down)

    def rounded(row):
        largest = row.double().abs().max().item()
        steps = (row.double() * 127 / largest).round() if largest else row.double()
        return steps * largest / 127

    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, chosen in enumerate(ids.tolist()):
        for k, e in enumerate(chosen):
            out[t] += weights[t, k].double() * mlp(x[t], wide.gate_up[e], wide.down[e])
        if wide.shared_down is not None:
            out[t] += mlp(x[t], wide.shared_gate_up, wide.shared_down)
    return out


@pytest.mark.parametrize("format", list(QUANTISED))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [0, 1, 5])
@pytest.mark.parametrize("shared", [0, 6])
def test_moe_mlp(format, dtype, T, shared):
    gate_up, down, pair = draw_experts(dtype, shared=shared, seed=T)
    experts = ops.pack_experts(gate_up, down, shared=pair, format=format)
    draw = Draw(dtype, seed=3)
    x, ids, weights = draw(T, 24), draw.ids(T, 3, 4), draw(T, 3, dtype=torch.float32).softmax(1)
    got = reference("moe_mlp")(strided(x), experts, weights, ids)
    assert got.dtype == dtype and got.shape == x.shape
    if not T:
        return
    # 16-bit hidden rows are quantised to other integers than the loops' float64 ones
    tolerance = TOLERANCE[dtype] if format != "int8_dyn" else max(TOLERANCE[dtype], 2e-2)
    if format == "int8_dyn" and dtype == torch.float32:
        tolerance = TOLERANCE[dtype]
    check(got, by_loops(x, experts, weights, ids), dtype, factor=tolerance / TOLERANCE[dtype])


@pytest.mark.parametrize("format", list(QUANTISED))
def test_the_oracle_keeps_what_was_quantised(format):
    """The check holds a result to the quantised operands: neither to the original weights nor, for
    int8_dyn, to activations as they are."""
    gate_up, down, pair = draw_experts(torch.float32, H=64, I=48)
    experts = ops.pack_experts(gate_up, down, shared=pair, format=format)
    draw = Draw(torch.float32)
    args = {"weights": draw(7, 2).softmax(1), "ids": draw.ids(7, 2, 4), "x": draw(7, 64)}
    check_op("moe_mlp", {**args, "experts": experts})
    original = run("moe_mlp", {**args, "experts": (gate_up, down), "shared": pair})
    with pytest.raises(AssertionError, match="moe_mlp: error"):
        check_op("moe_mlp", {**args, "experts": experts}, original)
    unquantised = run("moe_mlp", {**args, "experts": experts.unpack()})
    if format == "int8_dyn":
        with pytest.raises(AssertionError, match="moe_mlp: error"):
            check_op("moe_mlp", {**args, "experts": experts}, unquantised)
    else:
        check_op("moe_mlp", {**args, "experts": experts}, unquantised)
