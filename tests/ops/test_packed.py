import pytest
import torch

import mingcore.ops as ops
from mingcore import BackendError, InputError
from mingcore.ops._core import backends
from mingcore.ops._core.packing import FORMATS, PANEL, quantise, quantise_activations, swiglu_order, unpack_rows
from tests.ops.support import Draw

SHAPES = [(32, 8), (64, 33), (70, 5), (2, 1)]


def panels(weight: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Panels by their definition, one number at a time."""
    K = weight.shape[1]
    out = torch.zeros(-(-len(order) // PANEL), K, PANEL, dtype=weight.dtype)
    for place, row in enumerate(order):
        panel, column = divmod(place, PANEL)
        if weight.dtype == torch.bfloat16:
            column = 2 * (column % 16) + column // 16
        if row >= 0:
            out[panel, :, column] = weight[row]
    return out


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_undoes_both_layouts(format, shape):
    weight = Draw(FORMATS[format])(*shape)
    for layout, order in (
        ("rows", None),
        ("panels", list(range(shape[0]))),
        ("panels_swiglu", swiglu_order(shape[0]).tolist()),
    ):
        packed = weight if order is None else panels(weight, order)
        assert torch.equal(unpack_rows(packed, layout, shape[0]), weight)


def test_swiglu_order_keeps_gate_and_up_together():
    order = swiglu_order(40).tolist()  # I = 20: two panels, the second with 4 of 16
    assert order[:32] == [*range(16), *range(20, 36)]
    assert order[32:36] == [16, 17, 18, 19] and order[48:52] == [36, 37, 38, 39]
    assert order.count(-1) == 24


@pytest.mark.skipif(backends.load("cpu", "gemm") is not None, reason="the native kernels are not built")
@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_packing(format, activation, shape):
    weight = Draw(torch.float32)(*shape)
    packed = ops.pack_linear(weight, format=format, activation=activation, backend="cpu")
    order = swiglu_order(shape[0]).tolist() if activation else list(range(shape[0]))
    assert packed.layout == ("panels_swiglu" if activation else "panels")
    assert torch.equal(packed.weight, panels(weight.to(FORMATS[format]), order))
    assert torch.equal(packed.unpack(), weight.to(FORMATS[format]))
    assert packed.shape == shape and packed.format == format


def quantised_panels(stored: torch.Tensor, order: list[int], format: str) -> torch.Tensor:
    """The same for int8 and int8_dyn, which stores the number + 128 and four k side by side."""
    K = stored.shape[1]
    if format == "int8":
        return panels(stored, order)
    out = torch.full((-(-len(order) // PANEL), -(-K // 4), PANEL, 4), 128, dtype=torch.uint8)
    for place, row in enumerate(order):
        panel, column = divmod(place, PANEL)
        for k in range(K if row >= 0 else 0):
            out[panel, k // 4, column, k % 4] = stored[row, k].item() + 128
    return out


@pytest.mark.skipif(backends.load("cpu", "gemm") is not None, reason="the native kernels are not built")
@pytest.mark.parametrize("format", ["int8", "int8_dyn"])
@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_packing_of_quantised_weights(format, activation, shape):
    weight = Draw(torch.float32)(*shape)
    packed = ops.pack_linear(weight, format=format, activation=activation, backend="cpu")
    rows = ops.pack_linear(weight, format=format, activation=activation, backend="reference")
    stored, scale = quantise(weight, format)
    order = swiglu_order(shape[0]).tolist() if activation else list(range(shape[0]))
    assert torch.equal(packed.weight, quantised_panels(stored, order, format))
    assert torch.equal(packed.as_rows().weight, stored) and torch.equal(rows.weight, stored)
    assert torch.equal(packed.scale, scale) and torch.equal(rows.scale, scale)
    assert torch.equal(packed.unpack(), stored * scale[:, None])
    assert packed.nbytes == packed.weight.nbytes + 4 * shape[0] and packed.shape == shape


@pytest.mark.parametrize("format", ["int8", "int8_dyn", "fp8"])
def test_quantised_rows_on_the_reference(format):
    """By the definition, in float64; panels give the same bits as rows."""
    draw = Draw(torch.float32)
    x, weight, bias = draw(2, 3, 9), draw.weight(12, 9), draw(12)
    rows = ops.pack_linear(weight, format=format, backend="reference")
    got = ops.linear(x, rows, bias, activation="silu", backend="reference")
    used = x.double()
    if format == "int8_dyn":
        stored, scale = quantise_activations(x)
        used = stored.double() * scale.double()[..., None]
    expected = torch.nn.functional.silu(used @ rows.unpack().double().T + bias.double())
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-6)
    packed = ops.pack_linear(weight, format=format)
    again = ops.linear(x, packed, bias, activation="silu", backend="reference")
    assert torch.equal(again, got)


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_packed_equals_raw_on_the_reference(activation):
    draw = Draw(torch.float32)
    x, weight, bias = draw(3, 9), draw.weight(12, 9), draw(12)
    packed = ops.pack_linear(weight, activation=activation)
    args = {"activation": activation, "backend": "reference"}
    assert torch.equal(ops.linear(x, packed, bias, **args), ops.linear(x, weight, bias, **args))


def test_rows_without_a_native_backend():
    weight = Draw(torch.float32)(5, 7)
    packed = ops.pack_linear(weight, backend="reference")
    assert packed.layout == "rows" and packed.format == "fp32" and packed.nbytes == 4 * 35
    assert packed.weight.data_ptr() == weight.data_ptr()
    half = ops.pack_linear(weight, format="bf16", backend="reference")
    assert half.weight.dtype == torch.bfloat16
    assert ops.pack_linear(weight.double()).format == "fp64"
    with ops.use_backend("reference"):
        assert ops.pack_linear(weight).layout == "rows"


def test_bad_arguments():
    weight = torch.ones(5, 7)
    with pytest.raises(InputError, match=r"pack_linear: weight must be \[N, K\], got \[7\]"):
        ops.pack_linear(weight[0])
    with pytest.raises(InputError, match=r"pack_linear: format must be one of fp32, .* got 'int4'"):
        ops.pack_linear(weight, format="int4")
    with pytest.raises(InputError, match=r"weight must be \[2I, K\] for swiglu, got \[5, 7\]"):
        ops.pack_linear(weight, activation="swiglu")
    with pytest.raises(InputError, match=r"pack_linear: weight must be float32, .* got int64"):
        ops.pack_linear(weight.long())
    with pytest.raises(InputError, match="pack_linear: every weight must be finite, to be int8"):
        ops.pack_linear(weight / 0, format="int8")
    with pytest.raises(BackendError, match="cpu backend does not pack fp64"):
        ops.pack_linear(weight, format="fp64", backend="cpu")
    packed = ops.PackedLinear(torch.zeros(1, 7, 32), "panels_swiglu", 6, 7, "fp32")
    with pytest.raises(InputError, match="linear: activation must be swiglu, for which weight"):
        ops.linear(torch.ones(1, 7), packed)
