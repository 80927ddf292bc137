"""moe_decode on a real GPU, for up to 63 tokens. `make gpu` runs this."""

import pytest
import torch

from mingcore import ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.testing import compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

FORMATS = [
    ("bf16", torch.bfloat16),
    ("fp16", torch.float16),
    ("fp32", torch.float32),
    ("int8", torch.bfloat16),
    ("int8", torch.float16),
    ("fp8", torch.bfloat16),
    ("fp8", torch.float16),
]


def arguments(T, K=6, E=16, H=512, I=352, shared=704, dtype=torch.bfloat16, format=None, seed=0):
    d = cases.Draw("cuda", dtype, seed)
    packed = {"gate_up": d.matrix(E, 2 * I, H), "down": d.matrix(E, H, I)}
    if shared:
        packed["shared"] = (d.matrix(2 * shared, H), d.matrix(H, shared))
    return {
        "x": d.normal(T, H),
        "experts": ops.pack_experts(**packed, format=format),
        "weights": d.weights(T, K),
        "ids": d.choices(T, K, E),
    }


def check(kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run("moe_mlp", kwargs, backend="cuda")
    compare.check_op("moe_mlp", kwargs, got)
    assert torch.equal(got[0], compare.run("moe_mlp", kwargs, backend="cuda")[0])


@pytest.mark.parametrize("format, dtype", FORMATS)
@pytest.mark.parametrize("T", (0, 1, 3, 16, 17, 33, 63))
def test_tokens(format, dtype, T):
    check(arguments(T, dtype=dtype, format=format, seed=T))


@pytest.mark.parametrize("format, dtype", FORMATS)
def test_odd_sizes(format, dtype):
    for sizes in ((1, 6, 9, 208, 80, 176), (5, 1, 1, 16, 16, 0), (40, 2, 3, 2064, 48, 16)):
        check(arguments(*sizes, dtype, format))


def test_all_to_one_and_repeated_ids():
    kwargs = arguments(63, K=2)
    kwargs["ids"].fill_(11)
    check(kwargs)
    kwargs["ids"][:, 1] = 3
    check(kwargs)


def test_awkward_tensors():
    kwargs = arguments(5)
    check({**kwargs, "x": shifted(kwargs["x"])})
    check({**kwargs, "x": kwargs["x"].t().contiguous().t()})
    check({**kwargs, "weights": kwargs["weights"].t().contiguous().t()})


def test_weights_past_two_to_the_31_elements():
    kwargs = arguments(3, K=2, E=130, H=2048, I=4096, shared=0)  # 2.2e9 of gate_up
    kwargs["ids"][:, 0] = 129
    got = compare.run("moe_mlp", kwargs, backend="cuda")[0]
    used, ids = kwargs["ids"].unique(return_inverse=True)
    packed = kwargs["experts"]
    few = packed.gate_up[used.long()], packed.down[used.long()]
    compare.check_op("moe_mlp", {**kwargs, "experts": few, "ids": ids.int()}, (got,))


@pytest.mark.parametrize("T", (1, 16, 40))
def test_graph_replay_follows_the_routing(T):
    kwargs = arguments(T)
    compare.run("moe_mlp", kwargs, backend="cuda")  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once = ops.moe_mlp(**kwargs, backend="cuda")
        out = ops.moe_mlp(**{**kwargs, "x": once}, backend="cuda")
    d = cases.Draw("cuda", torch.bfloat16, 5)
    for _ in range(20):
        kwargs["x"].copy_(d.normal(*kwargs["x"].shape))
        kwargs["ids"].copy_(d.choices(T, 6, 16))
        kwargs["weights"].copy_(d.weights(T, 6))
        out.fill_(float("nan"))
        graph.replay()
        eager = ops.moe_mlp(**kwargs, backend="cuda")
        assert torch.equal(once, eager)
        assert torch.equal(out, ops.moe_mlp(**{**kwargs, "x": eager}, backend="cuda"))
    compare.check_op("moe_mlp", kwargs, (once,))


def test_two_streams_at_once():
    kwargs = [arguments(8, seed=seed) for seed in range(2)]
    expected = [ops.moe_mlp(**each, backend="cuda") for each in kwargs]
    streams = [torch.cuda.Stream() for _ in kwargs]
    torch.cuda.synchronize()
    answers = [[], []]
    for _ in range(200):
        for stream, each, got in zip(streams, kwargs, answers, strict=True):
            with torch.cuda.stream(stream):
                got.append(ops.moe_mlp(**each, backend="cuda"))
    torch.cuda.synchronize()
    for got, right in zip(answers, expected, strict=True):
        assert all(torch.equal(each, right) for each in got)


def test_many_launches_stay_in_step():
    kwargs = arguments(1)
    expected = ops.moe_mlp(**kwargs, backend="cuda")
    for _ in range(3000):
        got = ops.moe_mlp(**kwargs, backend="cuda")
    assert torch.equal(got, expected)
