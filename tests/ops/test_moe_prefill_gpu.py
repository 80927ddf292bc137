"""moe_prefill on a real GPU, for 64 tokens and more. `make gpu` runs this."""

import pytest
import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.testing import compare

HERE = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no GPU of sm_90")]


def arguments(T, K=6, E=16, H=512, I=352, shared=704, dtype=torch.bfloat16, seed=0):
    d = cases.Draw("cuda", dtype, seed)
    pair = (d.matrix(2 * shared, H), d.matrix(H, shared)) if shared else None
    return {
        "x": d.normal(T, H),
        "experts": ops.pack_experts(d.matrix(E, 2 * I, H), d.matrix(E, H, I), shared=pair),
        "weights": d.weights(T, K),
        "ids": d.choices(T, K, E),
    }


def check(kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run("moe_mlp", kwargs, backend="cuda")
    compare.check_op("moe_mlp", kwargs, got)
    assert torch.equal(got[0], compare.run("moe_mlp", kwargs, backend="cuda")[0])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("T", (64, 65, 128, 512))
def test_tokens(dtype, T):
    check(arguments(T, dtype=dtype, seed=T))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_odd_sizes(dtype):
    for sizes in ((64, 6, 9, 200, 88, 176), (65, 1, 1, 8, 8, 0), (300, 2, 256, 264, 136, 24)):
        check(arguments(*sizes, dtype))


@pytest.mark.parametrize("T", (64, 128, 4096))
def test_one_layer_of_the_released_model(T):
    check(arguments(T, 6, 64, 2048, 1408, 2816))


def test_skewed_and_repeated_ids():
    kwargs = arguments(500, K=2)
    kwargs["ids"].fill_(11)
    check(kwargs)
    kwargs["ids"][:, 1] = 3
    kwargs["ids"][::7, 1] = 15
    check(kwargs)


def test_every_width_of_a_tile():
    counts = range(1, 196, 6)
    kwargs = arguments(sum(counts), K=1, E=len(counts), H=256, I=128, shared=0)
    ids = torch.cat([torch.full((count,), e) for e, count in enumerate(counts)])
    kwargs["ids"].copy_(ids[torch.randperm(len(ids))].view(-1, 1))
    check(kwargs)


def test_awkward_tensors():
    kwargs = arguments(70)
    check({**kwargs, "x": shifted(kwargs["x"])})
    check({**kwargs, "x": kwargs["x"].t().contiguous().t()})
    check({**kwargs, "weights": kwargs["weights"].t().contiguous().t()})


def test_formats_that_triton_serves():
    kwargs = arguments(64, dtype=torch.float32)
    with pytest.raises(BackendError, match="it takes bf16"):
        ops.moe_mlp(**kwargs, backend="cuda")


def test_a_token_gets_the_same_bits_in_any_batch():
    kwargs = arguments(700)
    whole = ops.moe_mlp(**kwargs, backend="cuda")
    for T in (64, 100, 333):
        few = {name: kwargs[name][:T] for name in ("x", "weights", "ids")}
        assert torch.equal(ops.moe_mlp(**{**kwargs, **few}, backend="cuda"), whole[:T])


def test_weights_past_two_to_the_31_elements():
    kwargs = arguments(65, K=2, E=130, H=2048, I=4096, shared=0)  # 2.2e9 of gate_up
    kwargs["ids"][:, 0] = 129
    got = compare.run("moe_mlp", kwargs, backend="cuda")[0]
    used, ids = kwargs["ids"].unique(return_inverse=True)
    packed = kwargs["experts"]
    few = packed.gate_up[used.long()], packed.down[used.long()]
    compare.check_op("moe_mlp", {**kwargs, "experts": few, "ids": ids.int()}, (got,))


@pytest.mark.parametrize("T", (64, 300))
def test_graph_replay_follows_the_routing(T):
    kwargs = arguments(T)
    compare.run("moe_mlp", kwargs, backend="cuda")  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once = ops.moe_mlp(**kwargs, backend="cuda")
        out = ops.moe_mlp(**{**kwargs, "x": once}, backend="cuda")
    d = cases.Draw("cuda", torch.bfloat16, 5)
    for i in range(10):
        kwargs["x"].copy_(d.normal(*kwargs["x"].shape))
        kwargs["ids"].copy_(d.choices(T, 6, 6 + i))
        kwargs["weights"].copy_(d.weights(T, 6))
        out.fill_(float("nan"))
        graph.replay()
        eager = ops.moe_mlp(**kwargs, backend="cuda")
        assert torch.equal(once, eager)
        assert torch.equal(out, ops.moe_mlp(**{**kwargs, "x": eager}, backend="cuda"))
    compare.check_op("moe_mlp", kwargs, (once,))


def test_two_streams_at_once():
    kwargs = [arguments(90, seed=seed) for seed in range(2)]
    expected = [ops.moe_mlp(**each, backend="cuda") for each in kwargs]
    streams = [torch.cuda.Stream() for _ in kwargs]
    torch.cuda.synchronize()
    answers = [[], []]
    for _ in range(100):
        for stream, each, got in zip(streams, kwargs, answers, strict=True):
            with torch.cuda.stream(stream):
                got.append(ops.moe_mlp(**each, backend="cuda"))
    torch.cuda.synchronize()
    for got, right in zip(answers, expected, strict=True):
        assert all(torch.equal(each, right) for each in got)
