"""Ops that the cpu backend builds on its `linear`: against loops in float64, packed and raw."""

import pytest
import torch

import mingcore.ops as ops
from mingcore.ops._core import backends
from mingcore.ops._core.layouts import nan_poisoned, strided
from mingcore.ops._core.packing import FORMATS
from tests.ops import slow
from tests.ops.support import TOLERANCE, Draw, check

pytestmark = pytest.mark.skipif(backends.load("cpu", "moe") is not None, reason="the native kernels are not built")
DTYPES = tuple(dtype for dtype in TOLERANCE if dtype != torch.float64)


def draw_experts(draw: Draw, E: int, H: int, I: int, shared: int):
    pair = (draw.weight(2 * shared, H), draw.weight(H, shared)) if shared else None
    return draw.weight(E, 2 * I, H), draw.weight(E, H, I), pair


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [0, 1, 2, 9])
@pytest.mark.parametrize(("H", "I", "shared"), [(64, 32, 48), (37, 29, 11), (33, 16, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_moe_mlp(dtype, T, H, I, shared, packed):
    E, K = 5, 3
    draw = Draw(dtype, seed=T)
    gate_up, down, pair = draw_experts(draw, E, H, I, shared)
    x, ids, weights = draw(T, H), draw.ids(T, K, E), draw(T, K, dtype=torch.float32).softmax(1)
    experts, rest = (gate_up, down), {"shared": pair, "backend": "cpu"}
    if packed:
        experts, rest = ops.pack_experts(gate_up, down, shared=pair), {"backend": "cpu"}
        assert experts.layout == "panels" and experts.hidden == H
    with nan_poisoned():
        got = ops.moe_mlp(strided(x), experts, weights, ids, **rest)
    assert got.dtype == dtype and got.shape == x.shape
    if T:
        check(got, slow.moe_mlp(x, gate_up, down, weights, ids, pair), dtype)
        rest["backend"] = "reference"  # which unpacks
        check(ops.moe_mlp(x, experts, weights, ids, **rest), got.double(), dtype)


def test_moe_mlp_gives_the_same_bits_in_every_run():
    draw = Draw(torch.float32)
    gate_up, down, pair = draw_experts(draw, 8, 64, 48, 32)
    experts = ops.pack_experts(gate_up, down, shared=pair)
    for T in (1, 7):
        x, ids, weights = draw(T, 64), draw.ids(T, 3, 8), draw(T, 3).softmax(1)
        first = ops.moe_mlp(x, experts, weights, ids, backend="cpu")
        assert torch.equal(first, ops.moe_mlp(x, experts, weights, ids, backend="cpu"))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_moe_mlp_takes_narrow_experts(narrow):
    draw = Draw(torch.float32)
    gate_up, down, pair = draw_experts(Draw(narrow), 4, 32, 16, 32)
    experts = ops.pack_experts(gate_up, down, shared=pair)
    x, ids, weights = draw(3, 32), draw.ids(3, 2, 4), draw(3, 2).softmax(1)
    got = ops.moe_mlp(x, experts, weights, ids, backend="cpu")
    assert got.dtype == torch.float32
    check(got, slow.moe_mlp(x, gate_up, down, weights, ids, pair), torch.float32)


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("H", "I", "shared"), [(64, 32, 48), (37, 29, 11), (32, 16, 0)])
def test_packed_experts_unpack(format, overwrite, H, I, shared):
    gate_up, down, pair = draw_experts(Draw(FORMATS[format]), 3, H, I, shared)
    kept, memory = (gate_up.clone(), down.clone()), gate_up.untyped_storage().data_ptr()
    packed = ops.pack_experts(gate_up, down, shared=pair, overwrite=overwrite)
    in_place = packed.gate_up.untyped_storage().data_ptr() == memory
    assert in_place == (overwrite and H % 32 == 0)
    if not overwrite:
        assert torch.equal(gate_up, kept[0]) and torch.equal(down, kept[1])
    rows = packed.unpack()
    assert rows.layout == "rows" and rows.format == format == packed.format
    assert torch.equal(rows.gate_up, kept[0]) and torch.equal(rows.down, kept[1])
    if pair:
        assert torch.equal(rows.shared_gate_up, pair[0]) and torch.equal(rows.shared_down, pair[1])
    assert rows.unpack().gate_up is rows.gate_up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_frame_embed(dtype, packed):
    draw = Draw(dtype)
    samples, weight = draw(2, 37), draw.weight(45, 8)
    padded = torch.cat((samples, samples.new_zeros(2, 3)), 1).view(2, 5, 8)
    used = ops.pack_linear(weight) if packed else weight
    got = ops.frame_embed(strided(samples), used, hop=8, backend="cpu")
    assert got.dtype == dtype
    check(got, slow.linear(padded, weight), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_spectrum_head(dtype, packed):
    draw = Draw(dtype)
    hidden, weight, bias = draw(2, 4, 6), draw.weight(18, 6), draw(18)
    used = ops.pack_linear(weight) if packed else weight
    window, state, out = torch.hann_window(16), None, []
    for chunk, last in ((hidden[:, :1], False), (hidden[:, 1:], False), (hidden[:, :0], True)):
        samples, state = ops.spectrum_head(chunk, used, bias, window, 4, state, last, backend="cpu")
        out.append(samples)
    got = torch.cat(out, 1)
    assert got.dtype == torch.float32
    expected = slow.overlap_add(slow.spectrum_frames(slow.linear(hidden, weight, bias)), window, 4)
    check(got, expected, torch.float32, factor=3)
