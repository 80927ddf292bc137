"""Linear, norms, rotary embedding, SwiGLU against loops in float64."""

import pytest
import torch

from mingcore import ops
from mingcore.ops._core.layouts import shifted, strided, transposed
from tests.ops import slow
from tests.ops.support import DTYPES, Draw, check, reference

LAYOUTS = (torch.Tensor.contiguous, strided, transposed, shifted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh", "swiglu"])
@pytest.mark.parametrize("extras", [False, True])
def test_linear(dtype, activation, extras):
    draw = Draw(dtype)
    x, weight = draw(2, 3, 11), draw.weight(10, 11)
    bias = draw(10) if extras else None
    residual = draw(2, 3, 5 if activation == "swiglu" else 10) if extras else None
    got = reference("linear")(x, weight, bias, activation=activation, residual=residual)
    assert got.dtype == dtype
    check(got, slow.linear(x, weight, bias, activation, residual), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_takes_any_strides(layout):
    draw = Draw(torch.float32)
    x, weight, residual = draw(4, 7), draw.weight(6, 7), draw(4, 6)
    got = reference("linear")(layout(x), layout(weight), residual=layout(residual))
    check(got, slow.linear(x, weight, residual=residual), torch.float32)


@pytest.mark.parametrize("shape", [(9,), (1, 9), (0, 9), (2, 0, 9)])
def test_linear_leading_dimensions(shape):
    draw = Draw(torch.float32)
    x, weight = draw(*shape), draw.weight(4, 9)
    got = reference("linear")(x, weight)
    assert got.shape == (*shape[:-1], 4)
    if x.numel():
        check(got, slow.linear(x, weight), torch.float32)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_linear_widens_narrow_weights_for_wide_inputs(narrow):
    x, weight, bias = Draw(torch.float32)(3, 40), Draw(narrow).weight(8, 40), Draw(narrow)(8)
    got = reference("linear")(x, weight, bias)
    assert got.dtype == torch.float32
    check(got, slow.linear(x, weight, bias), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype):
    gate_up = strided(Draw(dtype)(3, 2, 14))
    got = reference("silu_mul")(gate_up)
    assert got.dtype == dtype
    check(got, slow.silu_mul(gate_up), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rms_norm(dtype, layout):
    draw = Draw(dtype)
    x, weight = draw(5, 13), draw(13)
    got = reference("rms_norm")(layout(x), weight, 1e-3)
    assert got.dtype == dtype
    check(got, slow.rms_norm(x, weight, 1e-3), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype):
    draw = Draw(dtype)
    x, residual, weight = draw(2, 3, 13), draw(2, 3, 13), draw(13)
    normed, total = reference("add_rms_norm")(x, residual, weight, 1e-6)
    assert normed.dtype == total.dtype == dtype
    assert torch.equal(total, (x.double() + residual.double()).to(dtype))
    check(normed, slow.rms_norm(total, weight, 1e-6), dtype)


def test_rms_norm_keeps_a_float32_weight():
    x, weight = Draw(torch.bfloat16)(4, 16), Draw(torch.float32)(16)
    got = reference("rms_norm")(x, weight, 1e-6)
    assert got.dtype == torch.bfloat16
    check(got, slow.rms_norm(x, weight, 1e-6), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm(dtype, with_bias):
    draw = Draw(dtype)
    x, weight, bias = draw(3, 2, 17), draw(17), draw(17) if with_bias else None
    got = reference("layer_norm")(x, weight, bias, 1e-5)
    assert got.dtype == dtype
    check(got, slow.layer_norm(x, weight, bias, 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_heads", [None, 0, 1, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_rope(dtype, interleaved, rope_heads, rows):
    draw = Draw(dtype)
    x, (cos, sin) = draw(2, 3, 3, 6), draw.angles(rows, 3, 3)
    got = reference("rope")(x, cos, sin, interleaved=interleaved, rope_heads=rope_heads)
    assert got.dtype == dtype
    check(got, slow.rope(x, cos, sin, interleaved, rope_heads), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_heads", [None, 1, 3])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, strided])
def test_qkv_rope(dtype, interleaved, rope_heads, layout):
    draw = Draw(dtype)
    qkv, (cos, sin) = draw(2, 3, 8 * 6), draw.angles(2, 3, 3)
    args = {"interleaved": interleaved, "rope_heads": rope_heads}
    q, k, v = reference("qkv_rope")(layout(qkv), cos, sin, 4, 2, **args)
    heads = qkv.view(2, 3, 8, 6)
    key_heads = None if rope_heads is None else min(rope_heads, 2)
    check(q, slow.rope(heads[:, :, :4], cos, sin, interleaved, rope_heads), dtype)
    check(k, slow.rope(heads[:, :, 4:6], cos, sin, interleaved, key_heads), dtype)
    assert torch.equal(v, heads[:, :, 6:])
    assert v.untyped_storage().data_ptr() != qkv.untyped_storage().data_ptr()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_rope_at_any_offset(interleaved, offset):
    """A view that begins at an odd element is no complex number as it lies."""
    g = torch.Generator().manual_seed(offset)
    x = torch.randn(2 * 3 * 2 * 8 + offset, generator=g)[offset:].view(2, 3, 2, 8)
    cos, sin = torch.randn(1, 3, 4, generator=g), torch.randn(1, 3, 4, generator=g)
    wanted = ops.rope(x.clone(), cos, sin, interleaved=interleaved, backend="reference")
    assert torch.equal(ops.rope(x, cos, sin, interleaved=interleaved, backend="reference"), wanted)
