"""The named cases cover every op, are random and reproducible, and every op passes them."""

import pytest
import torch

from mingcore.ops._core.cases import Case, case, cost, for_op, ops_with_cases
from mingcore.ops._core.layouts import nan_poisoned, tensors_in
from mingcore.ops._core.op import OPS
from mingcore.testing.compare import check_op, run

PACKING = {"pack_linear", "pack_experts", "pack_flow_head", "pack_conv"}


def test_every_op_has_cases():
    assert set(ops_with_cases()) == set(OPS) | PACKING


@pytest.mark.parametrize("op", ops_with_cases())
def test_every_op_has_the_awkward_ones(op):
    cases = for_op(op, large=True)
    tags = set().union(*(c.tags for c in cases))
    assert {"odd", "edge"} <= tags
    if op not in PACKING | {"route_topk", "sort_by_expert"}:
        assert {"real", "mid"} & tags
        assert "strided" in tags
    assert len({c.name for c in cases}) == len(cases)


def widest(x):
    """8-bit floats compare in no PyTorch; as float32 they do."""
    return x.float() if x.dtype == torch.float8_e4m3fn else x


@pytest.mark.parametrize("op", ops_with_cases())
def test_inputs_are_random_and_reproducible(op):
    for c in for_op(op):
        a, b, other = (list(map(widest, tensors_in(c.make(seed=s)))) for s in (1, 1, 2))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        filled = [x for x in a if x.numel() and x.dtype.is_floating_point]
        assert all(x.isfinite().all() and x.abs().max() > 0 for x in filled), c.id
        changed = [not torch.equal(x, y) for x, y in zip(a, other, strict=True) if x.numel() > 4]
        assert any(changed) or not changed, c.id


def test_large_ones_must_be_asked_for():
    assert not any(c.name.startswith("real") for c in for_op("moe_mlp"))
    real = for_op("moe_mlp", tag="real", large=True)
    assert {"real_t1", "real_t32", "real_t4096"} <= {c.name for c in real}


def test_special_inputs_are_what_their_names_say():
    def one(op, name) -> Case:
        return next(c for c in for_op(op) if c.name == name)

    kwargs = one("moe_mlp", "all_to_one").make()
    assert kwargs["ids"].unique().numel() == 1 and len(kwargs["ids"]) > 1
    assert one("moe_mlp", "empty_groups").make()["ids"].unique().numel() <= 3
    assert one("moe_mlp", "one_token").make()["x"].shape[0] == 1
    logits = one("route_topk", "ties").make()["logits"]
    assert any(row.unique().numel() < row.numel() for row in logits)
    x = one("linear", "strided").make()["x"]
    assert not x.is_contiguous()
    positions = one("attention_decode", "padded").make()["positions"]
    assert (positions < 0).all(1).any()


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="linear has a case named 'odd_sizes' already"):
        case("linear", "odd_sizes", dict)
    with pytest.raises(ValueError, match="op must be one of"):
        for_op("no_such_op")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_passes_its_cases(op, dtype):
    for c in for_op(op):
        kwargs = c.make(dtype=dtype, seed=7)
        with nan_poisoned():
            got = run(op, kwargs)
        try:
            check_op(op, kwargs, got)
        except AssertionError as error:
            raise AssertionError(f"{c.id}: {error}") from error


def test_cost_counts_what_is_touched():
    moe = next(c for c in for_op("moe_mlp") if c.name == "empty_groups")
    kwargs = moe.make()
    out = run("moe_mlp", kwargs)
    E, two_i, H = kwargs["experts"][0].shape
    chosen = kwargs["ids"].unique().numel()
    per_expert = (two_i * H + H * two_i // 2) * 4
    shared = sum(t.nbytes for t in kwargs["shared"])
    small = kwargs["x"].nbytes + out[0].nbytes + kwargs["ids"].nbytes + kwargs["weights"].nbytes
    counted = cost("moe_mlp", kwargs, out)
    assert counted.nbytes == chosen * per_expert + shared + small
    assert chosen < E
    linear = next(c for c in for_op("linear") if c.name == "odd_silu")
    kwargs = linear.make()
    assert cost("linear", kwargs, run("linear", kwargs)).flops == 2 * 14 * 129 * 31
    x, weight = torch.randn(2, 6, 9), torch.randn(4, 3, 5)
    kwargs = {"x": x, "weight": weight, "groups": 2}
    assert cost("causal_conv1d", kwargs, (torch.empty(2, 4, 9),)).flops == 2 * 2 * 4 * 9 * 3 * 5
    kwargs = {"x": x, "weight": torch.randn(6, 2, 5), "groups": 2}
    out = torch.empty(2, 4, 18)
    least = cost("causal_conv_transpose1d", kwargs, (out,))
    assert least.flops == 2 * 2 * 6 * 9 * 2 * 5
    assert cost("causal_conv_transpose1d_", {**kwargs, "out": out}, (out,)) == least
    ring = next(c for c in for_op("attention_decode") if c.name == "ring")
    kwargs = ring.make()
    out = run("attention_decode", kwargs)
    # queries at 30, 31, 32 with a window of 8 see keys 23..32
    keys = 2 * 10 * 2 * 8 * 4
    small = kwargs["q"].nbytes + kwargs["positions"].nbytes + out[0].nbytes
    assert cost("attention_decode", kwargs, out).nbytes == keys + small
