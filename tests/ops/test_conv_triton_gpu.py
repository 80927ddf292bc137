"""Triton's convolutions on a real GPU. `make gpu` runs them."""

import pytest
import torch

from mingcore import ops
from mingcore.testing import compare, streaming

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

OPS = ("causal_conv1d", "causal_conv_transpose1d")


def layer(op: str, dtype: torch.dtype, length: int, batch: int = 1) -> dict:
    d = torch.Generator("cuda").manual_seed(3)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=d, device="cuda").to(dtype)

    stride = 5 if "transpose" in op else 1
    alpha = 0.5 + torch.rand(48, generator=d, device="cuda")
    return {
        "x": normal(batch, 48, length),
        "weight": normal(48, 32, 2 * stride) if stride > 1 else normal(64, 48, 7) / 18,
        "bias": normal(64 if stride == 1 else 32),
        "stride": stride,
        "activation_before": "snake",
        "snake_before": (alpha, 1 / alpha),
    }


@pytest.mark.parametrize("op", OPS)
def test_streams(op):
    call = layer(op, torch.float32, 600, batch=2)
    expected = streaming.once(op, call, "triton")
    for run in (streaming.chunked, streaming.in_place):
        got = run(op, call, [1, 40, 0, 3, 256, 200, 100], "triton")
        streaming.assert_same(got, expected, run.__name__)
    short = layer(op, torch.float32, 23, batch=3)
    for mine, alone in zip(*streaming.by_rows(op, short, 5, "triton"), strict=True):
        streaming.assert_same(mine, alone, "rows")


@pytest.mark.parametrize("op", OPS)
def test_graph_replay_carries_the_state(op):
    call = layer(op, torch.bfloat16, 64)
    expected, state = [], None
    for i in range(3):
        chunk = {**call, "x": call["x"] * (i + 1)}
        out, state = getattr(ops, op)(**chunk, state=state, backend="triton")
        expected.append(out.clone())
    chunk, rest = call.pop("x").clone(), call
    state.reset()
    step = getattr(ops, op + "_")
    step(chunk, out, **rest, state=state, backend="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(chunk, out, **rest, state=state, backend="triton")
    state.reset()
    first = chunk.clone()
    for i in range(3):
        chunk.copy_(first * (i + 1))
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected[i]), i


def test_distances_beyond_32_bits():
    """Elements of x and of the output lie more than 2^31 apart."""
    length = (1 << 29) + 5
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("takes 21 GB")
    x = torch.zeros(1, 8, length, device="cuda", dtype=torch.bfloat16)
    x[:, :, -300:].normal_()
    weight = torch.randn(8, 8, 1, device="cuda", dtype=torch.bfloat16)
    for options in ({}, {"groups": 8}):
        given = weight if not options else weight[:, :1]
        y = ops.causal_conv1d(x, given, **options, backend="triton")[0][:, :, -300:].clone()
        end = {"x": x[:, :, -300:].contiguous(), "weight": given, **options}
        state = compare.run("causal_conv1d", end, backend="triton")[1:]
        compare.check_op("causal_conv1d", end, (y, *state))
