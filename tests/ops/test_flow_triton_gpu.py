"""Triton's flow sampler on a real GPU. `make gpu` runs this."""

import pytest
import torch

from mingcore import ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.testing import compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

BACKEND = "triton"
PROOF = cases.for_op("flow_sample", tag="verify", large=True)


def arguments(name: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict:
    case = next(case for case in cases.for_op("flow_sample", large=True) if case.name == name)
    return case.make("cuda", dtype, seed)


def run(kwargs: dict) -> torch.Tensor:
    with torch.no_grad(), nan_poisoned():
        return ops.flow_sample(**kwargs, backend=BACKEND)


@pytest.mark.parametrize("case", PROOF, ids=lambda case: case.name)
def test_within_tolerance(case):
    if "fp8" in case.name and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no 8-bit floats here")
    kwargs = case.make("cuda", torch.bfloat16, 1)
    with torch.no_grad():
        compare.check_op("flow_sample", kwargs, (run(kwargs),))


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
def test_other_operands(dtype):
    for name in ("b3", "odd_qk_norm", "proof_b1"):
        kwargs = arguments(name, dtype)
        with torch.no_grad():
            compare.check_op("flow_sample", kwargs, (run(kwargs),))


def test_every_step():
    kwargs = arguments("proof_b1")
    whole = ops.FlowSchedule.make(10)
    draw = cases.Draw("cuda", torch.float32, 7)
    noise = draw.normal(11, *kwargs["noise"].shape[1:])
    for steps in range(1, 11):
        part = {**kwargs, "schedule": whole.prefix(steps), "noise": noise[: steps + 1].clone()}
        part["noise"][steps] = float("nan")  # the draw after the last step is not read
        with torch.no_grad():
            compare.check_op("flow_sample", part, (run(part),))


@pytest.mark.parametrize("name", ("proof_b1", "proof_b4", "proof_b32"))
def test_the_same_bits_a_thousand_times_and_in_a_graph(name):
    kwargs = arguments(name)
    expected = run(kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = ops.flow_sample(**kwargs, backend=BACKEND)
    differ = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000 if name == "proof_b1" else 200):
        out.fill_(float("nan"))
        graph.replay()
        differ += (out != expected).any()
    assert differ.item() == 0
    assert torch.equal(run(kwargs), expected)


def test_replay_follows_the_arguments():
    kwargs = arguments("proof_b2")
    run(kwargs)
    graph = torch.cuda.CUDAGraph()
    kwargs["guidance"] = torch.full((2,), 2.0, device="cuda")
    with torch.no_grad(), torch.cuda.graph(graph):
        out = ops.flow_sample(**kwargs, backend=BACKEND)
    for seed in range(5):
        other = arguments("proof_b2", seed=seed + 1)
        for name in ("condition", "history", "noise"):
            kwargs[name].copy_(other[name])
        kwargs["guidance"].fill_(float(seed))
        graph.replay()
        assert torch.equal(out, run(kwargs))


def test_launches_that_overlap_change_no_bit(monkeypatch):
    from mingcore_kernels.flow import flow_sample as kernels

    kwargs = arguments("proof_b1")
    expected = run(kwargs)
    plain = kernels._Launcher.__init__

    def apart(self, like, operand, overlap):
        plain(self, like, operand, False)

    monkeypatch.setattr(kernels._Launcher, "__init__", apart)
    assert torch.equal(run(kwargs), expected)


def test_parts_of_a_sum_count_down_to_zero():
    """Calls in a row: the counters of partial sums are left as they were found."""
    kwargs = arguments("proof_b4")
    expected = run(kwargs)
    for _ in range(50):
        assert torch.equal(run(kwargs), expected)


def test_two_streams_at_once():
    every = [arguments("proof_b1", seed=seed) for seed in range(2)]
    expected = [run(kwargs) for kwargs in every]
    streams = [torch.cuda.Stream() for _ in every]
    torch.cuda.synchronize()
    answers = [[], []]
    for _ in range(20):
        for stream, kwargs, got in zip(streams, every, answers, strict=True):
            with torch.cuda.stream(stream), torch.no_grad():
                got.append(ops.flow_sample(**kwargs, backend=BACKEND))
    torch.cuda.synchronize()
    for got, right in zip(answers, expected, strict=True):
        assert all(torch.equal(each, right) for each in got)


def test_inputs_of_a_thousand_stay_finite():
    for dtype in (torch.bfloat16, torch.float16):
        kwargs = arguments("large_input", dtype)
        assert run(kwargs).isfinite().all()
