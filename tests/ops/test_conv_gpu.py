"""The convolutions' CUDA kernels on a real GPU. `make gpu` runs this."""

import pytest
import torch

from mingcore import ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import map_tensors, nan_poisoned
from mingcore.testing import compare, streaming
from tests.ops.test_streams import conv_call

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

PURE = ("causal_conv1d", "causal_conv_transpose1d")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check(op, kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="cuda")
    compare.check_op(op, kwargs, got)
    again = compare.run(op, kwargs, backend="cuda")
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def on_gpu(op, seed, **sizes):
    return map_tensors(conv_call(op, seed, **sizes), lambda t: t.cuda())


@pytest.mark.parametrize("op", PURE)
@pytest.mark.parametrize("seed", range(40))
def test_any_convolution(op, seed):
    call = on_gpu(op, seed)
    for dtype in DTYPES:
        parts = {k: call[k].to(dtype) for k in ("x", "weight", "bias")}
        check(op, {**call, **parts, "state": None, "last": seed % 2 == 1})


@pytest.mark.parametrize("op", PURE)
@pytest.mark.parametrize("seed", range(20))
def test_streams(op, seed):
    call = on_gpu(op, 100 + seed)
    expected = streaming.once(op, call, "cuda")
    sizes = streaming.split(call["x"].shape[2], seed)
    for run in (streaming.chunked, streaming.in_place):
        streaming.assert_same(run(op, call, sizes, "cuda"), expected, str(sizes))
    call = on_gpu(op, seed, batch=3, length=23)
    for mine, alone in zip(*streaming.by_rows(op, call, seed, "cuda"), strict=True):
        streaming.assert_same(mine, alone, "rows")


@pytest.mark.parametrize("op", PURE)
def test_a_replayed_graph_goes_on_with_the_stream(op):
    """In place, 16 inputs at a time: what a graph computes in its n-th replay."""
    d = cases.Draw("cuda", torch.bfloat16, 3)
    up = "transpose" in op
    weight = d.normal(64, 64, 7, scale=0.05)
    snake = 0.5 + d.uniform(64), d.uniform(64)
    args = {"weight": weight, "stride": 2, "activation_before": "snake", "snake_before": snake}
    state = ops.ConvState.start(2, 64, 3 if up else 6, dtype=torch.bfloat16, device="cuda")
    x, inputs = d.normal(2, 64, 16), d.normal(2, 64, 16 * 6)
    out = torch.empty(2, 64, 32 if up else 8, dtype=torch.bfloat16, device="cuda")
    call = getattr(ops, op + "_")
    call(x, out, state=state, **args, backend="cuda")  # loads the kernels
    state.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(x, out, state=state, **args, backend="cuda")
    state.lengths.zero_()
    pieces = []
    for chunk in inputs.split(16, dim=2):
        x.copy_(chunk)
        out.fill_(float("nan"))
        graph.replay()
        pieces.append(out.clone())
    whole = {"x": inputs, **args}
    results = compare.run(op, whole, backend="cuda")
    compare.check_op(op, whole, (torch.cat(pieces, dim=2), *results[1:]))


def test_places_past_two_to_the_31():
    """A row of inputs that begins past 2^31 elements."""
    far = torch.empty((1 << 31) + 4096, dtype=torch.bfloat16, device="cuda")
    x = far.as_strided((2, 64, 64), (1 << 31, 64, 1))
    x.copy_(torch.randn(2, 64, 64))
    weight = torch.randn(32, 64, 3, device="cuda").div(14).bfloat16()
    check("causal_conv1d", {"x": x, "weight": weight})
    depthwise = torch.randn(64, 1, 3, device="cuda").bfloat16()
    check("causal_conv1d", {"x": x, "weight": depthwise, "groups": 64})
