"""`ops.batch_invariant`: a row's bits on the reference backend are its own, wherever it stands."""

import pytest
import torch

from mingcore import ops
from tests.ops.support import Draw

H, I, E, K, HEADS, D = 37, 45, 6, 3, 4, 10
DTYPES = (torch.float32, torch.bfloat16)


def linear(d: Draw):
    w, b = d.weight(I, H), d(I)
    return lambda x, r: ops.linear(x, w, b, activation="gelu_tanh", residual=r), (d(7, 3, H), d(7, 3, I))


def linear_int8(d: Draw):
    w = ops.pack_linear(d.weight(2 * I, H), format="int8_dyn", activation="swiglu")
    return lambda x: ops.linear(x, w, activation="swiglu"), (d(9, H),)


def silu_mul(d: Draw):
    return ops.silu_mul, (d(9, 2 * I),)


def norms(d: Draw):
    w = d(H)
    return lambda x, r: (*ops.add_rms_norm(x, r, w, 1e-6), ops.layer_norm(x, w, w, 1e-5)), (d(9, 2, H), d(9, 2, H))


def qkv_rope(d: Draw):
    turn = d(7, 3, D // 2, dtype=torch.float32)
    call = lambda x, c, s: ops.qkv_rope(x, c, s, HEADS, 2, interleaved=True)  # noqa: E731
    return call, (d(7, 3, (HEADS + 4) * D), turn.cos(), turn.sin())


def route_topk(d: Draw):
    return lambda x: ops.route_topk(x, K), (d(9, E),)


def experts(d: Draw):
    pair = d.weight(E, 2 * I, H), d.weight(E, H, I)
    shared = d.weight(2 * I, H), d.weight(H, I)
    return lambda x, w, ids: ops.moe_mlp(x, pair, w, ids, shared=shared), (
        d(11, H),
        d(11, K, dtype=torch.float32),
        d.ids(11, K, E),
    )


def prefill(d: Draw):
    return lambda q, k, v: ops.attention_prefill(q, k, v, window=4), (d(5, 7, HEADS, D), d(5, 7, 2, D), d(5, 7, 2, D))


def decode(d: Draw):
    at = torch.tensor([[3, 4], [60, 61], [-1, -1], [12, -1], [0, 1]])
    return ops.attention_decode, (d(5, 2, HEADS, D), d(5, 64, 2, D), d(5, 64, 2, D), at)


def convolution(d: Draw):
    w = ops.pack_conv(d.weight(I, H, 3), dilation=2)
    return lambda x: ops.causal_conv1d(x, w, dilation=2, activation="elu"), (d(5, H, 11),)


CALLS = (linear, linear_int8, silu_mul, norms, qkv_rope, route_topk, experts, prefill, decode, convolution)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", CALLS)
def test_a_row_is_its_own(make, dtype):
    with ops.use_backend("reference"):
        call, rows = make(Draw(dtype))
        B = rows[0].shape[0]
        plain = together(call(*rows))
        with ops.batch_invariant():
            all_rows = together(call(*rows))
            for order in (torch.randperm(B), torch.randperm(B)[: B // 2], torch.tensor([B - 1])):
                some = together(call(*(t[order] for t in rows)))
                for a, b in zip(some, all_rows, strict=True):
                    assert torch.equal(a, b[order])
    for a, b in zip(all_rows, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def together(results) -> tuple[torch.Tensor, ...]:
    if isinstance(results, torch.Tensor):
        return (results,)
    return tuple(t for t in results if isinstance(t, torch.Tensor))


def test_every_op_of_a_row_is_covered(monkeypatch):
    """None of them reaches PyTorch with more than one row in this mode."""
    seen = []
    inner = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: seen.append(x.shape) or inner(x, *rest))
    with ops.use_backend("reference"), ops.batch_invariant():
        for make in (linear, experts):
            call, rows = make(Draw(torch.float32))
            call(*rows)
    assert seen and {shape[0] for shape in seen} == {1}


def test_the_block_ends_and_nests():
    from mingcore.ops._core.invariance import _on

    with ops.batch_invariant():
        with ops.batch_invariant(False):
            assert _on.get()
    assert not _on.get()


def test_around_a_compiled_function():
    d = Draw(torch.float32)
    w, x = d.weight(I, H), d(9, H)

    def function(x):
        return ops.linear(x, w, activation="silu", backend="reference")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with ops.batch_invariant():
        assert torch.equal(compiled(x), function(x))
        assert torch.equal(compiled(x)[3:4], function(x[3:4]))


def test_many_tokens_in_bfloat16_take_the_product_of_few():
    """Where the CPU has AVX512-BF16, `moe_mlp` multiplies 64 tokens and more in another way."""
    d = Draw(torch.bfloat16)
    experts = ops.pack_experts(d.weight(E, 128, 64), d.weight(E, 64, 64))
    x, w, ids = d(130, 64), d(130, K, dtype=torch.float32), d.ids(130, K, E)
    with ops.batch_invariant():
        whole = ops.moe_mlp(x, experts, w, ids)
        single = [ops.moe_mlp(x[t : t + 1], experts, w[t : t + 1], ids[t : t + 1]) for t in (0, 99)]
    assert torch.equal(torch.cat(single), whole[[0, 99]])
