"""linear on the CPU kernels: every activation, type, layout and instruction set, awkward sizes."""

import random

import pytest
import torch
from torch import Tensor

from mingcore import _cpu, ops
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided, transposed
from mingcore.ops.gemm import LINEAR
from mingcore.testing import compare
from tests.ops.support import unsupported_reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh", "swiglu")
ROWS = (0, 1, 2, 3, 4, 5, 11, 13, 15, 22, 64, 300)
SIZES = ((1, 2), (1, 33), (40, 1), (7, 34), (64, 32), (129, 66), (300, 130), (513, 96))


def arguments(M: int, K: int, N: int, x_dtype, w_dtype, activation, seed: int, **extra) -> dict:
    d = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=d).to(dtype)

    N += N % 2 if activation == "swiglu" else 0
    outputs = N // 2 if activation == "swiglu" else N
    return {
        "x": normal(M, K, dtype=x_dtype),
        "weight": (normal(N, K) / K**0.5).to(w_dtype),
        "bias": normal(N, dtype=w_dtype),
        "residual": normal(M, outputs, dtype=x_dtype),
        "activation": activation,
        **extra,
    }


def packed(kwargs: dict, hint: bool = True) -> dict:
    hints = {"activation": kwargs["activation"]} if hint else {}
    return {**kwargs, "weight": ops.pack_linear(kwargs["weight"], backend="cpu", **hints)}


@pytest.mark.parametrize("format", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_the_oracle(isa, activation, format):
    pick = random.Random(f"{activation} {format}")
    for seed, (K, N) in enumerate(SIZES):
        for M in pick.sample(ROWS, 5):
            x_dtype = pick.choice((torch.float32, DTYPES[format]))
            kwargs = arguments(M, K, N, x_dtype, DTYPES[format], activation, seed)
            for form in (kwargs, packed(kwargs)):
                with nan_poisoned():
                    got = compare.run("linear", form, backend="cpu")
                compare.check_op("linear", kwargs, got)


@pytest.mark.parametrize("format", DTYPES)
@pytest.mark.parametrize("M", ROWS)
def test_every_number_of_rows(isa, M, format):
    kwargs = arguments(M, 200, 70, torch.float32, DTYPES[format], None, M)
    with nan_poisoned():
        got = compare.run("linear", packed(kwargs), backend="cpu")
    compare.check_op("linear", kwargs, got)


def test_threads_and_isas_agree_on_the_shapes_of_the_flow_head(isa, threads):
    for K, N in ((1024, 3072), (4096, 1024)):
        kwargs = arguments(22, K, N, torch.float32, torch.float32, "gelu_tanh", N)
        with nan_poisoned():
            got = compare.run("linear", packed(kwargs), backend="cpu")
        compare.check_op("linear", kwargs, got)


@pytest.mark.parametrize("format", DTYPES)
def test_bits_do_not_depend_on_threads_rows_or_packing(isa, format):
    kwargs = arguments(300, 520, 100, torch.float32, DTYPES[format], "silu", 7)
    pack = packed(kwargs)
    expected = compare.run("linear", pack, backend="cpu")[0]
    assert torch.equal(compare.run("linear", kwargs, backend="cpu")[0], expected)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(compare.run("linear", pack, backend="cpu")[0], expected)
    torch.set_num_threads(before)
    for row, rows in ((0, 1), (17, 2), (40, 13), (100, 22), (3, 257)):
        part = {**pack, "x": kwargs["x"][row : row + rows]}
        part["residual"] = kwargs["residual"][row : row + rows]
        got = compare.run("linear", part, backend="cpu")[0]
        assert torch.equal(got, expected[row : row + rows]), (row, rows)


@pytest.mark.parametrize("layout", (strided, transposed, shifted))
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_strides_and_offsets(isa, layout, dtype):
    kwargs = arguments(13, 70, 45, dtype, dtype, "gelu", 3)
    awkward = {**kwargs, "x": layout(kwargs["x"]), "residual": layout(kwargs["residual"])}
    awkward["bias"] = torch.stack((kwargs["bias"], kwargs["bias"]), dim=1)[:, 0]
    for form in (awkward, {**awkward, "weight": layout(kwargs["weight"])}, packed(awkward)):
        with nan_poisoned():
            got = compare.run("linear", form, backend="cpu")
        compare.check_op("linear", kwargs, got)


def test_leading_dimensions_and_expanded_rows(isa):
    kwargs = arguments(12, 33, 40, torch.float32, torch.float32, None, 5)
    shaped = {**kwargs, "x": kwargs["x"].view(3, 2, 2, 33), "residual": None}
    got = compare.run("linear", packed(shaped), backend="cpu")[0]
    assert got.shape == (3, 2, 2, 40)
    compare.check_op("linear", shaped, (got,))
    same = {**kwargs, "x": kwargs["x"][:1].expand(12, 33)}
    compare.check_op("linear", same, compare.run("linear", packed(same), backend="cpu"))


@pytest.mark.parametrize("width", (32, 45))
def test_swiglu_on_panels_packed_without_the_hint(isa, width):
    kwargs = arguments(5, 64, 2 * width, torch.bfloat16, torch.bfloat16, "swiglu", 5)
    got = compare.run("linear", packed(kwargs, hint=False), backend="cpu")
    compare.check_op("linear", kwargs, got)


def extremes(dtype: torch.dtype) -> Tensor:
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 0.95, -0.95, 4.0, -4.0, 9.5, -9.5])
    more = torch.cat((values, torch.linspace(-30, 30, 3001), torch.tensor([88.0, -88.0, 103.9])))
    return torch.cat((more, torch.tensor([-104.5, -1000.0, 1000.0, 3e4, -3e4]))).to(dtype)


