"""Routing and the mixture of experts against loops in float64."""

import pytest
import torch

import mingcore.ops as ops
from mingcore.errors import InputError
from mingcore.ops._core.layouts import strided, transposed
from mingcore.ops.gemm import reference as grouped
from tests.ops import slow
from tests.ops.support import DTYPES, Draw, check, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("T", "E", "K"), [(5, 9, 3), (1, 64, 6), (3, 4, 4), (4, 6, 1)])
def test_route_topk(dtype, renormalize, T, E, K):
    logits = Draw(dtype)(T, E)
    weights, ids = reference("route_topk")(logits, K, renormalize=renormalize)
    expected, expected_ids = slow.route_topk(logits, K, renormalize)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int32
    assert torch.equal(ids, expected_ids)
    check(weights, expected, torch.float32)


def test_route_topk_gives_ties_to_the_lower_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0] * 5])
    assert reference("route_topk")(logits, 3)[1].tolist() == [[1, 2, 4], [0, 1, 2]]
    many = torch.randint(0, 3, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(reference("route_topk")(many, 6)[1], slow.route_topk(many, 6)[1])


@pytest.mark.parametrize(("T", "K", "E"), [(7, 3, 5), (1, 6, 64), (20, 2, 30), (0, 2, 4)])
def test_sort_by_expert(T, K, E):
    ids = Draw(torch.float32).ids(T, K, E)
    rows, offsets = reference("sort_by_expert")(ids, E)
    expected_rows, expected_offsets = slow.sort_by_expert(ids, E)
    assert rows.dtype == offsets.dtype == torch.int32
    assert torch.equal(rows, expected_rows) and torch.equal(offsets, expected_offsets)


def test_sort_by_expert_every_token_to_one():
    rows, offsets = reference("sort_by_expert")(torch.full((4, 1), 2, dtype=torch.int32), 4)
    assert rows.tolist() == [0, 1, 2, 3] and offsets.tolist() == [0, 0, 0, 4, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(3, 1, 4), (0, 5, 0, 0, 2, 0), (0, 0, 6), (1,), (0, 0)])
def test_grouped_gemm(dtype, sizes):
    draw = Draw(dtype)
    x, w = draw(sum(sizes), 11), draw.weight(len(sizes), 6, 11)
    offsets = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    got = reference("grouped_gemm")(strided(x), transposed(w), offsets)
    assert got.dtype == dtype and got.shape == (sum(sizes), 6)
    if x.numel():
        check(got, slow.grouped_gemm(x, w, offsets), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), [(11, 6), (16, 8)])
@pytest.mark.parametrize("sizes", [(3, 1, 4), (0, 5, 0, 0, 2, 0), (0, 0, 6), (0, 0)])
def test_grouped_gemm_without_reading_back(dtype, K, N, sizes):
    """The path for GPU tensors gives what the path for CPU tensors gives."""
    draw = Draw(dtype)
    x, w = draw(sum(sizes), K), draw.weight(len(sizes), N, K)
    offsets = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    got = grouped._on_device(x, w, offsets)
    assert got.dtype == dtype and got.shape == (sum(sizes), N)
    if x.numel():
        check(got, slow.grouped_gemm(x, w, offsets), dtype)


def draw_experts(draw: Draw, E: int, H: int, I: int, shared: int):
    pair = (draw.weight(2 * shared, H), draw.weight(H, shared)) if shared else None
    return draw.weight(E, 2 * I, H), draw.weight(E, H, I), pair


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_moe_mlp(dtype, T, shared, packed):
    E, K, H, I = 5, 3, 12, 7
    draw = Draw(dtype, seed=T)
    gate_up, down, pair = draw_experts(draw, E, H, I, shared)
    x, ids, weights = draw(T, H), draw.ids(T, K, E), draw(T, K, dtype=torch.float32).softmax(1)
    if packed:
        got = reference("moe_mlp")(x, ops.pack_experts(gate_up, down, shared=pair), weights, ids)
    else:
        got = reference("moe_mlp")(x, (gate_up, down), weights, ids, shared=pair)
    assert got.dtype == dtype
    check(got, slow.moe_mlp(x, gate_up, down, weights, ids, pair), dtype)


