"""The persistent flow_sample kernel on a real GPU. `make gpu` runs this."""

import pytest
import torch

pytest.importorskip("cuda.bindings")

from mingcore.errors import BackendError
from mingcore.ops._core import launch
from mingcore.ops.flow import cuda as cuda_flow
from mingcore.testing import compare
from tests.ops import flow_harness

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="no GPU of sm_90a")]

SETTING = {"backend": "cuda", "device": "cuda", "dtype": torch.bfloat16, "rows": True}
REAL = {"L": 8, "H": 1024, "W": 4096, "C": 64, "Hc": 2048, "heads": 16, "schedule": {"steps": 10}}


def make(name="b1", **change):
    return flow_harness.make(name, device="cuda", dtype=torch.bfloat16, rows=True, **change)


def check(kwargs):
    """Within tolerance, and the same bits in the next run."""
    got = flow_harness.run(kwargs, "cuda")
    with torch.no_grad():
        compare.check_op("flow_sample", kwargs, (got,))
    assert torch.equal(got, flow_harness.run(kwargs, "cuda"))


def test_everything_that_a_backend_must_hold():
    done = 0
    for name, hold in flow_harness.checks("cuda", "cuda", (torch.bfloat16,), rows=True):
        try:
            hold()
            done += 1
        except BackendError as error:
            reasons = ("multiples of", "rows of tokens; it", "the weights are", "condition is torch")
            assert any(reason in str(error) for reason in reasons), f"{name}: {error}"
    assert done >= 30


@pytest.mark.parametrize("format", cuda_flow.WEIGHT_BYTES)
@pytest.mark.parametrize("B, N, P, guidance", [(1, 5, 5, 2.0), (2, 5, 5, 7.0), (4, 5, 5, 1.0)])
def test_the_real_head(format, B, N, P, guidance):
    check(make(B=B, N=N, P=P, guidance=guidance, format=format, **REAL))


def test_the_real_head_with_a_long_history_and_without_guidance():
    check(make(N=32, P=4, **REAL))
    check(make(B=8, guidance=0.0, **REAL))


def test_a_thousand_runs_have_the_same_bits():
    kwargs = make(**REAL)
    expected = flow_harness.run(kwargs, "cuda")
    noise = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    for i in range(1000):
        if i % 10 == 0:
            noise.fill_(i % 100)  # another state of the second-level cache
        assert torch.equal(flow_harness.run(kwargs, "cuda"), expected), f"run {i}"


def test_graph_replays_follow_their_inputs():
    kwargs = make("b3", guidance=(0.0, 2.0, 7.0))
    flow_harness.run(kwargs, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = flow_harness.run(kwargs, "cuda")
        second = flow_harness.run({**kwargs, "history": first}, "cuda")
    for i in range(50):
        kwargs["condition"].normal_()
        kwargs["noise"][: kwargs["schedule"].steps].normal_()
        kwargs["guidance"].fill_(i / 10)
        graph.replay()
        eager = flow_harness.run(kwargs, "cuda")
        assert torch.equal(first, eager)
        assert torch.equal(second, flow_harness.run({**kwargs, "history": eager}, "cuda"))


def test_other_work_beside_it_changes_nothing():
    """Blocks that start late, since another stream holds their multiprocessors."""
    kwargs = make(**REAL)
    expected = flow_harness.run(kwargs, "cuda")
    other = torch.cuda.Stream()
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    for _ in range(50):
        with torch.cuda.stream(other):
            a @ a
        assert torch.equal(flow_harness.run(kwargs, "cuda"), expected)
    torch.cuda.synchronize()


def test_two_streams_at_once():
    kwargs = [make(L=2, noise_scale=(0.5 + i,)) for i in range(2)]
    expected = [flow_harness.run(each, "cuda") for each in kwargs]
    streams = [torch.cuda.Stream() for _ in kwargs]
    torch.cuda.synchronize()
    answers = [[], []]
    for _ in range(200):
        for stream, each, got in zip(streams, kwargs, answers, strict=True):
            with torch.cuda.stream(stream):
                got.append(flow_harness.run(each, "cuda"))
    torch.cuda.synchronize()
    for got, right in zip(answers, expected, strict=True):
        assert all(torch.equal(each, right) for each in got)


def test_lost_blocks_leave_with_nan_and_an_error():
    """A block whose epoch is ahead of the others' waits for them in vain."""
    kwargs = make()
    stream = torch.cuda.Stream()  # has flags of its own
    with torch.cuda.stream(stream):
        flow_harness.run(kwargs, "cuda")
        size = 8 * (cuda_flow.FLAG_WORDS + cuda_flow.MAX_BLOCKS)
        words = launch.barrier_words("flow_sample", torch.cuda.current_device(), size)
        words[cuda_flow.FLAG_WORDS] += 1000
        assert flow_harness.run(kwargs, "cuda").isnan().all()
        stream.synchronize()
        with pytest.raises(BackendError, match="waited for seconds in vain"):
            flow_harness.run(kwargs, "cuda")
    launch.fault("flow_sample", torch.cuda.current_device()).zero_()
    assert flow_harness.run(kwargs, "cuda").isfinite().all()
