"""Quantised linears on the CPU kernels: the oracle, and the integers, on every instruction set."""

import random

import pytest
import torch

from mingcore import _cpu, ops
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided, transposed
from mingcore.ops._core.packing import quantise, quantise_activations
from mingcore.ops.gemm import LINEAR
from mingcore.testing import compare
from tests.ops.support import unsupported_reason
from tests.ops.test_gemm import ACTIVATIONS, DTYPES, ROWS, arguments

FORMATS = ("int8", "int8_dyn")
SIZES = ((1, 2), (3, 33), (40, 1), (7, 34), (64, 32), (129, 66), (300, 130), (1030, 96))


def variants():
    """Every instruction set of this build on this CPU, with VNNI where it has it, and without."""
    for isa in _cpu.isas():
        _cpu.set_isa(isa)
        yield from ([(isa, True), (isa, False)] if _cpu.vnni() else [(isa, False)])
    _cpu.set_isa(_cpu.isas()[0])


@pytest.fixture(params=variants(), ids=lambda v: v[0] + "_vnni" * v[1])
def products(request):
    isa, vnni = request.param
    before = _cpu.isa()
    _cpu.set_isa(isa)
    _cpu.set_vnni(vnni)
    yield request.param
    _cpu.set_isa(before)


def packed(kwargs: dict, format: str, hint: bool = True) -> dict:
    hints = {"activation": kwargs["activation"]} if hint else {}
    weight = ops.pack_linear(kwargs["weight"], format=format, backend="cpu", **hints)
    return {**kwargs, "weight": weight}


def check(kwargs: dict) -> None:
    with nan_poisoned():
        got = compare.run("linear", kwargs, backend="cpu")
    compare.check_op("linear", kwargs, got)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_oracle(products, activation, format):
    pick = random.Random(f"{activation} {format}")
    for seed, (K, N) in enumerate(SIZES):
        for M in pick.sample(ROWS, 4):
            x_dtype = pick.choice(tuple(DTYPES.values()))
            w_dtype = pick.choice(tuple(DTYPES.values()))
            check(packed(arguments(M, K, N, x_dtype, w_dtype, activation, seed), format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("M", ROWS)
def test_every_number_of_rows(products, M, format):
    check(packed(arguments(M, 203, 70, torch.float32, torch.float32, None, M), format))


def test_the_flow_head_on_any_number_of_threads(products, threads):
    for K, N in ((1024, 3072), (4096, 1024)):
        kwargs = arguments(22, K, N, torch.float32, torch.float32, "gelu_tanh", N)
        check(packed(kwargs, "int8_dyn"))


def test_sums_are_exact_at_the_extremes(products):
    """Weights and activations of +-127 in every combination: nothing saturates on the way."""
    d = torch.Generator().manual_seed(1)
    K = 5000
    for x_signs, w_signs in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 0), (0, 1)):
        x, weight = torch.full((17, K), 127.0 * x_signs), torch.full((40, K), 127.0 * w_signs)
        if not x_signs:
            x = torch.randint(0, 2, (17, K), generator=d) * 254.0 - 127
        if not w_signs:
            weight = torch.randint(0, 2, (40, K), generator=d) * 254.0 - 127
        got = ops.linear(x, ops.pack_linear(weight, format="int8_dyn"), backend="cpu")
        assert torch.equal(got.double(), (x.double() @ weight.double().T).float().double())


@pytest.mark.parametrize("K", (1, 4, 37, 1030))
def test_integers_are_those_of_the_definition(products, K):
    """Unit weights give back every quantised activation; random ones give the exact sums."""
    d = torch.Generator().manual_seed(K)
    x = torch.randn(9, K, generator=d) * torch.logspace(-6, 6, 9).unsqueeze(1)
    x[3] = 0
    x[4, 0] = 1e-42 if K > 1 else 0  # subnormal
    x[5] = (x[5] * 127 / x[5].abs().max()).round() / 2  # ties
    for dtype in DTYPES.values():
        rows = x.clamp(-6e4, 6e4).to(dtype)
        stored, scale = quantise_activations(rows)
        unit = ops.pack_linear(torch.eye(K) * 127, format="int8_dyn", backend="cpu")
        got = ops.linear(rows.float(), unit, backend="cpu")
        assert torch.equal(got, stored.float() * 127 * scale.unsqueeze(1))
        weight = torch.randn(50, K, generator=d)
        held, by = quantise(weight, "int8_dyn")
        got = ops.linear(rows.float(), ops.pack_linear(weight, format="int8_dyn"), backend="cpu")
        total = (stored.double() @ held.double().T).float()
        assert torch.equal(got, total * scale.unsqueeze(1) * by)


@pytest.mark.parametrize("format", FORMATS)
def test_bits_do_not_depend_on_threads_or_rows(products, format):
    kwargs = packed(arguments(300, 520, 100, torch.float32, torch.float32, "silu", 7), format)
    expected = compare.run("linear", kwargs, backend="cpu")[0]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(compare.run("linear", kwargs, backend="cpu")[0], expected)
    torch.set_num_threads(before)
    for row, rows in ((0, 1), (17, 2), (40, 13), (100, 22), (3, 257)):
        part = {**kwargs, "x": kwargs["x"][row : row + rows]}
        part["residual"] = kwargs["residual"][row : row + rows]
        got = compare.run("linear", part, backend="cpu")[0]
        assert torch.equal(got, expected[row : row + rows]), (row, rows)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layout", (strided, transposed, shifted))
def test_strides_and_leading_dimensions(isa, layout, format):
    kwargs = arguments(13, 70, 45, torch.bfloat16, torch.bfloat16, "gelu", 3)
    kwargs.update(x=layout(kwargs["x"]), residual=layout(kwargs["residual"]))
    check(packed({**kwargs, "weight": layout(kwargs["weight"])}, format))
    kwargs.update(x=kwargs["x"][:12].reshape(3, 2, 2, 70), residual=None)
    check(packed(kwargs, format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("width", (32, 45))
def test_swiglu_on_panels_packed_without_the_hint(isa, width, format):
    kwargs = arguments(5, 64, 2 * width, torch.bfloat16, torch.bfloat16, "swiglu", 5)
    check(packed(kwargs, format, hint=False))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_nan_and_infinity_stay_in_their_row(products, format, bad):
    kwargs = packed(arguments(3, 20, 64, torch.float32, torch.float32, None, 1), format)
    kwargs["x"][1, 4] = bad
    got = compare.run("linear", kwargs, backend="cpu")[0]
    assert not got[1].isfinite().any()
    assert got[0].isfinite().all() and got[2].isfinite().all()


def test_the_reason_is_named():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    rows = ops.pack_linear(weight, format="int8", backend="reference")
    flat = (x, rows.weight, None, None, "none", "rows", 4, rows.scale, "int8")
    assert "int8 in rows" in unsupported_reason(LINEAR, "cpu", flat)
    wide = torch.ones(1, 1 << 18)
    pack = ops.pack_linear(wide, format="int8_dyn", backend="cpu")
    flat = (wide, pack.weight, None, None, "none", pack.layout, 1, pack.scale, "int8_dyn")
    assert "K <= 131072" in unsupported_reason(LINEAR, "cpu", flat)
    assert torch.isclose(ops.linear(wide, pack)[0, 0], torch.tensor(2.0**18))  # the reference
