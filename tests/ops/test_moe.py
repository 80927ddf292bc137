"""moe_mlp on the CPU kernels: every format, layout and ISA, awkward routings and sizes."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from mingcore import InputError, _cpu, ops
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided, transposed
from mingcore.ops.moe import MOE_MLP
from mingcore.testing import compare
from tests.ops.support import unsupported_reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = (*DTYPES, "int8", "int8_dyn")
TOKENS = (0, 1, 3, 16, 65)
# E, K, H, I, Is: whole panels; all odd; narrower than a panel; no shared expert; rounds of K blocks
SIZES = ((8, 2, 64, 32, 48), (5, 3, 37, 29, 43), (3, 2, 5, 3, 1), (7, 4, 96, 40, 0), (3, 1, 300, 150, 9))


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x / (shape[-1] ** 0.5 if len(shape) > 1 else 1)).to(dtype)


def experts(size: tuple, format: str, seed: int = 0, layout: str = "panels") -> dict:
    """`experts` and perhaps `shared`, as keyword arguments; packed or raw."""
    E, _, H, I, S = size
    dtype = DTYPES.get(format, torch.float32)
    pair = draw(E, 2 * I, H, seed=seed, dtype=dtype), draw(E, H, I, seed=seed + 1, dtype=dtype)
    shared = None
    if S:
        shared = draw(2 * S, H, seed=seed + 2, dtype=dtype), draw(H, S, seed=seed + 3, dtype=dtype)
    if layout == "rows":
        return {"experts": pair, "shared": shared}
    packed = ops.pack_experts(*pair, shared=shared, format=format, backend="cpu")
    assert packed.layout == "panels" and packed.hidden == H
    return {"experts": packed}


def tokens(size: tuple, T: int, dtype: torch.dtype = torch.float32, only: int | None = None) -> dict:
    """Ids may repeat within a token; `only` limits them to so many experts."""
    E, K, H, *_ = size
    g = torch.Generator().manual_seed(T)
    return {
        "x": draw(T, H, seed=T + 7, dtype=dtype),
        "weights": torch.rand(T, K, generator=g) + 0.1,
        "ids": torch.randint(E - (only or E), E, (T, K), generator=g, dtype=torch.int32),
    }


def got(kwargs: dict) -> Tensor:
    with nan_poisoned():
        return compare.run("moe_mlp", kwargs, backend="cpu")[0]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_oracle(isa, format, size):
    for T in TOKENS:
        x_dtype = torch.float32 if T % 2 else DTYPES.get(format, torch.bfloat16)
        for layout in ("panels", "rows") if format in DTYPES else ("panels",):
            kwargs = {**tokens(size, T, x_dtype), **experts(size, format, layout=layout)}
            compare.check_op("moe_mlp", kwargs, (got(kwargs),))


@pytest.mark.parametrize("format", ("bf16", "int8_dyn"))
@pytest.mark.parametrize("only", (1, 2))
def test_every_token_to_one_expert_and_to_two(isa, threads, format, only):
    for T in (1, 2, 5, 17, 600):  # 600 rows are several segments
        kwargs = {**tokens(SIZES[1], T, only=only), **experts(SIZES[1], format)}
        compare.check_op("moe_mlp", kwargs, (got(kwargs),))


def test_int8_dyn_is_the_same_with_and_without_vnni(isa):
    kwargs = {**tokens(SIZES[1], 20), **experts(SIZES[1], "int8_dyn")}
    expected = got(kwargs)
    if _cpu.vnni():
        _cpu.set_vnni(False)
        assert torch.equal(got(kwargs), expected)
        _cpu.set_vnni(True)


@pytest.fixture
def bf16_products(isa):
    """Whether this instruction set has them; on again afterwards. Without, nothing may change."""
    has = _cpu.bf16()
    yield has
    _cpu.set_bf16(has)


@pytest.mark.parametrize("size", (SIZES[0], SIZES[3], (3, 1, 300, 150, 10)))
@pytest.mark.parametrize("only", (None, 1))
def test_many_tokens_in_bf16_by_its_own_products(bf16_products, threads, size, only):
    """Within the tolerance, as without them; the same bits with any neighbours."""
    for T in (64, 65, 600):
        kwargs = {**tokens(size, T, torch.bfloat16, only), **experts(size, "bf16")}
        result = got(kwargs)
        compare.check_op("moe_mlp", kwargs, (result,))
        last = {name: kwargs[name][T - 64 :] for name in ("x", "weights", "ids")}
        assert torch.equal(got({**kwargs, **last}), result[T - 64 :])
        _cpu.set_bf16(False)
        widened = got(kwargs)
        compare.check_op("moe_mlp", kwargs, (widened,))
        _cpu.set_bf16(bf16_products)
        assert torch.equal(result, widened) != bf16_products  # else the other path was not taken


def test_what_bf16_products_do_not_take_is_widened(bf16_products):
    """Few tokens, odd sizes and strides, other types of x, rows as they come."""
    even, odd = SIZES[0], SIZES[1]
    calls = [{**tokens(even, 63, torch.bfloat16), **experts(even, "bf16")}]
    calls += [{**tokens(odd, 64, torch.bfloat16), **experts(odd, "bf16")}]
    calls += [{**tokens(even, 64), **experts(even, "bf16")}]
    calls += [{**tokens(even, 64, torch.bfloat16), **experts(even, "bf16", layout="rows")}]
    uneven = {**tokens(even, 64, torch.bfloat16), **experts(even, "bf16")}
    uneven["x"] = torch.zeros(64, 65, dtype=torch.bfloat16)[:, :64].copy_(uneven["x"])
    results = [got(call) for call in (*calls, uneven)]
    _cpu.set_bf16(False)
    for call, result in zip((*calls, uneven), results, strict=True):
        assert torch.equal(got(call), result)
        compare.check_op("moe_mlp", call, (result,))


@pytest.mark.parametrize("stride", (66, 128))
def test_bf16_products_of_spread_rows(bf16_products, stride):
    size = SIZES[0]
    kwargs = {**tokens(size, 70, torch.bfloat16), **experts(size, "bf16")}
    expected = got(kwargs)
    kwargs["x"] = torch.full((70, stride), torch.nan, dtype=torch.bfloat16)[:, :64].copy_(kwargs["x"])
    assert torch.equal(got(kwargs), expected)


@pytest.mark.parametrize("x_dtype", DTYPES.values())
@pytest.mark.parametrize("format", FORMATS)
def test_any_activations_with_any_weights(isa, format, x_dtype):
    kwargs = {**tokens(SIZES[1], 9, x_dtype), **experts(SIZES[1], format)}
    result, wide = got(kwargs), dict(kwargs, x=kwargs["x"].float())
    assert result.dtype == x_dtype
    assert torch.equal(result, got(wide).to(x_dtype))
    compare.check_op("moe_mlp", wide, (got(wide),))


@pytest.mark.parametrize("format", FORMATS)
def test_bits_depend_on_nothing_but_the_token(isa, format):
    """Neither on threads, nor layout, nor run, nor which other tokens there are."""
    size = (6, 3, 200, 70, 90)
    kwargs = {**tokens(size, 90), **experts(size, format)}
    expected, before = got(kwargs), torch.get_num_threads()
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        assert torch.equal(got(kwargs), expected), count
    torch.set_num_threads(before)
    if format in DTYPES:
        assert torch.equal(got({**kwargs, **experts(size, format, layout="rows")}), expected)
    for first, count in ((0, 1), (17, 2), (40, 15), (3, 80)):
        rows = slice(first, first + count)
        part = {name: kwargs[name][rows] for name in ("x", "weights", "ids")}
        assert torch.equal(got({**kwargs, **part}), expected[rows]), (first, count)


@pytest.mark.parametrize("format", ("bf16", "int8_dyn"))
def test_many_tokens_go_in_chunks(isa, format):
    size = (3, 6, 4096, 8, 0)
    kwargs = {**tokens(size, 1100), **experts(size, format)}
    result = got(kwargs)
    for rows in (slice(0, 9), slice(545, 560), slice(1091, 1100)):  # the middle has the boundary
        part = {name: kwargs[name][rows] for name in ("x", "weights", "ids")}
        assert torch.equal(got({**kwargs, **part}), result[rows])


def test_order_of_slots_is_the_order_of_the_sum(isa):
    """1e8 w0 + w1 - 1e8 w0 depends on the order, in float32; here it is known."""
    H = 40
    down = torch.stack([torch.full((H, 1), v) for v in (1e8, 1.0, -1e8)])
    gate_up = torch.ones(3, 2, H)
    x = torch.full((1, H), 0.5)  # gate = up = 20: silu(20) * 20 is 400 in float32
    one = torch.ones(1, 3)
    for order, expected in (((0, 2, 1), 400.0), ((0, 1, 2), 0.0), ((2, 0, 1), 400.0)):
        ids = torch.tensor([order], dtype=torch.int32)
        out = ops.moe_mlp(x, (gate_up, down), one, ids, backend="cpu")
        assert out[0, 0].item() == pytest.approx(expected, abs=1e-3), order


@pytest.mark.parametrize("layout", (strided, transposed, shifted))
def test_strides(isa, layout):
    plain = {**tokens(SIZES[1], 13), **experts(SIZES[1], "bf16", layout="rows")}
    awkward = {name: layout(plain[name]) for name in ("x", "weights", "ids")}
    compare.check_op("moe_mlp", plain, (got({**plain, **awkward}),))
    gate_up, down = plain["experts"]
    apart = torch.stack((gate_up, gate_up), 1)[:, 0], torch.stack((down, down), 2)[:, :, 0]
    assert torch.equal(got({**plain, "experts": apart}), got(plain))
    same = {**plain, "x": plain["x"][:1].expand(13, -1)}
    compare.check_op("moe_mlp", same, (got(same),))
    wide = {**plain, "weights": plain["weights"].double()}
    assert torch.equal(got(wide), got(plain))


@pytest.mark.parametrize("layout", ("rows", "panels"))
def test_experts_past_two_to_the_31_elements(layout):
    """The memory in between is never touched, so it takes none."""
    size, far = (2, 1, 64, 32, 0), 2**31 + 4096
    kwargs = {**tokens(size, 3, torch.bfloat16), **experts(size, "bf16", layout=layout)}
    kwargs["ids"][:] = torch.tensor([[1], [0], [1]])
    pair = kwargs["experts"] if layout == "rows" else kwargs["experts"].matrices[:2]
    moved = []
    for t in pair:
        base = torch.empty(far + t.numel(), dtype=t.dtype)
        apart = base.as_strided(t.shape, (far, *t.stride()[1:]))
        moved.append(apart.copy_(t))
    there = tuple(moved)
    if layout == "panels":
        there = ops.PackedExperts(*moved, None, None, "panels", "bf16")
    assert torch.equal(got({**kwargs, "experts": there}), got(kwargs))


def test_no_expert_at_all(isa):
    size = (4, 2, 40, 24, 16)
    kwargs = {**tokens(size, 5), **experts(size, "fp32", layout="rows")}
    none = {name: kwargs[name][:, :0] for name in ("weights", "ids")}
    compare.check_op("moe_mlp", {**kwargs, **none}, (got({**kwargs, **none}),))
    assert torch.equal(got({**kwargs, **none, "shared": None}), torch.zeros(5, 40))


@pytest.mark.parametrize("bad", (-1, 5, 2**31 - 1, -(2**31)))
def test_ids_out_of_range(bad):
    kwargs = {**tokens(SIZES[1], 4), **experts(SIZES[1], "bf16")}
    kwargs["ids"][2, 1] = bad
    with pytest.raises(InputError, match=rf"ids must be in 0..E-1 = 0..4, got {bad} at \[2, 1\]"):
        ops.moe_mlp(**kwargs, backend="cpu")


def test_nan_stays_with_its_token(isa):
    kwargs = {**tokens(SIZES[1], 20), **experts(SIZES[1], "bf16")}
    kwargs["x"][4, 7] = float("nan")
    out = got(kwargs)
    assert out[4].isnan().all() and out[:4].isfinite().all() and out[5:].isfinite().all()


def test_the_reason_is_named():
    x, weights, ids = tokens(SIZES[1], 3).values()
    gate_up, down = experts(SIZES[1], "fp32", layout="rows")["experts"]

    def reason(x=x, gate_up=gate_up, down=down, shared=(None, None), format="fp32"):
        rest = (*shared, None, None, None, None, "rows", format)
        return unsupported_reason(MOE_MLP, "cpu", (x, gate_up, down, weights, ids, *rest))

    assert reason() is None
    assert "fp8" in reason(format="fp8")
    assert "float64" in reason(x=x.double())
    assert "one type" in reason(down=down.bfloat16())
    assert "one type" in reason(shared=(gate_up[0].half(), down[0].half()))
    assert "dense last dimension" in reason(down=transposed(down))
    assert "E, H, I >= 1" in reason(gate_up=gate_up[:, :0], down=down[:, :, :0])
    assert "gradient" in reason(down=down.clone().requires_grad_())
    kwargs = experts(SIZES[1], "int8_dyn")["experts"]
    flat = (x, *kwargs.matrices[:2], weights, ids, *kwargs.matrices[2:], *kwargs.scales)
    assert unsupported_reason(MOE_MLP, "cpu", (*flat, "panels", "int8_dyn")) is None
    assert "it takes panels" in unsupported_reason(MOE_MLP, "cpu", (*flat, "rows", "int8_dyn"))


def test_fewer_threads_than_asked():
    """A team that is smaller than asked for does all the work."""
    program = """
        import torch
        from tests.ops.test_moe import SIZES, experts, got, tokens
        kwargs = {**tokens(SIZES[1], 40), **experts(SIZES[1], "bf16")}
        torch.set_num_threads(1)
        one = got(kwargs)
        torch.set_num_threads(6)
        for _ in range(50):
            assert torch.equal(got(kwargs), one)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_THREAD_LIMIT": "3"},
    )
    assert done.returncode == 0, done.stderr