@pytest.mark.parametrize("activation", ("silu", "gelu", "gelu_tanh"))
def test_activations_over_their_whole_range(isa, activation):
    x = extremes(torch.float32).unsqueeze(1)
    kwargs = {"x": x, "weight": torch.ones(1, 1), "activation": activation}
    got = compare.run("linear", packed(kwargs), backend="cpu")[0]
    exact = compare.oracle("linear", kwargs)[0]
    error = (got.double() - exact).abs()
    # gelu and PyTorch's own cancel in 1 + erf for negative x: absolute there, relative elsewhere
    assert (error <= 4e-7 * exact.abs() + 1.2e-7 * x.abs().clamp(max=6)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_go_through(isa, activation):
    kwargs = arguments(3, 20, 64, torch.float32, torch.float32, activation, 1)
    kwargs["x"][1, 4] = float("nan")
    got = compare.run("linear", packed(kwargs), backend="cpu")[0]
    assert got[1].isnan().all()
    assert got[0].isfinite().all() and got[2].isfinite().all()


def test_half_conversions_are_exact(isa):
    """Every 16-bit pattern widens to its value, and narrows back to itself."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = patterns.view(dtype)
        values = values[values.isfinite()]
        weight = ops.pack_linear(values.view(-1, 1), backend="cpu")
        wide = ops.linear(torch.ones(1, 1), weight, backend="cpu")
        assert torch.equal(wide[0], values.float())
        one = torch.ones(1, 1, dtype=dtype)
        assert torch.equal(ops.linear(one, weight, backend="cpu")[0], values)


def test_rounding_to_half_is_to_nearest_even(isa):
    d = torch.Generator().manual_seed(3)
    exponents = torch.randint(-30, 20, (4000,), generator=d)
    values = torch.randn(4000, generator=d).ldexp(exponents)
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 65519.0, 65520.0, 1e6])
    bf16_ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])
    values = torch.cat((values, ties, bf16_ties, -ties))
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.ones(1, 1, dtype=dtype)
        got = ops.linear(x, values.view(-1, 1).contiguous(), backend="cpu")
        assert torch.equal(got[0], values.to(dtype))


def test_pack_and_unpack_round_trip():
    for format, dtype in DTYPES.items():
        for N, K in ((1, 1), (33, 7), (64, 20), (90, 3)):
            weight = torch.randn(N, K).to(dtype)
            for hint in (None, *(("swiglu",) if N % 2 == 0 else ())):
                pack = ops.pack_linear(weight, format=format, activation=hint, backend="cpu")
                assert torch.equal(pack.unpack(), weight)


def test_the_reason_is_named():
    x, w = torch.randn(2, 8), torch.randn(4, 8)

    def reason(x, w):
        return unsupported_reason(LINEAR, "cpu", (x, w, None, None, "none", "rows", 4, None, ""))

    assert reason(x, w) is None
    assert "float64" in reason(x.double(), w)
    assert "K = 0" in reason(x[:, :0], w[:, :0])
    assert "gradient" in reason(x, w.clone().requires_grad_())
    with torch.no_grad():
        assert reason(x, w.clone().requires_grad_()) is None
    assert "meta" in reason(x.to("meta"), w)


def test_threads_come_from_pytorch():
    assert _cpu.thread_pool() == "openmp"
