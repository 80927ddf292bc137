"""The tolerance accepts plain PyTorch's rounding error and rejects three times that error."""

import math

import pytest
import torch

from mingcore.ops._core.cases import for_op
from mingcore.ops._core.layouts import nan_poisoned, poison_, shifted, strided, transposed
from mingcore.testing.compare import (
    Error,
    assert_within,
    check_op,
    edit_distance,
    max_relative,
    oracle,
    quantisation_error,
    relative_l2,
    run,
    tolerance,
    widened,
)


def the_case(op, name):
    return next(c for c in for_op(op, large=True) if c.name == name)


def test_metrics():
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 4.0])
    assert max_relative(a, b) == pytest.approx(0.5 / 4)
    assert relative_l2(a, b) == pytest.approx(0.5 / math.sqrt(1 + 6.25 + 16))
    assert max_relative(torch.zeros(3), torch.zeros(3)) == 0
    assert max_relative(a, torch.zeros(3)) == math.inf
    assert math.isnan(max_relative(torch.tensor([math.nan]), torch.ones(1)))
    with pytest.raises(AssertionError, match="shapes differ"):
        max_relative(a, b[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["linear", "moe_mlp", "rms_norm"])
def test_three_times_the_error_fails(op, dtype):
    name = {"linear": "many_rows", "moe_mlp": "t64", "rms_norm": "odd_sizes"}[op]
    kwargs = the_case(op, name).make(dtype=dtype)
    exact, plain = oracle(op, kwargs)[0], run(op, kwargs, backend="reference")[0]
    check_op(op, kwargs, (plain,))
    limit = tolerance(plain, exact)
    # an error of plain PyTorch's shape, in float64 so that nothing is rounded away
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
    noise /= noise.square().mean().sqrt()
    plain_error = Error.between(plain, exact)
    scale = exact.square().mean().sqrt().item()
    three_times = exact + noise * (3 * plain_error.rms + 2e-5 * scale)
    once = exact + noise * 0.3 * plain_error.rms
    assert Error.between(once, exact).within(limit)
    assert not Error.between(three_times, exact).within(limit)
    with pytest.raises(AssertionError, match=f"{op}: error"):
        check_op(op, kwargs, (_rounded_away(three_times, exact, dtype),))


def _rounded_away(x, exact, dtype):
    """To `dtype`, each value away from the exact one, so that rounding cannot hide the error."""
    near = x.to(dtype)
    up = torch.nextafter(near, torch.full_like(near, math.inf))
    down = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(x > exact, up, down)


def test_one_wrong_element_fails():
    kwargs = the_case("linear", "many_rows").make()
    (plain,) = run("linear", kwargs, backend="reference")
    wrong = plain.clone()
    wrong[77, 5] += 3e-4 * plain.abs().max()
    with pytest.raises(AssertionError, match="linear: error"):
        check_op("linear", kwargs, (wrong,))


def test_nan_dtype_shape_and_indices_fail():
    kwargs = the_case("linear", "odd_sizes").make()
    (good,) = run("linear", kwargs, backend="reference")
    bad = good.clone()
    bad[0, 0] = math.nan
    for wrong, said in ((bad, "error nan"), (good.half(), "dtype"), (good[:, :-1], "shape")):
        with pytest.raises(AssertionError, match=said):
            check_op("linear", kwargs, (wrong,))
    kwargs = the_case("sort_by_expert", "odd_sizes").make()
    rows, offsets = run("sort_by_expert", kwargs, backend="reference")
    with pytest.raises(AssertionError, match=r"sort_by_expert\[0\]: 2 values differ"):
        check_op("sort_by_expert", kwargs, (rows[[1, 0, *range(2, len(rows))]], offsets))


def test_lucky_plain_result_leaves_room_for_rounding():
    exact = torch.tensor([1.0 + 2**-10], dtype=torch.float64)
    other = torch.tensor([1.0078125], dtype=torch.bfloat16)  # one step of bfloat16 away
    plain = torch.tensor([1.0], dtype=torch.bfloat16)
    assert_within(plain, plain, exact)
    with pytest.raises(AssertionError):
        assert_within(other, plain, exact)


def test_oracle_is_float64_and_leaves_the_arguments_alone():
    kwargs = the_case("kv_write_", "wraps").make(dtype=torch.bfloat16)
    before = kwargs["k_cache"].clone()
    assert all(t.dtype == torch.float64 for t in oracle("kv_write_", kwargs))
    run("kv_write_", kwargs)
    assert torch.equal(kwargs["k_cache"], before)
    wide = widened(the_case("moe_mlp", "one_token").make(dtype=torch.bfloat16))
    assert wide["experts"][0].dtype == torch.float64
    assert wide["weights"].dtype == torch.float32 and wide["ids"].dtype == torch.int32


def test_poison_reaches_what_is_not_written():
    with nan_poisoned():
        fresh = [torch.empty(3), torch.empty_like(torch.ones(2)), torch.ones(2).new_empty(4)]
        whole = torch.empty(2, dtype=torch.int32)
        zeros = torch.zeros(3)
    assert all(t.isnan().all() for t in fresh)
    assert (whole == torch.iinfo(torch.int32).max).all()
    assert (zeros == 0).all()
    assert poison_(torch.zeros(2)).isnan().all()


def test_awkward_layouts_keep_the_values():
    x = torch.randn(3, 4, 5)
    for y in (strided(x), transposed(x), shifted(x)):
        assert torch.equal(x, y)
    assert strided(x).stride() == (32, 8, 1)
    assert transposed(x).stride(-1) == 4
    assert shifted(x).data_ptr() % 16 and shifted(x).is_contiguous()
    around = strided(x).as_strided((3, 4, 8), (32, 8, 1))
    assert around[..., 5:].isnan().all()


def test_what_quantisation_costs():
    """fp16 keeps 11 bits, bf16 8, e4m3 4; int8 has even steps of max|row| / 127, and int8_dyn has
    them in the activations too."""
    kwargs = the_case("moe_mlp", "t64").make()
    formats = ("fp32", "fp16", "bf16", "int8", "int8_dyn", "fp8")
    errors = {f: quantisation_error(kwargs, f)[1] for f in formats}
    assert errors["fp32"] == 0 and 1e-4 < errors["fp16"] < 1e-3 < errors["bf16"] < 4e-3
    assert errors["bf16"] < errors["int8"] < errors["int8_dyn"] < 0.02
    assert 0.02 < errors["fp8"] < 0.06
    largest, l2 = quantisation_error(kwargs, "fp8")
    assert 0.3 * l2 < largest < 5 * l2


def test_edit_distance():
    for wanted, got, distance in (
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("kitten", "sitting", 3),
        (["one", "two", "three"], ["one", "three", "three", "four"], 2),
    ):
        assert edit_distance(wanted, got) == edit_distance(got, wanted) == distance