@pytest.mark.parametrize("ids", [[[2], [2], [2]], [[0], [3], [0]]])
def test_moe_mlp_with_empty_groups(ids):
    draw = Draw(torch.float32)
    gate_up, down, _ = draw_experts(draw, 4, 8, 6, 0)
    x, ids = draw(3, 8), torch.tensor(ids, dtype=torch.int32)
    weights = draw(3, 1).abs()
    got = reference("moe_mlp")(x, (gate_up, down), weights, ids)
    check(got, slow.moe_mlp(x, gate_up, down, weights, ids), torch.float32)


def test_moe_mlp_takes_narrow_experts():
    draw, narrow = Draw(torch.float32), Draw(torch.bfloat16)
    gate_up, down, pair = draw_experts(narrow, 4, 16, 6, 8)
    x, ids, weights = draw(3, 16), draw.ids(3, 2, 4), draw(3, 2).softmax(1)
    got = reference("moe_mlp")(x, (gate_up, down), weights, ids, shared=pair)
    assert got.dtype == torch.float32
    check(got, slow.moe_mlp(x, gate_up, down, weights, ids, pair), torch.float32)


def test_moe_mlp_gives_the_same_bits_in_every_run_and_batch():
    draw = Draw(torch.float32)
    gate_up, down, pair = draw_experts(draw, 8, 64, 48, 32)
    x, ids, weights = draw(6, 64), draw.ids(6, 2, 8), draw(6, 2).softmax(1)
    first = reference("moe_mlp")(x, (gate_up, down), weights, ids, shared=pair)
    assert torch.equal(first, reference("moe_mlp")(x, (gate_up, down), weights, ids, shared=pair))


def test_pack_experts_keeps_and_converts():
    gate_up, down, pair = draw_experts(Draw(torch.float32), 3, 8, 4, 6)
    packed = ops.pack_experts(gate_up, down, shared=pair, backend="reference")
    assert packed.layout == "rows" and packed.format == "fp32"
    assert packed.gate_up.data_ptr() == gate_up.data_ptr()
    assert packed.nbytes == 4 * (gate_up.numel() + down.numel() + pair[0].numel() + pair[1].numel())
    narrow = ops.pack_experts(gate_up, down, format="bf16", backend="reference")
    assert narrow.format == "bf16" and narrow.shared_down is None
    assert torch.equal(narrow.down, down.bfloat16())


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
@pytest.mark.parametrize("kind", ["float64", "gradient", "reference", "fp8", "native"])
def test_ids_that_are_no_expert_are_refused_by_all(T, bad, kind):
    """By the formula as by the kernel: it would read memory of nobody."""
    g = torch.Generator().manual_seed(T)
    gate_up, down = torch.randn(4, 16, 8, generator=g), torch.randn(4, 8, 8, generator=g)
    x, weights = torch.randn(T, 8, generator=g), torch.rand(T, 2, generator=g)
    ids = torch.randint(0, 4, (T, 2), generator=g, dtype=torch.int32)
    ids[T - 1, 1] = bad
    options = {"backend": "reference"} if kind == "reference" else {}
    experts = ops.pack_experts(gate_up, down, format="fp8") if kind == "fp8" else (gate_up, down)
    if kind == "float64":
        weights = weights.double()
    with pytest.raises(InputError, match=rf"ids must be in 0..E-1 = 0..3, got {bad} at \[{T - 1}, 1\]"):
        ops.moe_mlp(x.requires_grad_(kind == "gradient"), experts, weights, ids, **options)


@pytest.mark.parametrize("offsets", [[0, 2, 4], [1, 3, 5], [0, 6, 5], [0, 4, 3, 5][:3], [-1, 2, 5], [0, 2, 9]])
def test_offsets_that_do_not_cut_the_rows_are_refused(offsets):
    x, w = torch.randn(5, 4), torch.randn(2, 3, 4)
    with pytest.raises(InputError, match="offsets must be from 0 to M = 5, not decreasing"):
        ops.grouped_gemm(x, w, torch.tensor(offsets, dtype=torch.int32))
    assert ops.grouped_gemm(x, w, torch.tensor([0, 0, 5], dtype=torch.int32)).isfinite().all()
